//! One caller in a loop: held to its share, told when to come back, on record, and felt by nobody else.

use std::time::Duration;

use carnet::proto::ExchangeRequest;
use carnet::sandbox::{EntraToken, Fault};
use futures_util::future::join_all;
use tokio::time::Instant;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::holder::{LEASING, beat, credentials, opening, try_open, watch};
use crate::support::{Broker, Setup, TENANT, reason, with_setup};

const LIMITS: &str = "limits: { per_caller: { exchanges_per_second: 1, burst: 10 } }";

fn other(broker: &Broker) -> EntraToken {
    broker.entra.app_token(TENANT, "66666666-0000-0000-0000-000000000002").roles(["Training.Submit"])
}

async fn loops(broker: &Broker, request: &ExchangeRequest, times: usize) -> (usize, Vec<tonic::Status>) {
    let client = broker.client().await;
    let calls = (0..times).map(|_| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.exchange(request).await }
    });
    let (mut issued, mut refused) = (0, Vec::new());
    for answer in join_all(calls).await {
        match answer {
            Ok(answer) => {
                broker.is_secret(&answer.into_inner().credentials[0].token);
                issued += 1;
            }
            Err(status) => refused.push(status),
        }
    }
    (issued, refused)
}

#[tokio::test(flavor = "multi_thread")]
async fn c04_a_caller_in_a_loop_is_told_to_wait_at_every_door_and_is_on_record_once() {
    let mut broker = Broker::start_for(Setup { more: LIMITS.to_owned(), ..Setup::default() }).await;
    let request = broker.request(&["vertex"]);
    let began = Instant::now();
    let (issued, refused) = loops(&broker, &request, 100).await;
    let came_back = usize::try_from(began.elapsed().as_secs() + 1).expect("few");
    assert!((10..=10 + came_back).contains(&issued), "{issued}");
    for status in &refused {
        let wait = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
        assert_eq!((status.code(), reason(status).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
        assert!(wait.is_some_and(|wait| wait >= Duration::from_secs(1)), "{wait:?}");
    }
    // A fresh token is no fresh caller, nor is the other door.
    let token = broker.signed(&broker.runner().claim("uti", "fresh"));
    let fields = [("audience", "vertex"), ("subject_token", token.as_str())];
    let posted = (0..30).map(|_| broker.token(&fields));
    let posted = join_all(posted).await.into_iter().filter(|(status, _body)| *status == 429).collect::<Vec<_>>();
    assert_eq!(posted.first().expect("one of them").1["error"], "temporarily_unavailable");
    broker.exchange(broker.request_with(&other(&broker), &["vertex"])).await.expect("others have their own share");

    broker.take_app().drain().await;
    let records = broker.audit_records();
    let limited: Vec<_> = records.iter().filter(|record| record.reason == "RATE_LIMITED").collect();
    let [first, in_all] = limited[..] else {
        panic!("the first of them, and the rest in one: {} records", limited.len())
    };
    assert_eq!((first.action.as_str(), in_all.action.as_str()), ("exchange", "exchange.limited"));
    assert!(first.subject == in_all.subject && first.subject.starts_with("entra:"), "{}", in_all.subject);
    let all = refused.len() + posted.len();
    assert_eq!(in_all.attributes["refusals"], (all - 1).to_string(), "of both doors, less the first");
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_has_used_up_its_share_keeps_its_leases_alive() {
    let setup = Setup { more: LIMITS.to_owned(), rules: Some(LEASING), ..Setup::default() };
    with_setup(setup, async |broker| {
        let opened = try_open(broker, opening(broker, &["vertex"])).await.expect("a lease");
        let mut watch = watch(broker, &opened.lease_token).await.expect("a watch");
        watch.next().await.expect("an update").expect("credentials");
        let (_issued, refused) = loops(broker, &broker.request(&["vertex"]), 100).await;
        assert!(!refused.is_empty());
        for _ in 0..5 {
            let asked = join_all((0..20).map(|_| credentials(broker, &opened.lease_token, &[]))).await;
            let refused = asked.into_iter().find_map(Result::err).expect("asking is an exchange");
            assert_eq!(reason(&refused), "RATE_LIMITED");
            beat(broker, &opened.lease_token).await.expect("a heartbeat is none");
        }
        drop(watch);
    })
    .await;
}

/// 90 calls a second to Google's token service, 64 at once: all others would wait behind hundreds of one caller's.
#[tokio::test(flavor = "multi_thread")]
async fn c06_a_callers_hundreds_of_cold_calls_leave_turns_at_the_cloud_to_others() {
    with_setup(Setup::default(), async |broker| {
        broker.google.faults().always("/v1/token", Fault::Delay(Duration::from_secs(1)));
        let request = |token: &EntraToken, job: String| {
            let mut request = broker.request_with(token, &["vertex"]);
            request.job = Some(carnet::proto::Job { id: job, ..Default::default() });
            request
        };
        let hog = broker.runner();
        let (client, mut calls) = (broker.client().await, tokio::task::JoinSet::new());
        for number in 0..256 {
            let (mut client, request) = (client.clone(), request(&hog, format!("run-{number}")));
            calls.spawn(async move { client.exchange(request).await.map(drop) });
        }
        crate::support::eventually("a queue at Google", async || broker.google.calls().count("/v1/token") >= 70).await;
        broker.exchange(request(&other(broker), "another-job".to_owned())).await.expect("a credential");
        let order = broker.google.calls().to("/v1/token");
        let place = order.iter().position(|call| format!("{:?}", call.headers).contains("another-job"));
        assert!(place.is_some_and(|place| place < 200), "{place:?} calls of the first caller came before");
        // Whoever wants too much has it later, or is told to come back.
        let refusals = calls.join_all().await.into_iter().filter_map(Result::err);
        refusals.for_each(|refused| assert_eq!(reason(&refused), "RATE_LIMITED"));
    })
    .await;
}

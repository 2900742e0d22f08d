//! Floods of bad tokens: bounded key fetches, checks and records, and good callers of the same address are served.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use carnet::clock::{Clock as _, SystemClock};
use carnet::proto::leases_client::LeasesClient;
use carnet::proto::{AuditRecord, ExchangeRequest, RenewLeaseRequest};
use futures_util::future::join_all;
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use super::while_others_are_served;
use crate::holder::{LEASING, beat, leases, opening, try_open};
use crate::support::{Broker, RUNNER, Setup, TENANT, captured_logs, reason, with_setup};

const LIMITS: &str = "limits: { per_peer: { refusals_per_second: 1, burst: 20 } }";

/// How many an address may show that began to do so then: the burst of its own, that of a known caller whom the tokens
/// pretend to be of, and what came back since.
fn heard(began: Instant) -> usize {
    let seconds = usize::try_from(began.elapsed().as_secs() + 1).expect("few");
    (20 + 20) + (1 + 5) * seconds
}

const KEYS: &str = "/discovery/v2.0/keys";

type Bad = fn(&Broker, usize) -> String;

const KINDS: [(&str, Bad); 6] = [
    ("SUBJECT_TOKEN_SIGNATURE", |broker, number| {
        broker.runner().claim("uti", format!("bad-{number}")).sign_with_foreign_key()
    }),
    ("SUBJECT_TOKEN_SIGNATURE", |broker, number| broker.runner().header("kid", format!("made-up-{number}")).sign()),
    ("SUBJECT_TOKEN_MALFORMED", |_broker, number| format!("garbage-{number}")),
    ("SUBJECT_TOKEN_TENANT", |broker, number| {
        let token = broker.entra.app_token("99999999-9999-9999-9999-999999999999", RUNNER);
        token.claim("uti", format!("bad-{number}")).sign()
    }),
    ("SUBJECT_TOKEN_EXPIRED", |broker, number| {
        let past: SystemTime = SystemClock.now() - Duration::from_secs(7200);
        broker.runner().issued_at(past).claim("uti", format!("bad-{number}")).sign()
    }),
    ("SUBJECT_TOKEN_AUDIENCE", |broker, number| {
        broker.runner().audience("api://other").claim("uti", format!("bad-{number}")).sign()
    }),
];

/// All of them at once, over one connection of their own; how many were refused for which reason.
async fn flood(broker: &Broker, bad: Bad, count: usize) -> BTreeMap<String, usize> {
    let (client, base) = (broker.client().await, broker.request(&["vertex"]));
    let calls = (0..count).map(|number| {
        let mut client = client.clone();
        let request = ExchangeRequest { subject_token: bad(broker, number), ..base.clone() };
        async move { reason(&client.exchange(request).await.err().expect("refused")) }
    });
    let mut reasons = BTreeMap::new();
    for reason in join_all(calls).await {
        *reasons.entry(reason).or_default() += 1;
    }
    reasons
}

fn said<'a>(record: &'a AuditRecord, name: &str) -> &'a str {
    record.attributes.get(name).map_or("", String::as_str)
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens_of_any_kind_cost_a_bounded_number_of_fetches_checks_and_records() {
    const COUNT: usize = 120;
    for (expected, bad) in KINDS {
        let mut broker = Broker::start_for(Setup { more: LIMITS.to_owned(), ..Setup::default() }).await;
        broker.entra.calls().clear();
        let began = Instant::now();
        let reasons = while_others_are_served(&broker, flood(&broker, bad, COUNT)).await;
        let (checked, limited) = (reasons[expected], reasons["RATE_LIMITED"]);
        assert_eq!(checked + limited, COUNT, "{expected}: {reasons:?}");
        assert!(checked <= heard(began), "{expected}: {checked} tokens were looked at");
        assert!(broker.entra.calls().count(KEYS) <= 2, "{expected}: {:?}", broker.entra.calls().all());
        broker.take_app().drain().await;
        // Those that the broker shows to itself are looked at and recorded as ever.
        let mut records = broker.audit_records();
        records.retain(|record| said(record, "peer") != "prober");
        let refusals = records.iter().filter(|record| record.outcome == "denied");
        assert!(refusals.count() <= heard(began) + 2, "{expected}: {} records", records.len());
        // None of them is lost: what has no record of its own is in the one of all.
        let own = records.iter().filter(|record| record.action == "exchange" && record.outcome == "denied").count();
        let in_all = records.iter().filter(|record| record.action == "exchange.limited");
        let counted: usize = in_all.map(said_of_all).sum();
        assert_eq!(own + counted, COUNT, "{expected}: {own} and {counted}");
        let [in_all] = records.iter().filter(|record| record.action == "exchange.limited").collect::<Vec<_>>()[..]
        else {
            panic!("one record of all, {} in total", records.len())
        };
        assert_eq!((said(in_all, "peer"), in_all.reason.as_str()), ("127.0.0.1", "RATE_LIMITED"), "{expected}");
        broker.no_secret_was_left_behind();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_here_before_is_heard_from_an_address_that_floods_and_a_stranger_is_told_to_wait() {
    let setup = Setup { more: LIMITS.to_owned(), ..Setup::default() };
    with_setup(setup, async |broker| {
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        let flooding = async {
            loop {
                flood(broker, KINDS[2].1, 60).await;
            }
        };
        let refused = tokio::select! {
            () = flooding => unreachable!("it goes on"),
            refused = strangers_and_others(broker) => refused,
        };
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
        let wait = refused.get_error_details().retry_info().and_then(|info| info.retry_delay).expect("RetryInfo");
        assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&wait), "{wait:?}");
        // What pretends to be of a known caller is bounded, too.
        let began = Instant::now();
        let reasons = flood(broker, KINDS[0].1, 100).await;
        assert!(reasons["SUBJECT_TOKEN_SIGNATURE"] <= heard(began), "{reasons:?}");
        // The broker's own bad tokens are looked at one by one, as ever.
        let round = broker.app().prove().await.expect("a round");
        assert_eq!((round.taken, round.other_reason, round.unproven), (0, 0, 0), "{round:?}");
    })
    .await;
}

/// Until a stranger is refused; the fresh tokens of somebody known, which have to be checked, are taken all the while.
async fn strangers_and_others(broker: &Broker) -> tonic::Status {
    for number in 0..100 {
        let fresh = broker.runner().claim("uti", format!("fresh-{number}"));
        broker.exchange(broker.request_with(&fresh, &["vertex"])).await.expect("known callers are heard");
        let object = format!("99999999-0000-0000-0000-{number:012}");
        let stranger = broker.entra.app_token(TENANT, &object).roles(["Training.Submit"]);
        if let Err(refused) = broker.exchange(broker.request_with(&stranger, &["vertex"])).await {
            return refused;
        }
    }
    panic!("a hundred strangers were heard beside the flood")
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_operators_tokens_and_questions_about_unknown_tokens_are_bounded_too() {
    let setup = Setup { more: LIMITS.to_owned(), ..Setup::default() };
    with_setup(setup, async |broker| {
        let began = Instant::now();
        let operator = carnet::proto::operator_client::OperatorClient::new(crate::holder::channel(broker).await);
        let asked = (0..100).map(|number| {
            let mut operator = operator.clone();
            async move {
                let request = carnet::proto::ListLeasesRequest::default();
                let mut request = tonic::Request::new(request);
                let bearer = format!("Bearer garbage-{number}").parse().expect("a value");
                request.metadata_mut().insert("authorization", bearer);
                reason(&operator.list_leases(request).await.err().expect("refused"))
            }
        });
        let reasons = join_all(asked).await;
        let limited = reasons.iter().filter(|reason| *reason == "RATE_LIMITED").count();
        assert!(limited + heard(began) >= 100, "{reasons:?}");
        assert!(broker.audit_records().len() <= heard(began) + 1);

        let (began, http) = (Instant::now(), reqwest::Client::new());
        let asked = (0..200).map(|number| {
            let form = [("token", format!("unknown-{number}"))];
            let call = http.post(format!("{}/v1/introspect", broker.http)).form(&form);
            async move { call.send().await.expect("an answer") }
        });
        let answers = join_all(asked).await;
        let limited: Vec<_> = answers.iter().filter(|answer| answer.status().as_u16() == 429).collect();
        // The burst, four that were being answered meanwhile, and what came back since.
        let looked_for = 20 + 4 + usize::try_from(began.elapsed().as_secs() + 1).expect("few");
        assert!(limited.len() + looked_for >= 200, "{}", limited.len());
        assert!(limited.iter().all(|answer| answer.headers().contains_key("retry-after")));
        assert!(answers.iter().any(|answer| answer.status().as_u16() == 200));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_guesses_lease_tokens_fills_no_log_and_leases_of_the_same_address_live_on() {
    let mut broker =
        Broker::start_for(Setup { more: LIMITS.to_owned(), rules: Some(LEASING), ..Setup::default() }).await;
    let lease = try_open(&broker, opening(&broker, &["vertex"])).await.expect("a lease");
    let began = Instant::now();
    // Who leaves at once, again and again, may lose the connection.
    let (impatient, patient) = (leases(&broker).await, leases(&broker).await);
    let guess = |client: &LeasesClient<Channel>, number: usize, timeout: Duration| {
        let lease_token = format!("{}{number}", lease.lease_token);
        let mut request = tonic::Request::new(RenewLeaseRequest { lease_token, ..Default::default() });
        request.set_timeout(timeout);
        let mut client = client.clone();
        async move { client.renew_lease(request).await.err().expect("refused") }
    };
    let alive = async {
        loop {
            beat(&broker, &lease.lease_token).await.expect("it lives on");
        }
    };
    let guesses = async {
        join_all((0..100).map(|number| guess(&impatient, number, Duration::from_nanos(1)))).await;
        join_all((0..300).map(|number| guess(&patient, number, Duration::from_secs(60)))).await
    };
    let refused = tokio::select! {
        () = alive => unreachable!("it goes on"),
        refused = guesses => refused,
    };
    let (seconds, text) = (began.elapsed().as_secs() + 1, captured_logs().text());
    // On a machine that is busy elsewhere a turn may not come in time.
    let (late, refused): (Vec<_>, Vec<_>) = refused.iter().partition(|status| reason(status) == "RATE_LIMITED");
    let is_said = |status: &&&tonic::Status| {
        assert_eq!(reason(status), "LEASE_NOT_FOUND", "{status:?}");
        let details = status.get_error_details();
        text.contains(&details.error_info().expect("an ErrorInfo").metadata["exchange_id"])
    };
    let said = refused.iter().filter(is_said).count();
    assert!((1..=20 + usize::try_from(seconds).expect("few")).contains(&said), "{said} lines");
    broker.take_app().drain().await;
    let records = broker.audit_records();
    assert_eq!(records.iter().filter(|record| record.outcome == "denied").count(), 1, "one record of all");
    let in_all = records.iter().find(|record| record.action == "exchange.limited").expect("of all");
    let counted = said_of_all(in_all);
    assert!(counted + said + late.len() >= 300, "{counted}, {said}, {}", late.len());
    broker.no_secret_was_left_behind();
}

/// How many refusals a record stands for.
fn said_of_all(in_all: &AuditRecord) -> usize {
    said(in_all, "refusals").parse().expect("a number")
}

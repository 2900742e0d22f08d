//! Operators list the leases of everybody and end them; nobody else does.

use std::time::Duration;

use carnet::proto::{AuditRecord, LeaseFilter, LeaseState, ListLeasesRequest, OpenLeaseRequest, RevokeLeasesRequest};
use tokio::time::timeout;
use tonic::{Code, Request};

use super::{fields, last, step, steps, with_leases};
use crate::holder::{
    OPERATOR, bearing, beat, by_id, bytes, close, credentials, job, list, open, opening, operator, revoke, try_open,
    watch,
};
use crate::support::{Broker, RUNNER, TENANT, reason};

const MAY_ALL: &str = "Carnet.Operator";
const MAY_READ: &str = "Carnet.Reader";

/// Of five jobs, the newest last; the first is closed.
async fn five(broker: &Broker) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..5 {
        let target = ["vertex", "azure-ml"][number % 2];
        let job = Some(job(&format!("run-{number}")));
        let opened = try_open(broker, OpenLeaseRequest { job, ..opening(broker, &[target]) }).await.expect("a lease");
        if number == 0 {
            close(broker, &opened.lease_token).await.expect("closed");
        }
        ids.push(opened.lease.expect("a lease").lease_id);
    }
    ids
}

async fn listed(broker: &Broker, filter: LeaseFilter, states: &[LeaseState]) -> Vec<String> {
    let states = states.iter().map(|state| i32::from(*state)).collect();
    let request = ListLeasesRequest { filter: Some(filter), states, ..ListLeasesRequest::default() };
    let answer = list(broker, MAY_READ, request).await.expect("leases");
    answer.leases.into_iter().map(|lease| lease.lease_id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_listed_newest_first_by_filter_state_and_page() {
    with_leases(async |broker| {
        let ids = five(broker).await;
        let newest = |numbers: &[usize]| numbers.iter().map(|number| ids[*number].clone()).collect::<Vec<_>>();
        let all = LeaseFilter::default;
        assert_eq!(listed(broker, all(), &[]).await, newest(&[4, 3, 2, 1, 0]));
        assert_eq!(listed(broker, all(), &[LeaseState::Active]).await, newest(&[4, 3, 2, 1]));
        assert_eq!(listed(broker, all(), &[LeaseState::Closed, LeaseState::Revoked]).await, newest(&[0]));
        assert_eq!(listed(broker, all(), &[LeaseState::Expired]).await, newest(&[]));
        for (filter, numbers) in [
            (by_id(&ids[2]), &[2][..]),
            (LeaseFilter { target: "azure-ml".to_owned(), ..all() }, &[3, 1]),
            (LeaseFilter { job_id: "run-3".to_owned(), ..all() }, &[3]),
            (LeaseFilter { job_name: "vision".to_owned(), target: "vertex".to_owned(), ..all() }, &[4, 2, 0]),
            (LeaseFilter { subject: format!("entra:{TENANT}:{RUNNER}"), ..all() }, &[4, 3, 2, 1, 0]),
            (LeaseFilter { subject: format!("entra:{TENANT}:{OPERATOR}"), ..all() }, &[]),
        ] {
            assert_eq!(listed(broker, filter, &[]).await, newest(numbers));
        }
        let (mut pages, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListLeasesRequest { page_size: 2, page_token, ..ListLeasesRequest::default() };
            let page = list(broker, MAY_ALL, request).await.expect("a page");
            pages.push(page.leases.into_iter().map(|lease| lease.lease_id).collect::<Vec<_>>());
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(pages, [newest(&[4, 3]), newest(&[2, 1]), newest(&[0])]);
        for (request, field) in [
            (ListLeasesRequest { page_size: -1, ..ListLeasesRequest::default() }, "page_size"),
            (ListLeasesRequest { page_token: "next".to_owned(), ..ListLeasesRequest::default() }, "page_token"),
            (ListLeasesRequest { states: vec![0], ..ListLeasesRequest::default() }, "states"),
            (ListLeasesRequest { filter: Some(by_id("it")), ..ListLeasesRequest::default() }, "filter.lease_ids"),
        ] {
            assert_eq!(fields(&list(broker, MAY_READ, request).await.err().expect("not listed")), [field]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_ends_what_matches_and_nothing_else_tells_the_watch_and_is_on_record() {
    with_leases(async |broker| {
        let (revoked, kept) = (open(broker, &["vertex"]).await, open(broker, &["azure-ml"]).await);
        let id = revoked.lease.clone().expect("a lease").lease_id;
        let mut watch = watch(broker, &revoked.lease_token).await.expect("a watch");
        watch.next().await.expect("no error").expect("a message");
        let filter = LeaseFilter { target: "vertex".to_owned(), ..LeaseFilter::default() };
        assert_eq!(revoke(broker, MAY_ALL, filter.clone()).await.expect("revoked"), 1);
        let last = timeout(Duration::from_secs(2), last(&mut watch)).await.expect("at once").lease.expect("a lease");
        assert!(last.lease_id == id && last.state() == LeaseState::Revoked);
        assert_eq!(revoke(broker, MAY_ALL, filter).await.expect("an answer"), 0, "what has ended is not ended again");

        let refused = [
            beat(broker, &revoked.lease_token).await.err(),
            credentials(broker, &revoked.lease_token, &[]).await.err(),
        ];
        assert!(refused.iter().all(|status| status.as_ref().is_some_and(|status| reason(status) == "LEASE_ENDED")));
        assert!(close(broker, &revoked.lease_token).await.expect("an answer").state() == LeaseState::Revoked);
        beat(broker, &kept.lease_token).await.expect("a beat");

        assert_eq!(steps(broker, &id).last(), Some(&step("lease.revoke", "vertex", "done")));
        let records = broker.audit_records();
        let record = records.iter().find(|record| record.action == "lease.revoke").expect("a record");
        assert_eq!(record.attributes["end_reason"], format!("entra:{TENANT}:{OPERATOR} revoked it: it leaked"));
        let asked = records.iter().find(|record| record.action == "operator.leases.revoke").expect("a record");
        assert_eq!((asked.outcome.as_str(), asked.attributes["revoke_reason"].as_str()), ("done", "it leaked"));
        assert_eq!(asked.subject, format!("entra:{TENANT}:{OPERATOR}"));
    })
    .await;
}

fn about_operators(broker: &Broker) -> Vec<AuditRecord> {
    broker.audit_records().into_iter().filter(|record| record.action.starts_with("operator.")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_who_has_not_the_permission_is_denied_as_anybody_is_and_recorded() {
    with_leases(async |broker| {
        let opened = open(broker, &["vertex"]).await;
        let id = opened.lease.expect("a lease").lease_id;
        let denial = broker.exchange(broker.request(&["no-such-target"])).await.err().expect("denied");
        let denied = [
            list(broker, "Training.Submit", ListLeasesRequest::default()).await.err().expect("denied"),
            revoke(broker, "Training.Submit", by_id(&id)).await.expect_err("denied"),
            revoke(broker, MAY_READ, by_id(&id)).await.expect_err("denied"),
            revoke(broker, MAY_READ, LeaseFilter::default()).await.expect_err("denied"),
        ];
        assert_eq!((denial.code(), reason(&denial).as_str()), (Code::PermissionDenied, "DENIED"));
        assert!(denied.iter().all(|status| bytes(status) == bytes(&denial)));
        let seen: Vec<_> = about_operators(broker)
            .into_iter()
            .map(|record| (record.action, record.outcome, record.reason, record.subject))
            .collect();
        let expected = ["read", "revoke", "revoke", "revoke"].map(|what| {
            let subject = format!("entra:{TENANT}:{OPERATOR}");
            (format!("operator.leases.{what}"), "denied".to_owned(), "DENIED".to_owned(), subject)
        });
        assert_eq!(seen, expected);
        beat(broker, &opened.lease_token).await.expect("it was not ended");
        let all = revoke(broker, MAY_ALL, LeaseFilter::default()).await.expect_err("an empty filter is not all");
        assert_eq!(fields(&all), ["filter"]);
        beat(broker, &opened.lease_token).await.expect("it was not ended");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_good_bearer_token_nobody_is_an_operator() {
    with_leases(async |broker| {
        let good = bearing(broker, MAY_ALL, ()).metadata().get("authorization").expect("a header").clone();
        let text = good.to_str().expect("text").to_owned();
        let other = broker.signed(&broker.runner().roles([MAY_ALL]).audience("api://other"));
        for (header, refused) in [
            (None, "SUBJECT_TOKEN_MALFORMED"),
            (Some(text.replace("Bearer", "Basic")), "SUBJECT_TOKEN_MALFORMED"),
            (Some(text.replace("Bearer ", "")), "SUBJECT_TOKEN_MALFORMED"),
            (Some(format!("Bearer {other}")), "SUBJECT_TOKEN_AUDIENCE"),
        ] {
            let mut request = Request::new(ListLeasesRequest::default());
            if let Some(header) = header {
                request.metadata_mut().insert("authorization", header.parse().expect("a header"));
            }
            let status = operator(broker).await.list_leases(request).await.err().expect("refused");
            assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, refused));
            let record = about_operators(broker).pop().expect("a record");
            assert_eq!((record.outcome.as_str(), record.reason.as_str()), ("denied", refused));
        }
        let mut request = Request::new(ListLeasesRequest::default());
        let scheme = text.replace("Bearer", "bearer").parse().expect("a header");
        request.metadata_mut().insert("authorization", scheme);
        operator(broker).await.list_leases(request).await.expect("schemes have no case");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stranger_says_costs_the_log_little_and_begins_no_line_of_it() {
    with_leases(async |broker| {
        let long = format!("first\nsecond {}", "x".repeat(60_000));
        let message = || RevokeLeasesRequest {
            filter: Some(LeaseFilter { job_id: long.clone(), ..LeaseFilter::default() }),
            reason: long.clone(),
        };
        let refused = operator(broker).await.revoke_leases(message()).await.err().expect("no token");
        assert_eq!(refused.code(), Code::Unauthenticated);
        operator(broker).await.revoke_leases(bearing(broker, MAY_READ, message())).await.err().expect("denied");
        operator(broker).await.revoke_leases(bearing(broker, MAY_ALL, message())).await.expect("nothing matches");
        let records = about_operators(broker);
        assert_eq!(records.len(), 3);
        for record in records {
            let said: String = record.attributes.values().cloned().collect();
            assert!(said.len() < 4000 && !said.contains('\n'), "{} bytes", said.len());
        }
    })
    .await;
}

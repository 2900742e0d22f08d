//! The audit log as operators see it: searched and followed through the gRPC door, and verified.

mod age;
mod before_the_chain;
mod beside;
mod verify;

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use carnet::audit::{Filter, Head, Records, is_own};
use carnet::clock::{Clock as _, SystemClock};
use carnet::http;
use carnet::proto::{AuditRecord, SearchAuditRequest};
use carnet::secret::Secret;
use carnet::store::{StoreSettings, open_to_read};
use carnet::subject::{Identity, Kind};
use futures_util::TryStreamExt as _;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::holder::{LEASING, OPERATOR, bearing, by_id, bytes, close, open, operator, revoke, seconds};
use crate::postgres::with_database;
use crate::support::{Broker, PERSON, RUNNER, Setup, TENANT, eventually, reason, with_setup};

const AUDITOR: &str = "Carnet.Auditor";

/// With brokers on both stores.
async fn with_both(test: impl AsyncFn(&Broker)) {
    with_setup(Setup { rules: Some(LEASING), ..Setup::default() }, &test).await;
    with_database(async |database| {
        let setup = Setup { rules: Some(LEASING), store: Some(database.url()), ..Setup::default() };
        with_setup(setup, &test).await;
    })
    .await;
}

async fn begin(broker: &Broker, role: &str, request: SearchAuditRequest) -> Result<Streaming<AuditRecord>, Status> {
    Ok(operator(broker).await.search_audit(bearing(broker, role, request)).await?.into_inner())
}

/// What is found, but for what the log says of itself and of those who look at it.
async fn found(broker: &Broker, request: SearchAuditRequest) -> Vec<AuditRecord> {
    let records: Vec<_> =
        begin(broker, AUDITOR, request).await.expect("permitted").try_collect().await.expect("records");
    records.into_iter().filter(|record| !is_own(&record.action) && record.action != "operator.audit").collect()
}

fn asks() -> SearchAuditRequest {
    SearchAuditRequest { limit: 1000, ..SearchAuditRequest::default() }
}

fn steps(records: &[AuditRecord]) -> Vec<(&str, &str, &str)> {
    records.iter().map(|record| (record.action.as_str(), record.target.as_str(), record.outcome.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_found_newest_first_by_whatever_is_asked_for() {
    with_both(async |broker| {
        let first = broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
        let noon = SystemClock.now();
        broker.exchange(broker.request(&["no-such-target"])).await.err().expect("denied");
        let opened = open(broker, &["vertex"]).await;
        let lease_id = opened.lease.expect("a lease").lease_id;
        close(broker, &opened.lease_token).await.expect("closed");

        let exchange = [("exchange", "azure-ml", "issued"), ("exchange", "vertex", "issued")];
        let denial = ("exchange", "no-such-target", "denied");
        let lease = [("lease.close", "vertex", "done"), ("lease.open", "vertex", "issued")];
        let all = [&lease[..], &[denial], &exchange].concat();
        let subject = format!("entra:{TENANT}:{RUNNER}");
        for (request, expected) in [
            (asks(), &all[..]),
            (SearchAuditRequest { after: Some(noon.into()), ..asks() }, &all[..3]),
            (SearchAuditRequest { before: Some(noon.into()), ..asks() }, &exchange),
            (SearchAuditRequest { exchange_id: first.exchange_id.clone(), ..asks() }, &exchange),
            (SearchAuditRequest { lease_id: lease_id.clone(), ..asks() }, &lease),
            (SearchAuditRequest { subject: subject.clone(), ..asks() }, &all),
            (SearchAuditRequest { subject: format!("{subject}0"), ..asks() }, &[]),
            (SearchAuditRequest { target: "azure-ml".to_owned(), ..asks() }, &exchange[..1]),
            (SearchAuditRequest { target: "azure".to_owned(), ..asks() }, &[]),
            (SearchAuditRequest { job_id: "run-1".to_owned(), outcome: "denied".to_owned(), ..asks() }, &[denial]),
            (SearchAuditRequest { action: "lease.open".to_owned(), ..asks() }, &lease[1..]),
            (SearchAuditRequest { reason: "DENIED".to_owned(), ..asks() }, &[denial]),
        ] {
            let records = found(broker, request.clone()).await;
            assert_eq!(steps(&records), expected, "{:?}", (request.subject, request.target, request.action));
        }

        let limited = found(broker, SearchAuditRequest { subject, limit: 2, ..asks() }).await;
        assert_eq!(steps(&limited), lease);
        let everything: Vec<AuditRecord> =
            begin(broker, AUDITOR, asks()).await.expect("permitted").try_collect().await.expect("records");
        // Groups come by the time of their newest record: those that began together may stand either way round.
        let mut positions: Vec<u64> = everything.iter().map(|record| record.sequence).collect();
        positions.sort_unstable();
        assert_eq!(positions, (1..=u64::try_from(everything.len()).expect("few")).collect::<Vec<_>>());
        let first = everything.iter().find(|record| record.sequence == 1).expect("the first");
        assert_eq!(first.action, "broker.start");
        let chain = &everything[0].attributes["chain"];
        assert!(everything.iter().all(|record| record.attributes["chain"] == *chain));
        let head = |record: &AuditRecord| format!("{chain}:{}:{}", record.sequence, record.chain_hash);
        assert!(everything.iter().all(|record| head(record).parse::<Head>().is_ok()));
        let by_lease = everything.iter().find(|record| record.attributes.contains_key("filter")).expect("a search");
        assert_eq!(by_lease.subject, format!("entra:{TENANT}:{OPERATOR}"));
        assert!(everything.iter().any(|record| {
            record.action == "operator.audit" && record.attributes["filter"] == format!("lease_id={lease_id}")
        }));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_follows_sees_what_is_there_oldest_first_and_then_every_new_record_once() {
    with_both(async |broker| {
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        broker.exchange(broker.request(&["azure-ml"])).await.expect("a credential");
        let subject = format!("entra:{TENANT}:{RUNNER}");
        let request = SearchAuditRequest { subject, limit: 2, follow: true, ..SearchAuditRequest::default() };
        let mut records = begin(broker, AUDITOR, request).await.expect("permitted");
        let mut seen = Vec::new();
        for target in ["own", "vertex", "no-such-target"] {
            let _ = broker.exchange(broker.request(&[target])).await;
        }
        while seen.len() < 5 {
            let next = timeout(Duration::from_secs(10), records.message()).await.expect("in time");
            seen.push(next.expect("no error").expect("a record").target);
        }
        assert_eq!(seen, ["vertex", "azure-ml", "own", "vertex", "no-such-target"]);
        assert!(timeout(Duration::from_millis(700), records.message()).await.is_err(), "nothing comes twice");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i13_who_may_not_read_the_log_is_denied_as_anybody_is_and_loses_the_tail_with_the_permission() {
    with_setup(Setup { rules: Some(LEASING), ..Setup::default() }, async |broker| {
        let denial = broker.exchange(broker.request(&["no-such-target"])).await.err().expect("denied");
        for role in ["Carnet.Operator", "Training.Submit"] {
            let refused = begin(broker, role, asks()).await.expect_err("denied");
            assert_eq!(bytes(&refused), bytes(&denial));
        }
        let missing = operator(broker).await.search_audit(asks()).await.expect_err("refused");
        assert_eq!(missing.code(), Code::Unauthenticated);
        for request in [
            SearchAuditRequest { limit: -1, ..asks() },
            SearchAuditRequest { limit: 1_000_001, ..asks() },
            SearchAuditRequest { exchange_id: "x".to_owned(), ..asks() },
            SearchAuditRequest { follow: true, before: Some(SystemClock.now().into()), ..asks() },
        ] {
            let refused = begin(broker, AUDITOR, request).await.expect_err("refused");
            assert_eq!(reason(&refused), "INVALID_REQUEST");
        }

        let follow = SearchAuditRequest { follow: true, action: "exchange".to_owned(), ..asks() };
        let mut records = begin(broker, AUDITOR, follow).await.expect("permitted");
        records.message().await.expect("no error").expect("the denial");
        let path = broker.config_path();
        let text = std::fs::read_to_string(&path).expect("the file").replace("Carnet.Auditor", "Carnet.Nobody");
        std::fs::write(&path, text).expect("written");
        broker.app().reload().expect("loaded");
        let end = timeout(Duration::from_secs(10), records.message()).await.expect("in time").err().expect("an end");
        assert_eq!(bytes(&end), bytes(&denial));
        assert_eq!(revoke(broker, "Carnet.Operator", by_id(&uuid::Uuid::nil().to_string())).await.expect("none"), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_leads_to_what_was_decided_about_and_to_what_was_asked() {
    with_both(async |broker| {
        let person = broker.entra.user_token(TENANT, RUNNER).roles(["Training.Submit"]);
        let person = person.claim("name", "Ada Lovelace").claim("preferred_username", "ada@example.com");
        let mut request = broker.request_with(&person, &["vertex", "no-such-target"]);
        request.targets[0].scopes = vec!["a".to_owned(), "b".to_owned()];
        request.targets[0].lifetime = Some(seconds(900));
        request.targets[1].requested_token_type = "urn:ietf:params:oauth:token-type:access_token".to_owned();
        for _ in 0..2 {
            broker.exchange(request.clone()).await.err().expect("denied");
        }
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");

        let asked = found(broker, SearchAuditRequest { outcome: "denied".to_owned(), ..asks() }).await;
        let [other, vertex, ..] = &asked[..] else { panic!("{} records", asked.len()) };
        let wish = |record: &AuditRecord, name: &str| record.attributes.get(name).cloned().unwrap_or_default();
        let wishes = ["requested_scopes", "requested_lifetime", "requested_token_type"];
        assert_eq!(wishes.map(|name| wish(vertex, name)), ["a b", "900", ""]);
        let token_type = "urn:ietf:params:oauth:token-type:access_token";
        assert_eq!(wishes.map(|name| wish(other, name)), ["", "", token_type]);

        let names: Vec<String> = found(broker, asks()).await.iter().map(|record| wish(record, "identity")).collect();
        assert!(names[1..].iter().all(|name| *name == names[1]) && names[0] != names[1], "{names:?}");
        let text = std::fs::read_to_string(broker.config_path()).expect("the file");
        let store = text.lines().find_map(|line| line.strip_prefix("store: ")).expect("a store").trim_matches('\'');
        let settings = StoreSettings::parse(&Secret::new(store), &http::Settings::default()).expect("settings");
        let records = Records::new(open_to_read(&settings).await.expect("a store"));
        for (name, kind) in [(&names[0], Kind::ServicePrincipal), (&names[1], Kind::User)] {
            let digest = BASE64_URL_SAFE_NO_PAD.decode(name).expect("base64url").try_into().expect("32 bytes");
            let facts = records.facts(&digest).await.expect("read").expect("facts");
            assert!(!facts.contains("Ada") && !facts.contains("ada@"), "{facts}");
            let identity = Identity::from_facts(&facts, SystemClock.now()).expect("an identity");
            assert_eq!((identity.kind(), identity.roles()), (kind, &["Training.Submit".to_owned()][..]));
            assert_eq!(identity.subject(), format!("entra:{TENANT}:{RUNNER}"));
        }
        assert!(records.search(Filter::default()).page().await.expect("read").is_some());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_ends_when_the_broker_does() {
    let mut broker = Broker::start_for(Setup { rules: Some(LEASING), ..Setup::default() }).await;
    let follow = SearchAuditRequest { follow: true, action: "exchange".to_owned(), ..asks() };
    let mut records = begin(&broker, AUDITOR, follow).await.expect("permitted");
    broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
    records.message().await.expect("no error").expect("a record");
    let drained = tokio::spawn(broker.take_app().drain());
    let end = timeout(Duration::from_secs(15), records.message()).await.expect("in time").err().expect("an end");
    assert_eq!(reason(&end), "SHUTTING_DOWN");
    drained.await.expect("a clean end");
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_replicas_record_is_followed_at_any_of_them() {
    with_database(async |database| {
        let setup = || Setup { rules: Some(LEASING), store: Some(database.url()), ..Setup::default() };
        let mut one = Broker::start_for(setup()).await;
        let mut two = Broker::start_for(Setup { replica_of: Some(one.original()), ..setup() }).await;
        let follow = SearchAuditRequest { follow: true, action: "exchange".to_owned(), ..asks() };
        let mut records = begin(&one, AUDITOR, follow).await.expect("permitted");
        for target in ["vertex", "azure-ml"] {
            two.exchange(two.request(&[target])).await.expect("a credential");
            let next = timeout(Duration::from_secs(10), records.message()).await.expect("in time");
            assert_eq!(next.expect("no error").expect("a record").target, target);
        }
        drop(records);
        for broker in [&mut one, &mut two] {
            broker.take_app().drain().await;
            broker.no_secret_was_left_behind();
        }
        eventually("two chains", async || {
            let sql = "SELECT count(DISTINCT chain) FROM audit";
            database.client().await.query_one(sql, &[]).await.expect("a row").get::<_, i64>(0) == 2
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_operator_cannot_take_the_places_of_all_who_search() {
    with_setup(Setup { rules: Some(LEASING), ..Setup::default() }, async |broker| {
        let follow = || SearchAuditRequest { follow: true, ..asks() };
        let mut tails = Vec::new();
        for _ in 0..8 {
            tails.push(begin(broker, AUDITOR, follow()).await.expect("a place"));
        }
        let refused = begin(broker, AUDITOR, asks()).await.expect_err("refused");
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
        assert!(refused.message().starts_with("you have 8 searches"), "{refused}");
        let other = broker.signed(&broker.entra.app_token(TENANT, PERSON).roles([AUDITOR]));
        let mut request = tonic::Request::new(asks());
        request.metadata_mut().insert("authorization", format!("Bearer {other}").parse().expect("a header"));
        let found = operator(broker).await.search_audit(request).await.expect("a place").into_inner();
        assert!(!found.try_collect::<Vec<_>>().await.expect("records").is_empty());
        // Who leaves has left a place.
        drop(tails.pop());
        eventually("a place", async || begin(broker, AUDITOR, asks()).await.is_ok()).await;
    })
    .await;
}

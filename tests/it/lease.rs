//! Leases through the real application: open, beat, extend, credentials, watch and end, and the record of each.

mod operators;
mod outage;

use std::collections::HashSet;
use std::time::Duration;

use carnet::clock::ManualClock;
use carnet::proto::{
    AuditRecord, Lease, LeaseState, OpenLeaseRequest, RenewLeaseRequest, TargetRequest, WatchCredentialsResponse,
};
use carnet::sandbox::EntraToken;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::holder::{
    LEASING, Watch, beat, bytes, close, credentials, job, open, opening, renew, seconds, try_open, watch,
};
use crate::support::{
    Broker, ML, PERSON, RUNNER, Setup, TENANT, TRAINER, captured_logs, eventually, reason, with_setup,
};

pub async fn with_leases(test: impl AsyncFnOnce(&Broker)) {
    with_setup(Setup { rules: Some(LEASING), ..Setup::default() }, test).await;
}

/// On a clock that stands still.
async fn at_a_moment(test: impl AsyncFnOnce(&Broker, &ManualClock)) {
    let clock = ManualClock::start();
    let setup = Setup { rules: Some(LEASING), clock: Some(clock.clone()), ..Setup::default() };
    with_setup(setup, async |broker| test(broker, &clock).await).await;
}

fn time(stamp: Option<prost_types::Timestamp>) -> i64 {
    let stamp = stamp.expect("a time");
    stamp.seconds * 1000 + i64::from(stamp.nanos / 1_000_000)
}

/// What the log says of a lease: what was done, to which target and how it ended.
fn steps(broker: &Broker, lease_id: &str) -> Vec<(String, String, String)> {
    let of_lease = |record: &AuditRecord| record.lease_id == lease_id;
    let step = |record: AuditRecord| (record.action, record.target, record.outcome);
    broker.audit_records().into_iter().filter(of_lease).map(step).collect()
}

fn step(action: &str, target: &str, outcome: &str) -> (String, String, String) {
    (action.to_owned(), target.to_owned(), outcome.to_owned())
}

fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    violations.into_iter().map(|violation| violation.field).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_opened_for_both_clouds_at_once_kept_used_and_closed_and_every_step_is_on_record() {
    at_a_moment(async |broker, clock| {
        let opened = open(broker, &["vertex", "azure-ml"]).await;
        let lease = opened.lease.clone().expect("a lease");
        assert!(lease.state() == LeaseState::Active);
        assert_eq!(lease.subject, format!("entra:{TENANT}:{RUNNER}"));
        assert!(lease.job == opening(broker, &[]).job);
        assert_eq!(lease.targets, ["vertex", "azure-ml"]);
        // Nine hours and a tenth for whatever comes between.
        assert_eq!(time(lease.not_after) - time(lease.opened_at), 9 * 3_600_000 * 11 / 10);
        assert_eq!(time(lease.heartbeat_before) - time(lease.opened_at), 300_000);
        assert_eq!(lease.ended_at, None);
        let [vertex, azure] = &opened.credentials[..] else { panic!("two credentials") };
        assert_eq!(broker.google.check(&vertex.token).map(|it| it.service_account), Some(Some(TRAINER.to_owned())));
        assert_eq!(azure.target, "azure-ml");
        assert!(azure.token.contains('.'), "a JWT for {ML}");
        let granted = vertex.lifetime.and_then(|lifetime| lifetime.granted).expect("a lifetime").seconds;
        assert!(granted <= 1800, "tokens under a lease are short: {granted} s");

        clock.advance(Duration::from_secs(5));
        let beaten = beat(broker, &opened.lease_token).await.expect("a beat");
        assert_eq!(time(beaten.heartbeat_before) - time(lease.heartbeat_before), 5_000);
        assert!(Lease { heartbeat_before: lease.heartbeat_before, ..beaten } == lease);

        let all = credentials(broker, &opened.lease_token, &[]).await.expect("credentials");
        assert_eq!(all.lease.expect("a lease").lease_id, lease.lease_id);
        let tokens: Vec<&str> = all.credentials.iter().map(|credential| credential.token.as_str()).collect();
        assert_eq!(tokens, [vertex.token.as_str(), azure.token.as_str()], "what is good is handed out again");
        let one = credentials(broker, &opened.lease_token, &["azure-ml"]).await.expect("a credential");
        assert_eq!(one.credentials.len(), 1);
        assert_eq!(one.credentials[0].target, "azure-ml");

        let closed = close(broker, &opened.lease_token).await.expect("closed");
        assert!(closed.state() == LeaseState::Closed && closed.ended_at.is_some());
        let again = close(broker, &opened.lease_token).await.expect("closed is closed");
        assert!(again == closed);
        let ended = [
            beat(broker, &opened.lease_token).await.err(),
            credentials(broker, &opened.lease_token, &[]).await.err(),
            watch(broker, &opened.lease_token).await.err(),
        ];
        for status in ended {
            let status = status.expect("it has ended");
            assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "LEASE_ENDED"));
        }
        assert_eq!(
            steps(broker, &lease.lease_id),
            [
                step("lease.open", "vertex", "issued"),
                step("lease.open", "azure-ml", "issued"),
                step("lease.credentials", "vertex", "issued"),
                step("lease.credentials", "azure-ml", "issued"),
                step("lease.credentials", "azure-ml", "issued"),
                step("lease.close", "vertex,azure-ml", "done"),
            ]
        );
        let records = broker.audit_records();
        let opening = records.iter().find(|record| record.exchange_id == opened.exchange_id).expect("a record");
        assert_eq!((opening.rule.as_str(), opening.attributes["door"].as_str()), ("training", "grpc"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_gives_all_of_its_targets_or_no_lease() {
    with_leases(async |broker| {
        for (targets, refused, code) in [
            (&["vertex", "no-such-target"][..], "DENIED", Code::PermissionDenied),
            (&["vertex", "grouped"], "DENIED", Code::PermissionDenied),
            (&["vertex", "direct"], "INVALID_REQUEST", Code::InvalidArgument),
            (&["own"], "INVALID_REQUEST", Code::InvalidArgument),
            (&[], "INVALID_REQUEST", Code::InvalidArgument),
            (&["vertex", "vertex"], "INVALID_REQUEST", Code::InvalidArgument),
        ] {
            let status = try_open(broker, opening(broker, targets)).await.err().expect("no lease");
            assert_eq!((reason(&status).as_str(), status.code()), (refused, code), "{targets:?}");
        }
        for (duration, field) in [(seconds(-1), "duration"), (seconds(0), "duration")] {
            let request = OpenLeaseRequest { duration: Some(duration), ..opening(broker, &["vertex"]) };
            assert_eq!(fields(&try_open(broker, request).await.err().expect("no lease")), [field]);
        }
        broker.google.delete_service_account(TRAINER);
        let status = try_open(broker, opening(broker, &["azure-ml", "vertex"])).await.err().expect("no lease");
        assert_eq!(reason(&status), "CLOUD_REFUSED");

        let records = broker.audit_records();
        assert!(records.iter().all(|record| record.action == "lease.open" && record.outcome != "issued"));
        let refusals: HashSet<&str> = records.iter().map(|record| record.exchange_id.as_str()).collect();
        assert_eq!(refusals.len(), 9, "every refusal is on record");
        let store = rusqlite::Connection::open(broker.store_path()).expect("the store");
        let kept: i64 = store.query_row("SELECT count(*) FROM lease", [], |row| row.get(0)).expect("a row");
        assert_eq!(kept, 0);
    })
    .await;
}

fn extension(lease_token: &str, subject_token: String, duration: Option<i64>) -> RenewLeaseRequest {
    RenewLeaseRequest {
        lease_token: lease_token.to_owned(),
        subject_token,
        duration: duration.map(seconds),
        ..RenewLeaseRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_goes_on_for_a_fresh_token_of_whoever_opened_it_and_for_nobody_else() {
    at_a_moment(async |broker, clock| {
        let opened = open(broker, &["vertex"]).await;
        let (lease, token) = (opened.lease.expect("a lease"), opened.lease_token.as_str());
        let beat = renew(broker, extension(token, String::new(), Some(3600))).await.err().expect("only a heartbeat");
        assert_eq!((beat.code(), fields(&beat)), (Code::InvalidArgument, vec!["duration".to_owned()]));

        let fresh = || broker.signed(&broker.runner());
        clock.advance(Duration::from_secs(5));
        let extended = renew(broker, extension(token, fresh(), Some(48 * 3600))).await.expect("extended");
        let now = time(lease.opened_at) + 5_000;
        assert_eq!(time(extended.heartbeat_before), now + 300_000);
        assert_eq!(time(extended.not_after), now + 48 * 3_600_000, "counted from now");
        let most = renew(broker, extension(token, fresh(), Some(1000 * 3600))).await.expect("extended");
        assert_eq!(time(most.not_after), now + 72 * 3_600_000, "within the rule");

        let foreign = |token: EntraToken| broker.signed(&token.roles(["Training.Submit"]));
        let other = foreign(broker.entra.app_token(TENANT, PERSON));
        let wrong_identity = renew(broker, extension(token, other, None)).await.err().expect("another's token");
        let wrong_lease = renew(broker, extension("carnet_lease_x", fresh(), None)).await.err().expect("no such lease");
        let wrong_beat = renew(broker, extension("carnet_lease_x", String::new(), None)).await.err().expect("none");
        assert_eq!((wrong_identity.code(), reason(&wrong_identity).as_str()), (Code::NotFound, "LEASE_NOT_FOUND"));
        assert_eq!(bytes(&wrong_identity), bytes(&wrong_lease));
        assert_eq!(bytes(&wrong_identity), bytes(&wrong_beat));
        let expired = broker.runner().audience("api://other");
        let refused = renew(broker, extension(token, broker.signed(&expired), None)).await.err().expect("not for us");
        assert_eq!(reason(&refused), "SUBJECT_TOKEN_AUDIENCE");

        assert_eq!(
            steps(broker, &lease.lease_id),
            [
                step("lease.open", "vertex", "issued"),
                step("lease.extend", "vertex", "done"),
                step("lease.extend", "vertex", "done"),
                step("lease.extend", "vertex", "denied"),
                step("lease.extend", "vertex", "denied"),
            ]
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_lease_token_and_a_target_that_is_not_the_leases_are_refused_and_recorded_once() {
    with_leases(async |broker| {
        let opened = open(broker, &["vertex"]).await;
        for wrong in ["", "carnet_lease_x", &opened.lease_token[1..]] {
            let refused = [
                credentials(broker, wrong, &[]).await.err(),
                watch(broker, wrong).await.err(),
                close(broker, wrong).await.err(),
                beat(broker, wrong).await.err(),
            ];
            for status in refused {
                let status = status.expect("no such lease");
                assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "LEASE_NOT_FOUND"));
                // Whoever asks the operators why, asks by this id.
                let details = status.get_error_details();
                let id = &details.error_info().expect("an ErrorInfo").metadata["exchange_id"];
                assert!(captured_logs().text().contains(id), "{id} is in no line of the log");
            }
        }
        let before = broker.audit_records().len();
        let status = credentials(broker, &opened.lease_token, &["azure-ml"]).await.err().expect("not its target");
        assert_eq!((status.code(), fields(&status)), (Code::InvalidArgument, vec!["targets".to_owned()]));
        let records = broker.audit_records().split_off(before);
        let [record] = &records[..] else { panic!("one record") };
        let id = status.get_error_details().error_info().expect("an ErrorInfo").metadata["exchange_id"].clone();
        assert_eq!((record.action.as_str(), &record.exchange_id), ("lease.credentials", &id));
        assert_eq!((record.outcome.as_str(), record.reason.as_str()), ("denied", "INVALID_REQUEST"));
        assert_eq!(record.lease_id, opened.lease.expect("a lease").lease_id);
        assert_eq!(record.subject, format!("entra:{TENANT}:{RUNNER}"));
    })
    .await;
}

/// The last message of a watch that has sent its first; then the stream has a good end.
async fn last(watch: &mut Watch<'_>) -> WatchCredentialsResponse {
    let last = watch.next().await.expect("no error").expect("a last message");
    assert!(last.credentials.is_empty());
    assert!(watch.next().await.expect("a good end").is_none());
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_sends_at_once_and_its_last_message_says_that_the_lease_is_closed() {
    with_leases(async |broker| {
        let opened = open(broker, &["vertex", "azure-ml"]).await;
        let mut watch = watch(broker, &opened.lease_token).await.expect("a watch");
        let first = watch.next().await.expect("no error").expect("a message");
        let targets: Vec<&str> = first.credentials.iter().map(|credential| credential.target.as_str()).collect();
        assert_eq!(targets, ["vertex", "azure-ml"]);
        assert!(first.lease.is_some_and(|lease| lease.state() == LeaseState::Active));
        let closed = close(broker, &opened.lease_token).await.expect("closed");
        let last = timeout(Duration::from_secs(2), last(&mut watch)).await.expect("at once");
        assert!(closed.state() == LeaseState::Closed && last.lease == Some(closed));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_unavailable_when_its_broker_drains_and_does_not_hold_it() {
    let mut broker = Broker::start_for(Setup { rules: Some(LEASING), ..Setup::default() }).await;
    let app = broker.take_app();
    let opened = open(&broker, &["vertex"]).await;
    let mut watch = watch(&broker, &opened.lease_token).await.expect("a watch");
    watch.next().await.expect("no error").expect("a message");
    let draining = tokio::spawn(app.drain());
    let ended = timeout(Duration::from_secs(2), watch.next()).await.expect("at once").err().expect("an end");
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    // Sooner than connections are cut off.
    timeout(Duration::from_secs(5), draining).await.expect("not held up").expect("a clean end");
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_reaches_its_end_expires_its_watch_says_so_and_it_is_on_record() {
    at_a_moment(async |broker, clock| {
        let request = OpenLeaseRequest { duration: Some(seconds(600)), ..opening(broker, &["vertex"]) };
        let opened = try_open(broker, request).await.expect("a lease");
        let lease = opened.lease.expect("a lease");
        assert_eq!(time(lease.not_after) - time(lease.opened_at), 600_000);
        let mut watch = watch(broker, &opened.lease_token).await.expect("a watch");
        watch.next().await.expect("no error").expect("a message");
        clock.advance(Duration::from_secs(600));
        let last = last(&mut watch).await.lease.expect("a lease");
        assert!(last.state() == LeaseState::Expired && last.ended_at == lease.not_after);
        assert_eq!(reason(&beat(broker, &opened.lease_token).await.err().expect("it has ended")), "LEASE_ENDED");
        let expired = step("lease.expire", "vertex", "done");
        eventually("the record", async || steps(broker, &lease.lease_id).contains(&expired)).await;
        assert!(close(broker, &opened.lease_token).await.expect("an answer").state() == LeaseState::Expired);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_rules_takes_the_right_away_and_gives_it_back() {
    with_leases(async |broker| {
        let opened = open(broker, &["vertex"]).await;
        let path = broker.config_path();
        let good = std::fs::read_to_string(&path).expect("the file");
        for (from, to, refused) in [
            ("targets: [vertex, azure-ml, own]", "targets: [azure-ml]", "DENIED"),
            ("    lease: { max_duration: 72h, heartbeat: 5m }\n", "", "INVALID_REQUEST"),
        ] {
            assert!(good.contains(from));
            std::fs::write(&path, good.replace(from, to)).expect("written");
            broker.app().reload().expect("loaded");
            let status = credentials(broker, &opened.lease_token, &[]).await.err().expect("no right");
            assert_eq!(reason(&status), refused);
            let status =
                watch(broker, &opened.lease_token).await.expect("a watch").next().await.err().expect("no right");
            assert_eq!(reason(&status), refused);
            let fresh = broker.signed(&broker.runner());
            let status = renew(broker, extension(&opened.lease_token, fresh, None)).await.err().expect("no right");
            assert_eq!(reason(&status), refused);
            assert_eq!(reason(&try_open(broker, opening(broker, &["vertex"])).await.err().expect("no right")), refused);
            std::fs::write(&path, &good).expect("written");
            broker.app().reload().expect("loaded");
            credentials(broker, &opened.lease_token, &[]).await.expect("allowed again");
        }
        close(broker, &opened.lease_token).await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_its_broker_and_goes_on_with_the_next() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Some(format!("sqlite:{}/carnet.db", folder.path().display()));
    let mut first = Broker::start_for(Setup { rules: Some(LEASING), store: store.clone(), ..Setup::default() }).await;
    let opened = open(&first, &["vertex"]).await;
    first.take_app().drain().await;
    let setup = Setup { rules: Some(LEASING), store, replica_of: Some(first.original()), ..Setup::default() };
    let mut second = Broker::start_for(setup).await;
    beat(&second, &opened.lease_token).await.expect("a beat");
    assert!(close(&second, &opened.lease_token).await.expect("closed").state() == LeaseState::Closed);
    second.take_app().drain().await;
    second.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_token_is_kept_by_its_digest_and_who_opened_it_until_it_ends() {
    with_leases(async |broker| {
        let request = OpenLeaseRequest { job: Some(job("run-2")), ..opening(broker, &["vertex"]) };
        let opened = try_open(broker, request).await.expect("a lease");
        let store = rusqlite::Connection::open(broker.store_path()).expect("the store");
        let known = || {
            let sql = "SELECT count(*) FROM lease_detail WHERE identity IS NOT NULL";
            store.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a row")
        };
        assert_eq!(known(), 1);
        close(broker, &opened.lease_token).await.expect("closed");
        assert_eq!(known(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_token_of_a_lease_is_for_the_audience_that_was_asked_for() {
    with_leases(async |broker| {
        let id_token = TargetRequest {
            target: "vertex".to_owned(),
            requested_token_type: "urn:ietf:params:oauth:token-type:id_token".to_owned(),
            audience: "https://service.example.com".to_owned(),
            ..TargetRequest::default()
        };
        let mut request = opening(broker, &["vertex"]);
        request.targets.push(id_token);
        let opened = try_open(broker, request).await.expect("a lease");
        let types = |credentials: &[carnet::proto::Credential]| -> Vec<String> {
            credentials.iter().map(|credential| credential.issued_token_type.clone()).collect()
        };
        assert!(types(&opened.credentials)[1].ends_with("id_token"));
        let again = credentials(broker, &opened.lease_token, &["vertex"]).await.expect("credentials");
        assert_eq!(types(&again.credentials), types(&opened.credentials), "a name means each of its credentials");
    })
    .await;
}

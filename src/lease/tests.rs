mod model;

use std::sync::Mutex;

use arc_swap::ArcSwap;
use serde_json::json;
use tokio::sync::Semaphore;

use super::*;
use crate::audit::{Audit, FakeAuditLog};
use crate::clock::ManualClock;
use crate::credential::{Credentials, FakeProvider};
use crate::exchange::{Door, FakeRunHistory, History};
use crate::limit::{Limits, Settings};
use crate::policy::{FLOOR, Policy, RuleDocument};
use crate::reason::Reason;
use crate::subject::FakeVerifier;
use crate::target::Target;

const SECOND: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(86_400);

/// Brokers come and go; store, log, cloud and clock stay.
struct World {
    clock: ManualClock,
    store: Arc<FakeLeaseStore>,
    log: Arc<FakeAuditLog>,
    provider: Arc<FakeProvider>,
    policy: Arc<ArcSwap<Policy>>,
    history: Arc<FakeRunHistory>,
    leases: Arc<Leases>,
}

fn policy(max_duration: &str) -> Policy {
    compile(json!([{
        "name": "r", "targets": ["t", "u"], "when": "true", "lease": {"max_duration": max_duration, "heartbeat": "5m"},
    }]))
}

fn compile(rules: serde_json::Value) -> Policy {
    let rules: Vec<RuleDocument> = serde_json::from_value(rules).expect("rules");
    Policy::compile(&rules, ["t", "u"].map(Target::google_for_test).into()).unwrap_or_else(|error| panic!("{error:?}"))
}

impl World {
    async fn new() -> Self {
        let clock = ManualClock::start();
        let (store, log) = (Arc::new(FakeLeaseStore::default()), Arc::new(FakeAuditLog::default()));
        let provider = Arc::new(FakeProvider::new(clock.clone()));
        let policy = Arc::new(ArcSwap::from_pointee(policy("1d")));
        let history = Arc::new(FakeRunHistory(Mutex::default()));
        let leases = broker(&clock, &store, &log, &provider, &policy, &history);
        leases.begin().await.expect("a store");
        Self { clock, store, log, provider, policy, history, leases }
    }

    /// A broker with an empty cache, over what outlived the last one.
    async fn restart(&mut self) {
        self.leases = self.another();
        self.leases.begin().await.expect("a store");
    }

    fn another(&self) -> Arc<Leases> {
        broker(&self.clock, &self.store, &self.log, &self.provider, &self.policy, &self.history)
    }

    /// Time passes while the broker lives.
    async fn pass(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(3 * SECOND);
            self.clock.advance(step);
            left -= step;
            self.leases.sweep_once().await.expect("a store");
        }
    }

    async fn open(&self, duration: Option<Duration>) -> Opened {
        self.leases.open(opening("good", &["t"], duration)).await.unwrap_or_else(|failed| panic!("{failed:?}"))
    }

    fn actions(&self) -> Vec<(&'static str, Outcome)> {
        self.log.records().iter().map(|record| (record.action, record.outcome)).collect()
    }
}

fn broker(
    clock: &ManualClock,
    store: &Arc<FakeLeaseStore>,
    log: &Arc<FakeAuditLog>,
    provider: &Arc<FakeProvider>,
    policy: &Arc<ArcSwap<Policy>>,
    history: &Arc<FakeRunHistory>,
) -> Arc<Leases> {
    let (audit, _writer) = Audit::start(log.clone(), Arc::new(clock.clone()));
    let exchange = Exchange {
        verifier: Arc::new(FakeVerifier(clock.clone())),
        policy: policy.clone(),
        credentials: Credentials::new(provider.clone(), Arc::new(clock.clone())),
        history: History::new(history.clone()),
        audit,
        clock: Arc::new(clock.clone()),
        places: Arc::new(Semaphore::new(1 << 20)),
        limits: Limits::new(Settings::WIDE),
    };
    Leases::start(Arc::new(exchange), store.clone(), NonZeroU32::MAX)
}

fn opening(token: &str, targets: &[&str], duration: Option<Duration>) -> OpenRequest {
    let target = |name: &&str| TargetRequest { target: (*name).to_owned(), ..TargetRequest::default() };
    OpenRequest {
        proof: proof(token),
        targets: targets.iter().map(target).collect(),
        job: Arc::new(Job { id: Some("run-1".to_owned()), name: Some("vision".to_owned()), ..Job::default() }),
        duration,
        complaint: None,
        caller: caller(),
    }
}

fn proof(token: &str) -> SubjectProof {
    SubjectProof { token: Secret::new(token), token_type: String::new() }
}

fn caller() -> Caller {
    Caller::new(Door::Grpc, "127.0.0.1:1".into(), "test")
}

fn reason<T: std::fmt::Debug>(result: Result<T, Failed>) -> Reason {
    result.expect_err("a refusal").error.reason()
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_opened_beaten_used_and_closed_and_each_step_but_the_beat_is_on_record() {
    let world = World::new().await;
    let Opened { lease, lease_token, credentials, .. } = world.open(None).await;
    assert_eq!((lease.not_after, credentials.len()), (world.clock.now() + DAY, 1));
    world.pass(200 * SECOND).await;
    assert!(world.leases.beat(&lease_token, &caller().peer).await.is_ok());
    world.pass(200 * SECOND).await;
    let update = world.leases.credentials(&lease_token, &[], caller()).await.expect("credentials");
    assert!(update.credentials[0].cached, "the job's own credential is still good");
    let closed = world.leases.close(&lease_token, &caller().peer).await.expect("closed");
    assert_eq!(closed.end.map(|end| end.kind), Some(EndKind::Closed));
    assert!(world.leases.close(&lease_token, &caller().peer).await.is_ok(), "closing again changes nothing");
    assert_eq!(reason(world.leases.beat(&lease_token, &caller().peer).await), Reason::LeaseEnded);
    assert_eq!(reason(world.leases.credentials(&lease_token, &[], caller()).await), Reason::LeaseEnded);
    let expected = [
        ("lease.open", Outcome::Issued),
        ("lease.credentials", Outcome::Issued),
        ("lease.close", Outcome::Done),
        ("lease.credentials", Outcome::Denied),
    ];
    assert_eq!(world.actions(), expected);
    assert!(world.log.records()[..3].iter().all(|record| record.lease_id == Some(lease.id)));
}

#[tokio::test(start_paused = true)]
async fn i28_wrong_lease_tokens_and_other_peoples_subject_tokens_find_no_lease() {
    let world = World::new().await;
    let lease_token = world.open(None).await.lease_token;
    let wrong = [Secret::new(""), Secret::new(lease_token.expose().to_uppercase()), token::generate()];
    for wrong in &wrong {
        assert_eq!(reason(world.leases.beat(wrong, &caller().peer).await), Reason::LeaseNotFound);
        assert_eq!(reason(world.leases.credentials(wrong, &[], caller()).await), Reason::LeaseNotFound);
        assert_eq!(reason(world.leases.close(wrong, &caller().peer).await), Reason::LeaseNotFound);
        assert_eq!(reason(world.leases.watch(wrong, &[], caller()).await.map(drop)), Reason::LeaseNotFound);
    }
    let foreign = world.leases.extend(lease_token.clone(), proof("other"), None, caller()).await;
    assert_eq!(reason(foreign), Reason::LeaseNotFound);
    let forged = world.leases.extend(lease_token.clone(), proof("bad"), None, caller()).await;
    assert_eq!(reason(forged), Reason::SubjectTokenIssuer);
    assert!(world.leases.beat(&lease_token, &caller().peer).await.is_ok(), "the lease is as it was");
}

#[tokio::test(start_paused = true)]
async fn the_store_knows_a_lease_token_by_its_digest_alone() {
    let world = World::new().await;
    let Opened { lease, lease_token, .. } = world.open(None).await;
    assert_eq!(lease.token_sha256, lease_token.sha256());
    assert!(!format!("{:?} {lease_token:?}", world.store).contains(lease_token.expose()));
}

#[tokio::test(start_paused = true)]
async fn a_target_whose_rule_has_no_lease_gives_none_and_says_so_only_to_those_who_may_have_it() {
    let world = World::new().await;
    let rules = json!([
        {"name": "once", "targets": ["t"], "when": "true"},
        {"name": "lease", "targets": ["u"], "when": "false", "lease": {"max_duration": "1d", "heartbeat": "5m"}},
    ]);
    world.policy.store(Arc::new(compile(rules)));
    assert_eq!(reason(world.leases.open(opening("good", &["t"], None)).await), Reason::InvalidRequest);
    assert_eq!(reason(world.leases.open(opening("good", &["u"], None)).await), Reason::Denied);
}

#[tokio::test(start_paused = true)]
async fn i15_a_rule_that_went_away_or_became_shorter_ends_what_it_allowed_and_one_that_returns_gives_it_back() {
    let world = World::new().await;
    let lease_token = world.open(None).await.lease_token;
    world.policy.store(Arc::new(compile(json!([]))));
    assert_eq!(reason(world.leases.credentials(&lease_token, &[], caller()).await), Reason::Denied);
    world.policy.store(Arc::new(policy("5m")));
    assert!(world.leases.credentials(&lease_token, &[], caller()).await.is_ok());
    world.pass(299 * SECOND).await;
    assert!(world.leases.beat(&lease_token, &caller().peer).await.is_ok());
    world.pass(SECOND).await;
    assert_eq!(reason(world.leases.credentials(&lease_token, &[], caller()).await), Reason::Denied);
    world.policy.store(Arc::new(policy("1d")));
    assert!(world.leases.credentials(&lease_token, &[], caller()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_job_without_a_duration_gets_what_runs_of_its_name_have_taken() {
    let world = World::new().await;
    world.history.0.lock().expect("no panic").extend([HEARTBEAT * 4; 3]);
    let lease = world.open(None).await.lease;
    // 20 minutes and a tenth.
    assert_eq!(lease.not_after, world.clock.now() + Duration::from_secs(22 * 60));
}

#[tokio::test(start_paused = true)]
async fn an_operator_ends_every_lease_that_matches_and_their_credentials_are_forgotten() {
    let world = World::new().await;
    let mut opened = Vec::new();
    for target in ["t", "t", "u"] {
        opened.push(world.leases.open(opening("good", &[target], None)).await.expect("a lease"));
    }
    let other = world.another();
    let filter = LeaseFilter { target: Some("t".to_owned()), ..LeaseFilter::default() };
    assert_eq!(other.revoke(filter.clone(), "leaked".to_owned()).await.expect("revoked"), 2);
    assert_eq!(other.revoke(filter, "leaked".to_owned()).await.expect("revoked"), 0);
    assert_eq!(reason(world.leases.beat(&opened[0].lease_token, &caller().peer).await), Reason::LeaseEnded);
    assert!(world.leases.beat(&opened[2].lease_token, &caller().peer).await.is_ok());
    let again = world.leases.open(opening("good", &["t"], None)).await.expect("a lease");
    assert!(again.credentials[0].cached, "the other replica's cache has not heard yet");
    world.leases.heard_of_ends([opened[0].lease.id].into_iter()).await;
    let fresh = world.leases.open(opening("good", &["t"], None)).await.expect("a lease");
    assert!(!fresh.credentials[0].cached);
    let revoked: Vec<String> = world
        .log
        .records()
        .iter()
        .filter(|record| record.action == "lease.revoke")
        .flat_map(|record| record.attributes.iter().map(|(name, value)| format!("{name}={value}")))
        .collect();
    assert_eq!(revoked, ["state=revoked", "end_reason=leaked", "state=revoked", "end_reason=leaked"]);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_could_not_be_recorded_is_recorded_later() {
    let world = World::new().await;
    let Opened { lease_token, .. } = world.open(None).await;
    world.log.fails(true);
    assert_eq!(reason(world.leases.close(&lease_token, &caller().peer).await), Reason::StoreUnavailable);
    world.log.fails(false);
    tokio::time::advance(60 * SECOND).await;
    world.pass(SECOND).await;
    assert_eq!(world.actions().iter().filter(|(action, _)| *action == "lease.close").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_watch_sends_at_once_and_every_replacement_before_the_last_one_expires_and_ends_with_the_lease() {
    let world = World::new().await;
    let Opened { lease, lease_token, .. } = world.open(Some(Duration::from_secs(3 * 3600))).await;
    let mut watch = world.leases.watch(&lease_token, &[], caller()).await.expect("a watch");
    let upkeep = tokio::spawn(world.leases.clone().keep(DAY));
    let ticking = tokio::spawn(follow(world.clock.clone()));
    let mut covered_until = world.clock.now();
    let mut sent = 0;
    let last = loop {
        let update = watch.next().await.expect("an update").expect("no refusal");
        if update.credentials.is_empty() {
            break update.lease;
        }
        sent += 1;
        assert!(world.clock.now() <= covered_until, "the last credential had expired");
        covered_until = update.credentials[0].expires_at();
    };
    assert!(watch.next().await.is_none());
    assert!(covered_until >= lease.not_after && covered_until <= lease.not_after + FLOOR);
    assert_eq!(last.end.map(|end| (end.kind, end.at)), Some((EndKind::Expired, lease.not_after)));
    assert!((8..20).contains(&sent), "{sent} replacements in three hours of half-hour tokens");
    ticking.abort();
    upkeep.abort();
}

/// The wall clock goes as tokio's does.
async fn follow(clock: ManualClock) {
    loop {
        tokio::time::sleep(SECOND).await;
        clock.advance(SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_outlives_an_outage_of_the_cloud_and_hears_a_revocation_at_another_replica_within_two_seconds() {
    let world = World::new().await;
    let Opened { lease, lease_token, .. } = world.open(None).await;
    let mut watch = world.leases.watch(&lease_token, &[], caller()).await.expect("a watch");
    let first = watch.next().await.expect("an update").expect("credentials");
    let upkeep = tokio::spawn(world.leases.clone().keep(DAY));
    let ticking = tokio::spawn(follow(world.clock.clone()));
    world.provider.is_away(true);
    let away = tokio::time::timeout(Duration::from_secs(25 * 60), watch.next()).await;
    assert!(away.is_err(), "nothing is said while there is nothing new");
    world.provider.is_away(false);
    let next = watch.next().await.expect("an update").expect("credentials");
    assert!(world.clock.now() < first.credentials[0].expires_at());
    assert_ne!(next.credentials[0].token_sha256(), first.credentials[0].token_sha256());
    let revoking = world.another();
    let filter = LeaseFilter { ids: vec![lease.id], ..LeaseFilter::default() };
    revoking.revoke(filter, "leaked".to_owned()).await.expect("revoked");
    let heard = tokio::time::timeout(2 * SECOND, watch.next()).await.expect("within two seconds");
    let ended = heard.expect("an update").expect("no refusal").lease.end.expect("an end");
    assert_eq!((ended.kind, ended.reason.as_str()), (EndKind::Revoked, "leaked"));
    ticking.abort();
    upkeep.abort();
}

#[tokio::test(start_paused = true)]
async fn an_open_watch_is_a_heartbeat_and_a_watch_that_ends_is_none() {
    let world = World::new().await;
    let Opened { lease_token, .. } = world.open(None).await;
    let upkeep = tokio::spawn(world.leases.clone().keep(DAY));
    let ticking = tokio::spawn(follow(world.clock.clone()));
    let mut watch = world.leases.watch(&lease_token, &[], caller()).await.expect("a watch");
    let watching = tokio::spawn(async move { while watch.next().await.is_some() {} });
    tokio::time::sleep(5 * HEARTBEAT).await;
    assert!(
        world.leases.found(&lease_token, &caller().peer).await.expect("a lease").lease.is_active(world.clock.now())
    );
    watching.abort();
    tokio::time::sleep(HEARTBEAT + 5 * SECOND).await;
    assert_eq!(reason(world.leases.beat(&lease_token, &caller().peer).await), Reason::LeaseEnded);
    let expired = world.log.records().into_iter().find(|record| record.action == "lease.expire").expect("a record");
    assert!(expired.attributes.contains(&("end_reason", "no heartbeat arrived in time".to_owned())));
    ticking.abort();
    upkeep.abort();
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_waits_for_its_turn_in_a_storm_keeps_its_lease() {
    let world = World::new().await;
    let exchange = world.leases.exchange.clone();
    let slow = Leases::start(exchange, world.store.clone(), NonZeroU32::MIN);
    let upkeep = tokio::spawn(slow.clone().keep(DAY));
    let ticking = tokio::spawn(follow(world.clock.clone()));
    let mut watches = Vec::new();
    for number in 0..400 {
        let mut request = opening("good", &["t"], None);
        Arc::make_mut(&mut request.job).id = Some(format!("run-{number}"));
        let opened = slow.open(request).await.expect("a lease");
        slow.heard_of_ends([opened.lease.id].into_iter()).await;
        watches.push(slow.watch(&opened.lease_token, &[], caller()).await.expect("a watch"));
    }
    let first = watches.iter_mut().map(async |watch| {
        let update = watch.next().await.expect("an update").expect("no refusal");
        (update.credentials.len(), update.lease.end)
    });
    let first = futures_util::future::join_all(first).await;
    assert!(first.iter().all(|first| *first == (1, None)), "the last of them waits for more than a heartbeat");
    ticking.abort();
    upkeep.abort();
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_of_the_store_no_live_jobs_lease_has_lapsed_whoever_looks_first() {
    let world = World::new().await;
    let opened = [world.open(None).await, world.open(None).await, world.open(None).await, world.open(None).await];
    world.pass(SECOND).await;
    world.store.fails(true);
    world.clock.advance(HEARTBEAT * 3);
    world.store.fails(false);
    let [beaten, used, extended, watched] = &opened;
    assert!(world.leases.beat(&beaten.lease_token, &caller().peer).await.is_ok());
    assert!(world.leases.credentials(&used.lease_token, &[], caller()).await.is_ok());
    assert!(world.leases.extend(extended.lease_token.clone(), proof("good"), None, caller()).await.is_ok());
    assert!(world.leases.watch(&watched.lease_token, &[], caller()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_was_told_to_have_lapsed_has_lapsed_for_good() {
    let world = World::new().await;
    let Opened { lease_token, .. } = world.open(None).await;
    for _ in 0..100 {
        world.clock.advance(3 * SECOND);
        world.leases.begin().await.expect("a store");
    }
    assert_eq!(reason(world.leases.beat(&lease_token, &caller().peer).await), Reason::LeaseEnded);
    // Nobody writes it down for a while.
    world.clock.advance(HEARTBEAT);
    assert_eq!(reason(world.leases.beat(&lease_token, &caller().peer).await), Reason::LeaseEnded);
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_where_its_lease_was_extended_shortly_before_its_end() {
    let world = World::new().await;
    let Opened { lease_token, lease, .. } = world.open(Some(HEARTBEAT * 2)).await;
    let mut watch = world.leases.watch(&lease_token, &[], caller()).await.expect("a watch");
    watch.next().await.expect("an update").expect("credentials");
    let upkeep = tokio::spawn(world.leases.clone().keep(DAY));
    let ticking = tokio::spawn(follow(world.clock.clone()));
    let watching = tokio::spawn(async move {
        let mut ends = Vec::new();
        while let Some(update) = watch.next().await {
            ends.extend(update.expect("no refusal").lease.end);
        }
        ends
    });
    tokio::time::sleep(HEARTBEAT * 2 - 10 * SECOND).await;
    let longer = Some(HEARTBEAT * 2);
    let extended = world.leases.extend(lease_token, proof("good"), longer, caller()).await.expect("extended");
    assert!(extended.not_after > lease.not_after);
    tokio::time::sleep(HEARTBEAT).await;
    assert!(!watching.is_finished());
    tokio::time::sleep(HEARTBEAT * 2).await;
    let ends = watching.await.expect("no panic");
    assert_eq!(ends.iter().map(|end| end.at).collect::<Vec<_>>(), [extended.not_after]);
    ticking.abort();
    upkeep.abort();
}

#[tokio::test(start_paused = true)]
async fn w10_a_tenant_that_is_no_longer_accepted_gets_nothing_more_under_its_leases() {
    let world = World::new().await;
    let Opened { lease, .. } = world.open(None).await;
    let token = Secret::new("of another tenant");
    let foreign = VerifiedIdentity::for_test(world.clock.now()).with_tenant(9);
    let lease = Lease { id: Uuid::from_u128(9), token_sha256: token.sha256(), ..lease };
    let opening = Change::Open { lease: Box::new(lease), identity: foreign.snapshot() };
    world.store.apply(vec![opening]).await.expect("opened");
    assert_eq!(reason(world.leases.credentials(&token, &[], caller()).await), Reason::SubjectTokenTenant);
}

#[tokio::test(start_paused = true)]
async fn a_credential_whose_lease_was_revoked_while_it_was_minted_is_not_kept_for_anybody() {
    let world = World::new().await;
    let Opened { lease, lease_token, .. } = world.open(None).await;
    world.leases.heard_of_ends([lease.id].into_iter()).await;
    let asking = {
        let leases = world.leases.clone();
        tokio::spawn(async move { leases.credentials(&lease_token, &[], caller()).await })
    };
    tokio::time::sleep(Duration::from_millis(10)).await;
    let filter = LeaseFilter { ids: vec![lease.id], ..LeaseFilter::default() };
    world.leases.revoke(filter, "leaked".to_owned()).await.expect("revoked");
    assert_eq!(reason(asking.await.expect("no panic")), Reason::LeaseEnded);
    assert!(!world.open(None).await.credentials[0].cached);
}

#[tokio::test(start_paused = true)]
async fn the_record_of_an_extension_names_whoever_asked_for_it() {
    let world = World::new().await;
    let Opened { lease, lease_token, .. } = world.open(None).await;
    world.policy.store(Arc::new(compile(json!([]))));
    let foreign = world.leases.extend(lease_token, proof("other"), None, caller()).await;
    assert_eq!(reason(foreign), Reason::LeaseNotFound, "whatever the rules allow them");
    let record = world.log.records().pop().expect("a record");
    assert_eq!((record.action, record.outcome), ("lease.extend", Outcome::Denied));
    assert_ne!(record.subject, lease.subject);
    assert!(record.subject.ends_with(&Uuid::from_u128(99).to_string()) && !record.client_id.is_empty());
}

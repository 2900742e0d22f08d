use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::audit::{FakeAuditLog, Outcome};
use crate::clock::ManualClock;
use crate::credential::FakeProvider;
use crate::limit::{Rate, Settings};
use crate::policy::{ExcessScopes, RuleDocument, Tenure};
use crate::reason::Reason;
use crate::secret::Secret;
use crate::subject::FakeVerifier;
use crate::target::{Job, Target};

struct Stage {
    exchange: Arc<Exchange>,
    log: Arc<FakeAuditLog>,
    provider: Arc<FakeProvider>,
}

impl Stage {
    fn with_places(places: usize) -> Self {
        Self::with_limits(places, Settings::WIDE)
    }

    fn with_limits(places: usize, settings: Settings) -> Self {
        let clock = ManualClock::start();
        let rules =
            json!([{"name": "r", "targets": ["t"], "when": "true"}, {"name": "d", "targets": ["u"], "deny": true}]);
        let rules: Vec<RuleDocument> = serde_json::from_value(rules).expect("rules");
        let targets = ["t", "u"].map(Target::google_for_test);
        let policy = Policy::compile(&rules, targets.into()).expect("a policy");
        let log = Arc::new(FakeAuditLog::default());
        let provider = Arc::new(FakeProvider::new(clock.clone()));
        let (audit, _writer) = Audit::start(log.clone(), Arc::new(clock.clone()));
        let exchange = Exchange {
            verifier: Arc::new(FakeVerifier(clock.clone())),
            policy: Arc::new(ArcSwap::from_pointee(policy)),
            credentials: Credentials::new(provider.clone(), Arc::new(clock.clone())),
            history: History::new(Arc::new(FakeRunHistory::default())),
            audit,
            clock: Arc::new(clock),
            places: Arc::new(Semaphore::new(places)),
            limits: Limits::new(settings),
        };
        Self { exchange: Arc::new(exchange), log, provider }
    }

    async fn run(&self, token: &str, targets: &[&str]) -> Exchanged {
        self.exchange.run(request(token, targets)).await
    }
}

fn request(token: &str, targets: &[&str]) -> ExchangeRequest {
    let target = |name: &&str| TargetRequest { target: (*name).to_owned(), ..TargetRequest::default() };
    ExchangeRequest {
        proof: Proof::SubjectToken { token: Secret::new(token), token_type: String::new() },
        tenure: Tenure::Once,
        lease_id: None,
        targets: targets.iter().map(target).collect(),
        job: Arc::default(),
        excess: ExcessScopes::Refuse,
        caller: Caller::new(Door::Grpc, "127.0.0.1:1".into(), "test"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_credential_is_on_record_when_it_leaves() {
    let stage = Stage::with_places(9);
    let exchanged = stage.run("good", &["t"]).await;
    let issued = exchanged.result.expect("a credential");
    let [record] = stage.log.records().try_into().expect("one record");
    assert_eq!(
        (record.exchange_id, record.outcome, record.target.as_str()),
        (exchanged.exchange_id, Outcome::Issued, issued[0].target())
    );
    assert_eq!(record.issued.map(|issued| issued.token_sha256), Some(Secret::new("issued-token-1").sha256()));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_recorded_is_not_released() {
    let stage = Stage::with_places(9);
    stage.log.fails(true);
    assert!(matches!(stage.run("good", &["t"]).await.result, Err(ExchangeError::Audit(_))));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_at_any_stage_reaches_no_cloud_and_leaves_one_record_a_target() {
    for (token, targets, outcome) in [
        ("bad", &["t"][..], Outcome::Denied),
        ("good", &["t", "u"], Outcome::Denied),
        ("good", &["x"], Outcome::Denied),
    ] {
        let stage = Stage::with_places(9);
        assert!(stage.run(token, targets).await.result.is_err());
        assert_eq!(stage.provider.issued(), 0, "{token} {targets:?}");
        let outcomes: Vec<Outcome> = stage.log.records().iter().map(|record| record.outcome).collect();
        assert_eq!(outcomes, vec![outcome; targets.len()]);
    }
    let stage = Stage::with_places(9);
    assert!(stage.run("good", &[]).await.result.is_err());
    assert_eq!(stage.log.records().len(), 1, "a request without a target has a record all the same");
}

#[tokio::test(start_paused = true)]
async fn what_comes_beyond_the_places_is_turned_away_at_once_and_the_rest_is_served() {
    let stage = Stage::with_places(10);
    let running: Vec<_> = (0..30).map(|_number| stage.run("good", &["t"])).collect();
    let results = futures_util::future::join_all(running).await;
    let served = results.iter().filter(|exchanged| exchanged.result.is_ok()).count();
    let shed = results.iter().filter(|exchanged| matches!(exchanged.result, Err(ExchangeError::Overloaded))).count();
    assert_eq!((served, shed), (10, 20));
    assert!(stage.run("good", &["t"]).await.result.is_ok(), "the places are free again");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_does_not_keep_the_decision_from_being_recorded() {
    let stage = Stage::with_places(9);
    let leaving = tokio::spawn({
        let exchange = stage.exchange.clone();
        async move { exchange.run(request("good", &["t"])).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    leaving.abort();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.log.records().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_mint_of_a_token_is_marked_once_and_its_reuse_is_not() {
    let stage = Stage::with_places(9);
    for _ in 0..3 {
        stage.run("good", &["t"]).await.result.expect("a credential");
    }
    let firsts: Vec<bool> =
        stage.log.records().iter().filter_map(|record| Some(record.issued.as_ref()?.first)).collect();
    assert_eq!(firsts, [true, false, false]);
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_first_hand_out_was_not_recorded_has_its_first_hand_out_still_before_it() {
    let stage = Stage::with_places(9);
    stage.log.fails(true);
    assert!(stage.run("good", &["t"]).await.result.is_err());
    stage.log.fails(false);
    stage.run("good", &["t"]).await.result.expect("a credential");
    let firsts: Vec<bool> =
        stage.log.records().iter().filter_map(|record| Some(record.issued.as_ref()?.first)).collect();
    assert_eq!(firsts, [true]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_stage_is_a_recorded_failure() {
    let stage = Stage::with_places(9);
    assert!(matches!(stage.run("panic", &["t"]).await.result, Err(ExchangeError::Internal)));
    let [record] = stage.log.records().try_into().expect("one record");
    assert_eq!((record.outcome, record.reason), (Outcome::Failed, Some(Reason::Internal)));
}

#[tokio::test(start_paused = true)]
async fn what_a_stranger_says_fills_no_disk_and_forges_no_line() {
    let stage = Stage::with_places(9);
    let mut request = request("bad", &["a\nINFO issued", "b", "c"]);
    let labels = (0..60).map(|number| (number.to_string(), "x".repeat(200))).collect();
    request.job = Arc::new(Job { labels, ..Job::default() });
    assert!(stage.exchange.run(request).await.result.is_err());
    let [record] = stage.log.records().try_into().expect("one record for all targets");
    assert_eq!((record.target.as_str(), record.job.labels.len()), ("a\u{fffd}INFO issued,b,c", 0));
}

fn is_limited(exchanged: &Exchanged, by: Limit) -> bool {
    matches!(&exchanged.result, Err(ExchangeError::Limited { limit, .. }) if *limit == by)
}

#[tokio::test(start_paused = true)]
async fn c03_nobody_has_more_than_two_of_three_places_while_others_come() {
    let stage = Stage::with_places(90);
    let hog = futures_util::future::join_all((0..90).map(|_number| stage.run("good", &["t"])));
    let others = futures_util::future::join_all((0..15).map(|_number| stage.run("other", &["t"])));
    let (hog, others) = tokio::join!(hog, others);
    let served = hog.iter().filter(|exchanged| exchanged.result.is_ok()).count();
    let held_back = hog.iter().filter(|exchanged| is_limited(exchanged, Limit::Places)).count();
    assert!((55..=65).contains(&served) && served + held_back == 90, "{served} and {held_back}");
    assert!(others.iter().all(|exchanged| exchanged.result.is_ok()));
    let again = futures_util::future::join_all((0..50).map(|_number| stage.run("good", &["t"]))).await;
    assert!(again.iter().all(|exchanged| exchanged.result.is_ok()), "the places are free again");
}

#[tokio::test(start_paused = true)]
async fn of_a_caller_beyond_its_rate_the_first_refusal_is_recorded_and_the_others_in_all() {
    let [one, three] = [1, 3].map(|number| NonZeroU32::new(number).expect("not 0"));
    let per_caller = Rate { per_second: one, burst: three };
    let stage = Stage::with_limits(90, Settings { per_caller, ..Settings::WIDE });
    let mut limited = 0;
    for _ in 0..10 {
        limited += usize::from(is_limited(&stage.run("good", &["t"]).await, Limit::Caller));
    }
    assert!(stage.run("other", &["t"]).await.result.is_ok());
    stage.exchange.record_what_was_left_out().await;
    stage.exchange.record_what_was_left_out().await;
    let records = stage.log.records();
    let of = |action| records.iter().filter(move |record| record.action == action);
    let refused = of("exchange").filter(|record| record.reason == Some(Reason::RateLimited)).count();
    let [in_all] = of("exchange.limited").collect::<Vec<_>>().try_into().expect("one in all");
    let refusals = in_all.attributes.iter().find(|(name, _)| *name == "refusals").map(|(_, count)| count.clone());
    assert_eq!((limited, refused, refusals.as_deref()), (7, 1, Some("6")));
    assert_eq!(in_all.subject, records[0].subject);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(stage.run("good", &["t"]).await.result.is_ok(), "after a second there is one more");
}

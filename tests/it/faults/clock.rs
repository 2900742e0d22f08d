//! The broker's wall clock jumps by an hour in either direction, and back; nobody else's does.

use carnet::clock::ManualClock;
use tokio::time::advance;

use super::*;
use crate::command_line::{carnet, run, text};
use crate::holder::{LEASING, beat, credentials, open};
use crate::hurry::Hurry;
use crate::support::Setup;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// The clouds' clock, and the broker's.
struct Clocks {
    theirs: ManualClock,
    ours: ManualClock,
}

impl Clocks {
    fn start() -> Self {
        Self { theirs: ManualClock::start(), ours: ManualClock::start() }
    }

    fn setup(&self) -> Setup {
        let (clock, clouds_clock) = (Some(self.ours.clone()), Some(self.theirs.clone()));
        Setup { clock, clouds_clock, rules: Some(LEASING), in_memory: true, ..Setup::default() }
    }

    /// As time passes: on every clock, the steady one included.
    async fn pass(&self, time: Duration) {
        self.theirs.advance(time);
        self.ours.advance(time);
        advance(time).await;
    }
}

/// The log's chains are whole, whatever its records say of the time.
async fn the_log_is_whole(broker: &mut Broker) {
    broker.take_app().drain().await;
    let config = broker.config_path();
    let output = run(carnet(&["audit", "verify", "--config", config.to_str().expect("a path")])).await;
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    broker.no_secret_was_left_behind();
}

fn seen(answer: &Result<ExchangeResponse, Status>) -> (Code, String) {
    let seen = Seen::of(answer.as_ref().err().expect("refused"));
    (seen.code, seen.reason)
}

#[tokio::test(start_paused = true)]
async fn an_hour_ahead_tokens_are_over_or_the_cloud_names_the_clock_and_the_next_call_after_it_is_served_as_before() {
    let (_hurry, clocks) = (Hurry::start(), Clocks::start());
    let mut broker = Broker::start_for(clocks.setup()).await;
    let first = broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
    clocks.ours.advance(HOUR + 10 * MINUTE);

    let over = broker.exchange(broker.request_with(&broker.runner().lifetime(HOUR), &["vertex"])).await;
    assert_eq!(seen(&over), (Code::Unauthenticated, "SUBJECT_TOKEN_EXPIRED".to_owned()));
    let [record] = &recorded(&broker, &over)[..] else { panic!("one record") };
    assert_eq!((record.outcome.as_str(), record.reason.as_str()), ("denied", "SUBJECT_TOKEN_EXPIRED"));
    let lasting = broker.runner().lifetime(24 * HOUR);
    let refused = broker.exchange(broker.request_with(&lasting, &["direct"])).await;
    assert_eq!(seen(&refused), (Code::FailedPrecondition, "CLOUD_REFUSED".to_owned()));
    let [record] = &recorded(&broker, &refused)[..] else { panic!("one record") };
    assert_eq!((record.outcome.as_str(), record.attributes["cloud_fault"].as_str()), ("failed", "google_clock"));

    clocks.ours.rewind(HOUR + 10 * MINUTE);
    let after = broker.exchange(broker.request(&["vertex"])).await.expect("with the next call");
    assert_eq!(after.credentials[0].token, first.credentials[0].token);
    // A refusal is remembered for some seconds.
    clocks.pass(10 * SECOND).await;
    broker.exchange(broker.request_with(&lasting, &["direct"])).await.expect("a credential");
    the_log_is_whole(&mut broker).await;
}

#[tokio::test(start_paused = true)]
async fn an_hour_behind_new_tokens_are_too_early_and_known_ones_are_served_from_the_cache() {
    let (_hurry, clocks) = (Hurry::start(), Clocks::start());
    let mut broker = Broker::start_for(clocks.setup()).await;
    let request = broker.request(&["vertex"]);
    let first = broker.exchange(request.clone()).await.expect("a credential");
    clocks.ours.rewind(HOUR);

    let again = broker.exchange(request).await.expect("served");
    assert_eq!(again.credentials[0].token, first.credentials[0].token);
    clocks.theirs.advance(SECOND);
    let early = broker.exchange(broker.request(&["vertex"])).await;
    assert_eq!(seen(&early), (Code::Unauthenticated, "SUBJECT_TOKEN_NOT_YET_VALID".to_owned()));
    let [record] = &recorded(&broker, &early)[..] else { panic!("one record") };
    assert_eq!((record.outcome.as_str(), record.reason.as_str()), ("denied", "SUBJECT_TOKEN_NOT_YET_VALID"));

    clocks.ours.advance(HOUR);
    broker.exchange(broker.request(&["vertex"])).await.expect("with the next call");
    the_log_is_whole(&mut broker).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_makes_neither_credentials_nor_tokens_live_longer() {
    let (_hurry, clocks) = (Hurry::start(), Clocks::start());
    let broker = Broker::start_for(clocks.setup()).await;
    let lasting = broker.runner().lifetime(24 * HOUR);
    let long = broker.request_with(&lasting, &["vertex"]);
    let short = broker.request_with(&broker.runner().lifetime(HOUR), &["vertex"]);
    let first = broker.exchange(long.clone()).await.expect("a credential");
    broker.exchange(short.clone()).await.expect("a credential");
    clocks.ours.rewind(HOUR);
    // Its hour is over by every clock but the broker's, which says that it has just begun.
    clocks.pass(HOUR + MINUTE).await;

    match broker.exchange(long).await {
        Ok(later) => assert_ne!(later.credentials[0].token, first.credentials[0].token, "a dead credential"),
        // What the broker signs now is an hour old.
        Err(status) => assert_eq!(reason(&status), "CLOUD_REFUSED"),
    }
    clocks.pass(30 * MINUTE).await;
    for _ in 0..3 {
        let over = broker.exchange(short.clone()).await;
        assert_eq!(seen(&over), (Code::Unauthenticated, "SUBJECT_TOKEN_EXPIRED".to_owned()));
    }
    broker.no_secret_was_left_behind();
}

#[tokio::test(start_paused = true)]
async fn an_hours_jump_in_either_direction_ends_no_lease() {
    let (_hurry, clocks) = (Hurry::start(), Clocks::start());
    let mut broker = Broker::start_for(clocks.setup()).await;
    let opened = open(&broker, &["azure-ml"]).await;
    for jump in [true, false] {
        let there = |clock: &ManualClock, ahead: bool| if ahead { clock.advance(HOUR) } else { clock.rewind(HOUR) };
        there(&clocks.ours, jump);
        beat(&broker, &opened.lease_token).await.expect("a beat");
        let served = credentials(&broker, &opened.lease_token, &[]).await.expect("served");
        assert_eq!(served.credentials[0].token, opened.credentials[0].token);
        clocks.pass(10 * SECOND).await;
        there(&clocks.ours, !jump);
        beat(&broker, &opened.lease_token).await.expect("a beat");
        credentials(&broker, &opened.lease_token, &[]).await.expect("served");
        clocks.pass(10 * SECOND).await;
    }
    the_log_is_whole(&mut broker).await;
}

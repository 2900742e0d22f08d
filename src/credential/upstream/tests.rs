use super::*;
use crate::clock::ManualClock;
use crate::http::Settings;

fn upstream(hop: Hop) -> Upstream {
    let http = Client::new(&Settings::default()).expect("a client");
    Upstream::new(hop, http, Arc::new(ManualClock::start()))
}

fn fail(upstream: &Upstream, times: u32) {
    for _ in 0..times {
        upstream.failed();
    }
}

#[test]
fn a_backoff_is_spread_up_to_a_doubling_ceiling() {
    for (attempt, ceiling) in [(0, 100), (1, 200), (2, 400), (3, 800), (4, 1600), (5, 2000), (40, 2000)] {
        let ceiling = Duration::from_millis(ceiling);
        let waits: Vec<Duration> = (0..200).map(|_| backoff(attempt)).collect();
        assert!(waits.iter().all(|wait| *wait <= ceiling && *wait >= ceiling.mul_f64(0.29)), "{attempt}");
        assert!(waits.iter().any(|wait| *wait < ceiling.mul_f64(0.6)), "{attempt}");
        assert!(waits.iter().any(|wait| *wait > ceiling.mul_f64(0.7)), "{attempt}");
    }
}

#[tokio::test]
async fn c06_ten_retries_are_in_stock_and_five_calls_earn_one_more() {
    let upstream = upstream(Hop::GoogleSts);
    assert_eq!((0..100).filter(|_| upstream.spend()).count(), 10);
    for _ in 0..4 {
        upstream.earn();
    }
    assert!(!upstream.spend());
    upstream.earn();
    assert!(upstream.spend() && !upstream.spend());
    for _ in 0..1000 {
        upstream.earn();
    }
    assert_eq!((0..100).filter(|_| upstream.spend()).count(), 10);
}

#[tokio::test(start_paused = true)]
async fn c06_the_circuit_opens_after_twenty_failures_in_a_row_and_for_five_seconds() {
    let upstream = upstream(Hop::EntraToken);
    fail(&upstream, OPEN_AFTER - 1);
    assert!(upstream.check_circuit().is_ok());
    fail(&upstream, 1);
    let error = upstream.check_circuit().expect_err("an open circuit");
    assert_eq!(error.retry_after(), Some(OPEN_FOR));
    let seen = |left_alone_for| Service { hop: Hop::EntraToken, failures_in_a_row: OPEN_AFTER, left_alone_for };
    assert_eq!(upstream.service(), seen(Some(OPEN_FOR)));
    tokio::time::advance(OPEN_FOR - Duration::from_millis(1)).await;
    assert!(upstream.check_circuit().is_err());
    tokio::time::advance(Duration::from_millis(1)).await;
    // Looking at it changes nothing.
    assert_eq!(upstream.service(), seen(None));
    assert!(upstream.check_circuit().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_failure_after_the_pause_opens_the_circuit_again_and_a_success_closes_it() {
    let upstream = upstream(Hop::EntraToken);
    fail(&upstream, OPEN_AFTER);
    tokio::time::advance(OPEN_FOR).await;
    assert!(upstream.check_circuit().is_ok());
    fail(&upstream, 1);
    assert!(upstream.check_circuit().is_err());
    tokio::time::advance(OPEN_FOR).await;
    assert!(upstream.check_circuit().is_ok());
    upstream.succeeded();
    fail(&upstream, OPEN_AFTER - 1);
    assert!(upstream.check_circuit().is_ok());
}

#[tokio::test(start_paused = true)]
async fn failures_of_calls_under_way_do_not_prolong_the_pause() {
    let upstream = upstream(Hop::EntraToken);
    fail(&upstream, OPEN_AFTER);
    tokio::time::advance(OPEN_FOR / 2).await;
    fail(&upstream, 10);
    tokio::time::advance(OPEN_FOR / 2).await;
    assert!(upstream.check_circuit().is_ok());
}

#[tokio::test]
async fn q01_q02_q14_our_own_limits_are_below_the_published_ones() {
    for (hop, per_minute, concurrent) in
        [(Hop::GoogleSts, 6_000, None), (Hop::GoogleIam, 60_000, None), (Hop::ManagedIdentity, 20 * 60, Some(5))]
    {
        let limits = limits(hop);
        let first_minute = limits.per_second.get() * 60 + limits.per_second.get();
        assert!(first_minute < per_minute, "{hop:?}");
        assert!(concurrent.is_none_or(|concurrent| limits.concurrent < concurrent), "{hop:?}");
        let upstream = upstream(hop);
        let burst = (0..10_000).take_while(|_| upstream.rate.check().is_ok()).count();
        // The limiter refills while it is asked.
        assert!(burst <= limits.per_second.get() as usize + 20, "{hop:?}: {burst}");
    }
}

#[tokio::test]
async fn calls_are_counted_by_service_and_quota() {
    let http = Client::new(&Settings::default()).expect("a client");
    let upstreams = Upstreams::new(http, Arc::new(ManualClock::start()));
    let of = |hop, quota| upstreams.of(hop, quota, NOBODY).upstream;
    let one = of(Hop::GoogleSts, "project 1");
    assert!(Arc::ptr_eq(&one, &of(Hop::GoogleSts, "project 1")));
    assert!(!Arc::ptr_eq(&one, &of(Hop::GoogleSts, "project 2")));
    assert!(!Arc::ptr_eq(&one, &of(Hop::GoogleIam, "project 1")));
}

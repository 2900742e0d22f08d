use std::sync::atomic::{AtomicUsize, Ordering};

use uuid::Uuid;

use super::*;
use crate::clock::ManualClock;
use crate::credential::CloudIdentity;
use crate::secret::Secret;

const KEY: Key = [1; 32];
const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// A cloud that mints after a delay, or fails, and counts.
struct FakeCloud {
    clock: ManualClock,
    life: Mutex<Duration>,
    failing: Mutex<Option<IssueError>>,
    minted: AtomicUsize,
}

impl FakeCloud {
    fn new() -> (Arc<Self>, Arc<Cache>) {
        let clock = ManualClock::start();
        let cache = Arc::new(Cache::new("test", Arc::new(clock.clone())));
        (
            Arc::new(Self { clock, life: Mutex::new(HOUR), failing: Mutex::default(), minted: AtomicUsize::new(0) }),
            cache,
        )
    }

    async fn mint(self: Arc<Self>) -> Result<Credential, IssueError> {
        let number = self.minted.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Some(error) = self.failing.lock().expect("no panic").clone() {
            return Err(error);
        }
        let (now, life) = (self.clock.now(), *self.life.lock().expect("no panic"));
        let identity = CloudIdentity::Azure { tenant: Uuid::nil(), client_id: Uuid::nil() };
        Ok(Credential::new(Secret::new(format!("token-{number}")), now, now + life, HOUR, identity))
    }

    fn fails(&self, error: Option<IssueError>) {
        *self.failing.lock().expect("no panic") = error;
    }

    fn minted(&self) -> usize {
        self.minted.load(Ordering::Relaxed)
    }
}

fn outage() -> IssueError {
    let (hop, cause, upstream) = (Hop::GoogleSts, "down".to_owned(), Vec::new());
    IssueError::Unavailable { hop, cause, fault: None, retry_after: Duration::from_secs(1), upstream }
}

fn refusal() -> IssueError {
    IssueError::refused(Hop::GoogleSts, "invalid_target", "not there")
}

async fn token(cache: &Arc<Cache>, cloud: &Arc<FakeCloud>, least: Duration) -> Result<(String, bool), IssueError> {
    let cloud = cloud.clone();
    let hit = cache.get(KEY, least, || cloud.mint()).await?;
    Ok((hit.credential.token.expose().to_owned(), hit.cached))
}

/// Lets flights that nobody waits for land.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn w09_ten_thousand_callers_cause_one_call_however_slow_it_is() {
    let (cloud, cache) = FakeCloud::new();
    let callers: Vec<_> = (0..10_000).map(|_| token(&cache, &cloud, MINUTE)).collect();
    let answers = futures_util::future::join_all(callers).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|(token, _cached)| token == "token-1")));
    assert_eq!(answers.iter().filter(|answer| answer.as_ref().is_ok_and(|(_token, cached)| !cached)).count(), 1);
    assert_eq!(cloud.minted(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_caller_may_leave_without_taking_the_call_along() {
    let (cloud, cache) = FakeCloud::new();
    let first = tokio::spawn({
        let (cache, cloud) = (cache.clone(), cloud.clone());
        async move { token(&cache, &cloud, MINUTE).await }
    });
    tokio::time::sleep(Duration::from_millis(5)).await;
    first.abort();
    assert_eq!(token(&cache, &cloud, MINUTE).await.expect("a token"), ("token-1".to_owned(), true));
    assert_eq!(cloud.minted(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_credential_is_handed_out_while_it_covers_what_is_wanted() {
    let (cloud, cache) = FakeCloud::new();
    token(&cache, &cloud, MINUTE).await.expect("a token");
    cloud.clock.advance(MINUTE * 20);
    assert_eq!(token(&cache, &cloud, MINUTE * 40).await.expect("a token"), ("token-1".to_owned(), true));
    assert_eq!(token(&cache, &cloud, MINUTE * 41).await.expect("a token"), ("token-2".to_owned(), false));
}

#[tokio::test(start_paused = true)]
async fn a_credential_in_use_is_refreshed_before_it_ends_and_nobody_waits_for_it() {
    let (cloud, cache) = FakeCloud::new();
    token(&cache, &cloud, MINUTE).await.expect("a token");
    cloud.clock.advance(MINUTE * 43);
    assert_eq!(token(&cache, &cloud, MINUTE).await.expect("a token"), ("token-1".to_owned(), true));
    settle().await;
    assert_eq!(token(&cache, &cloud, MINUTE).await.expect("a token"), ("token-2".to_owned(), true));
    assert_eq!(cloud.minted(), 2);
}

#[tokio::test(start_paused = true)]
async fn w04_a_failed_refresh_keeps_the_good_credential_until_it_expires() {
    let (cloud, cache) = FakeCloud::new();
    token(&cache, &cloud, MINUTE).await.expect("a token");
    for error in [outage(), refusal()] {
        cloud.fails(Some(error));
        cloud.clock.advance(MINUTE * 24);
        assert_eq!(token(&cache, &cloud, MINUTE).await.expect("a token"), ("token-1".to_owned(), true));
        settle().await;
    }
    assert!(cloud.minted() > 1);
    cloud.clock.advance(MINUTE * 12);
    assert!(token(&cache, &cloud, MINUTE).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn during_an_outage_a_shorter_credential_is_better_than_none() {
    let (cloud, cache) = FakeCloud::new();
    token(&cache, &cloud, MINUTE).await.expect("a token");
    cloud.clock.advance(MINUTE * 50);
    cloud.fails(Some(outage()));
    assert_eq!(token(&cache, &cloud, MINUTE * 30).await.expect("a token"), ("token-1".to_owned(), true));
    cloud.clock.advance(MINUTE * 10);
    assert!(token(&cache, &cloud, MINUTE * 30).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_no_outage_so_a_short_credential_does_not_hide_it() {
    let (cloud, cache) = FakeCloud::new();
    token(&cache, &cloud, MINUTE).await.expect("a token");
    cloud.clock.advance(MINUTE * 50);
    cloud.fails(Some(refusal()));
    assert!(matches!(token(&cache, &cloud, MINUTE * 30).await, Err(IssueError::Refused { .. })));
}

#[tokio::test(start_paused = true)]
async fn failures_are_remembered_for_seconds_only() {
    let (cloud, cache) = FakeCloud::new();
    cloud.fails(Some(refusal()));
    for _ in 0..10 {
        assert!(token(&cache, &cloud, MINUTE).await.is_err());
    }
    assert_eq!(cloud.minted(), 1);
    cloud.fails(None);
    cloud.clock.advance(REFUSAL_MEMORY);
    assert!(token(&cache, &cloud, MINUTE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_callers_own_fault_is_not_remembered() {
    let (cloud, cache) = FakeCloud::new();
    cloud.fails(Some(IssueError::SubjectToken {
        hop: Hop::GoogleSts,
        code: "invalid_grant".to_owned(),
        upstream: Vec::new(),
    }));
    assert!(token(&cache, &cloud, MINUTE).await.is_err());
    cloud.fails(None);
    assert!(token(&cache, &cloud, MINUTE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn w05_after_a_hundred_failed_refreshes_the_next_one_succeeds() {
    let (cloud, cache) = FakeCloud::new();
    *cloud.life.lock().expect("no panic") = HOUR * 24;
    token(&cache, &cloud, MINUTE).await.expect("a token");
    cloud.clock.advance(HOUR * 17);
    cloud.fails(Some(outage()));
    for _ in 0..100 {
        token(&cache, &cloud, MINUTE).await.expect("the good one");
        settle().await;
        cloud.clock.advance(FAILURE_LONGEST);
    }
    assert_eq!(cloud.minted(), 101);
    cloud.fails(None);
    token(&cache, &cloud, MINUTE).await.expect("the good one");
    settle().await;
    assert_eq!(token(&cache, &cloud, MINUTE).await.expect("a new one").0, "token-102");
}

#[tokio::test(start_paused = true)]
async fn a_cloud_that_gives_less_is_not_asked_again_at_every_call() {
    let (cloud, cache) = FakeCloud::new();
    *cloud.life.lock().expect("no panic") = MINUTE * 20;
    for _ in 0..5 {
        token(&cache, &cloud, MINUTE * 50).await.expect("a token");
    }
    assert_eq!(cloud.minted(), 1);
    cloud.clock.advance(MINUTE * 11);
    token(&cache, &cloud, MINUTE * 50).await.expect("a token");
    assert_eq!(cloud.minted(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_expired_credential_is_never_handed_out() {
    let (cloud, cache) = FakeCloud::new();
    token(&cache, &cloud, MINUTE).await.expect("a token");
    cloud.clock.advance(HOUR);
    assert_eq!(token(&cache, &cloud, Duration::ZERO).await.expect("a token"), ("token-2".to_owned(), false));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_never_ends_is_cut_off_and_the_next_caller_starts_anew() {
    let (cloud, cache) = FakeCloud::new();
    let stuck = cache.get(KEY, MINUTE, std::future::pending).await;
    assert!(matches!(stuck, Err(IssueError::Unavailable { .. })));
    cloud.clock.advance(FAILURE_LONGEST);
    assert!(token(&cache, &cloud, MINUTE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_does_not_take_its_key_along() {
    let (cloud, cache) = FakeCloud::new();
    let panicking = async || -> Result<Credential, IssueError> { panic!("a bug") };
    assert!(matches!(cache.get(KEY, MINUTE, panicking).await, Err(IssueError::Unavailable { .. })));
    cloud.clock.advance(FAILURE_LONGEST);
    assert!(token(&cache, &cloud, MINUTE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn w17_c07_the_cache_is_bounded_in_bytes() {
    let clock = ManualClock::start();
    let cache = Arc::new(Cache::bounded("test", 100_000, Arc::new(clock.clone())));
    for number in 0..1000u32 {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        let now = clock.now();
        let identity = CloudIdentity::Azure { tenant: Uuid::nil(), client_id: Uuid::nil() };
        let credential = Credential::new(Secret::new("x".repeat(1200)), now, now + HOUR, HOUR, identity);
        cache.get(key, MINUTE, || async { Ok(credential) }).await.expect("a token");
    }
    cache.entries.run_pending_tasks();
    assert!(cache.entries.weighted_size() <= 100_000 && cache.entries.entry_count() > 10);
}

#[tokio::test(start_paused = true)]
async fn who_looked_a_moment_before_the_landing_does_not_mint_again() {
    let (cloud, cache) = FakeCloud::new();
    // Looked, found nothing, and was held up until the other's flight had landed.
    token(&cache, &cloud, MINUTE).await.expect("a token");
    let (flight, joined) = cache.fly(KEY, None, || cloud.clone().mint());
    let landed = flight.await.expect("the other's token");
    assert_eq!((landed.token.expose(), joined, cloud.minted()), ("token-1", true, 1));
    // The one that was seen and would not do is no answer.
    let (flight, joined) = cache.fly(KEY, Some(&landed), || cloud.clone().mint());
    assert_eq!((flight.await.expect("a new token").token.expose(), joined), ("token-2", false));
}

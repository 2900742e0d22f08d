use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::clock::ManualClock;
use crate::credential::tests::{call, call_of_another_object, shape};
use crate::credential::{Call, CredentialProvider, Credentials, Hit, Hop};

const HOUR: Duration = Duration::from_secs(3600);
const OTHER: Uuid = Uuid::from_u128(7);

/// A cloud that mints slowly, or fails, and counts for all replicas.
#[derive(Debug)]
struct FakeCloud {
    clock: ManualClock,
    minted: AtomicUsize,
    failing: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl CredentialProvider for FakeCloud {
    async fn issue(&self, _call: &Call) -> Result<Credential, IssueError> {
        let number = self.minted.fetch_add(1, Ordering::Relaxed) + 1;
        sleep(Duration::from_millis(300)).await;
        if self.failing.load(Ordering::Relaxed) {
            let (code, upstream) = ("invalid_grant".to_owned(), Vec::new());
            return Err(IssueError::SubjectToken { hop: Hop::GoogleSts, code, upstream });
        }
        let now = self.clock.now();
        let identity = CloudIdentity::Azure { tenant: Uuid::nil(), client_id: OTHER };
        let mut credential = Credential::new(Secret::new(format!("token-{number}")), now, now + HOUR, HOUR, identity);
        credential.upstream.push(("entra_request_id", "r-1".to_owned()));
        Ok(credential)
    }
}

/// Three replicas of one cluster.
struct Cluster {
    clock: ManualClock,
    cloud: Arc<FakeCloud>,
    store: Arc<FakeSharedCredentials>,
    replicas: [Credentials; 3],
}

impl Cluster {
    fn start() -> Self {
        let clock = ManualClock::start();
        let (minted, failing) = (AtomicUsize::new(0), std::sync::atomic::AtomicBool::new(false));
        let cloud = Arc::new(FakeCloud { clock: clock.clone(), minted, failing });
        let store = Arc::new(FakeSharedCredentials::default());
        let sealing = Arc::new(SealingKeys::random().expect("a key"));
        let replicas = [(); 3].map(|()| {
            Credentials::new(cloud.clone(), Arc::new(clock.clone())).shared_through(store.clone(), sealing.clone())
        });
        Self { clock, cloud, store, replicas }
    }

    async fn hit(&self, replica: usize) -> Result<Hit, IssueError> {
        self.replicas[replica].credential(the_call()).await
    }

    async fn token(&self, replica: usize) -> String {
        self.hit(replica).await.expect("a credential").credential.token.expose().to_owned()
    }

    fn minted(&self) -> usize {
        self.cloud.minted.load(Ordering::Relaxed)
    }
}

fn the_call() -> Call {
    call(&shape(), |target| target, &[])
}

fn the_key() -> Key {
    crate::credential::key(&the_call().grant)
}

#[tokio::test(start_paused = true)]
async fn many_callers_of_three_replicas_cause_one_mint() {
    let cluster = Cluster::start();
    let hits = futures_util::future::join_all((0..300).map(|caller| cluster.hit(caller % 3))).await;
    let hits: Vec<Hit> = hits.into_iter().map(|hit| hit.expect("a credential")).collect();
    assert!(hits.iter().all(|hit| hit.credential.token.expose() == "token-1"));
    assert_eq!(hits.iter().filter(|hit| !hit.cached).count(), 1);
    assert_eq!(cluster.minted(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hit_in_a_replicas_own_cache_asks_nobody() {
    let cluster = Cluster::start();
    cluster.token(0).await;
    let asked = cluster.store.asked();
    assert_eq!(cluster.token(0).await, "token-1");
    assert_eq!(cluster.store.asked(), asked);
}

#[tokio::test(start_paused = true)]
async fn a_credential_arrives_as_it_was_issued() {
    let cluster = Cluster::start();
    let there = cluster.hit(0).await.expect("a credential").credential;
    cluster.clock.advance(Duration::from_secs(60));
    let here = cluster.hit(1).await.expect("a credential").credential;
    assert_eq!(here.token.expose(), there.token.expose());
    assert_eq!((here.token_sha256, here.issued_at), (there.token_sha256, there.issued_at));
    assert_eq!((here.expires_at, here.given), (there.expires_at, there.given));
    assert_eq!((&here.identity, &here.upstream), (&there.identity, &there.upstream));
    assert!(here.minted_by == there.minted_by && !here.minted_by.is_nil(), "{}", here.minted_by);
    cluster.store.change(|sealed| {
        assert!(!sealed.windows(7).any(|window| window == b"token-1"), "the token lies there in clear");
    });
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_dies_while_it_mints_frees_its_key_when_its_lock_runs_out() {
    let cluster = Cluster::start();
    assert!(cluster.store.lock(&the_key(), OTHER, HOLD).await.expect("an answer"));
    let started = Instant::now();
    assert_eq!(cluster.token(0).await, "token-1");
    assert!((PATIENCE..HOLD).contains(&started.elapsed()), "{:?}", started.elapsed());

    cluster.store.forget(&the_key()).await.expect("an answer");
    assert!(!cluster.store.lock(&the_key(), Uuid::nil(), HOLD).await.expect("an answer"), "it is still held");
    sleep(HOLD).await;
    let started = Instant::now();
    let tokens = futures_util::future::join_all([cluster.token(1), cluster.token(2)]).await;
    assert_eq!(tokens, ["token-2", "token-2"]);
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_does_not_stop_minting_and_is_left_alone_for_a_while() {
    let cluster = Cluster::start();
    cluster.store.is_away(true);
    for (replica, expected) in [(0, "token-1"), (1, "token-2")] {
        assert_eq!(cluster.token(replica).await, expected);
    }
    assert_eq!(cluster.store.asked(), 2);
    cluster.replicas[0].forget(&crate::credential::key(&the_call().grant)).await;
    assert_eq!(cluster.token(0).await, "token-3");
    assert_eq!(cluster.store.asked(), 2);
    cluster.store.is_away(false);
    sleep(LEFT_ALONE).await;
    cluster.replicas[0].forget(&crate::credential::key(&the_call().grant)).await;
    assert_eq!(cluster.token(0).await, "token-4");
    assert_eq!(cluster.token(2).await, "token-4");
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_was_tampered_with_is_ignored_and_replaced() {
    let cluster = Cluster::start();
    cluster.token(0).await;
    cluster.store.change(|sealed| sealed[20] ^= 1);
    assert_eq!(cluster.token(1).await, "token-2");
    assert_eq!(cluster.token(2).await, "token-2");
}

#[tokio::test(start_paused = true)]
async fn an_entry_of_another_key_does_not_open() {
    let cluster = Cluster::start();
    cluster.token(0).await;
    let moved = cluster.store.find(&the_key()).await.expect("an answer").expect("an entry");
    let key = crate::credential::key(&call_of_another_object().grant);
    cluster.store.put(&key, OTHER, moved, cluster.clock.now() + HOUR).await.expect("an answer");
    let hit = cluster.replicas[1].credential(call_of_another_object()).await.expect("a credential");
    assert_eq!(hit.credential.token.expose(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_is_shared_too_and_an_old_entry_is_none() {
    let cluster = Cluster::start();
    for replica in 0..3 {
        assert_eq!(cluster.token(replica).await, "token-1");
    }
    cluster.clock.advance(HOUR * 7 / 10);
    // Whoever asks now starts a refresh and has the old one meanwhile.
    for replica in 0..3 {
        assert_eq!(cluster.token(replica).await, "token-1");
    }
    sleep(Duration::from_secs(1)).await;
    for replica in 0..3 {
        assert_eq!(cluster.token(replica).await, "token-2");
    }
    assert_eq!(cluster.minted(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_mint_leaves_the_key_to_the_next() {
    let cluster = Cluster::start();
    cluster.cloud.failing.store(true, Ordering::Relaxed);
    assert!(cluster.hit(0).await.is_err());
    cluster.cloud.failing.store(false, Ordering::Relaxed);
    let started = Instant::now();
    assert_eq!(cluster.token(1).await, "token-2");
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_forgotten_for_all() {
    let cluster = Cluster::start();
    cluster.token(0).await;
    cluster.replicas[0].forget(&crate::credential::key(&the_call().grant)).await;
    assert!(cluster.store.is_empty());
    assert_eq!(cluster.token(1).await, "token-2");
}

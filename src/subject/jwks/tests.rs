use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::*;

const TENANT: Uuid = Uuid::from_u128(1);

/// Publishes what it is told to, after a delay, and counts.
#[derive(Default)]
struct FakeKeySource {
    published: Mutex<Vec<&'static str>>,
    down: std::sync::atomic::AtomicBool,
    fetches: AtomicUsize,
}

impl FakeKeySource {
    fn publishing(kids: &[&'static str]) -> Arc<Self> {
        let source = Self::default();
        source.publish(kids);
        Arc::new(source)
    }

    fn publish(&self, kids: &[&'static str]) {
        *self.published.lock().expect("no panic") = kids.to_vec();
    }

    fn goes(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::Relaxed)
    }
}

#[async_trait::async_trait]
impl KeySource for FakeKeySource {
    async fn fetch(&self, tenant: Uuid, _version: Version) -> Result<KeySet, FetchError> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
        if self.down.load(Ordering::Relaxed) {
            return Err(FetchError::CutOff);
        }
        let kids = self.published.lock().expect("no panic").clone();
        assert_ne!(kids, ["panic"]);
        let jwks: Vec<Value> = kids.iter().map(|kid| rsa(kid, &("B".repeat(341) + "Q"))).collect();
        Ok(KeySet { issuer: format!("https://issuer/{tenant}/v2.0"), keys: verification_keys(&jwks) })
    }
}

fn rsa(kid: &str, modulus: &str) -> Value {
    json!({"kty": "RSA", "use": "sig", "kid": kid, "n": modulus, "e": "AQAB"})
}

async fn known(cache: &KeyCache, kid: &str) -> bool {
    cache.key(TENANT, Version::V2, kid).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_share_one_fetch_and_the_first_may_leave() {
    let source = FakeKeySource::publishing(&["a"]);
    let cache = Arc::new(KeyCache::new(source.clone(), &[TENANT]));
    let first = tokio::spawn({
        let cache = cache.clone();
        async move { known(&cache, "a").await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    first.abort();
    let waiting: Vec<_> = (0..100).map(|_| known(&cache, "a")).collect();
    assert!(futures_util::future::join_all(waiting).await.into_iter().all(|known| known));
    assert_eq!(source.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn c20_a_new_key_is_found_at_once_and_made_up_names_cost_one_fetch_a_cooldown() {
    let source = FakeKeySource::publishing(&["a"]);
    let cache = KeyCache::new(source.clone(), &[TENANT]);
    assert!(known(&cache, "a").await);
    tokio::time::advance(UNKNOWN_KID_COOLDOWN).await;
    source.publish(&["a", "b"]);
    assert!(known(&cache, "b").await);
    for _ in 0..100 {
        assert!(!known(&cache, "made-up").await);
    }
    assert_eq!(source.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_fetch_starts_the_cooldown_too() {
    let source = FakeKeySource::publishing(&["a"]);
    let cache = KeyCache::new(source.clone(), &[TENANT]);
    assert!(known(&cache, "a").await);
    source.goes(true);
    tokio::time::advance(UNKNOWN_KID_COOLDOWN).await;
    for _ in 0..100 {
        assert!(!known(&cache, "b").await);
    }
    assert_eq!(source.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_could_not_be_looked_for_is_not_called_unknown_and_is_found_seconds_after_the_outage() {
    let source = FakeKeySource::publishing(&["a"]);
    let cache = KeyCache::new(source.clone(), &[TENANT]);
    assert!(known(&cache, "a").await);
    source.goes(true);
    source.publish(&["a", "b"]);
    tokio::time::advance(UNKNOWN_KID_COOLDOWN).await;
    for _ in 0..10 {
        let Err(KeyError::Unavailable { retry_after, source: Some(_) }) = cache.key(TENANT, Version::V2, "b").await
        else {
            panic!("nobody can say that the tenant does not publish it")
        };
        assert!(SOONEST_RETRY <= retry_after && retry_after <= FAILED_COOLDOWN, "{retry_after:?}");
    }
    assert!(known(&cache, "a").await);
    assert_eq!(source.fetches(), 2);
    source.goes(false);
    tokio::time::advance(FAILED_COOLDOWN).await;
    assert!(known(&cache, "b").await);
    assert!(matches!(cache.key(TENANT, Version::V2, "c").await, Err(KeyError::Unknown)));
    assert_eq!(source.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_outage_leaves_the_last_good_keys_until_their_hard_maximum_age() {
    let source = FakeKeySource::publishing(&["a"]);
    let cache = KeyCache::new(source.clone(), &[TENANT]);
    assert!(known(&cache, "a").await);
    source.goes(true);
    tokio::time::advance(MAX_AGE - Duration::from_secs(10)).await;
    assert!(known(&cache, "a").await);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(matches!(cache.key(TENANT, Version::V2, "a").await, Err(KeyError::Unavailable { .. })));
}

#[tokio::test(start_paused = true)]
async fn w05_after_a_hundred_failures_the_refresh_recovers() {
    let source = FakeKeySource::publishing(&["a"]);
    let cache = Arc::new(KeyCache::new(source.clone(), &[TENANT]));
    assert!(known(&cache, "a").await);
    source.goes(true);
    let refreshing = cache.clone();
    tokio::spawn(async move { refreshing.keep_fresh().await });
    tokio::time::sleep(REFRESH_AFTER + TICK * 120).await;
    assert!(source.fetches() > 100, "{}", source.fetches());
    source.publish(&["b"]);
    source.goes(false);
    tokio::time::sleep(TICK * 2).await;
    assert!(!cache.holds(TENANT, Version::V2, "a", &fingerprint("a")));
    assert!(cache.holds(TENANT, Version::V2, "b", &fingerprint("b")));
}

#[tokio::test(start_paused = true)]
async fn w05_after_a_fetch_that_panicked_the_next_one_recovers() {
    let source = FakeKeySource::publishing(&["panic"]);
    let cache = KeyCache::new(source.clone(), &[TENANT]);
    assert!(matches!(cache.key(TENANT, Version::V2, "a").await, Err(KeyError::Unavailable { .. })));
    source.publish(&["a"]);
    tokio::time::advance(OUTAGE_COOLDOWN).await;
    assert!(known(&cache, "a").await);
}

#[tokio::test(start_paused = true)]
async fn i02_a_withdrawn_key_is_gone_after_the_next_refresh() {
    let source = FakeKeySource::publishing(&["a", "b"]);
    let cache = KeyCache::new(source.clone(), &[TENANT]);
    assert!(known(&cache, "a").await);
    source.publish(&["b"]);
    tokio::time::advance(REFRESH_AFTER).await;
    // The first to ask starts the refresh and is still answered from the old set.
    assert!(cache.holds(TENANT, Version::V2, "a", &fingerprint("a")));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!cache.holds(TENANT, Version::V2, "a", &fingerprint("a")));
    assert!(!known(&cache, "a").await);
}

#[tokio::test(start_paused = true)]
async fn one_tenants_cooldown_does_not_hold_another_back_and_foreign_tenants_cause_no_fetch() {
    let source = FakeKeySource::publishing(&["a"]);
    let other = Uuid::from_u128(2);
    let cache = KeyCache::new(source.clone(), &[TENANT, other]);
    assert!(!known(&cache, "made-up").await);
    assert!(cache.key(other, Version::V2, "a").await.is_ok());
    assert!(cache.key(Uuid::from_u128(9), Version::V2, "a").await.is_err());
    assert_eq!(source.fetches(), 2);
}

fn fingerprint(kid: &str) -> [u8; 32] {
    VerificationKey::of(&rsa(kid, &("B".repeat(341) + "Q"))).expect("a key").1.fingerprint
}

#[test]
fn odd_entries_of_a_key_document_cost_themselves_only() {
    let good = "B".repeat(341) + "Q";
    let keys = verification_keys(&[
        rsa("good", &good),
        json!({"kty": "RSA", "kid": 7, "n": good, "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "enc", "use": "enc", "n": good, "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "ps", "alg": "PS256", "n": good, "e": "AQAB"}),
        json!({"kty": "oct", "kid": "oct", "k": "c2VjcmV0"}),
        json!({"kty": "EC", "kid": "ec", "crv": "P-256", "x": "AA", "y": "AA"}),
        rsa("short", "AAAA"),
        rsa("", &good),
        rsa("twice", &good),
        rsa("twice", &("B".repeat(341) + "A")),
        json!("no key"),
        Value::Null,
    ]);
    assert_eq!(keys.keys().collect::<Vec<_>>(), ["good"]);
}

#[test]
fn an_issuer_names_its_tenant_in_the_first_segment_of_its_path() {
    let tenant = Uuid::from_u128(1);
    assert!(names_tenant(&format!("https://login.microsoftonline.com/{tenant}/v2.0"), tenant));
    assert!(names_tenant(&format!("https://sts.windows.net/{tenant}/"), tenant));
    for issuer in [
        format!("https://login.microsoftonline.com/{}/{tenant}", Uuid::from_u128(2)),
        format!("https://{tenant}.example/x"),
        "https://login.microsoftonline.com/{tenantid}/v2.0".to_owned(),
        tenant.to_string(),
    ] {
        assert!(!names_tenant(&issuer, tenant), "{issuer}");
    }
}

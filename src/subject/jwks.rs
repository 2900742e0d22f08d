//! Signing keys per tenant and token version: fetched once for all who wait, refreshed early, swapped whole.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::roca::is_roca;
use crate::http::{Client, Endpoint, HttpError, Request};
use crate::secret::FieldDigest;
use crate::telemetry::Causes;

/// The two forms of Entra's access tokens; each has metadata and keys of its own
/// (Microsoft: access-tokens, "Validate tokens").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Version {
    V1,
    V2,
}

impl Version {
    /// By the claim `ver`.
    pub fn named(ver: &str) -> Option<Self> {
        match ver {
            "1.0" => Some(Self::V1),
            "2.0" => Some(Self::V2),
            _ => None,
        }
    }

    /// By the claim `iss`: only the issuer of v2.0 tokens ends like this.
    pub fn of_issuer(iss: &str) -> Self {
        if iss.ends_with("/v2.0") { Self::V2 } else { Self::V1 }
    }
}

/// Where key sets come from. Fulfilled by [`EntraMetadata`].
#[async_trait::async_trait]
pub(super) trait KeySource: Send + Sync {
    async fn fetch(&self, tenant: Uuid, version: Version) -> Result<KeySet, FetchError>;
}

/// What a tenant published at one moment.
pub(super) struct KeySet {
    /// `issuer` of the discovery document.
    pub issuer: String,
    pub keys: HashMap<String, Arc<VerificationKey>>,
}

/// An RSA key that may verify a token, parsed once.
pub(super) struct VerificationKey {
    key: ParsedPublicKey,
    /// The issuer whose tokens this key signs; `{tenantid}` in it stands for the token's tenant. v1.0 keys have none.
    pub issuer: Option<String>,
    /// Of modulus and exponent: two sets hold the same key if it is equal.
    pub fingerprint: [u8; 32],
}

impl VerificationKey {
    /// The key of an entry of a key document, with its name; `None` for one that verifies nothing here.
    pub fn of(jwk: &Value) -> Option<(String, Self)> {
        let field = |name: &str| jwk.get(name).and_then(Value::as_str);
        let absent_or = |name: &str, value: &str| jwk.get(name).is_none_or(|found| found.as_str() == Some(value));
        if field("kty") != Some("RSA") || !absent_or("use", "sig") || !absent_or("alg", "RS256") || !may_verify(jwk) {
            return None;
        }
        let (kid, n, e) = (field("kid").filter(|kid| !kid.is_empty())?, field("n")?, field("e")?);
        if !MODULUS_TEXT_LENGTH.contains(&n.len()) {
            return None;
        }
        let read = DecodingKey::from_rsa_components(n, e).ok()?;
        let DecodingKeyKind::RsaModulusExponent { n: modulus, e: exponent } = read.kind() else { return None };
        if is_roca(modulus) {
            return None;
        }
        // Parsed here: `jsonwebtoken::crypto::verify` parses the key again at each signature.
        let key = RsaPublicKeyComponents { n: modulus, e: exponent };
        let key = key.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).ok()?;
        let mut digest = FieldDigest::new("rsa-key");
        digest.field(n.as_bytes()).field(e.as_bytes());
        let issuer = field("issuer").map(str::to_owned);
        Some((kid.to_owned(), Self { key, issuer, fingerprint: digest.finish() }))
    }

    /// Checks an RS256 signature over `signed`; `signature` is base64url.
    pub fn verifies(&self, signed: &[u8], signature: &str) -> bool {
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature);
        signature.is_ok_and(|signature| self.key.verify_sig(signed, &signature).is_ok())
    }
}

/// Where a key says what it is for (RFC 7517 section 4.3), it is for that only.
fn may_verify(jwk: &Value) -> bool {
    let verify = |operations: &Value| {
        operations.as_array().is_some_and(|all| all.iter().any(|operation| operation.as_str() == Some("verify")))
    };
    jwk.get("key_ops").is_none_or(verify)
}

/// Why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{document} was not answered")]
    Http { document: &'static str, source: HttpError },
    #[error("{document} was answered with HTTP {status}")]
    Status { document: &'static str, status: u16 },
    #[error("{document} is not what it should be")]
    Form { document: &'static str, source: serde_json::Error },
    #[error("the discovery document names keys on another host, {0}")]
    ForeignKeys(String),
    #[error("the discovery document is for another tenant: issuer {0}")]
    ForeignIssuer(String),
    #[error("the key document holds no RSA key for signatures")]
    NoUsableKey,
    #[error("the fetch was cut off")]
    CutOff,
}

/// Why there is no key.
pub(super) enum KeyError {
    /// The tenant's current keys are known, and this is none of them.
    Unknown,
    Unavailable {
        retry_after: Duration,
        source: Option<Arc<FetchError>>,
    },
}

/// Key: tenant and version, of configured tenants only. Life: [`REFRESH_AFTER`], then refreshed in the background;
/// never used past [`MAX_AGE`]. On failure the last good set stays. Bound: two sets per configured tenant.
pub struct KeyCache {
    slots: HashMap<(Uuid, Version), Arc<Slot>>,
}

/// A tenant's keys as they are known.
#[derive(Default)]
pub(super) struct Published {
    pub age: Option<Duration>,
    /// Sorted.
    pub kids: Vec<String>,
    /// Why the last fetch failed, if it did.
    pub last_error: Option<String>,
}

struct Slot {
    tenant: Uuid,
    version: Version,
    source: Arc<dyn KeySource>,
    current: ArcSwapOption<Fetched>,
    attempts: Mutex<Attempts>,
}

struct Fetched {
    set: KeySet,
    at: Instant,
}

#[derive(Default)]
struct Attempts {
    running: Option<Flight>,
    last: Option<Instant>,
    last_error: Option<Arc<FetchError>>,
}

type Flight = Shared<BoxFuture<'static, ()>>;

/// Why keys are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Refresh,
    /// Somebody waits for a key that is not there.
    Missing,
}

impl KeyCache {
    pub(super) fn new(source: Arc<dyn KeySource>, tenants: &[Uuid]) -> Self {
        let slot = |tenant, version| {
            let source = source.clone();
            let slot = Slot { tenant, version, source, current: ArcSwapOption::empty(), attempts: Mutex::default() };
            ((tenant, version), Arc::new(slot))
        };
        let slots = tenants.iter().flat_map(|tenant| [Version::V1, Version::V2].map(|version| slot(*tenant, version)));
        Self { slots: slots.collect() }
    }

    /// The key, with the issuer of its set's discovery document. Waits for a fetch where the key is not known.
    pub(super) async fn key(
        &self,
        tenant: Uuid,
        version: Version,
        kid: &str,
    ) -> Result<(Arc<VerificationKey>, String), KeyError> {
        let slot = self.slots.get(&(tenant, version)).ok_or(KeyError::Unknown)?;
        if let Some(found) = slot.find(kid) {
            slot.refresh_if_due();
            return Ok(found);
        }
        if let Some(flight) = slot.fetch_unless_cooling(Cause::Missing) {
            flight.await;
        }
        slot.find(kid).ok_or_else(|| slot.why_missing())
    }

    /// Whether the tenant still publishes the key with this fingerprint, by what is known now.
    pub(super) fn holds(&self, tenant: Uuid, version: Version, kid: &str, fingerprint: &[u8; 32]) -> bool {
        let Some(slot) = self.slots.get(&(tenant, version)) else { return false };
        let Some(fetched) = &*slot.current.load() else { return false };
        // Once for both limits: every cached exchange comes by here.
        let age = fetched.at.elapsed();
        if age >= REFRESH_AFTER {
            slot.fetch_unless_cooling(Cause::Refresh);
        }
        age < MAX_AGE && fetched.set.keys.get(kid).is_some_and(|key| key.fingerprint == *fingerprint)
    }

    /// What is known of a tenant's keys, without a fetch.
    pub(super) fn published(&self, tenant: Uuid, version: Version) -> Published {
        let Some(slot) = self.slots.get(&(tenant, version)) else { return Published::default() };
        let current = slot.current.load_full();
        let mut kids: Vec<String> = current.iter().flat_map(|fetched| fetched.set.keys.keys().cloned()).collect();
        kids.sort_unstable();
        let attempts = slot.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        Published {
            age: current.map(|fetched| fetched.at.elapsed()),
            kids,
            last_error: attempts.last_error.as_ref().map(|error| Causes(&**error).to_string()),
        }
    }

    /// The name of a key that signs the tenant's v2.0 tokens, where one is known.
    pub fn a_kid(&self, tenant: Uuid) -> Option<String> {
        self.slots.get(&(tenant, Version::V2))?.usable()?.set.keys.keys().next().cloned()
    }

    /// Fetches what is not there yet for every tenant; true once a tenant's v2.0 keys are known.
    pub async fn prefetch(&self) -> bool {
        let v2 = self.slots.values().filter(|slot| slot.version == Version::V2);
        let flights =
            v2.filter(|slot| slot.usable().is_none()).filter_map(|slot| slot.fetch_unless_cooling(Cause::Missing));
        futures_util::future::join_all(flights).await;
        self.slots.values().any(|slot| slot.usable().is_some())
    }

    /// Refreshes every set in use when its time comes, so that a withdrawn key goes even where nobody asks.
    pub async fn keep_fresh(&self) {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            for slot in self.slots.values().filter(|slot| slot.current.load().is_some()) {
                slot.refresh_if_due();
            }
        }
    }
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyCache({} sets)", self.slots.len())
    }
}

impl Slot {
    fn usable(&self) -> Option<Arc<Fetched>> {
        self.current.load_full().filter(|fetched| fetched.at.elapsed() < MAX_AGE)
    }

    fn find(&self, kid: &str) -> Option<(Arc<VerificationKey>, String)> {
        let fetched = self.usable()?;
        let key = fetched.set.keys.get(kid)?;
        Some((key.clone(), fetched.set.issuer.clone()))
    }

    fn refresh_if_due(self: &Arc<Self>) {
        if self.current.load().as_ref().is_some_and(|fetched| fetched.at.elapsed() >= REFRESH_AFTER) {
            self.fetch_unless_cooling(Cause::Refresh);
        }
    }

    /// One fetch for all who wait. `None` while the last attempt, good or failed, is too recent: an attacker who
    /// makes up key names gets one fetch per tenant and cooldown.
    fn fetch_unless_cooling(self: &Arc<Self>, cause: Cause) -> Option<Flight> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &attempts.running {
            return Some(running.clone());
        }
        if attempts.last.is_some_and(|last| last.elapsed() < self.cooldown(cause, &attempts)) {
            return None;
        }
        attempts.last = Some(Instant::now());
        let slot = self.clone();
        // A task of its own: the caller who happened to be first may leave.
        let task = tokio::spawn(async move { slot.fetch().await });
        let flight = task.map(|_joined| ()).boxed().shared();
        attempts.running = Some(flight.clone());
        Some(flight)
    }

    async fn fetch(&self) {
        // A panic must not leave a flight behind that never lands: there would be no other.
        let fetch = AssertUnwindSafe(self.source.fetch(self.tenant, self.version)).catch_unwind();
        let result = match tokio::time::timeout(FETCH_DEADLINE, fetch).await {
            Ok(Ok(result)) => result,
            Ok(Err(_panic)) => Err(FetchError::CutOff),
            Err(_elapsed) => Err(FetchError::CutOff),
        };
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        metrics::counter!("carnet_entra_key_fetches_total", "outcome" => outcome).increment(1);
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.running = None;
        match result {
            Ok(set) => {
                attempts.last_error = None;
                self.current.store(Some(Arc::new(Fetched { set, at: Instant::now() })));
            }
            Err(error) => {
                tracing::warn!(
                    entra.tenant = %self.tenant, error = &error as &dyn std::error::Error,
                    "signing keys of tenant {} were not fetched; known ones are used until they are {}h old",
                    self.tenant, MAX_AGE.as_secs() / 3600
                );
                attempts.last_error = Some(Arc::new(error));
            }
        }
    }

    fn cooldown(&self, cause: Cause, attempts: &Attempts) -> Duration {
        match (self.usable(), cause, &attempts.last_error) {
            (None, Cause::Refresh | Cause::Missing, _) => OUTAGE_COOLDOWN,
            (Some(_), Cause::Missing, Some(_)) => FAILED_COOLDOWN,
            (Some(_), Cause::Missing, None) | (Some(_), Cause::Refresh, _) => UNKNOWN_KID_COOLDOWN,
        }
    }

    /// A key is unknown only where the tenant's current keys are known: after a fetch that failed nobody can say that the
    /// tenant does not publish it.
    fn why_missing(&self) -> KeyError {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if self.usable().is_some() && attempts.last_error.is_none() {
            return KeyError::Unknown;
        }
        let waited = attempts.last.map(|last| last.elapsed()).unwrap_or_default();
        let left = self.cooldown(Cause::Missing, &attempts).saturating_sub(waited);
        KeyError::Unavailable { retry_after: left.max(SOONEST_RETRY), source: attempts.last_error.clone() }
    }
}

/// Entra's discovery and key documents over HTTP.
pub(super) struct EntraMetadata {
    pub http: Client,
    pub authority: Endpoint,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct KeyDocument {
    keys: Vec<Value>,
}

#[async_trait::async_trait]
impl KeySource for EntraMetadata {
    async fn fetch(&self, tenant: Uuid, version: Version) -> Result<KeySet, FetchError> {
        let path = match version {
            Version::V1 => format!("{tenant}/.well-known/openid-configuration"),
            Version::V2 => format!("{tenant}/v2.0/.well-known/openid-configuration"),
        };
        let discovery: Discovery = self.document("the discovery document", self.authority.join(&path)).await?;
        if !names_tenant(&discovery.issuer, tenant) {
            return Err(FetchError::ForeignIssuer(discovery.issuer));
        }
        if !self.authority.same_origin(&discovery.jwks_uri) {
            return Err(FetchError::ForeignKeys(discovery.jwks_uri));
        }
        let document: KeyDocument = self.document("the key document", discovery.jwks_uri).await?;
        let keys = verification_keys(&document.keys);
        if keys.is_empty() {
            return Err(FetchError::NoUsableKey);
        }
        Ok(KeySet { issuer: discovery.issuer, keys })
    }
}

impl EntraMetadata {
    async fn document<T: serde::de::DeserializeOwned>(
        &self,
        document: &'static str,
        url: String,
    ) -> Result<T, FetchError> {
        let answer = self.http.send(Request::get(url), DOCUMENT_MAX_BYTES, FETCH_DEADLINE).await;
        let answer = answer.map_err(|source| FetchError::Http { document, source })?;
        if answer.status != http::StatusCode::OK {
            return Err(FetchError::Status { document, status: answer.status.as_u16() });
        }
        serde_json::from_slice(&answer.body).map_err(|source| FetchError::Form { document, source })
    }
}

/// Whether the first segment of the issuer's path is the tenant.
pub(super) fn names_tenant(issuer: &str, tenant: Uuid) -> bool {
    let Ok(url) = url::Url::parse(issuer) else { return false };
    url.path_segments().and_then(|mut segments| segments.next()) == Some(tenant.to_string().as_str())
}

/// Key by key, so that one odd entry costs itself only: RSA keys for signatures with a name. A name that stands for
/// two different keys stands for none.
pub(super) fn verification_keys(published: &[Value]) -> HashMap<String, Arc<VerificationKey>> {
    let mut keys: HashMap<String, Option<Arc<VerificationKey>>> = HashMap::new();
    for (kid, key) in published.iter().take(MAX_KEYS).filter_map(VerificationKey::of) {
        match keys.entry(kid) {
            Entry::Vacant(vacant) => {
                vacant.insert(Some(Arc::new(key)));
            }
            Entry::Occupied(mut occupied) => {
                if occupied.get().as_ref().is_none_or(|other| other.fingerprint != key.fingerprint) {
                    occupied.insert(None);
                }
            }
        }
    }
    keys.into_iter().filter_map(|(kid, key)| Some((kid, key?))).collect()
}

/// Microsoft (signing-key-rollover): refresh hourly in the background.
const REFRESH_AFTER: Duration = Duration::from_secs(3600);

/// A key is trusted this long after it was last seen published, however long the tenant's metadata is away.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Between two fetches that unknown key names can cause. Microsoft's library waits 5 minutes; a minute refuses fewer
/// good tokens after an emergency rollover and is still nothing to Entra.
const UNKNOWN_KID_COOLDOWN: Duration = Duration::from_secs(60);

/// Between two attempts while there are no keys at all.
const OUTAGE_COOLDOWN: Duration = Duration::from_secs(2);

/// Between two attempts that unknown key names can cause while the known keys may be out of date.
const FAILED_COOLDOWN: Duration = Duration::from_secs(10);

/// Callers are told no shorter wait.
const SOONEST_RETRY: Duration = Duration::from_secs(1);

/// For discovery and keys together.
const FETCH_DEADLINE: Duration = Duration::from_secs(10);

const TICK: Duration = Duration::from_secs(60);

/// Entra's key documents have some 20 KB, certificates included.
const DOCUMENT_MAX_BYTES: usize = 256 * 1024;

const MAX_KEYS: usize = 256;

/// Base64url of a modulus of 2048 to 8192 bits.
const MODULUS_TEXT_LENGTH: std::ops::RangeInclusive<usize> = 342..=1366;

#[cfg(test)]
impl KeyCache {
    /// Knows one key of one tenant, which verifies nothing that anybody signs.
    pub fn known(tenant: Uuid, kid: &str) -> Self {
        struct Nothing;

        #[async_trait::async_trait]
        impl KeySource for Nothing {
            async fn fetch(&self, _tenant: Uuid, _version: Version) -> Result<KeySet, FetchError> {
                Err(FetchError::NoUsableKey)
            }
        }

        let cache = Self::new(Arc::new(Nothing), &[tenant]);
        let jwk = serde_json::json!({"kty": "RSA", "kid": kid, "n": "B".repeat(341) + "Q", "e": "AQAB"});
        let set = KeySet { issuer: String::new(), keys: verification_keys(&[jwk]) };
        if let Some(slot) = cache.slots.get(&(tenant, Version::V2)) {
            slot.current.store(Some(Arc::new(Fetched { set, at: Instant::now() })));
        }
        cache
    }
}

#[cfg(test)]
mod tests;

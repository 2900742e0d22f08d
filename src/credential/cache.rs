//! Credentials by key: one issue at a time, refreshed early, the last good one kept, failures remembered for seconds.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, ready};
use metrics::Counter;
use moka::Expiry;
use tracing::Instrument as _;

use super::{Credential, Hop, IssueError};
use crate::clock::{Clock, Moment};
use crate::policy::{FLOOR, refresh_in};
use crate::telemetry::CacheSize;

/// A digest of everything that tells two credentials apart.
pub type Key = [u8; 32];

/// Key: a digest made from the grant, so the policy is asked first and a changed rule makes other keys. Life: until the
/// cloud's expiry, by the wall clock and by the steady one, whichever comes first. Refresh: in the background once [`refresh_in`] of its life has passed and somebody asks. On failure:
/// the good credential stays until it expires; the failure itself is remembered for seconds. Bound: [`MAX_BYTES`].
pub struct Cache {
    name: &'static str,
    clock: Arc<dyn Clock>,
    entries: moka::sync::Cache<Key, Entry>,
    failures: moka::sync::Cache<Key, Failure>,
    flights: Mutex<HashMap<Key, Flight>>,
    /// By far the most frequent outcome: looked up in the registry once.
    hits: Counter,
    size: CacheSize,
}

/// A credential, and whether it was minted for an earlier call.
#[derive(Debug, Clone)]
pub struct Hit {
    pub key: Key,
    pub credential: Arc<Credential>,
    pub cached: bool,
}

/// What a cache knows of a key.
#[derive(Debug, Clone)]
pub enum Held {
    Nothing,
    Credential(Arc<Credential>),
    /// The last call failed, and no other is made for as long as is left.
    Failure {
        error: IssueError,
        left: Duration,
    },
}

#[derive(Clone)]
struct Entry {
    credential: Arc<Credential>,
    refresh_at: SystemTime,
    landed: Moment,
}

#[derive(Clone)]
struct Failure {
    error: IssueError,
    until: SystemTime,
    landed: Moment,
}

impl Failure {
    /// How much longer it is remembered.
    fn left(&self, now: SystemTime) -> Option<Duration> {
        let left = self.until.duration_since(self.landed.no_earlier(now)).ok();
        left.filter(|left| !left.is_zero())
    }
}

type Flight = Shared<BoxFuture<'static, Result<Arc<Credential>, IssueError>>>;

impl Cache {
    /// `name` is the metrics' label.
    pub fn new(name: &'static str, clock: Arc<dyn Clock>) -> Self {
        Self::bounded(name, MAX_BYTES, clock)
    }

    /// As [`new`](Self::new), with another bound in bytes.
    pub fn bounded(name: &'static str, max_bytes: u64, clock: Arc<dyn Clock>) -> Self {
        let weight =
            |_key: &Key, entry: &Entry| u32::try_from(entry.credential.token.len() + ENTRY_BYTES).unwrap_or(u32::MAX);
        let entries = moka::sync::Cache::builder()
            .max_capacity(max_bytes)
            .weigher(weight)
            .expire_after(UntilExpiry(clock.clone()));
        let failures = moka::sync::Cache::builder().max_capacity(FAILURES).time_to_live(FAILURE_LONGEST);
        Self {
            name,
            clock,
            entries: entries.build(),
            failures: failures.build(),
            flights: Mutex::default(),
            hits: metrics::counter!("carnet_cache_lookups_total", "cache" => name, "outcome" => "hit"),
            size: CacheSize::of(name),
        }
    }

    /// The credential of `key` with at least `least` left; `mint` is run, once for all who wait, where there is none.
    pub async fn get<F, M>(self: &Arc<Self>, key: Key, least: Duration, mint: F) -> Result<Hit, IssueError>
    where
        F: FnOnce() -> M,
        M: Future<Output = Result<Credential, IssueError>> + Send + 'static,
    {
        let now = self.clock.now();
        let entry = self.entries.get(&key);
        if let Some(entry) = &entry
            && let now = entry.landed.no_earlier(now)
            && entry.credential.covers(least, now)
        {
            if now >= entry.refresh_at && self.failure(&key, now).is_none() {
                // Runs by itself; nobody waits for it.
                let _refresh = self.fly(key, Some(&entry.credential), mint);
            }
            self.hits.increment(1);
            return Ok(Hit { key, credential: entry.credential.clone(), cached: true });
        }
        let (result, cached) = match self.failure(&key, now) {
            Some(error) => (Err(error), true),
            None => {
                let (flight, joined) = self.fly(key, entry.as_ref().map(|entry| &entry.credential), mint);
                (flight.await, joined)
            }
        };
        match (result, entry) {
            (Ok(credential), _) => {
                self.count(if cached { "joined" } else { "miss" });
                Ok(Hit { key, credential, cached })
            }
            // Shorter than wanted, but good: better than nothing while the cloud is away.
            (Err(error), Some(entry)) if error.is_transient() && entry.is_live(self.clock.now()) => {
                self.count("stale");
                Ok(Hit { key, credential: entry.credential, cached: true })
            }
            (Err(error), _) => {
                self.count("failed");
                Err(error)
            }
        }
    }

    /// Whether a caller who needs `least` would be answered without a call.
    pub fn covers(&self, key: &Key, least: Duration) -> bool {
        let now = self.clock.now();
        self.entries.get(key).is_some_and(|entry| entry.credential.covers(least, entry.landed.no_earlier(now)))
    }

    /// What is kept for `key`, without a call.
    pub fn held(&self, key: &Key) -> Held {
        let now = self.clock.now();
        let failure = self.failures.get(key).and_then(|failure| Some((failure.left(now)?, failure.error)));
        let live = |entry: &Entry| entry.landed.no_earlier(now) < entry.credential.expires_at;
        let credential = self.entries.get(key).filter(live).map(|entry| entry.credential);
        match (credential, failure) {
            (Some(credential), _) => Held::Credential(credential),
            (None, Some((left, error))) => Held::Failure { error, left },
            (None, None) => Held::Nothing,
        }
    }

    /// Drops what is kept for `key`, where it turned out to be no good.
    pub fn forget(&self, key: &Key) {
        self.entries.invalidate(key);
    }

    /// The flight for `key`, and whether it was under way already. It runs in a task of its own: whoever started it
    /// may leave. `seen` is the credential that would not do: if another is there by now, its flight has landed since.
    fn fly<F, M>(self: &Arc<Self>, key: Key, seen: Option<&Arc<Credential>>, mint: F) -> (Flight, bool)
    where
        F: FnOnce() -> M,
        M: Future<Output = Result<Credential, IssueError>> + Send + 'static,
    {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key) {
            return (flight.clone(), true);
        }
        // A flight leaves the map only after its credential is in the cache.
        let landed = self.entries.get(&key).map(|entry| entry.credential);
        if let Some(landed) = landed.filter(|landed| seen.is_none_or(|seen| !Arc::ptr_eq(seen, landed))) {
            return (ready(Ok(landed)).boxed().shared(), true);
        }
        let (cache, mint) = (self.clone(), mint());
        // A call that panics must land too, or its key would stay taken.
        let minting = AssertUnwindSafe(tokio::time::timeout(FLIGHT_DEADLINE, mint)).catch_unwind();
        let flying = async move {
            let minted = match minting.await {
                Ok(Ok(minted)) => minted,
                Ok(Err(_elapsed)) => Err(cut_off("no answer in time")),
                Err(_panic) => Err(cut_off("the call was cut off")),
            };
            cache.land(key, minted)
        };
        let task = tokio::spawn(flying.in_current_span());
        let flight =
            task.map(|joined| joined.unwrap_or_else(|_gone| Err(cut_off("the call was cut off")))).boxed().shared();
        flights.insert(key, flight.clone());
        (flight, false)
    }

    fn land(&self, key: Key, minted: Result<Credential, IssueError>) -> Result<Arc<Credential>, IssueError> {
        let now = self.clock.now();
        let landed = match minted {
            Ok(credential) => {
                let life = credential.expires_at.duration_since(now).unwrap_or_default();
                let credential = Arc::new(credential);
                let refresh_at = now + refresh_in(life, rand::random());
                let landed = Moment::at(now);
                self.entries.insert(key, Entry { credential: credential.clone(), refresh_at, landed });
                self.failures.invalidate(&key);
                Ok(credential)
            }
            Err(error) => {
                if let Some(memory) = remembered_for(&error) {
                    let failure = Failure { error: error.clone(), until: now + memory, landed: Moment::at(now) };
                    self.failures.insert(key, failure);
                }
                Err(error)
            }
        };
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        self.size.set(self.entries.entry_count(), self.entries.weighted_size());
        landed
    }

    fn failure(&self, key: &Key, now: SystemTime) -> Option<IssueError> {
        self.failures.get(key).filter(|failure| failure.left(now).is_some()).map(|failure| failure.error)
    }

    fn count(&self, outcome: &'static str) {
        metrics::counter!("carnet_cache_lookups_total", "cache" => self.name, "outcome" => outcome).increment(1);
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({}, {} entries)", self.name, self.entries.entry_count())
    }
}

impl Entry {
    fn is_live(&self, now: SystemTime) -> bool {
        let now = self.landed.no_earlier(now);
        self.credential.expires_at.duration_since(now).is_ok_and(|left| left > LEAST_STALE)
    }
}

/// Frees what has expired; whether a credential may be used is always asked of the clock, which moka's is not.
struct UntilExpiry(Arc<dyn Clock>);

impl Expiry<Key, Entry> for UntilExpiry {
    fn expire_after_create(&self, _key: &Key, entry: &Entry, _created: Instant) -> Option<Duration> {
        Some(entry.credential.expires_at.duration_since(self.0.now()).unwrap_or_default())
    }

    fn expire_after_update(
        &self,
        key: &Key,
        entry: &Entry,
        updated: Instant,
        _left: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, entry, updated)
    }
}

/// A caller's own fault is not remembered: its next token may be a better one.
fn remembered_for(error: &IssueError) -> Option<Duration> {
    match error {
        IssueError::Refused { .. } => Some(REFUSAL_MEMORY),
        IssueError::Throttled { retry_after, .. } | IssueError::Unavailable { retry_after, .. } => {
            Some((*retry_after).clamp(OUTAGE_MEMORY, FAILURE_LONGEST))
        }
        IssueError::SubjectToken { .. } | IssueError::InsufficientClaims { .. } => None,
    }
}

fn cut_off(cause: &str) -> IssueError {
    let (cause, upstream) = (cause.to_owned(), Vec::new());
    IssueError::Unavailable { hop: Hop::Broker, cause, fault: None, retry_after: OUTAGE_MEMORY, upstream }
}

/// By weight; 100,000 credentials of 1.2 KB fit.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// What an entry costs besides its token, measured with 100,000 of them.
const ENTRY_BYTES: usize = 900;

const FAILURES: u64 = 100_000;

/// A repaired trust is noticed within this.
const REFUSAL_MEMORY: Duration = Duration::from_secs(5);

const OUTAGE_MEMORY: Duration = Duration::from_secs(1);

const FAILURE_LONGEST: Duration = Duration::from_secs(10);

/// Two upstream calls with their retries; a caller who waits longer has given up.
const FLIGHT_DEADLINE: Duration = Duration::from_secs(20);

/// During an outage, what lives shorter would be dead on arrival.
const LEAST_STALE: Duration = Duration::from_secs(30);

const _: () = assert!(FLOOR.as_secs() > LEAST_STALE.as_secs());

#[cfg(test)]
mod tests;

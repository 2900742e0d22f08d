//! One mint per cluster: replicas leave each other what a cloud has issued, in a store that they share.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::correlation::NAMES;
use super::{CloudIdentity, Credential, IssueError, Key, Origin};
use crate::clock::Clock;
use crate::policy::{Given, refresh_in};
use crate::secret::{SealingKeys, Secret};
use crate::telemetry::Causes;

/// Where replicas leave credentials for each other, sealed. Declared by the stage, fulfilled by a store that several
/// brokers use.
#[async_trait::async_trait]
pub trait SharedCredentials: fmt::Debug + Send + Sync {
    /// The entry of `key`, as it was put.
    async fn find(&self, key: &Key) -> Result<Option<Vec<u8>>, SharedError>;

    /// Lets `owner`, and nobody else, mint for `key` until `hold` has passed; false while another does. Time is the
    /// store's own: replicas need not agree on it.
    async fn lock(&self, key: &Key, owner: Uuid, hold: Duration) -> Result<bool, SharedError>;

    /// Keeps `sealed` in place of an earlier entry and ends the lock of `owner`, both at once.
    async fn put(&self, key: &Key, owner: Uuid, sealed: Vec<u8>, expires_at: SystemTime) -> Result<(), SharedError>;

    /// Ends the lock of `owner`.
    async fn unlock(&self, key: &Key, owner: Uuid) -> Result<(), SharedError>;

    /// Drops the entry of `key`.
    async fn forget(&self, key: &Key) -> Result<(), SharedError>;

    /// Drops entries and locks whose time has passed.
    async fn sweep(&self) -> Result<(), SharedError>;
}

#[derive(Debug, thiserror::Error)]
#[error("the shared store does not answer")]
pub struct SharedError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Drops, for as long as the broker runs, what has expired.
pub async fn keep_swept(store: Arc<dyn SharedCredentials>) {
    let mut tick = tokio::time::interval(SWEEP_EVERY);
    loop {
        tick.tick().await;
        if let Err(error) = store.sweep().await {
            tracing::warn!(error = %Causes(&error), "expired shared credentials were not dropped");
        }
    }
}

/// Asks the store before a mint and leaves the result there. A store that is away, slow or full of nonsense costs the
/// sharing, never the credential.
#[derive(Debug)]
pub(super) struct Shared {
    store: Arc<dyn SharedCredentials>,
    sealing: Arc<SealingKeys>,
    clock: Arc<dyn Clock>,
    away_until: Mutex<Option<Instant>>,
}

/// What becomes of a call that found nothing in this replica's cache.
enum Turn {
    Found(Credential),
    /// Nobody else mints, or whoever does takes too long.
    Mint,
}

impl Shared {
    pub fn new(store: Arc<dyn SharedCredentials>, sealing: Arc<SealingKeys>, clock: Arc<dyn Clock>) -> Self {
        Self { store, sealing, clock, away_until: Mutex::default() }
    }

    /// The credential that another replica left for `key`, with at least `least` left; else what `mint` gives, for the
    /// others too.
    pub async fn credential(
        &self,
        key: &Key,
        least: Duration,
        mint: impl Future<Output = Result<Credential, IssueError>>,
    ) -> Result<Credential, IssueError> {
        let owner = Uuid::now_v7();
        match self.turn(key, least, owner).await {
            Some(Turn::Found(credential)) => {
                count("found");
                return Ok(credential);
            }
            Some(Turn::Mint) => count("minted"),
            None => {
                count("away");
                return mint.await;
            }
        }
        let minted = mint.await;
        match minted.as_ref().ok().and_then(|credential| Some((self.seal(key, credential)?, credential.expires_at))) {
            Some((sealed, expires_at)) => self.ask(self.store.put(key, owner, sealed, expires_at)).await,
            None => self.ask(self.store.unlock(key, owner)).await,
        };
        minted
    }

    pub async fn forget(&self, key: &Key) {
        self.ask(self.store.forget(key)).await;
    }

    /// `None` where the store is away.
    async fn turn(&self, key: &Key, least: Duration, owner: Uuid) -> Option<Turn> {
        let patience = Instant::now() + PATIENCE;
        loop {
            if let Some(credential) = self.find(key, least).await? {
                return Some(Turn::Found(credential));
            }
            if self.ask(self.store.lock(key, owner, HOLD)).await? {
                // Between the two questions, whoever had the lock may have left its credential.
                let Some(credential) = self.find(key, least).await? else { return Some(Turn::Mint) };
                self.ask(self.store.unlock(key, owner)).await;
                return Some(Turn::Found(credential));
            }
            if Instant::now() >= patience {
                return Some(Turn::Mint);
            }
            sleep(POLL).await;
        }
    }

    async fn find(&self, key: &Key, least: Duration) -> Option<Option<Credential>> {
        let sealed = self.ask(self.store.find(key)).await?;
        let now = self.clock.now();
        Some(
            sealed
                .and_then(|sealed| self.open(key, &sealed))
                .filter(|found| found.covers(least, now) && fresh(found, now)),
        )
    }

    /// `None` where the store is away, or was a moment ago.
    async fn ask<T>(&self, answer: impl Future<Output = Result<T, SharedError>>) -> Option<T> {
        if self.away().is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let error: Box<dyn std::error::Error + Send + Sync> = match timeout(ANSWER_DEADLINE, answer).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => error.into(),
            Err(elapsed) => elapsed.into(),
        };
        *self.away() = Some(Instant::now() + LEFT_ALONE);
        tracing::warn!(
            error = %Causes(&*error),
            "the store does not share credentials; for {}s this replica mints by itself",
            LEFT_ALONE.as_secs()
        );
        None
    }

    fn seal(&self, key: &Key, credential: &Credential) -> Option<Vec<u8>> {
        let entry = Entry {
            token: credential.token.expose(),
            issued_at: credential.issued_at,
            expires_at: credential.expires_at,
            identity: credential.identity.clone(),
            given: credential.given,
            minted_by: credential.minted_by,
            upstream: credential.upstream.iter().map(|(name, id)| ((*name).to_owned(), id.clone())).collect(),
        };
        let plain = Zeroizing::new(serde_json::to_vec(&entry).ok()?);
        self.sealing.seal(&plain, &row(key)).ok()
    }

    /// `None` for what was sealed with a key that this replica does not have, or was changed: it is replaced.
    fn open(&self, key: &Key, sealed: &[u8]) -> Option<Credential> {
        let plain = self.sealing.open(sealed, &row(key));
        let plain = plain.inspect_err(|error| {
            tracing::warn!(%error, "a shared credential cannot be opened: do all replicas have the same store_key?");
        });
        let entry: Entry<Secret> = serde_json::from_slice(&plain.ok()?).ok()?;
        let known = |(name, id): (String, String)| Some((*NAMES.iter().find(|known| **known == name)?, id));
        let credential =
            Credential::new(entry.token, entry.issued_at, entry.expires_at, Duration::ZERO, entry.identity);
        Some(Credential {
            given: entry.given,
            minted_by: entry.minted_by,
            upstream: entry.upstream.into_iter().filter_map(known).collect(),
            origin: Origin::Replica,
            ..credential
        })
    }

    fn away(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.away_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A credential on its way to or from another replica.
#[derive(Serialize, Deserialize)]
struct Entry<T> {
    token: T,
    issued_at: SystemTime,
    expires_at: SystemTime,
    identity: CloudIdentity,
    given: Given,
    /// Replicas of an earlier version leave it out.
    #[serde(default)]
    minted_by: Uuid,
    /// A name of a newer version is left out.
    upstream: Vec<(String, String)>,
}

/// What a replica would refresh already is no refresh for another.
fn fresh(credential: &Credential, now: SystemTime) -> bool {
    let life = credential.expires_at.duration_since(credential.issued_at).unwrap_or_default();
    now < credential.issued_at + refresh_in(life, 1.0)
}

/// The identity of an entry, which its ciphertext is bound to.
fn row(key: &Key) -> String {
    format!("credential/{}", hex::encode(key))
}

fn count(outcome: &'static str) {
    metrics::counter!("carnet_shared_credentials_total", "outcome" => outcome).increment(1);
}

/// A mint with all its retries; the key of a replica that died meanwhile is free after this.
const HOLD: Duration = Duration::from_secs(20);

/// Longer than a mint takes when the cloud is well. A call that waited this long still has the time to mint.
const PATIENCE: Duration = Duration::from_secs(5);

/// A fraction of what a mint takes.
const POLL: Duration = Duration::from_millis(50);

/// A mint takes about as long: waiting longer for the sharing would cost more than it saves.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// So that a store which is away costs one call in a while, not each one, a second.
const LEFT_ALONE: Duration = Duration::from_secs(5);

const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// A shared store in memory that can stop answering.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Default)]
pub struct FakeSharedCredentials {
    entries: Mutex<std::collections::HashMap<Key, Vec<u8>>>,
    locks: Mutex<std::collections::HashMap<Key, (Uuid, Instant)>>,
    away: std::sync::atomic::AtomicBool,
    asked: std::sync::atomic::AtomicUsize,
}

#[cfg(any(test, feature = "testing"))]
impl FakeSharedCredentials {
    /// While it is, nothing is answered.
    pub fn is_away(&self, away: bool) {
        self.away.store(away, std::sync::atomic::Ordering::Relaxed);
    }

    pub fn asked(&self) -> usize {
        self.asked.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Every entry as it lies there.
    pub fn change(&self, mut change: impl FnMut(&mut Vec<u8>)) {
        self.entries().values_mut().for_each(&mut change);
    }

    pub fn len(&self) -> usize {
        self.entries().len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    async fn answer(&self) {
        self.asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if self.away.load(std::sync::atomic::Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(1)).await;
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<Key, Vec<u8>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locks(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<Key, (Uuid, Instant)>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free(&self, key: &Key, owner: Uuid) {
        self.locks().retain(|locked, (by, _until)| locked != key || *by != owner);
    }
}

#[cfg(any(test, feature = "testing"))]
#[async_trait::async_trait]
impl SharedCredentials for FakeSharedCredentials {
    async fn find(&self, key: &Key) -> Result<Option<Vec<u8>>, SharedError> {
        self.answer().await;
        Ok(self.entries().get(key).cloned())
    }

    async fn lock(&self, key: &Key, owner: Uuid, hold: Duration) -> Result<bool, SharedError> {
        self.answer().await;
        let (mut locks, now) = (self.locks(), Instant::now());
        let free = locks.get(key).is_none_or(|(_owner, until)| *until < now);
        if free {
            locks.insert(*key, (owner, now + hold));
        }
        Ok(free)
    }

    async fn put(&self, key: &Key, owner: Uuid, sealed: Vec<u8>, _expires_at: SystemTime) -> Result<(), SharedError> {
        self.answer().await;
        self.entries().insert(*key, sealed);
        self.free(key, owner);
        Ok(())
    }

    async fn unlock(&self, key: &Key, owner: Uuid) -> Result<(), SharedError> {
        self.answer().await;
        self.free(key, owner);
        Ok(())
    }

    async fn forget(&self, key: &Key) -> Result<(), SharedError> {
        self.answer().await;
        self.entries().remove(key);
        Ok(())
    }

    async fn sweep(&self) -> Result<(), SharedError> {
        self.answer().await;
        let now = Instant::now();
        self.locks().retain(|_key, (_owner, until)| *until >= now);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

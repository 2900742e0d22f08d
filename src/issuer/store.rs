//! Where keys are kept that nobody brought from outside. Declared by the issuer, fulfilled by a store.

use std::fmt;
use std::time::SystemTime;

use super::Algorithm;

/// Every replica reads and changes the same keys.
#[async_trait::async_trait]
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// All keys, those that sign first before those that sign later.
    async fn keys(&self) -> Result<Vec<StoredKey>, KeyStoreError>;

    /// Keeps `key`, if the last key of its algorithm is still `after` (`None`: it has no key). If not, another replica
    /// was faster: nothing happens, and the caller reads again.
    async fn add(&self, key: &StoredKey, after: Option<&str>) -> Result<(), KeyStoreError>;

    /// Forgets the key; one that is not there is forgotten already.
    async fn remove(&self, kid: &str) -> Result<(), KeyStoreError>;
}

/// A private key on its way to or from the store, which encrypts it. A store may keep times in whole milliseconds.
pub struct StoredKey {
    pub kid: String,
    pub algorithm: Algorithm,
    pub pkcs8: zeroize::Zeroizing<Vec<u8>>,
    pub created_at: SystemTime,
    pub signs_from: SystemTime,
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredKey({}, {})", self.kid, self.algorithm.as_str())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the issuer's keys cannot be {action}")]
pub struct KeyStoreError {
    pub action: &'static str,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Keys that end with the process. Clones share them, as replicas share a store.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Clone, Default)]
pub struct FakeKeyStore {
    keys: std::sync::Arc<std::sync::Mutex<Vec<StoredKey>>>,
    away: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

#[cfg(any(test, feature = "testing"))]
impl FakeKeyStore {
    /// While it is away, every call fails.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, std::sync::atomic::Ordering::Relaxed);
    }

    fn locked(&self) -> Result<std::sync::MutexGuard<'_, Vec<StoredKey>>, KeyStoreError> {
        if self.away.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(KeyStoreError { action: "reached", source: "the store is away".into() });
        }
        Ok(self.keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(any(test, feature = "testing"))]
fn copy(key: &StoredKey) -> StoredKey {
    StoredKey { kid: key.kid.clone(), pkcs8: key.pkcs8.clone(), ..*key }
}

#[cfg(any(test, feature = "testing"))]
#[async_trait::async_trait]
impl KeyStore for FakeKeyStore {
    async fn keys(&self) -> Result<Vec<StoredKey>, KeyStoreError> {
        Ok(self.locked()?.iter().map(copy).collect())
    }

    async fn add(&self, key: &StoredKey, after: Option<&str>) -> Result<(), KeyStoreError> {
        let mut keys = self.locked()?;
        let last = keys.iter().rfind(|other| other.algorithm == key.algorithm);
        if last.map(|last| last.kid.as_str()) == after {
            keys.push(copy(key));
            keys.sort_by_key(|key| key.signs_from);
        }
        Ok(())
    }

    async fn remove(&self, kid: &str) -> Result<(), KeyStoreError> {
        self.locked()?.retain(|key| key.kid != kid);
        Ok(())
    }
}

//! The keys of a store through their lives: made when they are due, and removed when nothing they signed is valid.

use std::sync::Arc;

use super::schedule::{Line, Turn};
use super::{Algorithm, KeyError, KeyStatus, KeyStore, KeyStoreError, Phase, Schedule, SigningKey, StoredKey};
use crate::clock::Clock;

/// Several replicas may do the same at the same time: the store keeps the key of the first.
#[derive(Debug)]
pub struct Rotation {
    store: Arc<dyn KeyStore>,
    schedule: Schedule,
    clock: Arc<dyn Clock>,
}

/// What came of asking for a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotated {
    Made(KeyStatus),
    /// A successor waits already.
    Waiting(KeyStatus),
}

/// Why the store's keys cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    #[error(transparent)]
    Store(#[from] KeyStoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the {} keys are being changed by others: try again", .0.as_str())]
    Contended(Algorithm),
}

impl Rotation {
    pub fn new(store: Arc<dyn KeyStore>, schedule: Schedule, clock: Arc<dyn Clock>) -> Self {
        Self { store, schedule, clock }
    }

    /// The store's keys. An algorithm without any gets its first, which signs at once.
    ///
    /// # Errors
    /// The store is away, or one of its keys cannot be decrypted.
    pub async fn keys(&self) -> Result<Vec<StoredKey>, RotationError> {
        let mut keys = self.store.keys().await?;
        for algorithm in Algorithm::ALL {
            if line(&keys, algorithm).last().is_none() {
                let first = self.generate(algorithm).await?;
                self.store.add(&first, None).await?;
                keys = self.store.keys().await?;
            }
        }
        Ok(keys)
    }

    /// Makes the successors that are due and removes what is withdrawn; the store's keys after that.
    ///
    /// # Errors
    /// As [`Self::keys`].
    pub async fn tend(&self) -> Result<Vec<StoredKey>, RotationError> {
        let keys = self.keys().await?;
        let mut changed = false;
        for algorithm in Algorithm::ALL {
            let line = line(&keys, algorithm);
            if line.is_due(self.schedule, self.clock.now()) {
                self.add_successor(algorithm, &line).await?;
                changed = true;
            }
            for key in line.withdrawn(self.clock.now()) {
                self.store.remove(&key.kid).await?;
                changed = true;
            }
        }
        if changed { Ok(self.store.keys().await?) } else { Ok(keys) }
    }

    /// Makes a successor before it is due; it signs after `publish_ahead`.
    ///
    /// # Errors
    /// As [`Self::keys`], or others change the keys without end.
    pub async fn rotate(&self, algorithm: Algorithm) -> Result<Rotated, RotationError> {
        let mut made = None;
        for _attempt in 0..ATTEMPTS {
            let keys = self.keys().await?;
            let status = self.status_of(&keys);
            let waiting = status.into_iter().find(|key| key.algorithm == algorithm && key.phase == Phase::Next);
            if let Some(next) = waiting {
                let own = made.is_some_and(|kid| kid == next.kid);
                return Ok(if own { Rotated::Made(next) } else { Rotated::Waiting(next) });
            }
            let line = line(&keys, algorithm);
            let key = self.generate(algorithm).await?;
            let key = StoredKey { signs_from: self.clock.now() + self.schedule.publish_ahead, ..key };
            self.store.add(&key, line.last().map(|last| last.kid.as_str())).await?;
            made = Some(key.kid);
        }
        Err(RotationError::Contended(algorithm))
    }

    /// For a key that leaked: a new one signs at once, and all others of the algorithm are gone at once.
    ///
    /// # Errors
    /// As [`Self::rotate`].
    pub async fn replace(&self, algorithm: Algorithm) -> Result<KeyStatus, RotationError> {
        for _attempt in 0..ATTEMPTS {
            let before = self.keys().await?;
            let line = line(&before, algorithm);
            let key = self.generate(algorithm).await?;
            self.store.add(&key, line.last().map(|last| last.kid.as_str())).await?;
            if self.store.keys().await?.iter().all(|kept| kept.kid != key.kid) {
                continue;
            }
            for old in line.keys() {
                self.store.remove(&old.kid).await?;
            }
            let status = self.status().await?;
            if let Some(status) = status.into_iter().find(|status| status.kid == key.kid) {
                return Ok(status);
            }
        }
        Err(RotationError::Contended(algorithm))
    }

    /// What every key of the store is for now.
    ///
    /// # Errors
    /// As [`Self::keys`].
    pub async fn status(&self) -> Result<Vec<KeyStatus>, RotationError> {
        Ok(self.status_of(&self.keys().await?))
    }

    fn status_of(&self, keys: &[StoredKey]) -> Vec<KeyStatus> {
        let now = self.clock.now();
        let lines = Algorithm::ALL.map(|algorithm| line(keys, algorithm));
        let all = lines.iter().flat_map(|line| line.phases(now));
        all.map(|(turn, phase, withdrawn_after)| KeyStatus {
            kid: turn.key.kid.clone(),
            algorithm: turn.key.algorithm,
            phase,
            created_at: Some(turn.key.created_at),
            signs_from: Some(turn.signs_from),
            withdrawn_after,
        })
        .collect()
    }

    async fn add_successor(&self, algorithm: Algorithm, line: &Line<&StoredKey>) -> Result<(), RotationError> {
        let key = self.generate(algorithm).await?;
        let signs_from = line.successor_signs_from(self.schedule, self.clock.now());
        let key = StoredKey { signs_from, ..key };
        Ok(self.store.add(&key, line.last().map(|last| last.kid.as_str())).await?)
    }

    /// A key that signs at once. RSA takes half a second of one core.
    async fn generate(&self, algorithm: Algorithm) -> Result<StoredKey, RotationError> {
        let now = self.clock.now();
        let made = tokio::task::spawn_blocking(move || SigningKey::generate(algorithm, now)).await;
        Ok(made.map_err(|_panic| KeyError::Generate)??)
    }
}

fn line(keys: &[StoredKey], algorithm: Algorithm) -> Line<&StoredKey> {
    let of_it = keys.iter().filter(|key| key.algorithm == algorithm);
    Line::new(of_it.map(|key| Turn { key, signs_from: key.signs_from }).collect())
}

/// Whoever loses a race this often has met more than a few replicas.
const ATTEMPTS: usize = 5;

#[cfg(test)]
mod tests;

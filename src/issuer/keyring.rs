//! The keys that an issuer knows at one moment: replaced as a whole, read once a signature.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use super::schedule::{Line, Phase, Turn};
use super::{Algorithm, KeyError, SigningKey, StoredKey};

/// Has a key of each algorithm. Key pairs are parsed once.
pub struct Keyring {
    /// Signs for Google: ES256 costs an eighteenth of RS256.
    es256: Line<Arc<SigningKey>>,
    /// Signs for Entra, which accepts nothing else.
    rs256: Line<Arc<SigningKey>>,
    /// Published and never signing.
    others: Vec<Arc<SigningKey>>,
}

/// A key as operators see it. Times are known of the keys of a store only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    pub kid: String,
    pub algorithm: Algorithm,
    pub phase: Phase,
    pub created_at: Option<SystemTime>,
    pub signs_from: Option<SystemTime>,
    pub withdrawn_after: Option<SystemTime>,
}

/// Why keys make no ring.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("there is no {} key: Google is shown ES256, Entra RS256", .0.as_str())]
    Missing(Algorithm),
    #[error("key {kid}")]
    Key { kid: String, source: KeyError },
}

impl Keyring {
    /// Keys whose order somebody chose: the first of each algorithm signs, all are published.
    ///
    /// # Errors
    /// The algorithm of which there is no key.
    pub fn brought(keys: Vec<SigningKey>) -> Result<Self, KeyringError> {
        let mut others: Vec<Arc<SigningKey>> = Vec::new();
        for key in keys {
            // The same key may be in two files for a while.
            if others.iter().all(|other| other.kid() != key.kid()) {
                others.push(Arc::new(key));
            }
        }
        let mut first = |algorithm| {
            let at = others.iter().position(|key| key.algorithm() == algorithm);
            let key = others.remove(at.ok_or(KeyringError::Missing(algorithm))?);
            Ok::<_, KeyringError>(Line::new(vec![Turn { key, signs_from: SystemTime::UNIX_EPOCH }]))
        };
        let (es256, rs256) = (first(Algorithm::Es256)?, first(Algorithm::Rs256)?);
        Ok(Self { es256, rs256, others })
    }

    /// The keys of a store. `known` spares the parsing of those that it holds.
    ///
    /// # Errors
    /// The key that cannot be used, or the algorithm of which there is none.
    pub fn stored(keys: &[StoredKey], known: Option<&Self>) -> Result<Self, KeyringError> {
        let parsed = |stored: &StoredKey| {
            if let Some(key) = known.and_then(|known| known.all().find(|key| key.kid() == stored.kid)) {
                return Ok(key.clone());
            }
            let failed = |source| KeyringError::Key { kid: stored.kid.clone(), source };
            SigningKey::from_pkcs8(&stored.pkcs8).map(Arc::new).map_err(failed)
        };
        let line = |algorithm| {
            let turn = |stored: &StoredKey| Ok(Turn { key: parsed(stored)?, signs_from: stored.signs_from });
            let turns = keys.iter().filter(|key| key.algorithm == algorithm).map(turn);
            let turns: Vec<_> = turns.collect::<Result<_, KeyringError>>()?;
            if turns.is_empty() { Err(KeyringError::Missing(algorithm)) } else { Ok(Line::new(turns)) }
        };
        Ok(Self { es256: line(Algorithm::Es256)?, rs256: line(Algorithm::Rs256)?, others: Vec::new() })
    }

    pub fn signing(&self, algorithm: Algorithm, now: SystemTime) -> Option<&SigningKey> {
        self.line(algorithm).signing(now).map(|turn| turn.key.as_ref())
    }

    /// Since when the signing key has signed; 1970 for keys that were brought.
    pub fn signing_since(&self, algorithm: Algorithm, now: SystemTime) -> Option<SystemTime> {
        self.line(algorithm).signing(now).map(|turn| turn.signs_from)
    }

    /// What relying parties should know.
    pub fn published(&self, now: SystemTime) -> impl Iterator<Item = &SigningKey> {
        let lines = Algorithm::ALL.into_iter().flat_map(move |algorithm| self.line(algorithm).published(now));
        lines.chain(&self.others).map(Arc::as_ref)
    }

    /// What every key is for; without times, which the store knows.
    pub fn status(&self, now: SystemTime) -> Vec<KeyStatus> {
        let status = |key: &SigningKey, phase| KeyStatus {
            kid: key.kid().to_owned(),
            algorithm: key.algorithm(),
            phase,
            created_at: None,
            signs_from: None,
            withdrawn_after: None,
        };
        let lines = Algorithm::ALL.into_iter().flat_map(|algorithm| self.line(algorithm).phases(now));
        let in_line = lines.map(|(turn, phase, _after)| status(&turn.key, phase));
        in_line.chain(self.others.iter().map(|key| status(key, Phase::Next))).collect()
    }

    fn line(&self, algorithm: Algorithm) -> &Line<Arc<SigningKey>> {
        match algorithm {
            Algorithm::Es256 => &self.es256,
            Algorithm::Rs256 => &self.rs256,
        }
    }

    pub(super) fn es256(&self) -> &Line<Arc<SigningKey>> {
        &self.es256
    }

    /// Of no line.
    pub(super) fn others(&self) -> impl Iterator<Item = &SigningKey> {
        self.others.iter().map(Arc::as_ref)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<SigningKey>> {
        self.es256.keys().chain(self.rs256.keys()).chain(&self.others)
    }

    /// Their public parts, with the fields that Google takes in an uploaded set (RFC 7517).
    pub(super) fn jwks(&self, now: SystemTime) -> Vec<Value> {
        self.published(now).map(SigningKey::jwk).collect()
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}

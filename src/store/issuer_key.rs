//! The issuer's private keys as a store keeps them: sealed, each for its own row.

use crate::clock::{from_unix_milliseconds, unix_milliseconds};
use crate::issuer::{Algorithm, StoredKey};
use crate::secret::{SealError, SealingKeys};

/// A key as columns. Times are milliseconds since 1970.
pub(super) struct KeyRow {
    pub kid: String,
    pub algorithm: String,
    pub created_ms: i64,
    pub signs_from_ms: i64,
    pub sealed: Vec<u8>,
}

/// Why a key cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyRowError {
    #[error("issuer key {kid}")]
    Seal { kid: String, source: SealError },
    #[error("issuer key {0} is for an unknown algorithm")]
    Algorithm(String),
}

impl KeyRow {
    pub fn seal(sealing: &SealingKeys, key: &StoredKey) -> Result<Self, KeyRowError> {
        let unsealed = |source| KeyRowError::Seal { kid: key.kid.clone(), source };
        Ok(Self {
            kid: key.kid.clone(),
            algorithm: key.algorithm.as_str().to_owned(),
            created_ms: unix_milliseconds(key.created_at),
            signs_from_ms: unix_milliseconds(key.signs_from),
            sealed: sealing.seal(&key.pkcs8, &row(&key.kid)).map_err(unsealed)?,
        })
    }

    pub fn unseal(self, sealing: &SealingKeys) -> Result<StoredKey, KeyRowError> {
        let Self { kid, algorithm, created_ms, signs_from_ms, sealed } = self;
        let known = Algorithm::ALL.into_iter().find(|known| known.as_str() == algorithm);
        let algorithm = known.ok_or_else(|| KeyRowError::Algorithm(kid.clone()))?;
        let pkcs8 = sealing.open(&sealed, &row(&kid));
        let pkcs8 = pkcs8.map_err(|source| KeyRowError::Seal { kid: kid.clone(), source })?;
        let (created_at, signs_from) = (from_unix_milliseconds(created_ms), from_unix_milliseconds(signs_from_ms));
        Ok(StoredKey { kid, algorithm, pkcs8, created_at, signs_from })
    }
}

/// What takes the place of `sealed`, where an older key had sealed it. A row that nothing opens stays as it is: reading
/// it says so.
pub(super) fn renewed(sealing: &SealingKeys, kid: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    sealing.renewed(sealed, &row(kid)).ok().flatten()
}

/// The identity of a key's row, which its ciphertext is bound to.
pub(super) fn row(kid: &str) -> String {
    format!("issuer_key/{kid}")
}

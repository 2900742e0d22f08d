//! The issuer's private keys as a store keeps them: sealed, each for its own row.

use crate::issuer::{Algorithm, StoredKey};
use crate::secret::{SealError, SealingKeys};

/// Why a key cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError {
    #[error("issuer key {kid}")]
    Seal { kid: String, source: SealError },
    #[error("issuer key {0} is for an unknown algorithm")]
    Algorithm(String),
}

pub(super) fn seal(sealing: &SealingKeys, key: &StoredKey) -> Result<Vec<u8>, RowError> {
    let unsealed = |source| RowError::Seal { kid: key.kid.clone(), source };
    sealing.seal(&key.pkcs8, &row(&key.kid)).map_err(unsealed)
}

pub(super) fn unseal(
    sealing: &SealingKeys,
    kid: String,
    algorithm: &str,
    sealed: &[u8],
) -> Result<StoredKey, RowError> {
    let known = [Algorithm::Es256, Algorithm::Rs256].into_iter().find(|known| known.as_str() == algorithm);
    let algorithm = known.ok_or_else(|| RowError::Algorithm(kid.clone()))?;
    let pkcs8 = sealing.open(sealed, &row(&kid)).map_err(|source| RowError::Seal { kid: kid.clone(), source })?;
    Ok(StoredKey { kid, algorithm, pkcs8 })
}

/// What takes the place of `sealed`, where an older key had sealed it. A row that nothing opens stays as it is: reading
/// it says so.
pub(super) fn renewed(sealing: &SealingKeys, kid: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    sealing.renewed(sealed, &row(kid)).ok().flatten()
}

/// The identity of a key's row, which its ciphertext is bound to.
fn row(kid: &str) -> String {
    format!("issuer_key/{kid}")
}

//! A store looked at from beside the broker: nothing is made, migrated or left in it.

use std::sync::Arc;

use super::StoreSettings;
use super::{postgres, sqlite};
use crate::issuer::StoredKey;
use crate::secret::SealingKeys;

/// What a look found.
#[derive(Debug)]
pub struct Look {
    /// Its name, without a password.
    pub store: String,
    /// Version of its tables, and the version that this program knows.
    pub schema: (i64, i64),
    /// Whether it takes a record: one is written and taken back.
    pub written: Result<(), LookError>,
    /// The issuer's keys, where `sealing` opens them.
    pub keys: Result<Vec<StoredKey>, LookError>,
    /// Of a file: bytes that are left on its disk.
    pub free_bytes: Option<u64>,
    /// Of a file: its permissions, where others than its owner have any.
    pub loose_mode: Option<u32>,
}

/// Why something in a store cannot be seen or done.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error("{0} does not exist yet: the broker makes it when it first starts")]
    Missing(String),
    #[error("{store} does not open")]
    Open { store: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("it takes no records")]
    Write(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the store key does not open the issuer's keys")]
    Sealed(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the issuer's keys cannot be read")]
    Keys(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Looks at the store of `settings`, beside a broker that uses it or not.
///
/// # Errors
/// It is not there, or does not answer.
pub async fn look(settings: &StoreSettings, sealing: Arc<SealingKeys>) -> Result<Look, LookError> {
    match settings {
        StoreSettings::Sqlite(path) => {
            let (path, shown) = (path.clone(), path.display().to_string());
            let look = tokio::task::spawn_blocking(move || sqlite::look(&path, &sealing)).await;
            look.unwrap_or_else(|panicked| Err(LookError::Open { store: shown, source: panicked.into() }))
        }
        StoreSettings::Postgres { settings, spool: _ } => postgres::look(settings, &sealing).await,
    }
}

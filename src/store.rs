//! What outlives the process: audit records, leases and the issuer's keys.

mod lease;
mod record;
mod sqlite;

pub use sqlite::SqliteStore;

use std::path::PathBuf;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot open the store {path}")]
    Open { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the store {path} has schema version {found}, this program knows {known}: use a newer carnet")]
    Newer { path: PathBuf, found: i64, known: i64 },
}

//! The records that are committed together, with their place in the chain.

use std::sync::Arc;

use uuid::Uuid;

use crate::subject::Facts;

/// One row of a store.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// `None` for records that are older than the chain.
    pub chain: Option<Uuid>,
    /// Of the first record.
    pub position: u64,
    pub records: u64,
    /// Milliseconds since 1970 of the newest record.
    pub newest_ms: i64,
    /// Holds nothing but records of the log about itself.
    pub own: bool,
    /// 32 bytes for each record.
    pub hashes: Vec<u8>,
    /// Each record, as the contract's `AuditRecord`, with its length before it.
    pub bytes: Vec<u8>,
    /// Tokens that leave for the first time, each once.
    pub tokens: Vec<[u8; 32]>,
    /// Facts that records of this group refer to and the store may not have, in the order of their digests.
    pub identities: Vec<Arc<Facts>>,
    /// The records as they came, for a log that keeps them.
    #[cfg(any(test, feature = "testing"))]
    pub sealed: Vec<super::AuditRecord>,
}

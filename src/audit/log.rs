//! Where records go: the port that a store fulfils.

use std::fmt;

use uuid::Uuid;

use super::{AuditError, Checkpoint, Group, Head, Issued, Reach};

/// Where records go. Declared by the stage, fulfilled by a store.
#[async_trait::async_trait]
pub trait AuditLog: fmt::Debug + Send + Sync {
    /// Keeps all of `group` or none of it; returns once it would survive a power failure. A group that is there already,
    /// by its chain and position, stays as it is.
    async fn append(&self, group: Group) -> Result<(), AuditError>;

    /// The last records of the chains that are in the log: of those that were written last, at most `most`.
    async fn heads(&self, most: u32) -> Result<Vec<Head>, AuditError>;

    /// How many records are older than the chain; there never are more of them again.
    async fn unchained(&self) -> Result<u64, AuditError>;

    /// The record under which the token with this digest was first handed out.
    async fn find_issued(&self, token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError>;

    /// Keeps `checkpoint`; of those of the same hour, a chain needs the last one only.
    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Kept, AuditError>;

    /// Drops what `expired` names: groups up to the ends of its spans, whose checkpoints stay as long again, and what else
    /// is older than its times. Returns how many records.
    async fn prune(&self, expired: &Expired) -> Result<u64, AuditError>;

    /// Whether it can be written, by writing.
    async fn probe(&self) -> Result<(), AuditError>;
}

/// Whether a checkpoint was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Yes,
    /// Records that it covers are not in the log yet.
    NotYet,
}

/// What is past its retention.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// The time from which it was counted: milliseconds since 1970, as below.
    pub reference_ms: i64,
    /// What is earlier is past it.
    pub before_ms: i64,
    /// Chains, each up to a checkpoint that is past it.
    pub spans: Vec<Head>,
    /// Chains that are past it as a whole, and whose last record no checkpoint covers.
    pub tails: Vec<Reach>,
}

/// What the log knows of a token that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOut {
    pub exchange_id: Uuid,
    /// To whom it was handed first.
    pub subject: String,
    pub target: String,
    pub issued: Issued,
}

/// An audit log in memory that can be told to fail or to be slow.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Default)]
pub struct FakeAuditLog {
    groups: std::sync::Mutex<Vec<Group>>,
    checkpoints: std::sync::Mutex<Vec<Checkpoint>>,
    failing: std::sync::atomic::AtomicBool,
}

#[cfg(any(test, feature = "testing"))]
impl FakeAuditLog {
    pub fn fails(&self, failing: bool) {
        self.failing.store(failing, std::sync::atomic::Ordering::Relaxed);
    }

    pub fn groups(&self) -> Vec<Group> {
        self.groups.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub fn checkpoints(&self) -> Vec<Checkpoint> {
        self.checkpoints.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Without those of the log about itself.
    pub fn records(&self) -> Vec<super::AuditRecord> {
        let records = self.groups().into_iter().flat_map(|group| group.sealed);
        records.filter(|record| !super::is_own(record.action)).collect()
    }
}

#[cfg(any(test, feature = "testing"))]
#[async_trait::async_trait]
impl AuditLog for FakeAuditLog {
    async fn append(&self, group: Group) -> Result<(), AuditError> {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        if self.failing.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(AuditError::Write(std::sync::Arc::new(std::io::Error::other("disk full"))));
        }
        self.groups.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(group);
        Ok(())
    }

    async fn heads(&self, _most: u32) -> Result<Vec<Head>, AuditError> {
        if self.failing.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(AuditError::Read(std::sync::Arc::new(std::io::Error::other("disk failing"))));
        }
        let mut heads: Vec<Head> = Vec::new();
        for group in self.groups() {
            let hash = group.hashes.last_chunk().copied();
            if let (Some(chain), Some(hash)) = (group.chain, hash) {
                heads.retain(|head| head.chain != chain);
                heads.push(Head { chain, position: group.position + group.records - 1, hash });
            }
        }
        Ok(heads)
    }

    async fn unchained(&self) -> Result<u64, AuditError> {
        Ok(0)
    }

    async fn find_issued(&self, token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError> {
        let hand_out = |record: super::AuditRecord| {
            let issued = record.issued.filter(|issued| issued.first && issued.token_sha256 == *token_sha256)?;
            Some(HandOut { exchange_id: record.exchange_id, subject: record.subject, target: record.target, issued })
        };
        Ok(self.records().into_iter().find_map(hand_out))
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Kept, AuditError> {
        self.checkpoints.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(checkpoint);
        Ok(Kept::Yes)
    }

    async fn prune(&self, _expired: &Expired) -> Result<u64, AuditError> {
        Ok(0)
    }

    async fn probe(&self) -> Result<(), AuditError> {
        match self.failing.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(AuditError::Write(std::sync::Arc::new(std::io::Error::other("disk full")))),
            false => Ok(()),
        }
    }
}

/// Nobody looks at it as a reader does, but for hashes: it seems to be empty.
#[cfg(any(test, feature = "testing"))]
#[async_trait::async_trait]
impl super::AuditReader for FakeAuditLog {
    async fn newest_first(
        &self,
        _window: super::Window,
        _behind: Option<super::Place>,
        _most: u64,
    ) -> Result<Vec<(super::Place, Group)>, AuditError> {
        Ok(Vec::new())
    }

    async fn onwards(&self, _chain: Uuid, _position: u64, _most: u64) -> Result<Vec<Group>, AuditError> {
        Ok(Vec::new())
    }

    async fn chains(&self) -> Result<Vec<super::Extent>, AuditError> {
        Ok(Vec::new())
    }

    async fn rows(&self, _chain: Uuid, _behind: (u64, i64), _most: u64) -> Result<Vec<(i64, Group)>, AuditError> {
        Ok(Vec::new())
    }

    async fn hashes(&self, chain: Uuid, position: u64) -> Result<Option<(u64, Vec<u8>)>, AuditError> {
        let before = |group: &Group| group.chain == Some(chain) && group.position <= position;
        let group = self.groups().into_iter().rfind(before);
        Ok(group.map(|group| (group.position, group.hashes)))
    }

    async fn unchained(&self) -> Result<(u64, i64), AuditError> {
        Ok((0, 0))
    }

    async fn checkpoints(&self, _behind: (Uuid, u64), _most: u32) -> Result<Vec<Checkpoint>, AuditError> {
        Ok(Vec::new())
    }

    async fn facts(&self, _digest: &[u8; 32]) -> Result<Option<String>, AuditError> {
        Ok(None)
    }

    async fn fact_sets(&self, _behind: &[u8], _most: u32) -> Result<Vec<(Vec<u8>, String)>, AuditError> {
        Ok(Vec::new())
    }

    async fn has_token(&self, _token_sha256: &[u8; 32]) -> Result<bool, AuditError> {
        Ok(false)
    }

    async fn found_by_tokens(&self, _behind: i64, _most: u32) -> Result<Option<(i64, u64)>, AuditError> {
        Ok(None)
    }

    async fn last_of_others(&self) -> Result<Option<Group>, AuditError> {
        Ok(None)
    }
}

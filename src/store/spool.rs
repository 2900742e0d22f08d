//! Audit records while PostgreSQL is away: on the broker's own disk before the reply, in PostgreSQL when it is back.

use std::error::Error;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{OpenError, PostgresStore, SqliteStore};
use crate::audit::{AuditError, AuditLog, Checkpoint, Expired, Group, HandOut, Head, Kept};
use crate::secret::SealingKeys;

/// The cluster's log, with a file beside it. A record is in one of them before its exchange is answered; after an answer
/// of PostgreSQL that was lost it may be in both, and is in the log once when the file is empty again: its place in its
/// chain is taken already.
#[derive(Debug)]
pub struct SpooledLog {
    log: Arc<PostgresStore>,
    spool: SqliteStore,
    /// Held for life: two brokers on one file would each move what the other one is moving.
    _lock: File,
    /// The last move failed, and the log says so.
    waits: AtomicBool,
    /// Until when the log is not asked, because it did not answer.
    left_alone: Mutex<Option<Instant>>,
}

impl SpooledLog {
    pub fn open(log: Arc<PostgresStore>, path: &Path, sealing: Arc<SealingKeys>) -> Result<Self, OpenError> {
        let lock = lock(path)?;
        let spool = SqliteStore::open(path, sealing)?;
        Ok(Self { log, spool, _lock: lock, waits: AtomicBool::new(false), left_alone: Mutex::default() })
    }

    /// Moves what the file holds into the log, for as long as the broker runs.
    pub async fn keep_empty(self: Arc<Self>) {
        loop {
            self.empty_once().await;
            sleep(MOVE_EVERY).await;
        }
    }

    /// Moves what the file holds into the log once more, as far as that goes in a moment: perhaps nobody opens this
    /// file again.
    pub async fn leave_empty(&self) {
        if timeout(FAREWELL, self.empty_once()).await.is_err() {
            tracing::warn!("PostgreSQL does not answer: audit records may be left in the spool");
        }
    }

    async fn empty_once(&self) {
        let moved = self.empty().await;
        if let Ok(waiting) = self.spool.groups(COUNTED).await {
            metrics::gauge!("carnet_audit_spooled_groups").set(f64::from(waiting));
        }
        let waited = self.waits.swap(moved.is_err(), Ordering::Relaxed);
        if let Err(error) = moved
            && !waited
        {
            tracing::warn!(error = &error as &dyn Error, "audit records wait in the spool");
        }
    }

    async fn empty(&self) -> Result<(), AuditError> {
        let mut moved = 0;
        while let Some((sequence, group)) = self.spool.oldest_group().await? {
            self.log.append_group(&group).await?;
            self.spool.drop_group(sequence, group.identities).await?;
            moved += group.records;
        }
        if moved > 0 {
            tracing::info!(records = moved, "{moved} audit records of an outage are in the log now");
        }
        Ok(())
    }

    fn is_left_alone(&self) -> bool {
        let left_alone = self.left_alone.lock().unwrap_or_else(PoisonError::into_inner);
        left_alone.is_some_and(|until| Instant::now() < until)
    }

    fn leave_alone(&self, until: Option<Instant>) {
        *self.left_alone.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

#[async_trait::async_trait]
impl AuditLog for SpooledLog {
    async fn append(&self, group: Group) -> Result<(), AuditError> {
        if !self.is_left_alone() {
            match timeout(PATIENCE, self.log.append_group(&group)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => {
                    tracing::error!(error = &error as &dyn Error, "audit records go to the spool")
                }
                Err(_elapsed) => tracing::error!("PostgreSQL does not answer: audit records go to the spool"),
            }
            self.leave_alone(Some(Instant::now() + LEAVE_ALONE));
        }
        self.spool.append_group(group).await
    }

    /// Of the cluster's log: a chain of which everything waits in the file is named by none.
    async fn heads(&self, most: u32) -> Result<Vec<Head>, AuditError> {
        match timeout(PATIENCE, self.log.heads(most)).await {
            Ok(heads) => heads,
            Err(_elapsed) => Err(AuditError::Slow),
        }
    }

    async fn unchained(&self) -> Result<u64, AuditError> {
        match timeout(PATIENCE, self.log.unchained()).await {
            Ok(unchained) => unchained,
            Err(_elapsed) => Err(AuditError::Slow),
        }
    }

    async fn find_issued(&self, token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError> {
        // In this order: a group is in the log before it leaves the spool.
        let spooled = self.spool.find_issued(token_sha256).await;
        if let Ok(Some(_)) = spooled {
            return spooled;
        }
        // An error is no "there is none": the token may be one that was handed out.
        match self.log.find_issued(token_sha256).await {
            Ok(None) => spooled,
            found => found,
        }
    }

    /// Nothing is said of records that the log does not have.
    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Kept, AuditError> {
        match self.spool.groups(1).await? {
            0 => self.log.checkpoint(checkpoint).await,
            _ => Ok(Kept::NotYet),
        }
    }

    async fn prune(&self, expired: &Expired) -> Result<u64, AuditError> {
        self.log.prune(expired).await
    }

    async fn probe(&self) -> Result<(), AuditError> {
        self.spool.probe().await
    }
}

/// A file beside the spool, because SQLite locks the spool itself; the system lets go of it with the process.
fn lock(path: &Path) -> Result<File, OpenError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let failed = |source: Box<dyn Error + Send + Sync>| OpenError::Open { store: path.display().to_string(), source };
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(beside);
    let file = file.map_err(|error| failed(error.into()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(failed("another broker has it for its spool: give each broker a file of its own (audit.spool)".into()))
        }
        Err(TryLockError::Error(error)) => Err(failed(error.into())),
    }
}

/// An exchange is not held up for longer than this by a database that is away.
const PATIENCE: Duration = Duration::from_secs(1);

const LEAVE_ALONE: Duration = Duration::from_secs(5);

const MOVE_EVERY: Duration = Duration::from_secs(2);

/// Within the time that the last records have.
const FAREWELL: Duration = Duration::from_secs(1);

/// Of groups that wait, no more are counted.
const COUNTED: u32 = 10_000;

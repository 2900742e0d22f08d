//! Audit records while PostgreSQL is away: on the broker's own disk before the reply, in PostgreSQL when it is back.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, timeout};

use super::record::Group;
use super::{OpenError, PostgresStore, SqliteStore};
use crate::audit::{AuditError, AuditLog, AuditRecord, HandOut};
use crate::secret::SealingKeys;

/// The cluster's log, with a file beside it. A record is in one of them before its exchange is answered; after an answer
/// of PostgreSQL that was lost it may be in both, and is then in the log twice.
#[derive(Debug)]
pub struct SpooledLog {
    log: Arc<PostgresStore>,
    spool: SqliteStore,
    /// Until when the log is not asked, because it did not answer.
    left_alone: Mutex<Option<Instant>>,
}

impl SpooledLog {
    pub fn open(log: Arc<PostgresStore>, path: &Path, sealing: Arc<SealingKeys>) -> Result<Self, OpenError> {
        Ok(Self { log, spool: SqliteStore::open(path, sealing)?, left_alone: Mutex::default() })
    }

    /// Moves what the file holds into the log, for as long as the broker runs.
    pub async fn keep_empty(self: Arc<Self>) {
        loop {
            sleep(MOVE_EVERY).await;
            if let Err(error) = self.empty().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "audit records wait in the spool");
            }
        }
    }

    async fn empty(&self) -> Result<(), AuditError> {
        let mut moved = 0;
        while let Some((sequence, group)) = self.spool.oldest_group().await? {
            self.log.append_group(&group).await?;
            self.spool.drop_group(sequence).await?;
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
    async fn append(&self, group: Vec<AuditRecord>) -> Result<(), AuditError> {
        let group = Group::encode(&group);
        if !self.is_left_alone() {
            match timeout(PATIENCE, self.log.append_group(&group)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "audit records go to the spool")
                }
                Err(_elapsed) => tracing::error!("PostgreSQL does not answer: audit records go to the spool"),
            }
            self.leave_alone(Some(Instant::now() + LEAVE_ALONE));
        }
        self.spool.append_group(group).await
    }

    async fn find_issued(&self, token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError> {
        match self.log.find_issued(token_sha256).await {
            Ok(None) | Err(_) => self.spool.find_issued(token_sha256).await,
            found => found,
        }
    }

    async fn prune(&self, now: SystemTime, retention: Duration) -> Result<usize, AuditError> {
        self.log.prune(now, retention).await
    }

    async fn probe(&self) -> Result<(), AuditError> {
        self.spool.probe().await
    }
}

/// An exchange is not held up for longer than this by a database that is away.
const PATIENCE: Duration = Duration::from_secs(1);

const LEAVE_ALONE: Duration = Duration::from_secs(5);

const MOVE_EVERY: Duration = Duration::from_secs(2);

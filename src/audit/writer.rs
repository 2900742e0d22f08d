//! The one task that writes: it gathers the records of concurrent exchanges into groups and links them to its chain.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::progress::Progress;
use super::remembered::Remembered;
use super::{AuditError, AuditLog, AuditRecord, Chain, DEADLINE, Head, RESUME, START};
use crate::clock::Clock;
use crate::telemetry::Causes;

/// What one exchange has to record.
#[derive(Debug)]
pub(super) struct Entry {
    pub records: Vec<AuditRecord>,
    pub queued: Instant,
    pub written: oneshot::Sender<Result<(), AuditError>>,
}

#[derive(Debug)]
pub(super) struct Writer {
    log: Arc<dyn AuditLog>,
    clock: Arc<dyn Clock>,
    /// Whether the last write succeeded.
    well: watch::Sender<bool>,
    progress: Arc<Progress>,
    chain: Chain,
    /// The first record of this life is in the log.
    started: bool,
    /// As far as `chain` is in the log for certain.
    durable: Option<Head>,
    /// Of other chains, as the log had them at the start, and of this writer's own that have ended.
    known: Vec<Head>,
    /// Records of before the chain, as the log had them at the start.
    unchained: Option<u64>,
    /// Why the log's chains are not known.
    unread: Option<AuditError>,
    remembered: Remembered,
}

impl Writer {
    pub fn new(
        log: Arc<dyn AuditLog>,
        clock: Arc<dyn Clock>,
        well: watch::Sender<bool>,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            log,
            clock,
            well,
            progress,
            chain: Chain::new(Uuid::now_v7()),
            started: false,
            durable: None,
            known: Vec::new(),
            unchained: None,
            unread: None,
            remembered: Remembered::default(),
        }
    }

    /// While one group is being written, the next gathers by itself: no timer, no delay for a lone record.
    pub async fn write(mut self, mut entries: mpsc::Receiver<Entry>) {
        self.begin().await;
        let mut gathered = Vec::with_capacity(GROUP);
        while let Some(first) = entries.recv().await {
            let queued = first.queued;
            gathered.push(first);
            // Whoever else is about to record comes first, as long as there are some: one flush for all of them.
            for _turn in 0..TURNS {
                tokio::task::yield_now().await;
                let before = gathered.len();
                while gathered.len() < GROUP
                    && let Ok(next) = entries.try_recv()
                {
                    gathered.push(next);
                }
                if gathered.len() == before {
                    break;
                }
            }
            let mut records = Vec::with_capacity(gathered.len() + 1);
            let mut waiting = Vec::with_capacity(gathered.len());
            for entry in gathered.drain(..) {
                records.extend(entry.records);
                waiting.push(entry.written);
            }
            // One deadline for all: that of the first of them.
            let result = self.append(records, queued + DEADLINE).await;
            for written in waiting {
                // A caller that gave up does not change what is in the log.
                let _ = written.send(result.clone());
            }
        }
    }

    /// Puts the broker's start on record before anybody asks for anything. Where that fails, it goes with the first group.
    async fn begin(&mut self) {
        match timeout_at(Instant::now() + DEADLINE, self.log.heads(MOST_HEADS)).await {
            Ok(Ok(heads)) => {
                self.progress.named(&heads);
                self.known = heads;
            }
            Ok(Err(error)) => self.unread = Some(error),
            Err(_elapsed) => self.unread = Some(AuditError::Slow),
        }
        if self.unread.is_none() {
            let counted = timeout_at(Instant::now() + DEADLINE, self.log.unchained()).await;
            self.unchained = counted.ok().and_then(Result::ok);
        }
        if let Some(error) = &self.unread {
            tracing::warn!(error = %Causes(error), "the chains of the audit log cannot be read: the new one names none of them");
        }
        // It is logged where it fails.
        let _ = self.append(Vec::new(), Instant::now() + DEADLINE).await;
    }

    async fn append(&mut self, mut records: Vec<AuditRecord>, deadline: Instant) -> Result<(), AuditError> {
        if self.chain.head().is_none() {
            records.insert(0, self.beginning());
        }
        let (size, started, now) = (records.len(), Instant::now(), self.clock.now());
        let facts = self.remembered.missing(&records, now);
        let new: Vec<[u8; 32]> = facts.iter().map(|facts| facts.digest).collect();
        let group = self.chain.seal(records, facts);
        let (newest_ms, own) = (group.newest_ms, group.own);
        let result = timeout_at(deadline, self.log.append(group)).await.unwrap_or(Err(AuditError::Slow));
        metrics::histogram!("carnet_audit_group_records").record(size as f64);
        metrics::histogram!("carnet_audit_write_seconds").record(started.elapsed());
        self.well.send_if_modified(|well| std::mem::replace(well, result.is_ok()) != result.is_ok());
        match &result {
            Ok(()) => {
                self.started = true;
                self.durable = self.chain.head();
                if let Some(head) = self.durable {
                    self.progress.written(head, newest_ms);
                    if !own {
                        self.progress.others_written(newest_ms);
                    }
                }
                self.remembered.stored(new, now);
            }
            Err(error) => {
                metrics::counter!("carnet_audit_write_failures_total").increment(1);
                tracing::error!(
                    error = %Causes(error),
                    records = size,
                    "{size} audit records were not written; no credential of theirs was released"
                );
                self.leave_chain();
            }
        }
        result
    }

    /// Nobody knows whether a group that failed is in the log: what comes next cannot stand behind it.
    fn leave_chain(&mut self) {
        if let Some(durable) = self.durable.take() {
            self.known.insert(0, durable);
            self.known.truncate(usize::try_from(MOST_HEADS).unwrap_or(usize::MAX));
        }
        self.chain = Chain::new(Uuid::now_v7());
    }

    /// The first record of a chain: what it names cannot be taken away without a trace.
    fn beginning(&self) -> AuditRecord {
        let action = if self.started { RESUME } else { START };
        let heads: Vec<String> = self.known.iter().map(Head::to_string).collect();
        let mut attributes = vec![("heads", heads.join(",")), ("version", env!("CARGO_PKG_VERSION").to_owned())];
        attributes.extend(self.unchained.map(|unchained| (UNCHAINED, unchained.to_string())));
        attributes.extend(self.unread.as_ref().map(|error| ("heads_unread", error.to_string())));
        AuditRecord::own(action, self.clock.now(), attributes)
    }
}

/// The attribute of a chain's first record that says how many records are older than the chain.
pub(super) const UNCHAINED: &str = "unchained";

/// Records of one transaction; larger groups save nothing more.
const GROUP: usize = 512;

/// At most so many turns of the other tasks are waited for.
const TURNS: usize = 8;

/// Each chain is named by every start until so many others were written after it: 24 KB for a record at a start.
pub(super) const MOST_HEADS: u32 = 256;

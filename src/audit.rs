//! Stage 4: every decision is recorded durably before its caller is answered; what is not recorded is not released.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metrics::Counter;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use crate::clock::Clock;
use crate::reason::Reason;
use crate::target::Job;
use crate::telemetry::Causes;

/// One decision about one target. Fields that were not reached are empty.
#[derive(Debug, Clone)]
pub struct AuditRecord {
    pub exchange_id: Uuid,
    pub time: SystemTime,
    /// `exchange`, `lease.open`, `lease.credentials`, ...
    pub action: &'static str,
    pub lease_id: Option<Uuid>,
    pub outcome: Outcome,
    pub reason: Option<Reason>,
    /// `entra:{tenant}:{object}`.
    pub subject: String,
    /// Entra's `uti`.
    pub entra_token_id: String,
    pub client_id: String,
    pub target: String,
    pub rule: String,
    pub job: Arc<Job>,
    pub lifetime: Option<Duration>,
    pub cached: bool,
    pub issued: Option<Issued>,
    /// Peer, upstream correlation ids, what a denial was made of: never a token.
    pub attributes: Vec<(&'static str, String)>,
}

/// The token that was handed out, by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub token_sha256: [u8; 32],
    /// This token leaves for the first time: the record that introspection finds.
    pub first: bool,
    pub scopes: String,
    /// As whom the token acts: principal and service account, or client id.
    pub acts_as: String,
    pub issued_at: SystemTime,
    pub expires_at: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    Issued,
    /// By the broker's own decision.
    Denied,
    /// Something did not work.
    Failed,
    /// Nothing was asked to be issued: a lease was extended, or ended.
    Done,
}

impl Outcome {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Done => "done",
        }
    }
}

/// Where records go. Declared by the stage, fulfilled by a store.
#[async_trait::async_trait]
pub trait AuditLog: fmt::Debug + Send + Sync {
    /// Keeps all of `group` or none of it; returns once it would survive a power failure.
    async fn append(&self, group: Vec<AuditRecord>) -> Result<(), AuditError>;

    /// The record under which the token with this digest was first handed out.
    async fn find_issued(&self, token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError>;

    /// Drops records that are older than `retention`, counted from `now` or from the newest record, whichever is
    /// earlier: a clock that has jumped ahead must not empty the log. Returns how many.
    async fn prune(&self, now: SystemTime, retention: Duration) -> Result<usize, AuditError>;

    /// Whether it can be written, by writing.
    async fn probe(&self) -> Result<(), AuditError>;
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

#[derive(Debug, Clone, thiserror::Error)]
pub enum AuditError {
    #[error("the audit log cannot be written")]
    Write(#[source] Arc<dyn std::error::Error + Send + Sync>),
    #[error("the audit log cannot be read")]
    Read(#[source] Arc<dyn std::error::Error + Send + Sync>),
    #[error("the audit log did not take the record within {}s", DEADLINE.as_secs())]
    Slow,
    #[error("the audit log is closed")]
    Closed,
}

/// Gathers the records of concurrent exchanges into groups, so that durability costs one disk flush per group.
#[derive(Debug, Clone)]
pub struct Audit {
    queue: mpsc::Sender<Entry>,
    log: Arc<dyn AuditLog>,
    /// Whether the last write succeeded.
    well: watch::Sender<bool>,
    /// Records of what was issued, which most are: looked up in the registry once.
    issued: Counter,
}

#[derive(Debug)]
struct Entry {
    records: Vec<AuditRecord>,
    queued: Instant,
    written: oneshot::Sender<Result<(), AuditError>>,
}

impl Audit {
    /// The writer ends, with everything written, when the last `Audit` is dropped.
    pub fn start(log: Arc<dyn AuditLog>) -> (Self, JoinHandle<()>) {
        let (queue, entries) = mpsc::channel(QUEUE);
        let well = watch::Sender::new(true);
        let writer = tokio::spawn(write(entries, log.clone(), well.clone()));
        let issued = metrics::counter!("carnet_audit_records_total", "outcome" => "issued", "reason" => "");
        (Self { queue, log, well, issued }, writer)
    }

    /// Returns once `records`, all of them, are durable.
    pub async fn record(&self, records: Vec<AuditRecord>) -> Result<(), AuditError> {
        for record in &records {
            match (record.outcome, record.reason) {
                (Outcome::Issued, None) => self.issued.increment(1),
                (outcome, reason) => {
                    let labels = [("outcome", outcome.as_str()), ("reason", reason.map_or("", Reason::as_str))];
                    metrics::counter!("carnet_audit_records_total", &labels).increment(1);
                }
            }
        }
        let (written, confirmed) = oneshot::channel();
        let entry = Entry { records, queued: Instant::now(), written };
        self.queue.send(entry).await.map_err(|_closed| AuditError::Closed)?;
        confirmed.await.map_err(|_closed| AuditError::Closed)?
    }

    /// The record under which the token with this digest was first handed out.
    pub async fn find_issued(&self, token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError> {
        self.log.find_issued(token_sha256).await
    }

    /// Waits until the log stops or starts again to take records, and says which. While it does not, it is tried every
    /// [`PROBE_EVERY`]: without calls nobody would notice its return.
    pub async fn change(&self) -> bool {
        let mut well = self.well.subscribe();
        if *well.borrow_and_update() {
            let _ = well.wait_for(|well| !well).await;
            return false;
        }
        loop {
            sleep(PROBE_EVERY).await;
            if self.log.probe().await.is_ok() {
                self.well.send_replace(true);
            }
            if *well.borrow_and_update() {
                return true;
            }
        }
    }

    /// Drops records older than `retention`, now and then every hour.
    pub async fn keep_for(&self, retention: Duration, clock: Arc<dyn Clock>) {
        let mut tick = tokio::time::interval(PRUNE_EVERY);
        loop {
            tick.tick().await;
            match self.log.prune(clock.now(), retention).await {
                Ok(0) => {}
                Ok(pruned) => tracing::info!(records = pruned, "{pruned} audit records were older than the retention"),
                Err(error) => {
                    tracing::error!(error = %Causes(&error), "old audit records were not dropped")
                }
            }
        }
    }
}

/// While one group is being written, the next gathers by itself: no timer, no delay for a lone record.
async fn write(mut entries: mpsc::Receiver<Entry>, log: Arc<dyn AuditLog>, well: watch::Sender<bool>) {
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
        let mut group = Vec::with_capacity(gathered.len());
        let mut waiting = Vec::with_capacity(gathered.len());
        for entry in gathered.drain(..) {
            group.extend(entry.records);
            waiting.push(entry.written);
        }
        let (size, started) = (group.len(), Instant::now());
        // One deadline for all: that of the first of them.
        let result = timeout_at(queued + DEADLINE, log.append(group)).await.unwrap_or(Err(AuditError::Slow));
        metrics::histogram!("carnet_audit_group_records").record(size as f64);
        metrics::histogram!("carnet_audit_write_seconds").record(started.elapsed());
        well.send_if_modified(|well| std::mem::replace(well, result.is_ok()) != result.is_ok());
        if let Err(error) = &result {
            metrics::counter!("carnet_audit_write_failures_total").increment(1);
            tracing::error!(
                error = %Causes(error),
                records = size,
                "{size} audit records were not written; no credential of theirs was released"
            );
        }
        for written in waiting {
            // A caller that gave up does not change what is in the log.
            let _ = written.send(result.clone());
        }
    }
}

/// Exchanges that wait for the writer before new ones wait for a place.
const QUEUE: usize = 16_384;

/// Records of one transaction; larger groups save nothing more.
const GROUP: usize = 512;

/// At most so many turns of the other tasks are waited for.
const TURNS: usize = 8;

/// Longer than any healthy disk takes; a caller that waits longer is gone.
const DEADLINE: Duration = Duration::from_secs(10);

const PROBE_EVERY: Duration = Duration::from_secs(2);

const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// An audit log in memory that can be told to fail or to be slow.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Default)]
pub struct FakeAuditLog {
    groups: std::sync::Mutex<Vec<Vec<AuditRecord>>>,
    failing: std::sync::atomic::AtomicBool,
}

#[cfg(any(test, feature = "testing"))]
impl FakeAuditLog {
    pub fn fails(&self, failing: bool) {
        self.failing.store(failing, std::sync::atomic::Ordering::Relaxed);
    }

    pub fn groups(&self) -> Vec<Vec<AuditRecord>> {
        self.groups.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub fn records(&self) -> Vec<AuditRecord> {
        self.groups().concat()
    }
}

#[cfg(any(test, feature = "testing"))]
#[async_trait::async_trait]
impl AuditLog for FakeAuditLog {
    async fn append(&self, group: Vec<AuditRecord>) -> Result<(), AuditError> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if self.failing.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(AuditError::Write(Arc::new(std::io::Error::other("disk full"))));
        }
        self.groups.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(group);
        Ok(())
    }

    async fn find_issued(&self, token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError> {
        let hand_out = |record: AuditRecord| {
            let issued = record.issued.filter(|issued| issued.first && issued.token_sha256 == *token_sha256)?;
            Some(HandOut { exchange_id: record.exchange_id, subject: record.subject, target: record.target, issued })
        };
        Ok(self.records().into_iter().find_map(hand_out))
    }

    async fn prune(&self, _now: SystemTime, _retention: Duration) -> Result<usize, AuditError> {
        Ok(0)
    }

    async fn probe(&self) -> Result<(), AuditError> {
        self.append(Vec::new()).await
    }
}

#[cfg(test)]
impl AuditRecord {
    pub fn for_test(exchange_id: u128) -> Self {
        Self {
            exchange_id: Uuid::from_u128(exchange_id),
            time: SystemTime::UNIX_EPOCH,
            action: "exchange",
            lease_id: None,
            outcome: Outcome::Denied,
            reason: Some(Reason::Denied),
            subject: String::new(),
            entra_token_id: String::new(),
            client_id: String::new(),
            target: "t".to_owned(),
            rule: String::new(),
            job: Arc::default(),
            lifetime: None,
            cached: false,
            issued: None,
            attributes: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn records_that_come_together_are_written_together_and_none_is_lost() {
        let log = Arc::new(FakeAuditLog::default());
        let (audit, writer) = Audit::start(log.clone());
        let recording: Vec<_> = (0..1000).map(|id| audit.record(vec![AuditRecord::for_test(id)])).collect();
        let results = futures_util::future::join_all(recording).await;
        assert!(results.iter().all(Result::is_ok));
        assert_eq!(log.records().len(), 1000);
        assert!(log.groups().len() < 20, "{} groups", log.groups().len());
        drop(audit);
        writer.await.expect("a clean end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_write_is_everybodys_failure_and_the_next_group_is_tried_anew() {
        let log = Arc::new(FakeAuditLog::default());
        let (audit, _writer) = Audit::start(log.clone());
        log.fails(true);
        let both =
            tokio::join!(audit.record(vec![AuditRecord::for_test(1)]), audit.record(vec![AuditRecord::for_test(2)]));
        assert!(matches!(both, (Err(AuditError::Write(_)), Err(AuditError::Write(_)))));
        log.fails(false);
        assert!(audit.record(vec![AuditRecord::for_test(3)]).await.is_ok());
        assert_eq!(log.records().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_queued_is_written_although_its_caller_has_left() {
        let log = Arc::new(FakeAuditLog::default());
        let (audit, writer) = Audit::start(log.clone());
        let leaving = tokio::spawn({
            let audit = audit.clone();
            async move { audit.record(vec![AuditRecord::for_test(1)]).await }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        leaving.abort();
        drop(audit);
        writer.await.expect("a clean end");
        assert_eq!(log.records().len(), 1);
    }
}

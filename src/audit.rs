//! Stage 4: every decision is recorded durably before its caller is answered; what is not recorded is not released.

mod asked;
mod chain;
mod checkpoint;
mod cursors;
mod encoding;
mod group;
mod log;
mod progress;
mod reader;
mod remembered;
mod search;
mod shipments;
mod upkeep;
mod verify;
mod writer;

pub use asked::{DECISIONS, ask, asked_duration, facts_digest, job};
pub use chain::{Chain, Hash, Head, InvalidHead};
pub use checkpoint::{Checkpoint, Said};
pub use cursors::{Cursors, Gap, Gaps};
pub use encoding::find_hand_out;
pub use group::Group;
#[cfg(any(test, feature = "testing"))]
pub use log::FakeAuditLog;
pub use log::{AuditLog, Expired, HandOut, Kept};
pub use progress::Reach;
pub use reader::{
    AuditReader, Extent, IDENTITY_FACTS, KnownFacts, Onwards, Place, READ_AT_ONCE, Records, Window, chain_of,
};
pub use search::{Filter, Search};
#[cfg(any(test, feature = "testing"))]
pub use shipments::FakeShipments;
pub use shipments::Shipments;
pub use upkeep::{Found, Upkeep};
pub use verify::{ExportError, Exported, Fault, FaultKind, Report, Scope, Signatures, Verification};

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metrics::Counter;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use self::progress::Progress;
use self::writer::{Entry, Writer};
use crate::clock::Clock;
use crate::issuer::Issuer;
use crate::reason::Reason;
use crate::subject::Facts;
use crate::target::Job;

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
    /// What was decided about, to ask the rules again.
    pub identity: Option<Arc<Facts>>,
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

/// Whether an action is the log's own: what it records about itself.
pub fn is_own(action: &str) -> bool {
    OWN_ACTIONS.contains(&action)
}

/// A chain's first record, at the broker's start and after a failed write; what names chains later; and what says which
/// records are dropped because of their age.
const OWN_ACTIONS: [&str; 4] = [START, RESUME, WITNESS, PRUNE];
const START: &str = "broker.start";
const RESUME: &str = "audit.resume";
const WITNESS: &str = "audit.witness";
const PRUNE: &str = "audit.prune";

impl AuditRecord {
    /// Of the log about itself.
    fn own(action: &'static str, time: SystemTime, attributes: Vec<(&'static str, String)>) -> Self {
        Self {
            exchange_id: Uuid::now_v7(),
            time,
            action,
            lease_id: None,
            outcome: Outcome::Done,
            reason: None,
            subject: String::new(),
            entra_token_id: String::new(),
            client_id: String::new(),
            target: String::new(),
            rule: String::new(),
            job: Arc::default(),
            lifetime: None,
            cached: false,
            issued: None,
            identity: None,
            attributes,
        }
    }
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
    #[error("the issuer did not sign the checkpoint")]
    Unsigned,
}

/// Gathers the records of concurrent exchanges into groups, so that durability costs one disk flush per group.
#[derive(Debug, Clone)]
pub struct Audit {
    queue: mpsc::Sender<Entry>,
    log: Arc<dyn AuditLog>,
    clock: Arc<dyn Clock>,
    progress: Arc<Progress>,
    /// Whether the last write succeeded.
    well: watch::Sender<bool>,
    /// Records of what was issued, which most are: looked up in the registry once.
    issued: Counter,
}

impl Audit {
    /// Begins a chain. The writer ends, with everything written, when the last `Audit` is dropped.
    pub fn start(log: Arc<dyn AuditLog>, clock: Arc<dyn Clock>) -> (Self, JoinHandle<()>) {
        let (queue, entries) = mpsc::channel(QUEUE);
        let well = watch::Sender::new(true);
        let progress = Arc::<Progress>::default();
        let writer = Writer::new(log.clone(), clock.clone(), well.clone(), progress.clone());
        let writer = tokio::spawn(writer.write(entries));
        let issued = metrics::counter!("carnet_audit_records_total", "outcome" => "issued", "reason" => "");
        (Self { queue, log, clock, progress, well, issued }, writer)
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

    /// Waits until the log does not take records.
    pub async fn until_unwell(&self) {
        // The sender is this log's own: it cannot be gone.
        let _ = self.well.subscribe().wait_for(|well| !well).await;
    }

    /// Waits until the log takes records. While it does not, it is tried every [`PROBE_EVERY`]: without calls nobody would
    /// notice its return.
    pub async fn until_well(&self) {
        let mut well = self.well.subscribe();
        while timeout(PROBE_EVERY, well.wait_for(|well| *well)).await.is_err() {
            if self.log.probe().await.is_ok() {
                self.well.send_replace(true);
            }
        }
    }

    /// Of this log, which `reader` reads; `issuer` signs its checkpoints.
    pub fn upkeep(&self, reader: Arc<dyn AuditReader>, issuer: Option<Arc<Issuer>>) -> Upkeep {
        Upkeep::new((self.log.clone(), reader), self.progress.clone(), issuer, self.clock.clone())
    }
}

/// Exchanges that wait for the writer before new ones wait for a place.
const QUEUE: usize = 16_384;

/// Longer than any healthy disk takes; a caller that waits longer is gone.
const DEADLINE: Duration = Duration::from_secs(10);

const PROBE_EVERY: Duration = Duration::from_secs(2);

#[cfg(test)]
impl AuditRecord {
    pub fn for_test(exchange_id: u128) -> Self {
        Self {
            exchange_id: Uuid::from_u128(exchange_id),
            action: "exchange",
            outcome: Outcome::Denied,
            reason: Some(Reason::Denied),
            target: "t".to_owned(),
            ..Self::own("", SystemTime::UNIX_EPOCH, Vec::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn start(log: &Arc<FakeAuditLog>) -> (Audit, JoinHandle<()>) {
        Audit::start(log.clone(), Arc::new(ManualClock::start()))
    }

    /// The log's own records: action and what is said of heads.
    fn own(log: &FakeAuditLog) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
        let records = log.groups().into_iter().flat_map(|group| group.sealed);
        records.filter(|record| is_own(record.action)).map(|record| (record.action, record.attributes)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn records_that_come_together_are_written_together_and_none_is_lost() {
        let log = Arc::new(FakeAuditLog::default());
        let (audit, writer) = start(&log);
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
        let (audit, _writer) = start(&log);
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
        let (audit, writer) = start(&log);
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
    #[tokio::test(start_paused = true)]
    async fn a_chain_begins_with_a_record_that_names_the_chains_before_it_and_another_follows_a_failed_write() {
        let log = Arc::new(FakeAuditLog::default());
        let (audit, writer) = start(&log);
        audit.record(vec![AuditRecord::for_test(1)]).await.expect("written");
        let first = log.heads(10).await.expect("read");
        log.fails(true);
        assert!(audit.record(vec![AuditRecord::for_test(2)]).await.is_err());
        log.fails(false);
        audit.record(vec![AuditRecord::for_test(3)]).await.expect("written");
        drop(audit);
        writer.await.expect("a clean end");
        let both = log.heads(10).await.expect("read");
        assert_eq!((both.len(), both[0]), (2, first[0]));
        let (audit, _writer) = start(&log);
        audit.record(vec![AuditRecord::for_test(4)]).await.expect("written");

        let names = |heads: &[Head]| heads.iter().map(Head::to_string).collect::<Vec<_>>().join(",");
        let said: Vec<_> = own(&log)
            .into_iter()
            .map(|(action, attributes)| {
                (action, attributes.into_iter().find(|(name, _)| *name == "heads").expect("heads").1)
            })
            .collect();
        assert_eq!(said, [(START, String::new()), (RESUME, names(&first)), (START, names(&both))]);
        let places: Vec<_> = log.groups().iter().map(|group| (group.position, group.own)).collect();
        assert_eq!(places, [(1, true), (2, false), (1, false), (1, true), (2, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_whose_chains_cannot_be_read_is_written_all_the_same_and_says_so() {
        let log = Arc::new(FakeAuditLog::default());
        log.fails(true);
        let (audit, _writer) = start(&log);
        assert!(audit.record(vec![AuditRecord::for_test(1)]).await.is_err());
        log.fails(false);
        audit.record(vec![AuditRecord::for_test(2)]).await.expect("written");
        let [(action, attributes)] = &own(&log)[..] else { panic!("one beginning") };
        assert_eq!(*action, START);
        assert!(attributes.iter().any(|(name, _)| *name == "heads_unread"), "{attributes:?}");
    }
}

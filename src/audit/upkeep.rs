//! What the log does for itself: checkpoints of the chain, the naming of others' chains, and retention.

mod age;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use self::age::{Ages, Held};
use super::chain::hash_at;
use super::progress::{Progress, Reach};
use super::reader::newest_said;
use super::writer::MOST_HEADS;
use super::{Audit, AuditError, AuditLog, AuditReader, AuditRecord, Checkpoint, Expired, Head, Kept, PRUNE, WITNESS};
use crate::clock::{Clock, from_unix_milliseconds, unix_milliseconds};
use crate::issuer::{Issuer, StatementKeys};
use crate::telemetry::Causes;

/// Of one writer's log. Holds no place in its queue: the writer ends before the last checkpoint is made.
#[derive(Debug, Clone)]
pub struct Upkeep {
    log: Arc<dyn AuditLog>,
    reader: Arc<dyn AuditReader>,
    progress: Arc<Progress>,
    /// Signs the checkpoints.
    issuer: Option<Arc<Issuer>>,
    clock: Arc<dyn Clock>,
    /// As far as a checkpoint of this life was kept, and whether the log still had it when it was looked at last.
    kept: Arc<Mutex<Option<(Reach, Found)>>>,
    /// By what retention was counted first in this life, and when.
    reference: Arc<Mutex<Option<(SystemTime, Instant)>>>,
}

/// What a look at the log finds of what was written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    AsWritten,
    /// It is gone, or something else stands in its place: nobody but retention takes anything away.
    Otherwise,
}

/// Which chains a witness names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Witness {
    /// Those that nobody has named as far as they are.
    News,
    /// All: another key signs from now on, and what the old one signed may one day not be verified any more.
    All,
}

impl Upkeep {
    pub(super) fn new(
        (log, reader): (Arc<dyn AuditLog>, Arc<dyn AuditReader>),
        progress: Arc<Progress>,
        issuer: Option<Arc<Issuer>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { log, reader, progress, issuer, clock, kept: Arc::default(), reference: Arc::default() }
    }

    /// Makes a checkpoint every minute in which something was recorded; every hour names the chains of others and drops
    /// what is older than `retention`.
    pub async fn keep(self, audit: Audit, retention: Duration) {
        let start = Instant::now();
        let (mut minute, mut hour) = (interval_at(start + SOON, CHECKPOINT_EVERY), interval_at(start, PRUNE_EVERY));
        for tick in [&mut minute, &mut hour] {
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut kid = self.kid();
        loop {
            tokio::select! {
                _ = minute.tick() => {
                    self.look_back(retention).await;
                    let signing = self.kid();
                    if std::mem::replace(&mut kid, signing.clone()) != signing {
                        self.witness(&audit, Witness::All).await;
                        self.progress.uncover();
                    }
                    self.checkpoint().await;
                }
                _ = hour.tick() => {
                    self.witness(&audit, Witness::News).await;
                    self.prune(&audit, retention).await;
                }
            }
        }
    }

    fn kid(&self) -> Option<String> {
        self.issuer.as_ref().and_then(|issuer| issuer.stating_kid())
    }

    /// Makes checkpoints of what has none. What fails is tried again a minute later, and says so in the log.
    pub async fn checkpoint(&self) {
        for reach in self.progress.uncovered() {
            match self.checkpoint_of(&reach, self.issuer.as_deref()).await {
                Ok(Kept::Yes) => {
                    self.progress.covered(&reach);
                    if self.progress.current().is_some_and(|current| current.head.chain == reach.head.chain) {
                        *self.kept() = Some((reach, Found::AsWritten));
                    }
                    // Whoever keeps the logs elsewhere can hold the store against them.
                    tracing::info!(audit.head = %reach.head, "checkpoint of the audit log");
                }
                Ok(Kept::NotYet) => {}
                Err(error) => tracing::error!(error = %Causes(&error), "no checkpoint of the audit log was made"),
            }
        }
    }

    /// Whether the log still has what this process wrote, as far as its last checkpoint; `None` where it has made none.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn found(&self) -> Result<Option<Found>, AuditError> {
        let Some((Reach { head: Head { chain, position, hash }, .. }, _before)) = *self.kept() else { return Ok(None) };
        let stored = self.reader.hashes(chain, position).await?;
        let stored = stored.and_then(|(first, hashes)| hash_at(first, &hashes, position));
        Ok(Some(if stored == Some(hash) { Found::AsWritten } else { Found::Otherwise }))
    }

    /// Somebody may cut off the end of the log with its checkpoints, which `carnet audit verify` could not tell: this
    /// process can.
    async fn look_back(&self, retention: Duration) {
        let found = match self.found().await {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(error = %Causes(&error), "the end of the audit log cannot be read");
                return;
            }
        };
        let Some((reach, before)) = *self.kept() else { return };
        // A replica on which nothing happens loses its records to retention, too.
        let until = from_unix_milliseconds(reach.newest_ms).checked_add(retention.saturating_sub(DAY));
        if found == Found::Otherwise && until.is_some_and(|until| until <= self.clock.now()) {
            return;
        }
        metrics::gauge!("carnet_audit_changed").set(if found == Found::Otherwise { 1.0 } else { 0.0 });
        if found == Found::Otherwise && before == Found::AsWritten {
            tracing::error!(
                audit.head = %reach.head,
                "the audit log no longer has what this broker wrote: somebody else changes the store"
            );
        }
        if let Some((_reach, last)) = self.kept().as_mut() {
            *last = found;
        }
    }

    fn kept(&self) -> MutexGuard<'_, Option<(Reach, Found)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn checkpoint_of(&self, reach: &Reach, issuer: Option<&Issuer>) -> Result<Kept, AuditError> {
        let checkpoint = Checkpoint::make(reach, issuer, self.clock.now());
        self.log.checkpoint(checkpoint.map_err(|_no_signature| AuditError::Unsigned)?).await
    }

    /// Records how far the chains of others are: whoever takes records from their ends, or whole chains, is found out.
    async fn witness(&self, audit: &Audit, which: Witness) {
        let heads = match self.log.heads(MOST_HEADS).await {
            Ok(heads) => heads,
            Err(error) => {
                tracing::warn!(error = %Causes(&error), "the chains of the audit log cannot be read: none is named");
                return;
            }
        };
        let own = self.progress.current().map(|current| current.head.chain);
        let wanted = |head: &&Head| match which {
            Witness::News => self.progress.is_news(head),
            Witness::All => Some(head.chain) != own,
        };
        let named: Vec<String> = heads.iter().filter(wanted).map(Head::to_string).collect();
        if !named.is_empty() {
            let record = AuditRecord::own(WITNESS, self.clock.now(), vec![("heads", named.join(","))]);
            // A failure is the writer's to log; then they are named an hour later.
            if audit.record(vec![record]).await.is_ok() {
                self.progress.named(&heads);
            }
        }
    }

    /// `now`, as far as it is believed: a clock that has jumped ahead writes its time into new records too, and must not
    /// empty the log. What a process saw first moves on by a day in an hour at most.
    fn not_ahead(&self, now: SystemTime) -> SystemTime {
        let reference = self.reference.lock().unwrap_or_else(PoisonError::into_inner);
        let believed = reference.and_then(|(seen, at)| seen.checked_add(at.elapsed() * 24 + PRUNE_EVERY));
        believed.map_or(now, |believed| now.min(believed))
    }

    /// Of the records that are not the log's own: of what this broker has written, and of what the store has.
    async fn newest(&self) -> Result<i64, AuditError> {
        let last = self.reader.last_of_others().await?;
        let said = last.as_ref().and_then(newest_said).unwrap_or(i64::MIN);
        Ok(said.max(self.progress.newest_of_others()))
    }

    fn seen_at(&self, expired: &Expired) {
        let mut reference = self.reference.lock().unwrap_or_else(PoisonError::into_inner);
        if reference.is_none() && expired.reference_ms > 0 {
            *reference = Some((from_unix_milliseconds(expired.reference_ms), Instant::now()));
        }
    }

    /// Drops what is older than `retention`, and says in the log what that was before it does.
    async fn prune(&self, audit: &Audit, retention: Duration) {
        match self.prune_once(audit, retention).await {
            Ok(0) => {}
            Ok(pruned) => tracing::info!(records = pruned, "{pruned} audit records were older than the retention"),
            Err(error) => tracing::error!(error = %Causes(&error), "old audit records were not dropped"),
        }
    }

    /// Whole spans up to a checkpoint, which stays: where the rest of the chain begins. Returns how many records. How old
    /// they are is counted from `now` or from the last record that is not the log's own, whichever is earlier: a clock that
    /// has jumped ahead must not empty the log. What cannot be told by signatures and hashes stays, and is said.
    pub async fn prune_once(&self, audit: &Audit, retention: Duration) -> Result<u64, AuditError> {
        let now = self.clock.now();
        let mut expired = Expired::before(self.not_ahead(now), self.newest().await?, retention);
        self.seen_at(&expired);
        let keys = self.issuer.as_ref().map(|issuer| StatementKeys::of(&issuer.keys())).unwrap_or_default();
        let ages = Ages { reader: &*self.reader, keys, before_ms: expired.before_ms };
        let held = ages.judge(&mut expired).await?;
        metrics::gauge!("carnet_audit_held_chains").set(u32::try_from(held.len()).unwrap_or(u32::MAX));
        for Held { chain, why } in held {
            tracing::error!(
                audit.chain = %chain,
                "audit records that are past their retention stay, because they may have been changed: {why}; \
                 see `carnet audit verify`"
            );
        }
        // Of writers that were killed, or had no time for a last checkpoint.
        for tail in std::mem::take(&mut expired.tails) {
            // Unsigned: what others wrote is only read here. That it was dropped stands in a record of this chain.
            if self.checkpoint_of(&tail, None).await? == Kept::Yes {
                expired.spans.retain(|span| span.chain != tail.head.chain);
                expired.spans.push(tail.head);
            }
        }
        for spans in expired.spans.chunks(SPANS_OF_ONE_RECORD) {
            let spans: Vec<String> = spans.iter().map(Head::to_string).collect();
            let attributes = vec![("heads", spans.join(",")), ("retention", retention.as_secs().to_string())];
            audit.record(vec![AuditRecord::own(PRUNE, now, attributes)]).await?;
        }
        if !expired.spans.is_empty() {
            // Signed before anything is gone: what no signature covers excuses nothing.
            self.checkpoint().await;
        }
        self.log.prune(&expired).await
    }
}

impl Expired {
    /// What is before `newest`, the time of the newest record, or `now`, by more than `retention`.
    pub fn before(now: SystemTime, newest_ms: i64, retention: Duration) -> Self {
        let retention_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let reference_ms = unix_milliseconds(now).min(newest_ms);
        let before_ms = reference_ms.saturating_sub(retention_ms);
        Self { reference_ms, before_ms, ..Self::default() }
    }
}

const DAY: Duration = Duration::from_secs(86_400);

const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);

/// After a start, so that a broker that does not live a minute leaves a checkpoint too.
const SOON: Duration = Duration::from_secs(5);

/// Some 6 KB: no way out takes records of megabytes.
const SPANS_OF_ONE_RECORD: usize = 64;

const PRUNE_EVERY: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;

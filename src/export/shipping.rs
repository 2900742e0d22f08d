//! Ships records to one way out: each chain in its order, at least once, and beside everything else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::sink::{SendError, Sink, Taken};
use crate::audit::{AuditError, Cursors, Extent, Gap, Gaps, Records, Shipments, chain_of};
use crate::clock::Clock;
use crate::proto::AuditRecord;
use crate::telemetry::Causes;

/// What all ways out have in common.
#[derive(Debug, Clone)]
pub struct Log {
    pub records: Records,
    pub shipments: Arc<dyn Shipments>,
    pub clock: Arc<dyn Clock>,
}

/// One way out. It holds no more than one reading of the log; where it has come to is in the store, and moves only after
/// the other side took the records.
#[derive(Debug)]
pub(super) struct Shipper {
    outlet: String,
    sink: Box<dyn Sink>,
    log: Log,
    /// Of several replicas, one ships at a time.
    owner: Uuid,
    claim: Option<Claim>,
    /// Records of a batch: fewer after the other side refused one.
    most: usize,
    trust: Trust,
    failures: u32,
    complained_at: Option<Instant>,
    meters: Meters,
}

/// While it lasts, nobody else ships to this way out.
struct Claim {
    renewed_at: Instant,
    /// How far the log was read.
    read: Cursors,
    /// Of that, what was not delivered yet.
    waiting: Vec<AuditRecord>,
    /// The last position that was delivered, by chain.
    delivered: BTreeMap<Uuid, u64>,
    /// Before those positions, what was not.
    gaps: Gaps,
    /// The store does not know of all gaps as they are.
    gaps_moved: bool,
    /// Chains whose position the store does not know yet.
    unnoted: BTreeSet<Uuid>,
    noted_at: Instant,
    measured_at: Instant,
    /// The last position that was in the log, by chain: of a chain that is gone, it tells what was lost.
    seen: BTreeMap<Uuid, u64>,
}

/// Whether it is a record's fault when it is refused alone, or the other side's, which then gets it when it is mended.
#[derive(Debug, Default)]
struct Trust {
    /// It has taken some at least.
    has_taken: bool,
    /// Records in a row that were refused alone.
    refused: u32,
}

#[derive(Debug)]
struct Meters {
    behind: Gauge,
    missing: Gauge,
    shipped: Counter,
    rejected: Counter,
    lost: Counter,
    failures: Counter,
}

/// What a round came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// There may be more.
    Shipped,
    /// There is nothing that was not delivered.
    Idle,
    /// Another replica ships.
    Theirs,
    Failed(Duration),
}

/// Why a round fails.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Log(#[from] AuditError),
    #[error("the store does not answer within {}s", STORE_DEADLINE.as_secs())]
    Slow,
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("nothing is taken within {}s", SEND_DEADLINE.as_secs())]
    Stuck,
}

impl Shipper {
    pub fn new(outlet: &str, sink: Box<dyn Sink>, log: Log) -> Self {
        Self {
            outlet: outlet.to_owned(),
            sink,
            log,
            owner: Uuid::now_v7(),
            claim: None,
            most: BATCH,
            trust: Trust::default(),
            failures: 0,
            complained_at: None,
            meters: Meters::of(outlet),
        }
    }

    /// Until `stopping`; then what can be delivered in a moment still is.
    pub async fn run(mut self, stopping: CancellationToken) {
        while !stopping.is_cancelled() {
            let pause = match self.round().await {
                Round::Shipped => continue,
                Round::Idle => LOOK_EVERY,
                Round::Theirs => CLAIM_EVERY,
                Round::Failed(wait) => wait,
            };
            let _ = stopping.run_until_cancelled(sleep(pause)).await;
        }
        let _ = timeout(LAST_ROUNDS, async { while self.round().await == Round::Shipped {} }).await;
        if self.claim.is_some() {
            let _ = self.note().await;
            let _ = timeout(STORE_DEADLINE, self.log.shipments.release(&self.outlet, self.owner)).await;
        }
    }

    pub async fn round(&mut self) -> Round {
        let result = self.step().await;
        match result {
            Ok(round) => {
                if self.failures > 0 && round == Round::Shipped {
                    tracing::info!(export.outlet = self.outlet, "audit records are shipped to `{}` again", self.outlet);
                    self.failures = 0;
                }
                round
            }
            Err(error) => Round::Failed(self.failed(&error)),
        }
    }

    async fn step(&mut self) -> Result<Round, RoundError> {
        if !self.is_claimed().await? {
            self.meters.behind.set(0.0);
            self.meters.missing.set(0.0);
            return Ok(Round::Theirs);
        }
        self.read().await?;
        let most = self.most;
        let Some(batch) = self.claim.as_ref().and_then(|claim| claim.waiting.get(..most.min(claim.waiting.len())))
        else {
            return Ok(Round::Theirs);
        };
        if batch.is_empty() {
            return self.note_when_due().await;
        }
        match timeout(SEND_DEADLINE, self.sink.send(batch)).await {
            Ok(Ok(taken)) => {
                let sent = batch.len();
                self.trust = Trust { has_taken: true, refused: 0 };
                self.deliver(sent, taken);
                self.most = (self.most * 2).min(BATCH);
                self.note_when_due().await?;
                Ok(Round::Shipped)
            }
            Ok(Err(SendError::Refused(cause))) if batch.len() > 1 => {
                // One of its records, or its size: a part of it is sent alone.
                self.most = batch.len() / 2;
                tracing::debug!(export.outlet = self.outlet, cause, "a batch was refused, its half is tried");
                Ok(Round::Shipped)
            }
            Ok(Err(SendError::Refused(why))) if self.trust.has_taken && self.trust.refused < REFUSED_IN_A_ROW => {
                self.trust.refused += 1;
                self.deliver(1, Taken { rejected: 1, why });
                Ok(Round::Shipped)
            }
            Ok(Err(error @ SendError::Refused(_))) => Err(error.into()),
            Ok(Err(error @ SendError::Unavailable { .. })) => Err(error.into()),
            Err(_elapsed) => Err(RoundError::Stuck),
        }
    }

    /// Claims this way out, or keeps the claim; false where another replica has it.
    async fn is_claimed(&mut self) -> Result<bool, RoundError> {
        let age = self.claim.as_ref().map(|claim| claim.renewed_at.elapsed());
        if age.is_some_and(|age| age < RENEW_AFTER) {
            return Ok(true);
        }
        // Whoever had it meanwhile may have delivered more.
        if age.is_some_and(|age| age >= HOLD) {
            self.claim = None;
        }
        let asked_at = Instant::now();
        if !in_time(self.log.shipments.claim(&self.outlet, self.owner, HOLD)).await? {
            self.claim = None;
            return Ok(false);
        }
        match &mut self.claim {
            Some(claim) => claim.renewed_at = asked_at,
            None => {
                let delivered: BTreeMap<Uuid, u64> =
                    in_time(self.log.shipments.delivered(&self.outlet)).await?.into_iter().collect();
                let gaps: Gaps = in_time(self.log.shipments.gaps(&self.outlet)).await?.into_iter().collect();
                self.claim = Some(Claim {
                    renewed_at: asked_at,
                    read: Cursors::new(delivered.clone(), gaps.clone()),
                    waiting: Vec::new(),
                    delivered,
                    gaps,
                    gaps_moved: false,
                    unnoted: BTreeSet::new(),
                    noted_at: asked_at,
                    measured_at: asked_at,
                    seen: BTreeMap::new(),
                });
            }
        }
        Ok(true)
    }

    /// What comes next, where nothing waits; and how much there is behind it.
    async fn read(&mut self) -> Result<(), RoundError> {
        let Some(claim) = &mut self.claim else { return Ok(()) };
        if !claim.waiting.is_empty() && claim.measured_at.elapsed() < MEASURE_EVERY {
            return Ok(());
        }
        let there = in_time(self.log.records.reader().chains()).await?;
        let behind = claim.behind(&there);
        claim.measured_at = Instant::now();
        self.meters.behind.set(behind as f64);
        if !claim.waiting.is_empty() {
            self.warn_of(behind);
            return Ok(());
        }
        let mut read = claim.read.clone();
        let onwards = in_time(self.log.records.read_on(&mut read, self.log.clock.now())).await?;
        for (chain, lost) in claim.gone(&there) {
            lose(&self.outlet, &self.meters, lost);
            in_time(self.log.shipments.forget(&self.outlet, chain)).await?;
            claim.delivered.remove(&chain);
            claim.unnoted.remove(&chain);
        }
        lose(&self.outlet, &self.meters, onwards.lost);
        claim.seen = there.iter().map(|extent| (extent.chain, extent.last)).collect();
        (claim.read, claim.waiting) = (read, onwards.records);
        claim.miss(onwards.opened, &self.outlet);
        self.meters.missing.set(claim.gaps.records() as f64);
        self.warn_of(behind);
        Ok(())
    }

    /// The first of those that wait are the other side's now.
    fn deliver(&mut self, sent: usize, taken: Taken) {
        let Some(claim) = &mut self.claim else { return };
        let sent = sent.min(claim.waiting.len());
        for record in claim.waiting.drain(..sent) {
            if let Some(chain) = chain_of(&record) {
                // What closes a gap stands before what was delivered.
                claim.gaps_moved |= claim.gaps.close(chain, record.sequence);
                let delivered = claim.delivered.entry(chain).or_default();
                *delivered = (*delivered).max(record.sequence);
                claim.unnoted.insert(chain);
            }
        }
        let rejected = taken.rejected.min(sent);
        if rejected > 0 {
            tracing::error!(
                export.outlet = self.outlet,
                records = rejected,
                cause = taken.why,
                "`{}` will never take {rejected} audit records: they stay in the broker's log only",
                self.outlet
            );
        }
        self.meters.rejected.increment(as_u64(rejected));
        self.meters.shipped.increment(as_u64(sent - rejected));
    }

    /// Not after each batch: what a broker that is killed did not note is delivered once more.
    async fn note_when_due(&mut self) -> Result<Round, RoundError> {
        let moved = |claim: &Claim| !claim.unnoted.is_empty() || claim.gaps_moved;
        let due = |claim: &Claim| moved(claim) && claim.noted_at.elapsed() >= NOTE_EVERY;
        if self.claim.as_ref().is_some_and(due) { self.note().await } else { Ok(Round::Idle) }
    }

    async fn note(&mut self) -> Result<Round, RoundError> {
        let Some(claim) = &mut self.claim else { return Ok(Round::Theirs) };
        let position = |chain: &Uuid| Some((*chain, *claim.delivered.get(chain)?));
        let moved: Vec<(Uuid, u64)> = claim.unnoted.iter().filter_map(position).collect();
        if moved.is_empty() && !claim.gaps_moved {
            return Ok(Round::Idle);
        }
        let gaps: Vec<Gap> = claim.gaps.iter().copied().collect();
        if !in_time(self.log.shipments.deliver(&self.outlet, self.owner, &moved, &gaps)).await? {
            // Another replica has the claim, and delivers what it does not know of once more.
            self.claim = None;
            return Ok(Round::Theirs);
        }
        claim.unnoted.clear();
        claim.gaps_moved = false;
        claim.noted_at = Instant::now();
        Ok(Round::Idle)
    }

    /// Returns for how long the way out is left alone.
    fn failed(&mut self, error: &RoundError) -> Duration {
        self.meters.failures.increment(1);
        if self.failures == 0 || self.may_complain() {
            self.complained_at = Some(Instant::now());
            tracing::warn!(
                export.outlet = self.outlet,
                error = %Causes(error),
                "audit records are not shipped to `{}`; they wait in the store",
                self.outlet
            );
        }
        let backoff = BACKOFF_FIRST * 2u32.saturating_pow(self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        let asked = match error {
            RoundError::Send(SendError::Unavailable { retry_after, .. }) => retry_after.unwrap_or_default(),
            RoundError::Send(SendError::Refused(_)) | RoundError::Log(_) | RoundError::Slow | RoundError::Stuck => {
                Duration::ZERO
            }
        };
        backoff.max(asked).min(BACKOFF_LONGEST).mul_f64(rand::random_range(0.7..=1.0))
    }

    fn warn_of(&mut self, behind: u64) {
        if behind > FAR_BEHIND && self.may_complain() {
            self.complained_at = Some(Instant::now());
            tracing::warn!(
                export.outlet = self.outlet,
                records = behind,
                "`{}` is {behind} audit records behind: it never gets what retention drops before it has come so far",
                self.outlet
            );
        }
    }

    fn may_complain(&self) -> bool {
        self.complained_at.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY)
    }
}

impl Claim {
    /// Records in the log that were not delivered.
    fn behind(&self, there: &[Extent]) -> u64 {
        let left = |extent: &Extent| {
            let delivered = self.delivered.get(&extent.chain).copied().unwrap_or_default();
            extent.last.saturating_sub(delivered.max(extent.first.saturating_sub(1)))
        };
        there.iter().map(left).sum()
    }

    /// Chains that are gone altogether, and how many records of each were not delivered, but for its gaps. Of a chain that
    /// this way out has never seen, nothing is lost: it begins where retention has left it.
    fn gone(&self, there: &[Extent]) -> Vec<(Uuid, u64)> {
        let is_there = |chain: &Uuid| there.iter().any(|extent| extent.chain == *chain);
        let gone = self.delivered.keys().chain(self.seen.keys()).filter(|chain| !is_there(chain));
        let gone: BTreeSet<Uuid> = gone.copied().collect();
        let lost = |chain: Uuid| {
            let delivered = self.delivered.get(&chain).copied().unwrap_or_default();
            (chain, self.seen.get(&chain).map_or(0, |seen| seen.saturating_sub(delivered)))
        };
        gone.into_iter().map(lost).collect()
    }

    /// Later records were there; those of these gaps were not, and are shipped when they come. Of the others, those that
    /// nobody waits for any more are forgotten.
    fn miss(&mut self, opened: Vec<Gap>, outlet: &str) {
        for gap in opened {
            let records = gap.records();
            self.gaps_moved = true;
            // Whoever reads has told what it gave up for it.
            let _ = self.gaps.open(gap);
            if !gap.is_beginning() {
                tracing::warn!(
                    export.outlet = outlet,
                    audit.chain = %gap.chain,
                    records,
                    "{records} audit records are not in the log, although later ones are: `{outlet}` gets them when the \
                     spool of the broker that has them is moved, so start it again with its volume"
                );
            }
        }
        let waited_for: Vec<Gap> = self.read.gaps().collect();
        let waiting: BTreeSet<(Uuid, u64)> =
            self.waiting.iter().filter_map(|record| Some((chain_of(record)?, record.sequence))).collect();
        let is_over = |gap: &Gap| {
            let overlaps = |other: &Gap| other.chain == gap.chain && other.first <= gap.last && gap.first <= other.last;
            !waited_for.iter().any(overlaps)
                && waiting.range((gap.chain, gap.first)..=(gap.chain, gap.last)).next().is_none()
        };
        self.gaps_moved |= !self.gaps.give_up(is_over).is_empty();
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim({} records wait, {:?} delivered)", self.waiting.len(), self.delivered)
    }
}

/// Said loudly: the broker's own log no longer has them either.
fn lose(outlet: &str, meters: &Meters, lost: u64) {
    if lost > 0 {
        meters.lost.increment(lost);
        tracing::error!(
            export.outlet = outlet,
            records = lost,
            "`{outlet}` never gets {lost} audit records: they left the log before it had them, or a broker's spool did \
             not bring them in time: see why it is slow, keep records for longer (audit.retention), and start brokers \
             that have a spool again with its volume"
        );
    }
}

fn as_u64(records: usize) -> u64 {
    u64::try_from(records).unwrap_or(u64::MAX)
}

async fn in_time<T>(asked: impl Future<Output = Result<T, AuditError>>) -> Result<T, RoundError> {
    match timeout(STORE_DEADLINE, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_elapsed) => Err(RoundError::Slow),
    }
}

impl Meters {
    fn of(outlet: &str) -> Self {
        let shipped = |outcome: &'static str| metrics::counter!("carnet_audit_shipped_total", "outlet" => outlet.to_owned(), "outcome" => outcome);
        Self {
            behind: metrics::gauge!("carnet_audit_unshipped", "outlet" => outlet.to_owned()),
            shipped: shipped("shipped"),
            rejected: shipped("rejected"),
            missing: metrics::gauge!("carnet_audit_missing", "outlet" => outlet.to_owned()),
            lost: shipped("lost"),
            failures: metrics::counter!("carnet_audit_shipping_failures_total", "outlet" => outlet.to_owned()),
        }
    }
}

/// Records of one batch. With the largest jobs it is some 10 MB.
const BATCH: usize = 256;

/// More than so many that are at fault are hardly ever next to each other.
const REFUSED_IN_A_ROW: u32 = 3;

/// A record is on its way out within this, when all is well.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Longer than a batch may take with everything that comes before and after it. A replica that died is followed by
/// another after this.
const HOLD: Duration = Duration::from_secs(40);
const RENEW_AFTER: Duration = Duration::from_secs(8);
const CLAIM_EVERY: Duration = Duration::from_secs(5);

/// A note is a write of the store, which others wait for.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// While a way out is away, how far it is behind is still told.
const MEASURE_EVERY: Duration = Duration::from_secs(10);

const SEND_DEADLINE: Duration = Duration::from_secs(10);
const STORE_DEADLINE: Duration = Duration::from_secs(5);

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_LONGEST: Duration = Duration::from_secs(60);

const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// A minute of a busy broker.
const FAR_BEHIND: u64 = 10_000;

/// What a process that ends takes for its last records.
const LAST_ROUNDS: Duration = Duration::from_secs(2);

/// A round: claim, read, send, note.
const _: () = assert!(RENEW_AFTER.as_secs() + SEND_DEADLINE.as_secs() + 4 * STORE_DEADLINE.as_secs() < HOLD.as_secs());

#[cfg(test)]
mod tests;

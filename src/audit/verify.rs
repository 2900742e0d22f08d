//! Whether the log is as it was written: every chain walked record by record, against its hashes, its checkpoints and what
//! other chains saw of it. Needs no broker.

mod beside;
mod coverage;
mod diagnosis;
mod export;
mod walk;

pub use export::{ExportError, Exported};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use self::beside::Beside;
use self::coverage::Coverage;
use super::chain::{Hash, hash_at};
use super::reader::newest_said;
use super::{AuditError, AuditReader, Checkpoint, Extent, Head};
use crate::issuer::{Standing, StatementKeys};

/// What is checked, and by what.
#[derive(Debug, Clone)]
pub struct Scope {
    /// That checkpoints may be signed by.
    pub keys: StatementKeys,
    pub signatures: Signatures,
    /// How long records are kept: what is gone earlier was taken.
    pub retention: Duration,
    /// Nothing before the last checkpoint that is older than this.
    pub since: Option<SystemTime>,
    pub now: SystemTime,
}

/// Whether the log has an issuer that signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signatures {
    Expected,
    None,
}

/// What was found. The log is whole where `faults` is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Of each chain the first, and what is found beside the chains; oldest chain first, no more than [`MOST_FAULTS`].
    pub faults: Vec<Fault>,
    pub chains: u64,
    /// Records whose hashes were computed.
    pub records: u64,
    /// Of these, those that a checkpoint covers, signed by a known key: of their chain or of one that named it.
    pub signed: u64,
    /// Those that only a checkpoint covers that nobody signed.
    pub unsigned: u64,
    /// Those that no checkpoint covers that can be checked: newer than the last one.
    pub newer: u64,
    /// Records of before the chain: nothing can be said of them.
    pub unchained: u64,
    /// Keys that signed checkpoints and are not known here, with how many.
    pub unknown_keys: BTreeMap<String, u64>,
    /// Keys that signed checkpoints when others had taken their place, or before they took another's, with how many.
    pub untimely_keys: BTreeMap<String, u64>,
    /// Sets of facts that decisions were made of, whose digests were computed.
    pub facts: u64,
    /// Lines of exports that were compared.
    pub exported: u64,
    /// Heads in brokers' logs that were compared.
    pub heads: u64,
    /// Of lines and heads, those whose records have been dropped since, because of their age.
    pub exported_before: u64,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    /// `None` for records of before the chain, and for what no record names.
    pub chain: Option<Uuid>,
    /// Of the first record that is wrong.
    pub position: u64,
    /// As that record says; empty where there is none.
    pub exchange_id: String,
    pub time: Option<SystemTime>,
    /// What is wrong with it, in a sentence.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    Edited,
    Missing,
    Inserted,
    Reordered,
    /// The chain, or another one, once was another.
    CheckpointContradicts,
    /// It is no checkpoint of the issuer's.
    CheckpointForged,
    ChainMissing,
    /// No signature covers what should have had one long ago.
    Uncovered,
    /// An export has what the store has not, or otherwise.
    ExportContradicts,
    /// What a decision was made of is not what its record names.
    FactsContradict,
    FactsMissing,
    /// The store finds a record by a token that it does not name.
    TokenContradicts,
    /// The store does not find the record of a token's hand-out.
    TokenMissing,
}

impl FaultKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Edited => "edited",
            Self::Missing => "missing",
            Self::Inserted => "inserted",
            Self::Reordered => "reordered",
            Self::CheckpointContradicts => "checkpoint_contradicts",
            Self::CheckpointForged => "checkpoint_forged",
            Self::ChainMissing => "chain_missing",
            Self::Uncovered => "uncovered",
            Self::ExportContradicts => "export_contradicts",
            Self::FactsContradict => "facts_contradict",
            Self::FactsMissing => "facts_missing",
            Self::TokenContradicts => "token_contradicts",
            Self::TokenMissing => "token_missing",
        }
    }
}

/// A verification under way: first [`chains`](Self::chains), then, where there are some, exports.
#[derive(Debug)]
pub struct Verification {
    reader: Arc<dyn AuditReader>,
    scope: Scope,
    report: Report,
    extents: BTreeMap<Uuid, Extent>,
    /// Where chains begin behind a checkpoint, or end in one, with all before it dropped.
    anchors: BTreeMap<Uuid, Anchor>,
    /// What records say was dropped because of its age: heads as they name them, and the places of those records.
    dropped: BTreeMap<String, BTreeSet<(Uuid, u64)>>,
    /// Chains with a fault: nothing else that is found of them is news.
    faulty: BTreeSet<Uuid>,
    coverage: Coverage,
    /// What records saw of chains that begin later now, or are gone: the hash at a place, and who saw it.
    seen_before: BTreeMap<(Uuid, u64), (Hash, String)>,
    beside: Beside,
    /// The fewest records of before the chain that a record says there were.
    unchained_before: Option<u64>,
}

/// A checkpoint that is one.
#[derive(Debug, Clone)]
struct Seen {
    head: Head,
    at: SystemTime,
    standing: Standing,
}

/// The checkpoint behind which the rest of a chain begins.
#[derive(Debug, Clone)]
struct Anchor {
    head: Head,
    at: SystemTime,
    standing: Standing,
    /// Somebody relies on it.
    needed: bool,
}

impl Verification {
    pub fn new(reader: Arc<dyn AuditReader>, scope: Scope) -> Self {
        Self {
            reader,
            scope,
            report: Report::default(),
            extents: BTreeMap::new(),
            anchors: BTreeMap::new(),
            dropped: BTreeMap::new(),
            faulty: BTreeSet::new(),
            coverage: Coverage::default(),
            seen_before: BTreeMap::new(),
            beside: Beside::default(),
            unchained_before: None,
        }
    }

    /// Walks every chain. Holds some megabytes at most, a few hundred bytes for each chain and each hour of it, and fifty
    /// for each set of facts.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn chains(&mut self) -> Result<(), AuditError> {
        let chains = self.reader.chains().await?;
        self.extents = chains.iter().map(|extent| (extent.chain, *extent)).collect();
        self.checkpoints_without_records().await?;
        self.fact_sets().await?;
        for extent in chains {
            self.walk(extent).await?;
        }
        self.what_nothing_names().await?;
        self.unchained().await?;
        self.judge_coverage().await?;
        self.judge_anchors();
        self.report.faults.sort_by_key(|fault| (fault.chain, fault.position));
        Ok(())
    }

    pub fn into_report(self) -> Report {
        self.report
    }

    /// Chains of which the store has nothing but checkpoints: all of it was dropped, up to the last of them.
    async fn checkpoints_without_records(&mut self) -> Result<(), AuditError> {
        let mut behind = (Uuid::nil(), 0);
        let mut last: Option<(Head, bool)> = None;
        loop {
            let page = self.reader.checkpoints(behind, CHECKPOINTS_AT_ONCE).await?;
            for checkpoint in &page {
                behind = (checkpoint.chain, checkpoint.position);
                if last.is_some_and(|(head, _anchor)| head.chain != checkpoint.chain) {
                    self.settle(last.take());
                }
                if self.extents.contains_key(&checkpoint.chain) {
                    continue;
                }
                let Some(Seen { head, at, standing }) = self.examined(checkpoint) else { continue };
                let anchored = checkpoint.anchor_ms.is_some();
                if anchored {
                    self.anchors.insert(head.chain, Anchor { head, at, standing, needed: false });
                }
                let before = last.is_some_and(|(_head, anchored)| anchored);
                last = Some((head, anchored || before));
            }
            if page.is_empty() {
                self.settle(last);
                return Ok(());
            }
        }
    }

    /// `last`: checkpoint of a chain, and whether that or an earlier one says that what is before was dropped.
    fn settle(&mut self, last: Option<(Head, bool)>) {
        if let Some((Head { chain, position, .. }, false)) = last {
            let detail = format!("the store has its checkpoints, the last one at {position}, and none of its records");
            self.fault(FaultKind::ChainMissing, chain, 1, detail);
        }
    }

    /// What a checkpoint says, where that is worth something: `None` for one that is a fault.
    fn examined(&mut self, checkpoint: &Checkpoint) -> Option<Seen> {
        let (chain, position) = (checkpoint.chain, checkpoint.position);
        let Some((said, statement)) = checkpoint.statement() else {
            let detail = "what stands in the place of the checkpoint is none".to_owned();
            self.fault(FaultKind::CheckpointForged, chain, position, detail);
            return None;
        };
        if (said.head.chain, said.head.position) != (chain, position) {
            let detail = format!("the checkpoint is that of {} at {}", said.head.chain, said.head.position);
            self.fault(FaultKind::CheckpointForged, chain, position, detail);
            return None;
        }
        let standing = statement.standing(&self.scope.keys);
        match &standing {
            Standing::Signed | Standing::Unsigned => {}
            Standing::UnknownKey(kid) => *self.report.unknown_keys.entry(kid.clone()).or_default() += 1,
            Standing::Untimely(kid) => *self.report.untimely_keys.entry(kid.clone()).or_default() += 1,
            Standing::Wrong(kid) => {
                let detail = format!("the checkpoint's signature is not that of the key {kid}, which it names");
                self.fault(FaultKind::CheckpointForged, chain, position, detail);
                return None;
            }
        }
        Some(Seen { head: said.head, at: said.at, standing })
    }

    /// They can stand before the chained ones only.
    async fn unchained(&mut self) -> Result<(), AuditError> {
        let (records, newest_ms) = self.reader.unchained().await?;
        self.report.unchained = records;
        let Some(oldest) = self.extents.values().next() else { return Ok(()) };
        let first = self.reader.onwards(oldest.chain, oldest.first.saturating_sub(1), 1).await?;
        let first = first.first().and_then(newest_said);
        let detail = if records > 0 && first.is_some_and(|first| newest_ms > first) {
            "records of no chain are newer than the first chain: added since, or written by an older carnet beside this \
             one"
                .to_owned()
        } else if let Some(before) = self.unchained_before.filter(|before| records > *before) {
            format!("there are {records} records of no chain, and a broker that started here found {before}")
        } else {
            return Ok(());
        };
        let time = Some(crate::clock::from_unix_milliseconds(newest_ms));
        self.told(Fault { chain: None, time, ..Fault::of(FaultKind::Inserted, Uuid::nil(), 0, detail) });
        Ok(())
    }

    /// What was dropped was old enough, or is on record as dropped, in a record that a signature covers.
    fn judge_anchors(&mut self) {
        for ((chain, position), (hash, witness)) in std::mem::take(&mut self.seen_before) {
            let anchor = self.anchors.get(&chain).filter(|anchor| anchor.head.position == position);
            if anchor.is_some_and(|anchor| anchor.head.hash != hash) {
                let detail = format!("{witness} saw another record here than the one up to which all was dropped");
                self.fault(FaultKind::CheckpointContradicts, chain, position, detail);
            }
        }
        let needed: Vec<Anchor> = self.anchors.values().filter(|anchor| anchor.needed).cloned().collect();
        for Anchor { head, at, standing, .. } in needed {
            let old = at.checked_add(self.scope.retention).is_some_and(|until| until <= self.scope.now);
            let vouched = match (standing, self.scope.signatures) {
                (Standing::Signed, _) | (Standing::Unsigned, Signatures::None) => old,
                (Standing::Unsigned | Standing::UnknownKey(_) | Standing::Untimely(_) | Standing::Wrong(_), _) => false,
            };
            let said = self.dropped.get(&head.to_string());
            let on_record = said.into_iter().flatten().any(|(chain, position)| match self.scope.signatures {
                Signatures::Expected => self.coverage.is_signed(*chain, *position),
                Signatures::None => true,
            });
            if !vouched && self.scope.since.is_none() && !on_record {
                let detail = format!(
                    "the records up to {} are gone, younger than the retention, and no record says that they were dropped",
                    head.position
                );
                self.fault(FaultKind::Missing, head.chain, 1, detail);
            }
        }
    }

    /// Of a chain only the first fault.
    fn fault(&mut self, kind: FaultKind, chain: Uuid, position: u64, detail: String) {
        self.fault_of(Fault::of(kind, chain, position, detail));
    }

    fn fault_of(&mut self, fault: Fault) {
        let is_first = fault.chain.is_none_or(|chain| self.faulty.insert(chain));
        if is_first {
            self.told(fault);
        }
    }

    /// Also of what stands beside a chain that is whole.
    fn told(&mut self, fault: Fault) {
        if self.report.faults.len() < MOST_FAULTS {
            self.report.faults.push(fault);
        }
    }

    /// The hash that the store has for a record.
    async fn stored_hash(&self, chain: Uuid, position: u64) -> Result<Option<Hash>, AuditError> {
        let Some((first, hashes)) = self.reader.hashes(chain, position).await? else { return Ok(None) };
        Ok(hash_at(first, &hashes, position))
    }
}

impl Fault {
    fn of(kind: FaultKind, chain: Uuid, position: u64, detail: String) -> Self {
        Self { kind, chain: Some(chain), position, exchange_id: String::new(), time: None, detail }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// Of more chains than these nobody needs to hear.
pub const MOST_FAULTS: usize = 1000;

const CHECKPOINTS_AT_ONCE: u32 = 1000;

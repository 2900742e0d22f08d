//! How far signatures reach: over a chain's own checkpoints, and over what a covered record says of other chains.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::walk::{shown, time_of};
use super::{Fault, FaultKind, Signatures, Verification};
use crate::audit::reader;
use crate::audit::{AuditError, Extent};
use crate::clock::from_unix_milliseconds;
use crate::issuer::Standing;

#[derive(Debug, Default)]
pub(super) struct Coverage {
    chains: BTreeMap<Uuid, Reached>,
    /// (named chain, naming chain) → what of it was named, and by which record.
    named: BTreeMap<(Uuid, Uuid), Named>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Reached {
    /// Before the first record that was checked.
    from: u64,
    /// The last that was; 0 for a chain with a fault.
    to: u64,
    /// Covered by a signature, from its beginning to this position.
    signed: u64,
    unsigned: u64,
}

/// The furthest that is known to be named by a signed record, and the furthest of all.
#[derive(Debug, Clone, Copy, Default)]
struct Named {
    by_signed: u64,
    last: (u64, u64),
}

impl Coverage {
    pub fn walks(&mut self, chain: Uuid, from: u64) {
        self.chains.entry(chain).or_default().from = from;
    }

    pub fn walked(&mut self, chain: Uuid, to: u64) {
        self.chains.entry(chain).or_default().to = to;
    }

    pub fn checkpoint(&mut self, chain: Uuid, position: u64, standing: &Standing) {
        let reached = self.chains.entry(chain).or_default();
        match standing {
            Standing::Signed => reached.signed = reached.signed.max(position),
            Standing::Unsigned => reached.unsigned = reached.unsigned.max(position),
            Standing::UnknownKey(_) | Standing::Untimely(_) | Standing::Wrong(_) => {}
        }
    }

    /// The record at `by` names the one at `what`, which is as it says.
    pub fn named(&mut self, by: (Uuid, u64), what: (Uuid, u64)) {
        let named = self.named.entry((what.0, by.0)).or_default();
        // Records of a chain come in their order: what is covered when the next checkpoint is met is not known yet.
        if named.last.1 != 0 && self.chains.get(&by.0).is_some_and(|reached| reached.signed >= named.last.1) {
            named.by_signed = named.by_signed.max(named.last.0);
        }
        named.last = (what.1, by.1);
    }

    /// Whether a signature covers the record; to be asked after all is known.
    pub fn is_signed(&self, chain: Uuid, position: u64) -> bool {
        self.chains.get(&chain).is_some_and(|reached| reached.signed >= position)
    }

    /// Lets what is signed for vouch for what it names, until nothing changes.
    fn spread(&mut self) {
        loop {
            let mut changed = false;
            for ((chain, by), named) in &self.named {
                let signed = self.chains.get(by).map_or(0, |reached| reached.signed);
                let reaches = if signed >= named.last.1 { named.last.0.max(named.by_signed) } else { named.by_signed };
                if let Some(reached) = self.chains.get_mut(chain)
                    && reached.signed < reaches
                {
                    reached.signed = reaches;
                    changed = true;
                }
            }
            if !changed {
                return;
            }
        }
    }
}

impl Verification {
    /// Counts what is covered, and finds what should be and is not.
    pub(super) async fn judge_coverage(&mut self) -> Result<(), AuditError> {
        self.coverage.spread();
        let whole: Vec<(Uuid, Reached)> =
            self.coverage.chains.iter().map(|(chain, reached)| (*chain, *reached)).collect();
        for (chain, Reached { from, to, signed, unsigned }) in whole {
            if to <= from || self.faulty.contains(&chain) {
                continue;
            }
            let signed = signed.clamp(from, to);
            let unsigned = unsigned.clamp(signed, to);
            self.report.signed += signed - from;
            self.report.unsigned += unsigned - signed;
            self.report.newer += to - unsigned;
            if self.scope.signatures == Signatures::Expected && signed < to {
                self.judge_uncovered(chain, signed).await?;
            }
        }
        Ok(())
    }

    /// Behind `covered` there may be what was recorded before the next checkpoint was due, and no more.
    async fn judge_uncovered(&mut self, chain: Uuid, covered: u64) -> Result<(), AuditError> {
        let Some(Extent { last, newest_ms, .. }) = self.extents.get(&chain).copied() else { return Ok(()) };
        let groups = self.reader.onwards(chain, covered, 1).await?;
        let first = groups.iter().flat_map(reader::shown).find(|record| record.sequence > covered);
        let Some(first) = first else { return Ok(()) };
        let (time, newest) = (time_of(&first), from_unix_milliseconds(newest_ms));
        let between = time.and_then(|time| newest.duration_since(time).ok()).unwrap_or_default();
        if between > CHECKPOINT_IS_LATE {
            let detail = format!(
                "no checkpoint with a signature that can be checked covers the records up to {last}, the last of {}: \
                 those that did are gone, or their keys are not known here",
                shown(newest)
            );
            let exchange_id = first.exchange_id;
            let fault = Fault { exchange_id, time, ..Fault::of(FaultKind::Uncovered, chain, covered + 1, detail) };
            self.fault_of(fault);
        }
        Ok(())
    }
}

/// A minute is what brokers take between two; a store that is away for moments makes it more.
const CHECKPOINT_IS_LATE: std::time::Duration = std::time::Duration::from_secs(15 * 60);

//! How far somebody has read every chain, and what they have not seen of it.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::reader::chain_of;
use crate::proto;

/// The position of the last record that was seen, by chain, and the gaps before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursors {
    pub(super) positions: BTreeMap<Uuid, u64>,
    pub(super) gaps: Gaps,
    /// When the log was last asked for what the gaps lack: milliseconds since 1970.
    pub(super) asked_ms: Option<i64>,
}

impl Cursors {
    pub fn new(positions: impl IntoIterator<Item = (Uuid, u64)>, gaps: Gaps) -> Self {
        Self { positions: positions.into_iter().collect(), gaps, asked_ms: None }
    }

    pub fn gaps(&self) -> impl Iterator<Item = Gap> + '_ {
        self.gaps.iter().copied()
    }

    /// 0 for a chain that was not seen.
    pub fn position(&self, chain: Uuid) -> u64 {
        self.positions.get(&chain).copied().unwrap_or_default()
    }

    /// Whether `record`, as it is shown, is at or before the cursor of its chain. Records of no chain always are.
    pub fn passed(&self, record: &proto::AuditRecord) -> bool {
        chain_of(record).is_none_or(|chain| record.sequence <= self.position(chain))
    }
}

/// Records of a chain that were not in the log when later ones were read: a broker's spool may bring them yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub chain: Uuid,
    /// Position of the first of them.
    pub first: u64,
    pub last: u64,
}

impl Gap {
    pub fn records(&self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }

    /// What stands before the first record that was seen of a chain was perhaps never there for whoever looks.
    pub fn is_beginning(&self) -> bool {
        self.first <= 1
    }

    fn has(&self, chain: Uuid, position: u64) -> bool {
        self.chain == chain && (self.first..=self.last).contains(&position)
    }
}

/// Those that are open, the oldest first. Bound: [`MOST_GAPS`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gaps(Vec<Gap>);

impl Gaps {
    pub fn iter(&self) -> impl Iterator<Item = &Gap> {
        self.0.iter()
    }

    /// Records that are missed; not those of beginnings.
    pub fn records(&self) -> u64 {
        self.0.iter().filter(|gap| !gap.is_beginning()).map(Gap::records).sum()
    }

    /// Returns the one that is given up for it, if any: a beginning rather than another.
    pub fn open(&mut self, gap: Gap) -> Option<Gap> {
        self.0.push(gap);
        let least = self.0.iter().position(Gap::is_beginning).unwrap_or_default();
        (self.0.len() > MOST_GAPS).then(|| self.0.remove(least))
    }

    /// The record at `position` is there; whether it was missed.
    pub fn close(&mut self, chain: Uuid, position: u64) -> bool {
        let Some(at) = self.0.iter().position(|gap| gap.has(chain, position)) else { return false };
        let gap = self.0.remove(at);
        let rest = [Gap { last: position.saturating_sub(1), ..gap }, Gap { first: position.saturating_add(1), ..gap }];
        let rest = rest.into_iter().filter(|gap| gap.first <= gap.last);
        self.0.splice(at..at, rest);
        true
    }

    /// Removes and returns those that `is_over` takes.
    pub fn give_up(&mut self, is_over: impl Fn(&Gap) -> bool) -> Vec<Gap> {
        self.0.extract_if(.., |gap| is_over(gap)).collect()
    }
}

impl FromIterator<Gap> for Gaps {
    fn from_iter<I: IntoIterator<Item = Gap>>(gaps: I) -> Self {
        Self(gaps.into_iter().collect())
    }
}

/// Each comes of a broker that ended while it could not write to the database.
const MOST_GAPS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_closes_record_by_record_in_any_order_and_their_number_is_bounded() {
        let chain = Uuid::from_u128(1);
        let gap = |first, last| Gap { chain, first, last };
        let mut gaps = Gaps::default();
        assert_eq!(gaps.open(gap(11, 15)), None);
        assert!(gaps.close(chain, 13) && !gaps.close(chain, 13) && !gaps.close(Uuid::from_u128(2), 12));
        assert_eq!(gaps.iter().copied().collect::<Vec<_>>(), [gap(11, 12), gap(14, 15)]);
        assert!([11, 12, 15, 14].iter().all(|position| gaps.close(chain, *position)));
        assert_eq!((gaps.records(), gaps.iter().count()), (0, 0));
        for number in 1..=64 {
            assert_eq!(gaps.open(gap(number * 10, number * 10)), None);
        }
        assert_eq!(gaps.open(gap(1000, 1000)), Some(gap(10, 10)));
        assert_eq!((gaps.records(), gaps.iter().count()), (64, 64));
    }
}

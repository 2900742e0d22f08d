//! Which records a tail has shown, so that none is shown twice, in whatever order they come.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::audit::chain_of;
use crate::proto::AuditRecord;

/// Positions of records, by chain. Bound: [`CHAINS`] times [`RANGES`]. Beyond it, the oldest chain is forgotten, and what
/// lies between the oldest ranges of a chain is taken as shown.
#[derive(Debug, Default)]
pub(super) struct Shown(BTreeMap<Uuid, Chain>);

#[derive(Debug)]
struct Chain {
    /// The position that was shown first.
    first: u64,
    /// First and last position of each run without a gap.
    ranges: BTreeMap<u64, u64>,
}

impl Shown {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes that `record` is shown; false where it was before. A record of no chain is always new.
    pub fn add(&mut self, record: &AuditRecord) -> bool {
        let Some(chain) = chain_of(record) else { return true };
        let position = record.sequence;
        let shown = self.0.entry(chain).or_insert_with(|| Chain { first: position, ranges: BTreeMap::new() });
        let new = shown.add(position);
        if self.0.len() > CHAINS {
            // The identifiers are in the order of their beginnings.
            self.0.pop_first();
        }
        new
    }

    /// Whether `record` stands before everything that was shown of its chain: it was there before this tail began.
    pub fn is_older(&self, record: &AuditRecord) -> bool {
        let Some(chain) = chain_of(record) else { return true };
        self.0.get(&chain).is_some_and(|shown| record.sequence < shown.first)
    }
}

impl Chain {
    fn add(&mut self, position: u64) -> bool {
        let before = self.ranges.range(..=position).next_back().map(|(from, to)| (*from, *to));
        if before.is_some_and(|(_from, to)| position <= to) {
            return false;
        }
        let from =
            before.filter(|(_from, to)| to.checked_add(1) == Some(position)).map_or(position, |(from, _to)| from);
        let behind = position.checked_add(1).and_then(|next| self.ranges.remove(&next));
        self.ranges.insert(from, behind.unwrap_or(position));
        if self.ranges.len() > RANGES
            && let (Some((from, _to)), Some((_from, to))) = (self.ranges.pop_first(), self.ranges.pop_first())
        {
            self.ranges.insert(from, to);
        }
        true
    }
}

/// Of the processes of all brokers while a tail runs.
const CHAINS: usize = 1000;

/// A tail with a filter shows records that are far from each other.
const RANGES: usize = 20_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(chain: u128, sequence: u64) -> AuditRecord {
        let attributes = [("chain".to_owned(), Uuid::from_u128(chain).to_string())].into();
        AuditRecord { sequence, attributes, ..AuditRecord::default() }
    }

    proptest! {
        #[test]
        fn a_record_is_new_once_in_whatever_order_records_come(positions in proptest::collection::vec(1..200u64, 0..400)) {
            let (mut shown, mut known) = (Shown::default(), std::collections::BTreeSet::new());
            for position in positions {
                prop_assert_eq!(shown.add(&record(1, position)), known.insert(position));
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_shown_twice_beyond_the_bound() {
        let mut shown = Shown::default();
        let positions = (1..).step_by(2).take(RANGES + 10);
        assert!(positions.clone().all(|position| shown.add(&record(1, position))));
        assert!(positions.clone().all(|position| !shown.add(&record(1, position))));
        assert!(shown.0.values().all(|chain| chain.ranges.len() == RANGES));
        for chain in 2..2000 {
            shown.add(&record(chain, 1));
        }
        assert_eq!(shown.0.len(), CHAINS);
    }

    #[test]
    fn what_stands_before_the_first_that_was_shown_is_older() {
        let mut shown = Shown::default();
        shown.add(&record(1, 7));
        shown.add(&record(1, 3));
        assert!(shown.is_older(&record(1, 6)) && !shown.is_older(&record(1, 8)) && !shown.is_older(&record(2, 1)));
    }
}

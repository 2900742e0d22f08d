//! Which facts the store has already: most records refer to the same few.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::AuditRecord;
use crate::subject::Facts;

/// When the facts of each digest were last stored. They are stored again every [`AGAIN_AFTER`], so that the store knows
/// which of them records still refer to. Full, it forgets all: storing them again changes nothing.
#[derive(Debug, Default)]
pub(super) struct Remembered(HashMap<[u8; 32], SystemTime>);

impl Remembered {
    /// What `records` refer to and the store may not have, in the order of digests.
    pub fn missing(&self, records: &[AuditRecord], now: SystemTime) -> Vec<Arc<Facts>> {
        let known = |facts: &Arc<Facts>| {
            let stored = self.0.get(&facts.digest);
            stored.is_some_and(|at| now.duration_since(*at).is_ok_and(|since| since < AGAIN_AFTER))
        };
        let named = records.iter().filter_map(|record| record.identity.as_ref());
        let missing: BTreeMap<_, _> = named.filter(|facts| !known(facts)).map(|facts| (facts.digest, facts)).collect();
        missing.into_values().cloned().collect()
    }

    pub fn stored(&mut self, digests: impl IntoIterator<Item = [u8; 32]>, now: SystemTime) {
        for digest in digests {
            if self.0.len() >= MOST {
                self.0.clear();
            }
            self.0.insert(digest, now);
        }
    }
}

/// Well below any retention.
pub(super) const AGAIN_AFTER: Duration = Duration::from_secs(12 * 3600);

/// 4 MB.
const MOST: usize = 50_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_stored_once_and_again_after_half_a_day() {
        let facts = |digest| Arc::new(Facts::stored([digest; 32], "{}".to_owned()));
        let about = |digest| AuditRecord { identity: Some(facts(digest)), ..AuditRecord::for_test(1) };
        let records = [about(7), about(3), AuditRecord::for_test(2), about(7)];
        let (mut remembered, start) = (Remembered::default(), SystemTime::UNIX_EPOCH + AGAIN_AFTER);
        assert_eq!(remembered.missing(&records, start), [facts(3), facts(7)]);
        remembered.stored([[7; 32]], start);
        assert_eq!(remembered.missing(&records, start), [facts(3)]);
        assert_eq!(remembered.missing(&records, start + AGAIN_AFTER), [facts(3), facts(7)]);
        // A clock that was set back.
        assert_eq!(remembered.missing(&records, start - Duration::from_secs(1)), [facts(3), facts(7)]);
    }
}

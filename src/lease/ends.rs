//! Who has to hear that a lease has ended: its watches, and the cache that holds its credentials.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::credential::Key;

/// What this replica has to do with leases that are open.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<HashMap<Uuid, Interest>>);

#[derive(Debug, Default)]
struct Interest {
    watches: usize,
    ended: CancellationToken,
    /// Of the credentials that were handed out here.
    keys: Vec<Key>,
}

impl Ends {
    /// Cancelled when the lease ends, as far as this replica learns of it.
    pub fn watch(self: &Arc<Self>, lease: Uuid) -> Watching {
        let mut interests = self.interests();
        let interest = interests.entry(lease).or_default();
        interest.watches += 1;
        Watching { ended: interest.ended.clone(), lease, ends: self.clone() }
    }

    pub fn handed_out(&self, lease: Uuid, keys: impl Iterator<Item = Key>) {
        let mut interests = self.interests();
        let interest = interests.entry(lease).or_default();
        for key in keys {
            if !interest.keys.contains(&key) {
                // Those of before have expired, or will be asked for again.
                interest.keys.truncate(KEYS - 1);
                interest.keys.insert(0, key);
            }
        }
    }

    /// Tells the watches; returns the keys whose credentials are to be forgotten.
    pub fn ended(&self, lease: Uuid) -> Vec<Key> {
        let Some(interest) = self.interests().remove(&lease) else { return Vec::new() };
        interest.ended.cancel();
        interest.keys
    }

    pub fn is_empty(&self) -> bool {
        self.interests().is_empty()
    }

    fn interests(&self) -> MutexGuard<'_, HashMap<Uuid, Interest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sixteen targets, each with its last token and the one before.
const KEYS: usize = 32;

#[derive(Debug)]
pub(super) struct Watching {
    pub ended: CancellationToken,
    lease: Uuid,
    ends: Arc<Ends>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut interests = self.ends.interests();
        if let Some(interest) = interests.get_mut(&self.lease) {
            interest.watches = interest.watches.saturating_sub(1);
            if interest.watches == 0 && interest.keys.is_empty() {
                interests.remove(&self.lease);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_watch_of_a_lease_hears_its_end_and_no_other_does() {
        let ends = Arc::new(Ends::default());
        let watches = [1, 1, 2].map(|number| ends.watch(Uuid::from_u128(number)));
        ends.handed_out(Uuid::from_u128(1), [[7; 32], [7; 32], [8; 32]].into_iter());
        assert_eq!(ends.ended(Uuid::from_u128(1)), [[8; 32], [7; 32]]);
        assert_eq!(watches.each_ref().map(|watch| watch.ended.is_cancelled()), [true, true, false]);
        assert!(ends.ended(Uuid::from_u128(1)).is_empty());
    }

    #[test]
    fn a_watch_that_leaves_leaves_nothing_behind() {
        let ends = Arc::new(Ends::default());
        drop(ends.watch(Uuid::from_u128(1)));
        assert!(ends.interests().is_empty());
    }
}

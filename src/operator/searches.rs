//! Places for those who have the audit log searched or follow it: each search holds some megabytes at most, and reads as fast
//! as the store answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::exchange::ExchangeError;

/// So many for all operators at one moment, and fewer for each of them.
#[derive(Debug, Default)]
pub struct Searches(Mutex<HashMap<String, usize>>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    searches: Arc<Searches>,
    subject: String,
}

impl Searches {
    /// # Errors
    /// This operator has all that one may have, or all operators together have all that there are.
    pub(super) fn place(self: &Arc<Self>, subject: &str) -> Result<Place, ExchangeError> {
        let mut taken = self.taken();
        if taken.values().sum::<usize>() >= MOST {
            return Err(ExchangeError::LogReaders(FULL));
        }
        let own = taken.entry(subject.to_owned()).or_default();
        if *own >= MOST_OF_ONE {
            return Err(ExchangeError::LogReaders(FULL_OF_ONE));
        }
        *own += 1;
        Ok(Place { searches: self.clone(), subject: subject.to_owned() })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.searches.taken();
        if let Some(own) = taken.get_mut(&self.subject) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.subject);
            }
        }
    }
}

const MOST: usize = 32;
const FULL: &str =
    "32 searches of the audit log are under way, and there is no place for more: ask again when one has ended";

/// For a few tails and a search beside them; it takes four operators to take all places.
const MOST_OF_ONE: usize = 8;
const FULL_OF_ONE: &str =
    "you have 8 searches of the audit log under way, tails included: end one, or wait for its end";

#[cfg(test)]
mod tests {
    use super::*;

    fn why(place: Result<Place, ExchangeError>) -> Option<&'static str> {
        match place {
            Err(ExchangeError::LogReaders(why)) => Some(why),
            _ => None,
        }
    }

    #[test]
    fn one_operator_has_a_fourth_of_the_places_and_gives_them_back() {
        let searches = Arc::new(Searches::default());
        let mut places: Vec<Place> = Vec::new();
        for operator in ["a", "b", "c", "d"] {
            places.extend((0..MOST_OF_ONE).map(|_| searches.place(operator).expect("a place")));
            if operator != "d" {
                assert_eq!(why(searches.place(operator)), Some(FULL_OF_ONE));
            }
        }
        assert_eq!(why(searches.place("e")), Some(FULL));
        drop(places.pop());
        assert_eq!(why(searches.place("a")), Some(FULL_OF_ONE));
        let last = searches.place("e").expect("a place");
        assert_eq!(why(searches.place("d")), Some(FULL));
        drop((places, last));
        assert!(searches.taken().is_empty(), "who has none is forgotten");
    }
}

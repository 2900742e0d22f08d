//! Places that are had at once: nobody gets more than a multiple of what is left for others.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

/// How many each key has. The fewer are free, the fewer one may have (the dynamic threshold of shared memory switches):
/// one alone gets two of three, a second one two of three of the rest, and newcomers find some free.
#[derive(Debug)]
pub struct Shares {
    times: usize,
    held: Arc<[Mutex<HashMap<u64, usize>>; STRIPES]>,
}

/// One place, until it is dropped.
#[derive(Debug)]
pub struct Share {
    key: u64,
    held: Arc<[Mutex<HashMap<u64, usize>>; STRIPES]>,
}

impl Default for Shares {
    fn default() -> Self {
        Self::times(2)
    }
}

impl Shares {
    /// Nobody gets more than so many times what is free.
    pub fn times(times: usize) -> Self {
        Self { times, held: Arc::new([(); STRIPES].map(|()| Mutex::default())) }
    }

    /// `free`: what nobody has. `None` where the key has its share. The first few are given whatever is free.
    pub fn take(&self, key: u64, free: usize) -> Option<Share> {
        let mut held = stripe(&self.held, key).lock().unwrap_or_else(PoisonError::into_inner);
        match held.entry(key) {
            Entry::Occupied(mut has) => {
                if *has.get() >= ALWAYS.max(free.saturating_mul(self.times)) {
                    return None;
                }
                *has.get_mut() += 1;
            }
            Entry::Vacant(none) => {
                none.insert(1);
            }
        }
        Some(Share { key, held: self.held.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = stripe(&self.held, self.key).lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut has) = held.entry(self.key) {
            *has.get_mut() -= 1;
            if *has.get() == 0 {
                has.remove();
            }
        }
    }
}

/// Callers that come at once seldom meet at one lock.
#[expect(clippy::indexing_slicing, reason = "the index is less than the length")]
fn stripe(held: &[Mutex<HashMap<u64, usize>>; STRIPES], key: u64) -> &Mutex<HashMap<u64, usize>> {
    &held[usize::try_from(key % STRIPES_U64).unwrap_or_default()]
}

const STRIPES: usize = 64;
const STRIPES_U64: u64 = 64;

/// Who has no more than these is nobody's burden.
const ALWAYS: usize = 16;

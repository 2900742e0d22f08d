//! Who was verified of late: a set of fixed size, in which newcomers take the places of others.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub(super) struct Known(Box<[AtomicU64]>);

impl Known {
    pub fn new() -> Self {
        Self(cells(CELLS))
    }

    pub fn insert(&self, key: u64) {
        self.places(key).iter().for_each(|place| place.store(key, Ordering::Relaxed));
    }

    /// In one of its two places, unless others came to both.
    pub fn holds(&self, key: u64) -> bool {
        self.places(key).iter().any(|place| place.load(Ordering::Relaxed) == key)
    }

    fn places(&self, key: u64) -> [&AtomicU64; 2] {
        [cell(&self.0, key), cell(&self.0, key >> 32)]
    }
}

pub(super) fn cells(count: usize) -> Box<[AtomicU64]> {
    std::iter::repeat_with(AtomicU64::default).take(count).collect()
}

/// `cells` has a power of two of them, at least one.
#[expect(clippy::indexing_slicing, reason = "the index is less than the length, which is not 0")]
pub(super) fn cell(cells: &[AtomicU64], key: u64) -> &AtomicU64 {
    let low = usize::try_from(key & 0xffff_ffff).unwrap_or_default();
    &cells[low & (cells.len() - 1)]
}

const CELLS: usize = 1 << 16;

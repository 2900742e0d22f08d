//! Token buckets for any number of keys in a fixed amount of memory, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Rate;

/// Two cells stand for each key, and a key has what the better of them has: to be limited for others' sake it would have
/// to share both. A cell holds the time at which its bucket is full again, in nanoseconds (the generic cell rate
/// algorithm of ITU-T I.371), so that an unused one is full by itself.
#[derive(Debug)]
pub(super) struct Buckets {
    rows: [Box<[AtomicU64]>; 2],
    /// Nanoseconds that one costs.
    one: u64,
    /// Nanoseconds that may be owed.
    most: u64,
}

impl Buckets {
    pub fn new(rate: Rate) -> Self {
        let one = (NANOSECONDS / u64::from(rate.per_second.get())).max(1);
        let most = one.saturating_mul(u64::from(rate.burst.get()));
        Self { rows: [(); 2].map(|()| super::known::cells(CELLS)), one, most }
    }

    /// Takes one from the key's bucket.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take(&self, key: u64, now: u64) -> Result<(), Duration> {
        let [first, second] = self.cells(key).map(|cell| self.charge(cell, now));
        sooner(first, second)
    }

    /// Whether there is one to take.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn has_room(&self, key: u64, now: u64) -> Result<(), Duration> {
        let [first, second] = self.cells(key).map(|cell| self.charged(cell.load(Ordering::Relaxed), now).map(drop));
        sooner(first, second)
    }

    fn charge(&self, cell: &AtomicU64, now: u64) -> Result<(), Duration> {
        let mut wait = Duration::ZERO;
        let charged = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full| {
            self.charged(full, now).inspect_err(|least| wait = *least).ok()
        });
        charged.map(drop).map_err(|_unchanged| wait)
    }

    /// When a bucket that is full again at `full` is so after one more.
    fn charged(&self, full: u64, now: u64) -> Result<u64, Duration> {
        let after = full.max(now).saturating_add(self.one);
        let owed = after - now;
        if owed > self.most { Err(Duration::from_nanos(owed - self.most)) } else { Ok(after) }
    }

    fn cells(&self, key: u64) -> [&AtomicU64; 2] {
        let [first, second] = &self.rows;
        [super::known::cell(first, key), super::known::cell(second, key >> 32)]
    }
}

fn sooner(first: Result<(), Duration>, second: Result<(), Duration>) -> Result<(), Duration> {
    match (first, second) {
        (Err(first), Err(second)) => Err(first.min(second)),
        (Ok(()), _) | (_, Ok(())) => Ok(()),
    }
}

const NANOSECONDS: u64 = 1_000_000_000;

/// With a thousand callers at their limits, another one is limited with them once in three hundred.
const CELLS: usize = 1 << 14;

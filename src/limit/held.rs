//! Refusals that are kept waiting: the more there are, the longer each, so that all of them together leave the broker its
//! time, however many streams a flood has.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Debug, Default)]
pub struct HeldBack(AtomicUsize);

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Held<'a> {
    all: &'a HeldBack,
    /// How long it waits.
    pub wait: Duration,
}

impl HeldBack {
    pub fn one_more(&self) -> Held<'_> {
        let others = u32::try_from(self.0.fetch_add(1, Ordering::Relaxed)).unwrap_or(u32::MAX);
        Held { all: self, wait: EACH.saturating_mul(others).clamp(LEAST, MOST) }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.all.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Two thousand a second cost a tenth of a core.
const EACH: Duration = Duration::from_micros(500);

const LEAST: Duration = Duration::from_secs(1);

/// Within the deadlines that callers have, with room for the spread.
const MOST: Duration = Duration::from_secs(15);

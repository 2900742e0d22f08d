//! When keys are made, sign and are withdrawn: decided by the clock and by what every replica reads from the store.

use std::time::{Duration, SystemTime};

use crate::policy::ASSERTION_LIFETIME;

/// How often keys rotate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// How long a key signs.
    pub rotate_every: Duration,
    /// How long a key is published before it signs; at most `rotate_every`.
    pub publish_ahead: Duration,
}

/// What a key is for at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Published, so that relying parties know it when it signs.
    Next,
    Signing,
    /// Published for the sake of the assertions that it signed.
    Retiring,
    /// Nothing that it signed is valid any more.
    Withdrawn,
}

impl Phase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Signing => "signing",
            Self::Retiring => "retiring",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// A key and when it begins to sign.
#[derive(Debug, Clone)]
pub(super) struct Turn<K> {
    pub key: K,
    pub signs_from: SystemTime,
}

/// The keys of one algorithm in the order in which they sign. Each signs until the next one does.
#[derive(Debug, Clone)]
pub(super) struct Line<K>(Vec<Turn<K>>);

impl<K> Line<K> {
    pub fn new(mut turns: Vec<Turn<K>>) -> Self {
        turns.sort_by_key(|turn| turn.signs_from);
        Self(turns)
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|turn| &turn.key)
    }

    pub fn last(&self) -> Option<&K> {
        self.0.last().map(|turn| &turn.key)
    }

    /// The last key whose time has come; the first, where a clock is late and none has.
    pub fn signing(&self, now: SystemTime) -> Option<&Turn<K>> {
        self.0.get(self.signing_index(now))
    }

    /// Every key with what it is for, and the time from which it is no longer published where that is known.
    pub fn phases(&self, now: SystemTime) -> impl Iterator<Item = (&Turn<K>, Phase, Option<SystemTime>)> {
        let signing = self.signing_index(now);
        let successors = self.0.iter().skip(1).map(Some).chain([None]);
        self.0.iter().zip(successors).enumerate().map(move |(index, (turn, successor))| {
            let withdrawn_after = successor.map(|successor| successor.signs_from + RETIRED_FOR);
            let phase = match index.cmp(&signing) {
                std::cmp::Ordering::Greater => Phase::Next,
                std::cmp::Ordering::Equal => Phase::Signing,
                std::cmp::Ordering::Less if withdrawn_after.is_some_and(|after| after <= now) => Phase::Withdrawn,
                std::cmp::Ordering::Less => Phase::Retiring,
            };
            (turn, phase, withdrawn_after)
        })
    }

    /// Every key with the time from which and until which it signs. The first one may have signed before its time, where a
    /// clock was late.
    pub fn terms(&self) -> impl Iterator<Item = (&K, Option<SystemTime>, Option<SystemTime>)> {
        let from = std::iter::once(None).chain(self.0.iter().skip(1).map(|turn| Some(turn.signs_from)));
        let until = self.0.iter().skip(1).map(|turn| Some(turn.signs_from)).chain([None]);
        self.0.iter().zip(from.zip(until)).map(|(turn, (from, until))| (&turn.key, from, until))
    }

    /// When the first of these keys began to sign; `None` where nobody knows.
    pub fn begun(&self) -> Option<SystemTime> {
        self.0.first().map(|first| first.signs_from).filter(|signs_from| *signs_from > SystemTime::UNIX_EPOCH)
    }

    pub fn published(&self, now: SystemTime) -> impl Iterator<Item = &K> {
        self.phases(now).filter(|(_turn, phase, _after)| *phase != Phase::Withdrawn).map(|(turn, ..)| &turn.key)
    }

    pub fn withdrawn(&self, now: SystemTime) -> impl Iterator<Item = &K> {
        self.phases(now).filter(|(_turn, phase, _after)| *phase == Phase::Withdrawn).map(|(turn, ..)| &turn.key)
    }

    /// Whether the last key needs a successor by now. One successor waits at a time, because `publish_ahead` is at most
    /// `rotate_every`.
    pub fn is_due(&self, schedule: Schedule, now: SystemTime) -> bool {
        let until_due = schedule.rotate_every.saturating_sub(schedule.publish_ahead);
        self.0.last().is_some_and(|last| last.signs_from + until_due <= now)
    }

    /// When a successor that is made now will sign.
    pub fn successor_signs_from(&self, schedule: Schedule, now: SystemTime) -> SystemTime {
        let published_enough = now + schedule.publish_ahead;
        self.0.last().map_or(now, |last| published_enough.max(last.signs_from + schedule.rotate_every))
    }

    fn signing_index(&self, now: SystemTime) -> usize {
        self.0.iter().rposition(|turn| turn.signs_from <= now).unwrap_or(0)
    }
}

/// How long a key stays published after its successor began to sign: the last assertion lives, a replica's clock and a
/// cloud's differ, and copies of the key set on the way to a cloud age.
pub const RETIRED_FOR: Duration =
    Duration::from_secs(ASSERTION_LIFETIME.as_secs() + LARGEST_SKEW.as_secs() + CACHES.as_secs());

const LARGEST_SKEW: Duration = Duration::from_secs(600);
const CACHES: Duration = Duration::from_secs(2 * 3600);

#[cfg(test)]
mod tests;

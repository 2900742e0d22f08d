//! How far the writer's chains are in the log, for those who make checkpoints of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::Head;

/// As far as a chain is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    pub head: Head,
    /// Of all its records: milliseconds since 1970.
    pub newest_ms: i64,
}

#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    current: Option<Reach>,
    /// What no checkpoint covers.
    uncovered: BTreeMap<Uuid, Reach>,
    /// Of the records that are not the log's own.
    newest_of_others: Option<i64>,
    /// The heads of other chains that records of this writer have named.
    named: BTreeMap<Uuid, u64>,
}

impl Progress {
    pub fn written(&self, head: Head, newest_ms: i64) {
        let mut state = self.state();
        let before = state.current.filter(|current| current.head.chain == head.chain);
        let newest_ms = before.map_or(newest_ms, |before| before.newest_ms.max(newest_ms));
        let reach = Reach { head, newest_ms };
        state.current = Some(reach);
        state.uncovered.insert(head.chain, reach);
        if state.uncovered.len() > MOST_UNCOVERED {
            // The oldest: its hash is named by the chains that came after it.
            state.uncovered.pop_first();
        }
    }

    /// Others than the log's own were written, the newest of this time.
    pub fn others_written(&self, newest_ms: i64) {
        let mut state = self.state();
        state.newest_of_others = state.newest_of_others.max(Some(newest_ms));
    }

    /// Before 1970 where there is none.
    pub fn newest_of_others(&self) -> i64 {
        self.state().newest_of_others.unwrap_or(i64::MIN)
    }

    pub fn current(&self) -> Option<Reach> {
        self.state().current
    }

    pub fn uncovered(&self) -> Vec<Reach> {
        self.state().uncovered.values().copied().collect()
    }

    /// Another key is to sign for the whole chain.
    pub fn uncover(&self) {
        let mut state = self.state();
        if let Some(current) = state.current {
            state.uncovered.insert(current.head.chain, current);
        }
    }

    /// More may have been written since.
    pub fn covered(&self, reach: &Reach) {
        let mut state = self.state();
        if state.uncovered.get(&reach.head.chain) == Some(reach) {
            state.uncovered.remove(&reach.head.chain);
        }
    }

    pub fn named(&self, heads: &[Head]) {
        self.state().named = heads.iter().map(|head| (head.chain, head.position)).collect();
    }

    /// Whether `head` is of another chain, and further than it was named.
    pub fn is_news(&self, head: &Head) -> bool {
        let state = self.state();
        state.current.is_none_or(|current| current.head.chain != head.chain)
            && state.named.get(&head.chain).is_none_or(|named| *named < head.position)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A writer begins a chain after each failed write; more of them than this are in the log only where checkpoints fail.
const MOST_UNCOVERED: usize = 64;

//! What was refused and not put on record by itself, because there was too much of it: counted, for a record in all.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::reason::Reason;

/// By whom it was, verified or not. Bound: [`MOST`]; whoever comes later is counted with the others.
#[derive(Debug, Default)]
pub struct Unrecorded(Mutex<BTreeMap<By, Omission>>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    Caller(String),
    Peer(String),
    Others,
}

/// What is said of one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Omission {
    /// `entra:{tenant}:{object}`; empty for a stranger.
    pub subject: String,
    /// Address or network of the stranger, or of the caller's first call that was left out.
    pub peer: String,
    pub since: SystemTime,
    pub reasons: BTreeMap<&'static str, u64>,
}

impl Omission {
    pub fn count(&self) -> u64 {
        self.reasons.values().sum()
    }

    pub fn who(&self) -> &str {
        if self.subject.is_empty() { &self.peer } else { &self.subject }
    }
}

impl Unrecorded {
    /// `subject`: who it was, if they were verified. Whether it is the first of them since the last record, which is put
    /// on record by itself so that there is one to look at.
    pub fn add(&self, subject: Option<&str>, peer: &str, reason: Reason, now: SystemTime) -> bool {
        let mut omissions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by = match subject {
            Some(subject) => By::Caller(subject.to_owned()),
            None => By::Peer(peer.to_owned()),
        };
        let is_first = !omissions.contains_key(&by);
        let is_full = omissions.len() >= MOST;
        if is_first && is_full {
            by = By::Others;
        }
        let omission = omissions.entry(by.clone()).or_insert_with(|| Omission {
            subject: subject.filter(|_| by != By::Others).unwrap_or_default().to_owned(),
            peer: if by == By::Others { "others".to_owned() } else { peer.to_owned() },
            since: now,
            reasons: BTreeMap::new(),
        });
        let stands_alone = is_first && !is_full;
        if !stands_alone {
            *omission.reasons.entry(reason.as_str()).or_default() += 1;
        }
        stands_alone
    }

    /// What was counted since the last time.
    pub fn take(&self) -> Vec<Omission> {
        let omissions = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        omissions.into_values().filter(|omission| omission.count() > 0).collect()
    }
}

const MOST: usize = 1024;

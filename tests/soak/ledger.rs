//! What was answered, and what should not have been: kept by the callers, compared with the log at the end.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

#[derive(Default)]
pub struct Ledger(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    /// Every answered call's exchange, and how often the log has it.
    exchanges: HashMap<Uuid, u32>,
    counts: BTreeMap<(&'static str, String), u64>,
    surprises: Vec<String>,
    surprised: u64,
    unsent: u64,
    /// When the callers connected.
    connected_at: Option<Instant>,
    /// Until when refusals are forgiven that say that the cloud is away.
    outage_until: Option<Instant>,
}

impl Ledger {
    pub fn answered(&self, call: &'static str, exchange_id: &str) {
        let mut entries = self.entries();
        entries.count(call, "ok");
        entries.expect(call, exchange_id);
    }

    /// Without a record of its own.
    pub fn done(&self, call: &'static str) {
        self.entries().count(call, "ok");
    }

    /// A refusal is an answer, too, and on record.
    pub fn refused(&self, call: &'static str, status: &Status, expected: &[&str]) {
        if self.was_not_sent(call, status) {
            return;
        }
        let details = status.get_error_details();
        let info = details.error_info();
        let reason = info.map_or_else(|| format!("{:?}", status.code()), |info| info.reason.clone());
        let mut entries = self.entries();
        entries.count(call, &reason);
        if let Some(id) = info.and_then(|info| info.metadata.get("exchange_id")) {
            entries.expect(call, id);
        }
        let in_outage = entries.outage_until.is_some_and(|until| Instant::now() < until);
        let forgiven = in_outage && reason == "CLOUD_UNAVAILABLE" && !FROM_THE_CACHE.contains(&call);
        if !(forgiven || expected.contains(&reason.as_str())) {
            entries.surprise(format!("{call}: {reason}: {}", status.message()));
        }
    }

    /// Of a call that leaves no record whatever comes of it.
    pub fn refused_off_record(&self, call: &'static str, status: &Status, expected: Option<&str>) {
        if self.was_not_sent(call, status) {
            return;
        }
        let reason = reason(status);
        let mut entries = self.entries();
        entries.count(call, &reason);
        if expected != Some(reason.as_str()) {
            entries.surprise(format!("{call}: {:?} {reason}: {}", status.code(), status.message()));
        }
    }

    /// The callers connect now.
    pub fn connected(&self) {
        self.entries().connected_at = Some(Instant::now());
    }

    /// A watch was ended with its connection, which leaves no record; before its connection is that old, it may not be.
    pub fn connection_ended(&self, call: &'static str) {
        let mut entries = self.entries();
        entries.count(call, "connection ended");
        if !entries.is_past_age() {
            entries.surprise(format!("{call}: its connection ended early"));
        }
    }

    /// hyper gives back what it has not sent when a connection ends by its age. That happens to few calls, and to none before.
    fn was_not_sent(&self, call: &'static str, status: &Status) -> bool {
        let is_unsent = status.code() == Code::Cancelled && status.message() == NOT_SENT;
        if is_unsent {
            let mut entries = self.entries();
            entries.count(call, "not sent");
            entries.unsent += 1;
            if entries.unsent > MOST_UNSENT * entries.ages() {
                entries.surprise(format!("{call}: {NOT_SENT}"));
            }
        }
        is_unsent
    }

    pub fn surprise(&self, what: String) {
        self.entries().surprise(what);
    }

    pub fn outage_until(&self, until: Instant) {
        self.entries().outage_until = Some(until + AFTERWARDS);
    }

    /// Whether an answer came of this exchange.
    pub fn knows(&self, exchange_id: &str) -> bool {
        exchange_id.parse().is_ok_and(|id: Uuid| self.entries().exchanges.contains_key(&id))
    }

    /// A record of the log.
    pub fn recorded(&self, exchange_id: &str) {
        let Ok(id) = exchange_id.parse() else { return };
        if let Some(found) = self.entries().exchanges.get_mut(&id) {
            *found += 1;
        }
    }

    /// How many were answered; of these, how many are not in the log, and how many more than once.
    pub fn audit(&self) -> (usize, usize, usize) {
        let entries = self.entries();
        let missing = entries.exchanges.values().filter(|found| **found == 0).count();
        let repeated = entries.exchanges.values().filter(|found| **found > 1).count();
        (entries.exchanges.len(), missing, repeated)
    }

    pub fn counts(&self) -> BTreeMap<(&'static str, String), u64> {
        self.entries().counts.clone()
    }

    /// How many there were, and the first of them.
    pub fn surprises(&self) -> (u64, Vec<String>) {
        let entries = self.entries();
        (entries.surprised, entries.surprises.clone())
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn is_past_age(&self) -> bool {
        self.ages() > 0
    }

    /// How often a connection that lasts may have ended by now.
    fn ages(&self) -> u64 {
        let since = self.connected_at.map(|at| at.elapsed()).unwrap_or_default();
        since.as_secs() / LEAST_AGE.as_secs()
    }

    fn count(&mut self, call: &'static str, outcome: &str) {
        *self.counts.entry((call, outcome.to_owned())).or_default() += 1;
    }

    fn expect(&mut self, call: &'static str, exchange_id: &str) {
        match exchange_id.parse() {
            Ok(id) => {
                self.exchanges.entry(id).or_default();
            }
            Err(_not_a_uuid) => self.surprise(format!("{call}: `{exchange_id}` is no exchange's id")),
        }
    }

    fn surprise(&mut self, what: String) {
        self.surprised += 1;
        if self.surprises.len() < SHOWN {
            self.surprises.push(what);
        }
    }
}

/// Empty where it was not the broker that refused.
pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

/// A circuit that opened in an outage is tried again some time after it.
const AFTERWARDS: Duration = Duration::from_secs(30);

const SHOWN: usize = 10;

/// Calls for what has been minted before: right whatever is away.
const FROM_THE_CACHE: [&str; 2] = ["warm", "alone"];

/// What tonic makes of it.
const NOT_SENT: &str = "operation was canceled";

/// Each time, as many as there are connections that last.
const MOST_UNSENT: u64 = 8;

/// Of a connection that the broker ends: nine tenths of an hour.
const LEAST_AGE: Duration = Duration::from_secs(54 * 60);

//! Records as questions with the answers that they had.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::tally::{Missed, Replayed, Tally};
use crate::audit::{IDENTITY_FACTS, ask, asked_duration, job};
use crate::config::{ConfigError, PolicyFile};
use crate::policy::{
    Ask, Bound, Policy, Question, RuleDocument, Tenure, Then, ThenAllowed, ThenLifetime, claims_read, hangs_on_age,
};
use crate::proto::AuditRecord;
use crate::reason::Reason;
use crate::subject::{Identity, is_kept};
use crate::target::Name;

/// Rules that are asked one recorded exchange after the other.
pub(super) struct Replay {
    policy: Policy,
    /// Targets whose rules read claims that no record keeps.
    unkept: BTreeSet<Name>,
    tally: Tally,
    /// The records of the exchange under way, at most one for each of its targets.
    exchange: Vec<AuditRecord>,
}

impl Replay {
    pub fn of(file: PolicyFile) -> Result<Self, ConfigError> {
        let reads_unkept =
            |rule: &&RuleDocument| claims_read(rule).is_none_or(|claims| claims.iter().any(|claim| !is_kept(claim)));
        let unkept = file.rules.iter().filter(reads_unkept).flat_map(|rule| rule.targets.clone()).collect();
        Ok(Self { policy: file.policy()?, unkept, tally: Tally::default(), exchange: Vec::new() })
    }

    /// Records of one exchange come one after the other.
    pub fn take(&mut self, record: AuditRecord) {
        if ask(&record).is_none() {
            return;
        }
        if self.exchange.first().is_some_and(|first| first.exchange_id != record.exchange_id) {
            self.ask_again();
        }
        // No request has more targets; a log that says so is not one of ours.
        if self.exchange.len() < MOST_TARGETS {
            self.exchange.push(record);
        }
    }

    pub fn end(mut self) -> Tally {
        self.ask_again();
        self.tally
    }

    fn ask_again(&mut self) {
        let exchange = std::mem::take(&mut self.exchange);
        match self.replayed(&exchange) {
            Ok(replayed) => replayed.into_iter().for_each(|replayed| self.tally.add(replayed)),
            Err(why) => exchange.iter().for_each(|_record| self.tally.miss(why)),
        }
    }

    fn replayed(&self, exchange: &[AuditRecord]) -> Result<Vec<Replayed>, Missed> {
        let Some(first) = exchange.first() else { return Ok(Vec::new()) };
        let then = then(exchange).ok_or(Missed::NotByRules)?;
        let time = first.time.and_then(|time| SystemTime::try_from(time).ok()).ok_or(Missed::WithoutFacts)?;
        let facts = first.attributes.get(IDENTITY_FACTS).ok_or(Missed::WithoutFacts)?;
        let identity = Identity::from_facts(facts, time + TOKEN_LIFE).map_err(|_unreadable| Missed::WithoutFacts)?;
        if exchange.iter().any(|record| self.unkept.iter().any(|target| target.as_str() == record.target)) {
            return Err(Missed::ClaimsNotKept);
        }
        let (asks, job): (Vec<Ask>, _) = (exchange.iter().filter_map(ask).collect(), job(first));
        let question = Question { tenure: tenure(first, time), ..Question::once(&identity, &job, time) };
        let changes = self.policy.replay(question, &asks, &then);
        let replayed = exchange.iter().zip(changes).map(|(record, change)| Replayed {
            change,
            target: record.target.clone(),
            subject: record.subject.clone(),
            then: answered(record),
            time,
            exchange_id: record.exchange_id.clone(),
        });
        Ok(replayed.collect())
    }
}

/// What the rules said to the whole exchange; `None` where it was decided before or after them.
fn then(exchange: &[AuditRecord]) -> Option<Then> {
    let allowed = |record: &AuditRecord| !record.rule.is_empty();
    let denied = |record: &AuditRecord| {
        let by_rules = [Reason::Denied, Reason::GroupsOverage].iter().any(|reason| reason.as_str() == record.reason);
        by_rules && !record.attributes.get("denial").is_some_and(|denial| hangs_on_age(denial))
    };
    if exchange.iter().all(allowed) {
        let then = |record: &AuditRecord| ThenAllowed { rule: record.rule.clone(), lifetime: lifetime(record) };
        return Some(Then::Allowed(exchange.iter().map(then).collect()));
    }
    exchange.iter().all(denied).then_some(Then::Denied)
}

/// In words.
fn answered(record: &AuditRecord) -> String {
    match (record.rule.as_str(), record.attributes.get("denial")) {
        ("", Some(denial)) => denial.clone(),
        ("", None) => record.reason.clone(),
        (rule, _) => format!("rule {rule}"),
    }
}

fn lifetime(record: &AuditRecord) -> ThenLifetime {
    let bound = record.attributes.get("lifetime_bound").map(String::as_str).unwrap_or_default();
    let granted = record.lifetime.and_then(|lifetime| Duration::try_from(lifetime).ok());
    let hangs_on_more = [Bound::Cloud, Bound::SubjectToken, Bound::Lease, Bound::Learned].map(Bound::as_str);
    match granted {
        Some(granted) if !hangs_on_more.contains(&bound) && record.action == "exchange" => match record.cached {
            true => ThenLifetime::Left(granted),
            false => ThenLifetime::Made(granted),
        },
        _ => ThenLifetime::Unknown,
    }
}

fn tenure(record: &AuditRecord, time: SystemTime) -> Tenure {
    match record.action.as_str() {
        "lease.open" => Tenure::Opening(asked_duration(record)),
        // When its token was last shown, and its end, are not on record; that it was open is.
        "lease.credentials" => Tenure::Lease { proved_at: time, not_after: time + LONG },
        _ => Tenure::Once,
    }
}

/// As Entra's tokens live; when one ended is not on record.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// Longer than any token under a lease lives.
const LONG: Duration = Duration::from_secs(86_400);

const MOST_TARGETS: usize = 64;

#[cfg(test)]
mod tests;

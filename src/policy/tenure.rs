//! How long the right to credentials lasts: for one answer, or for as long as a lease.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::lifetime::with_headroom;
use super::rule::Rule;
use super::{Ask, Denial, Policy, Question, Refusal};
use crate::target::Target;

/// How long the right to credentials is to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenure {
    /// For this one answer.
    Once,
    /// A lease that begins now; where no duration is given, for as long as its job is expected to take.
    Opening(Option<Duration>),
    /// A lease that is open. `proved_at`: when its job last showed a subject token.
    Lease { proved_at: SystemTime, not_after: SystemTime },
}

/// What a rule makes of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTerms {
    /// Without a heartbeat for this long, the lease lapses.
    pub heartbeat: Duration,
    /// The end, whatever is renewed without a subject token.
    pub ends_at: SystemTime,
    /// Of the tokens under the lease, where the cloud takes a wish (Google with a service account) and six minutes or more
    /// of the lease are left. Managed identities' tokens live some 24 h, and a revocation cannot take them back.
    pub token_lifetime: Duration,
}

/// The `lease` part of a rule.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeaseLimits {
    /// Counted from the subject token that opened or extended the lease.
    pub max_duration: Duration,
    pub heartbeat: Duration,
    pub token_lifetime: Duration,
}

impl Policy {
    /// The tenure of a lease that begins now: as long as is wanted, within the least of what the rules of its targets
    /// allow.
    pub(super) fn opening(
        &self,
        question: Question<'_>,
        wanted: Option<Duration>,
        asks: &[Ask],
    ) -> Result<Tenure, Refusal> {
        let expected = question.job.expected_duration.or(question.learned).map(with_headroom);
        let mut length = wanted.or(expected).unwrap_or(Duration::MAX);
        for ask in asks {
            let (target, rule) = self.allowed(question, ask)?;
            length = length.min(limits(target, &rule)?.max_duration);
        }
        Ok(Tenure::Lease { proved_at: question.now, not_after: question.now + length })
    }
}

/// `None` outside of leases.
pub(super) fn lease_terms(
    question: Question<'_>,
    target: &Target,
    rule: &Arc<Rule>,
) -> Result<Option<LeaseTerms>, Refusal> {
    let (proved_at, not_after) = match question.tenure {
        Tenure::Once => return Ok(None),
        // Becomes a lease before anything is decided.
        Tenure::Opening(_) => (question.now, question.now),
        Tenure::Lease { proved_at, not_after } => (proved_at, not_after),
    };
    let LeaseLimits { max_duration, heartbeat, token_lifetime } = *limits(target, rule)?;
    let ends_at = not_after.min(proved_at + max_duration);
    if ends_at <= question.now {
        return Err(Refusal::Denied(Denial::LeaseOver(rule.name.clone(), max_duration)));
    }
    Ok(Some(LeaseTerms { heartbeat, ends_at, token_lifetime }))
}

pub(super) fn limits<'a>(target: &Target, rule: &'a Rule) -> Result<&'a LeaseLimits, Refusal> {
    let refuse = |text: String| Err(Refusal::Request(text));
    match &rule.lease {
        None => refuse(format!("no rule allows leases of target {}: ask for single credentials", target.name)),
        Some(_) if target.redeems_subject_token() => refuse(format!(
            "target {} redeems the caller's own token, which a lease outlives: ask for single credentials",
            target.name
        )),
        Some(limits) => Ok(limits),
    }
}

//! What somebody may ask for and what the rules should say to it: a test of rules.

use std::time::{Duration, SystemTime};

use super::lifetime::{Bound, Given};
use super::{Ask, Denial, Policy, Question, Refusal, Tenure, Verdict};
use crate::reason::Reason;
use crate::step::Step;
use crate::subject::Identity;
use crate::target::{Job, Name, Platform, Span, TokenType};

/// A question with the answer that is expected.
#[derive(Debug)]
pub struct Case {
    pub name: String,
    pub identity: Identity,
    pub job: Job,
    pub asks: Vec<Ask>,
    /// How long a lease is asked for, where one is expected or not.
    pub lease_duration: Option<Duration>,
    pub now: SystemTime,
    pub expected: Expected,
}

/// What is given has to be so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub decision: Decision,
    /// The one that allows, or denies.
    pub rule: Option<Name>,
    pub lifetime: Option<Duration>,
    pub bound: Option<Bound>,
    pub lease: Option<ExpectedLease>,
    pub reason: Option<Reason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    Denied,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedLease {
    None,
    OfAnyLength,
    Of(Duration),
}

/// What the rules said.
#[derive(Debug)]
pub struct Tried {
    pub decision: Decision,
    pub differences: Vec<Difference>,
    /// In one line.
    pub why: String,
    /// The rules that decided.
    pub rules: Vec<Name>,
}

/// One thing that is not as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub what: &'static str,
    pub expected: String,
    pub actual: String,
}

impl Decision {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        }
    }
}

impl Policy {
    /// Asks, and compares.
    pub fn try_case(&self, case: &Case) -> Tried {
        let question = Question::once(&case.identity, &case.job, case.now);
        let answer = self.judge_all(question, &case.asks);
        let mut tried = match &answer {
            Ok(verdicts) => allowed(case, verdicts),
            Err(refusal) => denied(case, refusal, &self.explain(question, &case.asks).steps),
        };
        if let Some(expected) = case.expected.lease {
            let question = Question { tenure: Tenure::Opening(case.lease_duration), ..question };
            let answer = self.judge_all(question, &case.asks);
            tried.rules.extend(answer.iter().flatten().map(|verdict| verdict.rule().clone()));
            tried.differences.extend(lease(expected, case.now, &answer));
        }
        tried
    }
}

fn allowed(case: &Case, verdicts: &[Verdict]) -> Tried {
    let expected = &case.expected;
    let answers = || verdicts.iter().zip(&case.asks);
    let rules = each(verdicts, answers().map(|(verdict, _ask)| verdict.rule().to_string()));
    let lifetimes = each(verdicts, answers().map(|(verdict, ask)| lifetime(verdict, ask)));
    let bounds = each(verdicts, answers().map(|(verdict, ask)| bound(verdict, ask).as_str().to_owned()));
    let mut differences = Vec::new();
    let mut compare = |what, expected: Option<String>, actual: &str| {
        differences.extend(expected.and_then(|expected| differs(what, expected, actual)));
    };
    compare("decision", Some(expected.decision.as_str().to_owned()), Decision::Allowed.as_str());
    // What a refusal would have been like is no news where there is none.
    if expected.decision == Decision::Allowed {
        compare("rule", expected.rule.as_ref().map(Name::to_string), &rules);
        compare("lifetime", expected.lifetime.map(|length| Span(length).to_string()), &lifetimes);
        compare("bound", expected.bound.map(|bound| bound.as_str().to_owned()), &bounds);
    }
    Tried {
        decision: Decision::Allowed,
        differences,
        why: format!("rule {rules} allows it: {lifetimes}, bound by {bounds}"),
        rules: verdicts.iter().map(|verdict| verdict.rule().clone()).collect(),
    }
}

/// One text where it is the same for all targets, else each with its target.
fn each(verdicts: &[Verdict], texts: impl Iterator<Item = String>) -> String {
    let texts: Vec<String> = texts.collect();
    match texts.as_slice() {
        [first, rest @ ..] if rest.iter().all(|text| text == first) => first.clone(),
        _ => {
            let named = verdicts.iter().zip(&texts).map(|(verdict, text)| format!("{}: {text}", verdict.target().name));
            named.collect::<Vec<_>>().join(", ")
        }
    }
}

/// `steps`: the way to the refusal.
fn denied(case: &Case, refusal: &Refusal, steps: &[Step]) -> Tried {
    let expected = &case.expected;
    let rule = match refusal {
        Refusal::Denied(Denial::Rule(rule) | Denial::LeaseOver(rule, _)) => Some(rule.clone()),
        Refusal::Denied(Denial::NoRule | Denial::NoSuchTarget)
        | Refusal::GroupsOverage
        | Refusal::Request(_)
        | Refusal::NoScope
        | Refusal::SubjectTokenEndsSoon => None,
    };
    let reason = refusal.reason();
    let actual_rule = rule.as_ref().map_or_else(|| "none".to_owned(), Name::to_string);
    let mut differences = Vec::new();
    differences.extend(differs("decision", expected.decision.as_str().to_owned(), Decision::Denied.as_str()));
    // What a permission would have been like is no news where there is none.
    if expected.decision == Decision::Denied {
        let of_rule = expected.rule.as_ref().and_then(|rule| differs("rule", rule.to_string(), &actual_rule));
        let of_reason = expected.reason.and_then(|wanted| differs("reason", wanted.to_string(), reason.as_str()));
        differences.extend(of_rule.into_iter().chain(of_reason));
    }
    let mut failed = steps.iter().filter(|step| step.has_failed());
    let first = failed.next().map(|step| format!("; {}: {}", step.name, step.detail)).unwrap_or_default();
    let more = match failed.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    let why = format!("{reason}: {}{first}{more}", refusal.detail());
    Tried { decision: Decision::Denied, differences, why, rules: rule.into_iter().collect() }
}

fn lease(expected: ExpectedLease, now: SystemTime, answer: &Result<Vec<Verdict>, Refusal>) -> Option<Difference> {
    let ends_at = answer.iter().flatten().filter_map(|verdict| verdict.lease()).map(|terms| terms.ends_at).min();
    let length = ends_at.and_then(|end| end.duration_since(now).ok());
    let wanted = match expected {
        ExpectedLease::None => "none".to_owned(),
        ExpectedLease::OfAnyLength => "one".to_owned(),
        ExpectedLease::Of(length) => Span(length).to_string(),
    };
    let actual = match (length, answer) {
        (Some(length), _) => Span(length).to_string(),
        (None, Err(refusal)) => format!("none: {}", refusal.detail()),
        (None, Ok(_)) => "none".to_owned(),
    };
    let as_expected = match (expected, length) {
        (ExpectedLease::None, None) | (ExpectedLease::OfAnyLength, Some(_)) => true,
        (ExpectedLease::Of(wanted), Some(length)) => wanted == length,
        (ExpectedLease::None, Some(_)) | (ExpectedLease::OfAnyLength | ExpectedLease::Of(_), None) => false,
    };
    (!as_expected).then_some(Difference { what: "lease", expected: wanted, actual })
}

fn differs(what: &'static str, expected: String, actual: &str) -> Option<Difference> {
    (expected != actual).then(|| Difference { what, expected, actual: actual.to_owned() })
}

/// What would be asked of the cloud, where it takes a wish.
fn lifetime(verdict: &Verdict, ask: &Ask) -> String {
    match is_clouds_own(verdict, ask) {
        true => "as long as the cloud says".to_owned(),
        false => Span(verdict.plan().lifetime).to_string(),
    }
}

fn bound(verdict: &Verdict, ask: &Ask) -> Bound {
    let plan = verdict.plan();
    if is_clouds_own(verdict, ask) { Bound::Cloud } else { plan.bound(plan.lifetime, Given::AsAsked) }
}

fn is_clouds_own(verdict: &Verdict, ask: &Ask) -> bool {
    match &verdict.target().platform {
        Platform::Azure(_) => true,
        Platform::Google(_) => ask.token_type == TokenType::IdToken,
    }
}

#[cfg(test)]
mod tests;

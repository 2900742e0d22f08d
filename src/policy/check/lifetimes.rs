//! Lifetimes, leases and attributes: what targets and their clouds make of them, and targets by themselves.

use std::time::Duration;

use super::{Code, Draft, Finding, Rule, listed};
use crate::policy::condition::Reading;
use crate::policy::lifetime::with_headroom;
use crate::policy::{ASSERTION_LIFETIME, GOOGLE_EXTENDED, GOOGLE_USUAL};
use crate::target::{GoogleSubjectToken, Name, Platform, Sharing, Span, Target};

impl Draft<'_> {
    pub(super) fn lifetimes(&self, rule: &Rule<'_>, findings: &mut Vec<Finding>) {
        if rule.document.deny {
            findings.extend(ignored_in_deny(rule));
            return;
        }
        findings.extend(max_lifetime(rule));
        findings.extend(lease(rule));
        findings.extend(token_lifetime(rule));
        findings.extend(long_lease(rule));
        findings.extend(attributes(rule));
        findings.extend(shared_names(rule));
    }

    pub(super) fn targets_alone(&self, rules: &[Rule<'_>], findings: &mut Vec<Finding>) {
        for target in self.targets {
            let allows = |rule: &Rule<'_>| !rule.document.deny && rule.document.targets.contains(&target.name);
            if !rules.iter().any(allows) {
                findings.push(Finding {
                    code: Code::NobodyAllowed,
                    at: format!("targets.{}", target.name),
                    message: format!("no rule allows anybody target {}", target.name),
                    change: "Name it in a rule, or take it out.".to_owned(),
                });
            }
            findings.extend(long_target(target));
        }
    }
}

/// How long the longest token of a target lives; `None` where the cloud takes no wish.
fn longest(target: &Target) -> Option<Duration> {
    match &target.platform {
        Platform::Azure(_) => None,
        Platform::Google(google) => {
            Some(target.max_lifetime.min(match (&google.service_account, google.subject_token) {
                (Some(_), _) => GOOGLE_EXTENDED,
                (None, GoogleSubjectToken::Issuer) => ASSERTION_LIFETIME,
                (None, GoogleSubjectToken::Entra) => GOOGLE_USUAL,
            }))
        }
    }
}

fn ignored_in_deny(rule: &Rule<'_>) -> Option<Finding> {
    let parts = [
        ("max_lifetime", rule.document.max_lifetime.is_some()),
        ("lease", rule.document.lease.is_some()),
        ("attributes", !rule.document.attributes.is_empty()),
    ];
    let there: Vec<&str> = parts.iter().filter(|(_part, there)| *there).map(|(part, _there)| *part).collect();
    let first = there.first()?;
    Some(no_effect(
        format!("{}.{first}", rule.at),
        format!("rule {} refuses, and {} says how to allow", rule.name(), listed(&there)),
        "Take it out, or `deny: true` if the rule is to allow.",
    ))
}

fn max_lifetime(rule: &Rule<'_>) -> Option<Finding> {
    let (at, wanted) = (format!("{}.max_lifetime", rule.at), rule.document.max_lifetime?.0);
    let ceilings: Vec<Duration> = rule.targets.iter().filter_map(|target| longest(target)).collect();
    match ceilings.iter().max() {
        None if rule.targets.is_empty() => None,
        None => Some(no_effect(
            at,
            format!(
                "the tokens of {} live as long as Azure says: max_lifetime changes nothing",
                listed(rule.targets.iter().map(|target| &target.name))
            ),
            "Take it out. With a lease, its end decides who is handed such a token again.",
        )),
        Some(most) if wanted > *most => Some(Finding {
            code: Code::NotGiven,
            at,
            message: format!(
                "rule {} allows {}, and its targets give {} at most",
                rule.name(),
                Span(wanted),
                Span(*most)
            ),
            change: format!("Write {}, or raise the target's max_lifetime where its cloud gives more.", Span(*most)),
        }),
        Some(_) => None,
    }
}

fn lease(rule: &Rule<'_>) -> Option<Finding> {
    rule.document.lease.as_ref()?;
    let refuses = |target: &&&Target| target.redeems_subject_token();
    let refusing: Vec<&Name> = rule.targets.iter().filter(refuses).map(|target| &target.name).collect();
    (!refusing.is_empty()).then(|| {
        no_effect(
            format!("{}.lease", rule.at),
            format!(
                "{} redeems the caller's own token, which a lease outlives: leases of it are refused",
                listed(refusing)
            ),
            "Leave `lease` out, or give the target a rule of its own.",
        )
    })
}

fn token_lifetime(rule: &Rule<'_>) -> Option<Finding> {
    let wanted = rule.document.lease.as_ref()?.token_lifetime?.0;
    let ceilings = rule.targets.iter().filter_map(|target| longest(target)).max();
    let of_rule = rule.document.max_lifetime.map(|span| span.0);
    let most = ceilings.into_iter().chain(of_rule).min()?;
    (wanted > most).then(|| Finding {
        code: Code::NotGiven,
        at: format!("{}.lease.token_lifetime", rule.at),
        message: format!("tokens under a lease of rule {} live {} at most", rule.name(), Span(most)),
        change: format!("Write {}, or raise max_lifetime.", Span(most)),
    })
}

fn long_lease(rule: &Rule<'_>) -> Option<Finding> {
    let length = rule.document.lease.as_ref()?.max_duration.0;
    let job = rule.reading()?.longest_job?;
    (length > with_headroom(job).saturating_mul(2)).then(|| Finding {
        code: Code::LongLease,
        at: format!("{}.lease.max_duration", rule.at),
        message: format!("rule {} lets in jobs of {} at most, and leases of {}", rule.name(), Span(job), Span(length)),
        change: format!("A lease of {} is enough for such a job.", Span(with_headroom(job))),
    })
}

fn attributes(rule: &Rule<'_>) -> Option<Finding> {
    let (first, _source) = rule.document.attributes.first_key_value()?;
    if rule.targets.is_empty() || rule.targets.iter().any(|target| carries_attributes(target)) {
        return None;
    }
    Some(no_effect(
        format!("{}.attributes.{first}", rule.at),
        format!(
            "{} carries no attributes: only the broker's assertion for Google does",
            listed(rule.targets.iter().map(|target| &target.name))
        ),
        "Take them out.",
    ))
}

/// Callers share what they get, and the assertion that it is made from would name one of them.
fn shared_names(rule: &Rule<'_>) -> Option<Finding> {
    let shares = |target: &&&Target| target.sharing == Sharing::Target && carries_attributes(target);
    let shared: Vec<&Name> = rule.targets.iter().filter(shares).map(|target| &target.name).collect();
    let differs = |source: &String| {
        let reads = Reading::of(source).map(|reading| reading.reads).unwrap_or_default();
        reads.iter().any(|read| !read.starts_with("target"))
    };
    let (name, _source) = rule.document.attributes.iter().find(|(_name, source)| differs(source))?;
    (!shared.is_empty()).then(|| Finding {
        code: Code::SharedNames,
        at: format!("{}.attributes.{name}", rule.at),
        message: format!(
            "callers share what they get for {} while they agree in this attribute, and no further",
            listed(shared)
        ),
        change: "Leave out what tells callers and jobs apart, or write `sharing: subject`.".to_owned(),
    })
}

fn long_target(target: &Target) -> Option<Finding> {
    let (Platform::Google(google), true) = (&target.platform, target.max_lifetime > GOOGLE_USUAL) else { return None };
    let (message, change) = match (longest(target), &google.service_account) {
        (Some(most), None) => (
            format!("without a service account, Google's tokens for {} live {} at most", target.name, Span(most)),
            "Name a service account, or take max_lifetime out.".to_owned(),
        ),
        (_, Some(account)) => (
            format!(
                "Google gives more than {} for accounts that an organization policy lists only",
                Span(GOOGLE_USUAL)
            ),
            format!("List {account} in constraints/iam.allowServiceAccountCredentialLifetimeExtension."),
        ),
        (None, None) => return None,
    };
    Some(Finding { code: Code::NotGiven, at: format!("targets.{}.google.max_lifetime", target.name), message, change })
}

fn carries_attributes(target: &Target) -> bool {
    matches!(&target.platform, Platform::Google(google) if google.subject_token == GoogleSubjectToken::Issuer)
}

fn no_effect(at: String, message: String, change: &str) -> Finding {
    Finding { code: Code::NoEffect, at, message, change: change.to_owned() }
}

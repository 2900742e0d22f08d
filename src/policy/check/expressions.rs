//! Conditions and attributes: what they read, what they fail without, and what they come to in any case.

use super::subjects::{is_address, is_of_the_subject};
use super::{Code, Draft, Finding, Rule, When, listed};
use crate::policy::condition::{Always, Reading};

impl Draft<'_> {
    pub(super) fn expression(&self, rule: &Rule<'_>, findings: &mut Vec<Finding>) {
        let at = format!("{}.when", rule.at);
        match &rule.when {
            When::Absent => {}
            When::Broken => {
                let source = rule.document.when.as_deref().unwrap_or_default();
                findings.extend(names_tried(&at, source));
            }
            When::Read(reading) => {
                findings.extend(always(rule, reading, &at));
                findings.extend(addresses(rule, reading, &at));
                findings.extend(unclear_claims(reading, &at));
                findings.extend(unguarded(rule, reading, &at));
                findings.extend(jobs_word(rule, reading, &at));
            }
        }
        for (name, source) in &rule.document.attributes {
            let at = format!("{}.attributes.{name}", rule.at);
            match Reading::of(source) {
                None => findings.extend(names_tried(&at, source)),
                Some(reading) => findings.extend(unclear_claims(&reading, &at)),
            }
        }
    }
}

/// What the rules refuse, said with what to use in its place.
fn names_tried(at: &str, source: &str) -> Option<Finding> {
    let names = Reading::mutable_names(source);
    (!names.is_empty()).then(|| Finding {
        code: Code::NameAsIdentity,
        at: at.to_owned(),
        message: format!("{} can be changed and given to somebody else", listed(&names)),
        change: "Use subject.tenant and subject.object, or better `roles`.".to_owned(),
    })
}

fn always(rule: &Rule<'_>, reading: &Reading, at: &str) -> Option<Finding> {
    let (code, message) = match (reading.always?, rule.document.deny) {
        (Always::True, _) => (Code::AlwaysHolds, "holds whatever the facts are"),
        (Always::Fails, true) => (Code::AlwaysHolds, "never has a truth value, which in a deny rule counts as holding"),
        (Always::False, true) => (Code::NeverHolds, "never holds, so the rule refuses nobody"),
        (Always::False, false) => (Code::NeverHolds, "never holds, so the rule allows nobody"),
        (Always::Fails, false) => (Code::NeverHolds, "never has a truth value, so the rule allows nobody"),
    };
    let change = match code {
        Code::AlwaysHolds => "Take the condition out, or write what it was meant to say.",
        _ => "Write what it was meant to say, or take the rule out.",
    };
    Some(Finding {
        code,
        at: at.to_owned(),
        message: format!("the condition of rule {} {message}", rule.name()),
        change: change.to_owned(),
    })
}

/// Texts to compare claims and labels with.
fn addresses(rule: &Rule<'_>, reading: &Reading, at: &str) -> Option<Finding> {
    let compares = reading.reads.iter().any(|read| is_of_the_subject(read) || read == "job.labels");
    let address = reading.texts.iter().find(|text| compares && is_address(text))?;
    Some(Finding {
        code: Code::NameAsIdentity,
        at: at.to_owned(),
        message: format!("rule {} compares with {address}: addresses are given to somebody else later", rule.name()),
        change: "Name people by `objects` (their object ids), or better by an app role of the broker's application."
            .to_owned(),
    })
}

fn unclear_claims(reading: &Reading, at: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if reading.hides_claims {
        findings.push(Finding {
            code: Code::UnclearClaim,
            at: at.to_owned(),
            message: "which claim is read cannot be told from the expression: it could be a name or an address"
                .to_owned(),
            change: "Write the claim's name: subject.claims.acct, or subject.claims[\"acct\"].".to_owned(),
        });
    }
    for (claims, code, message, change) in [
        (
            &DISPLAY_NAMES[..],
            Code::NameAsIdentity,
            "is for display: its owner or an administrator changes it at will",
            "Use subject.tenant and subject.object, or better `roles`.",
        ),
        (
            &REUSED_PATHS[..],
            Code::UnclearClaim,
            "is made of names: whoever makes a resource of the same name later has it too",
            "Name the managed identity by `objects`, the object id of its service principal.",
        ),
    ] {
        for claim in claims.iter().filter(|claim| reading.claims.contains(**claim)) {
            let at = at.to_owned();
            findings.push(Finding { code, at, message: format!("{claim} {message}"), change: change.to_owned() });
        }
    }
    findings
}

/// Microsoft (access token claims): names for people to read. The addresses among them are refused by the rules.
const DISPLAY_NAMES: [&str; 6] =
    ["name", "given_name", "family_name", "nickname", "app_displayname", "onprem_sam_account_name"];

/// Paths of Azure resources.
const REUSED_PATHS: [&str; 2] = ["xms_mirid", "xms_az_rid"];

fn unguarded(rule: &Rule<'_>, reading: &Reading, at: &str) -> Option<Finding> {
    let first = reading.unguarded.first().filter(|_any| reading.always.is_none())?;
    let asked = match first.strip_suffix("[...]") {
        Some(map) => format!("(KEY in {map})"),
        None => format!("has({first})"),
    };
    let missing = listed(&reading.unguarded);
    let (code, message, change) = match rule.document.deny {
        true => (
            Code::DenyFails,
            format!(
                "rule {} refuses everybody without {missing}: a condition that fails counts as holding",
                rule.name()
            ),
            format!("If that is not meant, begin it with `{asked} &&`; if it is, say so with `!{asked} ||`."),
        ),
        false => (
            Code::FailsSilently,
            format!("rule {} allows nobody without {missing}: a condition that fails does not hold", rule.name()),
            format!("If that is not meant, begin it with `!{asked} ||`; if it is, say so with `{asked} &&`."),
        ),
    };
    Some(Finding { code, at: at.to_owned(), message, change })
}

/// What the caller says and nobody checks. A bound of durations is different: who lies gets less.
fn jobs_word(rule: &Rule<'_>, reading: &Reading, at: &str) -> Option<Finding> {
    let word = |read: &&String| {
        ["job", "job.id", "job.name", "job.labels", "job.datasets", "request.scopes"].contains(&read.as_str())
    };
    let said: Vec<&String> = reading.reads.iter().filter(word).collect();
    if said.is_empty() || reading.always.is_some() {
        return None;
    }
    if rule.document.deny {
        let only = !reading.reads.iter().any(|read| is_of_the_subject(read));
        return only.then(|| Finding {
            code: Code::EvadedDeny,
            at: at.to_owned(),
            message: format!(
                "rule {} refuses by {}, and whoever is refused says something else of the job",
                rule.name(),
                listed(&said)
            ),
            change: "Deny by `subject`, or allow those alone who are meant.".to_owned(),
        });
    }
    Some(Finding {
        code: Code::JobsWord,
        at: at.to_owned(),
        message: format!("everybody whom rule {} names can say anything in {}", rule.name(), listed(&said)),
        change: "It is good for records and attributes. Where it keeps callers apart, give each a role of its own."
            .to_owned(),
    })
}

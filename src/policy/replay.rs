//! Decisions that were made once, asked of other rules.

use std::collections::BTreeSet;
use std::time::Duration;

use super::condition::Reading;
use super::{Ask, Change, Policy, Question, RuleDocument, Verdict};
use crate::target::{Platform, Span, TokenType};

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    /// One for each target.
    Allowed(Vec<ThenAllowed>),
    Denied,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThenAllowed {
    pub rule: String,
    pub lifetime: ThenLifetime,
}

/// What a record tells of the life that was decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThenLifetime {
    /// The credential was made for it, but for the seconds that this took.
    Made(Duration),
    /// What was left of it.
    Left(Duration),
    /// It hung on what is not on record.
    Unknown,
}

impl Policy {
    /// What these rules would have made of a request, one for each of `asks`.
    pub fn replay(&self, question: Question<'_>, asks: &[Ask], then: &Then) -> Vec<Change> {
        match (then, self.judge_all(question, asks)) {
            (Then::Denied, Err(_refusal)) => vec![Change::Same; asks.len()],
            (Then::Allowed(_), Err(refusal)) => vec![Change::WouldDeny(refusal.detail()); asks.len()],
            (Then::Denied, Ok(verdicts)) => {
                verdicts.iter().map(|verdict| Change::WouldAllow(verdict.rule().clone())).collect()
            }
            (Then::Allowed(then), Ok(verdicts)) => {
                then.iter().zip(&verdicts).zip(asks).map(|((then, verdict), ask)| change(then, verdict, ask)).collect()
            }
        }
    }
}

fn change(then: &ThenAllowed, verdict: &Verdict, ask: &Ask) -> Change {
    if verdict.rule().as_str() != then.rule {
        return Change::OtherRule(verdict.rule().clone());
    }
    let takes_a_wish = match &verdict.target().platform {
        Platform::Azure(_) => false,
        Platform::Google(_) => ask.token_type != TokenType::IdToken,
    };
    let now = verdict.plan().lifetime;
    let other = |before: Duration| match before.abs_diff(now) > SLACK {
        true => Change::OtherLifetime(format!("{} instead of {}", Span(now), Span(minutes(before)))),
        false => Change::Same,
    };
    match then.lifetime {
        ThenLifetime::Made(before) if takes_a_wish => other(before),
        // A longer one may have been planned.
        ThenLifetime::Left(before) if takes_a_wish && before > now => other(before),
        ThenLifetime::Made(_) | ThenLifetime::Left(_) | ThenLifetime::Unknown => Change::Same,
    }
}

/// To the nearest: clouds and networks take some seconds.
fn minutes(length: Duration) -> Duration {
    Duration::from_secs((length.as_secs() + 30) / 60 * 60)
}

/// Whether a denial hung on when a lease's token was last shown, which no record of its use tells.
pub fn hangs_on_age(denial: &str) -> bool {
    denial.ends_with(super::SINCE_LAST_TOKEN)
}

/// The claims that a rule's condition reads by name; `None` where it reads some that it does not name.
pub fn claims_read(rule: &RuleDocument) -> Option<BTreeSet<String>> {
    let Some(reading) = rule.when.as_deref().and_then(Reading::of) else { return Some(BTreeSet::new()) };
    (!reading.hides_claims).then_some(reading.claims)
}

const SLACK: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;

    use super::*;
    use crate::policy::{Denial, ExcessScopes};
    use crate::subject::Identity;
    use crate::target::{AzureSource, Job, Scopes, Target};

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn ask(target: &str) -> Ask {
        Ask {
            target: target.to_owned(),
            scopes: Scopes::default(),
            excess: ExcessScopes::Refuse,
            token_type: TokenType::AccessToken,
            audience: None,
            lifetime: None,
            beyond: None,
        }
    }

    /// What a rule `r` for this target, for half an hour, makes of what was decided under it.
    fn replayed(target: &str, then: &Then) -> Vec<String> {
        let rules = json!([{"name": "r", "targets": [target], "when": "true", "max_lifetime": "30m"}]);
        let rules: Vec<RuleDocument> = serde_json::from_value(rules).expect("rules");
        let azure = Target::azure_for_test("azure", AzureSource::TokenFile("/token".into()));
        let policy = Policy::compile(&rules, vec![Target::google_for_test("t"), azure]).expect("a policy");
        let (identity, job) = (Identity::for_test(now() + Duration::from_secs(3600)), Job::default());
        let changes = policy.replay(Question::once(&identity, &job, now()), &[ask("t")], then);
        changes.iter().map(ToString::to_string).collect()
    }

    fn allowed(rule: &str, lifetime: ThenLifetime) -> Then {
        Then::Allowed(vec![ThenAllowed { rule: rule.to_owned(), lifetime }])
    }

    #[test]
    fn what_other_rules_decide_is_compared_with_what_was_decided() {
        let unknown = ThenLifetime::Unknown;
        assert_eq!(replayed("t", &allowed("r", unknown)), ["same"]);
        assert_eq!(replayed("t", &allowed("s", unknown)), ["other_rule: rule r"]);
        assert_eq!(replayed("t", &Then::Denied), ["would_allow: rule r"]);
        assert_eq!(replayed("azure", &Then::Denied), ["same"]);
        assert_eq!(replayed("azure", &allowed("r", unknown)), ["would_deny: no rule allows it"]);
    }

    #[test]
    fn a_lifetime_is_another_where_the_record_can_tell() {
        let at = |lifetime| replayed("t", &allowed("r", lifetime));
        let seconds = Duration::from_secs;
        assert_eq!(at(ThenLifetime::Made(seconds(1797))), ["same"]);
        assert_eq!(at(ThenLifetime::Made(seconds(3597))), ["other_lifetime: 30m instead of 1h"]);
        assert_eq!(at(ThenLifetime::Made(seconds(900))), ["other_lifetime: 30m instead of 15m"]);
        assert_eq!(at(ThenLifetime::Left(seconds(900))), ["same"], "it may have been made for half an hour");
        assert_eq!(at(ThenLifetime::Left(seconds(3597))), ["other_lifetime: 30m instead of 1h"]);
        assert_eq!(at(ThenLifetime::Unknown), ["same"]);
    }

    #[test]
    fn a_denial_for_a_leases_age_is_known_by_its_words() {
        let over = Denial::LeaseOver("r".parse().expect("a name"), Duration::from_secs(60));
        assert!(hangs_on_age(&over.to_string()) && !hangs_on_age(&Denial::NoRule.to_string()));
    }

    #[test]
    fn the_claims_that_a_condition_reads_are_known_unless_it_hides_them() {
        let read = |when: &str| {
            let rule = json!({"name": "r", "targets": ["t"], "when": when});
            claims_read(&serde_json::from_value(rule).expect("a rule"))
        };
        assert_eq!(read("job.name == 'x'"), Some(BTreeSet::new()));
        assert_eq!(read("subject.claims.acct == 0"), Some(BTreeSet::from(["acct".to_owned()])));
        assert_eq!(read("subject.claims[job.name] == 0"), None);
    }
}

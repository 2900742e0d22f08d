//! Rules that are asked beside those in force: what they would decide is compared and recorded, and changes nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::{Ask, Change, Grant, Inquiry, LeaseTerms, Policy, Refusal, Verdict};
use crate::target::Span;

impl Policy {
    /// These rules, with those of `shadow` asked beside them.
    pub fn shadowed_by(self, shadow: Self) -> Self {
        Self { shadow: Some(Box::new(shadow)), ..self }
    }

    /// What the shadow says to what was decided, one for each of `asks`; none where there is no shadow.
    pub fn shadow(
        &self,
        inquiry: Inquiry<'_>,
        asks: &[Ask],
        decided: &Result<Vec<Arc<Grant>>, Refusal>,
    ) -> Vec<Change> {
        match &self.shadow {
            None => Vec::new(),
            Some(shadow) => compare(asks.len(), decided, || shadow.judge_all(inquiry.question(), asks)),
        }
    }
}

/// A panic of the shadow is its own.
fn compare(
    asks: usize,
    decided: &Result<Vec<Arc<Grant>>, Refusal>,
    judge: impl FnOnce() -> Result<Vec<Verdict>, Refusal>,
) -> Vec<Change> {
    let all = |decision: Change| vec![decision; asks];
    match (decided, catch_unwind(AssertUnwindSafe(judge))) {
        (_, Err(_panic)) => all(Change::Failed),
        (Err(_refused), Ok(Err(_refused_too))) => all(Change::Same),
        (Ok(_granted), Ok(Err(refusal))) => all(Change::WouldDeny(refusal.detail())),
        (Err(_refused), Ok(Ok(verdicts))) => {
            verdicts.iter().map(|verdict| Change::WouldAllow(verdict.rule().clone())).collect()
        }
        (Ok(grants), Ok(Ok(verdicts))) => {
            grants.iter().zip(&verdicts).map(|(grant, verdict)| difference(grant, verdict)).collect()
        }
    }
}

fn difference(grant: &Grant, verdict: &Verdict) -> Change {
    let (rule, lifetime, lease) = (verdict.rule(), verdict.plan().lifetime, verdict.lease());
    let ends = |terms: Option<&LeaseTerms>| terms.map(|terms| terms.ends_at);
    if rule != grant.rule() {
        Change::OtherRule(rule.clone())
    } else if lifetime != grant.plan().lifetime {
        Change::OtherLifetime(format!("{} instead of {}", Span(lifetime), Span(grant.plan().lifetime)))
    } else if let (Some(would), Some(does)) = (ends(lease), ends(grant.lease()))
        && would != does
    {
        let (word, by) = match would.duration_since(does) {
            Ok(later) => ("later", later),
            Err(earlier) => ("earlier", earlier.duration()),
        };
        Change::OtherLifetime(format!("the lease ends {} {word}", Span(by)))
    } else {
        Change::Same
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::json;

    use super::*;
    use crate::policy::{ExcessScopes, RuleDocument, Tenure};
    use crate::subject::VerifiedIdentity;
    use crate::target::{Job, Scopes, Target, TokenType};

    fn policy(rules: &serde_json::Value) -> Policy {
        let rules: Vec<RuleDocument> = serde_json::from_value(rules.clone()).expect("rules");
        Policy::compile(&rules, ["t", "u"].map(Target::google_for_test).into()).expect("a policy")
    }

    /// What `next` would say in place of `live` to a request for these targets.
    fn beside(live: serde_json::Value, next: serde_json::Value, targets: &[&str], tenure: Tenure) -> Vec<String> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let identity = Arc::new(VerifiedIdentity::for_test(now + Duration::from_secs(3600)));
        let job = Arc::new(Job::default());
        let ask = |target: &&str| Ask {
            target: (*target).to_owned(),
            scopes: Scopes::default(),
            excess: ExcessScopes::Refuse,
            token_type: TokenType::AccessToken,
            audience: None,
            lifetime: None,
            beyond: None,
        };
        let asks: Vec<Ask> = targets.iter().map(ask).collect();
        let inquiry = Inquiry { tenure, ..Inquiry::once(&identity, &job, now) };
        let live = policy(&live);
        let decided = live.decide_all(inquiry, &asks);
        assert_eq!(live.shadow(inquiry, &asks, &decided), [], "without a shadow there is nothing to say");
        let live = live.shadowed_by(policy(&next));
        live.shadow(inquiry, &asks, &decided).iter().map(ToString::to_string).collect()
    }

    fn rule(name: &str, lifetime: &str) -> serde_json::Value {
        let lease = json!({"max_duration": "9h", "heartbeat": "5m"});
        json!({"name": name, "targets": ["t", "u"], "when": "true", "max_lifetime": lifetime, "lease": lease})
    }

    #[test]
    fn a_shadow_says_what_it_would_decide_otherwise() {
        let live = || json!([rule("r", "1h")]);
        let once = |next| beside(live(), next, &["t"], Tenure::Once);
        assert_eq!(once(live()), ["same"]);
        assert_eq!(once(json!([])), ["would_deny: no rule allows it"]);
        assert_eq!(once(json!([rule("s", "1h")])), ["other_rule: rule s"]);
        assert_eq!(once(json!([rule("r", "30m")])), ["other_lifetime: 30m instead of 1h"]);
        assert_eq!(beside(json!([]), live(), &["t"], Tenure::Once), ["would_allow: rule r"]);
        assert_eq!(beside(json!([]), json!([]), &["t", "x"], Tenure::Once), ["same", "same"]);
        let deny = json!({"name": "d", "targets": ["u"], "deny": true});
        let denied = "would_deny: rule d denies it";
        assert_eq!(beside(live(), json!([rule("r", "1h"), deny]), &["t", "u"], Tenure::Once), [denied, denied]);
    }

    #[test]
    fn a_lease_that_would_end_at_another_time_has_another_lifetime() {
        let mut shorter = rule("r", "1h");
        shorter["lease"]["max_duration"] = "2h".into();
        let opened = beside(json!([rule("r", "1h")]), json!([shorter]), &["t"], Tenure::Opening(None));
        assert_eq!(opened, ["other_lifetime: the lease ends 7h earlier"]);
    }

    #[test]
    fn a_panic_of_the_shadow_is_a_difference_and_no_more() {
        let decided = Err(Refusal::NoScope);
        assert_eq!(compare(2, &decided, || panic!("a bug")), vec![Change::Failed; 2]);
    }
}

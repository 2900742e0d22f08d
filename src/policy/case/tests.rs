use serde_json::json;

use super::*;
use crate::policy::{ExcessScopes, RuleDocument};
use crate::subject::Groups;
use crate::target::{AzureSource, Scopes, Target};

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

fn policy() -> Policy {
    let rules = json!([
        {"name": "training", "targets": ["t", "azure"], "subject": {"roles": ["R"]}, "max_lifetime": "30m"},
        {"name": "long", "targets": ["t"], "subject": {"roles": ["R"]}, "lease": {"max_duration": "9h", "heartbeat": "5m"}},
        {"name": "never", "targets": ["t"], "subject": {"roles": ["Bad"]}, "deny": true},
    ]);
    let rules: Vec<RuleDocument> = serde_json::from_value(rules).expect("rules");
    let azure = Target::azure_for_test("azure", AzureSource::TokenFile("/token".into()));
    Policy::compile(&rules, vec![Target::google_for_test("t"), azure]).expect("a policy")
}

fn expected(decision: Decision) -> Expected {
    Expected { decision, rule: None, lifetime: None, bound: None, lease: None, reason: None }
}

fn case(roles: &[&str], targets: &[&str], expected: Expected) -> Case {
    let ask = |target: &&str| Ask {
        target: (*target).to_owned(),
        scopes: Scopes::default(),
        excess: ExcessScopes::Refuse,
        token_type: TokenType::AccessToken,
        audience: None,
        lifetime: None,
        beyond: None,
    };
    Case {
        name: "a case".to_owned(),
        identity: Identity::for_test(now() + HOUR).with_roles(roles),
        job: Job::default(),
        asks: targets.iter().map(ask).collect(),
        lease_duration: None,
        now: now(),
        expected,
    }
}

/// What differs, as `what: expected, actual`.
fn differences(case: &Case) -> Vec<String> {
    let tried = policy().try_case(case);
    tried.differences.iter().map(|it| format!("{}: {}, {}", it.what, it.expected, it.actual)).collect()
}

fn name(name: &str) -> Option<Name> {
    Some(name.parse().expect("a name"))
}

#[test]
fn what_is_as_expected_has_no_difference_and_names_its_rules() {
    let allowed = Expected {
        rule: name("training"),
        lifetime: Some(HOUR / 2),
        bound: Some(Bound::Rule),
        lease: Some(ExpectedLease::Of(9 * HOUR)),
        ..expected(Decision::Allowed)
    };
    let tried = policy().try_case(&case(&["R"], &["t"], allowed));
    assert_eq!(tried.differences, []);
    let rules: Vec<&str> = tried.rules.iter().map(Name::as_str).collect();
    assert_eq!(rules, ["training", "long"]);
    let denied = Expected { rule: name("never"), reason: Some(Reason::Denied), ..expected(Decision::Denied) };
    let tried = policy().try_case(&case(&["R", "Bad"], &["t"], denied));
    assert_eq!(tried.differences, []);
    let why = "DENIED: rule never denies it; rule:never: denies: ";
    assert!(tried.why.starts_with(why), "{}", tried.why);
}

#[test]
fn each_expectation_that_is_not_met_is_one_difference() {
    let allowed = || expected(Decision::Allowed);
    let denied = || expected(Decision::Denied);
    for (roles, wanted, difference) in [
        (&["R"][..], denied(), "decision: denied, allowed"),
        (&[], allowed(), "decision: allowed, denied"),
        (&["R"], Expected { rule: name("long"), ..allowed() }, "rule: long, training"),
        (&["R"], Expected { lifetime: Some(HOUR), ..allowed() }, "lifetime: 1h, 30m"),
        (&["R"], Expected { bound: Some(Bound::Target), ..allowed() }, "bound: target, rule"),
        (&["R"], Expected { lease: Some(ExpectedLease::None), ..allowed() }, "lease: none, 9h"),
        (&["R"], Expected { lease: Some(ExpectedLease::Of(HOUR)), ..allowed() }, "lease: 1h, 9h"),
        (&[], Expected { lease: Some(ExpectedLease::OfAnyLength), ..denied() }, "lease: one, none: no rule allows it"),
        (&[], Expected { rule: name("never"), ..denied() }, "rule: never, none"),
        (&[], Expected { reason: Some(Reason::GroupsOverage), ..denied() }, "reason: GROUPS_OVERAGE, DENIED"),
    ] {
        assert_eq!(differences(&case(roles, &["t"], wanted)), [difference]);
    }
    // Where the decision is another, the rest is no news.
    let wanted = Expected { rule: name("long"), lifetime: Some(HOUR), ..allowed() };
    assert_eq!(differences(&case(&[], &["t"], wanted)), ["decision: allowed, denied"]);
}

#[test]
fn several_targets_have_to_be_allowed_all_and_differ_by_name() {
    let both = |wanted| differences(&case(&["R"], &["t", "azure"], wanted));
    assert_eq!(both(Expected { rule: name("training"), ..expected(Decision::Allowed) }), Vec::<String>::new());
    let wanted = Expected { bound: Some(Bound::Rule), lifetime: Some(HOUR / 2), ..expected(Decision::Allowed) };
    assert_eq!(
        both(wanted),
        ["lifetime: 30m, t: 30m, azure: as long as the cloud says", "bound: rule, t: rule, azure: cloud"]
    );
    let unknown = case(&["R"], &["t", "x"], expected(Decision::Allowed));
    let why = "DENIED: no such target; target:x: the configuration has no such target";
    assert_eq!(policy().try_case(&unknown).why, why);
}

#[test]
fn a_lease_is_as_long_as_it_is_asked_for() {
    let mut asked =
        case(&["R"], &["t"], Expected { lease: Some(ExpectedLease::Of(HOUR)), ..expected(Decision::Allowed) });
    asked.lease_duration = Some(HOUR);
    assert_eq!(differences(&asked), Vec::<String>::new());
    let overage = Case { identity: Identity::for_test(now() + HOUR).with_groups(Groups::Overage), ..asked };
    assert!(policy().try_case(&overage).why.starts_with("GROUPS_OVERAGE: "));
}

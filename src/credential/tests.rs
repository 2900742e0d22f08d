use std::collections::HashSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::clock::ManualClock;
use crate::policy::{Ask, ExcessScopes, Inquiry, Policy, RuleDocument};
use crate::subject::VerifiedIdentity;
use crate::target::{GoogleSubjectToken, Job, Target};

/// Everything that a call's key must tell apart, each field with a value that can be changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    target: String,
    revision: u8,
    rule: String,
    rule_limit: u8,
    tenant: u8,
    object: u8,
    scopes: Vec<String>,
    token_type: Option<String>,
    lifetime: u16,
    job_id: Option<String>,
    job_name: Option<String>,
    attribute: String,
}

pub(super) fn shape() -> Shape {
    Shape {
        target: "t".to_owned(),
        revision: 1,
        rule: "r".to_owned(),
        rule_limit: 0,
        tenant: 1,
        object: 2,
        scopes: vec!["scope-a".to_owned()],
        token_type: None,
        lifetime: 600,
        job_id: None,
        job_name: None,
        attribute: String::new(),
    }
}

pub(super) fn call(shape: &Shape, change: impl FnOnce(Target) -> Target, claims: &[(&str, serde_json::Value)]) -> Call {
    let token_type = shape.token_type.as_ref().map_or(TokenType::AccessToken, |_audience| TokenType::IdToken);
    call_for(shape, token_type, change, claims)
}

fn call_for(
    shape: &Shape,
    token_type: TokenType,
    change: impl FnOnce(Target) -> Target,
    claims: &[(&str, serde_json::Value)],
) -> Call {
    let clock = ManualClock::start();
    let limit = format!("{}m", 60 + u32::from(shape.rule_limit));
    let rules: Vec<RuleDocument> = serde_json::from_value(json!([{
        "name": shape.rule, "targets": [shape.target], "when": "true", "max_lifetime": limit,
        "attributes": {"team": "job.labels['team']"},
    }]))
    .expect("rules");
    let scopes = ["scope-a", "scope-b", "scope-c"].map(|scope| scope.parse().expect("a scope"));
    let target = Target {
        revision: [shape.revision; 32],
        scopes: scopes.into_iter().collect(),
        ..Target::google_for_test(&shape.target)
    };
    let policy = Policy::compile(&rules, vec![change(target)]).expect("a policy");
    let ask = Ask {
        target: shape.target.clone(),
        scopes: shape.scopes.iter().map(|scope| scope.parse().expect("a scope")).collect(),
        excess: ExcessScopes::Refuse,
        token_type,
        audience: shape.token_type.as_ref().map(|audience| audience.parse().expect("an audience")),
        lifetime: Some(Duration::from_secs(shape.lifetime.into())),
        beyond: None,
    };
    let job = Job {
        id: shape.job_id.clone(),
        name: shape.job_name.clone(),
        labels: [("team".to_owned(), shape.attribute.clone())].into(),
        ..Job::default()
    };
    let mut identity = VerifiedIdentity::for_test(clock.now() + Duration::from_secs(7200))
        .with_tenant(shape.tenant.into())
        .with_object(shape.object.into());
    for (name, value) in claims {
        identity = identity.with_claim(name, value.clone());
    }
    let grant = policy.decide(Inquiry::once(&Arc::new(identity), &Arc::new(job), clock.now()), &ask).expect("a grant");
    Call {
        grant: Arc::new(grant),
        subject_token: Some(SubjectToken::new(Secret::new("x.y.z")).expect("a token")),
        exchange_id: Uuid::now_v7(),
        purpose: super::Purpose::Exchange,
    }
}

pub(super) fn call_of_another_object() -> Call {
    call(&Shape { object: 9, ..shape() }, |target| target, &[])
}

fn key_of(shape: &Shape) -> Key {
    key(&call(shape, |target| target, &[]).grant)
}

#[test]
fn i21_every_field_makes_another_key() {
    let base = shape();
    let shapes = [
        base.clone(),
        Shape { target: "u".to_owned(), ..base.clone() },
        Shape { revision: 2, ..base.clone() },
        Shape { rule: "s".to_owned(), ..base.clone() },
        Shape { rule_limit: 1, ..base.clone() },
        Shape { tenant: 9, ..base.clone() },
        Shape { object: 9, ..base.clone() },
        Shape { scopes: vec!["scope-b".to_owned()], ..base.clone() },
        Shape { scopes: vec!["scope-a".to_owned(), "scope-b".to_owned()], ..base.clone() },
        Shape { token_type: Some("https://a".to_owned()), ..base.clone() },
        Shape { token_type: Some("https://b".to_owned()), ..base.clone() },
        Shape { lifetime: 1200, ..base.clone() },
        Shape { job_id: Some("1".to_owned()), ..base.clone() },
        Shape { job_name: Some("1".to_owned()), ..base.clone() },
        Shape { attribute: "1".to_owned(), ..base.clone() },
    ];
    let keys: HashSet<Key> = shapes.iter().map(key_of).collect();
    assert_eq!(keys.len(), shapes.len());
}

#[test]
fn an_assertion_is_kept_apart_from_what_it_buys_and_by_its_lifetime() {
    let key = |token_type, lifetime| {
        let allowed = |target: Target| target.with_google(|google| google.hand_out_assertion = true);
        let shape = Shape { lifetime, scopes: Vec::new(), ..shape() };
        key(&call_for(&shape, token_type, allowed, &[]).grant)
    };
    let keys = [(TokenType::AccessToken, 360), (TokenType::Jwt, 360), (TokenType::Jwt, 600)];
    assert_eq!(HashSet::from(keys.map(|(token_type, lifetime)| key(token_type, lifetime))).len(), 3);
}

#[test]
fn i22_w16_c18_the_same_scopes_in_another_order_make_the_same_key() {
    let one = Shape { scopes: vec!["scope-a".to_owned(), "scope-b".to_owned()], ..shape() };
    let other = Shape { scopes: vec!["scope-b".to_owned(), "scope-a".to_owned(), "scope-b".to_owned()], ..shape() };
    assert_eq!(key_of(&one), key_of(&other));
}

#[test]
fn c17_only_a_target_that_says_so_is_shared_between_subjects() {
    let with =
        |sharing, object| key(&call(&Shape { object, ..shape() }, |target| Target { sharing, ..target }, &[]).grant);
    assert_ne!(with(Sharing::Subject, 2), with(Sharing::Subject, 3));
    assert_eq!(with(Sharing::Target, 2), with(Sharing::Target, 3));
    assert_ne!(with(Sharing::Target, 2), with(Sharing::Subject, 2));
}

#[test]
fn a_redeemed_token_counts_with_all_its_claims_but_its_times() {
    let entra = |target: Target| target.with_google(|google| google.subject_token = GoogleSubjectToken::Entra);
    let with = |claims: &[(&str, serde_json::Value)]| key(&call(&shape(), entra, claims).grant);
    assert_eq!(with(&[("iat", json!(1)), ("uti", json!("a"))]), with(&[("iat", json!(2)), ("uti", json!("b"))]));
    assert_ne!(with(&[("roles", json!(["a"]))]), with(&[("roles", json!(["b"]))]));
    assert_ne!(with(&[]), with(&[("wids", json!(["a"]))]));
}

#[test]
fn where_the_cloud_takes_no_wish_callers_with_different_wishes_share() {
    let direct = |target: Target| target.with_google(|google| google.service_account = None);
    let key_with = |lifetime| key(&call(&Shape { lifetime, ..shape() }, direct, &[]).grant);
    assert_eq!(key_with(400), key_with(600));
    let id_token = |lifetime| key_of(&Shape { lifetime, token_type: Some("https://a".to_owned()), ..shape() });
    assert_eq!(id_token(600), id_token(1200));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn distinct_calls_have_distinct_keys(
        names in proptest::collection::vec(("[a-c]{1,2}", "[a-c]{1,2}", proptest::option::of("[a-c=:,]{1,3}"), proptest::option::of("[a-c=:,]{1,3}"), "[a-c=:,]{0,3}"), 2..8),
    ) {
        let shapes: HashSet<Shape> = names
            .into_iter()
            .map(|(target, rule, job_id, job_name, attribute)| Shape { target, rule, job_id, job_name, attribute, ..shape() })
            .collect();
        let keys: HashSet<Key> = shapes.iter().map(key_of).collect();
        prop_assert_eq!(keys.len(), shapes.len());
    }
}

use std::collections::HashSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::clock::ManualClock;
use crate::policy::{Ask, ExcessScopes, Inquiry, Policy, RuleDocument};
use crate::subject::VerifiedIdentity;
use crate::target::{AzureSource, GoogleSubjectToken, Job, ManagedIdentityEndpoint, Target};

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

#[tokio::test]
async fn a_cloud_that_names_no_end_or_one_that_is_far_away_is_not_believed() {
    let imds =
        AzureSource::ManagedIdentity(ManagedIdentityEndpoint::Imds("http://127.0.0.1:1".parse().expect("a URL")));
    let machine = |target: Target| Target {
        scopes: ["https://ml.azure.com/.default".parse().expect("a scope")].into_iter().collect(),
        ..Target::azure_for_test(target.name.as_str(), imds)
    };
    let call = call(&Shape { scopes: Vec::new(), ..shape() }, machine, &[]);
    let clock = ManualClock::start();
    let client = Client::new(&crate::http::Settings::default()).expect("a client");
    for expires_on in ["253402300799", "9223372036854775807"] {
        let body = json!({"access_token": "t", "token_type": "Bearer", "expires_on": expires_on}).to_string();
        let answering = client.answered_by(move |_request| Response {
            status: http::StatusCode::OK,
            headers: http::HeaderMap::new(),
            body: body.clone().into(),
            peer_certificate: None,
        });
        let issued = Clouds::new(answering, None, Arc::new(clock.clone())).issue(&call).await;
        assert_eq!(issued.expect("a credential").expires_at, clock.now() + LONGEST, "{expires_on}");
    }
}

/// What becomes of a grant's field in its key.
enum Fate {
    /// These differ in this field, and so do their keys.
    InTheKey(Vec<Shape>),
    LeftOut(&'static str),
}

/// A field that is added to a grant fails here until somebody says what becomes of it.
#[test]
fn i21_every_field_of_a_grant_is_in_its_key_or_is_left_out_for_a_reason() {
    let one = |change: fn(&mut Shape)| {
        let mut changed = shape();
        change(&mut changed);
        Fate::InTheKey(vec![changed])
    };
    let id_token = |audience: &str| Shape { token_type: Some(audience.to_owned()), ..shape() };
    let fates = [
        ("identity", Fate::InTheKey(vec![Shape { tenant: 9, ..shape() }, Shape { object: 9, ..shape() }])),
        ("target", Fate::InTheKey(vec![Shape { target: "u".to_owned(), ..shape() }, Shape { revision: 2, ..shape() }])),
        ("rule", Fate::InTheKey(vec![Shape { rule: "s".to_owned(), ..shape() }, Shape { rule_limit: 1, ..shape() }])),
        ("scopes", one(|shape| shape.scopes.push("scope-b".to_owned()))),
        ("token_type", Fate::InTheKey(vec![id_token("https://a")])),
        ("audience", Fate::InTheKey(vec![id_token("https://a"), id_token("https://b")])),
        ("plan", one(|shape| shape.lifetime = 1200)),
        ("attributes", one(|shape| shape.attribute = "1".to_owned())),
        (
            "job",
            Fate::InTheKey(vec![
                Shape { job_id: Some("1".to_owned()), ..shape() },
                Shape { job_name: Some("1".to_owned()), ..shape() },
            ]),
        ),
        ("lease", Fate::LeftOut("all that it changes is how long a token is to live, which is the plan's")),
    ];
    let grant = call(&shape(), |target| target, &[]).grant;
    assert_eq!(fates.each_ref().map(|(name, _fate)| *name), grant.field_names());
    for (name, fate) in fates {
        match fate {
            Fate::InTheKey(others) => {
                let keys: HashSet<Key> = others.iter().chain([&shape()]).map(key_of).collect();
                assert_eq!(keys.len(), others.len() + 1, "{name}");
            }
            Fate::LeftOut(why) => assert!(!why.is_empty(), "{name}"),
        }
    }
}

/// Letters, and what could be taken for a border between two fields.
const TEXT: &str = "[ab=:,]{1,3}";

/// Every field, none by default: one that is added has to be made up here.
fn any_shape() -> impl Strategy<Value = Shape> {
    let names = ("[ab]{1,2}", 0..2_u8, "[ab]{1,2}", 0..2_u8);
    let whose = (0..2_u8, 0..2_u8, proptest::sample::subsequence(vec!["scope-a", "scope-b", "scope-c"], 1..3));
    let job = (proptest::option::of(TEXT), proptest::option::of(TEXT), TEXT);
    let kind = (proptest::option::of("https://[ab]"), prop_oneof![Just(600_u16), Just(1200)]);
    (names, whose, kind, job).prop_map(|(names, whose, kind, job)| {
        let (target, revision, rule, rule_limit) = names;
        let (tenant, object, scopes) = whose;
        let (token_type, lifetime) = kind;
        let (job_id, job_name, attribute) = job;
        Shape {
            target,
            revision,
            rule,
            rule_limit,
            tenant,
            object,
            scopes: scopes.into_iter().map(str::to_owned).collect(),
            // The life of an ID token is the cloud's to say, so wishes make no difference.
            lifetime: if token_type.is_some() { 600 } else { lifetime },
            token_type,
            job_id,
            job_name,
            attribute,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn i21_i22_w16_c18_distinct_calls_have_distinct_keys(shapes in proptest::collection::hash_set(any_shape(), 2..12)) {
        let keys: HashSet<Key> = shapes.iter().map(key_of).collect();
        prop_assert_eq!(keys.len(), shapes.len());
    }
}

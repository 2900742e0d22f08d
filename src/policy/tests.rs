use serde_json::json;
use uuid::Uuid;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

fn identity() -> VerifiedIdentity {
    VerifiedIdentity::for_test(now() + HOUR)
}

fn ask() -> Ask {
    Ask {
        target: "t".to_owned(),
        scopes: Scopes::default(),
        excess: ExcessScopes::Refuse,
        token_type: TokenType::AccessToken,
        audience: None,
        lifetime: None,
        beyond: None,
    }
}

fn job() -> Job {
    Job {
        id: Some("run-1".to_owned()),
        name: Some("vision".to_owned()),
        expected_duration: Some(9 * HOUR),
        labels: [("team".to_owned(), "vision".to_owned())].into(),
        datasets: vec!["public".to_owned()],
    }
}

fn compile(rules: serde_json::Value) -> Result<Policy, Vec<Mistake>> {
    let rules: Vec<RuleDocument> = serde_json::from_value(rules).expect("rules");
    Policy::compile(&rules, vec![Target::google_for_test("t")])
}

fn decide_for(rules: serde_json::Value, identity: VerifiedIdentity, ask: Ask) -> Result<Grant, Refusal> {
    let policy = compile(rules).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    policy.decide(Inquiry::once(&Arc::new(identity), &Arc::new(job()), now()), &ask)
}

fn decide(rules: serde_json::Value) -> Result<Grant, Refusal> {
    decide_for(rules, identity(), ask())
}

/// Whether a single rule with this condition allows.
fn holds(condition: &str) -> bool {
    decide(json!([{"name": "r", "targets": ["t"], "when": condition}])).is_ok()
}

fn mistakes(rules: serde_json::Value) -> Vec<String> {
    compile(rules)
        .err()
        .unwrap_or_default()
        .into_iter()
        .map(|mistake| format!("{}: {}", mistake.at, mistake.message))
        .collect()
}

fn everybody() -> serde_json::Value {
    json!({"name": "all", "targets": ["t"], "when": "true"})
}

#[test]
fn w03_without_rules_everything_is_denied() {
    assert_eq!(decide(json!([])).unwrap_err(), Refusal::Denied(Denial::NoRule));
}

#[test]
fn i13_an_unknown_target_a_missing_rule_and_a_deny_rule_read_the_same() {
    let unknown = decide_for(json!([everybody()]), identity(), Ask { target: "../x".to_owned(), ..ask() });
    let missing = decide(json!([]));
    let denied = decide(json!([everybody(), {"name": "d", "targets": ["t"], "deny": true}]));
    let texts: HashSet<String> = [unknown, missing, denied].map(|refused| refused.unwrap_err().to_string()).into();
    assert_eq!(texts, HashSet::from(["denied".to_owned()]));
}

#[test]
fn a_deny_rule_wins_wherever_it_stands() {
    let deny = json!({"name": "d", "targets": ["t"], "subject": {"objects": ["00000000-0000-0000-0000-000000000002"]}, "deny": true});
    for rules in [json!([everybody(), deny]), json!([deny, everybody()])] {
        assert_eq!(decide(rules).unwrap_err(), Refusal::Denied(Denial::Rule("d".parse().expect("a name"))));
    }
}

#[test]
fn the_first_rule_that_matches_grants() {
    let grant = decide(json!([
        {"name": "no", "targets": ["t"], "when": "false"},
        {"name": "first", "targets": ["t"], "when": "true", "max_lifetime": "10m"},
        everybody(),
    ]));
    let grant = grant.expect("a grant");
    assert_eq!((grant.rule().as_str(), grant.plan().lifetime), ("first", Duration::from_secs(600)));
}

#[test]
fn each_part_of_a_subject_must_hold_and_each_list_means_any_of() {
    let who = || identity().with_groups(Groups::Known([Uuid::from_u128(7)].into())).with_roles(&["Submit"]);
    let allowed = |subject: serde_json::Value| {
        decide_for(json!([{"name": "r", "targets": ["t"], "subject": subject}]), who(), ask()).is_ok()
    };
    let guid = |number: u128| Uuid::from_u128(number).to_string();
    for (field, good, bad) in [
        ("tenants", guid(1), guid(9)),
        ("objects", guid(2), guid(9)),
        ("clients", guid(3), guid(9)),
        ("groups", guid(7), guid(9)),
        ("roles", "Submit".to_owned(), "submit".to_owned()),
        ("kinds", "service_principal".to_owned(), "user".to_owned()),
    ] {
        assert!(allowed(json!({field: [good]})), "{field}");
        assert!(allowed(json!({field: [bad, good]})), "{field}: any of");
        assert!(!allowed(json!({field: [bad]})), "{field}");
        assert!(!allowed(json!({field: [good], "scopes": ["jobs.submit"]})), "{field}: all must hold");
    }
    assert!(!allowed(json!({"auth_contexts": ["c1"]})));
}

#[test]
fn a_condition_sees_subject_job_request_target_and_time() {
    for condition in [
        "subject.tenant == '00000000-0000-0000-0000-000000000001'",
        "subject.kind == 'service_principal' && subject.client.endsWith('3')",
        "job.expected_duration <= duration('72h') && job.labels['team'] == 'vision'",
        "job.id == 'run-1' && job.name.startsWith('vis')",
        "'public' in job.datasets",
        "job.datasets.all(d, d == 'public')",
        "has(job.name) && !has(request.lifetime)",
        "has(job.id) && has(job.expected_duration) && has(job.labels.team) && !has(job.labels.absent)",
        "!(job.name == 'x') && !!true && (has(request.lifetime) ? false : true)",
        "duration('90m') == duration('1h30m') && ['job'].exists(job, job == 'job' && duration('1s') < duration('2s'))",
        "target == 't'",
        "now > timestamp('2025-12-31T00:00:00Z') && now < timestamp('2026-01-02T00:00:00Z')",
        "size(subject.groups) == 0 && subject.roles == []",
        "job.name.matches('^vis')",
    ] {
        assert!(holds(condition), "{condition}");
    }
}

#[test]
fn an_expression_that_fails_does_not_match_and_in_a_deny_rule_does() {
    for failing in [
        "job.labels['absent'] == 'x'",
        "request.lifetime > duration('1h')",
        "1 / 0 == 1",
        "job.name",
        "!job.name",
        "subject.claims.x == 'y'",
    ] {
        assert!(!holds(failing), "{failing}");
        let denied = decide(json!([everybody(), {"name": "d", "targets": ["t"], "when": failing, "deny": true}]));
        assert!(denied.is_err(), "{failing}");
    }
}

#[test]
fn conditions_read_claims_of_the_token() {
    let who = identity().with_claim("acct", json!(0)).with_claim("wids", json!(["a"]));
    let rules =
        json!([{"name": "r", "targets": ["t"], "when": "subject.claims.acct == 0 && 'a' in subject.claims['wids']"}]);
    assert!(decide_for(rules, who, ask()).is_ok());
}

#[test]
fn c19_group_overage_is_named_and_never_taken_for_no_groups() {
    let who = || identity().with_groups(Groups::Overage);
    let group = json!(["00000000-0000-0000-0000-000000000007"]);
    let by_group = json!({"name": "g", "targets": ["t"], "subject": {"groups": group}});
    assert_eq!(decide_for(json!([by_group]), who(), ask()).unwrap_err(), Refusal::GroupsOverage);
    let deny_by_group = json!({"name": "d", "targets": ["t"], "subject": {"groups": group}, "deny": true});
    assert_eq!(decide_for(json!([everybody(), deny_by_group]), who(), ask()).unwrap_err(), Refusal::GroupsOverage);
    for condition in ["size(subject.groups) == 0", "!has(subject.groups)", "!('x' in subject.groups)"] {
        let no_group = json!({"name": "n", "targets": ["t"], "when": condition});
        assert_eq!(decide_for(json!([no_group]), who(), ask()).unwrap_err(), Refusal::GroupsOverage, "{condition}");
    }
    let deny =
        json!({"name": "d", "targets": ["t"], "when": "has(subject.groups) && 'x' in subject.groups", "deny": true});
    assert_eq!(decide_for(json!([everybody(), deny]), who(), ask()).unwrap_err(), Refusal::GroupsOverage);
    assert!(decide_for(json!([everybody()]), who(), ask()).is_ok());
    // An unknown target answers alike, so nobody learns which rules ask for groups.
    let unknown = Ask { target: "unknown".to_owned(), ..ask() };
    assert_eq!(decide_for(json!([]), who(), unknown).unwrap_err(), Refusal::GroupsOverage);
}

#[test]
fn i24_scopes_beyond_the_targets_are_refused_or_dropped_as_the_door_says() {
    let scopes = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a scope")).collect::<Scopes>();
    let with = |asked: &[&str], excess| {
        let ask = Ask { scopes: scopes(asked), excess, ..ask() };
        decide_for(json!([everybody()]), identity(), ask).map(|grant| grant.scopes().joined())
    };
    assert_eq!(with(&[], ExcessScopes::Refuse), Ok("scope-a scope-b".to_owned()));
    assert_eq!(with(&["scope-b"], ExcessScopes::Refuse), Ok("scope-b".to_owned()));
    assert!(matches!(with(&["scope-b", "other"], ExcessScopes::Refuse), Err(Refusal::Request(_))));
    assert_eq!(with(&["scope-b", "other"], ExcessScopes::Drop), Ok("scope-b".to_owned()));
    assert_eq!(with(&["other"], ExcessScopes::Drop), Err(Refusal::NoScope));
}

#[test]
fn a_wrong_request_for_a_forbidden_target_is_denied_like_any_other() {
    let ask = Ask { scopes: ["other".parse().expect("a scope")].into_iter().collect(), ..ask() };
    assert_eq!(decide_for(json!([]), identity(), ask).unwrap_err(), Refusal::Denied(Denial::NoRule));
}

#[test]
fn w08_the_shorter_rule_never_gets_the_longer_life() {
    let short =
        decide(json!([{"name": "s", "targets": ["t"], "when": "true", "max_lifetime": "10m"}])).expect("a grant");
    let long = decide(json!([{"name": "l", "targets": ["t"], "when": "true"}])).expect("a grant");
    assert_eq!((short.plan().lifetime, long.plan().lifetime), (Duration::from_secs(600), HOUR));
    assert_ne!(short.rule_revision(), long.rule_revision());
}

#[test]
fn a_direct_token_is_bounded_by_what_it_is_exchanged_for() {
    let direct = |source| {
        let target = Target::google_for_test("t").with_google(|google| {
            google.service_account = None;
            google.subject_token = source;
        });
        let rules: Vec<RuleDocument> = serde_json::from_value(json!([everybody()])).expect("rules");
        let policy = Policy::compile(&rules, vec![target]).expect("a policy");
        let identity = Arc::new(VerifiedIdentity::for_test(now() + Duration::from_secs(1200)));
        policy
            .decide(Inquiry::once(&identity, &Arc::new(Job::default()), now()), &ask())
            .map(|grant| grant.plan().lifetime)
    };
    assert_eq!(direct(GoogleSubjectToken::Issuer), Ok(ASSERTION_LIFETIME));
    assert_eq!(direct(GoogleSubjectToken::Entra), Ok(Duration::from_secs(1200)));
}

#[test]
fn an_assertion_is_handed_out_only_where_the_target_says_so_and_outside_of_leases() {
    let decide = |target: Target, tenure, lease: bool| {
        let mut rule = everybody();
        if lease {
            rule["lease"] = json!({"max_duration": "1h", "heartbeat": "5m"});
        }
        let rules: Vec<RuleDocument> = serde_json::from_value(json!([rule])).expect("rules");
        let policy = Policy::compile(&rules, vec![target]).expect("a policy");
        let (identity, job) = (Arc::new(identity()), Arc::new(Job::default()));
        let inquiry = Inquiry { tenure, ..Inquiry::once(&identity, &job, now()) };
        let ask = Ask { token_type: TokenType::Jwt, ..ask() };
        policy.decide_all(inquiry, &[ask]).map(|grants| (grants[0].plan().lifetime, grants[0].scopes().is_empty()))
    };
    let allowed = || Target::google_for_test("t").with_google(|google| google.hand_out_assertion = true);
    assert_eq!(decide(allowed(), Tenure::Once, false), Ok((ASSERTION_LIFETIME, true)));
    for (target, tenure) in [
        (Target::google_for_test("t"), Tenure::Once),
        (Target::azure_for_test("t", AzureSource::TokenFile("/token".into())), Tenure::Once),
        (allowed(), Tenure::Opening(None)),
        (allowed(), Tenure::Lease { proved_at: now(), not_after: now() + HOUR }),
    ] {
        let refused = decide(target, tenure, true);
        assert!(matches!(refused, Err(Refusal::Request(_))), "{tenure:?}: {refused:?}");
    }
    let ask = Ask { token_type: TokenType::Jwt, ..ask() };
    assert_eq!(decide_for(json!([]), identity(), ask).unwrap_err(), Refusal::Denied(Denial::NoRule));
}

#[test]
fn a_subject_token_that_ends_before_the_floor_is_refused_where_the_cloud_ties_to_it() {
    let target = Target::google_for_test("t").with_google(|google| {
        google.service_account = None;
        google.subject_token = GoogleSubjectToken::Entra;
    });
    let rules: Vec<RuleDocument> = serde_json::from_value(json!([everybody()])).expect("rules");
    let policy = Policy::compile(&rules, vec![target]).expect("a policy");
    let identity = Arc::new(VerifiedIdentity::for_test(now() + Duration::from_secs(300)));
    let refused = policy.decide(Inquiry::once(&identity, &Arc::new(Job::default()), now()), &ask());
    assert_eq!(refused.unwrap_err(), Refusal::SubjectTokenEndsSoon);
}

#[test]
fn acting_on_behalf_is_for_users_only() {
    let source = AzureSource::OnBehalfOf { subject: "s".to_owned(), audience: "a".to_owned() };
    let rules: Vec<RuleDocument> = serde_json::from_value(json!([everybody()])).expect("rules");
    let policy = Policy::compile(&rules, vec![Target::azure_for_test("t", source)]).expect("a policy");
    let decide = |identity| policy.decide(Inquiry::once(&Arc::new(identity), &Arc::new(job()), now()), &ask());
    assert!(matches!(decide(identity()), Err(Refusal::Request(_))));
    assert!(decide(identity().with_kind(Kind::User)).is_ok());
}

#[test]
fn attributes_are_evaluated_and_left_out_where_they_fail() {
    let grant = decide(json!([{
        "name": "r", "targets": ["t"], "when": "true",
        "attributes": {"team": "job.labels['team']", "hours": "9", "gone": "job.labels['gone']", "sets": "job.datasets", "map": "job.labels"},
    }]));
    let attributes: HashMap<_, _> = grant.expect("a grant").attributes().iter().cloned().collect();
    let expected = [("team", json!("vision")), ("hours", json!(9)), ("sets", json!(["public"]))];
    assert_eq!(attributes, expected.map(|(name, value)| (name.to_owned(), value)).into());
}

#[test]
fn i08_names_and_addresses_cannot_decide_anything() {
    for condition in [
        "subject.claims.email == 'a@b'",
        "subject.claims['upn'] == 'a'",
        "subject.claims.preferred_username.endsWith('@b')",
        "has(subject.claims.unique_name)",
    ] {
        let found = mistakes(json!([{"name": "r", "targets": ["t"], "when": condition}]));
        assert!(found.len() == 1 && found[0].contains("identifies nobody"), "{condition}: {found:?}");
    }
    let label =
        json!([{"name": "r", "targets": ["t"], "when": "job.labels['email'] == 'a' || job.labels.email == 'b'"}]);
    assert_eq!(mistakes(label), Vec::<String>::new(), "a label of that name is the caller's own");
}

#[test]
fn expressions_of_unbounded_cost_or_unclear_meaning_are_refused() {
    let nested = format!("{}1{} == 1", "(".repeat(200), ")".repeat(200));
    let deep = format!("{}1{} == []", "[".repeat(40), "]".repeat(40));
    for condition in [
        "[1].map(a, [2].map(b, a)).size() > 0",
        "[1].exists(a, true) && [2].exists(b, true)",
        "[1].exists(a, a == 1) && a == 1",
        "job.name.matches(job.id)",
        "job.name.matches('(')",
        "job.name.matches('(a{1000}){1000}')",
        "job.nam == 'x'",
        "subject.oid == 'x'",
        "nobody == 1",
        "true &&",
        "job.expected_duration < duration('3d')",
        "job.expected_duration < duration(3)",
        &nested,
        &deep,
        &format!("'{}' == ''", "x".repeat(5000)),
    ] {
        let found = mistakes(json!([{"name": "r", "targets": ["t"], "when": condition}]));
        assert_eq!(found.len(), 1, "{condition}");
        assert!(found[0].starts_with("rules[0].when: "), "{found:?}");
    }
}

#[test]
fn every_mistake_of_every_rule_is_reported_with_its_place() {
    let found = mistakes(json!([
        {"name": "r", "targets": ["t", "missing"], "subject": {"groups": []}, "max_lifetime": "5m"},
        {"name": "r", "targets": [], "when": "true", "attributes": {"Bad Name": "1", "sub": "'x'"}},
        {"name": "open", "targets": ["t"]},
        {"name": "l", "targets": ["t"], "when": "true", "lease": {"max_duration": "1h", "heartbeat": "2h"}},
    ]));
    let places: Vec<&str> = found.iter().filter_map(|mistake| mistake.split(": ").next()).collect();
    assert_eq!(
        places,
        [
            "rules[0].max_lifetime",
            "rules[0].subject.groups",
            "rules[0].targets[1]",
            "rules[1].name",
            "rules[1].attributes.Bad Name",
            "rules[1].attributes.sub",
            "rules[1].targets",
            "rules[2]",
            "rules[3].lease.heartbeat",
        ],
        "{found:#?}"
    );
}

#[test]
fn i17_a_name_in_another_case_is_another_name() {
    let by_role = |role: &str| json!([{"name": "r", "targets": ["t"], "subject": {"roles": [role]}}]);
    let who = || identity().with_roles(&["Training.Submit"]);
    assert!(decide_for(by_role("Training.Submit"), who(), ask()).is_ok());
    for role in ["training.submit", "Training.Submit ", "TRAINING.SUBMIT"] {
        assert!(decide_for(by_role(role), who(), ask()).is_err(), "{role}");
    }
    for target in ["T", "t ", " t", "\u{ff54}"] {
        let ask = Ask { target: target.to_owned(), ..ask() };
        assert_eq!(
            decide_for(json!([everybody()]), identity(), ask).unwrap_err(),
            Refusal::Denied(Denial::NoSuchTarget)
        );
    }
}

#[test]
fn w02_a_pattern_has_the_anchors_that_it_is_written_with_and_no_others() {
    for (pattern, holds_for_vision) in
        [("^vis|x$", true), ("^is|on$", true), ("^(is|on)$", false), ("^(?:vision|audio)$", true), ("", true)]
    {
        assert_eq!(holds(&format!("job.name.matches('{pattern}')")), holds_for_vision, "{pattern}");
    }
}

use std::time::SystemTime;

use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::policy::{ExcessScopes, Inquiry, RuleDocument};
use crate::step::StepOutcome;
use crate::subject::{Identity, Kind, VerifiedIdentity};
use crate::target::{Job, Scopes};

const HOUR: Duration = Duration::from_secs(3600);

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

fn job() -> Job {
    Job {
        id: Some("run-1".to_owned()),
        name: Some("vision".to_owned()),
        expected_duration: Some(9 * HOUR),
        labels: [("team".to_owned(), "vision".to_owned())].into(),
        datasets: vec!["public".to_owned()],
    }
}

/// Targets of every kind.
fn targets() -> Vec<Target> {
    let direct = |name: &str, source| {
        Target::google_for_test(name).with_google(|google| {
            google.service_account = None;
            google.subject_token = source;
        })
    };
    let on_behalf = AzureSource::OnBehalfOf { subject: "s".to_owned(), audience: "a".to_owned() };
    vec![
        Target::google_for_test("t"),
        Target::google_for_test("handed-out").with_google(|google| google.hand_out_assertion = true),
        direct("direct", GoogleSubjectToken::Issuer),
        direct("entra", GoogleSubjectToken::Entra),
        Target::azure_for_test("azure", AzureSource::TokenFile("/token".into())),
        Target::azure_for_test("on-behalf", on_behalf),
    ]
}

fn policy(rules: Value) -> Policy {
    let rules: Vec<RuleDocument> = serde_json::from_value(rules).expect("rules");
    Policy::compile(&rules, targets()).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

fn identity() -> Identity {
    Identity::for_test(now() + HOUR)
}

fn explain(rules: Value, identity: &Identity, ask: Ask) -> Explanation {
    policy(rules).explain(Question::once(identity, &job(), now()), &[ask])
}

fn step<'a>(explanation: &'a Explanation, name: &str) -> &'a Step {
    explanation.steps.iter().find(|step| step.name == name).unwrap_or_else(|| panic!("{name}: {explanation:#?}"))
}

/// The detail of the one rule `r`, and the remedy.
fn of_rule(rule: Value, identity: &Identity) -> (String, String) {
    let mut rule = rule;
    rule["name"] = "r".into();
    rule["targets"] = json!(["t"]);
    let explanation = explain(json!([rule]), identity, ask("t"));
    let step = step(&explanation, "rule:r");
    (step.detail.clone(), step.remedy.clone())
}

#[test]
fn each_field_of_a_subject_is_named_with_what_it_wants_and_what_the_token_has() {
    let guid = |number: u128| Uuid::from_u128(number).to_string();
    let who = identity().with_roles(&["Reader"]).with_groups(Groups::Known([Uuid::from_u128(7)].into()));
    for (field, wants, detail, remedy) in [
        (
            "roles",
            "Training.Submit".to_owned(),
            "wants one of [Training.Submit]; the token has [Reader]".to_owned(),
            "roles: [Training.Submit, Reader]",
        ),
        ("tenants", guid(9), format!("wants one of [{}]; the token has [{}]", guid(9), guid(1)), "widen the rule"),
        ("objects", guid(9), format!("the token has [{}]", guid(2)), "Ask as one of"),
        ("clients", guid(9), format!("the token has [{}]", guid(3)), "Request the token with"),
        ("groups", guid(9), format!("the token has [{}]", guid(7)), "a member of one of"),
        (
            "kinds",
            "user".to_owned(),
            "the token has [service_principal]".to_owned(),
            "kinds: [user, service_principal]",
        ),
        ("scopes", "jobs.submit".to_owned(), "the token has none".to_owned(), "Only users' tokens have scopes"),
        ("auth_contexts", "c1".to_owned(), "the token has none".to_owned(), "Only users' tokens have"),
    ] {
        let (seen, remedied) = of_rule(json!({"subject": {field: [wants]}}), &who);
        assert!(seen.contains(&format!("subject.{field}: ")) && seen.contains(&detail), "{field}: {seen}");
        assert!(remedied.contains(remedy), "{field}: {remedied}");
    }
    let user = identity().with_kind(Kind::User);
    assert!(
        of_rule(json!({"subject": {"scopes": ["jobs.submit"]}}), &user).1.contains("one of the scopes [jobs.submit]")
    );
    assert!(of_rule(json!({"subject": {"auth_contexts": ["c7"]}}), &user).1.contains("\"value\":\"c7\""));
}

#[test]
fn a_condition_is_told_by_the_part_that_fails_with_the_values_that_it_reads() {
    for (when, detail, remedy) in [
        (
            "job.id == 'run-1' && job.expected_duration <= duration('1h') && job.name == 'vision'",
            "when: `job.expected_duration <= duration('1h')` is false; job.expected_duration = 9h",
            "--duration of `carnet exchange`",
        ),
        (
            "(job.labels['team'] == 'audio' || job.name == 'x') && true",
            "when: no alternative of `job.labels['team'] == 'audio' || job.name == 'x'` holds; \
             job.labels[\"team\"] = \"vision\", job.name = \"vision\"",
            "--label KEY=VALUE, --job-name",
        ),
        (
            "job.labels['owner'] == 'me'",
            "when: `job.labels['owner'] == 'me'` fails (there is no key owner); job.labels[\"owner\"] is not there",
            "`'owner' in job.labels && (job.labels['owner'] == 'me')`",
        ),
        (
            "request.lifetime <= duration('1h')",
            "fails (request.lifetime is not there); request.lifetime is not there",
            "`has(request.lifetime) && (request.lifetime <= duration('1h'))`",
        ),
        ("job.name", "when: `job.name` is neither true nor false", "compare it with something"),
        // What is false decides, although what stands before it fails.
        ("job.labels.owner == 'me' && job.name == 'x'", "when: `job.name == 'x'` is false", "--job-name"),
        ("'secret' in job.datasets", "job.datasets = [\"public\"]", "--dataset"),
        ("subject.claims.acct == 1", "fails (there is no key acct)", "has(subject.claims.acct) && "),
        ("job.datasets.all(d, d == 'x')", "is false; job.datasets = [\"public\"]", "--dataset"),
    ] {
        let (seen, remedied) = of_rule(json!({"when": when}), &identity());
        assert!(seen.contains(detail), "{when}: {seen}");
        assert!(remedied.contains(remedy), "{when}: {remedied}");
    }
    let (seen, _remedy) = of_rule(json!({"subject": {"roles": ["X"]}, "when": "job.name == 'x'"}), &identity());
    assert!(seen.contains("subject.roles") && seen.ends_with("(and 1 more)"), "{seen}");
}

#[test]
fn all_rules_are_shown_and_those_that_deny_come_first() {
    let deny = json!({"name": "no-contractors", "targets": ["t"], "subject": {"roles": ["Contractor"]}, "deny": true});
    let first = json!({"name": "first", "targets": ["t"], "subject": {"roles": ["Other"]}});
    let second = json!({"name": "second", "targets": ["t"], "when": "true"});
    let third = json!({"name": "third", "targets": ["t"], "when": "true"});
    let rules = json!([first, second, third, deny]);
    let shown = |explanation: &Explanation| {
        let rules = explanation.steps.iter().filter(|step| step.name.starts_with("rule:"));
        rules.map(|step| (step.name.clone(), step.outcome)).collect::<Vec<_>>()
    };
    let named = |outcomes: [StepOutcome; 4]| {
        ["rule:no-contractors", "rule:first", "rule:second", "rule:third"]
            .map(str::to_owned)
            .into_iter()
            .zip(outcomes)
            .collect::<Vec<_>>()
    };
    let allowed = explain(rules.clone(), &identity(), ask("t"));
    assert_eq!(
        shown(&allowed),
        named([StepOutcome::Passed, StepOutcome::Skipped, StepOutcome::Passed, StepOutcome::Skipped])
    );
    assert!(
        step(&allowed, "lifetime")
            .detail
            .starts_with("1h, bound by the target; the job takes 9h, with headroom 9h54m; caps: target 1h, cloud 12h")
    );
    let denied = explain(rules, &identity().with_roles(&["Contractor"]), ask("t"));
    assert_eq!(
        shown(&denied),
        named([StepOutcome::Failed, StepOutcome::Skipped, StepOutcome::Skipped, StepOutcome::Skipped])
    );
    assert!(step(&denied, "rule:no-contractors").detail.contains("subject.roles has Contractor"));
    assert_eq!(step(&denied, "lifetime").outcome, StepOutcome::Skipped);
}

#[test]
fn a_target_that_is_not_there_is_told_from_one_that_no_rule_names() {
    let rules = json!([{"name": "r", "targets": ["azure"], "when": "true"}]);
    let unknown = explain(rules.clone(), &identity(), ask("Azur"));
    assert!(step(&unknown, "target:Azur").remedy.starts_with("Is azure meant?"), "{unknown:#?}");
    let unnamed = explain(rules, &identity(), ask("t"));
    assert_eq!(step(&unnamed, "target:t").outcome, StepOutcome::Passed);
    let remedy = &step(&unnamed, "rules").remedy;
    let (_words, yaml) = remedy.split_once("rules:\n").expect("a rule");
    let rules: Vec<RuleDocument> = serde_saphyr::from_str(yaml).expect("it can be pasted");
    let repaired = Policy::compile(&rules, targets()).expect("a policy");
    assert!(repaired.explain(Question::once(&identity(), &job(), now()), &[ask("t")]).result.is_ok());
}

#[test]
fn group_overage_is_a_step_that_fails_where_the_answer_is_its_own() {
    let who = identity().with_groups(Groups::Overage);
    let by_group =
        json!([{"name": "r", "targets": ["t"], "subject": {"groups": ["44444444-4444-4444-4444-444444444444"]}}]);
    let denied = explain(by_group, &who, ask("t"));
    assert!(step(&denied, "groups").remedy.contains("ApplicationGroup"));
    assert!(step(&denied, "rule:r").detail.contains("the token does not tell its groups"));
    let allowed = explain(json!([{"name": "r", "targets": ["t"], "when": "true"}]), &who, ask("t"));
    assert_eq!(step(&allowed, "groups").outcome, StepOutcome::Passed);
}

#[test]
fn what_the_target_cannot_give_has_a_step_and_a_remedy() {
    let rules = || json!([{"name": "r", "targets": ["t", "entra", "on-behalf", "azure"], "when": "true"}]);
    let scoped = Ask { scopes: ["other".parse().expect("a scope")].into_iter().collect(), ..ask("t") };
    let wrong_scope = explain(rules(), &identity(), scoped);
    assert!(step(&wrong_scope, "scopes").detail.contains("asked for [other], the target has [scope-a, scope-b]"));
    assert_eq!(step(&wrong_scope, "request").outcome, StepOutcome::Skipped);
    let jwt = explain(rules(), &identity(), Ask { token_type: TokenType::Jwt, ..ask("t") });
    assert!(step(&jwt, "request").remedy.contains("hand_out_assertion: true"));
    let nobody = explain(rules(), &identity(), ask("on-behalf"));
    assert!(step(&nobody, "request").remedy.contains("nobody behind a service principal"));
    let short = Identity::for_test(now() + Duration::from_secs(300));
    let tied = explain(rules(), &short, ask("entra"));
    assert!(step(&tied, "lifetime").detail.contains("subject token 5m"), "{tied:#?}");
    assert!(step(&tied, "lifetime").remedy.contains("fresh subject token"));
}

#[test]
fn a_lease_is_explained_with_its_end_or_with_what_the_rule_lacks() {
    let opening = |rule: Value, wanted| {
        let mut question_rule = rule;
        question_rule["name"] = "r".into();
        question_rule["targets"] = json!(["t"]);
        question_rule["when"] = "true".into();
        let (who, job) = (identity(), job());
        let question = Question { tenure: Tenure::Opening(wanted), ..Question::once(&who, &job, now()) };
        policy(json!([question_rule])).explain(question, &[ask("t")])
    };
    let lease = json!({"lease": {"max_duration": "72h", "heartbeat": "5m"}});
    let opened = opening(lease, Some(10 * HOUR));
    assert_eq!(step(&opened, "lease").detail, "ends in 10h, rule r allows up to 3d; a heartbeat is due every 5m");
    assert!(step(&opened, "lifetime").detail.contains("bound by the lease"), "{opened:#?}");
    let refused = opening(json!({}), None);
    assert!(step(&refused, "lease").remedy.contains("lease: { max_duration: 72h, heartbeat: 5m }"));
}

fn rule() -> impl Strategy<Value = Value> {
    let some_of = |items: Vec<String>| {
        proptest::option::weighted(0.3, proptest::sample::subsequence(items.clone(), 1..=items.len()))
    };
    let guids =
        |numbers: &[u128]| numbers.iter().map(|number| Uuid::from_u128(*number).to_string()).collect::<Vec<_>>();
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let subject = (
        some_of(guids(&[1, 9])),
        some_of(texts(&["user", "service_principal"])),
        some_of(guids(&[7, 8])),
        some_of(texts(&["Reader", "Submit"])),
        some_of(guids(&[2, 9])),
    );
    let whens = [
        "true",
        "false",
        "job.name == 'vision' && job.labels.team == 'vision'",
        "job.labels.owner == 'x'",
        "has(request.lifetime) && request.lifetime <= duration('1h')",
        "!('x' in subject.groups)",
        "job.labels.owner == 'x' || job.name == 'vision'",
        "subject.claims.acct == 1 && false",
        "(job.id == 'run-1' && target == 't') && job.expected_duration < duration('10h')",
    ];
    let names: Vec<String> = targets().iter().map(|target| target.name.to_string()).collect();
    (
        subject,
        proptest::option::weighted(0.6, proptest::sample::select(whens.to_vec())),
        proptest::bool::weighted(0.25),
        proptest::option::of(proptest::sample::select(vec!["10m", "1h", "12h"])),
        proptest::option::of(proptest::sample::select(vec!["30m", "72h"])),
        proptest::sample::subsequence(names, 1..=3),
    )
        .prop_map(|((tenants, kinds, groups, roles, objects), when, deny, max_lifetime, lease, targets)| {
            let mut rule = json!({
                "targets": targets, "deny": deny, "subject": {
                    "tenants": tenants, "kinds": kinds, "groups": groups, "roles": roles, "objects": objects,
                },
                // A rule is about somebody.
                "when": when.unwrap_or("target != ''"),
            });
            if let Some(max_lifetime) = max_lifetime {
                rule["max_lifetime"] = max_lifetime.into();
            }
            if let Some(lease) = lease {
                rule["lease"] = json!({"max_duration": lease, "heartbeat": "5m"});
            }
            rule
        })
}

fn somebody() -> impl Strategy<Value = (Kind, Groups, Vec<&'static str>, u64)> {
    let groups = prop_oneof![
        Just(Groups::Known([].into())),
        Just(Groups::Known([Uuid::from_u128(7)].into())),
        Just(Groups::Overage),
    ];
    let roles = proptest::sample::subsequence(vec!["Reader", "Submit"], 0..=2);
    (proptest::sample::select(vec![Kind::User, Kind::ServicePrincipal]), groups, roles, 200u64..5000)
}

fn asked() -> impl Strategy<Value = Ask> {
    let names: Vec<String> =
        targets().iter().map(|target| target.name.to_string()).chain(["unknown".to_owned()]).collect();
    let scopes = proptest::sample::subsequence(vec!["scope-a", "scope-b", "other"], 0..=2);
    let kinds = vec![TokenType::AccessToken, TokenType::AccessToken, TokenType::IdToken, TokenType::Jwt];
    let excess = proptest::sample::select(vec![ExcessScopes::Refuse, ExcessScopes::Drop]);
    let lifetime = proptest::option::of(60u64..50_000);
    (proptest::sample::select(names), scopes, proptest::sample::select(kinds), excess, lifetime).prop_map(
        |(target, scopes, token_type, excess, lifetime)| Ask {
            target,
            scopes: scopes.iter().map(|scope| scope.parse().expect("a scope")).collect(),
            excess,
            token_type,
            audience: None,
            lifetime: lifetime.map(Duration::from_secs),
            beyond: None,
        },
    )
}

fn tenure() -> impl Strategy<Value = Tenure> {
    let length = proptest::option::of((1u64..400_000).prop_map(Duration::from_secs));
    prop_oneof![
        3 => Just(Tenure::Once),
        1 => length.prop_map(Tenure::Opening),
        1 => (0u64..10_000, 0u64..10_000).prop_map(|(ago, left)| Tenure::Lease {
            proved_at: now() - Duration::from_secs(ago), not_after: now() + Duration::from_secs(left),
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn an_explanation_says_what_is_decided(
        rules in proptest::collection::vec(rule(), 0..5), (kind, groups, roles, life) in somebody(),
        asks in proptest::collection::vec(asked(), 1..3), tenure in tenure(),
    ) {
        let rules: Vec<Value> = rules.into_iter().enumerate().map(|(position, mut rule)| {
            rule["name"] = format!("rule-{position}").into();
            rule
        }).collect();
        let policy = policy(rules.into());
        let who = VerifiedIdentity::for_test(now() + Duration::from_secs(life));
        let who = Arc::new(who.with_kind(kind).with_groups(groups).with_roles(&roles));
        let job = Arc::new(job());
        let inquiry = Inquiry { tenure, ..Inquiry::once(&who, &job, now()) };
        let question = Question { tenure, ..Question::once(&who, &job, now()) };
        let decided = policy.decide_all(inquiry, &asks);
        let explained = policy.explain(question, &asks);
        let failed: Vec<&Step> = explained.steps.iter().filter(|step| step.has_failed()).collect();
        prop_assert_eq!(decided.is_ok(), failed.is_empty(), "{:?}\n{:#?}", decided, explained.steps);
        prop_assert!(failed.iter().all(|step| !step.remedy.is_empty()), "{:#?}", failed);
        prop_assert!(explained.steps.iter().all(|step| step.has_failed() || step.remedy.is_empty()));
        match (&decided, &explained.result) {
            (Ok(grants), Ok(verdicts)) => {
                let lifetimes: Vec<&Step> = explained.steps.iter().filter(|step| step.name == "lifetime").collect();
                prop_assert_eq!(lifetimes.len(), grants.len());
                for ((grant, verdict), shown) in grants.iter().zip(verdicts).zip(lifetimes) {
                    prop_assert_eq!((grant.rule(), grant.plan(), grant.scopes()), (verdict.rule(), verdict.plan(), verdict.scopes()));
                    prop_assert!(shown.detail.starts_with(&format!("{}, ", length(grant.plan().lifetime))), "{}", shown.detail);
                    let bound = grant.plan().bound(grant.plan().lifetime, Given::AsAsked);
                    let said = match bound {
                        Bound::Requested => "as long as was asked for".to_owned(),
                        Bound::Rule => format!("bound by rule {}", grant.rule()),
                        Bound::SubjectToken => "bound by the subject token".to_owned(),
                        other => format!("bound by the {}", other.as_str()),
                    };
                    prop_assert!(shown.detail.contains(&said), "{} is not in {}", said, shown.detail);
                    let rule = format!("rule:{}", grant.rule());
                    let allows = |step: &Step| step.name == rule && step.detail.starts_with("allows");
                    prop_assert!(explained.steps.iter().any(allows));
                }
            }
            (Err(decided), Err(explained)) => prop_assert_eq!(decided, explained),
            (decided, explained) => prop_assert!(false, "{:?} but {:?}", decided, explained),
        }
    }
}

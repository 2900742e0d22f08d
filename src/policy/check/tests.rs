use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::target::{AzureSource, GoogleSubjectToken, Sharing};

mod effects;

const TENANT: &str = "00000000-0000-0000-0000-000000000001";
const OTHER_TENANT: &str = "00000000-0000-0000-0000-000000000009";
const ONE: &str = "00000000-0000-0000-0000-0000000000a1";
const TWO: &str = "00000000-0000-0000-0000-0000000000a2";

fn targets() -> Vec<Target> {
    let behalf = AzureSource::OnBehalfOf { subject: "s".to_owned(), audience: "a".to_owned() };
    let azure = AzureSource::Issuer { subject: "s".to_owned(), audience: "a".to_owned() };
    let mut shared = Target::google_for_test("shared");
    shared.sharing = Sharing::Target;
    let direct = |name, subject_token| {
        Target::google_for_test(name).with_google(|google| {
            google.service_account = None;
            google.subject_token = subject_token;
        })
    };
    vec![
        Target::google_for_test("t"),
        Target::google_for_test("u"),
        shared,
        direct("direct", GoogleSubjectToken::Issuer),
        direct("entra", GoogleSubjectToken::Entra),
        Target::azure_for_test("azure", azure),
        Target::azure_for_test("behalf", behalf),
    ]
}

fn check(rules: &Value, operators: &Value, targets: &[Target]) -> Vec<Finding> {
    let rules: Vec<RuleDocument> = serde_json::from_value(rules.clone()).expect("rules");
    let operators: Vec<OperatorDocument> = serde_json::from_value(operators.clone()).expect("operators");
    let tenants = [TENANT.parse().expect("a tenant")];
    Draft { rules: &rules, operators: &operators, targets, tenants: &tenants }.check()
}

/// Where rules have findings of this code.
fn places(code: Code, rules: &Value) -> Vec<String> {
    let findings = check(rules, &json!([]), &targets());
    findings.into_iter().filter(|finding| finding.code == code).map(|finding| finding.at).collect()
}

/// `with` has one such finding at this place, and `without` just does not.
fn found(code: Code, at: &str, with: Value, without: Value) {
    assert_eq!(places(code, &with), [at], "{code} in {with}");
    assert_eq!(places(code, &without), Vec::<String>::new(), "{code} in {without}");
}

/// A rule for those with role R, with these fields in place of or beside its own.
fn rule(fields: Value) -> Value {
    let mut rule = json!({"name": "r", "targets": ["t"], "subject": {"roles": ["R"]}});
    for (name, value) in fields.as_object().expect("fields") {
        rule[name] = value.clone();
    }
    rule
}

fn subject(subject: Value) -> Value {
    json!([rule(json!({"subject": subject}))])
}

fn when(condition: &str) -> Value {
    json!([rule(json!({"when": condition}))])
}

fn deny(name: &str, fields: Value) -> Value {
    let mut rule = rule(fields);
    rule["name"] = name.into();
    rule["deny"] = true.into();
    rule
}

#[test]
fn rules_in_order_have_no_finding() {
    let rules = json!([
        rule(json!({"when": "!has(job.expected_duration) || job.expected_duration <= duration('72h')",
                    "max_lifetime": "1h", "lease": {"max_duration": "72h", "heartbeat": "5m"}})),
        rule(json!({"name": "s", "subject": {"roles": ["S"]}, "attributes": {"team": "job.labels['team']"}})),
        deny("d", json!({"subject": {"objects": [ONE]}})),
    ]);
    let operators = json!([{"permissions": ["explain"], "subject": {"roles": ["Carnet.Operator"]}}]);
    assert_eq!(check(&rules, &operators, &[Target::google_for_test("t")]), []);
}

#[test]
fn every_code_is_in_order_and_every_finding_says_what_to_change() {
    for (place, code) in Code::ALL.iter().enumerate() {
        assert_eq!(code.as_str(), format!("P{place:03}"));
    }
    let findings = check(&json!([rule(json!({"targets": ["x"], "when": "true &&"}))]), &json!([]), &targets());
    assert!(findings.len() > 2);
    assert!(
        findings.iter().all(|finding| !finding.message.is_empty() && finding.change.ends_with('.')),
        "{findings:?}"
    );
}

#[test]
fn p000_what_no_broker_would_load() {
    found(
        Code::Unusable,
        "rules[0].max_lifetime",
        json!([rule(json!({"max_lifetime": "1m"}))]),
        json!([rule(json!({"max_lifetime": "6m"}))]),
    );
    let findings = check(&json!([]), &json!([{"permissions": [], "subject": {"roles": ["R"]}}]), &[]);
    assert!(matches!(&findings[..], [one] if one.code == Code::Unusable && one.at == "operators[0].permissions"));
}

#[test]
fn p001_a_target_that_there_is_not() {
    found(
        Code::UnknownTarget,
        "rules[0].targets[1]",
        json!([rule(json!({"targets": ["t", "azur"]}))]),
        json!([rule(json!({"targets": ["t", "azure"]}))]),
    );
    let near = check(&json!([rule(json!({"targets": ["azur"]}))]), &json!([]), &targets());
    assert!(near.iter().any(|finding| finding.change.contains("Did you mean azure?")), "{near:?}");
    let far = check(&json!([rule(json!({"targets": ["vertex"]}))]), &json!([]), &targets());
    assert!(!far.iter().any(|finding| finding.change.contains("Did you mean")), "{far:?}");
}

#[test]
fn p002_names_and_addresses_as_identity_however_they_are_read() {
    for condition in [
        "subject.claims.email == 'a'",
        "subject.claims['upn'] == 'a'",
        "subject['claims'].preferred_username == 'a'",
        "subject.claims.name == 'Alice'",
        "has(subject.claims.given_name)",
        "'family_name' in subject.claims",
        "subject.claims.acct == 0 && subject.claims.oid == 'alice@contoso.com'",
        "has(job.labels.owner) && job.labels.owner.endsWith('@contoso.com')",
    ] {
        assert_eq!(places(Code::NameAsIdentity, &when(condition)), ["rules[0].when"], "{condition}");
        // One finding for one mistake.
        assert_eq!(places(Code::Unusable, &when(condition)), Vec::<String>::new(), "{condition}");
    }
    for condition in [
        "subject.claims.acct == 0",
        "job.labels['email'] == 'x'",
        "'gs://data@1/x' in job.datasets",
        "has(job.labels.owner) && job.labels.owner == '@vision'",
    ] {
        assert_eq!(places(Code::NameAsIdentity, &when(condition)), Vec::<String>::new(), "{condition}");
    }
    found(
        Code::NameAsIdentity,
        "rules[0].subject.roles[1]",
        subject(json!({"roles": ["R", "alice@contoso.com"]})),
        subject(json!({"roles": ["R", "alice@contoso"]})),
    );
    let attribute = |source: &str| json!([rule(json!({"attributes": {"who": source}}))]);
    found(
        Code::NameAsIdentity,
        "rules[0].attributes.who",
        attribute("subject.claims.email"),
        attribute("subject.claims.oid"),
    );
}

#[test]
fn p003_a_subject_that_nobody_can_have() {
    for (at, with, without) in [
        ("tenants", json!({"roles": ["R"], "tenants": [OTHER_TENANT]}), json!({"roles": ["R"], "tenants": [TENANT]})),
        (
            "kinds",
            json!({"roles": ["R"], "kinds": ["service_principal"], "scopes": ["s"]}),
            json!({"roles": ["R"], "kinds": ["user"], "scopes": ["s"]}),
        ),
        (
            "kinds",
            json!({"roles": ["R"], "kinds": ["managed_identity"], "auth_contexts": ["c1"]}),
            json!({"roles": ["R"], "auth_contexts": ["c1"]}),
        ),
        ("roles", json!({"roles": ["Training Submit"]}), json!({"roles": ["Training.Submit"]})),
        ("scopes", json!({"roles": ["R"], "scopes": ["api://carnet/s"]}), json!({"roles": ["R"], "scopes": ["s"]})),
        (
            "auth_contexts",
            json!({"roles": ["R"], "auth_contexts": ["c0", "c100", "C1", "c01"]}),
            json!({"roles": ["R"], "auth_contexts": ["c99"]}),
        ),
    ] {
        found(Code::Nobody, &format!("rules[0].subject.{at}"), subject(with), subject(without));
    }
    let behalf =
        |kinds: Value| json!([rule(json!({"targets": ["behalf"], "subject": {"roles": ["R"], "kinds": kinds}}))]);
    found(Code::Nobody, "rules[0].subject.kinds", behalf(json!(["service_principal"])), behalf(json!(["user"])));
}

#[test]
fn p004_a_condition_that_never_holds() {
    for condition in ["false", "1 / 0 == 1", "'x'", "job.name", "has(job.name) && false", "1 == 2", "duration('1h')"] {
        assert_eq!(places(Code::NeverHolds, &when(condition)), ["rules[0].when"], "{condition}");
    }
    for condition in ["job.name == 'x'", "true", "subject.claims.flag", "has(job.name)", "false || has(job.name)"] {
        assert_eq!(places(Code::NeverHolds, &when(condition)), Vec::<String>::new(), "{condition}");
    }
    let deny = |condition: &str| json!([deny("d", json!({"when": condition}))]);
    found(Code::NeverHolds, "rules[0].when", deny("false"), deny("1 / 0 == 1"));
}

#[test]
fn p005_operators_who_could_be_anybody() {
    let at = |subject: Value| {
        let findings = check(&json!([]), &json!([{"permissions": ["explain"], "subject": subject}]), &[]);
        findings.into_iter().map(|finding| (finding.code, finding.at)).collect::<Vec<_>>()
    };
    let wide = vec![(Code::OperatorsTooWide, "operators[0].subject".to_owned())];
    assert_eq!(at(json!({"tenants": [TENANT]})), wide);
    assert_eq!(at(json!({"kinds": ["user"]})), wide);
    assert_eq!(at(json!({"scopes": ["operate"]})), wide);
    assert_eq!(at(json!({"clients": [ONE]})), wide);
    assert_eq!(at(json!({"clients": [ONE], "kinds": ["service_principal"]})), []);
    assert_eq!(at(json!({"roles": ["R"], "tenants": [TENANT]})), []);
}

#[test]
fn p008_entries_that_nobody_matches() {
    for (at, with, without) in [
        (
            "tenants[1]",
            json!({"roles": ["R"], "tenants": [TENANT, OTHER_TENANT]}),
            json!({"roles": ["R"], "tenants": [TENANT]}),
        ),
        ("roles[0]", json!({"roles": ["Training Submit", "R"]}), json!({"roles": ["Training.Submit", "R"]})),
        (
            "scopes[1]",
            json!({"roles": ["R"], "scopes": ["s", ".default"]}),
            json!({"roles": ["R"], "scopes": ["s", "default"]}),
        ),
        (
            "kinds[1]",
            json!({"roles": ["R"], "kinds": ["user", "managed_identity"], "auth_contexts": ["c1"]}),
            json!({"roles": ["R"], "kinds": ["user", "managed_identity"]}),
        ),
    ] {
        found(Code::DeadEntry, &format!("rules[0].subject.{at}"), subject(with), subject(without));
    }
}

#[test]
fn p009_subjects_that_anybody_of_a_tenant_has() {
    for (with, without) in [
        (json!({"tenants": [TENANT]}), json!({"tenants": [TENANT], "roles": ["R"]})),
        (json!({"kinds": ["service_principal"]}), json!({"kinds": ["service_principal"], "clients": [ONE]})),
        (json!({"kinds": ["user"], "clients": [ONE]}), json!({"kinds": ["user"], "objects": [ONE]})),
        (json!({"clients": [ONE]}), json!({"clients": [ONE], "kinds": ["managed_identity"]})),
        (json!({"scopes": ["s"]}), json!({"scopes": ["s"], "groups": [ONE]})),
        (json!({"auth_contexts": ["c1"]}), json!({"auth_contexts": ["c1"], "roles": ["R"]})),
    ] {
        found(Code::TooWide, "rules[0].subject", subject(with), subject(without));
    }
    let by_condition = |condition: &str| json!([rule(json!({"subject": {"tenants": [TENANT]}, "when": condition}))]);
    found(
        Code::TooWide,
        "rules[0].subject",
        by_condition("subject.kind == 'user'"),
        by_condition("'R' in subject.roles"),
    );
    let everybody = |condition: &str| json!([rule(json!({"subject": {}, "when": condition}))]);
    found(Code::TooWide, "rules[0].when", everybody("true"), everybody("subject.object == 'x'"));
    assert_eq!(
        places(Code::TooWide, &json!([deny("d", json!({"subject": {"tenants": [TENANT]}}))])),
        Vec::<String>::new()
    );
}

#[test]
fn p010_allowed_by_the_callers_own_word() {
    let with = |subject: Value, condition: &str| json!([rule(json!({"subject": subject, "when": condition}))]);
    let team = "'team' in job.labels && job.labels['team'] == 'vision'";
    found(Code::CallersWord, "rules[0].when", with(json!({}), team), with(json!({"roles": ["R"]}), team));
    let and_role = format!("{team} && 'R' in subject.roles");
    found(Code::CallersWord, "rules[0].when", with(json!({"kinds": ["user"]}), team), with(json!({}), &and_role));
    assert_eq!(places(Code::TooWide, &with(json!({}), team)), Vec::<String>::new(), "one finding for one mistake");
}

#[test]
fn p018_one_id_for_two_things() {
    for (at, with, without) in [
        ("objects[0]", json!({"clients": [ONE], "objects": [ONE]}), json!({"clients": [ONE], "objects": [TWO]})),
        ("groups[0]", json!({"groups": [TENANT]}), json!({"groups": [ONE]})),
    ] {
        found(Code::IdMixedUp, &format!("rules[0].subject.{at}"), subject(with), subject(without));
    }
    let kinds = |other: &str| {
        let mut second = rule(json!({"subject": {"objects": [ONE], "kinds": [other]}}));
        second["name"] = "s".into();
        json!([rule(json!({"subject": {"objects": [ONE], "kinds": ["user"]}})), second])
    };
    found(Code::IdMixedUp, "rules[1].subject.objects[0]", kinds("managed_identity"), kinds("user"));
}

#[test]
fn p019_claims_that_are_not_clear() {
    for (with, without) in [
        ("subject.claims[job.id] == 'x'", "subject.claims['acct'] == 'x'"),
        ("subject.claims.exists(c, subject.claims[c] == 'x')", "['a'].exists(c, subject.claims.acct == c)"),
        ("subject['cla' + 'ims']['em' + 'ail'] == 'x'", "subject['kind'] == 'x'"),
        ("subject.claims.xms_mirid == 'x'", "subject.claims.xms_cc == 'x'"),
    ] {
        found(Code::UnclearClaim, "rules[0].when", when(with), when(without));
    }
}

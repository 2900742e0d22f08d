use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::target::{AzureSource, GoogleSubjectToken, Sharing};

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
fn p006_a_rule_that_an_earlier_one_leaves_nothing() {
    let second = |fields: Value| {
        let mut second = rule(fields);
        second["name"] = "s".into();
        second
    };
    let pair = |one: Value, other: Value| json!([rule(one), second(other)]);
    let (nothing, lease) = (json!({}), json!({"lease": {"max_duration": "1h", "heartbeat": "5m"}}));
    let at = "rules[1]";
    for (with, without) in [
        (pair(nothing.clone(), nothing.clone()), pair(json!({"when": "has(job.id)"}), nothing.clone())),
        (
            pair(json!({"when": "has(job.id)"}), json!({"when": "has( job.id )"})),
            pair(json!({"when": "has(job.id)"}), json!({"when": "has(job.name)"})),
        ),
        (pair(json!({"when": "true"}), nothing.clone()), pair(json!({"when": "false"}), nothing.clone())),
        (
            pair(json!({"subject": {"roles": ["R", "S"]}}), json!({"subject": {"roles": ["S"], "objects": [ONE]}})),
            pair(json!({"subject": {"roles": ["R"]}}), json!({"subject": {"roles": ["R", "S"]}})),
        ),
        (
            pair(json!({"subject": {"roles": ["R"], "tenants": [TENANT]}}), nothing.clone()),
            pair(json!({"subject": {"roles": ["R"], "tenants": [OTHER_TENANT]}}), nothing.clone()),
        ),
        (
            pair(
                json!({"subject": {"roles": ["R"], "kinds": ["user"]}}),
                json!({"subject": {"roles": ["R"], "scopes": ["s"]}}),
            ),
            pair(
                json!({"subject": {"roles": ["R"], "kinds": ["user"]}}),
                json!({"subject": {"roles": ["R"], "clients": [ONE]}}),
            ),
        ),
        (
            pair(json!({"targets": ["t", "u"]}), json!({"targets": ["u"]})),
            pair(json!({"targets": ["t"]}), json!({"targets": ["t", "u"]})),
        ),
        // Under a lease, the second decides.
        (pair(lease.clone(), lease.clone()), pair(nothing.clone(), lease)),
        (pair(nothing.clone(), nothing.clone()), json!([deny("d", json!({"targets": ["u"]})), second(json!({}))])),
    ] {
        found(Code::NeverReached, at, with, without);
    }
    // Two earlier rules together, each for one target.
    let both = json!([rule(json!({})), second(json!({"targets": ["u"]})), {"name": "x", "targets": ["t", "u"], "subject": {"roles": ["R"]}}]);
    assert_eq!(places(Code::NeverReached, &both), ["rules[2]"]);
    let denials = |other: Value| json!([deny("d", json!({})), deny("e", other)]);
    found(Code::NeverReached, at, denials(json!({})), denials(json!({"subject": {"roles": ["S"]}})));
}

#[test]
fn p007_a_rule_that_a_deny_rule_refuses_wholly() {
    let beside = |fields: Value| json!([rule(json!({})), deny("d", fields)]);
    found(
        Code::DeniedWholly,
        "rules[0]",
        beside(json!({})),
        beside(json!({"subject": {"roles": ["R"], "kinds": ["user"]}})),
    );
    found(Code::DeniedWholly, "rules[0]", beside(json!({"subject": {}})), beside(json!({"targets": ["u"]})));
    // A condition that always fails counts as holding.
    found(
        Code::DeniedWholly,
        "rules[0]",
        beside(json!({"when": "1 / 0 == 1"})),
        beside(json!({"when": "has(job.id)"})),
    );
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
fn p011_callers_whom_a_deny_rule_cannot_see() {
    let beside = |allow: Value, deny_subject: Value| {
        json!([rule(json!({"subject": allow})), deny("d", json!({"subject": deny_subject}))])
    };
    let clients = json!({"clients": [ONE]});
    for (at, with, without) in [
        (
            "groups",
            beside(json!({"kinds": ["managed_identity"], "roles": ["R"]}), json!({"groups": [ONE]})),
            beside(json!({"kinds": ["user"], "roles": ["R"]}), json!({"groups": [ONE]})),
        ),
        (
            "groups",
            beside(json!({"roles": ["R"]}), json!({"groups": [ONE]})),
            beside(json!({"groups": [TWO]}), json!({"groups": [ONE]})),
        ),
        (
            "scopes",
            beside(json!({"roles": ["R"]}), json!({"scopes": ["s"]})),
            beside(json!({"roles": ["R"], "scopes": ["x"]}), json!({"scopes": ["s"]})),
        ),
        (
            "auth_contexts",
            beside(json!({"roles": ["R"]}), json!({"auth_contexts": ["c1"]})),
            beside(json!({"roles": ["R"]}), json!({"auth_contexts": ["c1"], "kinds": ["user"]})),
        ),
        (
            "groups",
            beside(clients.clone(), json!({"groups": [TWO], "clients": [ONE]})),
            beside(clients, json!({"groups": [TWO], "clients": [TWO]})),
        ),
    ] {
        found(Code::DenyTooNarrow, &format!("rules[1].subject.{at}"), with, without);
    }
}

#[test]
fn p012_a_deny_rule_that_callers_evade() {
    let deny = |condition: &str| json!([deny("d", json!({"when": condition}))]);
    found(
        Code::EvadedDeny,
        "rules[0].when",
        deny("has(job.labels.stage) && job.labels.stage == 'test'"),
        deny("has(job.labels.stage) && job.labels.stage == 'test' && subject.kind == 'user'"),
    );
    // Who says that a job is short gets a short credential.
    assert_eq!(places(Code::EvadedDeny, &deny("job.expected_duration > duration('72h')")), Vec::<String>::new());
}

#[test]
fn p013_a_target_that_nobody_may_have() {
    let at = |rules: Value| {
        let findings = check(&rules, &json!([]), &[Target::google_for_test("t")]);
        findings.iter().any(|finding| finding.code == Code::NobodyAllowed && finding.at == "targets.t")
    };
    assert!(at(json!([])) && at(json!([deny("d", json!({}))])));
    assert!(!at(json!([rule(json!({}))])));
}

#[test]
fn p014_and_p020_what_a_condition_fails_without() {
    for (with, without) in [
        ("job.labels['team'] == 'x'", "'team' in job.labels && job.labels['team'] == 'x'"),
        ("job.labels.team == 'x'", "has(job.labels.team) && job.labels.team == 'x'"),
        ("job.name == 'x'", "!has(job.name) || job.name == 'x'"),
        ("request.lifetime < duration('1h')", "!has(request.lifetime) || request.lifetime < duration('1h')"),
        ("subject.claims.acct == 0", "has(subject.claims.acct) && subject.claims.acct == 0"),
        ("job.labels[subject.kind] == 'x'", "job.labels.exists(k, job.labels[k] == 'x')"),
        ("job.labels.a == 'x' && has(job.labels.b)", "job.labels == {'a': 'x'}"),
    ] {
        found(Code::FailsSilently, "rules[0].when", when(with), when(without));
        let denying = |condition: &str| json!([deny("d", json!({"when": condition}))]);
        found(Code::DenyFails, "rules[0].when", denying(with), denying(without));
    }
}

#[test]
fn p015_a_condition_that_always_holds() {
    for condition in ["true", "1 == 1", "true || job.name == 'x'", "job.name == 'x' || true", "'a' in ['a', 'b']"] {
        assert_eq!(places(Code::AlwaysHolds, &when(condition)), ["rules[0].when"], "{condition}");
    }
    for condition in ["has(job.name)", "has(job.name) || !has(job.name)", "false"] {
        assert_eq!(places(Code::AlwaysHolds, &when(condition)), Vec::<String>::new(), "{condition}");
    }
}

#[test]
fn p016_parts_that_do_nothing() {
    let lease = json!({"max_duration": "1h", "heartbeat": "5m"});
    let one = |fields: Value| json!([rule(fields)]);
    let deny = |fields: Value| json!([deny("d", fields)]);
    for (at, with, without) in [
        ("max_lifetime", deny(json!({"max_lifetime": "1h"})), deny(json!({}))),
        ("lease", deny(json!({"lease": lease})), deny(json!({}))),
        ("attributes", deny(json!({"attributes": {"a": "'x'"}})), deny(json!({}))),
        (
            "max_lifetime",
            one(json!({"targets": ["azure"], "max_lifetime": "1h"})),
            one(json!({"targets": ["azure", "t"], "max_lifetime": "1h"})),
        ),
        ("lease", one(json!({"targets": ["entra", "t"], "lease": lease})), one(json!({"lease": lease}))),
        (
            "attributes.a",
            one(json!({"targets": ["azure", "entra"], "attributes": {"a": "'x'"}})),
            one(json!({"targets": ["azure", "t"], "attributes": {"a": "'x'"}})),
        ),
        (
            "subject.kinds",
            one(json!({"targets": ["behalf", "t"], "subject": {"roles": ["R"], "kinds": ["service_principal"]}})),
            one(json!({"targets": ["behalf", "t"]})),
        ),
    ] {
        found(Code::NoEffect, &format!("rules[0].{at}"), with, without);
    }
}

#[test]
fn p017_attributes_of_one_caller_where_callers_share() {
    let with = |target: &str, source: &str| json!([rule(json!({"targets": [target], "attributes": {"a": source}}))]);
    let at = "rules[0].attributes.a";
    found(Code::SharedNames, at, with("shared", "subject.object"), with("t", "subject.object"));
    found(Code::SharedNames, at, with("shared", "job.name"), with("shared", "'fixed'"));
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

#[test]
fn p021_what_a_caller_says_tells_callers_apart() {
    found(Code::JobsWord, "rules[0].when", when("'team' in job.labels"), when("has(job.expected_duration)"));
}

#[test]
fn p022_lifetimes_that_are_not_given() {
    let one = |target: &str, lifetime: &str| json!([rule(json!({"targets": [target], "max_lifetime": lifetime}))]);
    found(Code::NotGiven, "rules[0].max_lifetime", one("t", "2h"), one("t", "1h"));
    found(Code::NotGiven, "rules[0].max_lifetime", one("direct", "11m"), one("direct", "10m"));
    let lease = |lifetime: &str| {
        let lease = json!({"max_duration": "9h", "heartbeat": "5m", "token_lifetime": lifetime});
        json!([rule(json!({"max_lifetime": "20m", "lease": lease}))])
    };
    found(Code::NotGiven, "rules[0].lease.token_lifetime", lease("21m"), lease("20m"));
    let at = |hours: u64, change: fn(&mut crate::target::GoogleTarget)| {
        let mut target = Target::google_for_test("t").with_google(change);
        target.max_lifetime = Duration::from_secs(hours * 3600);
        let findings = check(&json!([rule(json!({}))]), &json!([]), &[target]);
        findings.into_iter().map(|finding| finding.at).collect::<Vec<_>>()
    };
    for change in [
        |_google: &mut crate::target::GoogleTarget| {},
        |google: &mut crate::target::GoogleTarget| {
            google.service_account = None;
        },
    ] {
        assert_eq!(at(2, change), ["targets.t.google.max_lifetime"]);
        assert_eq!(at(1, change), Vec::<String>::new());
    }
}

#[test]
fn p023_leases_far_longer_than_the_jobs() {
    let with = |condition: &str, length: &str| {
        json!([rule(json!({"when": condition, "lease": {"max_duration": length, "heartbeat": "5m"}}))])
    };
    let most = "!has(job.expected_duration) || job.expected_duration <= duration('10h')";
    found(Code::LongLease, "rules[0].lease.max_duration", with(most, "23h"), with(most, "22h"));
    let turned = "has(job.expected_duration) && duration('10h') > job.expected_duration";
    let least = "has(job.expected_duration) && job.expected_duration > duration('10h')";
    found(Code::LongLease, "rules[0].lease.max_duration", with(turned, "23h"), with(least, "23h"));
}

#[test]
fn p024_groups() {
    found(Code::Groups, "rules[0].subject.groups", subject(json!({"groups": [ONE]})), subject(json!({"roles": ["R"]})));
}

#[test]
fn p025_a_group_with_every_permission() {
    let at = |permissions: Value, subject: Value| {
        let findings = check(&json!([]), &json!([{"permissions": permissions, "subject": subject}]), &[]);
        findings.iter().any(|finding| finding.code == Code::AllPermissions)
    };
    let all = json!(["explain", "audit.read", "leases.read", "leases.revoke"]);
    assert!(at(all.clone(), json!({"groups": [ONE]})));
    assert!(!at(json!(["explain", "audit.read", "leases.read"]), json!({"groups": [ONE]})));
    assert!(!at(all, json!({"groups": [ONE], "roles": ["Carnet.Operator"]})));
}

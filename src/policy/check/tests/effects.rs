//! Rules beside each other, and what their parts come to.

use super::*;

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

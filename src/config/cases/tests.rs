use super::*;
use crate::policy::{Bound, ExpectedLease};
use crate::subject::{Groups, Kind};

const TENANT: Uuid = Uuid::from_u128(1);

fn load(text: &str) -> Result<Vec<(Option<u64>, Case)>, Vec<String>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("policy.test.yaml");
    std::fs::write(&path, text).expect("written");
    let cases = Cases::load(&path, Some(TENANT)).map(|cases| cases.cases);
    cases.map_err(|error| error.faults.iter().map(ToString::to_string).collect())
}

fn only(text: &str) -> Case {
    let [(_line, case)] = load(text).unwrap_or_else(|faults| panic!("{faults:?}")).try_into().expect("one case");
    case
}

/// One case about this subject.
fn about(subject: &str) -> String {
    format!("cases:\n  - name: a\n    subject: {subject}\n    target: t\n    expect: allowed\n")
}

#[test]
fn a_case_says_who_asks_for_what_and_what_should_come_of_it() {
    let case = only(
        "
now: 2026-11-21T09:00:00Z
subjects:
  alice:
    kind: user
    tenant: 00000000-0000-0000-0000-000000000009
    object: 00000000-0000-0000-0000-000000000002
    client: 00000000-0000-0000-0000-000000000003
    roles: [R]
    groups: [00000000-0000-0000-0000-000000000004]
    scopes: [a, b]
    auth_contexts: [c1]
    claims: { acct: 1 }
    token_lifetime: 20m
cases:
  - name: all that can be said
    subject: alice
    job: { id: run-1, name: vision, duration: 9h, labels: { team: vision }, datasets: [public] }
    targets: [t, u]
    lifetime: 30m
    scopes: [x]
    lease_duration: 9h
    expect: { decision: allowed, rule: r, lifetime: 30m, bound: subject_token, lease: 72h }
",
    );
    let who = &case.identity;
    assert_eq!((who.kind(), who.tenant(), who.object()), (Kind::User, Uuid::from_u128(9), Uuid::from_u128(2)));
    assert_eq!(
        (who.client(), who.roles(), who.scopes()),
        (Uuid::from_u128(3), &["R".to_owned()][..], &["a".to_owned(), "b".to_owned()][..])
    );
    assert_eq!(*who.groups(), Groups::Known([Uuid::from_u128(4)].into()));
    assert_eq!((who.auth_contexts(), &who.claims()["acct"]), (&["c1".to_owned()][..], &json!(1)));
    let nine = SystemTime::from("2026-11-21T09:00:00Z".parse::<jiff::Timestamp>().expect("a time"));
    assert_eq!((case.now, who.expires_at()), (nine, nine + Duration::from_secs(1200)));
    assert_eq!(
        (case.job.name.as_deref(), case.job.expected_duration),
        (Some("vision"), Some(Duration::from_secs(9 * 3600)))
    );
    let targets: Vec<&str> = case.asks.iter().map(|ask| ask.target.as_str()).collect();
    assert_eq!((targets, case.asks[0].lifetime), (vec!["t", "u"], Some(Duration::from_secs(1800))));
    let expected = Expected {
        decision: Decision::Allowed,
        rule: Some("r".parse().expect("a name")),
        lifetime: Some(Duration::from_secs(1800)),
        bound: Some(Bound::SubjectToken),
        lease: Some(ExpectedLease::Of(Duration::from_secs(72 * 3600))),
        reason: None,
    };
    assert_eq!(case.expected, expected);
}

#[test]
fn subjects_are_of_the_kind_that_they_say_and_of_the_files_tenant() {
    for (kind, expected) in [
        ("user", Kind::User),
        ("service_principal", Kind::ServicePrincipal),
        ("managed_identity", Kind::ManagedIdentity),
    ] {
        let case = only(&about(&format!("{{ kind: {kind} }}")));
        assert_eq!((case.identity.kind(), case.identity.tenant()), (expected, TENANT));
    }
    assert_eq!(*only(&about("{ kind: user, groups: overage }")).identity.groups(), Groups::Overage);
    let two = load(&format!(
        "{}{}",
        about("{ kind: user }"),
        "  - { name: b, subject: { kind: user }, target: t, expect: denied }\n"
    ));
    let two = two.expect("two cases");
    assert_ne!(two[0].1.identity.object(), two[1].1.identity.object(), "who is made up is somebody else each time");
    assert_eq!((two[0].0, two[1].0), (Some(2), Some(6)));
}

#[test]
fn every_mistake_has_its_line() {
    for (text, fault) in [
        ("cases: []\n", "line 1: cases: names no case"),
        (&about("bob"), "line 3: cases[0].subject: there is no `bob` among the subjects"),
        (&about("{ kind: robot }"), "line 3: cases[0].subject.kind: unknown variant `robot`"),
        (&about("{ kind: user, role: [R] }"), "line 3: cases[0].subject.role: unknown field `role`"),
        (&about("{ kind: user, groups: many }"), "line 3: cases[0].subject.groups: invalid value"),
        (&about("{ kind: service_principal, scopes: [s] }"), "line 3: cases[0].subject: the claims are not those"),
        (&about("{ kind: user, claims: { oid: x } }"), "line 3: cases[0].subject: says `oid` by a field of its own"),
        (&about("{ kind: user }").replace("target: t", "targets: []"), "line 2: cases[0]: names no target"),
        (
            &about("{ kind: user }").replace("target: t", "target: t\n    jobs: {}"),
            "line 5: cases[0].jobs: unknown field",
        ),
        (&about("{ kind: user }").replace("allowed", "maybe"), "line 5: cases[0].expect: is `allowed`, `denied`"),
        (
            &about("{ kind: user }").replace("allowed", "{ rule: r }"),
            "line 5: cases[0].expect: missing field `decision`",
        ),
        (
            &about("{ kind: user }").replace("allowed", "{ decision: denied, lifetime: 1h }"),
            "line 5: cases[0].expect: what is denied has no `lifetime`",
        ),
        (
            &about("{ kind: user }").replace("allowed", "{ decision: denied, reason: LUCK }"),
            "line 5: cases[0].expect.reason: is one of DENIED, GROUPS_OVERAGE",
        ),
        (
            &about("{ kind: user }").replace("allowed", "{ decision: allowed, bound: luck }"),
            "line 5: cases[0].expect.bound: unknown variant `luck`",
        ),
        (
            &about("{ kind: user }").replace("target: t", "target: t\n    token_type: id_token"),
            "line 2: cases[0]: has an `audience` with `token_type: id_token`",
        ),
        (
            &about("{ kind: user }").replace("target: t", "target: t\n    job: { name: \"\" }"),
            "line 5: cases[0].job: job.name has at most 128 bytes",
        ),
        (
            &format!(
                "{}  - {{ name: a, subject: {{ kind: user }}, target: t, expect: denied }}\n",
                about("{ kind: user }")
            ),
            "line 6: cases[1].name: another case has this name too",
        ),
        ("subjects: { x: { kind: user, claims: { tid: y } } }\ncases: []\n", "line 1: subjects.x: says `tid`"),
    ] {
        let faults = load(text).expect_err(text);
        assert!(faults.iter().any(|found| found.starts_with(fault)), "{text}: {faults:?}");
    }
}

#[test]
fn a_lease_is_expected_in_words_or_by_its_length() {
    let expected = |word: &str| {
        only(&about("{ kind: user }").replace("allowed", &format!("{{ decision: allowed, lease: {word} }}")))
            .expected
            .lease
    };
    for word in ["yes", "true"] {
        assert_eq!(expected(word), Some(ExpectedLease::OfAnyLength), "{word}");
    }
    for word in ["no", "false"] {
        assert_eq!(expected(word), Some(ExpectedLease::None), "{word}");
    }
    assert_eq!(expected("90s"), Some(ExpectedLease::Of(Duration::from_secs(90))));
}

//! What the owner of a token is, and its groups: signs that contradict each other are refused, never weighed.

use carnet::reason::Reason::*;
use carnet::subject::{Groups, Kind};
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn users_applications_and_managed_identities_are_told_apart_in_both_versions() {
    let checkpoint = Checkpoint::open().await;
    for (token, kind) in [
        (checkpoint.user(), Kind::User),
        (checkpoint.app(), Kind::ServicePrincipal),
        (checkpoint.managed_identity(), Kind::ManagedIdentity),
    ] {
        for token in [token.clone(), token.v1()] {
            assert_eq!(checkpoint.accept(&token).await.kind(), kind);
            assert_eq!(checkpoint.accept(&token.without("idtyp")).await.kind(), kind, "inferred");
        }
    }
}

#[tokio::test]
async fn roles_scopes_contexts_and_token_id_are_those_of_the_token() {
    let checkpoint = Checkpoint::open().await;
    let token = checkpoint.user().scopes(["jobs.run", "jobs.read"]).roles(["runner"]);
    let identity = checkpoint.accept(&token.claim("acrs", json!(["c1"])).claim("uti", "aBc")).await;
    assert_eq!(identity.scopes(), ["jobs.run", "jobs.read"]);
    assert_eq!(identity.roles(), ["runner"]);
    assert_eq!(identity.auth_contexts(), ["c1"]);
    assert_eq!(identity.token_id(), Some("aBc"));
    let bare = checkpoint.accept(&checkpoint.app().without("uti")).await;
    assert!(bare.scopes().is_empty() && bare.roles().is_empty() && bare.auth_contexts().is_empty());
    assert_eq!(bare.token_id(), None);
}

#[tokio::test]
async fn signs_of_user_and_application_that_contradict_each_other_are_refused() {
    assert_refused(&[
        ("scp in an app's token", |at| at.app().scopes(["x"]).sign(), SubjectTokenMalformed),
        ("empty scp in an app's token", |at| at.app().claim("scp", "").sign(), SubjectTokenMalformed),
        ("scp and sub = oid, undeclared", |at| at.app().without("idtyp").scopes(["x"]).sign(), SubjectTokenMalformed),
        ("scp and sub = oid, declared user", |at| at.user().claim("sub", OBJECT).sign(), SubjectTokenMalformed),
        ("neither scp nor sub = oid", |at| at.user().without("scp").without("idtyp").sign(), SubjectTokenMalformed),
        ("user without scp", |at| at.user().without("scp").sign(), SubjectTokenMalformed),
        ("app with another sub", |at| at.app().claim("sub", "pairwise").sign(), SubjectTokenMalformed),
        ("user called app", |at| at.user().claim("idtyp", "app").sign(), SubjectTokenMalformed),
        ("app called user", |at| at.app().claim("idtyp", "user").sign(), SubjectTokenMalformed),
        ("device", |at| at.app().claim("idtyp", "device").sign(), SubjectTokenMalformed),
        ("device of a user", |at| at.user().claim("idtyp", "device").sign(), SubjectTokenMalformed),
        ("idtyp empty", |at| at.app().claim("idtyp", "").sign(), SubjectTokenMalformed),
        ("idtyp in upper case", |at| at.app().claim("idtyp", "App").sign(), SubjectTokenMalformed),
        ("idtyp null", |at| at.app().claim("idtyp", Value::Null).sign(), SubjectTokenMalformed),
        ("idtyp in a list", |at| at.app().claim("idtyp", json!(["app"])).sign(), SubjectTokenMalformed),
        ("scp in a list", |at| at.user().claim("scp", json!(["x"])).sign(), SubjectTokenMalformed),
        ("scp null", |at| at.user().claim("scp", Value::Null).sign(), SubjectTokenMalformed),
        ("xms_mirid on a user", |at| at.user().claim("xms_mirid", MACHINE).sign(), SubjectTokenMalformed),
        ("xms_mirid of no machine", |at| at.app().claim("xms_mirid", "me").sign(), SubjectTokenMalformed),
        ("xms_mirid empty", |at| at.app().claim("xms_mirid", "").sign(), SubjectTokenMalformed),
        ("xms_mirid in a list", |at| at.app().claim("xms_mirid", json!([MACHINE])).sign(), SubjectTokenMalformed),
        ("public client as an app", |at| at.app().claim("azpacr", "0").sign(), SubjectTokenMalformed),
        ("public client as an app, v1", |at| at.app().v1().claim("appidacr", "0").sign(), SubjectTokenMalformed),
        ("public client as a machine", |at| at.managed_identity().claim("azpacr", "0").sign(), SubjectTokenMalformed),
        ("azpacr a number", |at| at.app().claim("azpacr", 0).sign(), SubjectTokenMalformed),
    ])
    .await;
}

#[tokio::test]
async fn a_machine_is_named_by_its_resource_in_any_case() {
    let checkpoint = Checkpoint::open().await;
    for resource in [MACHINE.to_owned(), MACHINE.to_uppercase(), MACHINE.to_lowercase()] {
        let identity = checkpoint.accept(&checkpoint.app().claim("xms_mirid", resource)).await;
        assert_eq!(identity.kind(), Kind::ManagedIdentity);
    }
}

#[tokio::test]
async fn groups_are_known_sorted_and_guids_or_said_to_be_too_many() {
    let checkpoint = Checkpoint::open().await;
    let [low, high] = ["00000000-0000-4000-8000-000000000001", "f0000000-0000-4000-8000-000000000001"];
    let known = |names: &[&str]| Groups::Known(names.iter().map(|name| name.parse().expect("a GUID")).collect());
    let with_groups = || checkpoint.user().groups([high, low]);
    for (name, token, expected) in [
        ("none", checkpoint.user(), known(&[])),
        ("an empty list", checkpoint.user().groups([""; 0]), known(&[])),
        ("two", with_groups(), known(&[low, high])),
        ("an app's", checkpoint.app().groups([low]), known(&[low])),
        ("with a synchronized name", checkpoint.user().groups(["CONTOSO\\staff", low]), known(&[low])),
        ("overage", checkpoint.user().overage(), Groups::Overage),
        ("an app's overage", checkpoint.app().overage(), Groups::Overage),
        ("overage in v1", checkpoint.user().v1().overage(), Groups::Overage),
        ("overage with some groups", checkpoint.user().overage().groups([low]), Groups::Overage),
        ("hasgroups", checkpoint.user().claim("hasgroups", true), Groups::Overage),
        ("hasgroups as text", checkpoint.user().claim("hasgroups", "true"), Groups::Overage),
        ("hasgroups and groups", with_groups().claim("hasgroups", true), known(&[low, high])),
        ("hasgroups false", checkpoint.user().claim("hasgroups", false), known(&[])),
        ("other claims elsewhere", checkpoint.user().claim("_claim_names", json!({"x": "src1"})), known(&[])),
    ] {
        assert_eq!(checkpoint.accept(&token).await.groups(), &expected, "{name}");
    }
}

#[tokio::test]
async fn groups_or_their_announcement_in_another_form_are_refused_not_passed_over() {
    assert_refused(&[
        ("groups a text", |at| at.user().claim("groups", OBJECT).sign(), SubjectTokenMalformed),
        ("groups null", |at| at.user().claim("groups", Value::Null).sign(), SubjectTokenMalformed),
        ("groups an object", |at| at.user().claim("groups", json!({})).sign(), SubjectTokenMalformed),
        ("groups with a number", |at| at.user().claim("groups", json!([OBJECT, 7])).sign(), SubjectTokenMalformed),
        ("hasgroups a number", |at| at.user().claim("hasgroups", 1).sign(), SubjectTokenMalformed),
        ("hasgroups a word", |at| at.user().claim("hasgroups", "True").sign(), SubjectTokenMalformed),
        ("hasgroups null", |at| at.user().claim("hasgroups", Value::Null).sign(), SubjectTokenMalformed),
        ("names a text", |at| at.user().claim("_claim_names", "groups").sign(), SubjectTokenMalformed),
        ("names a list", |at| at.user().claim("_claim_names", json!(["groups"])).sign(), SubjectTokenMalformed),
        ("names null", |at| at.user().claim("_claim_names", Value::Null).sign(), SubjectTokenMalformed),
    ])
    .await;
}

#[tokio::test]
async fn w11_the_endpoint_in_claim_sources_is_never_contacted() {
    let checkpoint = Checkpoint::open().await;
    let endpoint = format!("{}/{TENANT}/users/{OBJECT}/getMemberObjects", checkpoint.elsewhere.authority());
    for source in
        [json!({"endpoint": endpoint}), json!({"endpoint": endpoint, "access_token": "x"}), json!({"JWT": "x"})]
    {
        let token = checkpoint.user().overage().claim("_claim_sources", json!({"src1": source}));
        assert_eq!(checkpoint.accept(&token).await.groups(), &Groups::Overage);
    }
    assert_no_stray_call(&checkpoint);
}

const MACHINE: &str = "/subscriptions/11111111-1111-1111-1111-111111111111/resourcegroups/ml/providers/Microsoft.Compute/virtualMachines/w1";

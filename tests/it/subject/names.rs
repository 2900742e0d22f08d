//! I06: no claim stands twice under names that one reader takes for equal and another does not.

use carnet::reason::Reason::*;
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn i06_a_claim_that_stands_twice_is_refused_however_its_name_is_written() {
    let checkpoint = Checkpoint::open().await;
    checkpoint.accept(&checkpoint.app()).await;
    let claims = Value::Object(checkpoint.app().groups([OBJECT]).roles(["reader"]).claims());
    let good = claims.to_string();
    assert_eq!(refusal(&checkpoint.verifier, &checkpoint.app().raw_payload(&good).sign()).await, None);
    let names = claims.as_object().expect("claims").keys();
    for name in names {
        let value = &claims[name];
        let escaped = format!("\\u{:04x}{}", u32::from(name.chars().next().expect("a name")), &name[1..]);
        for again in [name.clone(), name.to_uppercase(), swapped_first(name), escaped] {
            let behind = format!("{},\"{again}\":{value}}}", good.trim_end_matches('}'));
            let before = good.replacen('{', &format!("{{\"{again}\":{value},"), 1);
            for payload in [behind, before] {
                let text = checkpoint.app().raw_payload(payload).sign();
                let found = refusal(&checkpoint.verifier, &text).await;
                assert_eq!(found, Some(SubjectTokenMalformed), "{name} and {again}");
            }
        }
    }
}

#[tokio::test]
async fn i06_a_claim_under_a_name_of_another_case_is_not_the_claim() {
    assert_refused(&[
        ("EXP", |at| renamed(at, "exp", "EXP"), SubjectTokenMalformed),
        ("Nbf", |at| renamed(at, "nbf", "Nbf"), SubjectTokenMalformed),
        ("Aud", |at| renamed(at, "aud", "Aud"), SubjectTokenMalformed),
        ("Iss", |at| renamed(at, "iss", "Iss"), SubjectTokenMalformed),
        ("TID", |at| renamed(at, "tid", "TID"), SubjectTokenMalformed),
        ("Oid", |at| renamed(at, "oid", "Oid"), SubjectTokenMalformed),
        ("oid with a blank", |at| renamed(at, "oid", "oid "), SubjectTokenMalformed),
        ("ѕub in Cyrillic", |at| renamed(at, "sub", "ѕub"), SubjectTokenMalformed),
        ("unknown names twice", unknown_twice, SubjectTokenMalformed),
    ])
    .await;
}

#[tokio::test]
async fn i06_an_escaped_name_that_stands_once_is_that_name() {
    let checkpoint = Checkpoint::open().await;
    let payload = Value::Object(checkpoint.app().claims()).to_string().replace("\"oid\"", "\"\\u006fid\"");
    let identity = checkpoint.verify(&checkpoint.app().raw_payload(payload).sign()).await.expect("the same claims");
    assert_eq!(identity.object().to_string(), OBJECT);
}

#[tokio::test]
async fn claims_that_nobody_knows_are_ignored() {
    let checkpoint = Checkpoint::open().await;
    let token = checkpoint.app().claim("xms_new", json!({"deep": [1, null]})).claim("", "").claim("ſub", "x");
    checkpoint.accept(&token).await;
}

fn renamed(at: &Checkpoint, name: &str, other: &str) -> String {
    let value = at.app().claims()[name].clone();
    at.app().without(name).claim(other, value).sign()
}

fn unknown_twice(at: &Checkpoint) -> String {
    at.app().claim("custom", 1).claim("Custom", 2).sign()
}

fn swapped_first(name: &str) -> String {
    let (first, rest) = name.split_at(1);
    format!("{}{rest}", first.to_uppercase())
}

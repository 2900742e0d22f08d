//! The form of a token: three parts of canonical base64url within 64 KiB, and nothing around them.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use carnet::reason::Reason::*;

use super::*;

#[tokio::test]
async fn only_three_parts_of_bare_base64url_are_a_token() {
    assert_refused(&[
        ("empty", |_at| String::new(), SubjectTokenMalformed),
        ("a word", |_at| "token".to_owned(), SubjectTokenMalformed),
        ("dots only", |_at| "..".to_owned(), SubjectTokenMalformed),
        ("two parts", |at| at.app().without_signature().trim_end_matches('.').to_owned(), SubjectTokenMalformed),
        ("four parts", |at| format!("{}.e30", at.app().sign()), SubjectTokenMalformed),
        ("four parts, the first empty", |at| format!(".{}", at.app().sign()), SubjectTokenMalformed),
        ("four parts, the last empty", |at| format!("{}.", at.app().sign()), SubjectTokenMalformed),
        ("five parts, as an encrypted token", |at| format!("{}.e30.e30", at.app().sign()), SubjectTokenMalformed),
        ("no header", |at| with_part(&at.app().sign(), HEADER, |_own| String::new()), SubjectTokenMalformed),
        ("no payload", |at| with_part(&at.app().sign(), PAYLOAD, |_own| String::new()), SubjectTokenMalformed),
        ("padded header", |at| with_part(&at.app().sign(), HEADER, padded), SubjectTokenMalformed),
        ("padded payload", |at| with_part(&at.app().sign(), PAYLOAD, padded), SubjectTokenMalformed),
        ("standard alphabet", |at| with_part(&eastern(at), PAYLOAD, standard_alphabet), SubjectTokenMalformed),
        ("percent-encoded", |at| at.app().sign().replace('.', "%2E"), SubjectTokenMalformed),
        ("blank in front", |at| format!(" {}", at.app().sign()), SubjectTokenMalformed),
        ("newline in front", |at| format!("\n{}", at.app().sign()), SubjectTokenMalformed),
        ("blank behind", |at| format!("{} ", at.app().sign()), SubjectTokenSignature),
        ("newline behind", |at| format!("{}\r\n", at.app().sign()), SubjectTokenSignature),
        ("NUL behind", |at| format!("{}\0", at.app().sign()), SubjectTokenSignature),
        ("byte order mark", |at| format!("\u{feff}{}", at.app().sign()), SubjectTokenMalformed),
        ("full-width dots", |at| at.app().sign().replace('.', "．"), SubjectTokenMalformed),
        ("with its scheme", |at| format!("Bearer {}", at.app().sign()), SubjectTokenMalformed),
        ("in quotes", |at| format!("\"{}\"", at.app().sign()), SubjectTokenMalformed),
        ("twice", |at| format!("{0},{0}", at.app().sign()), SubjectTokenMalformed),
        ("JSON serialization", json_serialization, SubjectTokenMalformed),
        ("payload not JSON", |at| at.app().raw_payload("claims").sign(), SubjectTokenMalformed),
        ("payload not UTF-8", |at| with_part(&at.app().sign(), PAYLOAD, not_utf8), SubjectTokenMalformed),
        ("payload a list", |at| at.app().raw_payload(format!("[\"x\",\"{TENANT}\"]")).sign(), SubjectTokenMalformed),
        ("payload null", |at| at.app().raw_payload("null").sign(), SubjectTokenMalformed),
        ("payload empty", |at| at.app().raw_payload("{}").sign(), SubjectTokenMalformed),
        ("payload cut", |at| at.app().raw_payload(payload(at).trim_end_matches('}')).sign(), SubjectTokenMalformed),
        ("payload with more behind", |at| at.app().raw_payload(payload(at) + "{}").sign(), SubjectTokenMalformed),
        ("payload with a comment", |at| at.app().raw_payload(payload(at) + "//").sign(), SubjectTokenMalformed),
        ("payload nested 10,000 deep", nested, SubjectTokenMalformed),
    ])
    .await;
}

#[tokio::test]
async fn a_token_may_have_64_kib_and_not_a_byte_more() {
    const LIMIT: usize = 64 * 1024;
    let checkpoint = Checkpoint::open().await;
    let padded = |blanks: usize| checkpoint.app().claim("aio", " ".repeat(blanks)).sign();
    let overhead = padded(0).len();
    let mut blanks = (LIMIT - overhead) / 4 * 3 - 8;
    let mut largest = padded(blanks);
    let mut larger = loop {
        blanks += 1;
        let next = padded(blanks);
        if next.len() > LIMIT {
            break next;
        }
        largest = next;
    };
    assert!((LIMIT - 1..=LIMIT).contains(&largest.len()), "{}", largest.len());
    checkpoint.verify(&largest).await.expect("a large token");
    assert_eq!(refusal(&checkpoint.verifier, &larger).await, Some(SubjectTokenMalformed));
    larger.truncate(LIMIT);
    assert_eq!(refusal(&checkpoint.verifier, &larger).await, Some(SubjectTokenSignature));
    larger.push_str(&".".repeat(10 * LIMIT));
    assert_eq!(refusal(&checkpoint.verifier, &larger).await, Some(SubjectTokenMalformed));
}

fn payload(at: &Checkpoint) -> String {
    serde_json::Value::Object(at.app().claims()).to_string()
}

fn padded(text: &str) -> String {
    format!("{text}{}", "=".repeat(4 - text.len() % 4))
}

/// A token whose base64url has characters that the standard alphabet writes otherwise.
fn eastern(at: &Checkpoint) -> String {
    at.app().claim("name", "ÿÿÿÿÿÿ").sign()
}

fn standard_alphabet(text: &str) -> String {
    let other = text.replace('-', "+").replace('_', "/");
    assert_ne!(text, other);
    other
}

fn not_utf8(_own: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode([b"{\"iss\":\"".as_slice(), &[0xff], b"\",\"tid\":\"x\"}"].concat())
}

fn json_serialization(at: &Checkpoint) -> String {
    let token = at.app().sign();
    let parts: Vec<&str> = token.split('.').collect();
    format!(r#"{{"protected":"{}","payload":"{}","signature":"{}"}}"#, parts[0], parts[1], parts[2])
}

fn nested(at: &Checkpoint) -> String {
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    at.app().raw_payload(payload(at).replacen('{', &format!("{{\"deep\":{deep},"), 1)).sign()
}

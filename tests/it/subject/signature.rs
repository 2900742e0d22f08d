//! I07: the algorithm and the key come from what the tenant publishes, never from the token.

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use carnet::reason::Reason::{self, *};
use carnet::sandbox::{EntraToken, SigningKey};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn i07_only_an_rs256_signature_by_the_tenants_published_key_is_taken() {
    assert_refused(&[
        ("alg none", |at| at.app().sign_with_alg_none(), SubjectTokenMalformed),
        ("alg none with a signature", |at| at.app().header("alg", "none").sign(), SubjectTokenSignature),
        ("alg NONE with a signature", |at| at.app().header("alg", "NONE").sign(), SubjectTokenSignature),
        ("alg in lower case", |at| at.app().header("alg", "rs256").sign(), SubjectTokenSignature),
        ("alg in a list", |at| at.app().header("alg", json!(["RS256"])).sign(), SubjectTokenSignature),
        ("alg absent", |at| at.app().without_header("alg").sign(), SubjectTokenSignature),
        ("alg null", |at| at.app().header("alg", Value::Null).sign(), SubjectTokenSignature),
        ("alg twice", alg_twice, SubjectTokenMalformed),
        ("HS256 with the PEM", |at| at.app().sign_hs256_with_public_pem(), SubjectTokenSignature),
        ("HS256 with the modulus", |at| at.app().sign_hs256_with_modulus(), SubjectTokenSignature),
        ("PEM's HMAC as RS256", |at| rs256_header(&at.app()).sign_hs256_with_public_pem(), SubjectTokenSignature),
        ("modulus' HMAC as RS256", |at| rs256_header(&at.app()).sign_hs256_with_modulus(), SubjectTokenSignature),
        ("RS384 by name", |at| at.app().header("alg", "RS384").sign(), SubjectTokenSignature),
        ("RS512 by name", |at| at.app().header("alg", "RS512").sign(), SubjectTokenSignature),
        ("PS256 by name", |at| at.app().header("alg", "PS256").sign(), SubjectTokenSignature),
        ("ES256 called RS256", es256_called_rs256, SubjectTokenSignature),
        ("foreign key, same kid", |at| at.app().sign_with_foreign_key(), SubjectTokenSignature),
        ("foreign key, own kid", |at| at.app().signed_by_key(foreign_key()).sign(), SubjectTokenSignature),
        ("another tenant's key", |at| at.app().signed_by_key(second_tenants_key(at)).sign(), SubjectTokenSignature),
        ("another tenant's key, our kid", second_tenants_key_with_our_kid, SubjectTokenSignature),
        ("our other key's kid", other_kid, SubjectTokenSignature),
    ])
    .await;
}

#[tokio::test]
async fn i07_a_published_key_is_good_for_rs256_signatures_only() {
    let checkpoint = Checkpoint::open().await;
    let (rsa, p256) = (RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"), Arc::new(SigningKey::p256()));
    let number = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let n = number(rsa.public_key().modulus().big_endian_without_leading_zero());
    let e = number(rsa.public_key().exponent().big_endian_without_leading_zero());
    checkpoint.entra.publish(TENANT, json!({"kty": "RSA", "use": "sig", "kid": "rsa", "n": n, "e": e}));
    checkpoint.entra.publish(TENANT, p256.jwk());
    let sign = |alg: &str, padding: &'static dyn RsaEncoding| {
        let token = checkpoint.app().header("kid", "rsa").header("alg", alg).without_signature();
        let signed = token.trim_end_matches('.');
        let mut signature = vec![0; rsa.public_modulus_len()];
        rsa.sign(padding, &SystemRandom::new(), signed.as_bytes(), &mut signature).expect("a signature");
        format!("{signed}.{}", number(&signature))
    };
    for (name, text, expected) in [
        ("RS256", sign("RS256", &RSA_PKCS1_SHA256), None),
        ("PS256", sign("PS256", &RSA_PSS_SHA256), Some(SubjectTokenSignature)),
        ("PSS called RS256", sign("RS256", &RSA_PSS_SHA256), Some(SubjectTokenSignature)),
        ("RS512", sign("RS512", &RSA_PKCS1_SHA512), Some(SubjectTokenSignature)),
        ("SHA-512 called RS256", sign("RS256", &RSA_PKCS1_SHA512), Some(SubjectTokenSignature)),
        (
            "ES256",
            checkpoint.app().signed_by_key(p256.clone()).header("alg", "ES256").sign(),
            Some(SubjectTokenSignature),
        ),
        ("ES256 called RS256", checkpoint.app().signed_by_key(p256).sign(), Some(SubjectTokenSignature)),
    ] {
        assert_eq!(refusal(&checkpoint.verifier, &text).await, expected, "{name}");
    }
}

#[tokio::test]
async fn i07_a_changed_signature_or_a_change_under_it_is_refused() {
    assert_refused(&[
        ("no signature", |at| at.app().without_signature(), SubjectTokenMalformed),
        ("cut by a byte", |at| signature(at, |bytes| bytes[..255].to_vec()), SubjectTokenSignature),
        (
            "cut by a character",
            |at| signature_text(at, |text| text[..text.len() - 1].to_owned()),
            SubjectTokenSignature,
        ),
        ("one byte only", |at| signature(at, |bytes| bytes[..1].to_vec()), SubjectTokenSignature),
        ("a zero in front", |at| signature(at, |bytes| [&[0], bytes].concat()), SubjectTokenSignature),
        ("a zero behind", |at| signature(at, |bytes| [bytes, &[0]].concat()), SubjectTokenSignature),
        ("first bit flipped", |at| signature(at, |bytes| flipped(bytes, 0)), SubjectTokenSignature),
        ("last bit flipped", |at| signature(at, |bytes| flipped(bytes, 255)), SubjectTokenSignature),
        ("all zero", |at| signature(at, |bytes| vec![0; bytes.len()]), SubjectTokenSignature),
        ("one", |at| signature(at, |bytes| [vec![0; bytes.len() - 1], vec![1]].concat()), SubjectTokenSignature),
        ("all ones", |at| signature(at, |bytes| vec![0xff; bytes.len()]), SubjectTokenSignature),
        ("plus the modulus", plus_modulus, SubjectTokenSignature),
        ("spare bits set", |at| signature_text(at, spare_bits_set), SubjectTokenSignature),
        ("padded", |at| signature_text(at, |text| format!("{text}==")), SubjectTokenSignature),
        ("standard alphabet", |at| signature_text(at, standard_alphabet), SubjectTokenSignature),
        ("newline behind", |at| signature_text(at, |text| format!("{text}\n")), SubjectTokenSignature),
        ("another token's", another_tokens_signature, SubjectTokenSignature),
        ("claims changed", claims_changed, SubjectTokenSignature),
        ("header changed", header_changed, SubjectTokenSignature),
    ])
    .await;
}

#[tokio::test]
async fn i07_a_key_that_the_token_brings_along_is_neither_used_nor_fetched() {
    assert_refused(&[
        ("jku", |at| bringing(at, "jku", |at, _key| json!(keys_url(at))), SubjectTokenSignature),
        ("x5u", |at| bringing(at, "x5u", |at, _key| json!(keys_url(at))), SubjectTokenSignature),
        ("jwk", |at| bringing(at, "jwk", |_at, key| key.jwk()), SubjectTokenSignature),
        ("x5c", |at| bringing(at, "x5c", |_at, key| json!([der_text(key)])), SubjectTokenSignature),
        ("kid that is a URL", |at| at.app().header("kid", keys_url(at)).sign(), SubjectTokenSignature),
        ("iss that is a URL", |at| at.app().claim("iss", keys_url(at)).sign(), SubjectTokenIssuer),
    ])
    .await;
}

#[tokio::test]
async fn i07_key_addresses_in_the_header_of_a_good_token_are_not_followed() {
    let checkpoint = Checkpoint::open().await;
    let url = keys_url(&checkpoint);
    checkpoint.accept(&checkpoint.app().header("jku", url.clone()).header("x5u", url)).await;
    assert_no_stray_call(&checkpoint);
}

#[tokio::test]
async fn a_header_that_is_not_entras_is_refused() {
    assert_refused(&[
        ("crit", |at| at.app().header("crit", json!(["exp"])).header("exp", 1).sign(), SubjectTokenMalformed),
        ("crit empty", |at| at.app().header("crit", json!([])).sign(), SubjectTokenMalformed),
        ("crit null", |at| at.app().header("crit", Value::Null).sign(), SubjectTokenMalformed),
        ("b64 false", |at| at.app().header("b64", false).sign(), SubjectTokenMalformed),
        ("b64 true", |at| at.app().header("b64", true).sign(), SubjectTokenMalformed),
        ("typ JWE", |at| at.app().header("typ", "JWE").sign(), SubjectTokenMalformed),
        ("typ at+jwt", |at| at.app().header("typ", "at+jwt").sign(), SubjectTokenMalformed),
        ("typ empty", |at| at.app().header("typ", "").sign(), SubjectTokenMalformed),
        ("typ in a list", |at| at.app().header("typ", json!(["JWT"])).sign(), SubjectTokenMalformed),
        ("typ null", |at| at.app().header("typ", Value::Null).sign(), SubjectTokenMalformed),
        ("Kid besides kid", |at| at.app().header("Kid", "x").sign(), SubjectTokenMalformed),
        ("kid absent", |at| at.app().without_header("kid").sign(), SubjectTokenSignature),
        ("kid empty", |at| at.app().header("kid", "").sign(), SubjectTokenSignature),
        ("kid null", |at| at.app().header("kid", Value::Null).sign(), SubjectTokenSignature),
        ("kid a number", |at| at.app().header("kid", 7).sign(), SubjectTokenSignature),
        ("kid in a list", |at| at.app().header("kid", json!(at.entra.kids(TENANT))).sign(), SubjectTokenSignature),
        ("kid like a path", |at| at.app().header("kid", "../../etc/passwd").sign(), SubjectTokenSignature),
        ("kid like a query", |at| at.app().header("kid", "x?tenant=common#").sign(), SubjectTokenSignature),
        ("kid like SQL", |at| at.app().header("kid", "' OR 1=1 --").sign(), SubjectTokenSignature),
        ("kid with a NUL", |at| at.app().header("kid", format!("{}\0", kid(at))).sign(), SubjectTokenSignature),
        ("kid with a blank", |at| at.app().header("kid", format!("{} ", kid(at))).sign(), SubjectTokenSignature),
        ("kid in another case", |at| at.app().header("kid", swapped_case(&kid(at))).sign(), SubjectTokenSignature),
        ("kid of 257 bytes", |at| at.app().header("kid", "k".repeat(257)).sign(), SubjectTokenSignature),
        ("kid of 40 KB", |at| at.app().header("kid", "k".repeat(40_000)).sign(), SubjectTokenSignature),
        ("not JSON", |at| at.app().raw_header("JWT").sign(), SubjectTokenMalformed),
        ("a list", |at| at.app().raw_header("[]").sign(), SubjectTokenMalformed),
        ("two objects", two_headers, SubjectTokenMalformed),
    ])
    .await;
}

#[tokio::test]
async fn the_type_in_the_header_may_be_absent_or_in_lower_case() {
    let checkpoint = Checkpoint::open().await;
    checkpoint.accept(&checkpoint.app().without_header("typ")).await;
    checkpoint.accept(&checkpoint.app().header("typ", "jwt")).await;
}

#[tokio::test]
async fn i01_one_kid_for_two_tenants_keys_never_lets_one_sign_for_the_other_in_any_order() {
    let (checkpoint, tokens) = same_kid_in_two_tenants().await;
    for order in permutations(tokens.len()) {
        let verifier = checkpoint.fresh_verifier();
        for at in &order {
            let (name, text, expected) = &tokens[*at];
            assert_eq!(refusal(&verifier, text).await, *expected, "{name} in {order:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i01_one_kid_for_two_tenants_keys_never_lets_one_sign_for_the_other_concurrently() {
    let (checkpoint, tokens) = same_kid_in_two_tenants().await;
    for _round in 0..10 {
        let verifier = Arc::new(checkpoint.fresh_verifier());
        let all = tokens.iter().cycle().take(64).cloned().map(|(name, text, expected)| {
            let verifier = verifier.clone();
            tokio::spawn(async move { (name, refusal(&verifier, &text).await, expected) })
        });
        for outcome in join_all(all).await {
            let (name, found, expected) = outcome.expect("no panic");
            assert_eq!(found, expected, "{name}");
        }
    }
}

/// Each tenant's token by its own key, and by the other's under the shared name.
async fn same_kid_in_two_tenants() -> (Checkpoint, Vec<(&'static str, String, Option<Reason>)>) {
    let checkpoint = Checkpoint::open().await;
    let [ours, theirs] = [(), ()].map(|()| Arc::new(SigningKey::rsa().with_kid("shared")));
    checkpoint.entra.publish(TENANT, ours.jwk());
    checkpoint.entra.publish(SECOND_TENANT, theirs.jwk());
    let by = |tenant: &str, key: &Arc<SigningKey>| {
        checkpoint.entra.app_token(tenant, OBJECT).signed_by_key(key.clone()).sign()
    };
    let tokens = vec![
        ("first tenant by its key", by(TENANT, &ours), None),
        ("second tenant by its key", by(SECOND_TENANT, &theirs), None),
        ("first tenant by the second's key", by(TENANT, &theirs), Some(SubjectTokenSignature)),
        ("second tenant by the first's key", by(SECOND_TENANT, &ours), Some(SubjectTokenSignature)),
    ];
    (checkpoint, tokens)
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else { return vec![Vec::new()] };
    let insert_last = |order: Vec<usize>| {
        (0..count).map(move |at| {
            let mut longer = order.clone();
            longer.insert(at, last);
            longer
        })
    };
    permutations(last).into_iter().flat_map(insert_last).collect()
}

fn kid(at: &Checkpoint) -> String {
    at.entra.signing_key(TENANT).kid().to_owned()
}

fn foreign_key() -> Arc<SigningKey> {
    Arc::new(SigningKey::rsa())
}

fn second_tenants_key(at: &Checkpoint) -> Arc<SigningKey> {
    at.entra.signing_key(SECOND_TENANT)
}

fn second_tenants_key_with_our_kid(at: &Checkpoint) -> String {
    at.app().signed_by_key(second_tenants_key(at)).header("kid", kid(at)).sign()
}

fn other_kid(at: &Checkpoint) -> String {
    let kids = at.entra.kids(TENANT);
    let other = kids.iter().find(|other| **other != kid(at)).expect("two keys");
    at.app().header("kid", other.as_str()).sign()
}

fn rs256_header(token: &EntraToken) -> EntraToken {
    token.clone().header("alg", "RS256")
}

fn alg_twice(at: &Checkpoint) -> String {
    at.app().raw_header(format!(r#"{{"typ":"JWT","alg":"none","kid":"{}","alg":"RS256"}}"#, kid(at))).sign()
}

fn two_headers(at: &Checkpoint) -> String {
    at.app().raw_header(format!(r#"{{"typ":"JWT","alg":"RS256","kid":"{}"}}{{}}"#, kid(at))).sign()
}

fn es256_called_rs256(at: &Checkpoint) -> String {
    let key = Arc::new(SigningKey::p256().with_kid(kid(at)));
    at.app().signed_by_key(key).sign()
}

fn signature(at: &Checkpoint, change: fn(&[u8]) -> Vec<u8>) -> String {
    signature_text(at, |text| {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).expect("base64url");
        BASE64_URL_SAFE_NO_PAD.encode(change(&bytes))
    })
}

fn signature_text(at: &Checkpoint, change: impl FnOnce(&str) -> String) -> String {
    with_part(&at.app().sign(), SIGNATURE, change)
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

/// The same signature to a verifier that does not ask for a number below the modulus.
fn plus_modulus(at: &Checkpoint) -> String {
    let modulus = at.entra.signing_key(TENANT).modulus();
    signature_text(at, |text| {
        let mut sum = BASE64_URL_SAFE_NO_PAD.decode(text).expect("base64url");
        let mut carry = 0;
        for (byte, addend) in sum.iter_mut().zip(&modulus).rev() {
            let [high, low] = (u16::from(*byte) + u16::from(*addend) + carry).to_be_bytes();
            (*byte, carry) = (low, u16::from(high));
        }
        if carry > 0 {
            sum.insert(0, 1);
        }
        BASE64_URL_SAFE_NO_PAD.encode(sum)
    })
}

/// 256 bytes leave four bits of the last character unused; a lax decoder passes over them.
fn spare_bits_set(text: &str) -> String {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = text.split_at(text.len() - 1);
    let value = ALPHABET.find(last).expect("base64url");
    format!("{rest}{}", &ALPHABET[value + 1..value + 2])
}

fn standard_alphabet(text: &str) -> String {
    let other = text.replace('-', "+").replace('_', "/");
    assert_ne!(text, other);
    other
}

fn another_tokens_signature(at: &Checkpoint) -> String {
    let other = at.app().sign();
    let (_signed, signature) = other.rsplit_once('.').expect("a token");
    with_part(&at.app().sign(), SIGNATURE, |_own| signature.to_owned())
}

fn claims_changed(at: &Checkpoint) -> String {
    let mut claims = at.app().claims();
    claims.insert("roles".to_owned(), json!(["admin"]));
    with_part(&at.app().sign(), PAYLOAD, |_own| BASE64_URL_SAFE_NO_PAD.encode(Value::Object(claims).to_string()))
}

fn header_changed(at: &Checkpoint) -> String {
    let header = json!({"kid": kid(at), "alg": "RS256", "typ": "JWT"}).to_string() + " ";
    with_part(&at.app().sign(), HEADER, |_own| BASE64_URL_SAFE_NO_PAD.encode(header))
}

/// Signed by an attacker's key under the name of a good one; the header says where that key is.
fn bringing(at: &Checkpoint, name: &str, value: fn(&Checkpoint, &SigningKey) -> Value) -> String {
    let key = Arc::new(SigningKey::rsa().with_kid(kid(at)));
    at.app().header(name, value(at, &key)).signed_by_key(key).sign()
}

fn keys_url(at: &Checkpoint) -> String {
    format!("{}/{TENANT}/discovery/v2.0/keys", at.elsewhere.authority())
}

fn der_text(key: &SigningKey) -> String {
    let pem = key.public_key_pem();
    let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    assert!(BASE64_STANDARD.decode(&text).is_ok());
    text
}

fn swapped_case(text: &str) -> String {
    let swap = |c: char| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
    text.chars().map(swap).collect()
}

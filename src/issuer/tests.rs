use std::time::{Duration, SystemTime};

use jsonwebtoken::{DecodingKey, Validation};

use super::*;
use crate::clock::ManualClock;
use crate::policy::{Ask, ExcessScopes, Inquiry, Policy, RuleDocument};
use crate::subject::VerifiedIdentity;
use crate::target::{Job, Scopes, Target, TokenType};

fn issuer() -> Issuer {
    static KEYS: std::sync::LazyLock<[StoredKey; 2]> = std::sync::LazyLock::new(|| {
        Algorithm::ALL.map(|algorithm| SigningKey::generate(algorithm, ManualClock::start().now()).expect("a key"))
    });
    let keys = Keyring::stored(&*KEYS, None).expect("a key of each algorithm");
    Issuer::new("https://carnet.example.com".to_owned(), keys, Arc::new(ManualClock::start()))
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
        beyond: None,
    };
    let identity = Arc::new(VerifiedIdentity::for_test(now + Duration::from_secs(3600)));
    policy.decide(Inquiry::once(&identity, &Arc::new(job), now), &ask).expect("a grant")
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
    let claims = verified(
        &issuer,
        &issuer.sign(&assertion, id, ASSERTION_LIFETIME).expect("signed"),
        jsonwebtoken::Algorithm::ES256,
    );
    let now = unix_seconds(ManualClock::start().now());
    let lives = |lifetime| {
        let token = issuer.sign(&assertion, id, lifetime).expect("signed");
        verified(&issuer, &token, jsonwebtoken::Algorithm::ES256)["exp"].as_u64().expect("a time") - now
    };
    assert_eq!([360, 600, 3600].map(|asked| lives(Duration::from_secs(asked))), [360, 600, 600]);
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
    let claims = verified(
        &issuer,
        &issuer.sign(&assertion, Uuid::nil(), ASSERTION_LIFETIME).expect("signed"),
        jsonwebtoken::Algorithm::RS256,
    );
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
        let claims = verified(&issuer, &issuer.sign(&assertion, Uuid::nil(), ASSERTION_LIFETIME).expect("signed"), jsonwebtoken::Algorithm::ES256);
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
fn keys_come_in_pem_one_or_several_a_file_and_others_are_refused() {
    let [es256, rs256] = Algorithm::ALL.map(|algorithm| SigningKey::generate(algorithm, NOW).expect("a key"));
    let body = |stored: &StoredKey| base64::prelude::BASE64_STANDARD.encode(stored.pkcs8.as_slice());
    let pem = |stored| format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", body(stored));
    for (text, expected) in [
        (pem(&es256), vec![&es256]),
        (pem(&rs256), vec![&rs256]),
        (format!("rsa\n{}\nec\n{}", pem(&rs256), pem(&es256)), vec![&rs256, &es256]),
    ] {
        let keys = SigningKey::all_from_pem(text.as_bytes()).expect("the same keys");
        let found: Vec<_> = keys.iter().map(|key| (key.kid(), key.algorithm())).collect();
        assert_eq!(found, expected.iter().map(|stored| (stored.kid.as_str(), stored.algorithm)).collect::<Vec<_>>());
        assert!(!format!("{keys:?} {es256:?}").contains(&body(&es256)[..20]));
    }
    let bad = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for text in ["no key", bad, &format!("{}{bad}", pem(&es256))] {
        assert!(SigningKey::all_from_pem(text.as_bytes()).is_err(), "{text}");
    }
}

fn parsed(stored: &StoredKey) -> SigningKey {
    SigningKey::from_pkcs8(&stored.pkcs8).expect("the same key")
}

#[test]
fn of_the_keys_that_were_brought_the_first_of_each_algorithm_signs_and_each_is_published_once() {
    let [old, next] = [(); 2].map(|()| SigningKey::generate(Algorithm::Es256, NOW).expect("a key"));
    let rsa = SigningKey::generate(Algorithm::Rs256, NOW).expect("a key");
    let ring = Keyring::brought([&next, &rsa, &old, &next].map(parsed).into()).expect("a ring");
    assert_eq!(ring.signing(Algorithm::Es256, NOW).map(SigningKey::kid), Some(next.kid.as_str()));
    assert_eq!(ring.signing(Algorithm::Rs256, NOW).map(SigningKey::kid), Some(rsa.kid.as_str()));
    let mut published: Vec<_> = ring.published(NOW).map(SigningKey::kid).collect();
    let mut all = [&old, &next, &rsa].map(|key| key.kid.as_str());
    published.sort_unstable();
    all.sort_unstable();
    assert_eq!(published, all);
}

#[test]
fn an_issuer_needs_a_key_of_each_algorithm() {
    let only = SigningKey::generate(Algorithm::Es256, NOW).expect("a key");
    let missing = "there is no RS256 key: Google is shown ES256, Entra RS256";
    assert_eq!(Keyring::brought(vec![parsed(&only)]).expect_err("one is missing").to_string(), missing);
    assert_eq!(Keyring::stored(&[only], None).expect_err("one is missing").to_string(), missing);
}

#[test]
fn keys_are_replaced_between_two_signatures_and_withdrawn_ones_leave_the_jwks() {
    let clock = ManualClock::at(NOW);
    let [old, next] = [NOW, NOW + DAY].map(|at| SigningKey::generate(Algorithm::Es256, at).expect("a key"));
    let rsa = SigningKey::generate(Algorithm::Rs256, NOW).expect("a key");
    let (old_kid, next_kid) = (old.kid.clone(), next.kid.clone());
    let mut keys = vec![old, rsa];
    let first = Keyring::stored(&keys, None).expect("a ring");
    let issuer = Issuer::new("https://x".to_owned(), first, Arc::new(clock.clone()));
    let grant = grant(Target::google_for_test("t"));
    let assertion = Assertion::for_grant(&grant).expect("an assertion");
    let signer = || {
        let token = issuer.sign(&assertion, Uuid::nil(), ASSERTION_LIFETIME).expect("signed");
        jsonwebtoken::decode_header(token.expose()).expect("a header").kid.expect("a kid")
    };
    let published = |kid: &str| issuer.jwks().to_string().contains(kid);
    assert!(!published(&next_kid));
    keys.push(next);
    issuer.replace_keys(Keyring::stored(&keys, Some(&issuer.keys())).expect("a ring"));
    assert_eq!((signer(), published(&old_kid), published(&next_kid)), (old_kid.clone(), true, true));
    clock.advance(DAY);
    assert_eq!((signer(), published(&old_kid)), (next_kid.clone(), true));
    clock.advance(RETIRED_FOR - Duration::from_secs(1));
    assert!(published(&old_kid));
    clock.advance(Duration::from_secs(1));
    assert_eq!((signer(), published(&old_kid), published(&next_kid)), (next_kid.clone(), false, true));
}

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn a_statement_is_worth_what_its_signature_says_and_no_cloud_takes_it_for_an_assertion() {
    const TYPE: &str = "test+jwt";
    let issuer = issuer();
    let keys = StatementKeys::of(&issuer.keys());
    let claims = || Map::from_iter([("n".to_owned(), json!(1))]);
    let text = issuer.state(TYPE, claims()).expect("signed");
    let statement = Statement::read(&text, TYPE).expect("a statement");
    assert_eq!(
        Value::Object(statement.claims.clone()),
        json!({
            "n": 1, "iss": "https://carnet.example.com", "iat": unix_seconds(ManualClock::start().now()),
        })
    );
    assert_eq!(statement.standing(&keys), Standing::Signed);
    let (es256, rs256) = (issuer.stating_kid().expect("a key"), &keys);
    assert_eq!(statement.standing(&StatementKeys::default()), Standing::UnknownKey(es256.clone()));
    assert_eq!(format!("{rs256:?}"), format!("{{\"{es256}\"}}"), "RSA keys sign no statements");
    let from_jwks = StatementKeys::from_jwks(&issuer.jwks().to_string()).expect("keys");
    assert_eq!(statement.standing(&from_jwks), Standing::Signed);

    let (signed, signature) = text.rsplit_once('.').expect("a signature");
    let forged =
        format!("{}.{signature}", signed.replace(&encode(&statement.claims.into()), &encode(&json!({"n": 2}))));
    assert_eq!(Statement::read(&forged, TYPE).expect("read").standing(&keys), Standing::Wrong(es256.clone()));
    let unsigned = unsigned_statement(TYPE, claims());
    assert_eq!(Statement::read(&unsigned, TYPE).expect("read").standing(&keys), Standing::Unsigned);
    let stripped = format!("{signed}.");
    assert_eq!(Statement::read(&stripped, TYPE).expect("read").standing(&keys), Standing::Wrong(es256));
    for other in ["", "x", "a.b.c", &text.replacen('e', "x", 1), &format!("{unsigned}AAAA")] {
        assert!(Statement::read(other, TYPE).is_none(), "{other}");
    }
    assert!(Statement::read(&text, "JWT").is_none());
    for broken in ["", "{}", r#"{"keys": []}"#, r#"{"keys": [{"kty": "RSA", "kid": "a"}]}"#] {
        assert!(StatementKeys::from_jwks(broken).is_err(), "{broken}");
    }
}

#[test]
fn a_key_that_was_withdrawn_vouches_for_what_it_signed_in_its_time_and_for_nothing_later() {
    const TYPE: &str = "test+jwt";
    let start = NOW + 100 * DAY;
    let stored = |from| Algorithm::ALL.map(|algorithm| SigningKey::generate(algorithm, from).expect("a key"));
    let ring = |keys: &[StoredKey]| Keyring::stored(keys, None).expect("keys");
    let copy = |key: &StoredKey| StoredKey { kid: key.kid.clone(), pkcs8: key.pkcs8.clone(), ..*key };
    let (first, second) = (stored(start), stored(start + 30 * DAY));
    let clock = ManualClock::at(start + DAY);
    let leaked = Issuer::new("https://i".to_owned(), ring(&first), Arc::new(clock.clone()));
    let sign = || leaked.state(TYPE, Map::new()).expect("signed");
    let in_its_time = sign();
    clock.advance(29 * DAY + Duration::from_secs(14 * 60));
    let by_a_late_replica = sign();
    clock.advance(Duration::from_secs(60 * 60));
    let later = sign();
    let kid = leaked.stating_kid().expect("a key");
    let standing = |text: &str, keys: &StatementKeys| Statement::read(text, TYPE).expect("read").standing(keys);

    let both: Vec<StoredKey> = first.into_iter().chain(second).collect();
    let successor: Vec<StoredKey> = both.iter().filter(|key| key.kid != kid).map(copy).collect();
    let jwks = StatementKeys::from_jwks(&leaked.jwks().to_string()).expect("keys");
    // As the store has them before the old one is removed, as a broker has them, and as an auditor who kept the old one.
    for keys in [
        StatementKeys::stored(&both),
        StatementKeys::of(&ring(&both)),
        StatementKeys::stored(&successor).and(jwks.clone()),
    ] {
        assert_eq!(standing(&in_its_time, &keys), Standing::Signed);
        assert_eq!(standing(&by_a_late_replica, &keys), Standing::Signed);
        assert_eq!(standing(&later, &keys), Standing::Untimely(kid.clone()));
    }
    assert_eq!(standing(&later, &jwks), Standing::Signed, "of which nobody knows more");
    // A successor that signed before its time.
    clock.rewind(20 * DAY);
    let early = Issuer::new("https://i".to_owned(), ring(&successor), Arc::new(clock.clone()));
    let early = early.state(TYPE, Map::new()).expect("signed");
    assert!(matches!(standing(&early, &StatementKeys::stored(&both)), Standing::Untimely(_)));
}

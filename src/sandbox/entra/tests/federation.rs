//! The token endpoint with a federated client assertion.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::{APP, EXCHANGE, NOW, OBJECT, OTHER, TENANT, UAMI, assertion_form, code, parse, world};
use crate::sandbox::entra::{FederatedCredential, FederatedCredentialError, TokenVersion};
use crate::sandbox::faults::Fault;
use crate::sandbox::keys::SigningKey;

#[tokio::test]
async fn a_federated_assertion_buys_a_managed_identity_token_for_24_hours() {
    let world = world().await;
    let assertion = world.issuer.sign(&world.claims());
    let (status, body) = world.with_assertion(UAMI, &assertion).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["expires_in"], 86_399);
    assert_eq!(parse(&body).claim("oid"), Some("uami-object"));
    world.with_assertion(APP, &assertion).await;
    assert_eq!(world.issuer.calls().count("/keys"), 1, "keys are kept");
}

#[tokio::test]
async fn issuer_subject_and_audience_are_compared_byte_for_byte() {
    let world = world().await;
    let issuer = format!("{}/", world.issuer.issuer());
    for (name, value, expected) in [
        ("iss", json!(issuer), 700_211),
        ("sub", json!("Carnet:azure-ml"), 700_213),
        ("sub", Value::Null, 700_213),
        ("aud", json!("api://azureadtokenexchange"), 700_212),
        ("iss", Value::Null, 50027),
    ] {
        assert_eq!(world.refused_claims(&world.claims_with(name, value)).await, expected);
    }
    let list = world.claims_with("aud", json!(["other", EXCHANGE]));
    let assertion = world.issuer.sign(&list);
    assert_eq!(world.with_assertion(UAMI, &assertion).await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_assertion_type_is_checked() {
    let world = world().await;
    let mut form = assertion_form(UAMI, &world.issuer.sign(&world.claims()));
    form[2].1 = "urn:ietf:params:oauth:client-assertion-type:saml2-bearer".to_owned();
    assert_eq!(code(&world.token(&form).await), 50027);
    assert_eq!(code(&world.with_assertion(UAMI, "no.jwt").await), 50027);
}

#[tokio::test]
async fn assertions_that_entra_issued_are_refused() {
    let world = world().await;
    for token in [
        world.entra.app_token(TENANT, OBJECT),
        world.entra.app_token(TENANT, OBJECT).v1(),
        world.entra.app_token(TENANT, OBJECT).claim("iss", "https://login.microsoftonline.com/x/v2.0"),
    ] {
        let token = token.audience(EXCHANGE).sign();
        assert_eq!(code(&world.with_assertion(UAMI, &token).await), 700_222);
    }
}

#[tokio::test]
async fn a_managed_identity_can_stand_in_for_an_app_of_its_tenant() {
    let world = world().await;
    let issuer = world.entra.issuer(TENANT, TokenVersion::V2);
    for client_id in [APP, UAMI] {
        let trusted = FederatedCredential::new(issuer.clone(), "uami-object");
        world.entra.trust(client_id, trusted).unwrap();
    }
    let token = world.entra.managed_identity_token(TENANT, "uami-object");
    let token = token.audience("fb60f99c-7a34-4190-8149-302f77469936").sign();
    // 24 h is within the 25 h that an assertion may live.
    let (status, body) = world.with_assertion(APP, &token).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(code(&world.with_assertion(UAMI, &token).await), 700_222);
}

#[tokio::test]
async fn the_signature_is_rs256_by_a_published_key() {
    let world = world().await;
    let claims = world.claims();
    let es256 = world.issuer.sign_es256(&claims);
    assert_eq!(code(&world.with_assertion(UAMI, &es256).await), 700_027);
    let no_kid = world.issuer.rsa_key().sign_text(r#"{"alg":"RS256"}"#, &claims.to_string());
    assert_eq!(code(&world.with_assertion(UAMI, &no_kid).await), 700_027);
    let foreign = SigningKey::rsa();
    assert_eq!(code(&world.with_assertion(UAMI, &foreign.sign(&claims)).await), 7_000_272);
    let same_kid = foreign.with_kid(world.issuer.rsa_key().kid());
    assert_eq!(code(&world.with_assertion(UAMI, &same_kid.sign(&claims)).await), 700_027);
}

#[tokio::test]
async fn only_the_first_hundred_keys_count() {
    let world = world().await;
    let mut keys: Vec<Value> = (0..99).map(|n| json!({"kty": "RSA", "kid": n.to_string()})).collect();
    keys.push(world.issuer.rsa_key().jwk());
    world.issuer.publish(keys.clone());
    let assertion = world.issuer.sign(&world.claims());
    assert_eq!(world.with_assertion(UAMI, &assertion).await.0, StatusCode::OK);
    keys.insert(0, json!({"kty": "RSA", "kid": "one more"}));
    world.issuer.publish(keys);
    world.entra.forget_issuer_keys();
    assert_eq!(code(&world.with_assertion(UAMI, &assertion).await), 7_000_272);
}

#[tokio::test]
async fn an_assertion_lives_25_hours_at_most_and_says_when_it_was_issued() {
    let world = world().await;
    let too_long = world.claims_with("exp", json!(NOW + 25 * 3600 + 1));
    assert_eq!(world.refused_claims(&too_long).await, 70023);
    assert_eq!(world.refused_claims(&world.claims_with("iat", Value::Null)).await, 70023);
    let longest = world.issuer.sign(&world.claims_with("exp", json!(NOW + 25 * 3600)));
    assert_eq!(world.with_assertion(UAMI, &longest).await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_assertion_outside_its_validity_is_refused() {
    let world = world().await;
    assert_eq!(world.refused_claims(&world.claims_with("exp", json!(NOW))).await, 700_024);
    assert_eq!(world.refused_claims(&world.claims_with("exp", Value::Null)).await, 700_024);
    assert_eq!(world.refused_claims(&world.claims_with("nbf", json!(NOW + 1))).await, 700_024);
}

#[tokio::test]
async fn an_unreachable_issuer_is_named_as_such_and_not_remembered() {
    let world = world().await;
    let good = world.claims();
    for (path, expected) in [("/.well-known/openid-configuration", 90061), ("/keys", 50166)] {
        world.issuer.faults().once(path, Fault::Drop);
        assert_eq!(world.refused_claims(&good).await, expected);
    }
    let assertion = world.issuer.sign(&good);
    assert_eq!(world.with_assertion(UAMI, &assertion).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_new_credential_is_seen_after_its_propagation() {
    let world = world().await;
    world.entra.propagate_after(Duration::from_secs(120));
    let trusted = FederatedCredential::new(world.issuer.issuer(), "new");
    world.entra.trust(UAMI, trusted).unwrap();
    let claims = world.claims_with("sub", json!("new"));
    assert_eq!(world.refused_claims(&claims).await, 70021);
    world.clock.advance(Duration::from_secs(120));
    let assertion = world.issuer.sign(&claims);
    assert_eq!(world.with_assertion(UAMI, &assertion).await.0, StatusCode::OK);
    world.entra.distrust(UAMI, world.issuer.issuer(), "new");
    assert_eq!(code(&world.with_assertion(UAMI, &assertion).await), 700_213);
}

#[tokio::test]
async fn credentials_have_entras_limits() {
    let entra = world().await.entra;
    let add = |issuer: &str, subject: &str| entra.trust(UAMI, FederatedCredential::new(issuer, subject));
    assert_eq!(add(" https://a", "s"), Err(FederatedCredentialError::Whitespace));
    assert_eq!(add("https://a", &"s".repeat(601)), Err(FederatedCredentialError::Length));
    assert_eq!(add("https://a", ""), Err(FederatedCredentialError::Length));
    for n in 0..19 {
        add("https://a", &n.to_string()).unwrap();
    }
    assert_eq!(add("https://a", "1"), Err(FederatedCredentialError::Duplicate));
    assert_eq!(add("https://a", "20"), Err(FederatedCredentialError::TooMany));
    let unknown = entra.trust(OTHER, FederatedCredential::new("https://a", "s"));
    assert_eq!(unknown, Err(FederatedCredentialError::UnknownIdentity));
}

//! STS: what an exchange needs, and what it gives.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{
    ISSUER, NOW, POOL_SET, PRINCIPAL, PROVIDER, assert_grant_refused, claims, claims_with, form, refusal, world,
    world_with,
};
use crate::sandbox::faults::Fault;
use crate::sandbox::google::{ExpiresIn, PoolProvider, ProviderError, TokenKind};
use crate::sandbox::keys::SigningKey;
use crate::sandbox::oidc_issuer::OidcIssuer;
use crate::sandbox::test_client::send;

#[tokio::test]
async fn a_good_assertion_becomes_a_federated_token_that_lives_as_long() {
    let world = world().await;
    let (status, body) = world.exchange_claims(&claims()).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["expires_in"], 600);
    assert_eq!(body["token_type"], "Bearer");
    let token = body["access_token"].as_str().unwrap();
    assert!(token.starts_with("ya29.d.b0Aa"));
    let info = world.google.check(token).unwrap();
    assert_eq!(info.kind, TokenKind::Federated);
    assert_eq!(info.principal, PRINCIPAL);
    assert_eq!(info.principal_sets, [format!("{POOL_SET}/*")]);
    world.clock.advance(Duration::from_secs(600));
    assert!(world.google.check(token).is_none());
}

#[tokio::test]
async fn a_federated_token_lives_an_hour_at_most() {
    let claims = claims_with("exp", json!(NOW + 86_700));
    assert_eq!(world().await.exchange_claims(&claims).await.1["expires_in"], 3600);
}

#[tokio::test]
async fn json_is_taken_in_both_cases() {
    let world = world().await;
    let url = format!("{}/v1/token", world.google.sts_endpoint());
    let snake = form(&world.key.sign(&claims()));
    let snake: Map<String, Value> = snake.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    let camel = json!({
        "grantType": snake["grant_type"], "audience": snake["audience"], "scope": snake["scope"],
        "requestedTokenType": snake["requested_token_type"],
        "subjectToken": snake["subject_token"], "subjectTokenType": snake["subject_token_type"],
    });
    for body in [Value::Object(snake), camel] {
        let (status, body) = send(world.http.post(&url).json(&body)).await;
        assert_eq!(status, StatusCode::OK, "{body}");
    }
}

#[tokio::test]
async fn an_authorization_header_spoils_the_exchange() {
    let world = world().await;
    let url = format!("{}/v1/token", world.google.sts_endpoint());
    let request = world.http.post(url).bearer_auth("x").form(&form(&world.key.sign(&claims())));
    let (status, body) = send(request).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(body["error"], "invalid_client");
}

#[tokio::test]
async fn each_parameter_is_demanded_and_checked() {
    let world = world().await;
    for (name, error) in [
        ("grant_type", "unsupported_grant_type"),
        ("audience", "invalid_request"),
        ("scope", "invalid_scope"),
        ("requested_token_type", "invalid_request"),
        ("subject_token_type", "invalid_request"),
        ("subject_token", "invalid_grant"),
    ] {
        assert_eq!(world.refused_with(name, "other").await.0, error, "{name}");
        let missing = world.refused_with(name, "").await.0;
        let expected = if name == "scope" { "invalid_scope" } else { "invalid_request" };
        assert_eq!(missing, expected, "{name}");
    }
}

#[tokio::test]
async fn a_project_id_is_not_taken_for_its_number() {
    let name = PROVIDER.replace("123456789", "ml-prod");
    let (error, text) = world().await.refused_with("audience", &name).await;
    assert_eq!(error, "invalid_request");
    assert!(text.starts_with("Invalid value for \"audience\". This value should be the full resource name"));
}

#[tokio::test]
async fn an_unknown_or_disabled_provider_is_an_invalid_target() {
    let world = world().await;
    let other = PROVIDER.replace("carnet", "other");
    let disabled = PoolProvider::new(other.clone(), ISSUER).disabled();
    assert_eq!(world.refused_with("audience", &other).await.0, "invalid_target");
    world.google.register_provider(disabled).unwrap();
    let (error, text) = world.refused_with("audience", &other).await;
    assert_eq!(error, "invalid_target");
    assert!(text.starts_with("The target service indicated by the \"audience\" parameters is invalid."));
}

#[tokio::test]
async fn the_header_needs_a_kid_and_an_allowed_algorithm() {
    let world = world().await;
    let payload = claims().to_string();
    for header in [
        json!({"alg": "RS256"}),
        json!({"alg": "RS512", "kid": world.key.kid()}),
        json!({"alg": "none", "kid": world.key.kid()}),
        json!({"alg": "ES256", "kid": world.key.kid()}),
        json!({"alg": "RS256", "kid": "other"}),
    ] {
        let token = world.key.sign_text(&header.to_string(), &payload);
        let refusal = refusal(world.exchange(&form(&token)).await);
        assert_eq!(refusal.0, "invalid_grant", "{header}");
    }
}

#[tokio::test]
async fn a_key_of_the_same_name_does_not_do() {
    let world = world().await;
    let foreign = SigningKey::rsa().with_kid(world.key.kid());
    let refusal = refusal(world.exchange(&form(&foreign.sign(&claims()))).await);
    assert_grant_refused(&refusal, "signature of the ID Token is invalid");
}

#[tokio::test]
async fn es256_is_taken_from_the_right_key() {
    let key = SigningKey::p256();
    let jwks = json!({"keys": [key.jwk()]}).to_string();
    let world = world_with(key, PoolProvider::new(PROVIDER, ISSUER).keys(jwks)).await;
    world.federated().await;
    let foreign = SigningKey::p256().with_kid(world.key.kid());
    let refusal = refusal(world.exchange(&form(&foreign.sign(&claims()))).await);
    assert_grant_refused(&refusal, "signature of the ID Token is invalid");
}

#[tokio::test]
async fn the_issuer_is_compared_character_by_character() {
    let claims = claims_with("iss", json!(format!("{ISSUER}/")));
    assert_grant_refused(
        &world().await.refused_claims(&claims).await,
        "The issuer in ID Token https://carnet.example.com/ does not match the expected ones: https://carnet.example.com",
    );
}

#[tokio::test]
async fn the_audience_is_the_full_name_unless_others_are_allowed() {
    let world = world().await;
    let with_scheme = claims_with("aud", json!([format!("https:{PROVIDER}"), "other"]));
    assert_eq!(world.exchange_claims(&with_scheme).await.0, StatusCode::OK);
    let other = claims_with("aud", json!("api://other"));
    let refused = world.refused_claims(&other).await;
    assert_grant_refused(&refused, "The audience in ID Token [api://other] does not match the expected audience.");
    let jwks = json!({"keys": [world.key.jwk()]}).to_string();
    let provider = PoolProvider::new(PROVIDER, ISSUER).keys(jwks);
    world.google.register_provider(provider.allowed_audience("api://other")).unwrap();
    assert_eq!(world.exchange_claims(&other).await.0, StatusCode::OK);
    assert_eq!(world.refused_claims(&claims()).await.0, "invalid_grant");
}

#[tokio::test]
async fn the_times_must_be_present_and_right() {
    let world = world().await;
    for (name, value, text) in [
        ("exp", json!(NOW), "ID Token issued at 1767225600 is stale to sign-in."),
        ("exp", json!(NOW + 48 * 3600), "less than 48 hours"),
        ("exp", Value::Null, "\"iat\" and \"exp\""),
        ("iat", Value::Null, "\"iat\" and \"exp\""),
        ("iat", json!(NOW + 1), "not yet valid"),
        ("nbf", json!(NOW + 1), "not yet valid"),
    ] {
        let refused = world.refused_claims(&claims_with(name, value)).await;
        assert_grant_refused(&refused, text);
    }
    let just_short = claims_with("exp", json!(NOW + 48 * 3600 - 1));
    assert_eq!(world.exchange_claims(&just_short).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_subject_has_127_bytes_at_most() {
    let world = world().await;
    let longest = claims_with("sub", json!("s".repeat(127)));
    assert_eq!(world.exchange_claims(&longest).await.0, StatusCode::OK);
    let refused = world.refused_claims(&claims_with("sub", json!("s".repeat(128)))).await;
    let text = "The size of mapped attribute google.subject exceeds the 127 bytes limit.";
    assert_grant_refused(&refused, text);
}

#[tokio::test]
async fn mapped_values_have_8_kib_in_all_and_must_exist() {
    let key = SigningKey::rsa();
    let jwks = json!({"keys": [key.jwk()]}).to_string();
    let provider = PoolProvider::new(PROVIDER, ISSUER).keys(jwks);
    let provider = provider.map("attribute.team", "assertion.team");
    let world = world_with(key, provider).await;
    let refused = world.refused_claims(&claims_with("team", json!("t".repeat(8190)))).await;
    assert_grant_refused(&refused, "8192 bytes limit");
    let refused = world.refused_claims(&claims()).await;
    assert_grant_refused(&refused, "no such key: team");
    let refused = world.refused_claims(&claims_with("team", json!(7))).await;
    assert_grant_refused(&refused, "'attribute.team' must be of type STRING");
}

#[tokio::test]
async fn the_attribute_condition_decides() {
    let key = SigningKey::rsa();
    let jwks = json!({"keys": [key.jwk()]}).to_string();
    let provider = PoolProvider::new(PROVIDER, ISSUER).keys(jwks);
    let provider = provider.condition(|claims| claims.get("tid") == Some(&json!("t1")));
    let world = world_with(key, provider).await;
    let (error, text) = world.refused_claims(&claims()).await;
    assert_eq!(error, "unauthorized_client");
    assert_eq!(text, "The given credential is rejected by the attribute condition.");
    assert_eq!(world.exchange_claims(&claims_with("tid", json!("t1"))).await.0, StatusCode::OK);
}

#[tokio::test]
async fn keys_are_fetched_from_the_issuer_and_kept() {
    let issuer = OidcIssuer::start().await.unwrap();
    let provider = PoolProvider::new(PROVIDER, issuer.issuer());
    let world = world_with(SigningKey::rsa(), provider).await;
    let claims = claims_with("iss", json!(issuer.issuer()));
    issuer.faults().once("/keys", Fault::status(StatusCode::SERVICE_UNAVAILABLE));
    let refused = refusal(world.exchange(&form(&issuer.sign(&claims))).await);
    assert_grant_refused(&refused, "Error connecting to the given credential's issuer");
    for token in [issuer.sign(&claims), issuer.sign_es256(&claims)] {
        assert_eq!(world.exchange(&form(&token)).await.0, StatusCode::OK);
    }
    assert_eq!(issuer.calls().count("/keys"), 2);
    world.clock.advance(Duration::from_secs(3600));
    let refused = refusal(world.exchange(&form(&issuer.sign(&claims))).await);
    assert_grant_refused(&refused, "stale");
    assert_eq!(issuer.calls().count("/keys"), 3);
}

#[tokio::test]
async fn provider_limits_are_kept() {
    let world = world().await;
    let register = |provider| world.google.register_provider(provider);
    let good = || PoolProvider::new(PROVIDER, ISSUER);
    let bad_id = PROVIDER.replace("carnet", "gcp-carnet");
    assert_eq!(register(PoolProvider::new(bad_id, ISSUER)), Err(ProviderError::Name));
    let plain = PoolProvider::new(PROVIDER, "http://carnet.example.com");
    assert_eq!(register(plain), Err(ProviderError::Issuer));
    let many = (0..11).fold(good(), |provider, n| provider.allowed_audience(format!("a{n}")));
    assert_eq!(register(many), Err(ProviderError::Audiences));
    let many = (0..51).fold(good(), |provider, n| provider.map(format!("attribute.a{n}"), "assertion.sub"));
    assert!(matches!(register(many), Err(ProviderError::Mapping(_))));
    let private = json!({"keys": [{"kty": "RSA", "d": "AQ"}]}).to_string();
    assert_eq!(register(good().keys(private)), Err(ProviderError::KeyMember("d".to_owned())));
}

#[tokio::test]
async fn options_may_be_encoded_twice_as_python_does() {
    let world = world().await;
    let with_options = |options: &str| {
        let mut form = form(&world.key.sign(&claims()));
        form.push(("options", options.to_owned()));
        form
    };
    for good in ["{}", "%7B%7D"] {
        assert_eq!(world.exchange(&with_options(good)).await.0, StatusCode::OK);
    }
    for bad in ["no json", r#"{"userProject":"p"}"#, &" ".repeat(4097)] {
        assert_eq!(refusal(world.exchange(&with_options(bad)).await).0, "invalid_request");
    }
}

#[tokio::test]
async fn expires_in_can_be_text_or_missing() {
    let world = world().await;
    world.google.state_expires_in(ExpiresIn::Text);
    assert_eq!(world.exchange_claims(&claims()).await.1["expires_in"], "600");
    world.google.state_expires_in(ExpiresIn::Absent);
    assert_eq!(world.exchange_claims(&claims()).await.1.get("expires_in"), None);
}

#[tokio::test]
async fn introspection_tells_what_a_federated_token_is() {
    let world = world().await;
    let token = world.federated().await;
    let url = format!("{}/v1/introspect", world.google.sts_endpoint());
    let body = send(world.http.post(&url).json(&json!({"token": token}))).await.1;
    assert_eq!(body["active"], true);
    assert_eq!(body["username"], PRINCIPAL);
    assert_eq!(body["sub"], "job-1");
    assert_eq!(body["exp"], (NOW + 600).to_string());
    let body = send(world.http.post(&url).json(&json!({"token": "other"}))).await.1;
    assert_eq!(body, json!({"active": false}));
}

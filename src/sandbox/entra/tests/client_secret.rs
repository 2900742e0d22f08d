//! The token endpoint with a client secret, and the shape of its answers.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::{APP, OTHER, SCOPE, TENANT, code, parse, secret_form, world};
use crate::sandbox::entra::{Resource, Throttle, TokenVersion};
use crate::sandbox::test_client::send;

#[tokio::test]
async fn a_secret_buys_an_app_token_for_an_hour_or_so() {
    let world = world().await;
    let (status, body) = world.token(&secret_form()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert!((3599..5400).contains(&body["expires_in"].as_u64().unwrap()));
    let token = parse(&body);
    assert_eq!(token.claim("aud"), Some("https://ml.azure.com"));
    assert_eq!(token.claim("ver"), Some("1.0"));
    assert_eq!(token.claim("appid"), Some(APP));
}

#[tokio::test]
async fn roles_come_with_tokens_for_the_broker() {
    let world = world().await;
    let mut form = secret_form();
    form[3].1 = format!("api://{}/.default", world.entra.default_audience());
    let body = world.token(&form).await.1;
    let token = parse(&body);
    assert_eq!(token.claim("aud"), Some(world.entra.default_audience().as_str()));
    assert_eq!(token.claim("ver"), Some("2.0"));
    assert_eq!(token.claims["roles"], json!(["Jobs.Submit"]));
}

#[tokio::test]
async fn each_parameter_is_demanded_and_checked() {
    let world = world().await;
    for (name, value, expected) in [
        ("grant_type", "", 900_144),
        ("grant_type", "password", 70003),
        ("client_id", "", 900_144),
        ("client_id", OTHER, 700_016),
        ("scope", "", 900_144),
        ("scope", "https://ml.azure.com/read", 1_002_012),
        ("scope", "https://ml.azure.com", 1_002_012),
        ("scope", "https://ml.azure.com/.default https://vault.azure.net/.default", 70011),
        ("scope", "https://other.example/.default", 500_011),
        ("client_secret", "", 7_000_218),
        ("client_secret", "wrong", 7_000_215),
    ] {
        assert_eq!(world.refused_with(name, value).await, expected, "{name}={value}");
    }
}

#[tokio::test]
async fn the_content_type_must_be_a_form() {
    let world = world().await;
    let url = format!("{}/{TENANT}/oauth2/v2.0/token", world.entra.authority());
    let form: std::collections::BTreeMap<_, _> = secret_form().into_iter().collect();
    assert_eq!(code(&send(world.http.post(url).json(&form)).await), 900_144);
}

#[tokio::test]
async fn a_parameter_may_not_be_repeated() {
    let world = world().await;
    let mut form = secret_form();
    form.push(("scope", SCOPE.to_owned()));
    assert_eq!(code(&world.token(&form).await), 9_000_411);
}

#[tokio::test]
async fn an_error_has_entras_shape_and_the_callers_id() {
    let world = world().await;
    let url = format!("{}/{TENANT}/oauth2/v2.0/token", world.entra.authority());
    let id = "0195f0a0-0000-7000-8000-000000000001";
    let mut form = secret_form();
    form[2].1 = "wrong".to_owned();
    let request =
        world.http.post(url).header("client-request-id", id).header("return-client-request-id", "true").form(&form);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["client-request-id"], id);
    assert!(answer.headers().contains_key("x-ms-request-id"));
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["error"], "invalid_client");
    assert_eq!(body["correlation_id"], id);
    assert_eq!(body["timestamp"], "2026-01-01 00:00:00Z");
    let text = body["error_description"].as_str().unwrap();
    assert!(text.starts_with("AADSTS7000215: Invalid client secret provided."));
    assert!(text.contains(&format!(" Correlation ID: {id} Timestamp: 2026-01-01 00:00:00Z")));
}

#[tokio::test]
async fn version_1_audiences_are_what_stands_before_the_last_slash() {
    let world = world().await;
    world.entra.register_resource(Resource {
        identifiers: vec!["https://x.example".to_owned()],
        client_id: OTHER.to_owned(),
        version: TokenVersion::V1,
    });
    let mut form = secret_form();
    form[3].1 = "https://x.example//.default".to_owned();
    let body = world.token(&form).await.1;
    assert_eq!(parse(&body).claim("aud"), Some("https://x.example/"));
}

#[tokio::test]
async fn throttling_says_when_to_come_back() {
    let world = world().await;
    world.entra.throttle(1, Throttle::Tenant, Duration::from_secs(9));
    world.entra.throttle(1, Throttle::ClientLoop, Duration::from_secs(9));
    let url = format!("{}/{TENANT}/oauth2/v2.0/token", world.entra.authority());
    let answer = world.http.post(&url).form(&secret_form()).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers()["retry-after"], "9");
    assert_eq!(code(&world.token(&secret_form()).await), 50196);
    assert_eq!(world.token(&secret_form()).await.0, StatusCode::OK);
}

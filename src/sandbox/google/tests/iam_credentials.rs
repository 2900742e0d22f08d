//! IAM Credentials: who may impersonate whom, and for how long.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use super::{ACCOUNT, CLOUD, ISSUER, NOW, POOL_SET, PRINCIPAL, PROVIDER, claims, claims_with, form, world, world_with};
use crate::sandbox::google::PoolProvider;
use crate::sandbox::keys::{SigningKey, UnverifiedJwt};
use crate::sandbox::test_client::send;

#[tokio::test]
async fn a_bound_principal_gets_an_access_token_of_the_account() {
    let world = world().await;
    world.google.bind(ACCOUNT, PRINCIPAL);
    let federated = world.federated().await;
    let path = format!("/v1/projects/-/serviceAccounts/{ACCOUNT}:generateAccessToken");
    let request = world
        .http
        .post(format!("{}{path}", world.google.iam_credentials_endpoint()))
        .bearer_auth(&federated)
        .header("X-Goog-Request-Reason", "exchange 7")
        .header("User-Agent", "carnet/0.1")
        .json(&json!({"scope": [CLOUD], "lifetime": "1800.5s", "delegates": []}));
    let (status, body) = send(request).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["expireTime"], "2026-01-01T00:30:00Z");
    let info = world.google.check(body["accessToken"].as_str().unwrap()).unwrap();
    assert_eq!(info.service_account.as_deref(), Some(ACCOUNT));
    assert_eq!(info.principal, PRINCIPAL);
    assert_eq!(info.request_reason.as_deref(), Some("exchange 7"));
    assert_eq!(info.user_agent.as_deref(), Some("carnet/0.1"));
}

#[tokio::test]
async fn sets_of_principals_can_be_bound() {
    let key = SigningKey::rsa();
    let jwks = json!({"keys": [key.jwk()]}).to_string();
    let provider = PoolProvider::new(PROVIDER, ISSUER).keys(jwks);
    let provider = provider.map("attribute.team", "assertion.team");
    let world = world_with(key, provider.map("google.groups", "assertion.groups")).await;
    let mut claims = claims_with("team", json!("vision"));
    claims["groups"] = json!(["g1"]);
    let body = world.exchange_claims(&claims).await.1;
    let federated = body["access_token"].as_str().unwrap();
    for set in ["*", "group/g1", "attribute.team/vision"] {
        let member = format!("{POOL_SET}/{set}");
        world.google.bind(ACCOUNT, &member);
        assert_eq!(world.access_token(federated, "60s").await.0, StatusCode::OK, "{set}");
        world.google.unbind(ACCOUNT, &member);
        assert_eq!(world.access_token(federated, "60s").await.0, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn without_a_binding_and_without_an_account_the_answer_is_the_same() {
    let world = world().await;
    let federated = world.federated().await;
    let absent = world.access_token(&federated, "60s").await;
    world.google.add_service_account(ACCOUNT);
    let unbound = world.access_token(&federated, "60s").await;
    assert_eq!(absent, unbound);
    assert_eq!(unbound.0, StatusCode::FORBIDDEN);
    let error = &unbound.1["error"];
    assert_eq!(error["status"], "PERMISSION_DENIED");
    assert_eq!(
        error["message"],
        "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist)."
    );
    assert_eq!(error["details"][0]["reason"], "IAM_PERMISSION_DENIED");
    world.google.delete_service_account(ACCOUNT);
    assert_eq!(world.access_token(&federated, "60s").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_bearer_must_be_live_and_have_an_iam_scope() {
    let world = world().await;
    world.google.bind(ACCOUNT, PRINCIPAL);
    assert_eq!(world.access_token("other", "60s").await.0, StatusCode::UNAUTHORIZED);
    let federated = world.federated().await;
    world.clock.advance(Duration::from_secs(600));
    assert_eq!(world.access_token(&federated, "60s").await.0, StatusCode::UNAUTHORIZED);
    world.clock.rewind(Duration::from_secs(600));
    let mut narrow = form(&world.key.sign(&claims()));
    narrow[2].1 = "https://www.googleapis.com/auth/devstorage.read_only".to_owned();
    let body = world.exchange(&narrow).await.1;
    let narrow = body["access_token"].as_str().unwrap();
    assert_eq!(world.access_token(narrow, "60s").await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_lifetime_over_an_hour_needs_the_policy_and_over_twelve_is_never_given() {
    let world = world().await;
    world.google.bind(ACCOUNT, PRINCIPAL);
    let federated = world.federated().await;
    let (status, body) = world.access_token(&federated, "3601s").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["error"]["message"], "The access token lifetime cannot exceed 3600 seconds.");
    world.google.extend_lifetime(ACCOUNT);
    let (status, body) = world.access_token(&federated, "43200s").await;
    assert_eq!((status, &body["expireTime"]), (StatusCode::OK, &json!("2026-01-01T12:00:00Z")));
    assert_eq!(world.access_token(&federated, "43201s").await.0, StatusCode::BAD_REQUEST);
    for bad in ["3600", "0s", "-1s", "1h", "infs"] {
        assert_eq!(world.access_token(&federated, bad).await.0, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test]
async fn the_request_must_be_well_formed() {
    let world = world().await;
    world.google.bind(ACCOUNT, PRINCIPAL);
    let federated = world.federated().await;
    for body in [json!({}), json!({"scope": []}), json!({"scope": [CLOUD], "other": 1}), json!({"scope": CLOUD})] {
        let (status, answer) = world.generate("generateAccessToken", &federated, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(answer["error"]["status"], "INVALID_ARGUMENT");
    }
    let path = format!("/v1/projects/ml-prod/serviceAccounts/{ACCOUNT}:generateAccessToken");
    let url = format!("{}{path}", world.google.iam_credentials_endpoint());
    let request = world.http.post(url).bearer_auth(&federated).json(&json!({"scope": [CLOUD]}));
    assert_eq!(send(request).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn each_delegate_needs_a_binding_on_the_next() {
    let world = world().await;
    let middle = "middle@ml-prod.iam.gserviceaccount.com";
    world.google.bind(middle, PRINCIPAL);
    world.google.add_service_account(ACCOUNT);
    let federated = world.federated().await;
    let body = json!({"scope": [CLOUD], "delegates": [format!("projects/-/serviceAccounts/{middle}")]});
    let generate = || world.generate("generateAccessToken", &federated, &body);
    assert_eq!(generate().await.0, StatusCode::FORBIDDEN);
    world.google.bind(ACCOUNT, &format!("serviceAccount:{middle}"));
    assert_eq!(generate().await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_id_token_is_signed_and_lives_an_hour() {
    let world = world().await;
    world.google.bind(ACCOUNT, PRINCIPAL);
    let federated = world.federated().await;
    let body = json!({"audience": "https://run.example", "includeEmail": true});
    let answer = world.generate("generateIdToken", &federated, &body).await.1;
    let token = UnverifiedJwt::parse(answer["token"].as_str().unwrap()).unwrap();
    let url = format!("{}/oauth2/v3/certs", world.google.sts_endpoint());
    let keys = send(world.http.get(url)).await.1;
    let keys = keys["keys"].as_array().unwrap();
    assert!(token.is_signed_by(token.key_in(keys).unwrap()));
    assert_eq!(token.claim("aud"), Some("https://run.example"));
    assert_eq!(token.claim("email"), Some(ACCOUNT));
    assert_eq!(token.seconds("exp"), Some(NOW + 3600));
    let empty = json!({"includeEmail": true});
    let refused = world.generate("generateIdToken", &federated, &empty).await;
    assert_eq!(refused.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn quota_errors_come_on_demand() {
    let world = world().await;
    world.google.throttle_sts(1);
    world.google.throttle_iam_credentials(1);
    let (status, body) = world.exchange_claims(&claims()).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(body["error_description"].as_str().unwrap().starts_with("[Security Token Service]"));
    let federated = world.federated().await;
    let (status, body) = world.access_token(&federated, "60s").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(body["error"]["status"], "RESOURCE_EXHAUSTED");
}

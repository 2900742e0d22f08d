//! One host with managed identities; each test changes one thing.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use super::{AssignedIdentity, ManagedIdentity};
use crate::clock::ManualClock;
use crate::sandbox::entra::Entra;
use crate::sandbox::keys::UnverifiedJwt;
use crate::sandbox::test_client::{client, send};

const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const RESOURCE: &str = "https://management.azure.com/";

struct World {
    clock: ManualClock,
    // Kept running: its directory signs.
    _entra: Entra,
    host: ManagedIdentity,
}

async fn world(identities: &[&str]) -> World {
    let clock = ManualClock::start();
    let entra = Entra::start(Arc::new(clock.clone()), [TENANT]).await.unwrap();
    let host = ManagedIdentity::start(&entra, TENANT).await.unwrap();
    for name in identities {
        host.assign(AssignedIdentity {
            client_id: format!("client-{name}"),
            object_id: format!("object-{name}"),
            resource_id: format!("/subscriptions/s/userAssignedIdentities/{name}"),
        });
    }
    World { clock, _entra: entra, host }
}

impl World {
    async fn imds(&self, query: &[(&str, &str)]) -> (StatusCode, Value) {
        let path = "/metadata/identity/oauth2/token";
        let request = self.get(path, query).header("Metadata", "true");
        send(request).await
    }

    async fn app_service(&self, query: &[(&str, &str)]) -> (StatusCode, Value) {
        let header = self.host.identity_header();
        let request = self.get("/msi/token", query).header("X-IDENTITY-HEADER", header);
        send(request).await
    }

    fn get(&self, path: &str, query: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.host.imds_endpoint());
        let url = reqwest::Url::parse_with_params(&url, query).unwrap();
        client().get(url)
    }
}

const GOOD: [(&str, &str); 2] = [("api-version", "2018-02-01"), ("resource", RESOURCE)];
const GOOD_APP: [(&str, &str); 2] = [("api-version", "2019-08-01"), ("resource", RESOURCE)];

#[tokio::test]
async fn imds_hands_out_a_token_of_24_hours_with_numbers_as_strings() {
    let (status, body) = world(&["a"]).await.imds(&GOOD).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["expires_in"], "86700");
    assert_eq!(body["expires_on"], "1767312300");
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(body["refresh_token"], "");
    let token = UnverifiedJwt::parse(body["access_token"].as_str().unwrap()).unwrap();
    assert_eq!(token.claim("oid"), Some("object-a"));
    assert_eq!(token.claim("aud"), Some(RESOURCE));
    assert_eq!(token.claim("ver"), Some("1.0"));
}

#[tokio::test]
async fn imds_demands_the_metadata_header() {
    let world = world(&["a"]).await;
    let (status, body) = send(world.get("/metadata/identity/oauth2/token", &GOOD)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["error"], "bad_request_102");
}

#[tokio::test]
async fn imds_refuses_forwarded_requests() {
    let world = world(&["a"]).await;
    let request = world.get("/metadata/identity/oauth2/token", &GOOD);
    let request = request.header("Metadata", "true").header("X-Forwarded-For", "192.0.2.1");
    assert_eq!(send(request).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn imds_demands_version_and_resource() {
    let world = world(&["a"]).await;
    for (query, text) in [
        (&GOOD[1..], "api-version was not specified in the request"),
        (&GOOD[..1], "Required query variable 'resource' is missing"),
    ] {
        let (status, body) = world.imds(query).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(body["error_description"], text);
    }
}

#[tokio::test]
async fn imds_tolerates_the_paths_that_real_clients_write() {
    let world = world(&["a"]).await;
    for path in ["/metadata/identity/oauth2/token/", "//Metadata/identity/oauth2/token"] {
        let request = world.get(path, &GOOD).header("Metadata", "True");
        assert_eq!(send(request).await.0, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn several_identities_need_a_name() {
    let (status, body) = world(&["a", "b"]).await.imds(&GOOD).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let text = body["error_description"].as_str().unwrap();
    assert!(text.starts_with("Multiple user assigned identities exist, please specify the clientId / resourceId"));
}

#[tokio::test]
async fn each_selector_finds_its_identity_and_only_that() {
    let world = world(&["a", "b"]).await;
    for selector in [
        ("client_id", "CLIENT-B"),
        ("object_id", "object-b"),
        ("msi_res_id", "/subscriptions/s/userassignedidentities/b"),
    ] {
        let (status, body) = world.imds(&[GOOD[0], GOOD[1], selector]).await;
        assert_eq!(status, StatusCode::OK, "{selector:?}");
        assert_eq!(body["client_id"], "client-b");
    }
    let (status, body) = world.imds(&[GOOD[0], GOOD[1], ("client_id", "other")]).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["error_description"], "Identity not found");
}

#[tokio::test]
async fn imds_answers_from_its_cache_for_an_hour() {
    let world = world(&["a"]).await;
    let first = world.imds(&GOOD).await.1;
    world.clock.advance(Duration::from_secs(3599));
    let second = world.imds(&GOOD).await.1;
    assert_eq!(first["access_token"], second["access_token"]);
    assert_eq!(second["expires_in"], "83101");
    world.clock.advance(Duration::from_secs(1));
    assert_ne!(first["access_token"], world.imds(&GOOD).await.1["access_token"]);
}

#[tokio::test]
async fn a_reported_token_is_replaced() {
    let world = world(&["a"]).await;
    let first = world.imds(&GOOD).await.1;
    let query = [GOOD[0], GOOD[1], ("token_sha256_to_refresh", "00")];
    assert_ne!(first["access_token"], world.imds(&query).await.1["access_token"]);
}

#[tokio::test]
async fn app_service_hands_out_a_token_without_expires_in() {
    let world = world(&["a"]).await;
    let (status, body) = world.app_service(&GOOD_APP).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["expires_on"], "1767312300");
    assert_eq!(body.get("expires_in"), None);
    world.clock.advance(Duration::from_secs(23 * 3600));
    assert_eq!(world.app_service(&GOOD_APP).await.1, body);
}

#[tokio::test]
async fn app_service_demands_its_header_and_its_version() {
    let world = world(&["a"]).await;
    let (status, body) = send(world.get("/msi/token", &GOOD_APP)).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(body["statusCode"], 401);
    let wrong = world.get("/msi/token", &GOOD_APP).header("X-IDENTITY-HEADER", "other");
    assert_eq!(send(wrong).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(world.app_service(&GOOD).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn app_service_knows_identities_by_principal_id_and_not_by_imds_names() {
    let world = world(&["a", "b"]).await;
    let query = [GOOD_APP[0], GOOD_APP[1], ("principal_id", "object-b")];
    assert_eq!(world.app_service(&query).await.1["client_id"], "client-b");
    let query = [GOOD_APP[0], GOOD_APP[1], ("client_id", "other")];
    let body = world.app_service(&query).await.1;
    assert_eq!(body["message"], "Unable to load the proper Managed Identity.");
}

#[tokio::test]
async fn failures_on_demand_end_when_they_are_used_up() {
    let world = world(&["a"]).await;
    world.host.throttle(1, Some(Duration::from_secs(7)));
    world.host.update(1);
    world.host.break_down(1, StatusCode::SERVICE_UNAVAILABLE);
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(world.imds(&GOOD).await.0.as_u16());
    }
    assert_eq!(seen, [429, 410, 503, 200]);
}

#[tokio::test]
async fn other_paths_and_methods_are_refused_at_once() {
    let world = world(&["a"]).await;
    let url = world.host.imds_endpoint();
    let client = client();
    let other = client.get(format!("{url}/metadata/identity/getplatformmetadata")).send().await;
    assert_eq!(other.unwrap().status(), StatusCode::NOT_FOUND);
    let post = client.post(world.host.identity_endpoint()).send().await.unwrap();
    assert_eq!(post.status(), StatusCode::METHOD_NOT_ALLOWED);
}

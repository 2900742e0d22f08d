//! People who sign in with a code, and the refresh tokens that follow.

use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use super::{APP, OTHER, TENANT, USER, World, code, parse, world};
use crate::sandbox::entra::{Identity, Person};
use crate::sandbox::keys::UnverifiedJwt;
use crate::sandbox::test_client::send;

const LOGIN: &str = "55555555-5555-5555-5555-555555555555";

async fn with_a_person() -> World {
    let world = world().await;
    let audience = world.entra.default_audience();
    world.entra.register(Identity::app(TENANT, LOGIN, "login-object").public_client().may_call(audience));
    world.entra.add_person(Person::new(TENANT, USER, "ada@example.com").roles(["Training.Submit"]));
    world
}

impl World {
    async fn devicecode(&self, client_id: &str, scope: &str) -> (StatusCode, Value) {
        let url = format!("{}/{TENANT}/oauth2/v2.0/devicecode", self.entra.authority());
        send(self.http.post(url).form(&[("client_id", client_id), ("scope", scope)])).await
    }

    async fn begin(&self) -> (String, String) {
        let scope = format!("{}/.default offline_access openid profile", self.entra.default_audience());
        let (status, body) = self.devicecode(LOGIN, &scope).await;
        assert_eq!(
            (status, body["interval"].as_u64(), body["expires_in"].as_u64()),
            (StatusCode::OK, Some(5), Some(900))
        );
        ["device_code", "user_code"].map(|name| body[name].as_str().unwrap().to_owned()).into()
    }

    async fn poll(&self, device_code: &str) -> (StatusCode, Value) {
        self.token(&[
            ("grant_type", "urn:ietf:params:oauth:grant-type:device_code".to_owned()),
            ("client_id", LOGIN.to_owned()),
            ("device_code", device_code.to_owned()),
        ])
        .await
    }

    async fn refresh(&self, client_id: &str, refresh_token: &str) -> (StatusCode, Value) {
        self.token(&[
            ("grant_type", "refresh_token".to_owned()),
            ("client_id", client_id.to_owned()),
            ("refresh_token", refresh_token.to_owned()),
        ])
        .await
    }

    async fn signed_in(&self) -> Value {
        let (device, user) = self.begin().await;
        assert!(self.entra.approve_device(&user, USER));
        self.poll(&device).await.1
    }
}

fn error(answer: &(StatusCode, Value)) -> &str {
    answer.1["error"].as_str().unwrap_or_default()
}

fn refresh_token(body: &Value) -> &str {
    body["refresh_token"].as_str().expect("a refresh token")
}

#[tokio::test]
async fn a_person_signs_in_with_the_code_and_the_code_is_good_once() {
    let world = with_a_person().await;
    let (device, user) = world.begin().await;
    assert_eq!(error(&world.poll(&device).await), "authorization_pending");
    assert!(!world.entra.approve_device("WRONGCODE", USER) && !world.entra.approve_device(&user, "nobody"));
    assert!(world.entra.approve_device(&user.to_lowercase(), USER));
    let (status, body) = world.poll(&device).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let token = parse(&body);
    assert_eq!((token.claim("oid"), token.claim("azp"), token.claim("idtyp")), (Some(USER), Some(LOGIN), Some("user")));
    assert_eq!(token.claims["roles"][0], "Training.Submit");
    let id_token = UnverifiedJwt::parse(body["id_token"].as_str().unwrap()).unwrap();
    assert_eq!((id_token.claim("aud"), id_token.claim("preferred_username")), (Some(LOGIN), Some("ada@example.com")));
    assert_eq!(error(&world.poll(&device).await), "bad_verification_code");
}

#[tokio::test]
async fn polls_are_paced_and_codes_end() {
    let world = with_a_person().await;
    let (device, _user) = world.begin().await;
    assert_eq!(error(&world.poll(&device).await), "authorization_pending");
    assert_eq!(error(&world.poll(&device).await), "slow_down");
    world.clock.advance(Duration::from_secs(5));
    assert_eq!(error(&world.poll(&device).await), "authorization_pending");
    world.clock.advance(Duration::from_secs(900));
    assert_eq!(error(&world.poll(&device).await), "expired_token");
    let (device, user) = world.begin().await;
    assert!(world.entra.decline_device(&user));
    assert_eq!(error(&world.poll(&device).await), "authorization_declined");
}

#[tokio::test]
async fn only_a_public_client_with_consent_signs_people_in() {
    let world = with_a_person().await;
    let scope = format!("{}/.default offline_access", world.entra.default_audience());
    assert_eq!(code(&world.devicecode(OTHER, &scope).await), 700_016);
    assert_eq!(code(&world.devicecode(LOGIN, "openid").await), 70011);
    assert_eq!(code(&world.refresh(APP, "1.x").await), 7_000_218);
    world.entra.register(Identity::app(TENANT, LOGIN, "login-object").public_client());
    let (device, user) = world.begin().await;
    world.entra.approve_device(&user, USER);
    assert_eq!(code(&world.poll(&device).await), 65001);
}

#[tokio::test]
async fn a_refresh_token_is_good_once_for_its_client_until_it_ends() {
    let world = with_a_person().await;
    let first = world.signed_in().await;
    world.entra.register(Identity::app(TENANT, OTHER, "other").public_client());
    assert_eq!(code(&world.refresh(OTHER, refresh_token(&first)).await), 70000);
    let (status, second) = world.refresh(LOGIN, refresh_token(&first)).await;
    assert_eq!(status, StatusCode::OK, "{second}");
    assert_ne!(refresh_token(&first), refresh_token(&second));
    assert_eq!(code(&world.refresh(LOGIN, refresh_token(&first)).await), 70000);
    world.clock.advance(Duration::from_secs(91 * 24 * 3600));
    assert_eq!(code(&world.refresh(LOGIN, refresh_token(&second)).await), 700_082);
    let third = world.signed_in().await;
    world.entra.revoke_sessions(USER);
    assert_eq!(code(&world.refresh(LOGIN, refresh_token(&third)).await), 50173);
}

#[tokio::test]
async fn the_page_takes_a_code_from_any_browser() {
    let world = with_a_person().await;
    let page = format!("{}/devicelogin", world.entra.authority());
    let post = |code: &str| world.http.post(&page).form(&[("user_code", code)]).send();
    let (device, user) = world.begin().await;
    assert!(world.http.get(&page).send().await.unwrap().text().await.unwrap().contains("user_code"));
    assert_eq!(post("NONSENSE1").await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert_eq!(post(&user).await.unwrap().status(), StatusCode::OK);
    assert_eq!(world.poll(&device).await.0, StatusCode::OK);
}

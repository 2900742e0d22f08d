//! On-behalf-of: users only.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use super::{APP, OBJECT, OTHER, TENANT, USER, code, parse, world};

#[tokio::test]
async fn a_users_token_is_exchanged_on_behalf_of_the_user() {
    let world = world().await;
    let token = world.entra.user_token(TENANT, USER).audience(APP).sign();
    let (status, body) = world.on_behalf_of(&token).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(body["scope"], "https://ml.azure.com/user_impersonation");
    let token = parse(&body);
    assert_eq!(token.claim("oid"), Some(USER));
    assert_eq!(token.claim("scp"), Some("user_impersonation"));
    assert_eq!(token.claim("appid"), Some(APP));
}

#[tokio::test]
async fn on_behalf_of_refuses_what_is_no_good_user_token() {
    let world = world().await;
    let user = || world.entra.user_token(TENANT, USER).audience(APP);
    let app = world.entra.app_token(TENANT, OBJECT).audience(APP);
    for (token, expected) in [
        (app.sign(), 7_000_113),
        (user().audience(OTHER).sign(), 50013),
        (user().sign_with_foreign_key(), 50013),
        (user().sign_with_alg_none(), 50013),
        (user().claim("iss", "https://other.example").sign(), 50013),
        (world.entra.user_token(OTHER, USER).audience(APP).sign(), 50013),
        ("no jwt".to_owned(), 50013),
        (user().lifetime(Duration::ZERO).sign(), 500_133),
    ] {
        assert_eq!(code(&world.on_behalf_of(&token).await), expected);
    }
}

#[tokio::test]
async fn on_behalf_of_can_ask_for_interaction() {
    let world = world().await;
    world.entra.require_interaction(USER);
    let token = world.entra.user_token(TENANT, USER).audience(APP).sign();
    let (status, body) = world.on_behalf_of(&token).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["error"], "interaction_required");
    assert_eq!(body["error_codes"], json!([50076]));
    assert_eq!(body["suberror"], "basic_action");
    let claims: Value = serde_json::from_str(body["claims"].as_str().unwrap()).unwrap();
    assert_eq!(claims["access_token"]["polids"]["essential"], true);
}

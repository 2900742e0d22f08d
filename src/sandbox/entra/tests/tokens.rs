//! The token builder.

use std::time::Duration;

use serde_json::json;

use super::{NOW, OBJECT, TENANT, USER, world};
use crate::sandbox::keys::{UnverifiedJwt, base64url};

#[tokio::test]
async fn a_token_is_signed_by_a_published_key() {
    let world = world().await;
    let token = world.entra.app_token(TENANT, OBJECT).sign();
    let token = UnverifiedJwt::parse(&token).unwrap();
    let keys = world.document(&format!("/{TENANT}/discovery/v2.0/keys")).await.1;
    let key = token.key_in(keys["keys"].as_array().unwrap()).unwrap();
    assert!(token.is_signed_by(key));
    assert_eq!(token.claim("aud"), Some(world.entra.default_audience().as_str()));
    assert_eq!(token.claim("idtyp"), Some("app"));
    assert_eq!(token.claim("sub"), Some(OBJECT));
    assert_eq!(token.header("x5t"), None);
}

#[tokio::test]
async fn the_attack_variants_are_not_signed_by_the_published_key() {
    let world = world().await;
    let token = world.entra.user_token(TENANT, USER);
    let key = world.entra.signing_key(TENANT).jwk();
    for forged in [
        token.sign_with_alg_none(),
        token.sign_hs256_with_public_pem(),
        token.sign_hs256_with_modulus(),
        token.sign_with_foreign_key(),
        token.without_signature(),
    ] {
        let forged = UnverifiedJwt::parse(&forged).unwrap();
        assert_eq!(forged.header("kid"), key["kid"].as_str());
        assert!(!forged.is_signed_by(&key));
    }
}

#[tokio::test]
async fn version_1_tokens_have_the_version_1_claims() {
    let world = world().await;
    let token = world.entra.user_token(TENANT, USER).v1().sign();
    let token = UnverifiedJwt::parse(&token).unwrap();
    assert_eq!(token.claim("iss"), Some(format!("https://sts.windows.net/{TENANT}/").as_str()));
    assert_eq!(token.header("x5t"), token.header("kid"));
    assert!(token.claim("appid").is_some() && token.claim("azp").is_none());
    assert_eq!(token.claims["amr"], json!(["pwd", "mfa"]));
}

#[tokio::test]
async fn a_test_changes_one_thing() {
    let world = world().await;
    let token = world
        .entra
        .managed_identity_token(TENANT, OBJECT)
        .claim("uti", "u")
        .without("aio")
        .groups(["g1"])
        .overage()
        .header("nonce", "n")
        .lifetime(Duration::from_secs(60))
        .sign();
    let token = UnverifiedJwt::parse(&token).unwrap();
    assert_eq!(token.claim("uti"), Some("u"));
    assert!(token.claims.get("aio").is_none() && token.claims.get("groups").is_none());
    assert_eq!(token.claims["_claim_names"], json!({"groups": "src1"}));
    assert_eq!(token.header("nonce"), Some("n"));
    assert_eq!(token.seconds("exp"), Some(NOW + 60));
    assert!(token.claim("xms_mirid").unwrap().contains("Microsoft.ManagedIdentity"));
    let twice = world.entra.app_token(TENANT, OBJECT).raw_payload(r#"{"a":1,"a":2}"#).sign();
    assert!(twice.contains(&base64url(br#"{"a":1,"a":2}"#)));
}

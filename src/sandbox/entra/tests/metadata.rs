//! Discovery documents, key documents, and what can be done to the keys.

use serde_json::{Value, json};

use super::{OTHER, TENANT, code, world};

#[tokio::test]
async fn discovery_names_the_issuer_and_the_keys_of_each_version() {
    let world = world().await;
    let base = world.entra.authority();
    let v2 = world.document(&format!("/{TENANT}/v2.0/.well-known/openid-configuration")).await.1;
    assert_eq!(v2["issuer"], format!("{base}/{TENANT}/v2.0"));
    assert_eq!(v2["jwks_uri"], format!("{base}/{TENANT}/discovery/v2.0/keys"));
    let v1 = world.document(&format!("/{TENANT}/.well-known/openid-configuration?appid=x")).await.1;
    assert_eq!(v1["issuer"], format!("https://sts.windows.net/{TENANT}/"));
    assert_eq!(v1["jwks_uri"], format!("{base}/{TENANT}/discovery/keys?appid=x"));
    for shared in ["common", "organizations"] {
        let path = format!("/{shared}/v2.0/.well-known/openid-configuration");
        let document = world.document(&path).await.1;
        assert_eq!(document["issuer"], format!("{base}/{{tenantid}}/v2.0"));
    }
    let instance = world.document("/common/discovery/instance").await.1;
    assert_eq!(instance["metadata"][0]["preferred_network"], base.replace("http://", ""));
}

#[tokio::test]
async fn an_unknown_tenant_has_no_documents() {
    let path = format!("/{OTHER}/v2.0/.well-known/openid-configuration");
    assert_eq!(code(&world().await.document(&path).await), 90002);
}

#[tokio::test]
async fn only_version_2_keys_name_their_issuer_and_none_names_an_algorithm() {
    let world = world().await;
    let v2 = world.document(&format!("/{TENANT}/discovery/v2.0/keys")).await.1;
    let v1 = world.document(&format!("/{TENANT}/discovery/keys")).await.1;
    let base = world.entra.authority();
    assert_eq!(v2["keys"][0]["issuer"], format!("{base}/{{tenantid}}/v2.0"));
    assert_eq!(v2["keys"][1]["issuer"], format!("{base}/{TENANT}/v2.0"));
    assert_eq!(v1["keys"][0].get("issuer"), None);
    assert_eq!(v1["keys"][0]["kid"], v2["keys"][0]["kid"]);
    assert_eq!(v2["keys"][0]["x5t"], v2["keys"][0]["kid"]);
    assert_eq!(v2["keys"][0].get("alg"), None);
}

#[tokio::test]
async fn keys_can_be_rotated_withdrawn_added_and_replaced() {
    let world = world().await;
    let path = format!("/{TENANT}/discovery/v2.0/keys");
    let old = world.entra.signing_key(TENANT).kid().to_owned();
    let new = world.entra.rotate(TENANT);
    assert_eq!(world.entra.signing_key(TENANT).kid(), new);
    assert_eq!(world.document(&path).await.1["keys"].as_array().unwrap().len(), 3);
    world.entra.withdraw(TENANT, &old);
    world.entra.publish(TENANT, json!({"kty": "oct", "kid": 7}));
    let keys = world.document(&path).await.1;
    let kids: Vec<&Value> = keys["keys"].as_array().unwrap().iter().map(|key| &key["kid"]).collect();
    assert_eq!(kids[1..], [&json!(new), &json!(7)]);
    world.entra.replace_keys_document(TENANT, "not json");
    assert_eq!(world.document(&path).await.1, Value::Null);
    world.entra.restore_keys_document(TENANT);
    assert_eq!(world.document(&path).await.1, keys);
}

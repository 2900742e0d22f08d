//! What can be wrong with the broker as an issuer.

use carnet::sandbox::{Fault, OidcIssuer, PoolProvider};
use http::StatusCode;
use serde_json::{Value, json};

use super::world::World;
use super::{check, error, expect, warning};
use crate::support::PROVIDER;

/// Serves `document` as the discovery document of the issuer's URL.
fn serve(world: &World, change: impl FnOnce(&str, &mut Value)) {
    let issuer = world.published.issuer();
    let mut document = json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/keys"),
        "id_token_signing_alg_values_supported": ["RS256", "ES256"],
    });
    change(issuer, &mut document);
    let fault = Fault::answer(StatusCode::OK, &[("content-type", "application/json")], document.to_string());
    world.published.faults().always("/.well-known/openid-configuration", fault.expect("an answer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_what_the_issuer_publishes_are_named() {
    check(&[
        error(
            "its url with a slash in the document",
            |world| {
                world.published_elsewhere();
                serve(world, |issuer, document| document["issuer"] = json!(format!("{issuer}/")));
            },
            "issuer_differs",
            "to the letter",
        ),
        error("keys of somebody else", World::published_elsewhere, "issuer_key_unpublished", "carnet issuer keys"),
        error(
            "no RS256",
            |world| {
                world.published_elsewhere();
                serve(world, |_, document| document["id_token_signing_alg_values_supported"] = json!(["ES256"]));
            },
            "issuer_algorithm",
            "Entra takes RS256",
        ),
        error(
            "keys that do not answer",
            |world| {
                world.published_elsewhere();
                world.published.faults().always("/keys", Fault::Drop);
            },
            "issuer_keys",
            "/keys",
        ),
        error(
            "no keys in their place",
            |world| {
                world.published_elsewhere();
                world.published.faults().always("/keys", Fault::status(StatusCode::NOT_FOUND));
            },
            "issuer_keys",
            "curl -sS 'http://127.0.0.1",
        ),
        error(
            "no discovery document",
            |world| {
                world.published_elsewhere();
                world
                    .published
                    .faults()
                    .always("/.well-known/openid-configuration", Fault::Redirect("/elsewhere".to_owned()));
            },
            "issuer_unreachable",
            "source: token_file",
        ),
        error(
            "nobody at its url",
            |world| {
                let url = world.broker.http.clone();
                world.replace(&format!("url: '{url}'"), "url: 'http://127.0.0.1:9'");
            },
            "issuer_unreachable",
            "curl -sS",
        ),
        error(
            "an address that no cloud reaches",
            |world| {
                let url = world.broker.http.clone();
                world.replace(&format!("url: '{url}'"), "url: 'https://127.0.0.1:9'");
            },
            "issuer_private",
            "carnet trust google --jwks",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn google_alone_can_do_with_uploaded_keys() {
    let row = warning(
        "nobody at its url",
        |world| {
            let url = world.broker.http.clone();
            world.replace(&format!("url: '{url}'"), "url: 'http://127.0.0.1:9'");
            world.options.target = Some("vertex".to_owned());
        },
        "issuer_unreachable",
        "curl -sS",
    );
    check(&[row]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_cloud_verified_a_signature_the_way_from_here_is_no_fault() {
    let mut world = World::good().await;
    let url = world.broker.http.clone();
    world.replace(&format!("url: '{url}'"), "url: 'https://127.0.0.1:9'");
    world.options.target = Some("vertex".to_owned());
    let keys = reqwest::get(format!("{url}/keys")).await.expect("an answer").text().await.expect("keys");
    let provider = PoolProvider::new(PROVIDER, "https://127.0.0.1:9").keys(keys);
    let provider = provider.map("attribute.tid", "assertion.tid").map("attribute.rule", "assertion.rule");
    world.register(provider.condition_in_cel("assertion.tid != \"\" && assertion.rule == \"training\""));
    let findings = world.examine().await;
    let of_issuer: Vec<_> = findings.iter().filter(|finding| finding.about == "issuer").collect();
    assert!(of_issuer.iter().any(|finding| finding.code == "issuer_private"));
    assert!(of_issuer.iter().all(|finding| finding.severity <= carnet::doctor::Severity::Note), "{of_issuer:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_no_cloud_takes_is_refused_with_the_file() {
    let mut world = World::good().await;
    let good = world.text.clone();
    let url = format!("url: '{}'", world.broker.http);
    for (other, complaint) in [
        (format!("url: '{}/'", world.broker.http), "ends in `/`"),
        ("url: 'http://carnet.example.com'".to_owned(), "must start with https://"),
    ] {
        world.text.clone_from(&good);
        world.replace(&url, &other);
        let refused = world.refused();
        assert!(refused.contains("issuer.url") && refused.contains(complaint), "{refused}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_files_are_looked_at_too() {
    let mut world = World::good().await;
    let file = world.broker.folder.path().join("issuer.pem");
    std::fs::write(&file, rcgen::KeyPair::generate().expect("a key").serialize_pem()).expect("written");
    let url = format!("url: '{}'", world.broker.http);
    world.replace(&url, &format!("{url}, key_files: ['{}']", file.display()));
    let row = error("no RSA key", |_world| {}, "issuer_keys", "openssl genrsa 2048");
    expect(&row, &world.examine().await);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_issuers_own_host_is_asked_for_keys() {
    let mut world = World::good().await;
    let other = OidcIssuer::start().await.expect("an issuer");
    world.published_elsewhere();
    let keys = format!("{}/keys", other.issuer());
    serve(&world, |_, document| document["jwks_uri"] = json!(keys));
    let findings = world.examine().await;
    assert!(findings.iter().any(|finding| finding.code == "issuer_keys" && finding.seen.contains("was not asked")));
    assert!(other.calls().all().is_empty());
    world.end().await;
}

//! One account with a container that one principal may read; each test changes one thing.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::AzureStorage;
use crate::clock::ManualClock;
use crate::sandbox::entra::{Entra, EntraToken};
use crate::sandbox::test_client::client;

const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const READER: &str = "66666666-6666-6666-6666-666666666666";
const OTHER: &str = "77777777-7777-7777-7777-777777777777";
const RESOURCE: &str = "https://storage.azure.com";

struct World {
    clock: ManualClock,
    entra: Entra,
    storage: AzureStorage,
}

async fn world() -> World {
    let clock = ManualClock::start();
    let entra = Entra::start(Arc::new(clock.clone()), [TENANT]).await.unwrap();
    let storage = AzureStorage::start(&entra, "mldata").await.unwrap();
    storage.add_blob("training", "a & b.csv");
    storage.add_blob("training", "c.csv");
    storage.let_read("training", READER);
    World { clock, entra, storage }
}

impl World {
    fn token(&self) -> EntraToken {
        self.entra.app_token(TENANT, READER).v1().audience(RESOURCE)
    }

    fn get(&self, container: &str) -> reqwest::RequestBuilder {
        let url = format!("{}/{container}?restype=container&comp=list", self.storage.endpoint());
        client().get(url).header("x-ms-version", "2025-11-05")
    }

    async fn list(&self, container: &str, token: &str) -> (StatusCode, String) {
        let answer = self.get(container).bearer_auth(token).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    #[track_caller]
    fn assert_refused(&self, (status, body): &(StatusCode, String), expected: StatusCode, text: &str) {
        assert_eq!(*status, expected, "{body}");
        assert!(body.contains(text), "{body}");
    }
}

#[tokio::test]
async fn whoever_has_a_token_and_a_grant_sees_the_blobs() {
    let world = world().await;
    for audience in [RESOURCE, "https://storage.azure.com/", "https://mldata.blob.core.windows.net"] {
        let (status, body) = world.list("training", &world.token().audience(audience).sign()).await;
        assert_eq!(status, StatusCode::OK, "{audience}: {body}");
        assert!(body.contains("<Name>a &amp; b.csv</Name>") && body.contains("<Name>c.csv</Name>"), "{body}");
    }
    let url = format!("{}/training?restype=container&comp=list&prefix=c", world.storage.endpoint());
    let request = client().get(url).header("x-ms-version", "2025-11-05").bearer_auth(world.token().sign());
    let body = request.send().await.unwrap().text().await.unwrap();
    assert!(!body.contains("a &amp; b.csv") && body.contains("c.csv"), "{body}");
}

#[tokio::test]
async fn a_token_that_is_not_good_here_is_refused_with_the_reason() {
    let world = world().await;
    let good = world.token();
    let cases = [
        (good.clone().audience("https://ml.azure.com").sign(), "Audience validation failed"),
        (good.clone().claim("iss", "https://sts.windows.net/other/").sign(), "Issuer validation failed"),
        (good.clone().claim("tid", OTHER).sign(), "Issuer validation failed"),
        (good.sign_with_foreign_key(), "Signature validation failed"),
        (good.sign_with_alg_none(), "Signature validation failed"),
        (good.sign_hs256_with_public_pem(), "Signature validation failed"),
        (good.clone().without("exp").sign(), "Lifetime validation failed"),
        ("no.token".to_owned(), "malformed"),
    ];
    for (token, text) in cases {
        world.assert_refused(&world.list("training", &token).await, StatusCode::UNAUTHORIZED, text);
    }
    let token = good.lifetime(Duration::from_secs(600)).sign();
    world.clock.advance(Duration::from_secs(600));
    let answer = world.list("training", &token).await;
    world.assert_refused(&answer, StatusCode::UNAUTHORIZED, "Lifetime validation failed");
    world.clock.rewind(Duration::from_secs(601));
    let answer = world.list("training", &token).await;
    world.assert_refused(&answer, StatusCode::UNAUTHORIZED, "Lifetime validation failed");
}

#[tokio::test]
async fn a_key_that_is_no_longer_published_signs_for_nobody() {
    let world = world().await;
    let token = world.token().sign();
    world.entra.rotate(TENANT);
    assert_eq!(world.list("training", &token).await.0, StatusCode::OK);
    world.entra.kids(TENANT).iter().for_each(|kid| world.entra.withdraw(TENANT, kid));
    let answer = world.list("training", &token).await;
    world.assert_refused(&answer, StatusCode::UNAUTHORIZED, "Signature validation failed");
}

#[tokio::test]
async fn without_a_token_a_grant_or_a_container_there_is_no_listing() {
    let world = world().await;
    let anonymous = world.get("training").send().await.unwrap();
    assert_eq!(anonymous.status(), StatusCode::UNAUTHORIZED);
    let challenge = anonymous.headers()["www-authenticate"].to_str().unwrap().to_owned();
    assert!(challenge.contains("resource_id=https://storage.azure.com"), "{challenge}");
    let other = world.entra.app_token(TENANT, OTHER).v1().audience(RESOURCE).sign();
    let answer = world.list("training", &other).await;
    world.assert_refused(&answer, StatusCode::FORBIDDEN, "AuthorizationPermissionMismatch");
    let answer = world.list("absent", &world.token().sign()).await;
    world.assert_refused(&answer, StatusCode::NOT_FOUND, "ContainerNotFound");
    let url = format!("{}/training?restype=container&comp=list", world.storage.endpoint());
    let old = client().get(url).bearer_auth(world.token().sign()).header("x-ms-version", "2017-07-29").send().await;
    assert_eq!(old.unwrap().status(), StatusCode::BAD_REQUEST);
}

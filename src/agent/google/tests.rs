use http::Request;
use serde_json::Value;

use crate::agent::World;
use crate::agent::source::{Credential, Refusal, Wanted};
use crate::clock::Clock as _;
use std::time::Duration;

const FLAVOR: (&str, &str) = ("Metadata-Flavor", "Google");
const BASE: &str = "/computeMetadata/v1/";

async fn get(world: &World, path: &str) -> (u16, String) {
    let (status, headers, body) = world.ask(Request::get(format!("{BASE}{path}")).header(FLAVOR.0, FLAVOR.1)).await;
    assert_eq!(headers["metadata-flavor"], "Google", "{path}");
    assert_eq!(headers["server"], "Metadata Server for VM", "{path}");
    assert!(headers.contains_key("etag"), "{path}");
    (status, body)
}

async fn text(world: &World, path: &str) -> String {
    let (status, body) = get(world, path).await;
    assert_eq!(status, 200, "{path}: {body}");
    body
}

#[tokio::test(start_paused = true)]
async fn libraries_find_what_they_ask_for_of_the_default_account_and_of_others_by_name() {
    let world = World::new();
    let trainer = "trainer@ml.iam.gserviceaccount.com";
    assert_eq!(text(&world, "project/project-id").await, "ml");
    assert_eq!(text(&world, "project/numeric-project-id").await, "123456789");
    assert_eq!(text(&world, "universe/universe-domain").await, "googleapis.com");
    assert_eq!(text(&world, "instance/service-accounts/default/email").await, trainer);
    assert_eq!(
        text(&world, "instance/service-accounts/default/scopes").await,
        "https://www.googleapis.com/auth/cloud-platform\n"
    );
    let listed = text(&world, "instance/service-accounts/").await;
    assert_eq!(listed, format!("default/\n{trainer}/\nreader@data.iam.gserviceaccount.com/\n"));
    for path in [
        "instance/service-accounts/default/?recursive=true",
        "instance/service-accounts/default/?recursive=True&alt=json",
    ] {
        let json: Value = serde_json::from_str(&text(&world, path).await).expect("JSON");
        assert_eq!(json["email"], trainer);
        assert_eq!(json["aliases"], serde_json::json!(["default"]));
        assert_eq!(json["scopes"], serde_json::json!(["https://www.googleapis.com/auth/cloud-platform"]));
        assert_eq!(json.as_object().map(serde_json::Map::len), Some(3), "nothing secret is in it");
    }
    let all: Value = serde_json::from_str(&text(&world, "?recursive=true").await).expect("JSON");
    assert_eq!(
        all["project"],
        serde_json::json!({"attributes": {}, "numericProjectId": 123_456_789, "projectId": "ml"})
    );
    assert_eq!(
        all["instance"]["serviceAccounts"]["reader@data.iam.gserviceaccount.com"]["aliases"],
        serde_json::json!([])
    );
    let lines = text(&world, "project/?recursive=true&alt=text").await;
    assert_eq!(lines, "numeric-project-id 123456789\nproject-id ml\n");
    let mut tokens = Vec::new();
    for account in
        ["default", trainer, "trainer%40ml.iam.gserviceaccount.com", "reader@data.iam.gserviceaccount.com", "bigquery"]
    {
        let path = format!("instance/service-accounts/{account}/token?scopes=https://www.googleapis.com/auth/iam");
        let json: Value = serde_json::from_str(&text(&world, &path).await).expect("JSON");
        assert_eq!((&json["token_type"], &json["expires_in"]), (&"Bearer".into(), &3600.into()));
        tokens.push(json["access_token"].as_str().expect("a token").to_owned());
    }
    assert_eq!(tokens, ["vertex-token", "vertex-token", "vertex-token", "bigquery-token", "bigquery-token"]);
    world.clock.advance(Duration::from_secs(60));
    let json: Value =
        serde_json::from_str(&text(&world, "instance/service-accounts/default/token").await).expect("JSON");
    assert_eq!(json["expires_in"], 3540);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_404_and_a_folder_without_its_slash_is_elsewhere() {
    let world = World::new();
    for path in [
        "instance/zone",
        "instance/service-accounts/nobody@ml.iam.gserviceaccount.com/token",
        "instance/service-accounts/nobody@ml.iam.gserviceaccount.com/",
        "instance/service-accounts/default/allowedLocations",
        "project/project-id/more",
    ] {
        assert_eq!(get(&world, path).await.0, 404, "{path}");
    }
    for (path, to) in [
        ("instance", "/computeMetadata/v1/instance/"),
        (
            "instance/service-accounts/default?recursive=true",
            "/computeMetadata/v1/instance/service-accounts/default/?recursive=true",
        ),
    ] {
        let (status, headers, _body) =
            world.ask(Request::get(format!("{BASE}{path}")).header(FLAVOR.0, FLAVOR.1)).await;
        assert_eq!((status, headers["location"].to_str().expect("text")), (301, to));
    }
}

#[tokio::test(start_paused = true)]
async fn i31_w14_no_token_without_the_one_header_that_a_tricked_program_cannot_send() {
    let world = World::new();
    let token = || Request::get(format!("{BASE}instance/service-accounts/default/token"));
    let good = || token().header(FLAVOR.0, FLAVOR.1);
    for (request, expected) in [
        (token(), 403),
        (token().header(FLAVOR.0, "Amazon"), 404),
        (token().header(FLAVOR.0, "google"), 404),
        (token().header(FLAVOR.0, "Google, Google"), 404),
        (good().header(FLAVOR.0, "Google"), 403),
        (good().header("X-Forwarded-For", "10.0.0.1"), 403),
        (good().header("X-Forwarded-For", ""), 403),
        (good().method("HEAD"), 405),
        (good().method("PUT"), 405),
        (good().method("POST"), 200),
        (good(), 200),
        (Request::get("/"), 200),
        (Request::get("/").header("X-Forwarded-For", "10.0.0.1"), 403),
        (Request::post(format!("{BASE}project/project-id")).header(FLAVOR.0, FLAVOR.1), 405),
    ] {
        let said = format!("{request:?}");
        let (status, _headers, body) = world.ask(request).await;
        assert_eq!(status, expected, "{said}");
        assert_eq!(body.contains("vertex-token"), expected == 200 && said.contains("token"), "{said}");
    }
    let (_status, _headers, body) = world.ask(token()).await;
    assert_eq!(body, r#"Missing required header "Metadata-Flavor": "Google""#);
}

#[tokio::test(start_paused = true)]
async fn an_id_token_is_of_its_audience_and_needs_one() {
    let world = World::new();
    let wanted = Wanted { id_token_audience: Some("https://service".to_owned()), ..Wanted::access_token("vertex") };
    let id_token = Credential::google_for_test("a.b.c", "trainer@ml.iam.gserviceaccount.com", world.clock.now());
    world.source.set(wanted, Ok(id_token));
    let path = "instance/service-accounts/default/identity";
    assert_eq!(
        text(&world, &format!("{path}?audience=https%3A%2F%2Fservice&format=full&licenses=TRUE")).await,
        "a.b.c"
    );
    for query in ["", "?audience=", "?audience=%20", "?audience=a&audience=b"] {
        let (status, body) = get(&world, &format!("{path}{query}")).await;
        assert_eq!((status, body.as_str()), (400, "non-empty audience parameter required"), "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn c01_who_asks_too_early_waits_and_is_told_to_come_again_but_a_ping_is_answered_at_once() {
    let world = World::empty();
    let began = tokio::time::Instant::now();
    assert_eq!(world.ask(Request::get("/")).await.0, 200);
    assert_eq!(get(&world, "instance").await.0, 301);
    assert_eq!(began.elapsed(), Duration::ZERO);
    for path in [
        "instance/service-accounts/default/token",
        "instance/service-accounts/default/?recursive=true",
        "project/project-id",
    ] {
        let began = tokio::time::Instant::now();
        let (status, headers, _body) =
            world.ask(Request::get(format!("{BASE}{path}")).header(FLAVOR.0, FLAVOR.1)).await;
        assert_eq!((status, headers["retry-after"].to_str().expect("text")), (503, "1"), "{path}");
        assert!(began.elapsed() < Duration::from_secs(3), "libraries wait no longer");
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_is_said_in_a_form_that_libraries_do_not_repeat() {
    let world = World::new();
    world.refuses("vertex", Refusal::denied("denied (DENIED, exchange 1)"));
    world.refuses("bigquery", Refusal::denied("denied (DENIED, exchange 2)"));
    for path in ["instance/service-accounts/default/token", "instance/service-accounts/default/?recursive=true"] {
        let (status, body) = get(&world, path).await;
        assert_eq!(status, 403, "{path}");
        assert!(body.starts_with("denied (DENIED"), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_other_account_stands_in_for_the_default_one_while_that_is_not_known() {
    let world = World::new();
    world.refuses("vertex", Refusal::away("away"));
    for path in ["instance/service-accounts/default/token", "instance/service-accounts/", "project/project-id"] {
        let (status, body) = get(&world, path).await;
        assert_eq!(status, 503, "{path}: {body}");
    }
    let named = "instance/service-accounts/reader@data.iam.gserviceaccount.com/token";
    assert!(text(&world, named).await.contains("bigquery-token"));
    let trainer = Credential::google_for_test("late", "trainer@ml.iam.gserviceaccount.com", world.clock.now());
    world.gives("vertex", trainer);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(text(&world, "instance/service-accounts/default/token").await.contains("late"));
    // Of a target that is denied it never gets known which cloud it is of.
    let other = World::new();
    other.refuses("azure-storage", Refusal::denied("denied (DENIED)"));
    assert!(text(&other, "instance/service-accounts/default/token").await.contains("vertex-token"));
}

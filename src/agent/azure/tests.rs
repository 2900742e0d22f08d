use http::Request;
use serde_json::Value;

use super::*;
use crate::agent::World;
use crate::agent::source::Credential;
use crate::clock::Clock as _;
use crate::secret::Secret;

const ML: &str = "33333333-3333-3333-3333-333333333333";

async fn app_service(world: &World, query: &str) -> (u16, Value) {
    let path = format!("/msi/token?api-version=2019-08-01&{query}");
    ask(world, Request::get(path).header("X-IDENTITY-HEADER", "of-this-run")).await
}

async fn ask(world: &World, request: http::request::Builder) -> (u16, Value) {
    let (status, _headers, body) = world.ask(request).await;
    (status, serde_json::from_str(&body).unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn all_three_protocols_give_the_token_with_its_numbers_as_texts() {
    let world = World::new();
    let query = "resource=https://ml.azure.com/";
    for request in [
        Request::get(format!("/msi/token?api-version=2019-08-01&{query}")).header("X-IDENTITY-HEADER", "of-this-run"),
        Request::get(format!("/msi/token?api-version=2017-09-01&{query}")).header("Secret", "of-this-run"),
        Request::get(format!("/metadata/identity/oauth2/token?api-version=2018-02-01&{query}"))
            .header("Metadata", "true"),
        Request::get(format!("//Metadata/identity/oauth2/token/?{query}&api-version=2019-08-01"))
            .header("metadata", "True"),
    ] {
        let said = format!("{request:?}");
        let (status, json) = ask(&world, request).await;
        assert_eq!(status, 200, "{said}");
        let expected = serde_json::json!({
            "access_token": "ml-token", "refresh_token": "", "expires_in": "3600", "expires_on": "1767229200",
            "not_before": "1767225600", "resource": "https://ml.azure.com/", "token_type": "Bearer", "client_id": ML,
        });
        assert_eq!(json, expected, "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn i31_w14_no_token_without_the_header_of_the_protocol_exactly_once() {
    let world = World::new();
    let query = "resource=https://ml.azure.com";
    let machine = || Request::get(format!("/metadata/identity/oauth2/token?api-version=2018-02-01&{query}"));
    let service = || Request::get(format!("/msi/token?api-version=2019-08-01&{query}"));
    let older = || Request::get(format!("/msi/token?api-version=2017-09-01&{query}"));
    let header = "X-IDENTITY-HEADER";
    for (request, expected) in [
        (machine(), 400),
        (machine().header("Metadata", "false"), 400),
        (machine().header("Metadata", "true").header("Metadata", "true"), 400),
        (machine().header("Metadata", "true").header("X-Forwarded-For", "10.0.0.1"), 400),
        (machine().header("Metadata", "true").method("HEAD"), 405),
        (machine().header("Metadata", "true").method("POST"), 405),
        (service(), 401),
        (service().header("Metadata", "true"), 401),
        (service().header(header, ""), 401),
        (service().header(header, "of-this-ruN"), 401),
        (service().header(header, "of-this-run-"), 401),
        (service().header(header, "of-this-run").header(header, "of-this-run"), 401),
        (service().header("Secret", "of-this-run"), 401),
        (older().header(header, "of-this-run"), 401),
        (service().header(header, "of-this-run").header("X-Forwarded-For", "10.0.0.1"), 400),
        (service().header(header, "of-this-run").method("HEAD"), 405),
        (Request::get(format!("/msi/token?{query}")).header(header, "of-this-run"), 400),
        (Request::get(format!("/metadata/identity/oauth2/token?{query}")).header("Metadata", "true"), 400),
        (service().header(header, "of-this-run"), 200),
    ] {
        let said = format!("{request:?}");
        let (status, json) = ask(&world, request).await;
        assert_eq!(status, expected, "{said}");
        assert_eq!(json["access_token"].is_string(), expected == 200, "{said}");
    }
    // Without a header secret there is no such endpoint.
    let settings = crate::agent::Settings { targets: Vec::new(), identity_header: None };
    let agent = Agent::new(settings, world.source.clone(), std::sync::Arc::new(world.clock.clone()));
    let none = World { agent, ..World::new() };
    assert_eq!(ask(&none, service().header(header, "")).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn identity_and_resource_are_understood_in_every_spelling() {
    let world = World::new();
    let resource_id = "/SUBSCRIPTIONS/s/resourceGroups/ml/providers/p/userAssignedIdentities/ml";
    for (query, token) in [
        ("resource=https://ml.azure.com".to_owned(), "ml-token"),
        ("resource=https%3A%2F%2Fml.azure.com%2F".to_owned(), "ml-token"),
        ("resource=https://ml.azure.com/.default".to_owned(), "ml-token"),
        ("resource=https://ML.azure.com//.default".to_owned(), "ml-token"),
        ("resource=https://storage.azure.com".to_owned(), "storage-token"),
        (format!("resource=https://storage.azure.com&client_id={ML}"), "storage-token"),
        (format!("resource=https://ml.azure.com&clientid={ML}"), "ml-token"),
        ("resource=https://ml.azure.com&object_id=77777777-7777-7777-7777-777777777777".to_owned(), "ml-token"),
        ("resource=https://ml.azure.com&principal_id=77777777-7777-7777-7777-777777777777".to_owned(), "ml-token"),
        (format!("resource=https://ml.azure.com&mi_res_id={resource_id}"), "ml-token"),
        (format!("resource=https://ml.azure.com&msi_res_id={resource_id}&mi_res_id={resource_id}"), "ml-token"),
        ("resource=https://ml.azure.com&client_id=".to_owned(), "ml-token"),
    ] {
        let (status, json) = app_service(&world, &query).await;
        assert_eq!((status, json["access_token"].as_str()), (200, Some(token)), "{query}");
    }
    for (query, said) in [
        ("resource=https://ml.azure.com&client_id=44444444-4444-4444-4444-444444444444", "Identity not found"),
        ("resource=https://storage.azure.com&object_id=77777777-7777-7777-7777-777777777777", "no target gives"),
        ("resource=https://vault.azure.net", "there are targets for https://ml.azure.com, https://storage.azure.com"),
        ("client_id=x", "'resource' is missing"),
        ("resource=https://ml.azure.com&resource=https://storage.azure.com", "given twice"),
        ("resource=https://ml.azure.com&client_id=a&clientid=b", "given twice"),
    ] {
        let (status, json) = app_service(&world, query).await;
        assert_eq!((status, json["error"].as_str()), (400, Some("invalid_request")), "{query}");
        assert!(json["error_description"].as_str().expect("text").contains(said), "{query}: {json}");
        assert_eq!((&json["statusCode"], &json["message"]), (&400.into(), &json["error_description"]), "{query}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_several_identities_the_caller_chooses_and_one_identity_needs_no_choice() {
    let world = World::new();
    let now = world.clock.now();
    let other = Credential::azure_for_test(
        "other",
        "44444444-4444-4444-4444-444444444444",
        "https://ml.azure.com/.default",
        now,
    );
    world.gives("azure-storage", other);
    let (status, json) = app_service(&world, "resource=https://ml.azure.com").await;
    let said = json["message"].as_str().expect("text");
    assert!(status == 400 && said.contains(ML) && said.contains("44444444"), "{json}");
    let (_status, json) = app_service(&world, &format!("resource=https://ml.azure.com&client_id={ML}")).await;
    assert_eq!(json["access_token"], "ml-token");
    let twice = World::new();
    twice.gives("azure-storage", Credential::azure_for_test("same", ML, "https://ml.azure.com/.default", now));
    assert_eq!(app_service(&twice, "resource=https://ml.azure.com").await.1["access_token"], "ml-token");
}

#[tokio::test(start_paused = true)]
async fn c01_a_first_request_waits_and_is_then_told_to_come_again_and_a_denial_is_final() {
    let world = World::empty();
    let request = || {
        let path = "/msi/token?api-version=2019-08-01&resource=https://ml.azure.com";
        Request::get(path).header("X-IDENTITY-HEADER", "of-this-run")
    };
    let began = tokio::time::Instant::now();
    let (status, headers, _body) = world.ask(request()).await;
    assert_eq!((status, headers["retry-after"].to_str().expect("text")), (503, "1"));
    assert!(began.elapsed() <= HOLD);
    for target in ["azure-ml", "azure-storage", "vertex", "bigquery"] {
        world.refuses(target, Refusal::denied("denied (DENIED, exchange 1)"));
    }
    tokio::time::sleep(HOLD).await;
    let (status, json) = ask(&world, request()).await;
    assert_eq!((status, json["error"].as_str()), (400, Some("access_denied")));
    assert_eq!(json["message"], "denied (DENIED, exchange 1)");
    let good = World::new();
    good.refuses("vertex", Refusal::away("away"));
    let began = tokio::time::Instant::now();
    assert_eq!(ask(&good, request()).await.0, 200);
    assert!(began.elapsed() < Duration::from_secs(11), "held while its own target was not known");
    let began = tokio::time::Instant::now();
    assert_eq!(ask(&good, request()).await.0, 200);
    assert!(began.elapsed() < Duration::from_secs(1), "another target that is away holds nobody");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_a_resource_has_refused_is_asked_for_anew() {
    let world = World::new();
    let query = "resource=https://ml.azure.com";
    assert_eq!(app_service(&world, query).await.1["access_token"], "ml-token");
    let now = world.clock.now();
    world.gives("azure-ml", Credential::azure_for_test("better", ML, "https://ml.azure.com/.default", now));
    tokio::time::sleep(Duration::from_secs(11)).await;
    let hash = |token: &str| hex::encode(Secret::new(token).sha256());
    for (asked, token) in [("unknown", "ml-token"), ("ml-token", "better"), ("ml-token", "better")] {
        let query = format!("{query}&token_sha256_to_refresh={}&xms_cc=cp1", hash(asked));
        assert_eq!(app_service(&world, &query).await.1["access_token"], token, "{asked}");
    }
    assert_eq!(app_service(&world, &format!("{query}&token_sha256_to_refresh=nonsense")).await.0, 200);
}

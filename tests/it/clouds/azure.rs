//! Azure: federated assertions, the cluster's token, on behalf of a user, and the machine's managed identity.

mod refusals;

use carnet::credential::CloudIdentity;
use carnet::target::{AppServiceHeader, ManagedIdentityEndpoint};

use super::*;

#[tokio::test(start_paused = true)]
async fn c21_an_assertion_of_the_broker_becomes_a_token_of_the_managed_identity() {
    let world = World::new().await;
    let call = world.call(world.federated()).await;
    let credential = world.issue(&call).await.unwrap();
    let token = claims(credential.token.expose());
    assert_eq!((&token["oid"], &token["aud"]), (&json!(PRINCIPAL_ID), &json!("https://storage.azure.com")));
    assert_same_second(expiry(&token), credential.expires_at);
    let identity = CloudIdentity::Azure { tenant: TENANT.parse().unwrap(), client_id: IDENTITY.parse().unwrap() };
    assert_eq!(credential.identity, identity);
    let request = &world.entra.calls().to(ENTRA)[0];
    let assertion = claims(request.form("client_assertion").unwrap());
    assert_eq!(assertion["iss"], json!(world.published.issuer()));
    assert_eq!((&assertion["sub"], &assertion["aud"]), (&json!("carnet:t"), &json!(TOKEN_EXCHANGE)));
    assert_eq!((request.form("grant_type"), request.form("scope")), (Some("client_credentials"), Some(STORAGE)));
}

#[tokio::test(start_paused = true)]
async fn c25_the_exchange_is_the_correlation_id_of_entras_log() {
    let world = World::new().await;
    let call = world.call(world.federated()).await;
    let credential = world.issue(&call).await.unwrap();
    let id = call.exchange_id.to_string();
    let request = &world.entra.calls().to(ENTRA)[0];
    assert_eq!(request.header("client-request-id"), Some(id.as_str()));
    assert_eq!(request.header("return-client-request-id"), Some("true"));
    assert!(credential.upstream.contains(&("entra_correlation_id", id)));
    assert!(credential.upstream.iter().any(|(name, _id)| *name == "entra_request_id"));
    let token = claims(credential.token.expose());
    for (name, claim) in [("azure_uti", "uti"), ("azure_oid", "oid")] {
        assert!(credential.upstream.contains(&(name, token[claim].as_str().unwrap().to_owned())), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn c25_a_refusal_of_entra_keeps_its_ids_whatever_helps_against_it() {
    let world = World::new().await;
    let trace = ("entra_trace_id", "0d7ff3a5-6d3b-4b4c-9a9e-1f2d3c4b5a69".to_owned());
    let correlation = ("entra_correlation_id", "5b1c3a5e-9f0d-4f8b-8a1e-2d3c4b5a6978".to_owned());
    let call = world.call(world.federated()).await;
    for code in [700_016, 50013, 50076, 90055, 90033] {
        world.entra.faults().always(ENTRA, entra_error(StatusCode::BAD_REQUEST, code));
        let failure = world.failure(&call, ENTRA).await;
        assert_eq!(failure.error.upstream(), [correlation.clone(), trace.clone()], "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn c25_the_machines_endpoints_are_told_the_exchange_and_the_new_token_is_named() {
    let world = World::new().await;
    for (source, endpoint) in
        [(imds(&world), IMDS), (app_service(&world, world.machine.identity_header()), "/msi/token")]
    {
        let call = world.call(world.azure(source)).await;
        let credential = world.issue(&call).await.unwrap();
        let asked = world.machine.calls().to(endpoint).pop().unwrap();
        assert_eq!(asked.header("x-ms-client-request-id"), Some(call.exchange_id.to_string().as_str()));
        let token = claims(credential.token.expose());
        let ids = [("azure_uti", &token["uti"]), ("azure_oid", &token["oid"])];
        assert_eq!(credential.upstream, ids.map(|(name, id)| (name, id.as_str().unwrap().to_owned())));
    }
    let stranger = world.call(world.azure(app_service(&world, "another"))).await;
    let failure = world.failure(&stranger, "").await;
    assert!(matches!(failure.error.upstream(), [("managed_identity_correlation_id", _id)]), "{:?}", failure.error);
}

#[tokio::test(start_paused = true)]
async fn a_token_file_is_read_at_each_use_without_the_line_end() {
    let world = World::new().await;
    for end in ["", "\n", "\r\n"] {
        let token = world.cluster_token(|claims| claims["jti"] = json!(end.len()));
        let target = world.token_file(&format!("{token}{end}"));
        world.issue_for(target).await.unwrap();
        let presented = world.entra.calls().to(ENTRA).pop().unwrap();
        assert_eq!(presented.form("client_assertion"), Some(token.as_str()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_file_that_is_missing_or_empty_is_the_brokers_fault_and_calls_nobody() {
    let world = World::new().await;
    let missing = world.azure(AzureSource::TokenFile("/nonexistent/token".into()));
    for target in [missing, world.token_file(""), world.token_file("\n")] {
        let failure = world.failure(&world.call(target).await, ENTRA).await;
        assert_eq!(failure.summary(), (Reason::CloudRefused, Some("token_file"), 0));
        assert!(!format!("{} {:?}", failure.error, failure.error).contains("nonexistent"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_file_that_was_replaced_meanwhile_is_read_again() {
    let world = World::new().await;
    let target = world.token_file(&world.cluster_token(|_claims| {}));
    let call = world.call(target).await;
    world.entra.faults().once(ENTRA, entra_error(StatusCode::UNAUTHORIZED, 700_024));
    world.issue(&call).await.unwrap();
    assert_eq!(world.count(ENTRA), 2);
}

#[tokio::test(start_paused = true)]
async fn an_assertion_that_entra_finds_outdated_is_made_anew() {
    let world = World::new().await;
    world.entra.faults().once(ENTRA, entra_error(StatusCode::UNAUTHORIZED, 700_024));
    world.issue_for(world.federated()).await.unwrap();
    let presented = world.entra.calls().to(ENTRA);
    let assertions = presented.iter().map(|call| call.form("client_assertion").unwrap());
    let [first, second] = assertions.collect::<Vec<_>>()[..] else { panic!("two calls") };
    // RSA signatures are deterministic, so only the same claims would give the same text; these are made in one second.
    assert_eq!(claims(first)["sub"], claims(second)["sub"]);
}

#[tokio::test(start_paused = true)]
async fn on_behalf_of_a_user_the_token_is_the_users() {
    let world = World::new().await;
    let call = world.call_with(world.on_behalf_of(), world.entra.user_token(TENANT, USER), |_ask| {}).await;
    let credential = world.issue(&call).await.unwrap();
    let token = claims(credential.token.expose());
    assert_eq!((&token["oid"], &token["appid"]), (&json!(USER), &json!(BROKER)));
    assert_same_second(expiry(&token), credential.expires_at);
    let request = &world.entra.calls().to(ENTRA)[0];
    assert_eq!(request.form("grant_type"), Some("urn:ietf:params:oauth:grant-type:jwt-bearer"));
    assert_eq!(request.form("requested_token_use"), Some("on_behalf_of"));
    assert_eq!(request.form("assertion"), Some(call.subject_token.as_ref().expect("a token").secret().expose()));
    assert!(request.form("client_secret").is_none());
}

#[tokio::test(start_paused = true)]
async fn the_metadata_service_is_asked_with_its_header_and_for_one_identity() {
    let world = World::new().await;
    let credential = world.issue_for(world.azure(imds(&world))).await.unwrap();
    let token = claims(credential.token.expose());
    assert_eq!((&token["oid"], &token["aud"]), (&json!(PRINCIPAL_ID), &json!("https://storage.azure.com")));
    assert_same_second(expiry(&token), credential.expires_at);
    let request = &world.machine.calls().to(IMDS)[0];
    assert_eq!((request.header("metadata"), request.header("authorization")), (Some("true"), None));
    assert_eq!(
        (request.query("client_id"), request.query("resource")),
        (Some(IDENTITY), Some("https://storage.azure.com"))
    );
    assert_eq!(world.count(ENTRA), 0);
}

#[tokio::test(start_paused = true)]
async fn app_service_is_asked_with_its_secret_header() {
    let world = World::new().await;
    let credential = world.issue_for(world.azure(app_service(&world, world.machine.identity_header()))).await.unwrap();
    assert_same_second(expiry(&claims(credential.token.expose())), credential.expires_at);
    let request = &world.machine.calls().all()[0];
    assert_eq!(request.header("x-identity-header"), Some(world.machine.identity_header()));
    assert_eq!((request.header("metadata"), request.query("api-version")), (None, Some("2019-08-01")));
    let stranger = world.call(world.azure(app_service(&world, "another"))).await;
    let failure = world.failure(&stranger, "").await;
    assert_eq!(failure.summary(), (Reason::CloudRefused, Some("HTTP 401"), 1));
}

#[tokio::test(start_paused = true)]
async fn expires_on_is_taken_as_a_text_and_as_a_number() {
    let world = World::new().await;
    let at = carnet::clock::unix_seconds(world.clock.now()) + 7200;
    for (expires_on, accepted) in [
        (json!(at), true),
        (json!(at.to_string()), true),
        (json!("01/16/2030 5:24:12 AM +00:00"), false),
        (json!(-1), false),
        (json!(""), false),
        (Value::Null, false),
    ] {
        let body = json!({"access_token": "eyJ.eyJ.c2ln", "expires_on": expires_on, "token_type": "Bearer"});
        world.machine.faults().always("", answer(StatusCode::OK, &body));
        let result = world.fresh_clouds().issue(&world.call(world.azure(imds(&world))).await).await;
        match result {
            Ok(credential) => {
                assert!(accepted, "{expires_on}");
                assert_same_second(credential.expires_at, world.clock.now() + 2 * HOUR);
            }
            Err(error) => {
                assert!(!accepted, "{expires_on}");
                assert_eq!(error.code(), Some("malformed_answer"), "{expires_on}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_updating_or_busy_machine_is_asked_again_and_a_refusing_one_is_not() {
    let world = World::new().await;
    let call = world.call(world.azure(imds(&world))).await;
    for (status, reason, code, calls) in [
        (StatusCode::NOT_FOUND, Reason::CloudUnavailable, None, 4),
        (StatusCode::GONE, Reason::CloudUnavailable, None, 4),
        (StatusCode::INTERNAL_SERVER_ERROR, Reason::CloudUnavailable, None, 4),
        (StatusCode::SERVICE_UNAVAILABLE, Reason::CloudUnavailable, None, 4),
        (StatusCode::TOO_MANY_REQUESTS, Reason::RateLimited, None, 4),
        (StatusCode::BAD_REQUEST, Reason::CloudRefused, Some("HTTP 400"), 1),
        (StatusCode::FORBIDDEN, Reason::CloudRefused, Some("HTTP 403"), 1),
    ] {
        world.machine.faults().always("", Fault::status(status));
        assert_eq!(world.failure(&call, IMDS).await.summary(), (reason, code, calls), "{status}");
    }
    world.machine.faults().clear("");
    world.machine.update(1);
    world.issue(&call).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_the_machine_does_not_have_is_refused() {
    let world = World::new().await;
    let source = imds(&world);
    let target = world.azure_with(|azure| {
        azure.source = source;
        azure.client_id = OTHER_OBJECT.parse().unwrap();
    });
    let failure = world.failure(&world.call(target).await, IMDS).await;
    assert_eq!(failure.summary(), (Reason::CloudRefused, Some("invalid_request"), 1));
}

#[tokio::test(start_paused = true)]
async fn a_managed_identity_takes_one_scope_that_names_a_whole_resource() {
    let world = World::new().await;
    for texts in [&["https://storage.azure.com/user_impersonation"][..], &[STORAGE, "https://vault.azure.net/.default"]]
    {
        let scopes = texts.iter().map(|scope| scope.parse().unwrap()).collect();
        let call = world.call(Target { scopes, ..world.azure(imds(&world)) }).await;
        assert_eq!(world.failure(&call, IMDS).await.summary(), (Reason::CloudRefused, Some("scope"), 0));
    }
}

fn imds(world: &World) -> AzureSource {
    AzureSource::ManagedIdentity(ManagedIdentityEndpoint::Imds(world.machine.imds_endpoint().parse().unwrap()))
}

fn app_service(world: &World, header: &str) -> AzureSource {
    let endpoint = world.machine.identity_endpoint().parse().unwrap();
    let header = AppServiceHeader(Secret::new(header));
    AzureSource::ManagedIdentity(ManagedIdentityEndpoint::AppService { endpoint, header })
}

fn expiry(claims: &Value) -> SystemTime {
    carnet::clock::from_unix_seconds(claims["exp"].as_u64().unwrap()).unwrap()
}

//! What Entra's token endpoint refuses: the reason and code that come of it, and how often it is asked.

use carnet::sandbox::SigningKey;

use super::*;

/// A target that Entra refuses, and what was done so that it does.
type Refused = fn(&World) -> Target;

#[tokio::test(start_paused = true)]
async fn c15_every_refusal_of_entra_that_a_wrong_setup_causes_has_its_code() {
    let rows: [(&str, Refused, &str, usize); 14] = [
        (
            "no credential has the issuer",
            |world| retrust(world, "https://other.example", "carnet:t", TOKEN_EXCHANGE),
            "AADSTS700211",
            1,
        ),
        (
            "no credential has the subject, written like this",
            |world| retrust(world, world.published.issuer(), "Carnet:t", TOKEN_EXCHANGE),
            "AADSTS700213",
            1,
        ),
        (
            "no credential has the audience",
            |world| retrust(world, world.published.issuer(), "carnet:t", "api://other"),
            "AADSTS700212",
            1,
        ),
        (
            "a new credential is not known everywhere",
            |world| {
                world.entra.propagate_after(HOUR);
                let target = retrust(world, world.published.issuer(), "carnet:t", TOKEN_EXCHANGE);
                world.entra.propagate_after(Duration::ZERO);
                target
            },
            "AADSTS70021",
            1,
        ),
        (
            "no such client",
            |world| world.azure_with(|azure| azure.client_id = OTHER_OBJECT.parse().unwrap()),
            "AADSTS700016",
            1,
        ),
        (
            "no such tenant",
            |world| world.azure_with(|azure| azure.tenant = OTHER_TENANT.parse().unwrap()),
            "AADSTS90002",
            1,
        ),
        (
            "an unknown key",
            |world| {
                world.published.publish(Vec::new());
                world.federated()
            },
            "AADSTS7000272",
            1,
        ),
        (
            "another key of the same name",
            |world| {
                let forge = |key: &Value| SigningKey::rsa().with_kid(key["kid"].as_str().unwrap()).jwk();
                world.published.publish(world.issuer.jwks()["keys"].as_array().unwrap().iter().map(forge).collect());
                world.federated()
            },
            "AADSTS700027",
            1,
        ),
        (
            "Entra's own token",
            |world| world.token_file(&world.token().audience(TOKEN_EXCHANGE).sign()),
            "AADSTS700222",
            1,
        ),
        (
            "an assertion without iat",
            |world| world.token_file(&world.cluster_token(|claims| claims["iat"] = Value::Null)),
            "AADSTS70023",
            1,
        ),
        (
            "an assertion outside its validity: made again once",
            |world| world.token_file(&world.cluster_token(|claims| claims["exp"] = claims["iat"].clone())),
            "AADSTS700024",
            2,
        ),
        ("no JWT", |world| world.token_file("no jwt"), "AADSTS50027", 1),
        (
            "no such resource",
            |world| Target { scopes: scopes("https://nothing.example/.default"), ..world.federated() },
            "AADSTS500011",
            1,
        ),
        (
            "a scope that is no .default",
            |world| Target { scopes: scopes("https://storage.azure.com/user_impersonation"), ..world.federated() },
            "AADSTS1002012",
            1,
        ),
    ];
    let world = World::new().await;
    for (cause, provoke, code, calls) in rows {
        world.trust_entra();
        let call = world.call(provoke(&world)).await;
        let failure = world.failure(&call, ENTRA).await;
        assert_eq!(failure.summary(), (Reason::CloudRefused, Some(code), calls), "{cause}: {}", failure.error);
    }
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_entra_cannot_reach_is_asked_for_again() {
    let world = World::new().await;
    for endpoint in [DISCOVERY, "/keys"] {
        world.entra.forget_issuer_keys();
        world.published.faults().always(endpoint, Fault::status(StatusCode::INTERNAL_SERVER_ERROR));
        let failure = world.failure(&world.call(world.federated()).await, ENTRA).await;
        assert_eq!(failure.summary(), (Reason::CloudUnavailable, None, 4), "{endpoint}: {}", failure.error);
        world.published.faults().clear(endpoint);
    }
}

#[tokio::test(start_paused = true)]
async fn c15_every_known_code_of_entra_has_its_class() {
    const PERMANENT: [u64; 19] = [
        70021, 700_211, 700_212, 700_213, 7_002_138, 700_222, 70023, 700_027, 7_000_272, 700_016, 700_011, 90002,
        500_011, 50001, 650_057, 70011, 1_002_012, 7_000_113, 999_999,
    ];
    let classes: [(&[u64], Reason, usize); 6] = [
        (&PERMANENT, Reason::CloudRefused, 1),
        (&[700_024], Reason::CloudRefused, 2),
        (&[90061, 50166, 90033, 90024, 90006, 50000], Reason::CloudUnavailable, 4),
        (&[90055, 50196], Reason::RateLimited, 4),
        (&[50013, 500_133], Reason::SubjectTokenExpired, 1),
        (&[65001, 50076, 50079, 50105, 53000, 53001, 53002, 53003, 53004, 70043], Reason::InsufficientClaims, 1),
    ];
    let world = World::new().await;
    let call = world.call(world.federated()).await;
    for (codes, reason, calls) in classes {
        for code in codes {
            world.entra.faults().always(ENTRA, entra_error(StatusCode::BAD_REQUEST, *code));
            let failure = world.failure(&call, ENTRA).await;
            let text = format!("AADSTS{code}");
            let shown = failure.error.code().is_some().then_some(text.as_str());
            assert_eq!(failure.summary(), (reason, shown, calls), "{code}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_code_is_judged_by_its_status() {
    let world = World::new().await;
    let call = world.call(world.federated()).await;
    for (status, reason, code, calls) in [
        (StatusCode::UNAUTHORIZED, Reason::CloudRefused, Some("AADSTS999999"), 1),
        (StatusCode::BAD_GATEWAY, Reason::CloudUnavailable, None, 4),
        (StatusCode::TOO_MANY_REQUESTS, Reason::RateLimited, None, 4),
    ] {
        world.entra.faults().always(ENTRA, entra_error(status, 999_999));
        assert_eq!(world.failure(&call, ENTRA).await.summary(), (reason, code, calls), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_or_untrusted_token_of_a_user_is_the_callers_to_replace() {
    let world = World::new().await;
    let user = || world.entra.user_token(TENANT, USER);
    let stale = world.call_with(world.on_behalf_of(), user(), |_ask| {}).await;
    world.clock.advance(2 * HOUR);
    let failure = world.failure(&stale, ENTRA).await;
    assert_eq!(failure.summary(), (Reason::SubjectTokenExpired, Some("AADSTS500133"), 1));
    let withdrawn = world.call_with(world.on_behalf_of(), user(), |_ask| {}).await;
    let kid = world.entra.kids(TENANT).pop().unwrap();
    world.entra.rotate(TENANT);
    world.entra.withdraw(TENANT, &kid);
    let failure = world.failure(&withdrawn, ENTRA).await;
    assert_eq!(failure.summary(), (Reason::SubjectTokenExpired, Some("AADSTS50013"), 1));
}

#[tokio::test(start_paused = true)]
async fn what_conditional_access_asks_of_a_user_is_relayed() {
    let world = World::new().await;
    world.entra.require_interaction(USER);
    let call = world.call_with(world.on_behalf_of(), world.entra.user_token(TENANT, USER), |_ask| {}).await;
    let failure = world.failure(&call, ENTRA).await;
    assert_eq!(failure.summary(), (Reason::InsufficientClaims, Some("AADSTS50076"), 1));
    let IssueError::InsufficientClaims { claims: Some(claims), .. } = failure.error else { panic!("no claims") };
    let claims: Value = serde_json::from_str(&claims).unwrap();
    assert_eq!(claims["access_token"]["polids"]["essential"], json!(true));
}

#[tokio::test(start_paused = true)]
async fn claims_that_are_no_json_object_are_not_relayed() {
    let world = World::new().await;
    let call = world.call_with(world.on_behalf_of(), world.entra.user_token(TENANT, USER), |_ask| {}).await;
    for claims in [json!("no json"), json!("[1]"), json!(format!("{{\"a\":\"{}\"}}", "x".repeat(3000)))] {
        let body = json!({"error": "interaction_required", "error_codes": [50076], "claims": claims});
        world.entra.faults().always(ENTRA, answer(StatusCode::BAD_REQUEST, &body));
        let failure = world.failure(&call, ENTRA).await;
        assert!(matches!(failure.error, IssueError::InsufficientClaims { claims: None, .. }), "{claims}");
    }
}

/// The identity trusts this assertion only.
fn retrust(world: &World, issuer: &str, subject: &str, audience: &str) -> Target {
    world.entra.register(Identity::managed_identity(TENANT, IDENTITY, PRINCIPAL_ID));
    let credential = FederatedCredential { audience: audience.to_owned(), ..FederatedCredential::new(issuer, subject) };
    world.entra.trust(IDENTITY, credential).unwrap();
    world.federated()
}

fn scopes(scope: &str) -> carnet::target::Scopes {
    [scope.parse().unwrap()].into_iter().collect()
}

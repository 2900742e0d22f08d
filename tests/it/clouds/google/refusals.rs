//! What Google's two services refuse: the reason and code that come of it, and how often they are asked.

use carnet::sandbox::SigningKey;

use super::*;

/// How the world comes to refuse.
type Provoke = fn(&World);

#[tokio::test(start_paused = true)]
async fn every_refusal_of_the_token_service_has_its_reason_and_number_of_calls() {
    const REFUSED: Reason = Reason::CloudRefused;
    let rows: [(&str, Provoke, Reason, Option<&str>, usize); 16] = [
        (
            "another audience is allowed",
            |world| register(world, uploaded(world).allowed_audience("//other")),
            REFUSED,
            Some("invalid_grant"),
            1,
        ),
        (
            "another issuer is trusted",
            |world| register(world, PoolProvider::new(provider(), "https://other.example")),
            REFUSED,
            Some("invalid_grant"),
            1,
        ),
        (
            "stale",
            |world| always(world, sts_error("invalid_grant", "ID Token issued at 1767225600 is stale to sign-in.")),
            REFUSED,
            Some("invalid_grant"),
            1,
        ),
        (
            "other keys were uploaded",
            |world| {
                let keys = json!({"keys": [SigningKey::rsa().jwk()]});
                register(world, world.provider().keys(keys.to_string()));
            },
            REFUSED,
            Some("invalid_grant"),
            1,
        ),
        (
            "the issuer cannot be reached",
            |world| {
                register(world, world.provider());
                world.published.faults().always("", Fault::status(StatusCode::NOT_FOUND));
            },
            Reason::CloudUnavailable,
            None,
            4,
        ),
        (
            "the subject is too long",
            |world| {
                always(
                    world,
                    sts_error(
                        "invalid_grant",
                        "The size of mapped attribute google.subject exceeds the 127 bytes limit. Either modify your \
                         attribute mapping or the incoming assertion to produce a mapped attribute that is less than \
                         127 bytes.",
                    ),
                );
            },
            REFUSED,
            Some("invalid_grant"),
            1,
        ),
        (
            "the provider is disabled",
            |world| register(world, uploaded(world).disabled()),
            REFUSED,
            Some("invalid_target"),
            1,
        ),
        (
            "the provider's name is wrong",
            |world| always(world, sts_error("invalid_request", "Invalid value for \"audience\".")),
            REFUSED,
            Some("invalid_request"),
            1,
        ),
        (
            "the attribute condition is false",
            |world| register(world, uploaded(world).condition(|_claims| false)),
            REFUSED,
            Some("unauthorized_client"),
            1,
        ),
        ("too many exchanges", |world| world.google.throttle_sts(9), Reason::RateLimited, None, 4),
        (
            "too many, with status 400",
            |world| {
                let text = "[Security Token Service] The request was throttled due to rate limit. Please retry after \
                            a few seconds.";
                always(world, sts_error("invalid_request", text));
            },
            Reason::RateLimited,
            None,
            4,
        ),
        (
            "the quota is used up, with status 400",
            |world| always(world, sts_error("quota_exceeded", "")),
            Reason::RateLimited,
            None,
            4,
        ),
        ("unknown scope", |world| always(world, sts_error("invalid_scope", "x")), REFUSED, Some("invalid_scope"), 1),
        ("denied", |world| always(world, sts_error("access_denied", "x")), REFUSED, Some("access_denied"), 1),
        (
            "unavailable",
            |world| always(world, Fault::status(StatusCode::SERVICE_UNAVAILABLE)),
            Reason::CloudUnavailable,
            None,
            4,
        ),
        (
            "no JSON at all",
            |world| always(world, Fault::answer(StatusCode::BAD_REQUEST, &[], "<html>").unwrap()),
            REFUSED,
            Some("HTTP 400"),
            1,
        ),
    ];
    let world = World::new().await;
    for (cause, provoke, reason, code, calls) in rows {
        world.trust_google();
        provoke(&world);
        let failure = world.failure(&world.call(world.google()).await, STS).await;
        assert_eq!(failure.summary(), (reason, code, calls), "{cause}: {}", failure.error);
        assert_eq!(world.count(ACCESS), 0, "{cause}");
        world.recover();
    }
}

#[tokio::test(start_paused = true)]
async fn every_refusal_of_the_impersonation_has_its_reason_and_number_of_calls() {
    const REFUSED: Reason = Reason::CloudRefused;
    let rows: [(&str, Provoke, Reason, Option<&str>, usize); 7] = [
        (
            "no binding",
            |world| world.google.unbind(ACCOUNT, &format!("principalSet:{POOL}/*")),
            REFUSED,
            Some("PERMISSION_DENIED"),
            1,
        ),
        (
            "an argument",
            |world| {
                let text = "Request contains an invalid argument.";
                let fault = iam_error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", text);
                world.google.faults().always(ACCESS, fault);
            },
            REFUSED,
            Some("INVALID_ARGUMENT"),
            1,
        ),
        ("deleted", |world| world.google.delete_service_account(ACCOUNT), REFUSED, Some("NOT_FOUND"), 1),
        ("quota", |world| world.google.throttle_iam_credentials(9), Reason::RateLimited, None, 4),
        (
            "internal",
            |world| world.google.faults().always(ACCESS, Fault::status(StatusCode::INTERNAL_SERVER_ERROR)),
            Reason::CloudUnavailable,
            None,
            4,
        ),
        ("cut", |world| world.google.faults().always(ACCESS, Fault::Drop), Reason::CloudUnavailable, None, 4),
        (
            "a status nobody knows",
            |world| {
                let fault = iam_error(StatusCode::CONFLICT, "no word at all", "x");
                world.google.faults().always(ACCESS, fault);
            },
            REFUSED,
            Some("HTTP 409"),
            1,
        ),
    ];
    let world = World::new().await;
    for (cause, provoke, reason, code, calls) in rows {
        world.trust_google();
        provoke(&world);
        let failure = world.failure(&world.call(world.google()).await, ACCESS).await;
        assert_eq!(failure.summary(), (reason, code, calls), "{cause}: {}", failure.error);
        assert_eq!(world.count(STS), 1, "{cause}");
        world.recover();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_entra_token_is_the_callers_to_replace() {
    let world = World::new().await;
    let entra = PoolProvider::new(provider(), world.entra.issuer(TENANT, TokenVersion::V2)).allowed_audience(BROKER);
    register(&world, entra);
    let target = world.google_with(|google| google.subject_token = GoogleSubjectToken::Entra);
    let call = world.call(target).await;
    world.clock.advance(2 * HOUR);
    let failure = world.failure(&call, STS).await;
    assert_eq!(failure.summary(), (Reason::SubjectTokenExpired, Some("invalid_grant"), 1));
}

fn uploaded(world: &World) -> PoolProvider {
    world.provider().keys(world.issuer.jwks().to_string())
}

fn register(world: &World, provider: PoolProvider) {
    world.google.register_provider(provider).unwrap();
}

fn always(world: &World, fault: Fault) {
    world.google.faults().always(STS, fault);
}

//! What can be wrong with a caller's token, and with the trust that only a token shows.

use std::time::Duration;

use carnet::clock::{Clock as _, SystemClock};
use carnet::sandbox::{EntraToken, TokenVersion};
use carnet::secret::Secret;

use super::world::World;
use super::{Row, check, error, warning};
use crate::support::{AUDIENCE, RUNNER, TENANT};

/// The runner's token, changed.
fn shows(world: &mut World, change: impl FnOnce(EntraToken) -> EntraToken) {
    let token = change(world.broker.runner());
    world.options.subject_token = Some(Secret::new(world.broker.signed(&token)));
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_callers_token_are_named() {
    check(&[
        error(
            "another audience",
            |world| shows(world, |token| token.audience("api://other")),
            "SUBJECT_TOKEN_AUDIENCE",
            "az account get-access-token --scope 'api://carnet/.default'",
        ),
        error(
            "Microsoft Graph's",
            |world| shows(world, |token| token.audience("00000003-0000-0000-c000-000000000000")),
            "SUBJECT_TOKEN_NOT_FOR_US",
            "az account get-access-token --scope 'api://carnet/.default'",
        ),
        error(
            "of another tenant",
            |world| {
                let foreign = world.broker.entra.app_token("21212121-2121-2121-2121-212121212121", RUNNER);
                shows(world, |_token| foreign);
            },
            "SUBJECT_TOKEN_TENANT",
            "entra.tenants",
        ),
        error(
            "expired",
            |world| shows(world, |token| token.issued_at(SystemClock.now() - Duration::from_secs(7200))),
            "SUBJECT_TOKEN_EXPIRED",
            "timedatectl timesync-status",
        ),
        error(
            "v1.0 claims in a v2.0 token",
            |world| shows(world, |token| token.claim("ver", "1.0")),
            "SUBJECT_TOKEN_ISSUER",
            "requestedAccessTokenVersion",
        ),
        warning(
            "too many groups",
            |world| shows(world, EntraToken::overage),
            "GROUPS_OVERAGE",
            "groupMembershipClaims=ApplicationGroup",
        ),
        Row {
            severity: carnet::doctor::Severity::Note,
            ..error("no role", |world| shows(world, |token| token.without("roles")), "denied", "Training.Submit")
        },
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_token_shows_of_the_trust_is_named() {
    check(&[
        error(
            "v1.0 tokens at a provider for v2.0",
            |world| shows(world, |token| token.version(TokenVersion::V1).audience(AUDIENCE)),
            "google_issuer",
            "https://sts.windows.net/11111111-1111-1111-1111-111111111111/",
        ),
        error(
            "a provider for another audience",
            |world| {
                let provider = super::world::ENTRA_PROVIDER;
                let issuer = world.broker.entra.issuer(TENANT, TokenVersion::V2);
                world.register(carnet::sandbox::PoolProvider::new(provider, issuer).allowed_audience("api://other"));
                shows(world, |token| token);
            },
            "google_audience",
            "--allowed-audiences=api://carnet",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_callers_chain_is_tried_to_its_end() {
    let mut world = World::good().await;
    shows(&mut world, |token| token);
    let findings = world.examine().await;
    for target in ["vertex", "azure-ml", "machine", "in-file", "through-entra"] {
        let about = format!("caller, target {target}");
        let found = findings.iter().find(|finding| finding.about == about).expect("a finding");
        assert_eq!(found.severity, carnet::doctor::Severity::Ok, "{about}: {}", found.seen);
    }
    // Marked, and as short as it can be had.
    let calls = world.broker.google.calls().all();
    let bodies: Vec<String> = calls.iter().map(|call| String::from_utf8_lossy(&call.body).into_owned()).collect();
    let asked: Vec<&String> = bodies.iter().filter(|body| body.contains("\"lifetime\"")).collect();
    assert!(!asked.is_empty() && asked.iter().all(|body| body.contains("\"360s\"")), "{asked:?}");
    let reasons = calls.iter().filter_map(|call| call.headers.get("x-goog-request-reason"));
    assert!(reasons.clone().count() > 0);
    assert!(reasons.clone().all(|reason| reason.to_str().is_ok_and(|reason| reason.contains("carnet probe="))));
    world.end().await;
}

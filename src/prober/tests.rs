use axum::Json;
use axum::http::Uri;
use axum::routing::post;
use serde_json::json;
use tonic::transport::Endpoint;
use uuid::Uuid;

use super::*;
use crate::clock::ManualClock;

fn settings() -> Settings {
    Settings {
        authority: "https://login.microsoftonline.com".parse().expect("an endpoint"),
        tenants: vec![Uuid::from_u128(1)],
        audiences: vec!["api://carnet".to_owned()],
        clock_skew: Duration::from_secs(300),
    }
}

fn clock() -> ManualClock {
    ManualClock::at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600))
}

/// With doors that answer every token alike.
fn prober(http: Router) -> Prober {
    let doors = FrontDoors { grpc: None, http: Some(http) };
    let keys = Arc::new(KeyCache::known(Uuid::from_u128(1), "entras-key"));
    Prober { doors, entra: settings(), keys, target: "t".to_owned(), clock: Arc::new(clock()) }
}

fn answering(body: serde_json::Value) -> Router {
    Router::new().route("/v1/token", post(async move || Json(body)))
}

#[tokio::test]
async fn each_fault_alone_is_why_the_checks_refuse_a_token_and_a_door_that_refuses_too_ends_the_round_well() {
    let round = prober(answering(json!({"reason": "SUBJECT_TOKEN_SIGNATURE"}))).round().await.expect("a round");
    assert_eq!(round, Round { refused: 18, ..Round::default() });
}

#[tokio::test]
async fn a_door_that_hands_a_credential_out_or_asks_the_rules_has_taken_the_token() {
    for answer in [json!({"access_token": "t"}), json!({"reason": "DENIED"}), json!({"reason": "CLOUD_REFUSED"})] {
        let round = prober(answering(answer.clone())).round().await.expect("a round");
        assert_eq!((round.taken, round.refused), (9, 9), "{answer}");
    }
}

#[tokio::test]
async fn a_door_that_is_not_well_proves_nothing() {
    for answer in [json!({"reason": "STORE_UNAVAILABLE"}), json!({})] {
        let round = prober(answering(answer.clone())).round().await.expect("a round");
        assert_eq!((round.taken, round.unproven), (0, 9), "{answer}");
    }
}

#[tokio::test]
async fn a_grpc_door_that_nobody_opens_proves_nothing() {
    let closed = tower::service_fn(|_uri: Uri| async {
        Err::<hyper_util::rt::TokioIo<tokio::io::DuplexStream>, _>(std::io::Error::other("closed"))
    });
    let channel = Endpoint::from_static("http://closed").connect_with_connector_lazy(closed);
    let doors = FrontDoors { grpc: Some(channel), http: None };
    let round = Prober { doors, ..prober(Router::new()) }.round().await.expect("a round");
    assert_eq!((round.taken, round.unproven), (0, 18));
}

#[test]
fn only_reasons_that_are_about_the_token_count_as_refused() {
    for reason in Reason::ALL {
        let expected = match reason.as_str() {
            text if text.starts_with("SUBJECT_TOKEN_") => Proof::Refused,
            "KEYS_UNAVAILABLE" | "STORE_UNAVAILABLE" | "RATE_LIMITED" | "SHUTTING_DOWN" | "INTERNAL" => Proof::Unproven,
            _ => Proof::Taken,
        };
        assert_eq!(by_reason(reason.as_str()), expected, "{reason}");
    }
}

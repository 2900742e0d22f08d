//! The gRPC door's own behaviour: health, reflection, deadlines and limits.

use std::time::Duration;

use carnet::proto::{ExchangeRequest, Job, TargetRequest};
use carnet::sandbox::Fault;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt as _;

use crate::support::{Broker, reason, with_broker};

async fn channel(broker: &Broker) -> tonic::transport::Channel {
    tonic::transport::Endpoint::from_shared(broker.grpc_address().to_owned())
        .expect("a URI")
        .connect()
        .await
        .expect("a connection")
}

pub async fn services_by_reflection(broker: &Broker) -> Vec<String> {
    let mut client = ServerReflectionClient::new(channel(broker).await);
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.expect("reflection");
    let answer = answers.into_inner().message().await.expect("an answer").expect("one answer");
    match answer.message_response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            list.service.into_iter().map(|service| service.name).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_is_offered_in_both_versions() {
    with_broker(async |broker| {
        assert!(services_by_reflection(broker).await.contains(&"carnet.v1.TokenExchange".to_owned()));
        let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel(broker).await);
        let symbol = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
            "carnet.v1.TokenExchange".to_owned(),
        );
        let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(symbol) };
        let answers = client.server_reflection_info(tokio_stream::once(request)).await.expect("reflection");
        assert!(answers.into_inner().message().await.expect("an answer").is_some());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_serves_once_ready() {
    with_broker(async |broker| {
        let mut client = HealthClient::new(channel(broker).await);
        for service in ["", "carnet.v1.TokenExchange"] {
            let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await.expect("an answer");
            assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_request_names_its_field() {
    with_broker(async |broker| {
        let target = |name: &str| TargetRequest { target: name.to_owned(), ..Default::default() };
        let base = broker.request(&["vertex"]);
        let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        let access = |audience: &str| TargetRequest { audience: audience.to_owned(), ..target("vertex") };
        let cases: Vec<(&str, ExchangeRequest)> = vec![
            ("targets", ExchangeRequest { targets: vec![], ..base.clone() }),
            (
                "targets",
                ExchangeRequest {
                    targets: (0..17).map(|number| target(&format!("t{number}"))).collect(),
                    ..base.clone()
                },
            ),
            ("targets[1]", ExchangeRequest { targets: vec![target("vertex"), target("vertex")], ..base.clone() }),
            ("targets[0].audience", ExchangeRequest { targets: vec![access("https://x")], ..base.clone() }),
            (
                "targets[0].lifetime",
                ExchangeRequest {
                    targets: vec![TargetRequest { lifetime: negative, ..target("vertex") }],
                    ..base.clone()
                },
            ),
            (
                "targets[0].requested_token_type",
                ExchangeRequest {
                    targets: vec![TargetRequest { requested_token_type: "saml2".to_owned(), ..target("vertex") }],
                    ..base.clone()
                },
            ),
            (
                "targets[0].scopes",
                ExchangeRequest {
                    targets: vec![TargetRequest { scopes: vec!["a b".to_owned()], ..target("vertex") }],
                    ..base.clone()
                },
            ),
            ("job", ExchangeRequest { job: Some(Job { id: "x".repeat(129), ..Default::default() }), ..base.clone() }),
            (
                "job",
                ExchangeRequest {
                    job: Some(Job { id: "a\r\nX-Header: b".to_owned(), ..Default::default() }),
                    ..base.clone()
                },
            ),
            (
                "job.expected_duration",
                ExchangeRequest {
                    job: Some(Job { expected_duration: negative, ..Default::default() }),
                    ..base.clone()
                },
            ),
            (
                "subject_token_type",
                ExchangeRequest {
                    subject_token_type: "urn:ietf:params:oauth:token-type:saml2".to_owned(),
                    ..base.clone()
                },
            ),
        ];
        let expected = cases.len();
        for (field, request) in cases {
            let status = broker.exchange(request).await.err().expect(field);
            assert_eq!(
                (status.code(), reason(&status).as_str()),
                (Code::InvalidArgument, "INVALID_REQUEST"),
                "{field}"
            );
            let details = status.get_error_details();
            assert_eq!(details.bad_request().expect("a BadRequest").field_violations[0].field, field);
        }
        assert!(broker.audit_records().len() >= expected, "every refusal is recorded");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_beyond_the_targets_are_refused() {
    with_broker(async |broker| {
        let mut request = broker.request(&["vertex"]);
        request.targets[0].scopes = vec!["https://www.googleapis.com/auth/devstorage.full_control".to_owned()];
        let status = broker.exchange(request).await.err().expect("refused");
        assert_eq!(reason(&status), "INVALID_REQUEST");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callers_deadline_is_kept_while_the_exchange_goes_on() {
    with_broker(async |broker| {
        broker.google.faults().once("/v1/token", Fault::Delay(Duration::from_millis(500)));
        let mut request = Request::new(broker.request(&["vertex"]));
        request.set_timeout(Duration::from_millis(100));
        let status = broker.client().await.exchange(request).await.err().expect("too late");
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
        let answer = broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        assert!(answer.credentials[0].cached, "the first caller's call was not lost");
        assert_eq!(broker.google.calls().count("/v1/token"), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_beyond_their_limit_are_refused_and_the_connection_lives_on() {
    with_broker(async |broker| {
        let mut client = broker.client().await;
        let huge = ExchangeRequest { subject_token: "x".repeat(1024 * 1024), ..broker.request(&["vertex"]) };
        let status = client.exchange(huge).await.err().expect("refused");
        assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
        let large = ExchangeRequest { subject_token: "x".repeat(65 * 1024), ..broker.request(&["vertex"]) };
        let status = client.exchange(large).await.err().expect("refused");
        assert_eq!(reason(&status), "SUBJECT_TOKEN_MALFORMED");
        client.exchange(broker.request(&["vertex"])).await.expect("a credential");
    })
    .await;
}

/// Who may ask them is anybody, and all that they are told is a name.
#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_take_a_name_and_no_more() {
    with_broker(async |broker| {
        let mut health = HealthClient::new(channel(broker).await);
        let mut v1 = ServerReflectionClient::new(channel(broker).await);
        let mut v1alpha = v1alpha::server_reflection_client::ServerReflectionClient::new(channel(broker).await);
        for (length, is_taken) in [(4000, true), (5000, false)] {
            let name = "x".repeat(length);
            let refused = health.check(HealthCheckRequest { service: name.clone() }).await.expect_err("unknown");
            assert_eq!(refused.code() == Code::NotFound, is_taken, "health, {length}");
            assert_eq!(refused.code() == Code::OutOfRange, !is_taken, "health, {length}");
            // A stream whose message is refused ends without an answer.
            let unanswered = if is_taken { Err(Code::NotFound) } else { Ok(false) };
            let message_request = Some(MessageRequest::FileContainingSymbol(name.clone()));
            let request = v1::ServerReflectionRequest { host: String::new(), message_request };
            let answers = v1.server_reflection_info(tokio_stream::once(request)).await;
            let answer = async { Ok(answers?.into_inner().message().await?.is_some()) }.await;
            assert_eq!(answer.map_err(|status: Status| status.code()), unanswered, "v1, {length}");
            let symbol = v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(name);
            let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(symbol) };
            let answers = v1alpha.server_reflection_info(tokio_stream::once(request)).await;
            let answer = async { Ok(answers?.into_inner().message().await?.is_some()) }.await;
            assert_eq!(answer.map_err(|status: Status| status.code()), unanswered, "v1alpha, {length}");
        }
    })
    .await;
}

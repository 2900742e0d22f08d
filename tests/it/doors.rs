//! Every front door with every outcome: one authorisation path, one reason, one record.

use std::time::{Duration, SystemTime};

use carnet::proto::{ExchangeRequest, OpenLeaseRequest, TargetRequest};
use carnet::sandbox::{EntraToken, Fault};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::holder::try_open;
use crate::support::{Broker, PERSON, RUNNER, Setup, TENANT, reason, with_broker, with_setup};

/// The rules of every set-up, with leases.
const RULES: &str = "
rules:
  - name: training
    targets: [vertex, azure-ml]
    subject: { roles: [Training.Submit] }
    lease: { max_duration: 72h, heartbeat: 5m }
  - name: by-group
    targets: [grouped]
    subject: { groups: [44444444-4444-4444-4444-444444444444] }
    lease: { max_duration: 72h, heartbeat: 5m }
";

/// A change of the good request of the runner for `vertex`, and what every door must answer.
struct Case {
    name: &'static str,
    token: fn(&Broker) -> EntraToken,
    target: &'static str,
    lifetime: Option<&'static str>,
    before: fn(&Broker),
    reason: &'static str,
    code: Code,
    http: (u16, &'static str),
    outcome: &'static str,
}

fn good(name: &'static str) -> Case {
    Case {
        name,
        token: Broker::runner,
        target: "vertex",
        lifetime: None,
        before: |_broker| {},
        reason: "",
        code: Code::Ok,
        http: (200, ""),
        outcome: "issued",
    }
}

fn refused(
    name: &'static str,
    reason: &'static str,
    code: Code,
    http: (u16, &'static str),
    outcome: &'static str,
) -> Case {
    Case { reason, code, http, outcome, ..good(name) }
}

fn subject(name: &'static str, reason: &'static str, token: fn(&Broker) -> EntraToken) -> Case {
    Case { token, ..refused(name, reason, Code::Unauthenticated, (400, "invalid_request"), "denied") }
}

fn denied(name: &'static str, target: &'static str, token: fn(&Broker) -> EntraToken) -> Case {
    Case { target, token, ..refused(name, "DENIED", Code::PermissionDenied, (400, "invalid_target"), "denied") }
}

fn cases() -> Vec<Case> {
    vec![
        good("a credential"),
        denied("no such target", "no-such-target", Broker::runner),
        denied("a target without a rule", "direct", Broker::runner),
        denied("a subject without the role", "vertex", |broker| broker.entra.app_token(TENANT, RUNNER)),
        denied("a path for a target", "../vertex", Broker::runner),
        subject("an expired token", "SUBJECT_TOKEN_EXPIRED", |broker| {
            broker.runner().issued_at(SystemTime::now_for_test() - Duration::from_secs(7200))
        }),
        subject("another audience", "SUBJECT_TOKEN_AUDIENCE", |broker| broker.runner().audience("api://other")),
        subject("another tenant", "SUBJECT_TOKEN_TENANT", |broker| {
            broker.entra.app_token("99999999-9999-9999-9999-999999999999", RUNNER)
        }),
        subject("a Graph token", "SUBJECT_TOKEN_NOT_FOR_US", |broker| broker.runner().header("nonce", "x")),
        subject("a duplicate claim", "SUBJECT_TOKEN_MALFORMED", |broker| broker.runner().claim("TID", TENANT)),
        subject("a key that nobody knows", "SUBJECT_TOKEN_SIGNATURE", |broker| {
            broker.runner().header("kid", "unknown")
        }),
        Case {
            target: "grouped",
            token: |broker| broker.entra.user_token(TENANT, PERSON).overage(),
            ..refused("too many groups", "GROUPS_OVERAGE", Code::FailedPrecondition, (400, "invalid_request"), "denied")
        },
        Case {
            lifetime: Some("0s"),
            ..refused("no lifetime", "INVALID_REQUEST", Code::InvalidArgument, (400, "invalid_request"), "denied")
        },
        Case {
            before: |broker| {
                broker.google.faults().always("/v1/token", Fault::status(http::StatusCode::SERVICE_UNAVAILABLE))
            },
            ..refused(
                "Google is away",
                "CLOUD_UNAVAILABLE",
                Code::Unavailable,
                (503, "temporarily_unavailable"),
                "failed",
            )
        },
        Case {
            before: |broker| broker.google.throttle_sts(100),
            ..refused(
                "Google throttles",
                "RATE_LIMITED",
                Code::ResourceExhausted,
                (429, "temporarily_unavailable"),
                "failed",
            )
        },
        Case {
            before: |broker| broker.google.delete_service_account(crate::support::TRAINER),
            ..refused("no such account", "CLOUD_REFUSED", Code::FailedPrecondition, (400, "invalid_target"), "failed")
        },
    ]
}

trait Now {
    fn now_for_test() -> Self;
}

impl Now for SystemTime {
    fn now_for_test() -> Self {
        carnet::clock::Clock::now(&carnet::clock::SystemClock)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn i14_i32_every_door_gives_every_outcome_the_same_reason_and_exactly_one_record() {
    for case in cases() {
        with_setup(Setup { rules: Some(RULES), ..Setup::default() }, async |broker| {
            (case.before)(broker);
            let through_grpc = grpc(broker, &case).await;
            let through_lease = lease(broker, &case).await;
            let through_http = http(broker, &case).await;
            assert_eq!(through_grpc, (case.code, case.reason.to_owned()), "{} over gRPC", case.name);
            assert_eq!(through_lease, through_grpc, "{} with a lease", case.name);
            let (status, word) = case.http;
            assert_eq!(through_http, (status, word.to_owned(), case.reason.to_owned()), "{} over HTTP", case.name);
            let records = broker.audit_records();
            let seen: Vec<_> = records
                .iter()
                .map(|record| {
                    let door = (record.attributes["door"].as_str(), record.action.as_str());
                    (door, record.outcome.as_str(), record.reason.as_str())
                })
                .collect();
            let doors = [("grpc", "exchange"), ("grpc", "lease.open"), ("http", "exchange")];
            assert_eq!(seen, doors.map(|door| (door, case.outcome, case.reason)), "{}", case.name);
        })
        .await;
    }
}

async fn grpc(broker: &Broker, case: &Case) -> (Code, String) {
    let lifetime = case.lifetime.map(|_zero| prost_types::Duration::default());
    let request = ExchangeRequest {
        subject_token: broker.signed(&(case.token)(broker)),
        targets: vec![TargetRequest { target: case.target.to_owned(), lifetime, ..Default::default() }],
        ..Default::default()
    };
    match broker.exchange(request).await {
        Ok(_answer) => (Code::Ok, String::new()),
        Err(status) => (status.code(), reason(&status)),
    }
}

async fn lease(broker: &Broker, case: &Case) -> (Code, String) {
    let lifetime = case.lifetime.map(|_zero| prost_types::Duration::default());
    let request = OpenLeaseRequest {
        subject_token: broker.signed(&(case.token)(broker)),
        targets: vec![TargetRequest { target: case.target.to_owned(), lifetime, ..Default::default() }],
        ..Default::default()
    };
    match try_open(broker, request).await {
        Ok(_answer) => (Code::Ok, String::new()),
        Err(status) => (status.code(), reason(&status)),
    }
}

async fn http(broker: &Broker, case: &Case) -> (u16, String, String) {
    let token = broker.signed(&(case.token)(broker));
    let fields =
        [("audience", case.target), ("subject_token", &token), ("lifetime", case.lifetime.unwrap_or_default())];
    let (status, body) = broker.token(&fields).await;
    let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    assert_eq!(text("exchange_id").len(), 36, "{}: {body}", case.name);
    (status, text("error"), text("reason"))
}

/// A new door must be added here, and to the cases above if it gives credentials.
#[tokio::test(flavor = "multi_thread")]
async fn i14_there_are_no_other_doors() {
    with_broker(async |broker| {
        let mut services = crate::grpc::services_by_reflection(broker).await;
        services.sort();
        assert_eq!(
            services,
            ["carnet.v1.Leases", "carnet.v1.Operator", "carnet.v1.TokenExchange", "grpc.health.v1.Health"],
            "gRPC services besides reflection itself"
        );
    })
    .await;
    let source = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/oauth.rs")).expect("the source");
    let paths: Vec<&str> = source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(
        paths,
        [
            "/v1/token",
            "/v1/introspect",
            "/.well-known/openid-configuration",
            "/.well-known/oauth-authorization-server",
            "/keys",
            "/healthz",
            "/readyz",
            "/metrics",
        ]
    );
}

/// One target for each reason that a policy can have.
const REASONS: &str = "  unlisted: { google: { audience: '//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/carnet' } }
rules:
  - name: others-role
    targets: [vertex]
    subject: { roles: [Other] }
    lease: { max_duration: 1h, heartbeat: 5m }
  - name: condition-is-false
    targets: [direct]
    when: job.id == 'another'
  - name: condition-fails
    targets: [handed-out]
    when: job.labels.owner == 'me'
  - name: everybody
    targets: [grouped, azure-ml]
    when: 'true'
    lease: { max_duration: 1h, heartbeat: 5m }
  - name: no-runners
    targets: [grouped]
    subject: { roles: [Training.Submit] }
    deny: true
  - name: nobody-knows
    targets: [azure-ml]
    when: job.labels.owner == 'me'
    deny: true
";

const REASONS_OF: [&str; 8] =
    ["no-such-target", "../vertex", "unlisted", "vertex", "direct", "handed-out", "grouped", "azure-ml"];

#[tokio::test(flavor = "multi_thread")]
async fn i13_whatever_reason_a_policy_has_each_door_answers_the_same_bytes() {
    with_setup(Setup { rules: Some(REASONS), ..Setup::default() }, async |broker| {
        let [mut exchanged, mut opened, mut posted] = [const { Vec::new() }; 3];
        for target in REASONS_OF {
            let refused = broker.exchange(broker.request(&[target])).await.err().expect("denied");
            exchanged.push(bytes(&refused));
            let refused = try_open(broker, crate::holder::opening(broker, &[target])).await.err().expect("denied");
            opened.push(bytes(&refused));
            posted.push(posted_bytes(broker, target).await);
        }
        for answers in [exchanged, opened, posted] {
            assert!(answers[0].contains("DENIED"), "{}", answers[0]);
            assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
        }
        // Why, is on record, where it takes a permission to read it.
        let denials: std::collections::BTreeSet<String> =
            broker.audit_records().iter().map(|record| record.attributes["denial"].clone()).collect();
        assert_eq!(denials.len(), 4, "{denials:?}");
    })
    .await;
}

/// Everything that a gRPC client sees of a refusal, but for its id.
fn bytes(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    let id = details.error_info().map(|info| info.metadata["exchange_id"].clone()).unwrap_or_default();
    let mut metadata: Vec<String> = status.metadata().keys().map(|key| format!("{key:?}")).collect();
    metadata.sort();
    let details = String::from_utf8_lossy(status.details()).replace(&id, "ID");
    format!("{:?} {} {details} {metadata:?}", status.code(), status.message())
}

async fn posted_bytes(broker: &Broker, target: &str) -> String {
    let token = broker.signed(&broker.runner());
    let form = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ("subject_token", token.as_str()),
        ("audience", target),
    ];
    let call = reqwest::Client::new().post(format!("{}/v1/token", broker.http)).form(&form);
    let answer = call.send().await.expect("an answer");
    let status = answer.status();
    let mut headers: Vec<String> = answer
        .headers()
        .iter()
        .filter(|(name, _value)| *name != reqwest::header::DATE)
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    headers.sort();
    let body = answer.text().await.expect("a body");
    let json: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let id = json["exchange_id"].as_str().expect("an id").to_owned();
    format!("{status} {headers:?} {}", body.replace(&id, "ID"))
}

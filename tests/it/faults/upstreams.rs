//! What the clouds' services do wrong, each of them at each service.

use carnet::clock::ManualClock;
use carnet::sandbox::{AssignedIdentity, Fault, Faults, ManagedIdentity};
use http::StatusCode;
use tokio::time::{Instant, sleep};

use super::*;
use crate::hurry::Hurry;
use crate::support::{ML, PERSON, Setup, free_port};

/// A service that is called for a credential.
struct Upstream {
    target: &'static str,
    /// The end of its path.
    endpoint: &'static str,
    /// As records call it.
    hop: &'static str,
    /// Empty: an access token.
    id_token_audience: &'static str,
}

struct Case {
    name: &'static str,
    fault: Fault,
    lasts: Lasts,
    becomes: Becomes,
}

#[derive(Clone, Copy)]
enum Lasts {
    OneCall,
    UntilItIsMended,
}

/// What becomes of a call meanwhile.
enum Becomes {
    Served,
    /// And what its record says.
    Refused(Seen, &'static str),
}

fn cases() -> Vec<Case> {
    use Lasts::{OneCall, UntilItIsMended};

    let case = |name, lasts, fault, becomes| Case { name, fault, lasts, becomes };
    let status = |status, wait: Option<&str>| {
        let headers: Vec<_> = wait.map(|wait| ("retry-after", wait)).into_iter().collect();
        Fault::answer(status, &headers, "").expect("an answer")
    };
    let away = |why| Becomes::Refused(Seen::cloud_unavailable(), why);
    let throttled =
        |wait| Becomes::Refused(Seen::new(Code::ResourceExhausted, "RATE_LIMITED", wait), "is asked too often");
    let (busy, down) = (StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE);
    let error = StatusCode::INTERNAL_SERVER_ERROR;
    let page = "<html>Sign in to the network</html>";
    let page = Fault::answer(StatusCode::OK, &[("content-type", "text/html")], page).expect("an answer");
    let late = "no whole answer within";
    vec![
        // First those that cost retries: there is a budget for them.
        case("500, once", OneCall, status(error, None), Becomes::Served),
        case("a reset, once", OneCall, Fault::Reset, Becomes::Served),
        case("429 for a second, once", OneCall, status(busy, Some("1")), Becomes::Served),
        case("a page, once", OneCall, page.clone(), Becomes::Served),
        case("a delay", UntilItIsMended, Fault::Delay(SECOND), Becomes::Served),
        case("jitter", UntilItIsMended, Fault::Jitter(SECOND), Becomes::Served),
        case("another content type", UntilItIsMended, Fault::ContentType("text/html".to_owned()), Becomes::Served),
        case("a long delay", UntilItIsMended, Fault::Delay(60 * SECOND), away(late)),
        case("silence", UntilItIsMended, Fault::Silence, away(late)),
        case("a slow body", UntilItIsMended, Fault::SlowBody(SECOND), away(late)),
        case("an endless body", UntilItIsMended, Fault::EndlessBody, away("the answer is larger than")),
        case("429", UntilItIsMended, status(busy, None), throttled(SECOND)),
        case("429 for a minute", UntilItIsMended, status(busy, Some("60")), throttled(60 * SECOND)),
        case("500", UntilItIsMended, status(error, None), away("HTTP 500")),
        case("503", UntilItIsMended, status(down, None), away("HTTP 503")),
        case(
            "503 for a minute",
            UntilItIsMended,
            status(down, Some("60")),
            Becomes::Refused(Seen::new(Code::Unavailable, "CLOUD_UNAVAILABLE", 60 * SECOND), "HTTP 503"),
        ),
        case("no answer", UntilItIsMended, Fault::Drop, away("the connection broke")),
        case("a reset", UntilItIsMended, Fault::Reset, away("the connection broke")),
        case("a cut body", UntilItIsMended, Fault::Truncate, away("the connection broke")),
        case("half of the JSON", UntilItIsMended, Fault::Halve, away("HTTP 200 without JSON")),
        case("a page", UntilItIsMended, page, away("HTTP 200 without JSON")),
    ]
}

/// All cases one after the other, in virtual time. A call is answered within its deadline and recorded; whoever has a
/// cached credential notices nothing; and after the wait that a caller is told, at most ten seconds, it is over.
async fn is_survived(upstream: &Upstream, broker: &Broker, clock: &ManualClock, faults: &Faults) {
    upstream.ask(broker, 0).await.expect("a credential");
    let mut wrong = Vec::new();
    for (number, case) in (1..).zip(cases()) {
        let mut expect = |held: bool, what: String| {
            if !held {
                wrong.push(format!("{}: {what}", case.name));
            }
        };
        match case.lasts {
            Lasts::OneCall => faults.once(upstream.endpoint, case.fault),
            Lasts::UntilItIsMended => faults.always(upstream.endpoint, case.fault),
        }
        let began = Instant::now();
        let answer = upstream.ask(broker, number).await;
        expect(began.elapsed() < 10 * SECOND, format!("answered after {:?}", began.elapsed()));
        let cached = upstream.ask(broker, 0).await;
        expect(
            cached.as_ref().is_ok_and(|answer| answer.credentials[0].cached),
            format!("cached: {:?}", cached.as_ref().err()),
        );
        let records = recorded(broker, &answer);
        let [record] = records.as_slice() else { panic!("{}: {} records", case.name, records.len()) };
        match (&answer, case.becomes) {
            (Ok(_), Becomes::Served) => expect(record.outcome == "issued", format!("recorded as {}", record.outcome)),
            (Err(status), Becomes::Refused(seen, says)) => {
                expect(Seen::of(status) == seen, format!("{status:?}"));
                expect(status.message().contains(says), format!("said: {}", status.message()));
                let found = (record.outcome.as_str(), record.reason.as_str(), record.attributes["cloud_hop"].as_str());
                expect(found == ("failed", &seen.reason, upstream.hop), format!("recorded as {found:?}"));
                expect(record.attributes["error"].contains(says), record.attributes["error"].clone());
                expect(record.token_sha256.is_empty(), "a token is on record".to_owned());
            }
            (answer, _) => expect(false, format!("{:?}", answer.as_ref().err())),
        }
        faults.clear(upstream.endpoint);
        let wait = answer.as_ref().err().and_then(|status| Seen::of(status).wait).unwrap_or_default();
        clock.advance(wait.min(10 * SECOND));
        sleep(wait.min(10 * SECOND)).await;
        let after = upstream.ask(broker, number).await;
        expect(after.is_ok(), format!("afterwards: {:?}", after.as_ref().err()));
    }
    assert!(wrong.is_empty(), "{}: {wrong:#?}", upstream.endpoint);
}

impl Upstream {
    const fn access(target: &'static str, endpoint: &'static str, hop: &'static str) -> Self {
        Self { target, endpoint, hop, id_token_audience: "" }
    }

    async fn ask(&self, broker: &Broker, number: u32) -> Result<ExchangeResponse, Status> {
        let mut request = broker.request_with(&somebody(broker, number), &[self.target]);
        if !self.id_token_audience.is_empty() {
            request.targets[0].requested_token_type = "urn:ietf:params:oauth:token-type:id_token".to_owned();
            request.targets[0].audience = self.id_token_audience.to_owned();
        }
        broker.exchange(request).await
    }
}

/// A target that takes the identity of this machine; `endpoint` is a line's end, or nothing.
fn machine_target(endpoint: &str) -> &'static str {
    let azure = format!("tenant: {TENANT}, client_id: {ML}, source: managed_identity{endpoint}");
    format!("  machine: {{ azure: {{ {azure}, scopes: [https://ml.azure.com/.default] }} }}\n").leak()
}

const ALSO_FOR_THE_MACHINE: &str = "
rules:
  - name: training
    targets: [vertex, direct, azure-ml, machine]
    subject: { roles: [Training.Submit] }
    max_lifetime: 1h
";

async fn machine(broker: &Broker, port: u16) -> ManagedIdentity {
    let machine = ManagedIdentity::start_on(port, &broker.entra, TENANT).await.expect("a port");
    machine.assign(AssignedIdentity {
        client_id: ML.to_owned(),
        object_id: PERSON.to_owned(),
        resource_id: "/subscriptions/s/userAssignedIdentities/ml".to_owned(),
    });
    machine
}

/// A broker in virtual time.
fn setup(clock: &ManualClock, port: u16) -> Setup {
    Setup {
        clock: Some(clock.clone()),
        rules: Some(ALSO_FOR_THE_MACHINE),
        targets: machine_target(&format!(", endpoint: 'http://127.0.0.1:{port}'")),
        in_memory: true,
        ..Setup::default()
    }
}

async fn at(upstream: Upstream, faults: impl Fn(&Broker) -> Faults) {
    let (_hurry, clock) = (Hurry::start(), ManualClock::start());
    let broker = Broker::start_for(setup(&clock, free_port())).await;
    is_survived(&upstream, &broker, &clock, &faults(&broker)).await;
    broker.no_secret_was_left_behind();
}

#[tokio::test(start_paused = true)]
async fn whatever_googles_token_service_does_is_survived() {
    let upstream = Upstream::access("direct", "/v1/token", "google_sts");
    at(upstream, |broker| broker.google.faults().clone()).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_generate_access_token_does_is_survived() {
    let upstream = Upstream::access("vertex", ":generateAccessToken", "google_iam_credentials");
    at(upstream, |broker| broker.google.faults().clone()).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_generate_id_token_does_is_survived() {
    let upstream = Upstream::access("vertex", ":generateIdToken", "google_iam_credentials");
    let upstream = Upstream { id_token_audience: "https://service.example.com", ..upstream };
    at(upstream, |broker| broker.google.faults().clone()).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_entras_token_endpoint_does_is_survived() {
    let upstream = Upstream::access("azure-ml", "/oauth2/v2.0/token", "entra_token");
    at(upstream, |broker| broker.entra.faults().clone()).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_the_metadata_service_does_is_survived() {
    let (_hurry, clock, port) = (Hurry::start(), ManualClock::start(), free_port());
    let broker = Broker::start_for(setup(&clock, port)).await;
    let machine = machine(&broker, port).await;
    let upstream = Upstream::access("machine", "/metadata/identity/oauth2/token", "managed_identity");
    is_survived(&upstream, &broker, &clock, machine.faults()).await;
    broker.no_secret_was_left_behind();
}

#[tokio::test(start_paused = true)]
async fn whatever_app_service_does_is_survived() {
    let (_hurry, clock) = (Hurry::start(), ManualClock::start());
    let first = Broker::start_for(setup(&clock, free_port())).await;
    let machine = machine(&first, free_port()).await;
    let environment = vec![
        ("IDENTITY_ENDPOINT", machine.identity_endpoint()),
        ("IDENTITY_HEADER", machine.identity_header().to_owned()),
    ];
    let (original, targets) = (Some(first.original()), machine_target(""));
    let broker =
        Broker::start_for(Setup { replica_of: original, environment, targets, ..setup(&clock, free_port()) }).await;
    broker.is_secret(machine.identity_header());
    let upstream = Upstream::access("machine", "/msi/token", "managed_identity");
    is_survived(&upstream, &broker, &clock, machine.faults()).await;
    broker.no_secret_was_left_behind();
}

#[tokio::test(start_paused = true)]
async fn a_service_that_failed_twenty_times_is_left_alone_for_five_seconds_and_then_serves_with_the_next_call() {
    let (_hurry, clock) = (Hurry::start(), ManualClock::start());
    let broker = Broker::start_for(setup(&clock, free_port())).await;
    let upstream = Upstream::access("direct", "/v1/token", "google_sts");
    upstream.ask(&broker, 0).await.expect("a credential");
    broker.google.faults().always(upstream.endpoint, Fault::Reset);
    let mut last = None;
    for number in 1..=30 {
        last = upstream.ask(&broker, number).await.err();
    }
    let calls = broker.google.calls().count(upstream.endpoint);
    let last = last.expect("refused");
    assert!(last.message().contains("it failed many times in a row"), "{last:?}");
    let wait = Seen::of(&last).wait.expect("a wait");
    assert!(wait <= 5 * SECOND, "{wait:?}");
    assert!(upstream.ask(&broker, 0).await.expect("a credential").credentials[0].cached);
    broker.google.faults().clear(upstream.endpoint);
    assert_eq!(Seen::of(&upstream.ask(&broker, 31).await.err().expect("left alone")).reason, "CLOUD_UNAVAILABLE");
    assert_eq!(broker.google.calls().count(upstream.endpoint), calls);
    sleep(5 * SECOND).await;
    upstream.ask(&broker, 32).await.expect("with the next call");
    broker.no_secret_was_left_behind();
}

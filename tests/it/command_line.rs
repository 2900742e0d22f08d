//! The program itself: the first command of the README, exit codes and what it prints.

use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use crate::process::serve;
use crate::support::{Broker, with_broker};

pub fn carnet(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carnet"));
    command
        .args(arguments)
        .env_remove("CARNET_ADDRESS")
        .env_remove("CARNET_SUBJECT_TOKEN")
        .env_remove("CARNET_SUBJECT_TOKEN_FILE")
        .env_remove("CARNET_OPERATOR_TOKEN")
        .env_remove("CARNET_OPERATOR_TOKEN_FILE")
        .env_remove("CARNET_SUBJECT_SOURCE")
        .env_remove("CARNET_AUDIENCE")
        .env_remove("AZURE_FEDERATED_TOKEN_FILE")
        .env_remove("IDENTITY_ENDPOINT")
        .env_remove("MSI_SECRET")
        .env_remove("AZURE_POD_IDENTITY_AUTHORITY_HOST")
        .env_remove("CARNET_LEASE_TOKEN")
        .env_remove("CARNET_LEASE_TOKEN_FILE")
        .stdin(Stdio::null());
    command
}

pub async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().expect("a run")).await.expect("no panic")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_shows_both_credentials_and_ends() {
    let output = run(carnet(&["sandbox", "--once"])).await;
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for expected in ["vertex-training", "azure-ml", "trainer@ml-sandbox.iam.gserviceaccount.com", "requested", "cloud"]
    {
        assert!(shown.contains(expected), "{expected} is not in\n{shown}");
    }
}

async fn exchange(broker: &Broker, arguments: &[&str], token: Option<&str>) -> Output {
    let mut command = carnet(&["exchange", "--address", broker.grpc_address()]);
    command.args(arguments);
    if let Some(token) = token {
        command.env("CARNET_SUBJECT_TOKEN", token);
    }
    run(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_prints_its_result_in_three_forms() {
    with_broker(async |broker| {
        let token = broker.signed(&broker.runner());
        let output = exchange(
            broker,
            &["--target", "vertex", "--target", "azure-ml", "--job-id", "run-1", "--duration", "9h"],
            Some(&token),
        )
        .await;
        let json: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
        assert_eq!(
            (json["credentials"][0]["lifetime"]["bound"].as_str(), json["credentials"][1]["target"].as_str()),
            (Some("rule"), Some("azure-ml"))
        );
        let output = exchange(broker, &["--target", "vertex", "--output", "token"], Some(&token)).await;
        let issued = text(&output.stdout);
        assert!(broker.google.check(issued.trim()).is_some());
        let output = exchange(broker, &["--target", "vertex", "--output", "env"], Some(&token)).await;
        assert!(text(&output.stdout).starts_with("export CLOUDSDK_AUTH_ACCESS_TOKEN='ya29."));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_who_has_to_act() {
    with_broker(async |broker| {
        let good = broker.signed(&broker.runner());
        let other = broker.signed(&broker.runner().audience("api://other"));
        for (arguments, token, code, said) in [
            (&["--target", "vertex"][..], Some(good.as_str()), 0, ""),
            (&["--target", "no-such-target"], Some(&good), 3, "denied (DENIED, exchange "),
            (&["--target", "vertex"], Some(&other), 4, "SUBJECT_TOKEN_AUDIENCE"),
            (&["--target", "vertex"], None, 2, "no subject token"),
            (&["--target", "vertex", "--duration", "soon"], Some(&good), 2, "a duration is a whole number"),
            (&[], Some(&good), 2, "--target"),
            (&["--target", "vertex", "--address", "http://127.0.0.1:1"], Some(&good), 5, "is it running"),
            (&["--target", "vertex", "--address", "http://example.com"], Some(&good), 2, "must start with https://"),
        ] {
            let mut command = carnet(&["exchange"]);
            command.args(arguments).envs(token.map(|token| ("CARNET_SUBJECT_TOKEN", token)));
            if !arguments.contains(&"--address") {
                command.env("CARNET_ADDRESS", broker.grpc_address());
            }
            let output = run(command).await;
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
            assert!(text(&output.stderr).contains(said), "{arguments:?}: {}", text(&output.stderr));
            assert!(!text(&output.stderr).contains(good.rsplit('.').next().expect("a signature")));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_checked_and_its_schema_and_keys_are_printed() {
    with_broker(async |broker| {
        let path = broker.config_path();
        let file = path.to_str().expect("a path");
        let output = run(carnet(&["config", "check", file])).await;
        assert!(output.status.success() && text(&output.stdout).contains("good (5 targets)"));
        let bad = broker.folder.path().join("bad.yaml");
        std::fs::write(&bad, "entra: { tenants: [], audiences: [api://x], extra: 1 }\n").expect("written");
        let output = run(carnet(&["config", "check", bad.to_str().expect("a path")])).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("line 1: entra.extra"), "{}", text(&output.stderr));
        let schema = run(carnet(&["config", "schema"])).await;
        assert!(serde_json::from_slice::<serde_json::Value>(&schema.stdout).is_ok());
        let jwks = run(carnet(&["issuer", "jwks", "--config", file])).await;
        let printed: serde_json::Value = serde_json::from_slice(&jwks.stdout).expect("JSON");
        let served: serde_json::Value =
            reqwest::get(format!("{}/keys", broker.http)).await.expect("an answer").json().await.expect("JSON");
        assert_eq!(printed, served);
    })
    .await;
}

/// SIGHUP reloads, SIGTERM drains: through the real process.
#[tokio::test(flavor = "multi_thread")]
async fn the_process_heeds_its_signals() {
    with_broker(async |broker| {
        let mut process = serve(broker, "", "off").await;
        let path = process.log.clone();
        let log = || std::fs::read_to_string(&path).unwrap_or_default();
        signal("HUP", process.child.id());
        crate::support::eventually("the reload", async || log().contains("loaded anew")).await;
        signal("TERM", process.child.id());
        let status =
            tokio::task::spawn_blocking(move || process.child.wait()).await.expect("no panic").expect("an end");
        assert!(status.success());
        assert!(log().contains("ended"), "{}", log());
    })
    .await;
}

pub fn signal(name: &str, process: u32) {
    let sent = Command::new("kill").args([format!("-{name}"), process.to_string()]).status().expect("a signal");
    assert!(sent.success());
}

/// A collector that keeps what it is sent: OTLP over gRPC is HTTP/2 with a fixed path.
#[tokio::test(flavor = "multi_thread")]
async fn traces_reach_a_collector_with_every_stage_and_without_a_token() {
    with_broker(async |broker| {
        let received = Arc::new(Mutex::new(Vec::<u8>::new()));
        let keep = received.clone();
        let export = async move |body: axum::body::Bytes| {
            keep.lock().expect("no panic").extend_from_slice(&body);
            // An empty message, and a good end.
            let trailers = [("content-type", "application/grpc"), ("grpc-status", "0")];
            (trailers, vec![0u8; 5])
        };
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        let collector = axum::Router::new().route(path, axum::routing::post(export));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let otlp = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, collector).await });

        let mut process = serve(broker, &format!("telemetry: {{ otlp: 'http://{otlp}' }}"), "off").await;
        let token = broker.signed(&broker.runner());
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("audience", "no-such-target"),
            ("subject_token", &token),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ];
        let answer = reqwest::Client::new()
            .post(format!("{}/v1/token", process.http))
            .form(&form)
            .send()
            .await
            .expect("an answer");
        let id =
            answer.json::<serde_json::Value>().await.expect("JSON")["exchange_id"].as_str().expect("an id").to_owned();
        signal("TERM", process.child.id());
        let status =
            tokio::task::spawn_blocking(move || process.child.wait()).await.expect("no panic").expect("an end");
        assert!(status.success());
        let bytes = received.lock().expect("no panic").clone();
        let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        for expected in ["exchange", "verify", "record", &id] {
            assert!(holds(expected), "{expected} is in no span");
        }
        assert!(!holds(token.rsplit('.').next().expect("a signature")), "a token is in a span");
    })
    .await;
}

//! kubectl: the plugin protocol, and a real kubectl against a stand-in of an API server.

use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::http::HeaderMap;
use carnet::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

use super::server::Server;
use super::{as_runner, credential, has, run_with, token_of, with_tools};
use crate::command_line::{run, text};

fn info(version: &str) -> String {
    let version = format!("client.authentication.k8s.io/{version}");
    json!({"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": false}}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_is_an_exec_credential_of_the_version_that_was_asked() {
    with_tools(async |broker| {
        let token = token_of(broker, "vertex").await;
        let now = jiff::Timestamp::try_from(SystemClock.now()).expect("a time");
        for version in ["v1", "v1beta1"] {
            let mut command = credential(broker, &["kubectl"]);
            command.env("CARNET_TARGET", "vertex").env("KUBERNETES_EXEC_INFO", info(version));
            let output = run_with(command, "").await;
            assert_eq!(text(&output.stderr), "");
            let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(answer["apiVersion"], format!("client.authentication.k8s.io/{version}"));
            assert_eq!((&answer["kind"], &answer["status"]["token"]), (&json!("ExecCredential"), &json!(token)));
            let expiry = answer["status"]["expirationTimestamp"].as_str().expect("a time");
            assert!(expiry.parse::<jiff::Timestamp>().is_ok_and(|time| time > now), "{expiry}");
        }
        for (target, version, code, said) in [
            ("vertex", "v1alpha1", 1, "asks for another version"),
            ("no-such-target", "v1", 3, "denied (DENIED, exchange "),
        ] {
            let mut command = credential(broker, &["kubectl", "--target", target]);
            command.env("KUBERNETES_EXEC_INFO", info(version));
            let output = run_with(command, "").await;
            assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(code), ""));
            assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_shows_the_api_server_the_targets_token() {
    if !has("kubectl") {
        return;
    }
    with_tools(async |broker| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let keep = seen.clone();
        let api = async move |headers: HeaderMap| {
            let shown = headers.get("authorization").map(|value| value.to_str().expect("text").to_owned());
            keep.lock().expect("no panic").push(shown.unwrap_or_default());
            axum::Json(json!({"major": "1", "minor": "33"}))
        };
        let server = Server::start(axum::Router::new().fallback(api)).await;
        let home = tempfile::tempdir().expect("a folder");
        let ca = home.path().join("ca.crt");
        server.write_certificate(&ca);
        // The first kubectl that knows v1 is 1.22.
        let versions: &[&str] = if minor_version().await < 22 { &["v1beta1"] } else { &["v1", "v1beta1"] };
        let pairs = ["vertex", "azure-ml"].into_iter().flat_map(|target| versions.iter().map(move |v| (target, v)));
        for (target, version) in pairs {
            let printed = run(credential(broker, &["kubectl", "--target", target, "--kubeconfig-user", "me"])).await;
            let user = text(&printed.stdout).replace("k8s.io/v1\n", &format!("k8s.io/{version}\n"));
            let config = format!(
                "\
apiVersion: v1
kind: Config
clusters:
  - name: c
    cluster: {{ server: 'https://{host}', certificate-authority: '{ca}' }}
contexts:
  - name: x
    context: {{ cluster: c, user: me }}
current-context: x
{user}",
                host = server.host(),
                ca = ca.display(),
            );
            let kubeconfig = home.path().join("config");
            std::fs::write(&kubeconfig, config).expect("written");
            let mut command = Command::new("kubectl");
            command.args(["get", "--raw", "/version"]).env("KUBECONFIG", &kubeconfig).env("HOME", home.path());
            as_runner(broker, &mut command);
            command.env_remove("HTTPS_PROXY").env_remove("https_proxy");
            let output = run(command).await;
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert!(text(&output.stdout).contains("\"33\""), "{}", text(&output.stdout));
            let shown = std::mem::take(&mut *seen.lock().expect("no panic"));
            let bearer = format!("Bearer {}", token_of(broker, target).await);
            assert!(!shown.is_empty() && shown.iter().all(|shown| *shown == bearer));
        }
    })
    .await;
}

async fn minor_version() -> u32 {
    let mut command = Command::new("kubectl");
    command.args(["version", "--client", "--output", "json"]);
    let version: Value = serde_json::from_slice(&run(command).await.stdout).expect("JSON");
    let minor = version["clientVersion"]["minor"].as_str().expect("a version");
    minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number")
}

//! kubectl: the plugin protocol, and a real kubectl against a stand-in of an API server.

use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::server::Server;
use super::{as_runner, credential, has, path_with, run_with, token_of, with_tools};
use crate::command_line::{run, text};

fn info(version: &str) -> String {
    json!({"apiVersion": format!("client.authentication.k8s.io/{version}"), "kind": "ExecCredential", "spec": {"interactive": false}})
        .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_is_an_exec_credential_of_the_version_that_was_asked() {
    with_tools(async |broker| {
        let token = token_of(broker, "vertex").await;
        for version in ["v1", "v1beta1"] {
            let mut command = credential(broker, &["kubectl"]);
            command.env("CARNET_TARGET", "vertex").env("KUBERNETES_EXEC_INFO", info(version));
            let output = run_with(command, "").await;
            assert_eq!(text(&output.stderr), "");
            let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(answer["apiVersion"], format!("client.authentication.k8s.io/{version}"));
            assert_eq!((&answer["kind"], &answer["status"]["token"]), (&json!("ExecCredential"), &json!(token)));
            let expiry = answer["status"]["expirationTimestamp"].as_str().expect("a time");
            assert!(expiry.parse::<jiff::Timestamp>().is_ok_and(|time| time > jiff::Timestamp::now()), "{expiry}");
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
        for target in ["vertex", "azure-ml"] {
            let printed = run(credential(broker, &["kubectl", "--target", target, "--kubeconfig-user", "me"])).await;
            let config = format!(
                "apiVersion: v1\nkind: Config\nclusters:\n  - name: c\n    cluster: {{ server: 'https://{host}', certificate-authority: '{ca}' }}\n\
                 contexts:\n  - name: x\n    context: {{ cluster: c, user: me }}\ncurrent-context: x\n{user}",
                host = server.host(),
                ca = ca.display(),
                user = text(&printed.stdout),
            );
            let kubeconfig = home.path().join("config");
            std::fs::write(&kubeconfig, config).expect("written");
            let mut command = Command::new("kubectl");
            command.args(["get", "--raw", "/version"]).env("KUBECONFIG", &kubeconfig).env("HOME", home.path());
            as_runner(broker, &mut command);
            command.env("PATH", path_with(home.path())).env_remove("HTTPS_PROXY").env_remove("https_proxy");
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

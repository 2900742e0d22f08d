//! `carnet explain`: what it prints, and how it ends.

use std::process::{Command, Output};

use serde_json::Value;

use super::{operator, runner_claims, with_operators};
use crate::command_line::{carnet, run, text};
use crate::support::{Broker, RUNNER, TENANT};

/// `carnet explain` of a broker, asked by an operator.
fn explain(broker: &Broker, arguments: &[&str]) -> Command {
    let mut command = carnet(&["explain", "--address", broker.grpc_address()]);
    command.args(arguments).env("CARNET_OPERATOR_TOKEN", operator(broker));
    command
}

fn ended(output: &Output) -> (Option<i32>, String, String) {
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_fits_a_terminal_and_the_exit_code_tells_the_answer() {
    with_operators(async |broker| {
        let good = broker.signed(&broker.runner());
        let reader = broker.signed(&broker.entra.app_token(TENANT, RUNNER).roles(["Reader"]));
        let elsewhere = broker.signed(&broker.runner().audience("api://other"));
        for (token, code, lines, verdict) in [
            (&good, 0, &["ok    rule:training", "ok    lifetime"][..], "allowed"),
            (
                &reader,
                3,
                &[
                    "FAIL  rule:training",
                    "      -> In Entra, assign an app role",
                    "         - name: training",
                    "-     lifetime",
                ],
                "denied",
            ),
            (&elsewhere, 4, &["FAIL  audience", "-     target:vertex"], "the subject token is refused"),
        ] {
            let mut command = explain(broker, &["--target", "vertex", "--duration", "9h"]);
            command.env("CARNET_SUBJECT_TOKEN", token);
            let (ended, shown, said) = ended(&run(command).await);
            assert_eq!(ended, Some(code), "{shown}\n{said}");
            assert!(said.contains(verdict), "{said}");
            for line in lines {
                assert!(shown.lines().any(|shown| shown.starts_with(line)), "{line} begins no line of\n{shown}");
            }
            // What is copied is never broken.
            let copied = |line: &str| line.split_whitespace().any(|word| word.len() > 70);
            assert!(shown.lines().all(|line| line.chars().count() <= 100 || copied(line)), "{shown}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_explained_by_a_broker_and_by_a_file_alike() {
    with_operators(async |broker| {
        let path = broker.folder.path().join("claims.json");
        let mut claims = runner_claims();
        claims["roles"] = serde_json::json!(["Reader"]);
        std::fs::write(&path, claims.to_string()).expect("written");
        let path = path.to_str().expect("a path");
        let arguments = ["--target", "vertex", "--claims", path, "--output", "json"];
        let online = run(explain(broker, &arguments)).await;
        let config = broker.config_path();
        let mut offline = carnet(&["explain", "--config", config.to_str().expect("a path")]);
        // Nobody's token is asked for, wherever one could be had.
        offline.env("CARNET_SUBJECT_TOKEN_FILE", "/no/such/file");
        offline.args(arguments);
        let offline = run(offline).await;
        let of_rules = |output: &Output| {
            let json: Value =
                serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
            let steps = json["steps"].as_array().expect("steps").clone();
            let decided = steps.into_iter().filter(|step| {
                !["cloud:", "issuer_keys:"].iter().any(|held| step["name"].as_str().expect("a name").starts_with(held))
            });
            (output.status.code(), json["allowed"].clone(), decided.collect::<Vec<_>>())
        };
        assert_eq!(of_rules(&online), of_rules(&offline));
        assert_eq!((of_rules(&online).0, of_rules(&online).1), (Some(3), Value::Bool(false)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_explained_by_a_file_with_the_keys_that_entra_publishes() {
    with_operators(async |broker| {
        let config = broker.config_path();
        for (token, code) in [(broker.runner(), 0), (broker.runner().audience("api://other"), 4)] {
            let mut command = carnet(&["explain", "--config", config.to_str().expect("a path"), "--target", "vertex"]);
            command.env("CARNET_SUBJECT_TOKEN", broker.signed(&token));
            let (ended, shown, said) = ended(&run(command).await);
            assert_eq!(ended, Some(code), "{shown}\n{said}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_ask_is_told_so_and_not_with_an_answers_exit_code() {
    with_operators(async |broker| {
        let runner = broker.signed(&broker.runner());
        let mut command = carnet(&["explain", "--address", broker.grpc_address(), "--target", "vertex"]);
        command.env("CARNET_SUBJECT_TOKEN", &runner);
        let (code, shown, said) = ended(&run(command).await);
        assert_eq!((code, shown.as_str()), (Some(1), ""), "{said}");
        assert!(said.contains("DENIED") && said.contains("--operator-token-file"), "{said}");
        let mut command = explain(broker, &["--claims", "/no/such/file"]);
        command.env_remove("CARNET_SUBJECT_TOKEN");
        assert_eq!(run(command).await.status.code(), Some(1));
    })
    .await;
}

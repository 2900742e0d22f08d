//! The README's own words: commands that a newcomer types run as they stand there.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use crate::command_line::{carnet, run, signal, text};

/// What stands in a section's blocks of one language.
fn blocks(section: &str, language: &str) -> String {
    let readme = include_str!("../../README.md");
    let (_before, from) = readme.split_once(&format!("\n## {section}")).expect("the section");
    let section = from.split("\n## ").next().expect("its text");
    let fence = format!("```{language}\n");
    let blocks: Vec<&str> =
        section.split(&fence).skip(1).map(|rest| rest.split("```").next().expect("an end")).collect();
    assert!(!blocks.is_empty());
    blocks.concat()
}

/// Runs a section's commands as they stand there, beside `carnet sandbox`; returns standard output and standard error.
async fn follow(section: &str) -> (String, String) {
    let mut sandbox = carnet(&["sandbox"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a process");
    let lines = BufReader::new(sandbox.stdout.take().expect("its output")).lines();
    let find = move || {
        let mut lines = lines.map(|line| line.expect("text"));
        let export = lines.find(|line| line.starts_with("  export CARNET_ADDRESS=")).expect("what to export");
        // The rest has to be read, or the sandbox could not write it.
        (export, std::thread::spawn(move || lines.count()))
    };
    let (export, rest) = tokio::task::spawn_blocking(find).await.expect("no panic");
    let home = tempfile::tempdir().expect("a folder");
    // What still beats then, and would hold the shell's output open.
    let ending = "kill $(jobs -p) || true";
    let script = format!("set -euo pipefail\n{export}\n{}\n{ending}\n", blocks(section, "sh"));
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_carnet")).parent().expect("its folder").to_owned();
    let path = std::env::join_paths(
        std::iter::once(program).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    );
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).env("HOME", home.path()).env("PATH", path.expect("a path")).current_dir(home.path());
    shell.env_remove("CARNET_LEASE_TOKEN").stdin(Stdio::null());
    let output = run(shell).await;
    signal("TERM", sandbox.id());
    assert!(sandbox.wait().expect("an end").success());
    rest.join().expect("no panic");
    let (shown, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{shown}\n{said}");
    (shown, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_lease_can_be_followed_in_the_sandbox() {
    let (shown, said) = follow("Leases").await;
    for expected in ["heartbeat before", "ended at", "revoked 1 lease\n"] {
        assert!(shown.contains(expected), "{expected} is not in\n{shown}\n{said}");
    }
    let states = |state: &str| {
        let rows = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row.get(1..3) == Some(&[state, "vision"])).count()
    };
    assert_eq!(["active", "closed", "revoked"].map(states), [1, 1, 1], "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_a_jobs_credentials_can_be_tried_in_the_sandbox() {
    let (shown, said) = follow("In a job").await;
    for expected in [
        "{\"access_token\":\"ya29.",
        "\"resource\":\"https://ml.azure.com\"",
        "apiVersion: client.authentication.k8s.io/v1",
        "\"kind\":\"ExecCredential\"",
        "\"Username\":\"oauth2accesstoken\"",
        "password=ey",
    ] {
        assert!(shown.contains(expected), "{expected} is not in\n{shown}\n{said}");
    }
    assert!(said.contains("export GOOGLE_APPLICATION_CREDENTIALS="), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_request_is_walked_from_its_callers_message_to_the_repaired_rule() {
    let (shown, said) = follow("When a request is denied").await;
    for expected in [
        "carnet: denied (DENIED, exchange ",
        "FAIL  rule:vision-training",
        "roles: [Training.Submit, Training.Read]",
        "by the rules denied then and allowed now",
        "\"target\": \"vertex-training\"",
    ] {
        assert!(shown.contains(expected), "{expected} is not in\n{shown}\n{said}");
    }
    assert!(said.contains("carnet: denied\n") && said.contains("carnet: allowed\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_configuration_is_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.yaml");
    std::fs::write(&path, blocks("In a job", "yaml")).expect("written");
    let mut check = carnet(&["config", "check", path.to_str().expect("a path")]);
    check.env("IDENTITY_HEADER", "0123456789abcdef0123456789abcdef");
    let output = run(check).await;
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

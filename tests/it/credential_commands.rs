//! `carnet credential`: what other tools run, by itself and through the tools themselves.

mod docker;
mod git;
mod google;
mod kubectl;
mod server;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use carnet::proto::ExchangeRequest;

use crate::command_line::{carnet, run, text};
use crate::postgres::say_skipped;
use crate::support::{Broker, Setup, with_setup};

const RULES: &str = "
rules:
  - name: training
    targets: [vertex, direct, handed-out, azure-ml]
    subject: { roles: [Training.Submit] }
    max_lifetime: 1h
";

async fn with_tools(test: impl AsyncFnOnce(&Broker)) {
    with_setup(Setup { rules: Some(RULES), ..Setup::default() }, test).await;
}

/// `carnet credential` as the runner, with nothing else in its environment.
fn credential(broker: &Broker, arguments: &[&str]) -> Command {
    let mut command = carnet(&["credential"]);
    command.args(arguments);
    as_runner(broker, &mut command);
    command
}

/// What a tool's own environment says, and passes on.
fn as_runner(broker: &Broker, command: &mut Command) {
    command
        .env("CARNET_ADDRESS", broker.grpc_address())
        .env("CARNET_HTTP_ADDRESS", &broker.http)
        .env("CARNET_SUBJECT_TOKEN", broker.signed(&broker.runner()))
        .env_remove("CARNET_SUBJECT_TOKEN_FILE");
}

async fn run_with(mut command: Command, input: &str) -> Output {
    let input = input.as_bytes().to_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = move || {
        let mut child = command.spawn().expect("a process");
        // A program that ends before it has read everything is no failure of the test.
        let _ = child.stdin.take().expect("its input").write_all(&input);
        child.wait_with_output().expect("an end")
    };
    tokio::task::spawn_blocking(run).await.expect("no panic")
}

/// The access token that the broker has for the runner now: the same for everybody who asks while it is fresh.
async fn token_of(broker: &Broker, target: &str) -> String {
    let request = ExchangeRequest { job: None, ..broker.request(&[target]) };
    let answer = broker.exchange(request).await.expect("a credential");
    answer.credentials[0].token.clone()
}

/// A folder for `PATH` in which the program bears the name of a tool's.
fn linked_as(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_carnet"), folder.path().join(name)).expect("a link");
    folder
}

fn path_with(folder: &Path) -> std::ffi::OsString {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&rest));
    std::env::join_paths(folders).expect("a path")
}

/// Whether `tool` can be run here. A machine without it says what is left out; with `CARNET_TEST_TOOLS=required` that
/// fails.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--help").stdin(Stdio::null()).output().is_ok();
    if !found {
        let is_required = std::env::var("CARNET_TEST_TOOLS").is_ok_and(|value| value == "required");
        assert!(!is_required, "CARNET_TEST_TOOLS is `required`, and {tool} is not installed");
        say_skipped(&format!("{tool} is not installed"));
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_tools_name_the_program_takes_that_tools_arguments_and_speaks_in_its_name() {
    for (name, arguments, shown) in [
        ("docker-credential-carnet", &["version"][..], "docker-credential-carnet "),
        ("docker-credential-carnet", &["--help"], "Usage: docker-credential-carnet [OPTIONS] <ACTION>"),
        ("git-credential-carnet", &["capability"], "version 0\ncapability authtype\n"),
        ("git-credential-carnet", &["--help"], "Usage: git-credential-carnet [OPTIONS] <ACTION>"),
        ("kubectl-carnet", &["--help"], "Usage: kubectl-carnet [OPTIONS] --target <TARGET>"),
        ("kubectl-carnet", &["--version"], "kubectl-carnet "),
    ] {
        let folder = linked_as(name);
        let mut command = Command::new(folder.path().join(name));
        command.args(arguments).stdin(Stdio::null());
        let output = run(command).await;
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert!(text(&output.stdout).contains(shown), "{name}: {}", text(&output.stdout));
    }
    let folder = linked_as("kubectl-carnet");
    let mut command = Command::new(folder.path().join("kubectl-carnet"));
    command.args(["--target", "t"]).env_remove("KUBERNETES_EXEC_INFO").stdin(Stdio::null());
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("kubectl-carnet: KUBERNETES_EXEC_INFO is not set"));
}

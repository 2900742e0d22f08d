//! A login in a real keyring: gnome-keyring on a D-Bus session of its own.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::login::{LOGIN, arguments, at_home, log_in, set_up, until_the_code};
use super::succeeds;
use crate::command_line::{run, text};
use crate::support::{AUDIENCE, Broker, PERSON, with_broker};

/// `CARNET_TEST_KEYRING=required`: rather fail than leave it out.
#[expect(clippy::print_stderr, reason = "says what was left out")]
fn is_installed() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let installed = is_there("dbus-run-session") && is_there("gnome-keyring-daemon");
    assert!(
        installed || std::env::var_os("CARNET_TEST_KEYRING").is_none(),
        "no dbus-run-session or gnome-keyring-daemon"
    );
    if !installed {
        eprintln!("LEFT OUT: a real keyring; it needs dbus-run-session and gnome-keyring-daemon");
    }
    installed
}

/// `script` in a session with an unlocked keyring; `carnet` is the program.
fn in_a_session(home: &Path, script: &str) -> Command {
    let start = "eval \"$(printf x | gnome-keyring-daemon --unlock --components=secrets 2>/dev/null)\"";
    let mut command = Command::new("dbus-run-session");
    command.args(["--", "bash", "-euo", "pipefail", "-c", &format!("{start}\n{script}")]);
    let runtime = home.join("run");
    std::fs::create_dir_all(&runtime).expect("a folder");
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("HOME", home).env("XDG_RUNTIME_DIR", runtime).stdin(Stdio::null());
    command.env("CARNET", env!("CARGO_BIN_EXE_carnet"));
    command
}

/// Runs a login whose code the person enters.
async fn approved(broker: &Broker, command: Command) -> (Output, String) {
    let (child, code, mut words) = until_the_code(command).await;
    assert!(broker.entra.approve_device(&code, PERSON));
    let read = move || {
        let mut said = String::new();
        std::io::Read::read_to_string(&mut words, &mut said).expect("text");
        (child.wait_with_output().expect("an end"), said)
    };
    tokio::task::spawn_blocking(read).await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_lives_in_the_keyring_where_there_is_one() {
    if !is_installed() {
        return;
    }
    with_broker(async |broker: &Broker| {
        set_up(broker);
        let home = tempfile::tempdir().expect("a folder");
        let script = format!(
            "\"$CARNET\" login {}\n\"$CARNET\" login --status\nfor run in 1 2; do \"$CARNET\" exchange --target vertex \
             --address {} --output token >> \"$HOME/tokens\"; done\n\"$CARNET\" logout\n\"$CARNET\" login --status || echo \
             \"ended with $?\"\n",
            arguments(broker).join(" "),
            broker.grpc_address()
        );
        let (output, said) = approved(broker, in_a_session(home.path(), &script)).await;
        let shown = text(&output.stdout);
        assert!(output.status.success(), "{shown}\n{said}");
        assert!(shown.contains(&format!("client {LOGIN}, kept in the keyring")), "{shown}\n{said}");
        assert!(shown.contains("ended with 2"), "{shown}\n{said}");
        let tokens = std::fs::read_to_string(home.path().join("tokens")).expect("tokens");
        assert_eq!(tokens.lines().filter(|token| broker.google.check(token).is_some()).count(), 2);
        assert!(!home.path().join(".local/share/carnet/login.sealed").exists());
        assert!(said.contains(AUDIENCE));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_keyring_it_is_said_what_to_do() {
    with_broker(async |broker: &Broker| {
        set_up(broker);
        let home = tempfile::tempdir().expect("a folder");
        let mut command = crate::command_line::carnet(&["login", "--store", "keyring"]);
        let nowhere = format!("unix:path={}/no-bus", home.path().display());
        command.args(arguments(broker)).env_clear().env("HOME", home.path()).env("DBUS_SESSION_BUS_ADDRESS", nowhere);
        let output = run(command).await;
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("`carnet login --store file`"), "{}", text(&output.stderr));
        assert_eq!(broker.entra.calls().count("/devicecode"), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_out_empties_the_keyring_whatever_others_did_to_the_files() {
    if !is_installed() {
        return;
    }
    with_broker(async |broker: &Broker| {
        set_up(broker);
        let home = tempfile::tempdir().expect("a folder");
        let script = format!(
            "\"$CARNET\" login {}\ncd \"$HOME/.local/share/carnet\"\ncp -p login.json before\nchmod 644 login.json\n\
             \"$CARNET\" logout\ncp -p before login.json\n\"$CARNET\" exchange --target vertex --address {} --output \
             token || echo \"ended with $?\"\n",
            arguments(broker).join(" "),
            broker.grpc_address()
        );
        let (output, said) = approved(broker, in_a_session(home.path(), &script)).await;
        assert_eq!(text(&output.stdout).trim(), "ended with 1", "{said}");
        assert!(said.contains("logged out") && said.contains("the stored login is damaged"), "{said}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_in_a_file_replaces_one_in_a_keyring_that_is_gone() {
    with_broker(async |broker: &Broker| {
        set_up(broker);
        let home = tempfile::tempdir().expect("a folder");
        log_in(broker, home.path()).await;
        let summary = home.path().join(".local/share/carnet/login.json");
        let kept = std::fs::read_to_string(&summary).expect("a summary");
        std::fs::write(&summary, kept.replace("\"keep\":\"file\"", "\"keep\":\"keyring\"")).expect("written");
        let nowhere = format!("unix:path={}/no-bus", home.path().display());
        let mut command = at_home(home.path(), &["login", "--store", "file"]);
        command.args(arguments(broker)).env("DBUS_SESSION_BUS_ADDRESS", nowhere);
        let (output, said) = approved(broker, command).await;
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("the new login is stored and in use") && said.contains("keyring may still"), "{said}");
        succeeds(broker, &[("HOME", home.path().to_str().expect("text"))]).await;
    })
    .await;
}

//! `carnet login` to `carnet logout`, with a person who types the code.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use carnet::sandbox::{Identity, Person};

use super::{exchange, fails, succeeds};
use crate::command_line::{carnet, run, text};
use crate::support::{AUDIENCE, Broker, PERSON, TENANT, with_broker};

pub const LOGIN: &str = "12121212-1212-1212-1212-121212121212";

pub fn set_up(broker: &Broker) {
    broker.entra.register(Identity::app(TENANT, LOGIN, "login-object").public_client().may_call(AUDIENCE));
    broker.entra.add_person(Person::new(TENANT, PERSON, "ada@example.com").roles(["Training.Submit"]));
    broker.entra.poll_devices_every(Duration::from_secs(1));
}

pub fn arguments(broker: &Broker) -> Vec<String> {
    let entra = broker.entra.authority().to_owned();
    let pairs =
        [("--authority", entra.as_str()), ("--tenant", TENANT), ("--client-id", LOGIN), ("--audience", AUDIENCE)];
    pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_owned()]).collect()
}

/// A command of a person with this home.
pub fn at_home(home: &Path, arguments: &[&str]) -> Command {
    let mut command = carnet(arguments);
    command.env_clear().env("HOME", home);
    command
}

/// Starts a login and waits for its code.
pub async fn until_the_code(mut command: Command) -> (Child, String, BufReader<std::process::ChildStderr>) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
    let mut lines = BufReader::new(child.stderr.take().expect("its words"));
    let read = move || {
        let mut said = String::new();
        // What else the session says comes before it.
        while !said.contains("enter the code ") && lines.read_line(&mut said).expect("text") > 0 {}
        (said, lines)
    };
    let (said, lines) = tokio::task::spawn_blocking(read).await.expect("no panic");
    let code = said.split("enter the code ").nth(1).and_then(|rest| rest.split(' ').next());
    (child, code.unwrap_or_else(|| panic!("no code in {said}")).to_owned(), lines)
}

pub async fn log_in(broker: &Broker, home: &Path) -> String {
    let mut command = at_home(home, &["login", "--store", "file"]);
    command.args(arguments(broker));
    let (child, code, mut words) = until_the_code(command).await;
    assert!(broker.entra.approve_device(&code, PERSON));
    let output = tokio::task::spawn_blocking(move || {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut words, &mut rest).expect("text");
        (child.wait_with_output().expect("an end"), rest)
    });
    let (output, said) = output.await.expect("no panic");
    assert!(output.status.success() && output.stdout.is_empty(), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_logs_in_exchanges_and_logs_out() {
    with_broker(async |broker| {
        set_up(broker);
        let home = tempfile::tempdir().expect("a folder");
        let said = log_in(broker, home.path()).await;
        assert!(said.contains("logged in as ada@example.com for api://carnet"), "{said}");
        let variables = [("HOME", home.path().to_str().expect("text"))];
        // Each run redeems the refresh token that the run before was given: Entra takes each once.
        for _ in 0..3 {
            succeeds(broker, &variables).await;
        }
        let refreshes = broker.entra.calls().to("/oauth2/v2.0/token");
        let redeemed: Vec<_> = refreshes.iter().filter_map(|call| call.form("refresh_token")).collect();
        assert_eq!(redeemed.len(), 3);
        redeemed.iter().for_each(|token| broker.is_secret(token));
        let status = run(at_home(home.path(), &["login", "--status"])).await;
        assert!(text(&status.stdout).contains("ada@example.com") && text(&status.stdout).contains("encrypted file"));
        // What is kept shows none of them.
        for folder in [".local/share/carnet", ".config/carnet"] {
            for file in std::fs::read_dir(home.path().join(folder)).expect("a folder") {
                let kept = std::fs::read_to_string(file.expect("a file").path()).expect("text");
                assert!(redeemed.iter().all(|token| !kept.contains(&token[2..])));
            }
        }
        let out = run(at_home(home.path(), &["logout"])).await;
        assert!(out.status.success() && text(&out.stderr).contains("logged out"), "{}", text(&out.stderr));
        fails(broker, &variables, 2, "no subject token").await;
        let status = run(at_home(home.path(), &["login", "--status"])).await;
        assert_eq!(status.status.code(), Some(2), "{}", text(&status.stderr));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_processes_at_once_share_one_login() {
    with_broker(async |broker| {
        set_up(broker);
        let home = tempfile::tempdir().expect("a folder");
        log_in(broker, home.path()).await;
        let variables = [("HOME", home.path().to_str().expect("text"))];
        let runs = (0..4).map(|_| run(exchange(broker, &variables)));
        for output in futures_util::future::join_all(runs).await {
            assert!(output.status.success(), "{}", text(&output.stderr));
            broker.is_secret(text(&output.stdout).trim());
        }
        succeeds(broker, &variables).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_others_can_read_or_that_entra_ended_is_refused() {
    with_broker(async |broker| {
        set_up(broker);
        let home = tempfile::tempdir().expect("a folder");
        log_in(broker, home.path()).await;
        let variables = [("HOME", home.path().to_str().expect("text"))];
        let key = home.path().join(".config/carnet/login.key");
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("changed");
        fails(broker, &variables, 1, "login.key can be read or changed by others").await;
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("changed");
        broker.entra.revoke_sessions(PERSON);
        fails(broker, &variables, 4, "AADSTS50173").await;
        // It is not passed over for another identity.
        let with_az = [variables[0], ("CARNET_AUDIENCE", AUDIENCE), ("PATH", "/usr/bin")];
        fails(broker, &with_az, 4, "run `carnet login`").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_that_is_declined_or_not_allowed_stores_nothing() {
    with_broker(async |broker| {
        set_up(broker);
        let home = tempfile::tempdir().expect("a folder");
        let mut command = at_home(home.path(), &["login", "--store", "file"]);
        command.args(arguments(broker));
        let (child, code, _words) = until_the_code(command).await;
        assert!(broker.entra.decline_device(&code));
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.expect("no panic");
        assert_eq!(output.expect("an end").status.code(), Some(4));
        broker.entra.register(Identity::app(TENANT, LOGIN, "login-object").may_call(AUDIENCE));
        let mut command = at_home(home.path(), &["login", "--store", "file"]);
        command.args(arguments(broker));
        let (child, _code, mut words) = until_the_code(command).await;
        let read = move || {
            let mut said = String::new();
            std::io::Read::read_to_string(&mut words, &mut said).expect("text");
            (child.wait_with_output().expect("an end"), said)
        };
        let (output, said) = tokio::task::spawn_blocking(read).await.expect("no panic");
        assert_eq!(output.status.code(), Some(4));
        assert!(said.contains("AADSTS7000218") && said.contains("Allow public client flows"), "{said}");
        fails(broker, &[("HOME", home.path().to_str().expect("text"))], 2, "no subject token").await;
    })
    .await;
}

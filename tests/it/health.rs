//! `carnet health`: what probes ask.

use std::path::Path;

use carnet::sandbox::Fault;

use crate::command_line::{carnet, run, signal, text};
use crate::process::make_place;
use crate::support::{Broker, Setup, eventually, free_port, with_broker, with_setup};
use crate::tls::{Authority, setup};

/// Exit code and what was said.
async fn health(arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(carnet(&[&["health"], arguments].concat())).await;
    (output.status.code(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_ready_is_told_from_one_that_is_alive_and_from_none() {
    let setup = Setup { entra_is_away: true, ..Setup::default() };
    with_setup(setup, async |broker| {
        let at = ["--address", broker.grpc_address()];
        assert_eq!(health(&at).await, (Some(5), "carnet: not ready\n".to_owned()));
        assert_eq!(health(&[&at[..], &["--alive"]].concat()).await, (Some(0), "alive\n".to_owned()));
        broker.entra.faults().clear("");
        eventually("readiness", async || health(&at).await == (Some(0), "ready\n".to_owned())).await;
    })
    .await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    for more in [&[][..], &["--alive"]] {
        let (code, said) = health(&[&["--address", &nobody], more].concat()).await;
        assert_eq!(code, Some(5), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_is_told_when_the_broker_serves_and_when_it_ends() {
    let mut broker = Broker::start_for(Setup::default()).await;
    make_place(&mut broker).await;
    let socket = broker.folder.path().join("notify");
    let supervisor = tokio::net::UnixDatagram::bind(&socket).expect("a socket");
    let config = broker.config_path();
    let mut command = carnet(&["serve", "--config", config.to_str().expect("a path")]);
    command.env("NOTIFY_SOCKET", &socket).stderr(std::process::Stdio::null());
    let mut process = command.spawn().expect("a process");
    let mut heard = [0; 64];
    let length = supervisor.recv(&mut heard).await.expect("a notice");
    assert_eq!(&heard[..length], b"READY=1");
    signal("TERM", process.id());
    let length = supervisor.recv(&mut heard).await.expect("a notice");
    assert_eq!(&heard[..length], b"STOPPING=1");
    assert!(process.wait().expect("an end").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_says_of_which_commit_and_with_which_features_it_is() {
    let version = text(&run(carnet(&["--version"])).await.stdout);
    let expected = format!("carnet {}, commit ", env!("CARGO_PKG_VERSION"));
    assert!(version.starts_with(&expected) && version.contains(", features "), "{version}");
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_the_very_certificate_is_enough_and_no_other_will_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let (authority, other) = (Authority::new(), Authority::new());
    authority.write(folder.path());
    let (port, strange) = (free_port(), path(folder.path(), "other.crt"));
    std::fs::write(&strange, other.issue("localhost").0).expect("written");
    with_setup(setup(folder.path(), port, ""), async |_broker| {
        // By an address that is no name of the certificate, and without its authority.
        let address = format!("https://127.0.0.1:{port}");
        let ours = path(folder.path(), "tls.crt");
        assert_eq!(health(&["--address", &address, "--certificate", &ours]).await, (Some(0), "ready\n".to_owned()));
        let (code, said) = health(&["--address", &address, "--certificate", &strange]).await;
        assert_eq!(code, Some(5), "{said}");
        let (code, said) = health(&["--address", &address]).await;
        assert_eq!(code, Some(5), "{said}");
        let (code, said) = health(&["--address", "http://127.0.0.1:1", "--certificate", &ours]).await;
        assert_eq!(code, Some(2), "{said}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_wants_certificates_is_shown_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    authority.write(folder.path());
    let (certificate, key) = authority.issue("probe");
    std::fs::write(folder.path().join("probe.crt"), certificate).expect("written");
    std::fs::write(folder.path().join("probe.key"), key).expect("written");
    let port = free_port();
    let client_ca = format!(", client_ca: '{}'", path(folder.path(), "ca.crt"));
    with_setup(setup(folder.path(), port, &client_ca), async |_broker| {
        let (address, ours) = (format!("https://127.0.0.1:{port}"), path(folder.path(), "tls.crt"));
        let at = ["--address", &address, "--certificate", &ours];
        let (code, said) = health(&at).await;
        assert_eq!(code, Some(5), "{said}");
        let (certificate, key) = (path(folder.path(), "probe.crt"), path(folder.path(), "probe.key"));
        let shown = [&at[..], &["--client-certificate", &certificate, "--client-key", &key]].concat();
        assert_eq!(health(&shown).await, (Some(0), "ready\n".to_owned()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_asked_by_http() {
    with_broker(async |broker| {
        broker.google.faults().always("/v1/token", Fault::Drop);
        let folder = tempfile::tempdir().expect("a folder");
        let (token, socket) = (path(folder.path(), "token"), format!("unix:{}", path(folder.path(), "agent.sock")));
        std::fs::write(&token, broker.signed(&broker.runner())).expect("written");
        let config = folder.path().join("agent.yaml");
        let text = format!(
            "listen: '{socket}'\nbroker: {{ address: '{}' }}\nsubject: {{ token_file: '{token}' }}\ntargets: [{{ target: vertex }}]\n",
            broker.grpc_address()
        );
        std::fs::write(&config, text).expect("written");
        let mut agent = carnet(&["agent", "--config", config.to_str().expect("a path")]);
        let mut agent = agent.stderr(std::process::Stdio::null()).spawn().expect("a process");
        let at = ["--agent", &socket];
        eventually("life", async || health(&["--agent", &socket, "--alive"]).await.0 == Some(0)).await;
        assert_eq!(health(&at).await, (Some(5), "carnet: not ready\n".to_owned()));
        agent.kill().expect("a process");
        agent.wait().expect("an end");
        assert_eq!(health(&at).await.0, Some(5));
    })
    .await;
}

//! From start to drain: readiness, new rules while running, and an end that loses no call.

use std::time::Duration;

use carnet::proto::token_exchange_client::TokenExchangeClient;
use carnet::sandbox::Fault;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{Broker, Setup, eventually, reason, with_broker, with_setup};

#[tokio::test(flavor = "multi_thread")]
async fn changed_rules_take_effect_and_bad_ones_leave_the_old_in_force() {
    with_broker(async |broker| {
        let path = broker.config_path();
        let good = std::fs::read_to_string(&path).expect("the file");
        std::fs::write(&path, good.replace("targets: [vertex, azure-ml]", "targets: [azure-ml]")).expect("written");
        eventually("the new rules", async || {
            let denied = broker.exchange(broker.request(&["vertex"])).await;
            denied.is_err_and(|status| reason(&status) == "DENIED")
        })
        .await;
        std::fs::write(&path, "rules: [").expect("written");
        assert!(broker.app().reload().is_err());
        broker.exchange(broker.request(&["azure-ml"])).await.expect("the old rules are in force");
        assert!(carnet::telemetry::metrics().render().contains("carnet_policy_stale 1"));
        std::fs::write(&path, good).expect("written");
        broker.app().reload().expect("loaded");
        broker.exchange(broker.request(&["vertex"])).await.expect("allowed again");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_is_answered_while_the_broker_drains_and_silent_peers_do_not_hold_it() {
    let mut broker = Broker::start_for(Setup::default()).await;
    broker.google.faults().always("/v1/token", Fault::Delay(Duration::from_secs(1)));
    let address = broker.grpc_address().trim_start_matches("http://").to_owned();
    let silent = TcpStream::connect(&address).await.expect("a connection");
    let (mut client, request) = (broker.client().await, broker.request(&["vertex"]));
    let call = tokio::spawn(async move { client.exchange(request).await });
    eventually("the call to Google", async || broker.google.calls().count("/v1/token") == 1).await;

    let app = broker.take_app();
    let drained = tokio::spawn(app.drain());
    let answer = call.await.expect("no panic").expect("the call is not lost").into_inner();
    broker.is_secret(&answer.credentials[0].token);
    timeout(Duration::from_secs(20), drained).await.expect("within 20 s").expect("a clean end");
    drop(silent);
    assert!(TcpStream::connect(&address).await.is_err(), "nobody listens any more");
    assert_eq!(broker.audit_records().len(), 1);
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_say_nothing_or_next_to_nothing_are_shown_out() {
    with_broker(async |broker| {
        let addresses = [broker.grpc_address(), &broker.http].map(|url| url.trim_start_matches("http://").to_owned());
        let attempts = addresses.iter().flat_map(|address| ["", "P", "PRI * HTTP/2.0"].map(|said| (address, said)));
        let ends = attempts.map(async |(address, said)| {
            let mut peer = TcpStream::connect(address).await.expect("a connection");
            peer.write_all(said.as_bytes()).await.expect("sent");
            let mut rest = Vec::new();
            // How it ends is the peer's to find out; that it ends is what counts.
            timeout(Duration::from_secs(15), peer.read_to_end(&mut rest)).await.is_ok()
        });
        assert_eq!(futures_util::future::join_all(ends).await, [true; 6]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_audit_log_takes_no_records_the_broker_is_not_ready() {
    with_broker(async |broker| {
        let ready =
            async || reqwest::get(format!("{}/readyz", broker.http)).await.expect("an answer").status().as_u16();
        let store = rusqlite::Connection::open(broker.store_path()).expect("the store");
        store.execute_batch("ALTER TABLE audit RENAME TO lost").expect("renamed");
        broker.exchange(broker.request(&["vertex"])).await.err().expect("nothing is released");
        eventually("the end of readiness", async || ready().await == 503).await;
        store.execute_batch("ALTER TABLE lost RENAME TO audit").expect("renamed");
        eventually("readiness", async || ready().await == 200).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("precious");
    std::fs::write(&file, "data").expect("written");
    with_broker(async |broker| {
        let own = broker.folder.path().join("unix.yaml");
        let text = std::fs::read_to_string(broker.config_path()).expect("the file");
        let server = text.lines().find(|line| line.starts_with("server:")).expect("a line");
        let unix = format!("server: {{ grpc: 'unix:{}', http: 'off' }}", file.display());
        std::fs::write(&own, text.replace(server, &unix).replace("carnet.db", "own.db")).expect("written");
        let config = carnet::config::Config::load(&own).unwrap_or_else(|error| panic!("{error}"));
        let clock = std::sync::Arc::new(carnet::clock::SystemClock);
        assert!(carnet::app::App::start(config, None, clock).await.is_err());
    })
    .await;
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "data");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_listens_on_a_unix_socket_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("carnet.sock");
    let http = crate::support::free_port();
    let server = format!("{{ grpc: 'unix:{}', http: '127.0.0.1:{http}' }}", socket.display());
    with_setup(Setup { server: Some(server), ..Setup::default() }, async |broker| {
        let address = format!("unix:{}", socket.display()).parse().expect("an address");
        let mut client = TokenExchangeClient::new(carnet::grpc::connect(&address, None).await.expect("a connection"));
        // The issuer of this set-up is another port's, so a refusal by policy is what can be seen.
        let refused = client.exchange(broker.request(&["no-such-target"])).await.err().expect("denied");
        assert_eq!(reason(&refused), "DENIED");
    })
    .await;
    assert!(!socket.exists(), "the socket is gone with the broker");
}

#[tokio::test(flavor = "multi_thread")]
async fn w19_the_broker_is_not_ready_before_it_could_verify_a_token() {
    let setup = Setup { entra_is_away: true, ..Setup::default() };
    with_setup(setup, async |broker| {
        let ready =
            async || reqwest::get(format!("{}/readyz", broker.http)).await.expect("an answer").status().as_u16();
        assert_eq!(ready().await, 503);
        let refused = broker.exchange(broker.request(&["vertex"])).await.err().expect("no keys");
        assert_eq!(reason(&refused), "KEYS_UNAVAILABLE");
        broker.entra.faults().clear("");
        eventually("readiness", async || ready().await == 200).await;
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
    })
    .await;
}

//! Names that lead nowhere, and certificates whose time is over: the clouds' and the broker's own.

use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::support::{PROVIDER, Setup, captured_logs, free_port, with_setup};
use crate::tls::{self, Authority};

const SECURE: &str = "
rules:
  - name: training
    targets: [vertex, secure]
    subject: { roles: [Training.Submit] }
    max_lifetime: 1h
";

/// TLS before Google's stand-in.
struct Front {
    port: u16,
    certificate: Arc<Mutex<Arc<ServerConfig>>>,
    replaced: watch::Sender<()>,
}

impl Front {
    async fn start((certificate, key): (String, String)) -> Self {
        let port = free_port();
        let shown = Arc::new(Mutex::new(config(&certificate, &key)));
        Self { port, certificate: shown, replaced: watch::Sender::new(()) }
    }

    /// Until the task that is returned ends: then the port refuses, and who was connected is not any more.
    async fn forward(&self, server: String) -> JoinHandle<()> {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("a port");
        let (certificate, replaced) = (self.certificate.clone(), self.replaced.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _peer) = listener.accept().await.expect("a connection");
                let acceptor = TlsAcceptor::from(certificate.lock().expect("no panic").clone());
                let (server, mut replaced) = (server.clone(), replaced.subscribe());
                tokio::spawn(async move {
                    // Whoever does not like the certificate leaves.
                    let Ok(mut near) = acceptor.accept(stream).await else { return };
                    let mut far = TcpStream::connect(server).await.expect("a connection");
                    tokio::select! {
                        _ended = copy_bidirectional(&mut near, &mut far) => {}
                        _gone = replaced.changed() => {}
                    }
                });
            }
        })
    }

    async fn refuses(&self, forwarding: JoinHandle<()>) {
        forwarding.abort();
        assert!(forwarding.await.expect_err("it goes on for ever").is_cancelled());
        self.replaced.send_replace(());
    }

    /// From the next connection on, which is made soon: those of before end.
    fn shows(&self, (certificate, key): (String, String)) {
        *self.certificate.lock().expect("no panic") = config(&certificate, &key);
        self.replaced.send_replace(());
    }
}

fn config(certificate: &str, key: &str) -> Arc<ServerConfig> {
    captured_logs();
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    Arc::new(config.expect("a certificate"))
}

/// A target of Google's by way of `https://{host}:{port}`, and the authority that its certificate is of.
fn through(host: &str, port: u16, authority: &Authority) -> (tempfile::NamedTempFile, Setup) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), authority.pem()).expect("written");
    let google = format!("audience: '{PROVIDER}', sts_endpoint: 'https://{host}:{port}', max_lifetime: 1h");
    let targets = format!("  secure: {{ google: {{ {google} }} }}\n").leak();
    let more = format!("outbound: {{ ca_file: '{}' }}", file.path().display());
    (file, Setup { rules: Some(SECURE), targets, more, ..Setup::default() })
}

async fn is_away(broker: &Broker, number: u32, why: &[&str]) {
    let refused = broker.exchange(broker.request_with(&somebody(broker, number), &["secure"])).await;
    let status = refused.as_ref().err().expect("away");
    assert_eq!(Seen::of(status), Seen::cloud_unavailable());
    let [record] = &recorded(broker, &refused)[..] else { panic!("one record") };
    assert_eq!((record.outcome.as_str(), record.reason.as_str()), ("failed", "CLOUD_UNAVAILABLE"));
    assert!(why.iter().any(|why| record.attributes["error"].contains(why)), "{}", record.attributes["error"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clouds_certificate_that_has_expired_is_not_taken_and_its_successor_is_with_the_next_call() {
    let authority = Authority::new();
    let front = Front::start(authority.issue("localhost")).await;
    let (_file, setup) = through("localhost", front.port, &authority);
    with_setup(setup, async |broker| {
        front.forward(broker.google.sts_endpoint().trim_start_matches("http://").to_owned()).await;
        let ask = async |number| broker.exchange(broker.request_with(&somebody(broker, number), &["secure"])).await;
        ask(0).await.expect("a credential");
        for (number, certificate, why) in [
            (1, authority.issue_expired("localhost"), "its certificate has expired"),
            (2, authority.issue("elsewhere.example.com"), "its certificate has another name"),
            (3, Authority::new().issue("localhost"), "its certificate is not trusted"),
        ] {
            front.shows(certificate);
            is_away(broker, number, &[why]).await;
            assert!(ask(0).await.expect("served").credentials[0].cached, "{why}");
        }
        front.shows(authority.issue("localhost"));
        ask(4).await.expect("with the next call");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_resolved_and_a_port_that_nobody_listens_at_are_told_apart() {
    let authority = Authority::new();
    // RFC 6761: nobody ever has this name. Where no server of names answers, it takes as long as a connection may.
    let (_file, setup) = through("sts.carnet.invalid", 443, &authority);
    with_setup(setup, async |broker| {
        is_away(broker, 1, &["the name is not resolved", "no answer"]).await;
        broker.exchange(broker.request(&["vertex"])).await.expect("other services are not touched");
        // The name is mended: here, in the configuration.
        let front = Front::start(authority.issue("localhost")).await;
        let text = std::fs::read_to_string(broker.config_path()).expect("the file");
        let mended = text.replace("https://sts.carnet.invalid:443", &format!("https://localhost:{}", front.port));
        std::fs::write(broker.config_path(), mended).expect("written");
        broker.app().reload().expect("loaded");
        is_away(broker, 2, &["could not connect: refused"]).await;
        let forwarding = front.forward(broker.google.sts_endpoint().trim_start_matches("http://").to_owned()).await;
        let ask = async || broker.exchange(broker.request_with(&somebody(broker, 3), &["secure"])).await;
        ask().await.expect("with the next call");
        front.refuses(forwarding).await;
        is_away(broker, 4, &["could not connect: refused"]).await;
        assert!(ask().await.expect("served").credentials[0].cached);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_refuse_the_brokers_own_certificate_when_it_has_expired_and_take_its_successor_without_a_restart() {
    let (folder, authority, port) = (tempfile::tempdir().expect("a folder"), Authority::new(), free_port());
    authority.write(folder.path());
    let show = |(certificate, key): (String, String)| {
        std::fs::write(folder.path().join("tls.key"), key).expect("written");
        std::fs::write(folder.path().join("tls.crt"), certificate).expect("written");
    };
    with_setup(tls::setup(folder.path(), port, ""), async |broker| {
        let ca = folder.path().join("ca.crt");
        let records = broker.audit_records().len();
        show(authority.issue_expired("localhost"));
        eventually("the expired certificate", async || tls::call(broker, port, &ca).await.is_none()).await;
        let heard = broker.audit_records().len();
        assert_eq!(tls::call(broker, port, &ca).await, None);
        assert_eq!(broker.audit_records().len(), heard, "no call arrived");
        show(authority.issue("localhost"));
        eventually("the new certificate", async || tls::call(broker, port, &ca).await.is_some()).await;
        assert!(broker.audit_records().len() > records);
    })
    .await;
}

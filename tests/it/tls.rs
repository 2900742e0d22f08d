//! TLS: certificates that change while the broker runs, and callers that have to show one.

use std::path::Path;

use carnet::grpc::{Address, connect};
use carnet::proto::token_exchange_client::TokenExchangeClient;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::support::{Broker, Setup, captured_logs, eventually, free_port, reason, with_setup};

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Without a name of its own, OpenSSL takes what it issues for self-signed.
        params.distinguished_name.push(DnType::CommonName, "authority of the tests");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority"))
    }

    /// Certificate and key in PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        (params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem())
    }

    /// One that ended before this test began.
    pub fn issue_expired(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        (params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem())
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn write(&self, folder: &Path) {
        let (certificate, key) = self.issue("localhost");
        std::fs::write(folder.join("tls.key"), key).expect("written");
        std::fs::write(folder.join("tls.crt"), certificate).expect("written");
        std::fs::write(folder.join("ca.crt"), self.0.pem()).expect("written");
    }
}

pub fn setup(folder: &Path, grpc: u16, client_ca: &str) -> Setup {
    let folder = folder.display();
    let http = free_port();
    let server = format!(
        "{{ grpc: '127.0.0.1:{grpc}', http: '127.0.0.1:{http}', tls: {{ certificate: '{folder}/tls.crt', private_key: '{folder}/tls.key'{client_ca} }} }}"
    );
    Setup { server: Some(server), ..Setup::default() }
}

/// The reason of a refusal: enough to know that the call arrived.
pub async fn call(broker: &Broker, port: u16, ca: &Path) -> Option<String> {
    let address: Address = format!("https://localhost:{port}").parse().expect("an address");
    let mut client = TokenExchangeClient::new(connect(&address, Some(&ca.to_owned())).await.ok()?);
    Some(reason(&client.exchange(broker.request(&["no-such-target"])).await.err().expect("denied")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_certificate_is_served_without_a_restart_and_a_bad_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new) = (Authority::new(), Authority::new());
    old.write(folder.path());
    let port = free_port();
    with_setup(setup(folder.path(), port, ""), async |broker| {
        let ca = folder.path().join("ca.crt");
        assert_eq!(call(broker, port, &ca).await.as_deref(), Some("DENIED"));
        std::fs::write(folder.path().join("tls.crt"), "no certificate").expect("written");
        let is_stale = |stale| carnet::telemetry::metrics().render().contains(&format!("\ncarnet_tls_stale {stale}\n"));
        eventually("carnet_tls_stale 1", async || is_stale(1)).await;
        assert_eq!(call(broker, port, &ca).await.as_deref(), Some("DENIED"), "the old certificate stays");
        let said = "the changed server certificate cannot be used; the old one stays";
        assert!(captured_logs().text().contains(said));
        assert!(carnet::telemetry::metrics().render().contains("carnet_tls_reloads_total{outcome=\"failed\"}"));
        new.write(folder.path());
        eventually("the new certificate", async || call(broker, port, &ca).await.is_some()).await;
        eventually("carnet_tls_stale 0", async || is_stale(0)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_client_authority_only_its_callers_are_heard() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new();
    authority.write(folder.path());
    let port = free_port();
    let client_ca = format!(", client_ca: '{}/ca.crt'", folder.path().display());
    with_setup(setup(folder.path(), port, &client_ca), async |broker| {
        let channel = async |identity: Option<Identity>| {
            let ca = Certificate::from_pem(std::fs::read(folder.path().join("ca.crt")).expect("the authority"));
            let tls = ClientTlsConfig::new().ca_certificate(ca);
            let tls = identity.into_iter().fold(tls, ClientTlsConfig::identity);
            let endpoint = Endpoint::from_shared(format!("https://localhost:{port}"))
                .expect("a URI")
                .tls_config(tls)
                .expect("TLS");
            let channel = endpoint.connect().await.ok()?;
            let mut client = carnet::proto::token_exchange_client::TokenExchangeClient::new(channel);
            client.exchange(broker.request(&["no-such-target"])).await.err().map(|status| reason(&status))
        };
        let known = |authority: &Authority| {
            let (certificate, key) = authority.issue("runner");
            Some(Identity::from_pem(certificate, key))
        };
        assert_eq!(channel(known(&authority)).await.as_deref(), Some("DENIED"));
        assert_ne!(channel(None).await.as_deref(), Some("DENIED"));
        assert_ne!(channel(known(&Authority::new())).await.as_deref(), Some("DENIED"));
    })
    .await;
}

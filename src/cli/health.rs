//! `carnet health`: how a broker or an agent is, for whoever keeps them running.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::broker::{Broker, usage};
use super::{Ended, Exit, print};
use crate::socket::Address;

/// Ask a broker (grpc.health.v1) or an agent whether it is ready; exits with 0 where it is, with 5 where it is not
///
/// For probes of containers and for scripts. With --certificate the broker has to show exactly that certificate, whoever
/// signed it and whatever it is called: for a probe beside the broker, which has the broker's own files.
#[derive(Debug, Args)]
pub(super) struct Health {
    #[command(flatten)]
    broker: Broker,
    /// PEM file with the very certificate that the broker shows, in place of authorities and names
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// PEM file with a certificate to show, for a broker with `client_ca`
    #[arg(long, value_name = "FILE", requires_all = ["certificate", "client_key"])]
    client_certificate: Option<PathBuf>,
    /// PEM file with its private key
    #[arg(long, value_name = "FILE", requires = "client_certificate")]
    client_key: Option<PathBuf>,
    /// Ask the agent that listens here, ADDRESS:PORT or unix:PATH, in place of a broker
    #[arg(long, value_name = "ADDRESS", conflicts_with = "certificate")]
    agent: Option<String>,
    /// Whether it answers at all, be it ready or not
    #[arg(long)]
    alive: bool,
}

impl Health {
    pub async fn run(self) -> anyhow::Result<()> {
        let Ok(well) = timeout(DEADLINE, self.ask()).await else {
            return Err(unavailable(format!("no answer within {} s", DEADLINE.as_secs())));
        };
        print(well?);
        Ok(())
    }

    /// What it says of itself, where that is good.
    async fn ask(&self) -> anyhow::Result<&'static str> {
        if let Some(agent) = &self.agent {
            return self.ask_agent(agent).await;
        }
        let channel = match &self.certificate {
            Some(_) => self.pinned().await?,
            None => self.broker.connect().await?,
        };
        let asked = HealthCheckRequest { service: String::new() };
        let answer = HealthClient::new(channel).check(asked).await;
        let answer = answer.map_err(|status| unavailable(format!("no answer: {}", status.message())))?;
        match (answer.into_inner().status(), self.alive) {
            (ServingStatus::Serving, _) => Ok("ready"),
            (ServingStatus::NotServing | ServingStatus::Unknown | ServingStatus::ServiceUnknown, true) => Ok("alive"),
            (ServingStatus::NotServing | ServingStatus::Unknown | ServingStatus::ServiceUnknown, false) => {
                Err(unavailable("not ready".to_owned()))
            }
        }
    }

    /// Connects to whoever shows the certificate and has its key.
    async fn pinned(&self) -> anyhow::Result<Channel> {
        let address = self.broker.address();
        let uri: Uri = address.parse().with_context(|| format!("--address {address} is no URL"))?;
        let (Some("https"), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return Err(usage(format!("--address {address}: --certificate goes with https://")));
        };
        let (host, port) = (host.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(443));
        let tls = TlsConnector::from(Arc::new(self.client_config()?));
        let connector = tower::service_fn(move |_uri: Uri| {
            let (tls, host) = (tls.clone(), host.clone());
            async move {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                let name = ServerName::try_from(host).map_err(io::Error::other)?;
                Ok::<_, io::Error>(TokioIo::new(tls.connect(name, stream).await?))
            }
        });
        // The URI is a formality: the connector knows where, and shakes hands.
        let connected = Endpoint::from_static("http://broker").connect_with_connector(connector).await;
        connected.map_err(|error| unavailable(format!("cannot connect to {address}: {}", super::broker::chain(&error))))
    }

    fn client_config(&self) -> anyhow::Result<ClientConfig> {
        let path = self.certificate.clone().unwrap_or_default();
        let certificate = CertificateDer::from_pem_file(&path);
        let certificate = certificate.with_context(|| format!("{} holds no certificate in PEM", path.display()))?;
        let Some(provider) = CryptoProvider::get_default().cloned() else { bail!("no provider of cryptography") };
        let exactly = Arc::new(Exactly { certificate, provider });
        let builder = ClientConfig::builder().dangerous().with_custom_certificate_verifier(exactly);
        let mut config = match (&self.client_certificate, &self.client_key) {
            (Some(chain), Some(key)) => {
                let unreadable = || format!("{} and {} are no certificate and key", chain.display(), key.display());
                let certificates = CertificateDer::pem_file_iter(chain).with_context(unreadable)?;
                let certificates = certificates.collect::<Result<_, _>>().with_context(unreadable)?;
                let key = PrivateKeyDer::from_pem_file(key).with_context(unreadable)?;
                builder.with_client_auth_cert(certificates, key).with_context(unreadable)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    async fn ask_agent(&self, address: &str) -> anyhow::Result<&'static str> {
        let place = address.parse::<Address>().map_err(|error| usage(format!("--agent {address}: {error}")))?;
        let path = if self.alive { "/healthz" } else { "/readyz" };
        let answered = match &place {
            Address::Tcp(address) => match TcpStream::connect(address).await {
                Ok(stream) => get(stream, &address.to_string(), path).await,
                Err(error) => Err(error),
            },
            Address::Unix(socket) => match UnixStream::connect(socket).await {
                Ok(stream) => get(stream, "localhost", path).await,
                Err(error) => Err(error),
            },
        };
        match answered.map_err(|error| unavailable(format!("no answer of an agent at {place}: {error}")))? {
            200 => Ok(if self.alive { "alive" } else { "ready" }),
            503 => Err(unavailable("not ready".to_owned())),
            other => Err(unavailable(format!("what listens at {place} answers with status {other}: is it an agent?"))),
        }
    }
}

/// The status of one request (RFC 9112), whose body is of no interest.
async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: &str, path: &str) -> io::Result<u16> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(STATUS_LINE_BYTES).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    status.ok_or_else(|| io::Error::other("it does not speak HTTP"))
}

fn unavailable(message: String) -> anyhow::Error {
    Ended { exit: Exit::Unavailable, message }.into()
}

/// Takes one certificate, and from whoever has its private key only.
#[derive(Debug)]
struct Exactly {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Exactly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match end_entity.as_ref() == self.certificate.as_ref() {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A little less than what a probe is given.
const DEADLINE: Duration = Duration::from_secs(4);
const STATUS_LINE_BYTES: u64 = 64;

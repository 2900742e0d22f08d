//! The server's certificate: read from files, and read again when they change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::TlsSettings;

/// What a listener offers in ALPN (RFC 7301).
pub(super) type Protocols = &'static [&'static [u8]];

/// Why certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path} holds no {what} in PEM")]
    Pem { path: PathBuf, what: &'static str, source: rustls_pki_types::pem::Error },
    #[error("{path} holds no certificate")]
    Empty { path: PathBuf },
    #[error("an authority of {path} is not usable")]
    Authority { path: PathBuf, source: rustls::Error },
    #[error("client certificates cannot be checked with {path}")]
    Verifier { path: PathBuf, source: rustls::server::VerifierBuilderError },
    #[error("certificate {certificate} and private key {private_key} do not go together")]
    Pair { certificate: PathBuf, private_key: PathBuf, source: rustls::Error },
}

/// The current TLS settings of one listener. New connections take what is current; running ones keep what they have,
/// which is why a connection's age is capped.
pub(super) struct Tls {
    settings: TlsSettings,
    protocols: Protocols,
    current: ArcSwap<ServerConfig>,
}

impl Tls {
    pub fn load(settings: &TlsSettings, protocols: Protocols) -> Result<Self, TlsError> {
        let current = ArcSwap::from_pointee(server_config(settings, protocols)?);
        Ok(Self { settings: settings.clone(), protocols, current })
    }

    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files whenever one of them changes. A bad file keeps the old certificate.
    pub async fn keep_current(&self) {
        let mut seen = self.contents();
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tick.tick().await;
            let now = self.contents();
            if now == seen {
                continue;
            }
            seen = now;
            let reloaded = server_config(&self.settings, self.protocols);
            let outcome = if reloaded.is_ok() { "ok" } else { "failed" };
            metrics::counter!("carnet_tls_reloads_total", "outcome" => outcome).increment(1);
            metrics::gauge!("carnet_tls_stale").set(if reloaded.is_ok() { 0.0 } else { 1.0 });
            match reloaded {
                Ok(config) => {
                    self.current.store(Arc::new(config));
                    tracing::info!("the server certificate was replaced");
                }
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the changed server certificate cannot be used; the old one stays"
                ),
            }
        }
    }

    /// Contents, not times: a mounted secret is replaced by changing a symbolic link.
    fn contents(&self) -> Vec<Option<Vec<u8>>> {
        let TlsSettings { certificate, private_key, client_ca } = &self.settings;
        let paths = [Some(certificate), Some(private_key), client_ca.as_ref()];
        paths.into_iter().flatten().map(|path| fs::read(path).ok()).collect()
    }
}

/// Whether a listener could use them.
///
/// # Errors
/// What is wrong with certificate, key or authorities.
pub fn check_tls(settings: &TlsSettings) -> Result<(), TlsError> {
    server_config(settings, &[]).map(drop)
}

fn server_config(settings: &TlsSettings, protocols: Protocols) -> Result<ServerConfig, TlsError> {
    let TlsSettings { certificate, private_key, client_ca } = settings;
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_file(private_key).map_err(|source| TlsError::Pem {
        path: private_key.clone(),
        what: "private key",
        source,
    })?;
    let builder = ServerConfig::builder();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(|source| TlsError::Authority { path: path.clone(), source })?;
            }
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|source| TlsError::Verifier { path: path.clone(), source })?,
            )
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|source| TlsError::Pair {
        certificate: certificate.clone(),
        private_key: private_key.clone(),
        source,
    })?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::Pem { path: path.to_owned(), what: "certificate", source };
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    if chain.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(chain) }
}

/// Certificates are renewed days before they end; seconds are soon enough.
const LOOK_EVERY: Duration = Duration::from_secs(2);

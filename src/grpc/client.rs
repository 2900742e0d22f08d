//! The broker's gRPC interface from a caller's side: over TLS, on loopback, or through a Unix socket.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint as TonicEndpoint, Uri};
use tower::Service;

use crate::http::{Endpoint, InvalidEndpoint};

/// Where the broker listens: `https://host:port`, `http://` on loopback, or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Network(Endpoint),
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => text.parse().map(Self::Network),
        }
    }
}

/// Why the broker cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot read the authorities in {path}")]
    CaFile { path: PathBuf, source: std::io::Error },
    #[error("cannot connect to the broker at {address}: is it running, and is --address right?")]
    Connect { address: String, source: tonic::transport::Error },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(endpoint) => endpoint.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connection that all clients of the broker's services can share; it is made anew when it breaks. `ca_file` is trusted
/// besides the system's authorities.
///
/// # Errors
/// [`ConnectError`] says what to check.
pub async fn connect(address: &Address, ca_file: Option<&PathBuf>) -> Result<Channel, ConnectError> {
    let connected = match address {
        Address::Network(endpoint) => network(endpoint, ca_file).await?.connect().await,
        Address::Unix(path) => local().connect_with_connector(socket(path)).await,
    };
    connected.map_err(|source| ConnectError::Connect { address: address.to_string(), source })
}

/// The same for a broker that may be away now: the first call connects.
///
/// # Errors
/// [`ConnectError`] where `ca_file` is of no use.
pub async fn connect_lazily(address: &Address, ca_file: Option<&PathBuf>) -> Result<Channel, ConnectError> {
    Ok(match address {
        Address::Network(endpoint) => network(endpoint, ca_file).await?.connect_lazy(),
        Address::Unix(path) => local().connect_with_connector_lazy(socket(path)),
    })
}

/// A call with a deadline: a little more than the broker allows itself.
pub fn call<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_DEADLINE);
    request
}

async fn network(endpoint: &Endpoint, ca_file: Option<&PathBuf>) -> Result<TonicEndpoint, ConnectError> {
    let failed = |source| ConnectError::Connect { address: endpoint.to_string(), source };
    let mut channel = patient(TonicEndpoint::from_shared(endpoint.to_string()).map_err(failed)?);
    if endpoint.as_str().starts_with("https:") {
        let mut tls = ClientTlsConfig::new().with_native_roots();
        if let Some(path) = ca_file {
            let pem =
                tokio::fs::read(path).await.map_err(|source| ConnectError::CaFile { path: path.clone(), source })?;
            tls = tls.ca_certificate(Certificate::from_pem(pem));
        }
        channel = channel.tls_config(tls).map_err(failed)?;
    }
    Ok(channel)
}

/// The URI is a formality: the connector dials the socket.
fn local() -> TonicEndpoint {
    patient(TonicEndpoint::from_static("http://localhost"))
}

fn socket(
    path: &Path,
) -> impl Service<Uri, Response = TokioIo<UnixStream>, Error = io::Error, Future: Send> + Send + use<> {
    let path = path.to_owned();
    tower::service_fn(move |_uri: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    })
}

/// A watch may be silent for hours: only pings tell that the other end is still there.
fn patient(endpoint: TonicEndpoint) -> TonicEndpoint {
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_DEADLINE)
}

const CALL_DEADLINE: Duration = Duration::from_secs(35);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEP_ALIVE_DEADLINE: Duration = Duration::from_secs(10);

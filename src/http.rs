//! The one outbound HTTP client: every answer has a deadline and a size limit, and nothing is redirected.

#[cfg(any(test, feature = "testing"))]
mod fake;
mod unreached;

pub use unreached::Unreached;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use url::{Host, Url};

/// How calls leave this process.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// PEM file with authorities that are trusted besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// The base URL of a service that is called: `https`, or `http` on loopback.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint(Arc<Url>);

/// Why a text is not an [`Endpoint`].
#[derive(Debug, thiserror::Error)]
pub enum InvalidEndpoint {
    #[error("not a URL: {0}")]
    Syntax(#[from] url::ParseError),
    #[error("must start with https:// (http:// is accepted for 127.0.0.0/8, [::1] and localhost only)")]
    Plaintext,
    #[error("must not carry a user name or password")]
    UserInfo,
    #[error("must not have a query or fragment")]
    QueryOrFragment,
}

impl Endpoint {
    /// The address of a managed identity endpoint, which speaks plain HTTP on a link-local address (169.254.169.254 on
    /// machines: how-to-use-vm-token; others of 169.254.0.0/16 in App Service), besides what [`FromStr`] takes.
    pub fn metadata(text: &str) -> Result<Self, InvalidEndpoint> {
        let link_local = Url::parse(text).is_ok_and(|url| {
            url.scheme() == "http" && matches!(url.host(), Some(Host::Ipv4(address)) if address.is_link_local())
        });
        if link_local { Self::parse(text, Plaintext::Accepted) } else { text.parse() }
    }

    /// `path` below this base; `path` is made of segments that need no escaping.
    pub fn join(&self, path: &str) -> String {
        format!("{}/{}", self.as_str(), path.trim_start_matches('/'))
    }

    /// Without a trailing slash.
    pub fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }

    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// Same scheme, host and port: a document fetched from here may name other documents only there.
    pub fn same_origin(&self, other: &str) -> bool {
        Url::parse(other).is_ok_and(|other| {
            other.origin() == self.0.origin() && other.username().is_empty() && other.password().is_none()
        })
    }

    fn parse(text: &str, plaintext: Plaintext) -> Result<Self, InvalidEndpoint> {
        let url = Url::parse(text)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidEndpoint::UserInfo);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidEndpoint::QueryOrFragment);
        }
        match (url.scheme(), plaintext) {
            ("https", _) | ("http", Plaintext::Accepted) if url.host().is_some() => {}
            ("http", Plaintext::LoopbackOnly) if is_loopback(&url) => {}
            _ => return Err(InvalidEndpoint::Plaintext),
        }
        Ok(Self(Arc::new(url)))
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, Plaintext::LoopbackOnly)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Copy)]
enum Plaintext {
    LoopbackOnly,
    Accepted,
}

/// By the address that is dialled, not by its spelling: `0x7f000001` is loopback, `[::ffff:127.0.0.1]` is not taken.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// One call. Bodies hold tokens, so there is no `Debug`.
#[expect(missing_debug_implementations, reason = "bodies and headers hold tokens")]
pub struct Request {
    method: http::Method,
    url: String,
    headers: HeaderMap,
    body: Option<String>,
}

impl Request {
    pub fn get(url: impl Into<String>) -> Self {
        Self { method: http::Method::GET, url: url.into(), headers: HeaderMap::new(), body: None }
    }

    pub fn post_form(url: impl Into<String>, fields: &[(&str, &str)]) -> Self {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        Self::post(url, "application/x-www-form-urlencoded", body)
    }

    pub fn post_json(url: impl Into<String>, body: &serde_json::Value) -> Self {
        Self::post(url, "application/json", body.to_string())
    }

    /// The whole request, for a test that looks at what is sent.
    #[cfg(test)]
    pub fn shown(&self) -> String {
        let headers = self.headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().expect("text")));
        format!(
            "{} {}\n{}{}",
            self.method,
            self.url,
            headers.collect::<String>(),
            self.body.as_deref().unwrap_or_default()
        )
    }

    /// Marks the value as sensitive, so that it stays out of logs and compression tables.
    pub fn header(mut self, name: HeaderName, value: &str) -> Result<Self, HttpError> {
        let mut value = HeaderValue::from_str(value)
            .map_err(|source| HttpError::Header { name: name.clone(), source: Arc::new(source) })?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Ok(self)
    }

    fn post(url: impl Into<String>, content_type: &'static str, body: String) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self { method: http::Method::POST, url: url.into(), headers, body: Some(body) }
    }
}

impl Clone for Request {
    fn clone(&self) -> Self {
        Self {
            method: self.method.clone(),
            url: self.url.clone(),
            headers: self.headers.clone(),
            body: self.body.clone(),
        }
    }
}

/// A whole answer within its limits. Bodies hold tokens, so there is no `Debug`.
#[expect(missing_debug_implementations, reason = "bodies hold tokens")]
pub struct Response {
    pub status: http::StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// In DER, from a client that keeps them.
    pub peer_certificate: Option<Bytes>,
}

impl Response {
    /// `Retry-After` in seconds or as an HTTP date (RFC 9110 section 10.2.3), at most an hour.
    pub fn retry_after(&self, now: SystemTime) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let wait = match text.parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => jiff::fmt::rfc2822::parse(text)
                .ok()
                .and_then(|at| SystemTime::from(at.timestamp()).duration_since(now).ok())?,
        };
        Some(wait.min(LONGEST_RETRY_AFTER))
    }
}

/// Why there is no answer. None of them holds a body or a header's value.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HttpError {
    #[error("could not connect: {0}")]
    Connect(Unreached, #[source] Arc<reqwest::Error>),
    #[error("no whole answer within {}s", .0.as_secs_f32())]
    Deadline(Duration),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the connection broke")]
    Broken(#[source] Arc<reqwest::Error>),
    #[error("header {name} cannot be sent")]
    Header { name: HeaderName, source: Arc<http::header::InvalidHeaderValue> },
}

/// Why the client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot read the authorities in {path}")]
    CaFile { path: PathBuf, source: rustls_pki_types::pem::Error },
    #[error("{path} holds no certificate")]
    NoCertificate { path: PathBuf },
    #[error("cannot trust a certificate of {path}")]
    Certificate { path: PathBuf, source: rustls::Error },
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    #[error("cannot make the HTTP client")]
    Build(#[from] reqwest::Error),
}

/// Connections are kept and shared by all callers: one client for the whole process.
#[derive(Debug, Clone)]
pub struct Client {
    /// For `https`, through the proxy of the environment where one is set.
    proxied: reqwest::Client,
    /// For plain `http`, which is loopback or the metadata address: never through a proxy.
    direct: reqwest::Client,
    #[cfg(any(test, feature = "testing"))]
    fake: Option<Arc<fake::Fake>>,
}

#[derive(Clone, Copy)]
enum PeerCertificates {
    Dropped,
    Kept,
}

impl Client {
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        Self::with(settings, PeerCertificates::Dropped)
    }

    /// For those who look at certificates: answers come with their server's.
    pub fn keeping_certificates(settings: &Settings) -> Result<Self, ClientError> {
        Self::with(settings, PeerCertificates::Kept)
    }

    fn with(settings: &Settings, certificates: PeerCertificates) -> Result<Self, ClientError> {
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots(settings)?).with_no_client_auth();
        let builder = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .tls_info(matches!(certificates, PeerCertificates::Kept))
                .pool_idle_timeout(POOL_IDLE)
                .user_agent(USER_AGENT)
        };
        Ok(Self {
            proxied: builder().build()?,
            direct: builder().no_proxy().build()?,
            #[cfg(any(test, feature = "testing"))]
            fake: None,
        })
    }

    /// Sends `request` and reads the whole answer, of at most `limit` bytes, within `deadline`.
    pub async fn send(&self, request: Request, limit: usize, deadline: Duration) -> Result<Response, HttpError> {
        tokio::time::timeout(deadline, self.exchange(request, limit))
            .await
            .map_err(|_elapsed| HttpError::Deadline(deadline))?
    }

    async fn exchange(&self, request: Request, limit: usize) -> Result<Response, HttpError> {
        #[cfg(any(test, feature = "testing"))]
        if let Some(fake) = &self.fake {
            return fake.answer(&request, limit);
        }
        let client = if request.url.starts_with("https:") { &self.proxied } else { &self.direct };
        let mut builder = client.request(request.method, request.url).headers(request.headers);
        if let Some(body) = request.body {
            builder = builder.body(body);
        }
        let mut answer = builder.send().await.map_err(failure)?;
        let (status, headers) = (answer.status(), std::mem::take(answer.headers_mut()));
        let peer = answer.extensions().get::<reqwest::tls::TlsInfo>().and_then(|info| info.peer_certificate());
        let peer_certificate = peer.map(Bytes::copy_from_slice);
        // Grows with what arrives: a large Content-Length alone costs nothing.
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(failure)? {
            if body.len() + chunk.len() > limit {
                return Err(HttpError::TooLarge(limit));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Response { status, headers, body: body.freeze(), peer_certificate })
    }
}

/// The error's URL is dropped: a managed identity request carries identifiers in it.
fn failure(error: reqwest::Error) -> HttpError {
    let unreached = error.is_connect().then(|| Unreached::of(&error));
    let error = Arc::new(error.without_url());
    match unreached {
        Some(why) => HttpError::Connect(why, error),
        None => HttpError::Broken(error),
    }
}

/// The system's authorities (none on a bare image is no error: plain loopback needs none) and the configured ones.
pub fn roots(settings: &Settings) -> Result<rustls::RootCertStore, ClientError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &settings.ca_file {
        add_authorities(&mut roots, path)?;
    }
    Ok(roots)
}

/// Trusts the authorities of a PEM file, which holds one at least.
pub fn add_authorities(roots: &mut rustls::RootCertStore, path: &Path) -> Result<(), ClientError> {
    let unreadable = |source| ClientError::CaFile { path: path.to_owned(), source };
    let found =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    if found.is_empty() {
        return Err(ClientError::NoCertificate { path: path.to_owned() });
    }
    for certificate in found {
        roots.add(certificate).map_err(|source| ClientError::Certificate { path: path.to_owned(), source })?;
    }
    Ok(())
}

/// What the clouds' logs show as the caller.
pub const USER_AGENT: &str = concat!("carnet/", env!("CARGO_PKG_VERSION"));

/// A cloud front end that has not accepted a connection by now will not do so in time for the caller.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Shorter than the 4 minutes after which cloud load balancers drop silent connections.
const POOL_IDLE: Duration = Duration::from_secs(90);

/// A longer wait says nothing that a caller can use.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w13_plain_http_is_taken_on_loopback_only() {
        for accepted in [
            "https://sts.googleapis.com",
            "http://127.0.0.1:80",
            "http://127.9.9.9/",
            "http://[::1]:1/x",
            "http://localhost:1",
            "http://2130706433/",
        ] {
            assert!(accepted.parse::<Endpoint>().is_ok(), "{accepted}");
        }
        for refused in [
            "http://example.com",
            "http://10.0.0.1",
            "http://169.254.169.254",
            "http://[::ffff:127.0.0.1]",
            "http://localhost.",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://0.0.0.0",
            "http://[::]",
            "ftp://127.0.0.1",
            "file:///etc/passwd",
            "https://user@host",
            "https://user:pass@host",
            "http://127.0.0.1@evil.example",
            "https://host?x=1",
            "https://host#x",
            "",
        ] {
            assert!(refused.parse::<Endpoint>().is_err(), "{refused}");
        }
    }

    #[test]
    fn link_local_addresses_are_the_only_other_plain_ones() {
        for accepted in ["http://169.254.169.254", "http://169.254.129.3:8081/msi/token", "http://127.0.0.1:1"] {
            assert!(Endpoint::metadata(accepted).is_ok(), "{accepted}");
        }
        for refused in
            ["http://169.253.169.254", "http://10.0.0.1", "http://[::ffff:169.254.1.1]", "http://example.com"]
        {
            assert!(Endpoint::metadata(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_document_of_another_origin_is_told_apart() {
        let endpoint: Endpoint = "https://login.microsoftonline.com/x".parse().expect("a URL");
        assert!(endpoint.same_origin("https://login.microsoftonline.com/common/keys"));
        for other in [
            "http://login.microsoftonline.com/",
            "https://login.microsoftonline.com:444/",
            "https://evil.example/",
            "https://user@login.microsoftonline.com/",
            "keys",
        ] {
            assert!(!endpoint.same_origin(other), "{other}");
        }
    }

    /// Answers every request on a connection with "ok", and counts connections.
    async fn keep_alive_server() -> (String, Arc<std::sync::atomic::AtomicUsize>) {
        use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = accepted.clone();
        tokio::spawn(async move {
            while let Ok((stream, _peer)) = listener.accept().await {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let mut line = String::new();
                    while stream.read_line(&mut line).await.is_ok_and(|length| length > 0) {
                        if line == "\r\n" {
                            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                            stream.write_all(answer).await.expect("written");
                        }
                        line.clear();
                    }
                });
            }
        });
        (url, accepted)
    }

    #[tokio::test]
    async fn w06_calls_one_after_another_share_a_connection() {
        let (url, accepted) = keep_alive_server().await;
        let client = Client::new(&Settings::default()).expect("a client");
        for _ in 0..50 {
            let answer = client.send(Request::get(url.clone()), 10, CONNECT_TIMEOUT).await.expect("an answer");
            assert_eq!(answer.body, "ok");
        }
        assert_eq!(accepted.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn an_answer_beyond_its_limit_is_cut_off() {
        let (url, _accepted) = keep_alive_server().await;
        let client = Client::new(&Settings::default()).expect("a client");
        let refused = client.send(Request::get(url), 1, CONNECT_TIMEOUT).await;
        assert!(matches!(refused, Err(HttpError::TooLarge(1))));
    }

    #[test]
    fn retry_after_is_read_in_both_forms_and_capped() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |text: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            let status = http::StatusCode::OK;
            Response { status, headers, body: Bytes::new(), peer_certificate: None }.retry_after(now)
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:47 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(wait("99999999"), Some(LONGEST_RETRY_AFTER));
        assert_eq!(wait("soon"), None);
    }
}

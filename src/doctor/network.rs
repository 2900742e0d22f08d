//! Documents fetched as the clouds would fetch them, with what the answer tells of the way there.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use http::header::DATE;
use url::{Host, Url};

use super::{Finding, Severity};
use crate::clock::Clock;
use crate::http::{Client, HttpError, Request, Response};
use crate::telemetry::Causes;

pub(super) struct Network {
    http: Client,
    clock: Arc<dyn Clock>,
}

/// An answer with its time.
pub(super) struct Fetched {
    pub response: Response,
    /// How far the answering clock is ahead of this one's: positive or negative.
    pub ahead: Option<Ahead>,
}

/// The difference of two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ahead {
    Theirs(Duration),
    Ours(Duration),
}

impl Network {
    pub fn new(http: Client, clock: Arc<dyn Clock>) -> Self {
        Self { http, clock }
    }

    pub fn http(&self) -> &Client {
        &self.http
    }

    pub async fn get(&self, url: &str) -> Result<Fetched, HttpError> {
        let sent_at = self.clock.now();
        let response = self.http.send(Request::get(url), DOCUMENT_MAX_BYTES, DEADLINE).await?;
        let answered_at = self.clock.now();
        let date = response.headers.get(DATE).and_then(|value| value.to_str().ok());
        let date = date.and_then(|text| jiff::fmt::rfc2822::parse(text).ok()).map(|zoned| zoned.timestamp().into());
        let ahead = date.map(|date| difference(date, sent_at, answered_at));
        Ok(Fetched { response, ahead })
    }
}

/// A header says whole seconds of some moment between question and answer.
fn difference(date: SystemTime, sent_at: SystemTime, answered_at: SystemTime) -> Ahead {
    match (date.duration_since(answered_at), sent_at.duration_since(date + Duration::from_secs(1))) {
        (Ok(ahead), _) => Ahead::Theirs(ahead),
        (Err(_), Ok(behind)) => Ahead::Ours(behind),
        (Err(_), Err(_)) => Ahead::Ours(Duration::ZERO),
    }
}

/// What there is to say when `url` gave no answer.
pub(super) fn unreachable(about: &str, url: &str, error: &HttpError) -> Finding {
    let through = if url.starts_with("https:") { proxy() } else { None };
    let (code, way) = match &through {
        Some(proxy) => ("proxy", format!(" through the proxy {proxy} of HTTPS_PROXY")),
        None => ("unreachable", String::new()),
    };
    let advice = match through {
        Some(_) => {
            "the broker takes HTTPS_PROXY and NO_PROXY from its environment: correct the proxy's address, or name the host \
             in NO_PROXY; a proxy that opens TLS needs its authority in outbound.ca_file"
        }
        None => {
            "check name, route and firewall from here, HTTPS_PROXY where there is no other way out, and outbound.ca_file \
             where somebody in between opens TLS"
        }
    };
    let seen = format!("{url} does not answer{way}: {}", Causes(error));
    let look = format!("curl -sS -o /dev/null -w '%{{http_code}}\\n' '{}'", url.replace('\'', "%27"));
    Finding::new(Severity::Error, code, about, seen).repair(advice, &[&look])
}

/// Where calls over https go first, without its password.
fn proxy() -> Option<String> {
    let named = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let text = named.iter().find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()))?;
    let url = Url::parse(&text).or_else(|_no_scheme| Url::parse(&format!("http://{text}"))).ok();
    let shown = url.and_then(|url| Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?)));
    Some(shown.unwrap_or_else(|| "whose address is no URL".to_owned()))
}

/// Where the host of a URL is, as far as this machine knows.
pub(super) async fn addresses(url: &Url) -> Vec<IpAddr> {
    let port = url.port_or_known_default().unwrap_or(443);
    match url.host() {
        Some(Host::Ipv4(address)) => vec![address.into()],
        Some(Host::Ipv6(address)) => vec![address.into()],
        Some(Host::Domain(name)) => {
            let found = tokio::time::timeout(DEADLINE, tokio::net::lookup_host((name, port))).await;
            found.ok().and_then(Result::ok).into_iter().flatten().map(|address| address.ip()).collect()
        }
        None => Vec::new(),
    }
}

/// Whether nobody on the internet can reach the address.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let shared = matches!(v4.octets(), [100, 64..=127, ..]);
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || shared
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_private(v4.into()),
            None => v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local(),
        },
    }
}

pub(super) fn is_success(response: &Response) -> bool {
    response.status == StatusCode::OK
}

const DEADLINE: Duration = Duration::from_secs(10);

/// As the broker itself takes it.
const DOCUMENT_MAX_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_agree_within_the_second_of_a_header_agree() {
        let at = |seconds: f64| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds);
        assert_eq!(difference(at(100.0), at(100.2), at(100.9)), Ahead::Ours(Duration::ZERO));
        assert_eq!(difference(at(100.0), at(99.9), at(100.1)), Ahead::Ours(Duration::ZERO));
        assert_eq!(difference(at(700.0), at(99.0), at(100.0)), Ahead::Theirs(Duration::from_secs(600)));
        assert_eq!(difference(at(100.0), at(701.0), at(701.5)), Ahead::Ours(Duration::from_secs(600)));
    }

    #[test]
    fn w13_addresses_that_the_internet_does_not_reach_are_private() {
        for private in [
            "10.1.2.3",
            "192.168.0.1",
            "172.16.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "0.0.0.0",
        ] {
            assert!(is_private(private.parse().expect("an address")), "{private}");
        }
        for public in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:4860:4860::8888"] {
            assert!(!is_private(public.parse().expect("an address")), "{public}");
        }
    }
}

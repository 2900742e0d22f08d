//! An external issuer's public keys as a cloud sees them: discovery, then JWKS, cached for a while.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use url::{Host, Url};

use crate::clock::Clock;
use crate::sandbox::locked::locked;

/// Keyed by issuer; an entry lives [`KEY_LIFE`] unless told otherwise and is not renewed for an unknown `kid`: a key
/// must be published before it signs. Failures are not cached. Bounded by the number of registered issuers.
pub(super) struct IssuerKeys {
    clock: Arc<dyn Clock>,
    client: reqwest::Client,
    life: Mutex<Duration>,
    cached: Mutex<BTreeMap<String, Cached>>,
}

struct Cached {
    keys: Vec<Value>,
    until: SystemTime,
}

/// Which of the two documents could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum IssuerUnreachable {
    #[error("the discovery document could not be fetched")]
    Discovery,
    #[error("the key set could not be fetched")]
    Keys,
}

impl IssuerKeys {
    pub(super) fn new(clock: Arc<dyn Clock>) -> io::Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            // Loopback http only: no certificates, and none to load.
            .tls_certs_only([])
            .redirect(reqwest::redirect::Policy::none())
            .timeout(FETCH_TIMEOUT)
            .build()
            .map_err(io::Error::other)?;
        Ok(Self { clock, client, life: Mutex::new(KEY_LIFE), cached: Mutex::default() })
    }

    /// The issuer's keys in the order of its document.
    pub(super) async fn of(&self, issuer: &str) -> Result<Vec<Value>, IssuerUnreachable> {
        if let Some(cached) = locked(&self.cached).get(issuer)
            && self.clock.now() < cached.until
        {
            return Ok(cached.keys.clone());
        }
        let keys = self.fetch(issuer).await?;
        let until = self.clock.now() + *locked(&self.life);
        let keep = Cached { keys: keys.clone(), until };
        locked(&self.cached).insert(issuer.to_owned(), keep);
        Ok(keys)
    }

    pub(super) fn set_life(&self, life: Duration) {
        *locked(&self.life) = life;
    }

    pub(super) fn forget(&self) {
        locked(&self.cached).clear();
    }

    async fn fetch(&self, issuer: &str) -> Result<Vec<Value>, IssuerUnreachable> {
        let base = issuer.trim_end_matches('/');
        let discovery = self
            .json(&format!("{base}/.well-known/openid-configuration"))
            .await
            .filter(|document| document.get("issuer").and_then(Value::as_str) == Some(issuer))
            .ok_or(IssuerUnreachable::Discovery)?;
        let jwks_uri = discovery.get("jwks_uri").and_then(Value::as_str);
        let jwks = self.json(jwks_uri.unwrap_or_default()).await;
        jwks.as_ref().and_then(|document| document.get("keys")?.as_array().cloned()).ok_or(IssuerUnreachable::Keys)
    }

    async fn json(&self, url: &str) -> Option<Value> {
        let url = Url::parse(url).ok().filter(is_loopback_http)?;
        let mut answer = self.client.get(url).send().await.ok()?;
        if answer.status() != http::StatusCode::OK {
            return None;
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.ok()? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_DOCUMENT {
                return None;
            }
        }
        serde_json::from_slice(&body).ok()
    }
}

/// The real clouds demand https and a public name; the sandbox never leaves the machine, so it takes this instead.
pub(super) fn is_loopback_http(url: &Url) -> bool {
    let is_loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "http" && is_loopback
}

/// How long Entra and Google really keep an issuer's keys is not known (facts, "not verified").
const KEY_LIFE: Duration = Duration::from_secs(3600);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_DOCUMENT: usize = 256 * 1024;

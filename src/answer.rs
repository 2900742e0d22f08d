//! What the answers of both clouds' token services have in common: whether asking again helps, a token that can be sent
//! on, and seconds in either form.

use std::time::Duration;

use http::StatusCode;
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};

use crate::http::Response;
use crate::secret::Secret;

/// What to make of an answer.
#[derive(Debug)]
pub enum Verdict {
    /// Whatever it says, asking again gives the same.
    Final,
    Transient(String),
    /// The service cannot fetch what the token's issuer publishes; it says so with a status of any kind.
    IssuerUnreachable,
    Throttled,
}

/// Statuses that every service means alike: 429 throttles, 408 and 5xx pass.
pub fn by_status(response: &Response) -> Verdict {
    match response.status {
        StatusCode::TOO_MANY_REQUESTS => Verdict::Throttled,
        status if status == StatusCode::REQUEST_TIMEOUT || status.is_server_error() => {
            Verdict::Transient(format!("HTTP {}", status.as_u16()))
        }
        _ => Verdict::Final,
    }
}

/// As [`by_status`], of services that answer in JSON and nothing else: a success in another form is a page of a proxy on
/// the way, or half an answer, and passes too.
pub fn by_form(response: &Response) -> Verdict {
    match by_status(response) {
        Verdict::Final
            if response.status.is_success() && serde_json::from_slice::<IgnoredAny>(&response.body).is_err() =>
        {
            Verdict::Transient(format!("HTTP {} without JSON, as of a proxy on the way", response.status.as_u16()))
        }
        verdict => verdict,
    }
}

/// A token endpoint's success (RFC 6749 section 5.1).
#[derive(Debug, Deserialize)]
pub struct TokenAnswer {
    #[serde(deserialize_with = "token")]
    pub access_token: Secret,
    #[serde(rename = "token_type", deserialize_with = "bearer")]
    _bearer: (),
    #[serde(deserialize_with = "seconds")]
    expires_in: u64,
}

impl TokenAnswer {
    /// `None` where the answer lacks a part, or its token is not live.
    pub fn read(response: &Response) -> Option<Self> {
        let answer: Option<Self> = serde_json::from_slice(&response.body).ok();
        answer.filter(|answer| answer.expires_in > 0)
    }

    pub fn life(&self) -> Duration {
        Duration::from_secs(self.expires_in).min(LONGEST)
    }
}

/// Entra's tokens with continuous access evaluation live up to 28 h; nothing lives longer.
pub const LONGEST: Duration = Duration::from_secs(28 * 3600);

/// A service's error word where it is one, else the status: never free text.
pub fn error_word(word: &str, response: &Response) -> String {
    let plain = (1..=64).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if plain { word.to_owned() } else { format!("HTTP {}", response.status.as_u16()) }
}

/// A token that every header, file and line-based protocol after us can carry: visible ASCII (RFC 6750 section 2.1
/// allows less).
pub fn token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    let token = Secret::deserialize(deserializer)?;
    let visible = !token.is_empty() && token.expose().bytes().all(|byte| byte.is_ascii_graphic());
    if visible { Ok(token) } else { Err(D::Error::custom("a token that cannot be sent")) }
}

/// Services write numbers as numbers or as texts, and clients take both.
pub fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Seconds {
        Number(u64),
        Text(String),
    }

    match Seconds::deserialize(deserializer)? {
        Seconds::Number(number) => Ok(number),
        Seconds::Text(text) => text.parse().map_err(D::Error::custom),
    }
}

/// `token_type`: any other than `Bearer` needs a proof that nobody after us could give.
pub fn bearer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    let token_type = String::deserialize(deserializer)?;
    if token_type.eq_ignore_ascii_case("Bearer") { Ok(()) } else { Err(D::Error::custom("not a bearer token")) }
}

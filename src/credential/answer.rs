//! What the answers of both clouds have in common: a token that can be sent on, and seconds in either form.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::secret::Secret;

/// A token that every header, file and line-based protocol after us can carry: visible ASCII (RFC 6750 section 2.1
/// allows less).
pub(super) fn token<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    let token = Secret::deserialize(deserializer)?;
    let visible = !token.is_empty() && token.expose().bytes().all(|byte| byte.is_ascii_graphic());
    if visible { Ok(token) } else { Err(D::Error::custom("a token that cannot be sent")) }
}

/// Services write numbers as numbers or as texts, and clients take both.
pub(super) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
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
pub(super) fn bearer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    let token_type = String::deserialize(deserializer)?;
    if token_type.eq_ignore_ascii_case("Bearer") { Ok(()) } else { Err(D::Error::custom("not a bearer token")) }
}

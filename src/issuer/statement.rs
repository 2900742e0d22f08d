//! What the issuer says under its name besides assertions, for those who have its keys: no cloud takes it for a token.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::time::{Duration, SystemTime};

use aws_lc_rs::error::Unspecified;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value, json};

use super::schedule::{Line, Turn};
use super::{Algorithm, Issuer, Keyring, SigningKey, StoredKey, encode};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::json::UniqueMap;

impl Issuer {
    /// `claims`, with `iss` and `iat`, as a JSON Web Signature of this type (RFC 7515). It has no audience, no subject and
    /// no end, without which nobody takes an assertion.
    pub fn state(&self, typ: &str, mut claims: Map<String, Value>) -> Result<String, Unspecified> {
        let now = self.clock.now();
        claims.insert("iss".to_owned(), json!(self.url));
        claims.insert("iat".to_owned(), json!(unix_seconds(now)));
        let keys = self.keys.load();
        let key = keys.signing(Algorithm::Es256, now).ok_or(Unspecified)?;
        let header = json!({"typ": typ, "alg": Algorithm::Es256.as_str(), "kid": key.kid()});
        let signed = format!("{}.{}", encode(&header), encode(&Value::Object(claims)));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())?);
        Ok(format!("{signed}.{signature}"))
    }

    /// The key that signs statements now.
    pub fn stating_kid(&self) -> Option<String> {
        self.keys.load().signing(Algorithm::Es256, self.clock.now()).map(|key| key.kid().to_owned())
    }
}

/// The same without an issuer: nobody signs it (RFC 7519 section 6).
pub fn unsigned_statement(typ: &str, claims: Map<String, Value>) -> String {
    format!("{}.{}.", encode(&json!({"typ": typ, "alg": "none"})), encode(&Value::Object(claims)))
}

/// A statement as it was found: its claims are worth what [`Statement::standing`] says.
#[derive(Debug)]
pub struct Statement<'a> {
    pub claims: Map<String, Value>,
    jws: Jws<'a>,
}

/// A compact JSON Web Signature by ES256, or by nobody. Its payload is not looked at.
#[derive(Debug)]
struct Jws<'a> {
    header: Map<String, Value>,
    payload: Vec<u8>,
    signed: &'a str,
    signature: &'a str,
    /// `None`: unsigned.
    kid: Option<String>,
}

/// What a signature is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    Signed,
    Unsigned,
    /// By a key that is not known here.
    UnknownKey(String),
    /// It is that key's, and says of itself that it was made when that key did not sign: the key has leaked, or a clock
    /// was wrong by much.
    Untimely(String),
    /// It is not that key's.
    Wrong(String),
}

impl<'a> Statement<'a> {
    /// `None` for what is no statement of this type.
    pub fn read(text: &'a str, typ: &str) -> Option<Self> {
        let jws = Jws::read(text).filter(|jws| jws.header.get("typ").and_then(Value::as_str) == Some(typ))?;
        let UniqueMap(claims) = serde_json::from_slice(&jws.payload).ok()?;
        Some(Self { claims, jws })
    }

    pub fn standing(&self, keys: &StatementKeys) -> Standing {
        match (self.jws.standing(keys), &self.jws.kid) {
            (Standing::Signed, Some(kid)) if !self.is_timely(kid, keys) => Standing::Untimely(kid.clone()),
            (standing, _kid) => standing,
        }
    }

    fn is_timely(&self, kid: &str, keys: &StatementKeys) -> bool {
        let made_at = self.claims.get("iat").and_then(Value::as_u64).and_then(from_unix_seconds);
        keys.keys.get(kid).zip(made_at).is_some_and(|(known, at)| known.signed_at(at))
    }
}

impl<'a> Jws<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let [header, payload] = [header, payload].map(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok());
        let UniqueMap(header) = serde_json::from_slice(&header?).ok()?;
        let field = |name: &str| header.get(name).and_then(Value::as_str);
        let kid = match field("alg")? {
            "none" if signature.is_empty() => None,
            "ES256" => Some(field("kid")?.to_owned()),
            _ => return None,
        };
        // An extension that nobody here knows (RFC 7515 section 4.1.11).
        if header.contains_key("crit") {
            return None;
        }
        Some(Self { header, payload: payload?, signed, signature, kid })
    }

    fn standing(&self, keys: &StatementKeys) -> Standing {
        let Some(kid) = self.kid.clone() else { return Standing::Unsigned };
        let Some(known) = keys.keys.get(&kid) else { return Standing::UnknownKey(kid) };
        let good = verifies(&known.key, self.signed.as_bytes(), self.signature);
        if good { Standing::Signed } else { Standing::Wrong(kid) }
    }
}

/// `signature` is base64url.
fn verifies(key: &DecodingKey, message: &[u8], signature: &str) -> bool {
    jsonwebtoken::crypto::verify(signature, message, key, jsonwebtoken::Algorithm::ES256).unwrap_or(false)
}

/// Public keys by their names, each with the time in which it signed, as far as that is known.
#[derive(Clone, Default)]
pub struct StatementKeys {
    keys: HashMap<String, Known>,
    /// Since when the oldest key of these signs: none that is missing here signed later.
    begun: Option<SystemTime>,
}

#[derive(Clone)]
struct Known {
    key: DecodingKey,
    /// `None`: since ever.
    from: Option<SystemTime>,
    /// `None`: it signs, or nobody knows.
    until: Option<SystemTime>,
}

impl Known {
    fn signed_at(&self, at: SystemTime) -> bool {
        self.from.is_none_or(|from| at.checked_add(SLACK).is_some_and(|at| at >= from))
            && self.until.and_then(|until| until.checked_add(SLACK)).is_none_or(|until| at <= until)
    }
}

/// Why a text is no set of keys.
#[derive(Debug, thiserror::Error)]
pub enum InvalidJwks {
    #[error("it is no JSON")]
    Json(#[from] serde_json::Error),
    #[error("it has no list `keys` with an ES256 key in it")]
    Empty,
}

impl StatementKeys {
    /// Of a JWKS (RFC 7517), as `carnet issuer jwks` prints it; keys of other kinds are passed over.
    ///
    /// # Errors
    /// It is none, or has no key on P-256.
    pub fn from_jwks(text: &str) -> Result<Self, InvalidJwks> {
        let jwks: Value = serde_json::from_str(text)?;
        let keys = jwks.get("keys").and_then(Value::as_array).ok_or(InvalidJwks::Empty)?;
        let keys: HashMap<_, _> = keys.iter().filter_map(|jwk| known(jwk, None, None)).collect();
        if keys.is_empty() { Err(InvalidJwks::Empty) } else { Ok(Self { keys, begun: None }) }
    }

    /// All that `ring` has, withdrawn or not.
    pub fn of(ring: &Keyring) -> Self {
        let mut keys = Self::in_line(ring.es256());
        keys.keys.extend(ring.others().filter_map(|other| known(&other.jwk(), None, None)));
        keys
    }

    /// Those of a store; what is no key is passed over.
    pub fn stored(keys: &[StoredKey]) -> Self {
        let stating = keys.iter().filter(|stored| stored.algorithm == Algorithm::Es256);
        let turn = |stored: &StoredKey| {
            Some(Turn { key: SigningKey::from_pkcs8(&stored.pkcs8).ok()?, signs_from: stored.signs_from })
        };
        Self::in_line(&Line::new(stating.filter_map(turn).collect()))
    }

    fn in_line<K: Borrow<SigningKey>>(line: &Line<K>) -> Self {
        let terms = line.terms().filter_map(|(key, from, until)| known(&key.borrow().jwk(), from, until));
        Self { keys: terms.collect(), begun: line.begun() }
    }

    /// Adds those of `others` that are missing here. Where it is known since when the oldest key of these signs, what
    /// `others` bring is believed of the time before only: keys that were withdrawn, or have leaked.
    pub fn and(mut self, others: Self) -> Self {
        for (kid, other) in others.keys {
            if let Entry::Vacant(missing) = self.keys.entry(kid) {
                missing.insert(Known { until: other.until.or(self.begun), ..other });
            }
        }
        self
    }
}

fn known(jwk: &Value, from: Option<SystemTime>, until: Option<SystemTime>) -> Option<(String, Known)> {
    let field = |name: &str| jwk.get(name).and_then(Value::as_str);
    let absent_or = |name: &str, value: &str| jwk.get(name).is_none_or(|found| found.as_str() == Some(value));
    let operations =
        |all: &Value| all.as_array().is_some_and(|all| all.iter().any(|one| one.as_str() == Some("verify")));
    let for_signatures = absent_or("use", "sig") && jwk.get("key_ops").is_none_or(operations);
    if field("kty") != Some("EC") || field("crv") != Some("P-256") || !absent_or("alg", "ES256") || !for_signatures {
        return None;
    }
    let key = DecodingKey::from_ec_components(field("x")?, field("y")?).ok()?;
    Some((field("kid")?.to_owned(), Known { key, from, until }))
}

/// Replicas' clocks differ by ten minutes at most, and each looks for new keys every half minute.
const SLACK: Duration = Duration::from_secs(15 * 60);

impl fmt::Debug for StatementKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

#[cfg(test)]
mod vectors;

//! The broker as an OIDC issuer: assertions that Google and Entra exchange, and the keys that prove them.

mod key;
mod keyring;
mod rotation;
mod schedule;
mod statement;
mod store;

pub use key::{Algorithm, KeyError, SigningKey};
pub use keyring::{KeyStatus, Keyring, KeyringError};
pub use rotation::{Rotated, Rotation, RotationError};
pub use schedule::{Phase, RETIRED_FOR, Schedule};
pub use statement::{InvalidJwks, Standing, Statement, StatementKeys, unsigned_statement};
#[cfg(any(test, feature = "testing"))]
pub use store::FakeKeyStore;
pub use store::{KeyStore, KeyStoreError, StoredKey};

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::error::Unspecified;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::clock::{Clock, unix_seconds};
use crate::policy::{ASSERTION_LIFETIME, Grant};
use crate::secret::{FieldDigest, Secret};
use crate::target::{AzureSource, GoogleSubjectToken, Platform, Sharing, Target};

/// Signs as `iss`. Its keys are replaced while it works.
pub struct Issuer {
    url: String,
    keys: ArcSwap<Keyring>,
    clock: Arc<dyn Clock>,
}

impl Issuer {
    pub fn new(url: String, keys: Keyring, clock: Arc<dyn Clock>) -> Self {
        Self { url, keys: ArcSwap::from_pointee(keys), clock }
    }

    pub fn keys(&self) -> Arc<Keyring> {
        self.keys.load_full()
    }

    /// The next signature is made with these.
    pub fn replace_keys(&self, keys: Keyring) {
        self.keys.store(Arc::new(keys));
    }

    /// The exact text that the clouds are told to trust.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Signs `assertion` for `exchange_id`, valid from now for `lifetime`, or [`ASSERTION_LIFETIME`] if that is less.
    pub fn sign(&self, assertion: &Assertion, exchange_id: Uuid, lifetime: Duration) -> Result<Secret, Unspecified> {
        let time = self.clock.now();
        let now = unix_seconds(time);
        let mut claims: Map<String, Value> =
            assertion.claims.iter().map(|(name, claim)| ((*name).to_owned(), claim.to_json())).collect();
        claims.extend([
            ("iss".to_owned(), json!(self.url)),
            ("aud".to_owned(), json!(assertion.audience)),
            ("sub".to_owned(), json!(assertion.subject)),
            ("jti".to_owned(), json!(format!("{exchange_id}/{}", assertion.target))),
            ("iat".to_owned(), json!(now)),
            ("nbf".to_owned(), json!(now)),
            ("exp".to_owned(), json!(now + lifetime.min(ASSERTION_LIFETIME).as_secs())),
        ]);
        let keys = self.keys.load();
        let key = keys.signing(assertion.algorithm, time).ok_or(Unspecified)?;
        let header = json!({"typ": "JWT", "alg": key.algorithm().as_str(), "kid": key.kid()});
        let signed = format!("{}.{}", encode(&header), encode(&Value::Object(claims)));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())?);
        Ok(Secret::new(format!("{signed}.{signature}")))
    }

    /// RFC 7517, with the fields that Google takes in an uploaded set.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.keys.load().jwks(self.clock.now())})
    }

    /// OpenID Connect Discovery 1.0 section 3, as far as Entra and Google read it.
    pub fn discovery(&self) -> Value {
        json!({
            "issuer": self.url,
            "jwks_uri": self.below("keys"),
            "token_endpoint": self.below("v1/token"),
            "introspection_endpoint": self.below("v1/introspect"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "ES256"],
            "claims_supported": ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "tid", "oid", "azp", "rule", "job_id", "job_name"],
        })
    }

    /// RFC 8414 section 2.
    pub fn authorization_server(&self) -> Value {
        json!({
            "issuer": self.url,
            "jwks_uri": self.below("keys"),
            "token_endpoint": self.below("v1/token"),
            "introspection_endpoint": self.below("v1/introspect"),
            "grant_types_supported": ["urn:ietf:params:oauth:grant-type:token-exchange"],
            "response_types_supported": [],
            "token_endpoint_auth_methods_supported": ["none"],
        })
    }

    fn below(&self, path: &str) -> String {
        format!("{}/{path}", self.url.trim_end_matches('/'))
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Issuer({}, {:?})", self.url, self.keys.load())
    }
}

fn encode(json: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(json.to_string())
}

/// Everything an assertion says but when and for which exchange. Two grants with equal assertions are the same to
/// the cloud.
#[derive(Debug, Clone, PartialEq)]
pub struct Assertion<'a> {
    algorithm: Algorithm,
    target: &'a str,
    audience: &'a str,
    subject: Cow<'a, str>,
    claims: Vec<(&'a str, Claim<'a>)>,
}

/// A claim's value.
#[derive(Debug, Clone, PartialEq)]
enum Claim<'a> {
    Text(&'a str),
    Id(Uuid),
    /// Of an attribute.
    Any(&'a Value),
}

impl Claim<'_> {
    fn to_json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Id(id) => json!(id),
            Self::Any(value) => (*value).clone(),
        }
    }
}

impl<'a> Assertion<'a> {
    /// What the broker asserts for `grant`; `None` where the target takes no assertion of the broker's.
    pub fn for_grant(grant: &'a Grant) -> Option<Self> {
        let target = grant.target();
        let (algorithm, audience, subject) = terms(target, || google_subject(grant))?;
        Some(Self { algorithm, target: target.name.as_str(), audience, subject, claims: claims(grant) })
    }

    /// What the broker would assert of somebody whom `probe.rule` admits, for asking a cloud whether its trust is set up.
    /// It is as good as any assertion, so it is made here only for [`crate::credential`]'s probe, which keeps nothing of
    /// what a cloud gives for it (`tests/architecture.rs` sees to both); the claim `probe` tells it apart in a cloud's
    /// logs and lets a pool refuse it. `None` where the target takes no assertion of the broker's.
    pub fn for_probe(target: &'a Target, probe: &'a ProbeSubject) -> Option<Self> {
        let ProbeSubject { tenant, object, client, rule, attributes } = probe;
        let of_person = match target.sharing {
            Sharing::Subject => Cow::Owned(format!("entra:{tenant}:{object}")),
            Sharing::Target => Cow::Owned(format!("carnet:{}", target.name)),
        };
        let (algorithm, audience, subject) = terms(target, || of_person)?;
        let mut claims = vec![("rule", Claim::Text(rule)), ("probe", Claim::Any(&Value::Bool(true)))];
        if matches!(target.platform, Platform::Google(_)) {
            claims.extend(attributes.iter().map(|(name, value)| (name.as_str(), Claim::Text(value))));
        }
        if target.sharing == Sharing::Subject {
            claims.extend([("tid", Claim::Id(*tenant)), ("oid", Claim::Id(*object)), ("azp", Claim::Id(*client))]);
        }
        Some(Self { algorithm, target: target.name.as_str(), audience, subject, claims })
    }

    /// With the claim that probes have, for a grant that is tried and not used.
    pub fn marked_as_probe(mut self) -> Self {
        self.claims.push(("probe", Claim::Any(&Value::Bool(true))));
        self
    }

    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Adds everything that the cloud would see to a cache key.
    pub fn digest_into(&self, digest: &mut FieldDigest) {
        // Without `..`, so that a new field is not forgotten. The target only names the assertion, in its `jti`.
        let Self { algorithm, target: _, audience, subject, claims } = self;
        digest.field(algorithm.as_str().as_bytes());
        digest.field(audience.as_bytes());
        digest.field(subject.as_bytes());
        digest.field(&(claims.len() as u64).to_le_bytes());
        for (name, claim) in claims {
            digest.field(name.as_bytes());
            match claim {
                Claim::Text(text) => digest.field(b"text").field(text.as_bytes()),
                Claim::Id(id) => digest.field(b"id").field(id.as_bytes()),
                Claim::Any(value) => digest.field(b"json").field(value.to_string().as_bytes()),
            };
        }
    }
}

/// Whom a probe stands for.
#[derive(Debug, Clone)]
pub struct ProbeSubject {
    pub tenant: Uuid,
    pub object: Uuid,
    pub client: Uuid,
    pub rule: String,
    /// By claim, for bindings that are made by them.
    pub attributes: Vec<(String, String)>,
}

/// Algorithm, audience and subject of what `target` is shown; `None` where that is no assertion of the broker's.
fn terms<'a>(
    target: &'a Target,
    google_subject: impl FnOnce() -> Cow<'a, str>,
) -> Option<(Algorithm, &'a str, Cow<'a, str>)> {
    match &target.platform {
        Platform::Google(google) => match google.subject_token {
            GoogleSubjectToken::Issuer => Some((Algorithm::Es256, google.provider.as_str(), google_subject())),
            GoogleSubjectToken::Entra => None,
        },
        Platform::Azure(azure) => match &azure.source {
            AzureSource::Issuer { subject, audience } | AzureSource::OnBehalfOf { subject, audience } => {
                Some((Algorithm::Rs256, audience.as_str(), Cow::Borrowed(subject.as_str())))
            }
            AzureSource::TokenFile(_) | AzureSource::ManagedIdentity(_) => None,
        },
    }
}

/// Google's logs name the person or workload; a credential that several share names the target instead.
fn google_subject(grant: &Grant) -> Cow<'_, str> {
    match grant.target().sharing {
        Sharing::Subject => Cow::Borrowed(grant.identity().subject()),
        Sharing::Target => Cow::Owned(format!("carnet:{}", grant.target().name)),
    }
}

/// Entra matches `iss`, `sub` and `aud` alone, so job and attributes go to Google only: without them, jobs of one
/// subject share an Azure credential.
fn claims(grant: &Grant) -> Vec<(&str, Claim<'_>)> {
    let google = matches!(grant.target().platform, Platform::Google(_));
    let mut claims = Vec::with_capacity(CLAIMS + grant.attributes().len());
    claims.push(("rule", Claim::Text(grant.rule().as_str())));
    if google {
        claims.extend(grant.attributes().iter().map(|(name, value)| (name.as_str(), Claim::Any(value))));
    }
    if grant.target().sharing == Sharing::Target {
        return claims;
    }
    let identity = grant.identity();
    claims.extend([
        ("tid", Claim::Id(identity.tenant())),
        ("oid", Claim::Id(identity.object())),
        ("azp", Claim::Id(identity.client())),
    ]);
    if google {
        let job = grant.job();
        claims.extend(job.id.iter().map(|id| ("job_id", Claim::Text(id))));
        claims.extend(job.name.iter().map(|name| ("job_name", Claim::Text(name))));
    }
    claims
}

/// Besides attributes.
const CLAIMS: usize = 7;

#[cfg(test)]
mod tests;

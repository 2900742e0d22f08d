//! The broker as an OIDC issuer: assertions that Google and Entra exchange, and the keys that prove them.

mod key;

pub use key::{Algorithm, KeyError, SigningKey};

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::error::Unspecified;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::clock::{Clock, unix_seconds};
use crate::policy::{ASSERTION_LIFETIME, Grant};
use crate::secret::{FieldDigest, Secret};
use crate::target::{AzureSource, GoogleSubjectToken, Platform, Sharing};

/// Where keys are kept that nobody brought from outside. Declared by the issuer, fulfilled by a store.
#[async_trait::async_trait]
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// PKCS#8 documents, oldest first.
    async fn keys(&self) -> Result<Vec<StoredKey>, KeyStoreError>;

    /// Keeps `key`, unless another replica was faster with one for the same algorithm.
    async fn add_first(&self, key: &StoredKey) -> Result<(), KeyStoreError>;
}

/// A private key on its way to or from the store, which encrypts it.
pub struct StoredKey {
    pub kid: String,
    pub algorithm: Algorithm,
    pub pkcs8: zeroize::Zeroizing<Vec<u8>>,
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredKey({}, {})", self.kid, self.algorithm.as_str())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the issuer's keys cannot be {action}")]
pub struct KeyStoreError {
    pub action: &'static str,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Signs as `iss`. Key pairs are parsed once.
pub struct Issuer {
    url: String,
    /// Signs for Google: ES256 costs an eighteenth of RS256.
    es256: Arc<SigningKey>,
    /// Signs for Entra, which accepts nothing else.
    rs256: Arc<SigningKey>,
    /// All that is published: the two above, and others that relying parties should know.
    keys: Vec<Arc<SigningKey>>,
    clock: Arc<dyn Clock>,
}

impl Issuer {
    /// `keys`: the first of each algorithm signs, all are published.
    ///
    /// # Errors
    /// The algorithm of which there is no key.
    pub fn new(url: String, keys: Vec<SigningKey>, clock: Arc<dyn Clock>) -> Result<Self, Algorithm> {
        let keys: Vec<Arc<SigningKey>> = keys.into_iter().map(Arc::new).collect();
        let first = |algorithm| keys.iter().find(|key| key.algorithm() == algorithm).cloned().ok_or(algorithm);
        Ok(Self { url, es256: first(Algorithm::Es256)?, rs256: first(Algorithm::Rs256)?, keys, clock })
    }

    /// The keys of the store; those that are missing are made and kept first.
    pub async fn stored_keys(store: &dyn KeyStore) -> Result<Vec<SigningKey>, LoadError> {
        let mut stored = store.keys().await?;
        for algorithm in [Algorithm::Es256, Algorithm::Rs256] {
            if !stored.iter().any(|key| key.algorithm == algorithm) {
                // Half a second of one core for RSA, once in the life of a store.
                let made = tokio::task::spawn_blocking(move || SigningKey::generate(algorithm)).await;
                store.add_first(&made.map_err(|_panic| KeyError::Generate)??).await?;
                stored = store.keys().await?;
            }
        }
        Ok(stored.iter().map(|key| SigningKey::from_pkcs8(&key.pkcs8)).collect::<Result<_, _>>()?)
    }

    /// The exact text that the clouds are told to trust.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Signs `assertion` for `exchange_id`, valid from now for [`ASSERTION_LIFETIME`].
    pub fn sign(&self, assertion: &Assertion, exchange_id: Uuid) -> Result<Secret, Unspecified> {
        let now = unix_seconds(self.clock.now());
        let mut claims: Map<String, Value> =
            assertion.claims.iter().map(|(name, claim)| ((*name).to_owned(), claim.to_json())).collect();
        claims.extend([
            ("iss".to_owned(), json!(self.url)),
            ("aud".to_owned(), json!(assertion.audience)),
            ("sub".to_owned(), json!(assertion.subject)),
            ("jti".to_owned(), json!(format!("{exchange_id}/{}", assertion.target))),
            ("iat".to_owned(), json!(now)),
            ("nbf".to_owned(), json!(now)),
            ("exp".to_owned(), json!(now + ASSERTION_LIFETIME.as_secs())),
        ]);
        let key = match assertion.algorithm {
            Algorithm::Es256 => &self.es256,
            Algorithm::Rs256 => &self.rs256,
        };
        let header = json!({"typ": "JWT", "alg": key.algorithm().as_str(), "kid": key.kid()});
        let signed = format!("{}.{}", encode(&header), encode(&Value::Object(claims)));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())?);
        Ok(Secret::new(format!("{signed}.{signature}")))
    }

    /// RFC 7517, with the fields that Google takes in an uploaded set.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()})
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
        write!(f, "Issuer({}, {} keys)", self.url, self.keys.len())
    }
}

fn encode(json: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(json.to_string())
}

/// Why the store's keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Store(#[from] KeyStoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
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
        let (algorithm, audience, subject) = match &target.platform {
            Platform::Google(google) => match google.subject_token {
                GoogleSubjectToken::Issuer => (Algorithm::Es256, google.provider.as_str(), google_subject(grant)),
                GoogleSubjectToken::Entra => return None,
            },
            Platform::Azure(azure) => match &azure.source {
                AzureSource::Issuer { subject, audience } | AzureSource::OnBehalfOf { subject, audience } => {
                    (Algorithm::Rs256, audience.as_str(), Cow::Borrowed(subject.as_str()))
                }
                AzureSource::TokenFile(_) | AzureSource::ManagedIdentity(_) => return None,
            },
        };
        Some(Self { algorithm, target: target.name.as_str(), audience, subject, claims: claims(grant) })
    }

    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Adds everything that the cloud would see to a cache key.
    pub fn digest_into(&self, digest: &mut FieldDigest) {
        digest.field(self.algorithm.as_str().as_bytes());
        digest.field(self.audience.as_bytes());
        digest.field(self.subject.as_bytes());
        digest.field(&(self.claims.len() as u64).to_le_bytes());
        for (name, claim) in &self.claims {
            digest.field(name.as_bytes());
            match claim {
                Claim::Text(text) => digest.field(b"text").field(text.as_bytes()),
                Claim::Id(id) => digest.field(b"id").field(id.as_bytes()),
                Claim::Any(value) => digest.field(b"json").field(value.to_string().as_bytes()),
            };
        }
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
    let mut claims = vec![("rule", Claim::Text(grant.rule().as_str()))];
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

#[cfg(test)]
mod tests;

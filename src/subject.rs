//! Stage 1: a subject token becomes a `VerifiedIdentity`, or a refusal that says what is wrong with the token.

mod entra;
mod jwks;
mod snapshot;
mod token;
mod trial;

pub use entra::{EntraVerifier, Settings, is_microsoft_audience};
pub use jwks::{FetchError, KeyCache};
pub use trial::Trial;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::reason::Reason;
use crate::secret::Secret;

/// Turns a token into an identity. Declared by the stage, fulfilled by [`EntraVerifier`].
#[async_trait::async_trait]
pub trait Verifier: fmt::Debug + Send + Sync {
    async fn verify(&self, token: &SubjectToken) -> Result<Arc<VerifiedIdentity>, SubjectError>;

    /// Whether an identity that was verified earlier would still be taken: its tenant and its token's audience may have
    /// been taken out of the settings since.
    fn still_accepts(&self, identity: &VerifiedIdentity) -> Result<(), SubjectError>;
}

/// A token as it came in: nothing of it is verified.
#[derive(Debug, Clone)]
pub struct SubjectToken {
    text: Secret,
    sha256: [u8; 32],
}

impl SubjectToken {
    /// # Errors
    /// [`SubjectError::Malformed`] for an empty text or one of more than [`MAX_TOKEN_BYTES`].
    pub fn new(text: Secret) -> Result<Self, SubjectError> {
        if text.is_empty() {
            return Err(SubjectError::Malformed("it is empty"));
        }
        if text.len() > MAX_TOKEN_BYTES {
            return Err(SubjectError::Malformed("it is larger than 64 KiB"));
        }
        Ok(Self { sha256: text.sha256(), text })
    }

    /// For the cloud that redeems the caller's own token.
    pub fn secret(&self) -> &Secret {
        &self.text
    }

    /// What a refused token says of itself, for the record of the refusal: never a reason to allow anything.
    pub fn unverified_trace(&self) -> Vec<(&'static str, String)> {
        token::unverified_trace(self.text.expose())
    }
}

/// Entra's tokens with 200 groups have 12 KB; its own library takes 256,000 bytes, which no proxy in between would.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// What the token's owner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    User,
    ServicePrincipal,
    ManagedIdentity,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::User, Self::ServicePrincipal, Self::ManagedIdentity];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ServicePrincipal => "service_principal",
            Self::ManagedIdentity => "managed_identity",
        }
    }
}

/// The groups of an identity, as far as its token tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Groups {
    /// Sorted.
    Known(Box<[Uuid]>),
    /// Entra left them out because there are too many (more than 200). Never "no groups".
    Overage,
}

/// Holding one proves that the token was verified: the modules below this one are the only makers.
///
/// Identity is `tenant` and `object`; names and e-mail addresses among the claims decide nothing.
pub struct VerifiedIdentity {
    tenant: Uuid,
    object: Uuid,
    subject: Box<str>,
    kind: Kind,
    client: Uuid,
    groups: Groups,
    roles: Box<[String]>,
    scopes: Box<[String]>,
    auth_contexts: Box<[String]>,
    token_id: Option<String>,
    expires_at: SystemTime,
    claims: Map<String, Value>,
    token_sha256: [u8; 32],
}

impl VerifiedIdentity {
    /// Entra's `tid`.
    pub fn tenant(&self) -> Uuid {
        self.tenant
    }

    /// Entra's `oid`.
    pub fn object(&self) -> Uuid {
        self.object
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The application that asked Entra for the token: `azp`, in v1.0 tokens `appid`.
    pub fn client(&self) -> Uuid {
        self.client
    }

    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    pub fn roles(&self) -> &[String] {
        &self.roles
    }

    /// Delegated permissions (`scp`).
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// Authentication contexts that the user satisfied (`acrs`).
    pub fn auth_contexts(&self) -> &[String] {
        &self.auth_contexts
    }

    /// Entra's `uti`: the unique token identifier of its sign-in logs.
    pub fn token_id(&self) -> Option<&str> {
        self.token_id.as_deref()
    }

    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// Every claim of the token.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// `entra:{tenant}:{object}`, the name of this identity in logs, records and assertions: 79 bytes.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// SHA-256 of the token that was verified: proves that a token handed along belongs to this identity.
    pub fn token_sha256(&self) -> [u8; 32] {
        self.token_sha256
    }
}

fn subject(tenant: Uuid, object: Uuid) -> Box<str> {
    format!("entra:{tenant}:{object}").into()
}

impl fmt::Debug for VerifiedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedIdentity({}, {})", self.subject(), self.kind.as_str())
    }
}

/// Why a token is refused. The texts go to the caller, whose token it is; they name no setting of the broker.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    #[error("the subject token is not an Entra access token: {0}")]
    Malformed(&'static str),
    #[error("the subject token's signature is refused: {0}")]
    Signature(&'static str),
    #[error("the subject token expired {}s ago: get a fresh one", .0.as_secs())]
    Expired(Duration),
    #[error("the subject token is valid only in {}s: check the clocks of its issuer and of the broker", .0.as_secs())]
    NotYetValid(Duration),
    #[error("the subject token's issuer is not the one of its tenant and signing key")]
    Issuer,
    #[error("the subject token is for another audience: request one for the broker's application")]
    Audience,
    #[error("the subject token's tenant is not accepted here")]
    Tenant,
    #[error(
        "the subject token is for {0}, whose tokens nobody else can verify: request one for the broker's application (api://.../.default)"
    )]
    NotForUs(&'static str),
    #[error("the signing keys of the subject token's tenant cannot be fetched now")]
    KeysUnavailable {
        retry_after: Duration,
        #[source]
        source: Option<Arc<FetchError>>,
    },
}

impl SubjectError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Malformed(_) => Reason::SubjectTokenMalformed,
            Self::Signature(_) => Reason::SubjectTokenSignature,
            Self::Expired(_) => Reason::SubjectTokenExpired,
            Self::NotYetValid(_) => Reason::SubjectTokenNotYetValid,
            Self::Issuer => Reason::SubjectTokenIssuer,
            Self::Audience => Reason::SubjectTokenAudience,
            Self::Tenant => Reason::SubjectTokenTenant,
            Self::NotForUs(_) => Reason::SubjectTokenNotForUs,
            Self::KeysUnavailable { .. } => Reason::KeysUnavailable,
        }
    }

    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::KeysUnavailable { retry_after, .. } => Some(*retry_after),
            Self::Malformed(_)
            | Self::Signature(_)
            | Self::Expired(_)
            | Self::NotYetValid(_)
            | Self::Issuer
            | Self::Audience
            | Self::Tenant
            | Self::NotForUs(_) => None,
        }
    }
}

/// Takes the token `good` for a service principal's that ends in an hour, and `other` for another's.
#[cfg(test)]
#[derive(Debug)]
pub struct FakeVerifier(pub crate::clock::ManualClock);

#[cfg(test)]
#[expect(clippy::panic, reason = "a bug, which the stages behind must survive")]
#[async_trait::async_trait]
impl Verifier for FakeVerifier {
    async fn verify(&self, token: &SubjectToken) -> Result<Arc<VerifiedIdentity>, SubjectError> {
        let good = VerifiedIdentity::for_test(crate::clock::Clock::now(&self.0) + Duration::from_secs(3600));
        match token.secret().expose() {
            "panic" => panic!("a bug"),
            "good" => Ok(Arc::new(good)),
            "other" => Ok(Arc::new(good.with_object(99))),
            _ => Err(SubjectError::Issuer),
        }
    }

    fn still_accepts(&self, identity: &VerifiedIdentity) -> Result<(), SubjectError> {
        (identity.tenant() == Uuid::from_u128(1)).then_some(()).ok_or(SubjectError::Tenant)
    }
}

#[cfg(test)]
impl VerifiedIdentity {
    /// A service principal of tenant 1 with object 2 and client 3, for tests of the stages behind this one.
    pub fn for_test(expires_at: SystemTime) -> Self {
        Self {
            tenant: Uuid::from_u128(1),
            object: Uuid::from_u128(2),
            subject: subject(Uuid::from_u128(1), Uuid::from_u128(2)),
            kind: Kind::ServicePrincipal,
            client: Uuid::from_u128(3),
            groups: Groups::Known([].into()),
            roles: [].into(),
            scopes: [].into(),
            auth_contexts: [].into(),
            token_id: None,
            expires_at,
            claims: Map::new(),
            token_sha256: [0; 32],
        }
        .with_claim("ver", "2.0".into())
        .with_claim("azp", Uuid::from_u128(3).to_string().into())
        .with_tenant(1)
        .with_object(2)
    }

    pub fn with_object(self, object: u128) -> Self {
        let object = Uuid::from_u128(object);
        let claimed = |identity: Self, name| identity.with_claim(name, object.to_string().into());
        let named = Self { object, subject: subject(self.tenant, object), ..self };
        ["oid", "sub"].into_iter().fold(named, claimed)
    }

    pub fn with_tenant(self, tenant: u128) -> Self {
        let tenant = Uuid::from_u128(tenant);
        Self { tenant, subject: subject(tenant, self.object), ..self }.with_claim("tid", tenant.to_string().into())
    }

    pub fn with_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    pub fn with_groups(self, groups: Groups) -> Self {
        Self { groups, ..self }
    }

    pub fn with_roles(self, roles: &[&str]) -> Self {
        Self { roles: roles.iter().map(ToString::to_string).collect(), ..self }
    }

    pub fn with_claim(mut self, name: &str, value: Value) -> Self {
        self.claims.insert(name.to_owned(), value);
        self
    }
}

//! Stage 1: a subject token becomes a `VerifiedIdentity`, or a refusal that says what is wrong with the token.

mod entra;
mod explain;
mod facts;
mod identity;
mod jwks;
mod published;
mod roca;
mod snapshot;
mod token;
mod trial;
#[cfg(test)]
mod vectors;

pub use entra::{EntraVerifier, Settings, is_microsoft_audience};
pub use explain::Examination;
pub use facts::{Facts, is_kept};
pub use identity::{ClaimsError, Groups, Identity, Kind};
pub use jwks::{FetchError, KeyCache};
pub use published::{Published, published};
pub use trial::Trial;

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use uuid::Uuid;

use crate::reason::Reason;
use crate::secret::Secret;
use crate::step::Step;

/// Turns a token into an identity. Declared by the stage, fulfilled by [`EntraVerifier`].
#[async_trait::async_trait]
pub trait Verifier: fmt::Debug + Send + Sync {
    async fn verify(&self, token: &SubjectToken) -> Result<Arc<VerifiedIdentity>, SubjectError>;

    /// What [`verify`](Self::verify) would give without looking at the token again: it costs next to nothing.
    fn remembered(&self, _token: &SubjectToken) -> Option<Arc<VerifiedIdentity>> {
        None
    }

    /// [`verify`](Self::verify) step by step, for those who may see it; nothing is remembered of it.
    async fn explain(&self, token: &SubjectToken) -> Examination;

    /// The check that refused a token which is no longer there, by what the token said of itself (`aud`, `tid`, `kid`,
    /// ...). `error`: the refusal's words.
    fn explain_refusal(&self, reason: Reason, error: &str, said: &dyn Fn(&str) -> Option<String>) -> Step;

    /// The same about claims that nobody signed, as far as it can be asked of them.
    fn explain_claims(&self, identity: &Identity) -> Vec<Step>;

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

    /// Tenant and object that it names. Nobody has signed for them: they decide whose budget a signature check is taken from,
    /// and nothing else.
    pub fn unverified_holder(&self) -> Option<(Uuid, Uuid)> {
        token::unverified_holder(self.text.expose())
    }

    /// What a refused token says of itself, for the record of the refusal: never a reason to allow anything.
    pub fn unverified_trace(&self) -> Vec<(&'static str, String)> {
        token::unverified_trace(self.text.expose())
    }
}

/// Entra's tokens with 200 groups have 12 KB; its own library takes 256,000 bytes, which no proxy in between would.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// Holding one proves that the token was verified: the modules below this one are the only makers.
///
/// Rules match on the [`Identity`] inside, which anybody can make from claims to ask "what if". A grant names one of
/// these: what was never verified can be asked about, and gets nothing.
pub struct VerifiedIdentity {
    identity: Identity,
    token_sha256: [u8; 32],
    facts: OnceLock<Arc<Facts>>,
}

impl VerifiedIdentity {
    fn new(identity: Identity, token_sha256: [u8; 32]) -> Self {
        Self { identity, token_sha256, facts: OnceLock::new() }
    }

    /// SHA-256 of the token that was verified: proves that a token handed along belongs to this identity.
    pub fn token_sha256(&self) -> [u8; 32] {
        self.token_sha256
    }
}

impl Deref for VerifiedIdentity {
    type Target = Identity;

    fn deref(&self) -> &Identity {
        &self.identity
    }
}

impl fmt::Debug for VerifiedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedIdentity({}, {})", self.subject(), self.kind().as_str())
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

    async fn explain(&self, token: &SubjectToken) -> Examination {
        Examination { steps: Vec::new(), result: self.verify(token).await }
    }

    fn explain_refusal(&self, reason: Reason, error: &str, _said: &dyn Fn(&str) -> Option<String>) -> Step {
        Step::failed("subject_token", format!("{reason}: {error}"), "another token")
    }

    fn explain_claims(&self, _identity: &Identity) -> Vec<Step> {
        Vec::new()
    }

    fn still_accepts(&self, identity: &VerifiedIdentity) -> Result<(), SubjectError> {
        (identity.tenant() == uuid::Uuid::from_u128(1)).then_some(()).ok_or(SubjectError::Tenant)
    }
}

#[cfg(test)]
impl VerifiedIdentity {
    /// A service principal of tenant 1 with object 2 and client 3, for tests of the stages behind this one.
    pub fn for_test(expires_at: std::time::SystemTime) -> Self {
        Self::new(Identity::for_test(expires_at), [0; 32])
    }

    pub fn with_object(self, object: u128) -> Self {
        Self::new(self.identity.with_object(object), self.token_sha256)
    }

    pub fn with_tenant(self, tenant: u128) -> Self {
        Self::new(self.identity.with_tenant(tenant), self.token_sha256)
    }

    pub fn with_kind(self, kind: Kind) -> Self {
        Self::new(self.identity.with_kind(kind), self.token_sha256)
    }

    pub fn with_groups(self, groups: Groups) -> Self {
        Self::new(self.identity.with_groups(groups), self.token_sha256)
    }

    pub fn with_roles(self, roles: &[&str]) -> Self {
        Self::new(self.identity.with_roles(roles), self.token_sha256)
    }

    pub fn with_claim(self, name: &str, value: serde_json::Value) -> Self {
        Self::new(self.identity.with_claim(name, value), self.token_sha256)
    }
}

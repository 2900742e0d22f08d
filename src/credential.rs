//! Stage 3: a grant becomes a credential, from the cache or with one call upstream for everyone who waits.

mod answer;
mod azure;
mod cache;
mod google;
mod upstream;

pub use cache::{Cache, Hit, Key};

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use crate::clock::Clock;
use crate::http::Client;
use crate::issuer::{Assertion, Issuer};
use crate::policy::{Given, Grant};
use crate::reason::Reason;
use crate::secret::{FieldDigest, Secret};
use crate::subject::SubjectToken;
use crate::target::{AzureSource, GoogleSubjectToken, Platform, Sharing, TokenType};

/// A cloud that issues. Declared by the stage, fulfilled by [`Clouds`].
#[async_trait::async_trait]
pub trait CredentialProvider: fmt::Debug + Send + Sync {
    async fn issue(&self, call: &Call) -> Result<Credential, IssueError>;
}

/// Everything an upstream call needs, and nothing it could use to widen the grant.
#[derive(Debug, Clone)]
pub struct Call {
    pub grant: Arc<Grant>,
    /// For the targets that redeem the caller's own token.
    pub subject_token: SubjectToken,
    /// Goes into the clouds' own logs.
    pub exchange_id: Uuid,
}

/// A token of a cloud, as it was issued.
#[derive(Debug)]
pub struct Credential {
    pub token: Secret,
    pub token_sha256: [u8; 32],
    /// As the cloud says it.
    pub expires_at: SystemTime,
    pub issued_at: SystemTime,
    pub identity: CloudIdentity,
    pub given: Given,
    /// Correlation ids that the cloud returned, for the audit record.
    pub upstream: Vec<(&'static str, String)>,
    handed_out: AtomicBool,
}

/// As whom a credential acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloudIdentity {
    Google { principal: String, service_account: Option<String> },
    Azure { tenant: Uuid, client_id: Uuid },
}

impl Credential {
    /// `plan` tells what was asked for, so that a shorter life is known as the cloud's doing.
    pub fn new(
        token: Secret,
        issued_at: SystemTime,
        expires_at: SystemTime,
        asked: Duration,
        identity: CloudIdentity,
    ) -> Self {
        let life = expires_at.duration_since(issued_at).unwrap_or_default();
        let given = if life + SHORTFALL < asked { Given::Less } else { Given::AsAsked };
        let token_sha256 = token.sha256();
        Self {
            token,
            token_sha256,
            expires_at,
            issued_at,
            identity,
            given,
            upstream: Vec::new(),
            handed_out: AtomicBool::new(false),
        }
    }

    /// Whether a hand-out of this token is on record: the first one is what introspection finds.
    pub fn was_handed_out(&self) -> bool {
        self.handed_out.load(Ordering::Relaxed)
    }

    pub fn mark_handed_out(&self) {
        self.handed_out.store(true, Ordering::Relaxed);
    }
}

/// Clouds count whole seconds and answer a moment later than they issue.
const SHORTFALL: Duration = Duration::from_secs(60);

/// Which of the caller's, the set-up's or the moment's faults it is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IssueError {
    /// Trust or permission is not set up: somebody has to act at the cloud or in the configuration.
    #[error("{hop} refused: {code}: {meaning}")]
    Refused { hop: Hop, code: String, meaning: &'static str, upstream: Vec<(&'static str, String)> },
    /// The caller's token is no longer good enough for the cloud that redeems it.
    #[error("{hop} refused the subject token: {code}: get a fresh one")]
    SubjectToken { hop: Hop, code: String },
    /// Conditional Access asks something of the user (Microsoft: claims challenge).
    #[error("Entra wants more from the user: {code}")]
    InsufficientClaims { code: String, claims: Option<String> },
    #[error("{hop} is asked too often")]
    Throttled { hop: Hop, retry_after: Duration },
    #[error("{hop} is not available: {cause}")]
    Unavailable { hop: Hop, cause: String, retry_after: Duration },
}

/// One of the services that are called on the way to a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hop {
    GoogleSts,
    GoogleIam,
    EntraToken,
    ManagedIdentity,
    /// The broker's own preparation: its signature, a token file.
    Broker,
}

impl Hop {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GoogleSts => "google_sts",
            Self::GoogleIam => "google_iam_credentials",
            Self::EntraToken => "entra_token",
            Self::ManagedIdentity => "managed_identity",
            Self::Broker => "broker",
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GoogleSts => "Google's Security Token Service",
            Self::GoogleIam => "Google's IAM Credentials API",
            Self::EntraToken => "Entra's token endpoint",
            Self::ManagedIdentity => "the managed identity endpoint",
            Self::Broker => "the broker",
        })
    }
}

impl IssueError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { .. } => Reason::CloudRefused,
            Self::SubjectToken { .. } => Reason::SubjectTokenExpired,
            Self::InsufficientClaims { .. } => Reason::InsufficientClaims,
            Self::Throttled { .. } => Reason::RateLimited,
            Self::Unavailable { .. } => Reason::CloudUnavailable,
        }
    }

    /// Recovers without anybody's help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Throttled { .. } | Self::Unavailable { .. } => true,
            Self::Refused { .. } | Self::SubjectToken { .. } | Self::InsufficientClaims { .. } => false,
        }
    }

    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } | Self::Unavailable { retry_after, .. } => Some(*retry_after),
            Self::Refused { .. } | Self::SubjectToken { .. } | Self::InsufficientClaims { .. } => None,
        }
    }

    /// The cloud's own error code, which holds nothing of anybody's.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } | Self::SubjectToken { code, .. } | Self::InsufficientClaims { code, .. } => {
                Some(code)
            }
            Self::Throttled { .. } | Self::Unavailable { .. } => None,
        }
    }

    fn refused(hop: Hop, code: impl Into<String>, meaning: &'static str) -> Self {
        Self::Refused { hop, code: code.into(), meaning, upstream: Vec::new() }
    }
}

/// The stage: asks the cache, and the cloud where the cache has nothing that will do.
#[derive(Debug)]
pub struct Credentials {
    cache: Arc<Cache>,
    provider: Arc<dyn CredentialProvider>,
}

impl Credentials {
    pub fn new(provider: Arc<dyn CredentialProvider>, clock: Arc<dyn Clock>) -> Self {
        Self { cache: Arc::new(Cache::new("credentials", clock)), provider }
    }

    /// A credential for `call.grant` with at least the life that its plan wants, as far as the cloud gives it.
    pub async fn credential(&self, call: Call) -> Result<Hit, IssueError> {
        let (key, least) = (key(&call), call.grant.plan().least);
        self.cache.get(key, least, || self.mint(call)).await
    }

    fn mint(&self, call: Call) -> impl Future<Output = Result<Credential, IssueError>> + Send + use<> {
        let provider = self.provider.clone();
        async move { provider.issue(&call).await }
    }
}

/// Two calls have one key only if the same credential answers both: everything that the cloud or the policy could tell
/// apart is in it, and no token.
fn key(call: &Call) -> Key {
    let grant = &call.grant;
    let target = grant.target();
    let mut digest = FieldDigest::new("carnet credential 1");
    digest.field(target.name.as_str().as_bytes()).field(&target.revision);
    digest.field(grant.rule().as_str().as_bytes()).field(grant.rule_revision());
    match target.sharing {
        Sharing::Subject => {
            digest
                .field(b"subject")
                .field(grant.identity().tenant().as_bytes())
                .field(grant.identity().object().as_bytes());
        }
        Sharing::Target => {
            digest.field(b"target");
        }
    }
    digest.list(grant.scopes().iter().map(crate::target::Scope::as_str));
    digest.field(grant.token_type().urn().as_bytes());
    digest.list(grant.audience().map(crate::target::IdTokenAudience::as_str).into_iter());
    if takes_a_wish(grant) {
        digest.field(b"lifetime").field(&grant.plan().lifetime.as_secs().to_le_bytes());
    }
    match Assertion::for_grant(grant) {
        Some(assertion) => assertion.digest_into(digest.field(b"assertion")),
        None => {
            digest.field(b"no assertion");
        }
    }
    if redeems_subject_token(&target.platform) {
        // The cloud sees the whole token, so whatever tells two tokens of one person apart but their times counts.
        let claims =
            grant.identity().claims().iter().filter(|(name, _value)| !VOLATILE_CLAIMS.contains(&name.as_str()));
        digest.list(claims.map(|(name, value)| format!("{}:{name}={value}", name.len())).collect::<Vec<_>>().iter());
    }
    digest.finish()
}

/// Everywhere else the cloud decides how long a token lives, so callers with different wishes share it.
fn takes_a_wish(grant: &Grant) -> bool {
    match &grant.target().platform {
        Platform::Google(google) => google.service_account.is_some() && !is_id_token(grant),
        Platform::Azure(_) => false,
    }
}

fn redeems_subject_token(platform: &Platform) -> bool {
    match platform {
        Platform::Google(google) => google.subject_token == GoogleSubjectToken::Entra,
        Platform::Azure(azure) => matches!(azure.source, AzureSource::OnBehalfOf { .. }),
    }
}

/// Differ in every token of one session.
const VOLATILE_CLAIMS: [&str; 7] = ["iat", "nbf", "exp", "uti", "aio", "rh", "xms_ftd"];

/// Both clouds, told apart by the grant's target.
#[derive(Debug)]
pub struct Clouds {
    google: google::Google,
    azure: azure::Azure,
    clock: Arc<dyn Clock>,
}

impl Clouds {
    /// `issuer`: absent where no target needs an assertion of the broker's.
    pub fn new(http: Client, issuer: Option<Arc<Issuer>>, clock: Arc<dyn Clock>) -> Self {
        let upstreams = Arc::new(upstream::Upstreams::new(http, clock.clone()));
        let signer = Signer { issuer };
        Self {
            google: google::Google::new(upstreams.clone(), signer.clone(), clock.clone()),
            azure: azure::Azure::new(upstreams, signer, clock.clone()),
            clock,
        }
    }
}

#[async_trait::async_trait]
impl CredentialProvider for Clouds {
    async fn issue(&self, call: &Call) -> Result<Credential, IssueError> {
        // The last hop of either, for those that state their expiry as a time.
        let (issued, hop) = match &call.grant.target().platform {
            Platform::Google(google) => (self.google.issue(google, call).await, Hop::GoogleIam),
            Platform::Azure(azure) => (self.azure.issue(azure, call).await, Hop::ManagedIdentity),
        };
        // Clients ask again without a pause when they are given a dead token.
        let live = |credential: Credential| {
            let live = credential.expires_at > self.clock.now();
            let dead = || IssueError::refused(hop, "expired", "the token has expired already: compare the clocks");
            live.then_some(credential).ok_or_else(dead)
        };
        issued.and_then(live)
    }
}

/// The broker's assertion for a call.
#[derive(Debug, Clone)]
struct Signer {
    issuer: Option<Arc<Issuer>>,
}

impl Signer {
    fn assertion(&self, call: &Call) -> Result<Secret, IssueError> {
        let no_issuer = || {
            IssueError::refused(Hop::Broker, "no_issuer", "the configuration has no `issuer`, which this target needs")
        };
        let issuer = self.issuer.as_ref().ok_or_else(no_issuer)?;
        let assertion = Assertion::for_grant(&call.grant).ok_or_else(no_issuer)?;
        let unsigned = |_cause| IssueError::refused(Hop::Broker, "no_signature", "the issuer's key does not sign");
        issuer.sign(&assertion, call.exchange_id).map_err(unsigned)
    }
}

/// Only `token_type` decides what an answer holds; everything else was decided before.
fn is_id_token(grant: &Grant) -> bool {
    grant.token_type() == TokenType::IdToken
}

#[cfg(test)]
mod tests;

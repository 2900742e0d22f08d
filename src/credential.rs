//! Stage 3: a grant becomes a credential, from the cache or with one call upstream for everyone who waits.

mod azure;
mod cache;
mod correlation;
mod fault;
mod google;
mod probe;
mod shared;
mod upstream;

pub use cache::{Cache, Held, Hit, Key};
pub use correlation::{
    AZURE_OBJECT_ID, AZURE_TOKEN_ID, ENTRA_CORRELATION_ID, ENTRA_REQUEST_ID, ENTRA_TRACE_ID, GOOGLE_PRINCIPAL,
    STS_EXCHANGE_ID, UPSTREAM_EXCHANGE_ID,
};
pub use fault::SetUpFault;
pub use probe::{Probe, Probed, Reach};
#[cfg(any(test, feature = "testing"))]
pub use shared::FakeSharedCredentials;
pub use shared::{SharedCredentials, SharedError, keep_swept};

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::shared::Shared;
use crate::answer::{LONGEST, TokenAnswer};
use crate::clock::Clock;
use crate::http::{Client, Response};
use crate::issuer::{Assertion, Issuer};
use crate::policy::{ASSERTION_LIFETIME, Given, Grant};
use crate::reason::Reason;
use crate::secret::{FieldDigest, SealingKeys, Secret};
use crate::subject::SubjectToken;
use crate::target::{Platform, Sharing, Target, TokenType};

/// A cloud that issues. Declared by the stage, fulfilled by [`Clouds`].
#[async_trait::async_trait]
pub trait CredentialProvider: fmt::Debug + Send + Sync {
    async fn issue(&self, call: &Call) -> Result<Credential, IssueError>;

    /// The services on the way to the target's credentials, as far as they are known without a call.
    fn services(&self, _target: &Target) -> Vec<Service> {
        Vec::new()
    }
}

/// A service of a cloud, as the last calls found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    pub hop: Hop,
    pub failures_in_a_row: u32,
    /// It failed too often, and is left alone for this long.
    pub left_alone_for: Option<Duration>,
}

/// Everything an upstream call needs, and nothing it could use to widen the grant.
#[derive(Debug, Clone)]
pub struct Call {
    pub grant: Arc<Grant>,
    /// For the targets that redeem the caller's own token; absent under a lease, which has none of them.
    pub subject_token: Option<SubjectToken>,
    /// Goes into the clouds' own logs.
    pub exchange_id: Uuid,
    pub purpose: Purpose,
}

/// What becomes of what a cloud issues for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Exchange,
    /// Nothing: somebody looks whether it would. Assertions and marks say so.
    Probe,
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
    /// The exchange whose id the cloud has seen.
    pub minted_by: Uuid,
    origin: Origin,
    handed_out: AtomicBool,
}

/// Who got a credential from its cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Here,
    Replica,
}

/// As whom a credential acts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
            minted_by: Uuid::nil(),
            origin: Origin::Here,
            handed_out: AtomicBool::new(false),
        }
    }

    fn minted_by(self, exchange_id: Uuid) -> Self {
        Self { minted_by: exchange_id, ..self }
    }

    /// Where the cloud gave less than was asked for, asking again gives no more: half of its life is then enough.
    fn covers(&self, least: Duration, now: SystemTime) -> bool {
        let needed = match self.given {
            Given::AsAsked => least,
            Given::Less => least.min(self.expires_at.duration_since(self.issued_at).unwrap_or_default() / 2),
        };
        self.expires_at.duration_since(now).is_ok_and(|left| left >= needed && !left.is_zero())
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
    Refused {
        hop: Hop,
        code: String,
        meaning: &'static str,
        /// Where more is known than `code` says.
        fault: Option<SetUpFault>,
        upstream: Vec<(&'static str, String)>,
    },
    /// The caller's token is no longer good enough for the cloud that redeems it.
    #[error("{hop} refused the subject token: {code}: get a fresh one")]
    SubjectToken { hop: Hop, code: String, upstream: Vec<(&'static str, String)> },
    /// Conditional Access asks something of the user (Microsoft: claims challenge).
    #[error("Entra wants more from the user: {code}")]
    InsufficientClaims { code: String, claims: Option<String>, upstream: Vec<(&'static str, String)> },
    #[error("{hop} is asked too often")]
    Throttled { hop: Hop, retry_after: Duration, upstream: Vec<(&'static str, String)> },
    #[error("{hop} is not available: {cause}")]
    Unavailable {
        hop: Hop,
        cause: String,
        fault: Option<SetUpFault>,
        retry_after: Duration,
        upstream: Vec<(&'static str, String)>,
    },
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
    pub const ALL: [Self; 5] =
        [Self::GoogleSts, Self::GoogleIam, Self::EntraToken, Self::ManagedIdentity, Self::Broker];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GoogleSts => "google_sts",
            Self::GoogleIam => "google_iam_credentials",
            Self::EntraToken => "entra_token",
            Self::ManagedIdentity => "managed_identity",
            Self::Broker => "broker",
        }
    }

    fn token_answer(self, response: &Response) -> Result<TokenAnswer, IssueError> {
        let malformed =
            || IssueError::refused(self, "malformed_answer", "the answer holds no bearer token with a life");
        TokenAnswer::read(response).ok_or_else(malformed)
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

impl Call {
    fn subject_token(&self, hop: Hop) -> Result<&SubjectToken, IssueError> {
        let missing = || IssueError::SubjectToken { hop, code: "none".to_owned(), upstream: Vec::new() };
        self.subject_token.as_ref().ok_or_else(missing)
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

    /// Which service it was.
    pub fn hop(&self) -> Hop {
        match self {
            Self::Refused { hop, .. }
            | Self::SubjectToken { hop, .. }
            | Self::Throttled { hop, .. }
            | Self::Unavailable { hop, .. } => *hop,
            Self::InsufficientClaims { .. } => Hop::EntraToken,
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

    /// What is not set up, where more is known than the code says.
    pub fn fault(&self) -> Option<SetUpFault> {
        match self {
            Self::Refused { fault, .. } | Self::Unavailable { fault, .. } => *fault,
            Self::SubjectToken { .. } | Self::InsufficientClaims { .. } | Self::Throttled { .. } => None,
        }
    }

    /// Correlation ids that the cloud returned with its refusal, and whose call it was.
    pub fn upstream(&self) -> &[(&'static str, String)] {
        match self {
            Self::Refused { upstream, .. }
            | Self::SubjectToken { upstream, .. }
            | Self::InsufficientClaims { upstream, .. }
            | Self::Throttled { upstream, .. }
            | Self::Unavailable { upstream, .. } => upstream,
        }
    }

    fn traced(mut self, ids: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        match &mut self {
            Self::Refused { upstream, .. }
            | Self::SubjectToken { upstream, .. }
            | Self::InsufficientClaims { upstream, .. }
            | Self::Throttled { upstream, .. }
            | Self::Unavailable { upstream, .. } => upstream.extend(ids),
        }
        self
    }

    fn refused(hop: Hop, code: impl Into<String>, meaning: &'static str) -> Self {
        Self::Refused { hop, code: code.into(), meaning, fault: None, upstream: Vec::new() }
    }

    fn not_set_up(hop: Hop, code: impl Into<String>, fault: SetUpFault) -> Self {
        Self::Refused { hop, code: code.into(), meaning: fault.meaning(), fault: Some(fault), upstream: Vec::new() }
    }
}

/// The stage: asks the cache, the other replicas where there are any, and the cloud where nobody has what will do.
#[derive(Debug)]
pub struct Credentials {
    cache: Arc<Cache>,
    shared: Option<Arc<Shared>>,
    provider: Arc<dyn CredentialProvider>,
    clock: Arc<dyn Clock>,
}

impl Credentials {
    pub fn new(provider: Arc<dyn CredentialProvider>, clock: Arc<dyn Clock>) -> Self {
        Self { cache: Arc::new(Cache::new("credentials", clock.clone())), shared: None, provider, clock }
    }

    /// With room for so many bytes of them.
    #[cfg(any(test, feature = "testing"))]
    pub fn with_room(provider: Arc<dyn CredentialProvider>, clock: Arc<dyn Clock>, max_bytes: u64) -> Self {
        let cache = Arc::new(Cache::bounded("credentials", max_bytes, clock.clone()));
        Self { cache, shared: None, provider, clock }
    }

    /// Mints once per cluster: what a cloud issues is left in `store`, sealed, for the other replicas.
    pub fn shared_through(self, store: Arc<dyn SharedCredentials>, sealing: Arc<SealingKeys>) -> Self {
        let shared = Shared::new(store, sealing, self.clock.clone());
        Self { shared: Some(Arc::new(shared)), ..self }
    }

    /// A credential for `call.grant` with at least the life that its plan wants, as far as the cloud gives it.
    pub async fn credential(&self, call: Call) -> Result<Hit, IssueError> {
        let (key, least) = (key(&call.grant), call.grant.plan().least);
        let hit = self.cache.get(key, least, || self.mint(key, least, call)).await?;
        let cached = hit.cached || hit.credential.origin == Origin::Replica;
        Ok(Hit { cached, ..hit })
    }

    /// What is kept here for `grant`, without a call.
    pub fn held(&self, grant: &Grant) -> Held {
        self.cache.held(&key(grant))
    }

    /// The services on the way to the target's credentials, without a call.
    pub fn services(&self, target: &Target) -> Vec<Service> {
        self.provider.services(target)
    }

    /// A digest of the keys for which a cloud would have to be asked now; `None` where there are none.
    pub fn missing(&self, grants: &[Arc<Grant>]) -> Option<Key> {
        let keys = grants.iter().map(|grant| (key(grant), grant.plan().least));
        let missing: Vec<Key> =
            keys.filter(|(key, least)| !self.cache.covers(key, *least)).map(|(key, _least)| key).collect();
        let digest = || {
            let mut digest = FieldDigest::new("carnet credentials 1");
            digest.list(missing.iter());
            digest.finish()
        };
        (!missing.is_empty()).then(digest)
    }

    /// Drops what is kept under `key`, here and for the other replicas.
    pub async fn forget(&self, key: &Key) {
        self.cache.forget(key);
        if let Some(shared) = &self.shared {
            shared.forget(key).await;
        }
    }

    fn mint(
        &self,
        key: Key,
        least: Duration,
        call: Call,
    ) -> impl Future<Output = Result<Credential, IssueError>> + Send + use<> {
        let (provider, shared) = (self.provider.clone(), self.shared.clone());
        async move {
            let exchange_id = call.exchange_id;
            let minting = async {
                let minted = provider.issue(&call).await.map(|credential| credential.minted_by(exchange_id));
                minted.map_err(|error| error.traced([(UPSTREAM_EXCHANGE_ID, exchange_id.to_string())]))
            };
            match shared {
                Some(shared) => shared.credential(&key, least, minting).await,
                None => minting.await,
            }
        }
    }
}

/// Two calls have one key only if the same credential answers both: everything that the cloud or the policy could tell
/// apart is in it, and no token.
fn key(grant: &Grant) -> Key {
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
    if target.redeems_subject_token() {
        // The cloud sees the whole token, so whatever tells two tokens of one person apart but their times counts.
        let claims =
            grant.identity().claims().iter().filter(|(name, _value)| !VOLATILE_CLAIMS.contains(&name.as_str()));
        digest.list(claims.map(|(name, value)| format!("{}:{name}={value}", name.len())).collect::<Vec<_>>().iter());
    }
    digest.finish()
}

/// Everywhere else the cloud decides how long a token lives, so callers with different wishes share it.
fn takes_a_wish(grant: &Grant) -> bool {
    match (&grant.target().platform, grant.token_type()) {
        (Platform::Google(google), TokenType::AccessToken) => google.service_account.is_some(),
        (Platform::Google(_), TokenType::Jwt) => true,
        (Platform::Google(_), TokenType::IdToken) | (Platform::Azure(_), _) => false,
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
        // Clients ask again without a pause when they are given a dead token, and never when they are told of no end.
        let live = |credential: Credential| {
            let now = self.clock.now();
            let live = credential.expires_at > now;
            let dead = || IssueError::refused(hop, "expired", "the token has expired already: compare the clocks");
            let expires_at = credential.expires_at.min(now + LONGEST);
            live.then_some(Credential { expires_at, ..credential }).ok_or_else(dead)
        };
        issued.and_then(live)
    }

    fn services(&self, target: &Target) -> Vec<Service> {
        match &target.platform {
            Platform::Google(google) => self.google.services(google),
            Platform::Azure(azure) => self.azure.services(azure),
        }
    }
}

/// The broker's assertion for a call.
#[derive(Debug, Clone)]
struct Signer {
    issuer: Option<Arc<Issuer>>,
}

impl Signer {
    /// For a call of the broker's own, which comes at once.
    fn assertion(&self, call: &Call) -> Result<Secret, IssueError> {
        self.assertion_for(call, ASSERTION_LIFETIME)
    }

    fn assertion_for(&self, call: &Call, lifetime: Duration) -> Result<Secret, IssueError> {
        let no_issuer = || IssueError::not_set_up(Hop::Broker, "no_issuer", SetUpFault::NoIssuer);
        let issuer = self.issuer.as_ref().ok_or_else(no_issuer)?;
        let assertion = Assertion::for_grant(&call.grant).ok_or_else(no_issuer)?;
        let assertion = match call.purpose {
            Purpose::Exchange => assertion,
            Purpose::Probe => assertion.marked_as_probe(),
        };
        let unsigned = |_cause| IssueError::not_set_up(Hop::Broker, "no_signature", SetUpFault::NoSignature);
        issuer.sign(&assertion, call.exchange_id, lifetime).map_err(unsigned)
    }
}

/// Only `token_type` decides what an answer holds; everything else was decided before.
fn is_id_token(grant: &Grant) -> bool {
    grant.token_type() == TokenType::IdToken
}

/// Issues after a moment what was asked for, each time another token, and counts; can be told to be away.
#[cfg(test)]
#[derive(Debug)]
pub struct FakeProvider {
    clock: crate::clock::ManualClock,
    issued: std::sync::Mutex<Vec<SystemTime>>,
    away: AtomicBool,
}

#[cfg(test)]
impl FakeProvider {
    pub fn new(clock: crate::clock::ManualClock) -> Self {
        Self { clock, issued: std::sync::Mutex::default(), away: AtomicBool::new(false) }
    }

    pub fn is_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    pub fn issued(&self) -> usize {
        self.issued.lock().unwrap_or_else(std::sync::PoisonError::into_inner).len()
    }
}

#[cfg(test)]
#[async_trait::async_trait]
impl CredentialProvider for FakeProvider {
    async fn issue(&self, call: &Call) -> Result<Credential, IssueError> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if self.away.load(Ordering::Relaxed) {
            let retry_after = Duration::from_secs(1);
            let (hop, cause, upstream) = (Hop::GoogleSts, "away".to_owned(), Vec::new());
            return Err(IssueError::Unavailable { hop, cause, fault: None, retry_after, upstream });
        }
        let (now, asked) = (self.clock.now(), call.grant.plan().lifetime);
        let number = {
            let mut issued = self.issued.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            issued.push(now);
            issued.len()
        };
        let identity = CloudIdentity::Azure { tenant: Uuid::nil(), client_id: Uuid::nil() };
        Ok(Credential::new(Secret::new(format!("issued-token-{number}")), now, now + asked, asked, identity))
    }
}

#[cfg(test)]
mod tests;

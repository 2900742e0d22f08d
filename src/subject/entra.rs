//! Entra's access tokens, v1.0 and v2.0: every rule between the bytes and a `VerifiedIdentity`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use moka::sync::Cache;
use serde_json::Value;
use uuid::Uuid;

use super::jwks::{EntraMetadata, KeyError, VerificationKey, Version, names_tenant};
use super::token::{Claims, UnverifiedToken};
use super::{Examination, Identity, KeyCache, SubjectError, SubjectToken, VerifiedIdentity, Verifier};
use crate::clock::{Clock, Moment, from_unix_seconds};
use crate::http::{Client, Endpoint};
use crate::reason::Reason;
use crate::step::Step;
use crate::target;
use crate::telemetry::CacheSize;

/// Whose tokens are taken. Tenants and audiences are mandatory: the configuration refuses empty lists.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `https://login.microsoftonline.com`, or the host of a sovereign cloud.
    pub authority: Endpoint,
    pub tenants: Vec<Uuid>,
    /// Client id (v2.0 tokens) and application id URIs (v1.0 tokens) of the broker's own application.
    pub audiences: Vec<String>,
    /// Accepted difference of the clocks of Entra and of the broker.
    pub clock_skew: Duration,
}

/// Verifies tokens against the keys that their tenants publish.
pub struct EntraVerifier {
    pub(super) rules: Rules,
    pub(super) keys: Arc<KeyCache>,
    /// Key: SHA-256 of the token. Life: until the token's `exp`, and only while its tenant publishes the signing key.
    /// It stays for longer, so that a token whose time was over is not fresh again when the wall clock is set back. Bound: [`VERDICTS_MAX_BYTES`]. Refused tokens are not remembered: there is no end of them.
    verdicts: Cache<[u8; 32], Verdict>,
    size: CacheSize,
}

/// Everything that is asked of a token once its key is there.
pub(super) struct Rules {
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
}

/// Where a token says that its key is.
pub(super) struct Claimed {
    pub tenant: Uuid,
    pub version: Version,
}

#[derive(Clone)]
pub(super) struct Verdict {
    pub identity: Arc<VerifiedIdentity>,
    signed_by: Arc<SigningKey>,
    token_bytes: usize,
    /// When the token was shown first.
    seen: Moment,
}

/// What is known of a token that was shown before.
enum Remembered {
    Nothing,
    Good(Arc<VerifiedIdentity>),
    /// It has to be judged anew.
    Seen(Moment),
}

struct SigningKey {
    version: Version,
    kid: String,
    fingerprint: [u8; 32],
}

impl EntraVerifier {
    pub fn new(settings: Settings, http: Client, clock: Arc<dyn Clock>) -> Self {
        let metadata = EntraMetadata { http, authority: settings.authority.clone() };
        let keys = Arc::new(KeyCache::new(Arc::new(metadata), &settings.tenants));
        let weight = |_digest: &[u8; 32], verdict: &Verdict| verdict.approximate_bytes();
        let verdicts =
            Cache::builder().max_capacity(VERDICTS_MAX_BYTES).weigher(weight).time_to_live(VERDICT_MAX_AGE).build();
        Self { rules: Rules { settings, clock }, keys, verdicts, size: CacheSize::of("subject") }
    }

    /// For readiness and for the background refresh.
    pub fn keys(&self) -> &Arc<KeyCache> {
        &self.keys
    }

    /// A remembered verdict is good only where a new one would be: before `exp`, with a key that is still published.
    fn recall(&self, token: &SubjectToken) -> Result<Remembered, SubjectError> {
        let Some(Verdict { identity, signed_by, seen, .. }) = self.verdicts.get(&token.sha256) else {
            return Ok(Remembered::Nothing);
        };
        let now = seen.no_earlier(self.rules.clock.now());
        if now < identity.expires_at() {
            let trusted = self.keys.holds(identity.tenant(), signed_by.version, &signed_by.kid, &signed_by.fingerprint);
            return Ok(if trusted { Remembered::Good(identity) } else { Remembered::Seen(seen) });
        }
        self.rules.check_expiry(identity.expires_at(), now).map(|()| Remembered::Seen(seen))
    }

    pub(super) async fn examine(&self, token: &SubjectToken) -> Result<Verdict, SubjectError> {
        let unverified = UnverifiedToken::parse(token.text.expose())?;
        let claimed = self.rules.claimed(&unverified)?;
        let (key, set_issuer) = self.keys.key(claimed.tenant, claimed.version, &unverified.kid).await?;
        let identity = self.rules.judge(&unverified, &claimed, (&key, &set_issuer), token.sha256)?;
        let signed_by = SigningKey { version: claimed.version, kid: unverified.kid, fingerprint: key.fingerprint };
        let seen = Moment::at(self.rules.clock.now());
        let (identity, signed_by) = (Arc::new(identity), Arc::new(signed_by));
        Ok(Verdict { identity, signed_by, token_bytes: token.text.len(), seen })
    }
}

impl Rules {
    /// Before any key is looked for: an unknown tenant costs nobody a fetch.
    pub fn claimed(&self, unverified: &UnverifiedToken<'_>) -> Result<Claimed, SubjectError> {
        let claimed = unverified.unverified_claims()?;
        let tenant = target::guid(&claimed.tid).map_err(|_not_a_guid| SubjectError::Tenant)?;
        if !self.settings.tenants.contains(&tenant) {
            return Err(SubjectError::Tenant);
        }
        // Each form is checked against its own metadata, whatever else the token says of itself.
        let version = Version::of_issuer(&claimed.iss);
        Ok(Claimed { tenant, version })
    }

    /// `key`: the one that the token names, with the issuer of its set.
    pub fn judge(
        &self,
        unverified: &UnverifiedToken<'_>,
        &Claimed { tenant, version }: &Claimed,
        (key, set_issuer): (&VerificationKey, &str),
        token_sha256: [u8; 32],
    ) -> Result<VerifiedIdentity, SubjectError> {
        if !key.verifies(unverified.signed.as_bytes(), unverified.signature) {
            return Err(SubjectError::Signature("it does not match the tenant's key"));
        }
        let claims = unverified.claims()?;
        check_issuer(&claims, tenant, version, key.issuer.as_deref().unwrap_or(set_issuer))?;
        let expires_at = self.check_times(&claims)?;
        self.check_audience(&claims)?;
        let identity = Identity::read(claims, tenant, version, expires_at)?;
        Ok(VerifiedIdentity::new(identity, token_sha256))
    }

    pub(super) fn check_times(&self, claims: &Claims) -> Result<SystemTime, SubjectError> {
        let time = |name, complaint| {
            claims
                .seconds(name, complaint)
                .and_then(|seconds| from_unix_seconds(seconds).ok_or(SubjectError::Malformed(complaint)))
        };
        let expires_at = time("exp", "`exp` is not a whole number of seconds")?;
        let not_before = time("nbf", "`nbf` is not a whole number of seconds")?;
        let issued_at = time("iat", "`iat` is not a whole number of seconds")?;
        if expires_at <= not_before || expires_at <= issued_at {
            return Err(SubjectError::Malformed("it expires before it begins"));
        }
        let (now, skew) = (self.clock.now(), self.settings.clock_skew);
        self.check_expiry(expires_at, now)?;
        if let Ok(early) = not_before.max(issued_at).duration_since(now)
            && early > skew
        {
            return Err(SubjectError::NotYetValid(early));
        }
        Ok(expires_at)
    }

    fn check_expiry(&self, expires_at: SystemTime, now: SystemTime) -> Result<(), SubjectError> {
        match now.duration_since(expires_at) {
            Ok(late) if late >= self.settings.clock_skew => Err(SubjectError::Expired(late)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    pub(super) fn check_audience(&self, claims: &Claims) -> Result<(), SubjectError> {
        let audience = claims.text("aud", "`aud` is not one text")?;
        if self.settings.audiences.iter().any(|ours| same_audience(ours, audience)) {
            return Ok(());
        }
        let microsoft = MICROSOFT_AUDIENCES.iter().find(|(theirs, _name)| same_audience(theirs, audience));
        Err(microsoft.map_or(SubjectError::Audience, |(_audience, name)| SubjectError::NotForUs(name)))
    }
}

#[async_trait::async_trait]
impl Verifier for EntraVerifier {
    async fn verify(&self, token: &SubjectToken) -> Result<Arc<VerifiedIdentity>, SubjectError> {
        let seen = match self.recall(token)? {
            Remembered::Good(identity) => return Ok(identity),
            Remembered::Seen(seen) => Some(seen),
            Remembered::Nothing => None,
        };
        let mut verdict = self.examine(token).await?;
        verdict.seen = seen.unwrap_or(verdict.seen);
        let identity = verdict.identity.clone();
        self.verdicts.insert(token.sha256, verdict);
        self.size.set(self.verdicts.entry_count(), self.verdicts.weighted_size());
        Ok(identity)
    }

    fn remembered(&self, token: &SubjectToken) -> Option<Arc<VerifiedIdentity>> {
        match self.recall(token) {
            Ok(Remembered::Good(identity)) => Some(identity),
            Ok(Remembered::Nothing | Remembered::Seen(_)) | Err(_) => None,
        }
    }

    async fn explain(&self, token: &SubjectToken) -> Examination {
        self.examination(token).await
    }

    fn explain_refusal(&self, reason: Reason, error: &str, said: &dyn Fn(&str) -> Option<String>) -> Step {
        self.refusal_step(reason, error, said)
    }

    fn explain_claims(&self, identity: &Identity) -> Vec<Step> {
        self.claims_examination(identity)
    }

    fn still_accepts(&self, identity: &VerifiedIdentity) -> Result<(), SubjectError> {
        let settings = &self.rules.settings;
        if !settings.tenants.contains(&identity.tenant()) {
            return Err(SubjectError::Tenant);
        }
        let audience = identity.claims().get("aud").and_then(Value::as_str).unwrap_or_default();
        let ours = settings.audiences.iter().any(|ours| same_audience(ours, audience));
        ours.then_some(()).ok_or(SubjectError::Audience)
    }
}

impl From<KeyError> for SubjectError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Unknown => Self::Signature("its tenant publishes no key of that name"),
            KeyError::Unavailable { retry_after, source } => Self::KeysUnavailable { retry_after, source },
        }
    }
}

impl fmt::Debug for EntraVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntraVerifier").field("settings", &self.rules.settings).finish_non_exhaustive()
    }
}

/// Microsoft (access-tokens, "Validate the issuer"): the key's issuer, with the token's tenant filled in, is the
/// token's; the first segment of its path is the tenant.
pub(super) fn check_issuer(
    claims: &Claims,
    tenant: Uuid,
    version: Version,
    key_issuer: &str,
) -> Result<(), SubjectError> {
    let issuer = claims.text("iss", "`iss` is not one text")?;
    let same_tenant = claims.text("tid", "`tid` is not one text")? == tenant.to_string();
    let same_version = claims.optional_text("ver", "`ver` is not a text")?.and_then(Version::named) == Some(version);
    let expected = fill_in_tenant(key_issuer, tenant);
    if issuer == expected && same_tenant && same_version && names_tenant(issuer, tenant) {
        Ok(())
    } else {
        Err(SubjectError::Issuer)
    }
}

/// Replaces `{tenantid}`, written in any case, by the tenant.
fn fill_in_tenant(template: &str, tenant: Uuid) -> String {
    const PLACE: &str = "{tenantid}";
    match template.to_ascii_lowercase().find(PLACE) {
        Some(start) => format!(
            "{}{tenant}{}",
            template.get(..start).unwrap_or_default(),
            template.get(start + PLACE.len()..).unwrap_or_default()
        ),
        None => template.to_owned(),
    }
}

/// Equal, but for one slash at the end: Entra writes v1.0 audiences as the client asked for them.
pub(super) fn same_audience(ours: &str, theirs: &str) -> bool {
    let bare = |audience: &str| audience.strip_suffix('/').unwrap_or(audience).to_owned();
    ours == theirs || (ours.contains("://") && bare(ours) == bare(theirs))
}

impl Verdict {
    /// The claims as parsed JSON, and the facts that records keep of them: measured with tokens of a dozen claims and with
    /// 200 groups.
    fn approximate_bytes(&self) -> u32 {
        u32::try_from(1024 + self.token_bytes * 3).unwrap_or(u32::MAX)
    }
}

/// 10,000 verdicts of ordinary tokens.
const VERDICTS_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Frees the memory of verdicts nobody asks for; continuous-access tokens live up to 28 h.
const VERDICT_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Whether an audience is one of Microsoft's own applications, which the broker can never be.
pub fn is_microsoft_audience(audience: &str) -> bool {
    MICROSOFT_AUDIENCES.iter().any(|(theirs, _name)| same_audience(theirs, audience))
}

/// Applications whose tokens people present by mistake. Nobody but Microsoft can verify the first two.
pub(super) const MICROSOFT_AUDIENCES: [(&str, &str); 7] = [
    ("00000003-0000-0000-c000-000000000000", "Microsoft Graph"),
    ("https://graph.microsoft.com", "Microsoft Graph"),
    ("00000002-0000-0000-c000-000000000000", "Azure AD Graph"),
    ("https://graph.windows.net", "Azure AD Graph"),
    ("https://management.azure.com", "Azure Resource Manager"),
    ("https://management.core.windows.net", "Azure Resource Manager"),
    ("797f4846-ba00-4fd7-ba43-dac1f8f63013", "Azure Resource Manager"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_issuers_template_takes_the_tenant_in_any_case() {
        let tenant = Uuid::from_u128(1);
        assert_eq!(fill_in_tenant("https://a/{TenantId}/v2.0", tenant), format!("https://a/{tenant}/v2.0"));
        assert_eq!(fill_in_tenant("https://a/x/v2.0", tenant), "https://a/x/v2.0");
    }

    #[test]
    fn only_uri_audiences_are_taken_with_and_without_a_slash() {
        assert!(same_audience("api://carnet", "api://carnet/"));
        assert!(same_audience("api://carnet/", "api://carnet"));
        assert!(!same_audience("api://carnet", "api://carnet//"));
        assert!(!same_audience("22222222-2222-2222-2222-222222222222", "22222222-2222-2222-2222-222222222222/"));
        assert!(!same_audience("api://carnet", "API://carnet"));
    }
}

//! The verifier on trial: its own checks, on a key of whoever tries it.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::entra::{Rules, Settings};
use super::jwks::{VerificationKey, Version};
use super::token::UnverifiedToken;
use super::{SubjectError, SubjectToken};
use crate::clock::Clock;

/// Says what [`EntraVerifier`](super::EntraVerifier) would refuse if Entra signed with the given key. It gives no identity
/// out, so nobody becomes someone by a key of their own.
pub struct Trial {
    rules: Rules,
    kid: String,
    key: VerificationKey,
}

impl Trial {
    /// `jwk`: a public RSA key with its `kid`; `None` where it is not one.
    pub fn new(settings: Settings, jwk: &Value, clock: Arc<dyn Clock>) -> Option<Self> {
        let (kid, key) = VerificationKey::of(jwk)?;
        Some(Self { rules: Rules { settings, clock }, kid, key })
    }

    /// # Errors
    /// Why a v2.0 token would be refused.
    pub fn of(&self, token: &SubjectToken) -> Result<(), SubjectError> {
        let unverified = UnverifiedToken::parse(token.text.expose())?;
        let claimed = self.rules.claimed(&unverified)?;
        if unverified.kid != self.kid || claimed.version != Version::V2 {
            return Err(SubjectError::Signature("its tenant publishes no key of that name"));
        }
        let issuer = self.rules.settings.authority.join(&format!("{}/v2.0", claimed.tenant));
        self.rules.judge(&unverified, &claimed, (&self.key, &issuer), token.sha256).map(drop)
    }
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trial({})", self.kid)
    }
}

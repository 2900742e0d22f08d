//! A credential on its way to the caller, with what the broker decided about it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::credential::{CloudIdentity, Credential, Hit, Key};
use crate::policy::{Bound, Grant, LeaseTerms, refresh_in};
use crate::subject::VerifiedIdentity;
use crate::target::{Scopes, TokenType};

/// Holds the token, which only [`token`](Self::token) gives away.
#[derive(Debug)]
pub struct IssuedCredential {
    pub(super) grant: Arc<Grant>,
    pub(super) credential: Arc<Credential>,
    /// Of the cache, which may be told to forget it.
    pub key: Key,
    /// The token was minted for an earlier call.
    pub cached: bool,
    /// What is left of the token.
    pub granted: Duration,
    pub bound: Bound,
    /// Before the expiry, spread so that callers do not come back at once.
    pub refresh_after: SystemTime,
}

impl IssuedCredential {
    pub(super) fn new(grant: Arc<Grant>, hit: Hit, now: SystemTime) -> Self {
        let Hit { key, credential, cached } = hit;
        let granted = credential.expires_at.duration_since(now).unwrap_or_default();
        let bound = grant.plan().bound(granted, credential.given);
        let refresh_after = now + refresh_in(granted, rand::random());
        Self { grant, credential, key, cached, granted, bound, refresh_after }
    }

    /// It is on record: from now on, a later hand-out of the token is not its first.
    pub(super) fn handed_out(&self) {
        self.credential.mark_handed_out();
    }

    /// Whom it was issued to.
    pub fn holder(&self) -> &Arc<VerifiedIdentity> {
        self.grant.identity()
    }

    /// Where it is one of a lease.
    pub fn lease(&self) -> Option<&LeaseTerms> {
        self.grant.lease()
    }

    pub fn target(&self) -> &str {
        self.grant.target().name.as_str()
    }

    /// Secret.
    pub fn token(&self) -> &str {
        self.credential.token.expose()
    }

    pub fn token_sha256(&self) -> [u8; 32] {
        self.credential.token_sha256
    }

    pub fn token_type(&self) -> TokenType {
        self.grant.token_type()
    }

    pub fn scopes(&self) -> &Scopes {
        self.grant.scopes()
    }

    /// As the cloud says it.
    pub fn expires_at(&self) -> SystemTime {
        self.credential.expires_at
    }

    pub fn requested(&self) -> Option<Duration> {
        self.grant.plan().requested
    }

    pub fn identity(&self) -> &CloudIdentity {
        &self.credential.identity
    }
}

//! What a resource of Entra's does with an access token: issuer, signature by a published key, time, audience.

use serde_json::{Map, Value};

use super::directory::{Directory, Published};
use super::registry::TokenVersion;
use crate::clock::unix_seconds;
use crate::sandbox::keys::UnverifiedJwt;

/// Why an access token is not taken, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sandbox) enum InvalidToken {
    Malformed,
    Issuer,
    Signature,
    Lifetime,
    Audience,
}

impl Directory {
    /// The claims of an access token that this Entra signed, that is good now and meant for one of `audiences`. No
    /// tolerance for clock differences, where Microsoft's own services have five minutes: the stricter reading.
    pub(in crate::sandbox) fn access_token(
        &self,
        token: &str,
        audiences: &[&str],
    ) -> Result<Map<String, Value>, InvalidToken> {
        let token = UnverifiedJwt::parse(token).ok_or(InvalidToken::Malformed)?;
        let tenant_id = token.claim("tid").ok_or(InvalidToken::Issuer)?;
        let tenant = self.tenant(tenant_id).ok_or(InvalidToken::Issuer)?;
        let version = match token.claim("ver") {
            Some("1.0") => TokenVersion::V1,
            Some("2.0") => TokenVersion::V2,
            _ => return Err(InvalidToken::Issuer),
        };
        if token.claim("iss") != Some(&self.issuer(tenant_id, version)) {
            return Err(InvalidToken::Issuer);
        }
        let keys: Vec<Value> = tenant
            .published
            .iter()
            .map(|key| match key {
                Published::Own(key) => key.jwk(),
                Published::Foreign(jwk) => jwk.clone(),
            })
            .collect();
        if !token.key_in(&keys).is_some_and(|key| token.is_signed_by(key)) {
            return Err(InvalidToken::Signature);
        }
        let now = unix_seconds(self.now());
        let (Some(from), Some(until)) = (token.seconds("nbf"), token.seconds("exp")) else {
            return Err(InvalidToken::Lifetime);
        };
        if !(from..until).contains(&now) {
            return Err(InvalidToken::Lifetime);
        }
        let is_meant = |audience: &&str| audiences.contains(&audience.trim_end_matches('/'));
        if !token.audiences().iter().any(is_meant) {
            return Err(InvalidToken::Audience);
        }
        Ok(token.claims)
    }
}

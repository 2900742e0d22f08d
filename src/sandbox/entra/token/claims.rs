//! The claim sets of Entra's access tokens: version 1 and 2, of users, apps and managed identities.

use serde_json::{Map, Value, json};

use super::{EntraToken, Kind, object};
use crate::clock::unix_seconds;
use crate::sandbox::entra::TokenVersion;
use crate::sandbox::keys::base64url;
use crate::sandbox::wire::{guid_from, random_text};

/// The claim sets.
impl EntraToken {
    fn common_claims(&self, authentication: &str) -> Map<String, Value> {
        let audience = self.audience.clone();
        let issued_at = self.issued_at.unwrap_or_else(|| self.directory.now());
        let iat = unix_seconds(issued_at);
        let mut claims = object(json!({
            "aud": audience.unwrap_or_else(|| self.directory.default_audience()),
            "iss": self.directory.issuer(&self.tenant, self.version),
            "iat": iat,
            "nbf": iat,
            "exp": iat + self.lifetime.as_secs(),
            "aio": random_text(40),
            "oid": self.object,
            "rh": format!("1.{}.", random_text(22)),
            "tid": self.tenant,
            "uti": random_text(22),
        }));
        let more = match self.version {
            TokenVersion::V1 => json!({
                "appid": self.client, "appidacr": authentication, "ver": "1.0",
                "idp": self.directory.issuer(&self.tenant, TokenVersion::V1),
            }),
            TokenVersion::V2 => json!({
                "azp": self.client, "azpacr": authentication, "ver": "2.0",
            }),
        };
        claims.extend(object(more));
        claims
    }

    pub(super) fn app_claims(&self) -> Map<String, Value> {
        // 1: by secret, 2: by certificate. Managed identities have certificates behind them.
        let is_managed = matches!(self.kind, Kind::ManagedIdentity);
        let mut claims = self.common_claims(if is_managed { "2" } else { "1" });
        claims.extend(object(json!({"idtyp": "app", "sub": self.object})));
        if is_managed {
            let resource = format!(
                "/subscriptions/{}/resourcegroups/sandbox/providers/Microsoft.ManagedIdentity/\
                 userAssignedIdentities/{}",
                guid_from("subscription"),
                self.client
            );
            claims.insert("xms_mirid".to_owned(), json!(resource));
        }
        claims
    }

    pub(super) fn user_claims(&self) -> Map<String, Value> {
        let mut claims = self.common_claims("0");
        claims.extend(object(json!({
            "idtyp": "user",
            "name": "Ada Sandbox",
            "scp": "access_as_user",
            "sid": guid_from(&format!("session of {}", self.object)),
            // Pairwise: another value for every pair of user and app.
            "sub": self.pairwise_subject(),
        })));
        let more = match self.version {
            TokenVersion::V1 => json!({
                "acr": "1",
                "amr": ["pwd", "mfa"],
                "family_name": "Sandbox",
                "given_name": "Ada",
                "ipaddr": "192.0.2.7",
                "unique_name": "ada@sandbox.example",
                "upn": "ada@sandbox.example",
            }),
            TokenVersion::V2 => json!({"preferred_username": "ada@sandbox.example"}),
        };
        claims.extend(object(more));
        claims
    }

    fn pairwise_subject(&self) -> String {
        let audience = self.audience.clone().unwrap_or_default();
        let seed = guid_from(&format!("{} {audience}", self.object));
        base64url(seed.as_bytes())
    }
}

//! Builds Entra access tokens with a full, realistic claim set; a test changes the one thing it is about.

mod claims;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::directory::Directory;
use super::registry::TokenVersion;
use crate::sandbox::keys::{SigningKey, sign_hs256, signing_input};
use crate::sandbox::wire::guid_from;

/// A token to be. Version 2, issued now, for the Entra's default audience, signed by the tenant's current key.
/// Apps and users get 75 minutes, managed identities 24 hours.
#[derive(Clone)]
pub struct EntraToken {
    directory: Arc<Directory>,
    tenant: String,
    object: String,
    kind: Kind,
    version: TokenVersion,
    client: String,
    audience: Option<String>,
    issued_at: Option<SystemTime>,
    lifetime: Duration,
    key: Option<Arc<SigningKey>>,
    header: Vec<Edit>,
    claims: Vec<Edit>,
    raw_header: Option<String>,
    raw_payload: Option<String>,
}

#[derive(Clone, Copy)]
enum Kind {
    User,
    App,
    ManagedIdentity,
}

/// Changes are kept and applied last, so that their order does not matter to `v1` and the like.
#[derive(Clone)]
enum Edit {
    Set(String, Value),
    Remove(String),
}

/// Whose token.
impl EntraToken {
    pub(in crate::sandbox) fn for_app(directory: Arc<Directory>, tenant: &str, object: &str) -> Self {
        Self::new(directory, tenant, object, Kind::App)
    }

    pub(super) fn for_user(directory: Arc<Directory>, tenant: &str, object: &str) -> Self {
        Self::new(directory, tenant, object, Kind::User)
    }

    pub(in crate::sandbox) fn for_managed_identity(directory: Arc<Directory>, tenant: &str, object: &str) -> Self {
        let token = Self::new(directory, tenant, object, Kind::ManagedIdentity);
        token.lifetime(MANAGED_IDENTITY_LIFE)
    }

    fn new(directory: Arc<Directory>, tenant: &str, object: &str, kind: Kind) -> Self {
        directory.add_tenant(tenant);
        Self {
            directory,
            tenant: tenant.to_ascii_lowercase(),
            object: object.to_owned(),
            kind,
            version: TokenVersion::V2,
            client: guid_from(&format!("client of {object}")),
            audience: None,
            issued_at: None,
            lifetime: DEFAULT_LIFE,
            key: None,
            header: Vec::new(),
            claims: Vec::new(),
            raw_header: None,
            raw_payload: None,
        }
    }
}

/// What the managed identity endpoints hand out.
impl EntraToken {
    /// Aims the token at the resource that `identifier` names, in that resource's version; `None` if there is none.
    pub(in crate::sandbox) fn for_resource(self, identifier: &str) -> Option<Self> {
        let resource = self.directory.resource(identifier)?;
        let audience = match resource.version {
            TokenVersion::V1 => identifier.to_owned(),
            TokenVersion::V2 => resource.client_id,
        };
        Some(self.version(resource.version).audience(audience))
    }
}

/// What may be changed.
impl EntraToken {
    /// A version 1.0 token: other claims, issuer `https://sts.windows.net/{tid}/`, `x5t` in the header.
    #[must_use]
    pub fn v1(self) -> Self {
        self.version(TokenVersion::V1)
    }

    /// A token of this version.
    #[must_use]
    pub fn version(mut self, version: TokenVersion) -> Self {
        self.version = version;
        self
    }

    /// Sets `aud`.
    #[must_use]
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// The client app: `azp` in version 2, `appid` in version 1.
    #[must_use]
    pub fn client(mut self, client_id: impl Into<String>) -> Self {
        self.client = client_id.into();
        self
    }

    /// Sets any claim, over what the token would have had.
    #[must_use]
    pub fn claim(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.claims.push(Edit::Set(name.into(), value.into()));
        self
    }

    /// Leaves a claim out.
    #[must_use]
    pub fn without(mut self, claim: impl Into<String>) -> Self {
        self.claims.push(Edit::Remove(claim.into()));
        self
    }

    /// Sets any header parameter.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.header.push(Edit::Set(name.into(), value.into()));
        self
    }

    /// Leaves a header parameter out.
    #[must_use]
    pub fn without_header(mut self, name: impl Into<String>) -> Self {
        self.header.push(Edit::Remove(name.into()));
        self
    }

    /// Sets `groups` (object ids).
    #[must_use]
    pub fn groups<G: Into<String>>(self, groups: impl IntoIterator<Item = G>) -> Self {
        let groups: Vec<String> = groups.into_iter().map(Into::into).collect();
        self.claim("groups", groups)
    }

    /// Sets `roles`.
    #[must_use]
    pub fn roles<R: Into<String>>(self, roles: impl IntoIterator<Item = R>) -> Self {
        let roles: Vec<String> = roles.into_iter().map(Into::into).collect();
        self.claim("roles", roles)
    }

    /// Sets `scp`, separated by blanks.
    #[must_use]
    pub fn scopes<S: Into<String>>(self, scopes: impl IntoIterator<Item = S>) -> Self {
        let scopes: Vec<String> = scopes.into_iter().map(Into::into).collect();
        self.claim("scp", scopes.join(" "))
    }

    /// More than 200 groups: instead of `groups` the token says where they could be asked for.
    #[must_use]
    pub fn overage(self) -> Self {
        let (tenant, object) = (&self.tenant, &self.object);
        let endpoint = format!("https://graph.windows.net/{tenant}/users/{object}/getMemberObjects");
        self.without("groups")
            .claim("_claim_names", json!({"groups": "src1"}))
            .claim("_claim_sources", json!({"src1": {"endpoint": endpoint}}))
    }

    /// From `iat` to `exp`.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// `iat` and `nbf`; now unless set.
    #[must_use]
    pub fn issued_at(mut self, time: SystemTime) -> Self {
        self.issued_at = Some(time);
        self
    }

    /// Signs with another of the tenant's keys, published or withdrawn; an unknown `kid` changes nothing.
    #[must_use]
    pub fn signed_by(mut self, kid: &str) -> Self {
        self.key = self.directory.key(&self.tenant, kid).or(self.key);
        self
    }

    /// Signs with any key; the header has that key's `kid`.
    #[must_use]
    pub fn signed_by_key(mut self, key: Arc<SigningKey>) -> Self {
        self.key = Some(key);
        self
    }

    /// This text as the header, whatever else was set.
    #[must_use]
    pub fn raw_header(mut self, text: impl Into<String>) -> Self {
        self.raw_header = Some(text.into());
        self
    }

    /// This text as the payload, whatever else was set: for duplicate keys and for what is no JSON.
    #[must_use]
    pub fn raw_payload(mut self, text: impl Into<String>) -> Self {
        self.raw_payload = Some(text.into());
        self
    }
}

/// The token, or what an attacker makes of it.
impl EntraToken {
    /// The token, signed RS256.
    pub fn sign(&self) -> String {
        let key = self.signing_key();
        key.sign_text(&self.header_text(&key, "RS256"), &self.payload_text())
    }

    /// `alg` `none`, no signature.
    pub fn sign_with_alg_none(&self) -> String {
        let header = self.header_text(&self.signing_key(), "none");
        format!("{}.", signing_input(&header, &self.payload_text()))
    }

    /// HS256 with the published key's PEM text as the secret.
    pub fn sign_hs256_with_public_pem(&self) -> String {
        let key = self.signing_key();
        self.sign_hs256(&key, key.public_key_pem().as_bytes())
    }

    /// HS256 with the published key's modulus as the secret.
    pub fn sign_hs256_with_modulus(&self) -> String {
        let key = self.signing_key();
        self.sign_hs256(&key, &key.modulus())
    }

    /// RS256 by a key that Entra never had, under the `kid` of one that it has.
    pub fn sign_with_foreign_key(&self) -> String {
        let kid = self.signing_key().kid().to_owned();
        let foreign = SigningKey::rsa().with_kid(kid);
        foreign.sign_text(&self.header_text(&foreign, "RS256"), &self.payload_text())
    }

    /// A properly made token whose signature part is empty.
    pub fn without_signature(&self) -> String {
        let header = self.header_text(&self.signing_key(), "RS256");
        format!("{}.", signing_input(&header, &self.payload_text()))
    }

    /// The claims as they would be signed.
    pub fn claims(&self) -> Map<String, Value> {
        let mut claims = match self.kind {
            Kind::User => self.user_claims(),
            Kind::App | Kind::ManagedIdentity => self.app_claims(),
        };
        apply(&self.claims, &mut claims);
        claims
    }

    fn sign_hs256(&self, key: &SigningKey, secret: &[u8]) -> String {
        sign_hs256(&self.header_text(key, "HS256"), &self.payload_text(), secret)
    }

    fn signing_key(&self) -> Arc<SigningKey> {
        let chosen = self.key.clone();
        chosen.unwrap_or_else(|| self.directory.signing_key(&self.tenant))
    }

    fn header_text(&self, key: &SigningKey, alg: &str) -> String {
        if let Some(raw) = &self.raw_header {
            return raw.clone();
        }
        let mut header = object(json!({"typ": "JWT", "alg": alg, "kid": key.kid()}));
        if self.version == TokenVersion::V1 {
            header.insert("x5t".to_owned(), json!(key.kid()));
        }
        apply(&self.header, &mut header);
        Value::Object(header).to_string()
    }

    fn payload_text(&self) -> String {
        let raw = self.raw_payload.clone();
        raw.unwrap_or_else(|| Value::Object(self.claims()).to_string())
    }
}

impl fmt::Debug for EntraToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntraToken").field("tenant", &self.tenant).field("object", &self.object).finish_non_exhaustive()
    }
}

fn apply(edits: &[Edit], members: &mut Map<String, Value>) {
    for edit in edits {
        match edit {
            Edit::Set(name, value) => {
                members.insert(name.clone(), value.clone());
            }
            Edit::Remove(name) => {
                members.remove(name);
            }
        }
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

/// The middle of the 60 to 90 minutes that Entra draws from.
const DEFAULT_LIFE: Duration = Duration::from_secs(75 * 60);
pub(super) const MANAGED_IDENTITY_LIFE: Duration = Duration::from_secs(24 * 3600);

//! A workload identity pool provider: its name, its issuer, its keys, and who a token's bearer becomes.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};
use url::Url;

use super::cel::Expression;
use crate::sandbox::issuer_keys::is_loopback_http;

/// An OIDC provider of a pool. Starts with the mapping `google.subject=assertion.sub` and nothing else.
#[derive(Clone)]
pub struct PoolProvider {
    pub(super) name: String,
    pub(super) issuer: String,
    pub(super) keys: ProviderKeys,
    pub(super) allowed_audiences: Vec<String>,
    pub(super) mapping: Vec<(String, String)>,
    pub(super) condition: Option<Condition>,
    has_bad_condition: bool,
    pub(super) disabled: bool,
}

/// Where the issuer's keys come from.
#[derive(Clone)]
pub(super) enum ProviderKeys {
    /// `jwksJson`: the issuer is never asked.
    Uploaded(String),
    /// The issuer's discovery document; here on loopback http only.
    Fetched,
}

pub(super) type Condition = Arc<dyn Fn(&Map<String, Value>) -> bool + Send + Sync>;

impl PoolProvider {
    /// `name` is `//iam.googleapis.com/projects/N/locations/global/workloadIdentityPools/P/providers/Q`.
    pub fn new(name: impl Into<String>, issuer: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            issuer: issuer.into(),
            keys: ProviderKeys::Fetched,
            allowed_audiences: Vec::new(),
            mapping: vec![(SUBJECT.to_owned(), "assertion.sub".to_owned())],
            condition: None,
            has_bad_condition: false,
            disabled: false,
        }
    }

    /// Uploads a JWKS, after which the issuer is never asked.
    #[must_use]
    pub fn keys(mut self, jwks: impl Into<String>) -> Self {
        self.keys = ProviderKeys::Uploaded(jwks.into());
        self
    }

    /// Adds to `allowedAudiences`; while that is empty, `aud` must be the provider's full name.
    #[must_use]
    pub fn allowed_audience(mut self, audience: impl Into<String>) -> Self {
        self.allowed_audiences.push(audience.into());
        self
    }

    /// Maps `google.subject`, `google.groups` or `attribute.NAME` by a CEL expression over `assertion`.
    #[must_use]
    pub fn map(mut self, key: impl Into<String>, expression: impl Into<String>) -> Self {
        let key = key.into();
        self.mapping.retain(|(old, _)| *old != key);
        self.mapping.push((key, expression.into()));
        self
    }

    /// The attribute condition, over the claims of the assertion.
    #[must_use]
    pub fn condition(mut self, holds: impl Fn(&Map<String, Value>) -> bool + Send + Sync + 'static) -> Self {
        self.condition = Some(Arc::new(holds));
        self
    }

    /// The attribute condition in CEL, over `assertion`.
    #[must_use]
    pub fn condition_in_cel(mut self, source: &str) -> Self {
        match Expression::compile(source) {
            Some(expression) => self.condition(move |claims| expression.holds(claims)),
            None => {
                self.has_bad_condition = true;
                self
            }
        }
    }

    /// Stops new exchanges; tokens already issued keep working.
    #[must_use]
    pub fn disabled(mut self) -> Self {
        self.disabled = true;
        self
    }
}

impl fmt::Debug for PoolProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolProvider").field("name", &self.name).field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// Why IAM does not accept a provider.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProviderError {
    #[error("the name is not a provider's full resource name with a project number and ids of 4 to 32 characters")]
    Name,
    #[error("the issuer must be an https URL (or http on loopback)")]
    Issuer,
    #[error("at most {MAX_AUDIENCES} allowed audiences of 1 to {MAX_AUDIENCE} characters each")]
    Audiences,
    #[error("the mapping of `{0}` is not allowed")]
    Mapping(String),
    #[error("the attribute condition is not CEL")]
    Condition,
    #[error("the key set is not a JWKS")]
    Keys,
    #[error("a key may have no other members than the documented ones, but has `{0}`")]
    KeyMember(String),
}

/// A provider's parsed name.
pub(super) struct ProviderName<'a> {
    /// `projects/N/locations/global/workloadIdentityPools/P`, the part that principals share.
    pub(super) pool: &'a str,
}

impl<'a> ProviderName<'a> {
    /// `None` for anything but a full name with a project *number*; a project id there is the usual mistake.
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let path = name.strip_prefix("//iam.googleapis.com/")?;
        let (pool, provider) = path.split_once("/providers/")?;
        let (project, pool_id) =
            pool.strip_prefix("projects/")?.split_once("/locations/global/workloadIdentityPools/")?;
        let is_number = !project.is_empty() && project.bytes().all(|byte| byte.is_ascii_digit());
        (is_number && is_id(pool_id) && is_id(provider)).then_some(Self { pool })
    }
}

impl PoolProvider {
    /// Checks the limits of the IAM API and returns the uploaded keys.
    pub(super) fn check(&self) -> Result<Option<Vec<Value>>, ProviderError> {
        ProviderName::parse(&self.name).ok_or(ProviderError::Name)?;
        let is_allowed = |url: &Url| url.scheme() == "https" || is_loopback_http(url);
        let issuer = Url::parse(&self.issuer).ok().filter(is_allowed);
        issuer.ok_or(ProviderError::Issuer)?;
        let is_audience = |text: &String| (1..=MAX_AUDIENCE).contains(&text.chars().count());
        if self.allowed_audiences.len() > MAX_AUDIENCES || !self.allowed_audiences.iter().all(is_audience) {
            return Err(ProviderError::Audiences);
        }
        self.check_mapping()?;
        if self.has_bad_condition {
            return Err(ProviderError::Condition);
        }
        match &self.keys {
            ProviderKeys::Fetched => Ok(None),
            ProviderKeys::Uploaded(jwks) => uploaded_keys(jwks).map(Some),
        }
    }

    fn check_mapping(&self) -> Result<(), ProviderError> {
        let attributes = self.mapping.iter().filter(|(key, _)| key.starts_with(ATTRIBUTE));
        if attributes.count() > MAX_ATTRIBUTES {
            return Err(ProviderError::Mapping(ATTRIBUTE.to_owned()));
        }
        for (key, expression) in &self.mapping {
            let is_key = match key.strip_prefix(ATTRIBUTE) {
                Some(name) => !name.is_empty() && name.bytes().all(is_attribute_byte),
                None => key == SUBJECT || key == GROUPS,
            };
            let is_expression = expression.len() <= 2048 && Expression::compile(expression).is_some();
            if !is_key || key.len() > MAX_KEY || !is_expression {
                return Err(ProviderError::Mapping(key.clone()));
            }
        }
        Ok(())
    }
}

fn uploaded_keys(jwks: &str) -> Result<Vec<Value>, ProviderError> {
    let document: Value = serde_json::from_str(jwks).ok().ok_or(ProviderError::Keys)?;
    let keys = document.get("keys").and_then(Value::as_array);
    let keys = keys.ok_or(ProviderError::Keys)?;
    for key in keys {
        let members = key.as_object().ok_or(ProviderError::Keys)?;
        for name in members.keys() {
            if !JWK_MEMBERS.contains(&name.as_str()) {
                return Err(ProviderError::KeyMember(name.clone()));
            }
        }
    }
    Ok(keys.clone())
}

/// Pool and provider ids: 4 to 32 of `[a-z0-9-]`, and `gcp-` is reserved.
fn is_id(id: &str) -> bool {
    let is_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (4..=32).contains(&id.len()) && id.bytes().all(is_byte) && !id.starts_with("gcp-")
}

fn is_attribute_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

pub(super) const SUBJECT: &str = "google.subject";
pub(super) const GROUPS: &str = "google.groups";
pub(super) const ATTRIBUTE: &str = "attribute.";
pub(super) const ASSERTION: &str = "assertion.";

const MAX_AUDIENCES: usize = 10;
const MAX_AUDIENCE: usize = 256;
const MAX_ATTRIBUTES: usize = 50;
const MAX_KEY: usize = 100;
const JWK_MEMBERS: [&str; 9] = ["kty", "alg", "use", "kid", "n", "e", "x", "y", "crv"];

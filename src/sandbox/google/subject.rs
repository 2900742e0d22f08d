//! From a subject token to a principal: what STS demands of the JWT, then the provider's mapping and condition.

use serde_json::{Map, Value};

use super::cel::Expression;
use super::project::{Project, Registered};
use super::provider::{ASSERTION, ATTRIBUTE, GROUPS, PoolProvider, ProviderName, SUBJECT};
use super::status::StsError;
use crate::clock::unix_seconds;
use crate::sandbox::keys::UnverifiedJwt;

/// Who the bearer of a good subject token is.
pub(super) struct Principal {
    pub(super) name: String,
    pub(super) sets: Vec<String>,
    /// `exp` of the subject token, in seconds since 1970: the federated token does not outlive it.
    pub(super) expires: u64,
    /// Bytes of all mapped values: federated tokens grow with them.
    pub(super) mapped_size: usize,
}

pub(super) async fn principal(
    project: &Project,
    registered: &Registered,
    subject_token: &str,
) -> Result<Principal, StsError> {
    let provider = &registered.provider;
    let malformed = || StsError::grant("The given subject token is not a valid JWT.");
    let token = UnverifiedJwt::parse(subject_token).ok_or_else(malformed)?;
    header(&token)?;
    issuer(provider, &token)?;
    audience(provider, &token)?;
    signature(project, registered, &token).await?;
    let expires = times(project, &token)?;
    let mapped = Mapped::by(provider, &token.claims)?;
    if let Some(holds) = &provider.condition
        && !holds(&token.claims)
    {
        return Err(StsError::new(
            "unauthorized_client",
            "The given credential is rejected by the attribute condition.",
        ));
    }
    Ok(mapped.into_principal(provider, expires))
}

fn header(token: &UnverifiedJwt<'_>) -> Result<(), StsError> {
    if token.header("kid").is_none() {
        return Err(StsError::grant("The ID Token's header has no \"kid\"."));
    }
    match token.header("alg") {
        Some("RS256" | "ES256") => Ok(()),
        _ => Err(StsError::grant("The ID Token's signature algorithm is not supported; RS256 and ES256 are.")),
    }
}

/// Character by character: Entra's version 1 issuer against its version 2 issuer is the usual mistake.
fn issuer(provider: &PoolProvider, token: &UnverifiedJwt<'_>) -> Result<(), StsError> {
    let (presented, expected) = (token.claim("iss").unwrap_or_default(), &provider.issuer);
    if presented == expected {
        return Ok(());
    }
    Err(StsError::grant(format!("The issuer in ID Token {presented} does not match the expected ones: {expected}")))
}

fn audience(provider: &PoolProvider, token: &UnverifiedJwt<'_>) -> Result<(), StsError> {
    let with_scheme = format!("https:{}", provider.name);
    let allowed: Vec<&str> = if provider.allowed_audiences.is_empty() {
        vec![&provider.name, &with_scheme]
    } else {
        provider.allowed_audiences.iter().map(String::as_str).collect()
    };
    let presented = token.audiences();
    if presented.iter().any(|one| allowed.contains(one)) {
        return Ok(());
    }
    Err(StsError::grant(format!(
        "The audience in ID Token [{}] does not match the expected audience.",
        presented.join(", ")
    )))
}

async fn signature(project: &Project, registered: &Registered, token: &UnverifiedJwt<'_>) -> Result<(), StsError> {
    let keys = match &registered.keys {
        Some(uploaded) => uploaded.clone(),
        None => {
            let keys = project.issuer_keys().of(&registered.provider.issuer).await;
            keys.map_err(|unreachable| {
                StsError::grant(format!("Error connecting to the given credential's issuer: {unreachable}."))
            })?
        }
    };
    match token.key_in(&keys) {
        Some(key) if token.is_signed_by(key) => Ok(()),
        Some(_) => Err(StsError::grant("The signature of the ID Token is invalid.")),
        None => Err(StsError::grant("The signing key of the ID Token was not found.")),
    }
}

/// No tolerance for clock differences; Google's is not documented and there seems to be little.
fn times(project: &Project, token: &UnverifiedJwt<'_>) -> Result<u64, StsError> {
    let now = unix_seconds(project.now());
    let (Some(issued), Some(expires)) = (token.seconds("iat"), token.seconds("exp")) else {
        let text = "The ID Token must have the claims \"iat\" and \"exp\".";
        return Err(StsError::grant(text));
    };
    if expires <= now {
        let text = format!("ID Token issued at {issued} is stale to sign-in.");
        return Err(StsError::grant(text));
    }
    if issued > now || token.seconds("nbf").is_some_and(|from| from > now) {
        let text = format!("ID Token issued at {issued} is not yet valid.");
        return Err(StsError::grant(text));
    }
    if expires.saturating_sub(issued) >= MAX_LIFETIME {
        let text = "The ID Token's lifetime must be less than 48 hours.";
        return Err(StsError::grant(text));
    }
    Ok(expires)
}

/// The values of the attribute mapping.
#[derive(Default)]
struct Mapped {
    subject: String,
    groups: Vec<String>,
    attributes: Vec<(String, String)>,
}

impl Mapped {
    fn by(provider: &PoolProvider, claims: &Map<String, Value>) -> Result<Self, StsError> {
        let mut mapped = Self::default();
        for (key, expression) in &provider.mapping {
            if key == GROUPS {
                mapped.groups = groups(key, expression, claims)?;
                continue;
            }
            let value = text(key, expression, claims)?;
            match key.strip_prefix(ATTRIBUTE) {
                Some(name) => mapped.attributes.push((name.to_owned(), value)),
                None => mapped.subject = value,
            }
        }
        if mapped.subject.is_empty() || mapped.subject.len() > MAX_SUBJECT {
            return Err(too_large(SUBJECT, MAX_SUBJECT));
        }
        if mapped.size() > MAX_MAPPED {
            return Err(too_large("values", MAX_MAPPED));
        }
        Ok(mapped)
    }

    fn size(&self) -> usize {
        let groups: usize = self.groups.iter().map(String::len).sum();
        let attributes: usize = self.attributes.iter().map(|(_, value)| value.len()).sum();
        self.subject.len() + groups + attributes
    }

    fn into_principal(self, provider: &PoolProvider, expires: u64) -> Principal {
        let mapped_size = self.size();
        let pool = ProviderName::parse(&provider.name).map_or("", |name| name.pool);
        let set = |what: String| format!("principalSet://iam.googleapis.com/{pool}/{what}");
        let groups = self.groups.iter().map(|group| set(format!("group/{group}")));
        let attributes = self.attributes.iter();
        let attributes = attributes.map(|(name, value)| set(format!("attribute.{name}/{value}")));
        Principal {
            name: format!("principal://iam.googleapis.com/{pool}/subject/{}", self.subject),
            sets: groups.chain(attributes).chain([set("*".to_owned())]).collect(),
            expires,
            mapped_size,
        }
    }
}

/// The value of a mapping: of a claim as it is, or of an expression.
fn text(key: &str, expression: &str, claims: &Map<String, Value>) -> Result<String, StsError> {
    let Some(claim) = plain_claim(expression) else {
        let text = Expression::compile(expression).and_then(|expression| expression.text(claims));
        return text.ok_or_else(|| wrong_type(key, "STRING"));
    };
    let value = claims.get(claim).ok_or_else(|| missing(key, claim))?;
    value.as_str().map(ToOwned::to_owned).ok_or_else(|| wrong_type(key, "STRING"))
}

fn groups(key: &str, expression: &str, claims: &Map<String, Value>) -> Result<Vec<String>, StsError> {
    let Some(claim) = plain_claim(expression) else {
        let texts = Expression::compile(expression).and_then(|expression| expression.texts(claims));
        return texts.ok_or_else(|| wrong_type(key, "LIST of STRING"));
    };
    let value = claims.get(claim).ok_or_else(|| missing(key, claim))?;
    let texts = value.as_array().map(|list| list.iter().map(|item| item.as_str().map(ToOwned::to_owned)));
    texts.and_then(Iterator::collect).ok_or_else(|| wrong_type(key, "LIST of STRING"))
}

/// `assertion.NAME`, which needs no interpreter.
fn plain_claim(expression: &str) -> Option<&str> {
    let claim = expression.strip_prefix(ASSERTION)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!claim.is_empty() && claim.bytes().all(plain)).then_some(claim)
}

fn missing(key: &str, claim: &str) -> StsError {
    StsError::grant(format!("Failed to map {key}: no such key: {claim}"))
}

fn wrong_type(key: &str, expected: &str) -> StsError {
    StsError::grant(format!("The mapped attribute '{key}' must be of type {expected}"))
}

fn too_large(what: &str, limit: usize) -> StsError {
    StsError::grant(format!(
        "The size of mapped attribute {what} exceeds the {limit} bytes limit. Either modify your attribute mapping or \
         the incoming assertion to produce a mapped attribute that is less than {limit} bytes."
    ))
}

const MAX_LIFETIME: u64 = 48 * 3600;
const MAX_SUBJECT: usize = 127;
const MAX_MAPPED: usize = 8 * 1024;

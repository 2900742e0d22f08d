//! `POST /{tenant}/oauth2/v2.0/token`: client credentials by secret or federated assertion, on-behalf-of, and people who
//! signed in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use rand::Rng;
use serde_json::{Value, json};

use super::assertion;
use super::directory::{Directory, Published};
use super::refusal::{Correlation, Refusal, answer};
use super::registry::{Identity, IdentityKind, Resource, TokenVersion};
use super::sign_in;
use super::token::{EntraToken, MANAGED_IDENTITY_LIFE};
use crate::clock::unix_seconds;
use crate::sandbox::calls::{FORM, fields, has_content_type};
use crate::sandbox::keys::UnverifiedJwt;

pub(super) async fn token(
    State(directory): State<Arc<Directory>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match grant(&directory, &tenant, &headers, &body).await {
        Ok(body) => answer(StatusCode::OK, &body, Correlation::of(&headers)),
        Err(refusal) => refusal.into_response(&directory, &headers),
    }
}

async fn grant(directory: &Arc<Directory>, tenant: &str, headers: &HeaderMap, body: &Bytes) -> Result<Value, Refusal> {
    if directory.tenant(tenant).is_none() {
        return Err(Refusal::unknown_tenant(tenant));
    }
    let form = Form::parse(headers, body)?;
    let grant_type = GrantType::parse(form.required("grant_type")?)?;
    let identity = identity(directory, tenant, form.required("client_id")?)?;
    if matches!(grant_type, GrantType::DeviceCode | GrantType::RefreshToken) {
        return sign_in::grant(directory, &identity, grant_type, &form).await;
    }
    let request = Requested::parse(directory, tenant, grant_type, form.required("scope")?)?;
    authenticate(directory, &identity, &form).await?;
    match grant_type {
        GrantType::OnBehalfOf => on_behalf_of(directory, &identity, &request, &form),
        _ => Ok(issue(directory, &identity, &request)),
    }
}

/// The registration with this client id in a tenant that exists.
pub(super) fn identity(directory: &Directory, tenant: &str, client_id: &str) -> Result<Identity, Refusal> {
    if directory.tenant(tenant).is_none() {
        return Err(Refusal::unknown_tenant(tenant));
    }
    directory.identity(tenant, client_id).ok_or_else(|| {
        Refusal::new(
            700_016,
            format!(
                "Application with identifier '{client_id}' was not found in the directory '{tenant}'. This can happen \
                 if the application has not been installed by the administrator of the tenant or consented to by any \
                 user in the tenant. You may have sent your authentication request to the wrong tenant."
            ),
        )
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum GrantType {
    ClientCredentials,
    OnBehalfOf,
    DeviceCode,
    RefreshToken,
}

impl GrantType {
    fn parse(text: &str) -> Result<Self, Refusal> {
        match text {
            "client_credentials" => Ok(Self::ClientCredentials),
            "urn:ietf:params:oauth:grant-type:jwt-bearer" => Ok(Self::OnBehalfOf),
            "urn:ietf:params:oauth:grant-type:device_code" => Ok(Self::DeviceCode),
            "refresh_token" => Ok(Self::RefreshToken),
            other => Err(Refusal::new(70003, format!("The app requested an unsupported grant type '{other}'."))),
        }
    }
}

pub(super) struct Form(BTreeMap<String, String>);

impl Form {
    /// Another content type reads as an empty form, as at the real endpoint.
    pub(super) fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, Refusal> {
        let mut form = BTreeMap::new();
        if !has_content_type(headers, FORM) {
            return Ok(Self(form));
        }
        for (name, value) in fields(body) {
            if form.insert(name.clone(), value).is_some() {
                return Err(Refusal::new(
                    9_000_411,
                    format!("The request is not properly formatted. The parameter '{name}' is duplicated."),
                ));
            }
        }
        Ok(Self(form))
    }

    pub(super) fn optional(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name)?;
        (!value.is_empty()).then_some(value)
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, Refusal> {
        self.optional(name).ok_or_else(|| Refusal::missing(name))
    }
}

/// What is asked for: one resource, and scopes of it when a user is behind the request.
pub(super) struct Requested {
    pub(super) resource: Resource,
    /// The identifier as the scope had it: `aud` of version 1 tokens.
    identifier: String,
    scopes: Vec<String>,
}

impl Requested {
    pub(super) fn parse(
        directory: &Directory,
        tenant: &str,
        grant_type: GrantType,
        scope: &str,
    ) -> Result<Self, Refusal> {
        let all: Vec<&str> = scope.split_ascii_whitespace().collect();
        let is_oidc = |scope: &&&str| OIDC_SCOPES.contains(*scope);
        let of_resources: Vec<&str> = match grant_type {
            GrantType::ClientCredentials => all,
            _ => all.iter().filter(|one| !is_oidc(one)).copied().collect(),
        };
        let mut identifier = "";
        let mut scopes = Vec::new();
        for one in of_resources {
            // Everything before the last slash: "https://x.net//.default" is a scope of "https://x.net/".
            let (resource, name) = one.rsplit_once('/').ok_or_else(|| bad_scope(grant_type, scope))?;
            if grant_type == GrantType::ClientCredentials && name != DEFAULT {
                return Err(bad_scope(grant_type, scope));
            }
            if !identifier.is_empty() && identifier != resource {
                return Err(several_resources(scope));
            }
            identifier = resource;
            scopes.push(name.to_owned());
        }
        if scopes.is_empty() || (scopes.len() > 1 && grant_type == GrantType::ClientCredentials) {
            return Err(several_resources(scope));
        }
        let resource = directory.resource(identifier).ok_or_else(|| {
            Refusal::new(
                500_011,
                format!(
                    "The resource principal named {identifier} was not found in the tenant named {tenant}. This can \
                     happen if the application has not been installed by the administrator of the tenant or consented \
                     to by any user in the tenant. You might have sent your authentication request to the wrong tenant."
                ),
            )
        })?;
        Ok(Self { resource, identifier: identifier.to_owned(), scopes })
    }

    fn audience(&self) -> &str {
        match self.resource.version {
            TokenVersion::V1 => &self.identifier,
            TokenVersion::V2 => &self.resource.client_id,
        }
    }
}

fn bad_scope(grant_type: GrantType, scope: &str) -> Refusal {
    match grant_type {
        GrantType::OnBehalfOf | GrantType::DeviceCode | GrantType::RefreshToken => several_resources(scope),
        GrantType::ClientCredentials => Refusal::new(
            1_002_012,
            format!(
                "The provided value for scope {scope} is not valid. Client credential flows must have a scope value \
                 with /.default suffixed to the resource identifier (application ID URI)."
            ),
        ),
    }
}

fn several_resources(scope: &str) -> Refusal {
    Refusal::new(
        70011,
        format!(
            "The provided request must include a 'scope' input parameter. The provided value for the input parameter \
             'scope' is not valid. The scope {scope} is not valid."
        ),
    )
}

pub(super) async fn authenticate(directory: &Directory, identity: &Identity, form: &Form) -> Result<(), Refusal> {
    if let Some(presented) = form.optional("client_assertion") {
        let kind = form.required("client_assertion_type")?;
        if kind != ASSERTION_TYPE {
            let text = format!("The client assertion type '{kind}' is not supported.");
            return Err(Refusal::new(50027, text));
        }
        return assertion::check(directory, identity, presented).await;
    }
    let Some(presented) = form.optional("client_secret") else {
        return Err(Refusal::new(
            7_000_218,
            "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.",
        ));
    };
    if identity.secret.as_deref() == Some(presented) {
        return Ok(());
    }
    Err(Refusal::new(
        7_000_215,
        format!(
            "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, \
             not the client secret ID, for a secret added to app '{}'.",
            identity.client_id
        ),
    ))
}

fn issue(directory: &Arc<Directory>, identity: &Identity, request: &Requested) -> Value {
    let (tenant, object) = (&identity.tenant, &identity.object_id);
    let token = match identity.kind {
        IdentityKind::App => EntraToken::for_app(Arc::clone(directory), tenant, object),
        IdentityKind::ManagedIdentity => EntraToken::for_managed_identity(Arc::clone(directory), tenant, object),
    };
    let mut token = token.client(&identity.client_id);
    // Roles are assigned per resource; groups are a setting of the broker's registration.
    if request.resource.client_id == directory.default_audience() {
        if !identity.roles.is_empty() {
            token = token.roles(identity.roles.clone());
        }
        if !identity.groups.is_empty() {
            token = token.groups(identity.groups.clone());
        }
    }
    respond(token, identity.kind, request)
}

fn on_behalf_of(
    directory: &Arc<Directory>,
    identity: &Identity,
    request: &Requested,
    form: &Form,
) -> Result<Value, Refusal> {
    if form.required("requested_token_use")? != "on_behalf_of" {
        let text = "The value of the parameter 'requested_token_use' is not supported.";
        return Err(Refusal::new(900_144, text));
    }
    let user = verified_user(directory, identity, form.required("assertion")?)?;
    if directory.requires_interaction(&user) {
        return Err(Refusal::interaction(&request.resource.client_id));
    }
    let token = EntraToken::for_user(Arc::clone(directory), &identity.tenant, &user)
        .client(&identity.client_id)
        .scopes(request.scopes.iter().map(|name| match name.as_str() {
            DEFAULT => "user_impersonation",
            name => name,
        }));
    let mut body = respond(token, IdentityKind::App, request);
    if let Value::Object(members) = &mut body {
        let scopes = request.scopes.iter();
        let granted: Vec<String> = scopes.map(|name| format!("{}/{name}", request.identifier)).collect();
        members.insert("scope".to_owned(), json!(granted.join(" ")));
    }
    Ok(body)
}

/// The object id of the user whose token this is; the token must be for `identity`.
fn verified_user(directory: &Directory, identity: &Identity, token: &str) -> Result<String, Refusal> {
    let invalid = |reason: &str| {
        let text = format!("Assertion failed signature validation. [Reason - {reason}]");
        Refusal::new(50013, text)
    };
    let token = UnverifiedJwt::parse(token).ok_or_else(|| invalid("The token is malformed."))?;
    let tenant = directory.tenant(&identity.tenant).unwrap_or_default();
    let is_signature = |key: &Published| match key {
        Published::Own(key) => token.header("kid") == Some(key.kid()) && token.is_signed_by(&key.jwk()),
        Published::Foreign(_) => false,
    };
    if !tenant.published.iter().any(is_signature) {
        return Err(invalid("The key was not found or the signature does not match."));
    }
    let issuers = [TokenVersion::V1, TokenVersion::V2].map(|version| directory.issuer(&identity.tenant, version));
    if !issuers.iter().any(|issuer| token.claim("iss") == Some(issuer)) {
        return Err(invalid("The issuer does not match."));
    }
    let own = [identity.client_id.clone(), format!("api://{}", identity.client_id)];
    if !own.iter().any(|audience| token.claim("aud") == Some(audience)) {
        return Err(invalid("The audience is not the client."));
    }
    let now = unix_seconds(directory.now());
    let from = token.seconds("nbf").unwrap_or_default();
    if !(from..token.seconds("exp").unwrap_or_default()).contains(&now) {
        return Err(Refusal::new(
            500_133,
            "Assertion is not within its valid time range. Ensure that the access token is not expired before using \
             it for user assertion, or request a new token.",
        ));
    }
    if token.claim("scp").is_none() || token.claim("idtyp") == Some("app") {
        return Err(Refusal::new(
            7_000_113,
            format!("Application '{}' is not authorized to make application on-behalf-of calls.", identity.client_id),
        ));
    }
    let user = token.claim("oid").map(ToOwned::to_owned);
    user.ok_or_else(|| invalid("The token names no user."))
}

pub(super) fn respond(token: EntraToken, kind: IdentityKind, request: &Requested) -> Value {
    let life = match kind {
        IdentityKind::ManagedIdentity => MANAGED_IDENTITY_LIFE,
        IdentityKind::App => Duration::from_secs(rand::rng().random_range(3600..=5400)),
    };
    let token = token.version(request.resource.version).audience(request.audience()).lifetime(life);
    // One second less than the token lives: what the real endpoint says.
    let expires_in = life.as_secs().saturating_sub(1);
    json!({
        "token_type": "Bearer",
        "expires_in": expires_in,
        "ext_expires_in": expires_in,
        "access_token": token.sign(),
    })
}

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const DEFAULT: &str = ".default";
const OIDC_SCOPES: [&str; 4] = ["openid", "profile", "email", "offline_access"];

//! STS: `POST /v1/token` (RFC 8693, form or JSON) and `POST /v1/introspect`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, USER_AGENT};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::project::{ExpiresIn, Project, Registered, TokenInfo, TokenKind};
use super::provider::ProviderName;
use super::status::StsError;
use super::subject;
use crate::clock::unix_seconds;
use crate::sandbox::calls::{FORM, fields, has_content_type};

pub(super) async fn token(State(project): State<Arc<Project>>, headers: HeaderMap, body: Bytes) -> Response {
    match exchange(&project, &headers, &body).await {
        Ok(body) => Json(body).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn exchange(project: &Project, headers: &HeaderMap, body: &[u8]) -> Result<Value, StsError> {
    // Any Authorization header is read as client authentication, and workload pools have no clients.
    if headers.contains_key(AUTHORIZATION) {
        return Err(StsError::new("invalid_client", "The OAuth client was not found."));
    }
    let request = Parameters::parse(headers, body)?;
    expect(&request, "grant_type", &[TOKEN_EXCHANGE], "unsupported_grant_type")?;
    let registered = provider(project, request.required("audience")?)?;
    expect(&request, "requested_token_type", &[ACCESS_TOKEN], "invalid_request")?;
    expect(&request, "subject_token_type", &[JWT, ID_TOKEN], "invalid_request")?;
    let scopes = scopes(&request)?;
    options(&request)?;
    let subject_token = request.required("subject_token")?;
    let principal = subject::principal(project, &registered, subject_token).await?;

    let now = project.now();
    let remaining = principal.expires.saturating_sub(unix_seconds(now));
    let expires_in = remaining.min(MAX_LIFETIME);
    let info = TokenInfo {
        kind: TokenKind::Federated,
        principal: principal.name,
        principal_sets: principal.sets,
        service_account: None,
        scopes,
        issued_at: now,
        expires_at: now + Duration::from_secs(expires_in),
        request_reason: text(headers, REQUEST_REASON),
        user_agent: text(headers, USER_AGENT.as_str()),
    };
    let token = project.issue(info, BASE_LENGTH + principal.mapped_size);
    let mut answer = json!({
        "access_token": token,
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "Bearer",
    });
    let expires_in = match project.expires_in() {
        ExpiresIn::Number => Some(json!(expires_in)),
        ExpiresIn::Text => Some(json!(expires_in.to_string())),
        ExpiresIn::Absent => None,
    };
    if let Value::Object(members) = &mut answer {
        members.extend(expires_in.map(|value| ("expires_in".to_owned(), value)));
    }
    Ok(answer)
}

/// RFC 8693 parameters by their snake_case names, from whichever of the three forms.
struct Parameters(BTreeMap<String, String>);

impl Parameters {
    fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, StsError> {
        let pairs = if has_content_type(headers, FORM) {
            fields(body)
        } else if has_content_type(headers, "application/json") {
            json_fields(body)?
        } else {
            let text = "The content type must be application/x-www-form-urlencoded or application/json.";
            return Err(StsError::request(text));
        };
        let mut parameters = BTreeMap::new();
        for (name, value) in pairs {
            if parameters.insert(name.clone(), value).is_some() {
                let text = format!("The parameter \"{name}\" is repeated.");
                return Err(StsError::request(text));
            }
        }
        Ok(Self(parameters))
    }

    fn optional(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name)?;
        (!value.is_empty()).then_some(value)
    }

    fn required(&self, name: &str) -> Result<&str, StsError> {
        self.optional(name).ok_or_else(|| StsError::request(format!("Missing required parameter: {name}")))
    }
}

fn json_fields(body: &[u8]) -> Result<Vec<(String, String)>, StsError> {
    let malformed = || StsError::request("The request body is not a JSON object of strings.");
    let body: Option<Value> = serde_json::from_slice(body).ok();
    let mut fields = Vec::new();
    for (name, value) in body.as_ref().and_then(Value::as_object).ok_or_else(malformed)? {
        let value = value.as_str().ok_or_else(malformed)?;
        fields.push((snake_case(name), value.to_owned()));
    }
    Ok(fields)
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn expect(request: &Parameters, name: &str, allowed: &[&str], error: &'static str) -> Result<(), StsError> {
    let value = request.required(name)?;
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(StsError::new(error, format!("Invalid value for \"{name}\": {value}")))
}

fn provider(project: &Project, audience: &str) -> Result<Registered, StsError> {
    if ProviderName::parse(audience).is_none() {
        return Err(StsError::request(
            "Invalid value for \"audience\". This value should be the full resource name of the Identity Provider. See \
             https://cloud.google.com/iam/docs/reference/sts/rest/v1/TopLevel/token for the list of possible formats.",
        ));
    }
    let found = project.provider(audience);
    found.filter(|registered| !registered.provider.disabled).ok_or_else(|| {
        StsError::new(
            "invalid_target",
            "The target service indicated by the \"audience\" parameters is invalid. This might either be because \
                 the pool or provider is disabled or deleted or because it doesn't exist.",
        )
    })
}

fn scopes(request: &Parameters) -> Result<Vec<String>, StsError> {
    let scopes: Vec<String> =
        request.optional("scope").unwrap_or_default().split_ascii_whitespace().map(ToOwned::to_owned).collect();
    if scopes.is_empty() {
        return Err(StsError::new("invalid_scope", "At least one scope is required."));
    }
    let is_known = |scope: &String| scope.starts_with(SCOPE_PREFIX) || scope == "openid";
    match scopes.iter().find(|scope| !is_known(scope)) {
        Some(unknown) => Err(StsError::new("invalid_scope", format!("{unknown} is not a valid scope."))),
        None => Ok(scopes),
    }
}

/// JSON in a string; Python percent-encodes it once more than the others.
fn options(request: &Parameters) -> Result<(), StsError> {
    let Some(options) = request.optional("options") else {
        return Ok(());
    };
    if options.chars().count() > MAX_OPTIONS {
        let text = "\"options\" must not be longer than 4096 characters.";
        return Err(StsError::request(text));
    }
    // "+" stands for itself in percent-encoding, for a blank in forms.
    let once_more = fields(format!("x={}", options.replace('+', "%2B")).as_bytes());
    let decoded = once_more.first().map_or("", |(_, value)| value);
    let parse = |text: &str| serde_json::from_str::<Map<String, Value>>(text).ok();
    let options = parse(options).or_else(|| parse(decoded));
    let options = options.ok_or_else(|| StsError::request("\"options\" is not a JSON object."))?;
    if options.contains_key("userProject") {
        let text = "\"userProject\" is for workforce pools only.";
        return Err(StsError::request(text));
    }
    if options.contains_key("accessBoundary") {
        let text = "A Credential Access Boundary applies to access tokens only.";
        return Err(StsError::request(text));
    }
    Ok(())
}

pub(super) async fn introspect(State(project): State<Arc<Project>>, headers: HeaderMap, body: Bytes) -> Response {
    let request = match Parameters::parse(&headers, &body) {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    let token = match request.required("token") {
        Ok(token) => token,
        Err(error) => return error.into_response(),
    };
    // Service account tokens are for https://oauth2.googleapis.com/tokeninfo.
    let info = project.check(token).filter(|info| info.kind == TokenKind::Federated);
    let Some(info) = info else {
        return Json(json!({"active": false})).into_response();
    };
    let subject = info.principal.rsplit_once("/subject/");
    Json(json!({
        "active": true,
        "client_id": subject.map_or("", |(pool, _)| pool).replace("principal:", ""),
        "exp": unix_seconds(info.expires_at).to_string(),
        "iat": unix_seconds(info.issued_at).to_string(),
        "iss": "https://sts.googleapis.com/",
        "scope": info.scopes.join(" "),
        "sub": subject.map_or("", |(_, subject)| subject),
        "username": info.principal,
    }))
    .into_response()
}

/// A header's text, kept for the token's record as Google keeps it for the audit log.
pub(super) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// What the bearer's token is, if this Google issued it and it is still good.
pub(super) fn bearer(project: &Project, headers: &HeaderMap) -> Option<TokenInfo> {
    let authorization = text(headers, AUTHORIZATION.as_str())?;
    project.check(authorization.strip_prefix("Bearer ")?)
}

pub(super) const REQUEST_REASON: &str = "x-goog-request-reason";
pub(super) const SCOPE_PREFIX: &str = "https://www.googleapis.com/auth/";

const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
/// Seconds. An upper cap of one hour is what clients see, though it is not documented.
const MAX_LIFETIME: u64 = 3600;
const MAX_OPTIONS: usize = 4096;
/// About what a federated token without attributes measures.
const BASE_LENGTH: usize = 512;

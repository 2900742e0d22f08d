//! IAM Credentials: `generateAccessToken` and `generateIdToken` for whoever a binding allows it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::header::USER_AGENT;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::project::{Project, ServiceAccount, TokenInfo, TokenKind};
use super::status::IamError;
use super::sts::{REQUEST_REASON, SCOPE_PREFIX, bearer, text};
use crate::clock::unix_seconds;
use crate::sandbox::calls::has_content_type;
use crate::sandbox::wire::timestamp;

pub(super) async fn generate(
    State(project): State<Arc<Project>>,
    Path((in_project, call)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let answer = match call.rsplit_once(':') {
        Some((email, "generateAccessToken")) => access_token(&project, &in_project, email, &headers, &body),
        Some((email, "generateIdToken")) => id_token(&project, &in_project, email, &headers, &body),
        _ => Err(IamError::no_such_method()),
    };
    match answer {
        Ok(body) => Json(body).into_response(),
        Err(error) => error.into_response(),
    }
}

fn access_token(
    project: &Project,
    in_project: &str,
    email: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Value, IamError> {
    let caller = caller(project, headers)?;
    wildcard(in_project)?;
    let request = Request::parse(headers, body, &["delegates", "scope", "lifetime"])?;
    let scopes = request.strings("scope")?;
    if scopes.is_empty() || !scopes.iter().all(|scope| scope.starts_with(SCOPE_PREFIX)) {
        return Err(IamError::invalid_argument(INVALID));
    }
    let lifetime = request.lifetime()?;
    let permission = "iam.serviceAccounts.getAccessToken";
    let account = impersonate(project, &caller, &request, email, permission)?;
    let most = if account.has_long_lifetime { MAX_EXTENDED } else { MAX_LIFETIME };
    if lifetime > most {
        let most = most.as_secs();
        return Err(IamError::invalid_argument(format!("The access token lifetime cannot exceed {most} seconds.")));
    }
    let now = project.now();
    let expires_at = now + lifetime;
    let info = TokenInfo {
        kind: TokenKind::ServiceAccount,
        principal: caller.principal,
        principal_sets: caller.principal_sets,
        service_account: Some(account.email),
        scopes,
        issued_at: now,
        expires_at,
        request_reason: text(headers, REQUEST_REASON),
        user_agent: text(headers, USER_AGENT.as_str()),
    };
    Ok(json!({
        "accessToken": project.issue(info, TOKEN_LENGTH),
        // No fractions: Python's client does not parse them.
        "expireTime": timestamp(expires_at, "%Y-%m-%dT%H:%M:%SZ"),
    }))
}

fn id_token(
    project: &Project,
    in_project: &str,
    email: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Value, IamError> {
    let caller = caller(project, headers)?;
    wildcard(in_project)?;
    let known = ["delegates", "audience", "includeEmail"];
    let request = Request::parse(headers, body, &known)?;
    let audience = request.text("audience")?;
    if audience.is_empty() {
        return Err(IamError::invalid_argument(INVALID));
    }
    let permission = "iam.serviceAccounts.getOpenIdToken";
    let account = impersonate(project, &caller, &request, email, permission)?;
    let now = unix_seconds(project.now());
    let unique_id = unique_id(&account.email);
    let mut claims = json!({
        "aud": audience,
        "azp": unique_id,
        "exp": now + MAX_LIFETIME.as_secs(),
        "iat": now,
        "iss": "https://accounts.google.com",
        "sub": unique_id,
    });
    if let (Value::Object(members), true) = (&mut claims, request.flag("includeEmail")?) {
        members.insert("email".to_owned(), json!(account.email));
        members.insert("email_verified".to_owned(), json!(true));
    }
    Ok(json!({"token": project.id_token_key().sign(&claims)}))
}

/// The public keys of ID tokens.
pub(super) async fn certificates(State(project): State<Arc<Project>>) -> Json<Value> {
    Json(json!({"keys": [project.id_token_key().jwk()]}))
}

/// The bearer, who must hold a live token of this Google with a scope that reaches IAM.
fn caller(project: &Project, headers: &HeaderMap) -> Result<TokenInfo, IamError> {
    let info = bearer(project, headers).ok_or_else(IamError::unauthenticated)?;
    if !info.scopes.iter().any(|scope| IAM_SCOPES.contains(&scope.as_str())) {
        return Err(IamError::insufficient_scopes());
    }
    Ok(info)
}

/// A project id or number there is refused, even the right one.
fn wildcard(in_project: &str) -> Result<(), IamError> {
    match in_project {
        "-" => Ok(()),
        _ => Err(IamError::invalid_argument(INVALID)),
    }
}

/// Walks from the caller along the delegates to the account; each step needs a binding.
fn impersonate(
    project: &Project,
    caller: &TokenInfo,
    request: &Request,
    email: &str,
    permission: &str,
) -> Result<ServiceAccount, IamError> {
    let mut members = caller.members();
    for delegate in request.strings("delegates")? {
        let delegate = delegate.strip_prefix("projects/-/serviceAccounts/");
        let delegate = delegate.ok_or_else(|| IamError::invalid_argument(INVALID))?;
        let account = step(project, &members, delegate, permission)?;
        members = vec![format!("serviceAccount:{}", account.email)];
    }
    step(project, &members, email, permission)
}

fn step(project: &Project, members: &[String], email: &str, permission: &str) -> Result<ServiceAccount, IamError> {
    if project.is_deleted(email) {
        return Err(IamError::deleted(email));
    }
    let account = project.account(email);
    let is_bound = |account: &ServiceAccount| {
        let mut members = members.iter();
        members.any(|member| account.members.contains(member))
    };
    account.filter(is_bound).ok_or_else(|| IamError::denied(permission))
}

/// A JSON body as Google's front end takes it: proto names in either case, nothing unknown.
struct Request(Map<String, Value>);

impl Request {
    fn parse(headers: &HeaderMap, body: &[u8], known: &[&str]) -> Result<Self, IamError> {
        let malformed = || IamError::invalid_argument("Invalid JSON payload received.");
        if !has_content_type(headers, "application/json") {
            return Err(malformed());
        }
        let body: Option<Map<String, Value>> = serde_json::from_slice(body).ok();
        let mut members = Map::new();
        for (name, value) in body.ok_or_else(malformed)? {
            let camel = if name == "include_email" { "includeEmail".to_owned() } else { name };
            if !known.contains(&camel.as_str()) {
                return Err(IamError::invalid_argument(format!(
                    "Invalid JSON payload received. Unknown name \"{camel}\": Cannot find field."
                )));
            }
            // Protocol buffers in JSON: null is as absent. Google's library for Python writes `"delegates": null`.
            if !value.is_null() {
                members.insert(camel, value);
            }
        }
        Ok(Self(members))
    }

    fn strings(&self, name: &str) -> Result<Vec<String>, IamError> {
        let invalid = || IamError::invalid_argument(format!("Invalid value at '{name}'."));
        let Some(value) = self.0.get(name) else {
            return Ok(Vec::new());
        };
        let list = value.as_array().ok_or_else(invalid)?;
        let texts = list.iter().map(|item| item.as_str().map(ToOwned::to_owned));
        texts.collect::<Option<Vec<String>>>().ok_or_else(invalid)
    }

    fn text(&self, name: &str) -> Result<&str, IamError> {
        let invalid = || IamError::invalid_argument(format!("Invalid value at '{name}'."));
        self.0.get(name).map_or(Ok(""), |value| value.as_str().ok_or_else(invalid))
    }

    fn flag(&self, name: &str) -> Result<bool, IamError> {
        let invalid = || IamError::invalid_argument(format!("Invalid value at '{name}'."));
        self.0.get(name).map_or(Ok(false), |value| value.as_bool().ok_or_else(invalid))
    }

    /// A JSON duration: decimal seconds and "s". Rust's client may send fractions.
    fn lifetime(&self) -> Result<Duration, IamError> {
        let invalid = || IamError::invalid_argument("Invalid value at 'lifetime'.");
        let text = self.text("lifetime")?;
        if text.is_empty() {
            return Ok(MAX_LIFETIME);
        }
        let number = text.strip_suffix('s').ok_or_else(invalid)?;
        let is_decimal = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let seconds = number.parse().ok().filter(|_| is_decimal);
        let lifetime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        lifetime.filter(|lifetime| !lifetime.is_zero()).ok_or_else(invalid)
    }
}

/// Twenty-one digits that depend on the address only.
fn unique_id(email: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, email.as_bytes());
    let bytes = digest.as_ref().first_chunk().copied().unwrap_or_default();
    format!("1{:020}", u64::from_be_bytes(bytes))
}

const INVALID: &str = "Request contains an invalid argument.";
const IAM_SCOPES: [&str; 2] = ["https://www.googleapis.com/auth/iam", "https://www.googleapis.com/auth/cloud-platform"];
const MAX_LIFETIME: Duration = Duration::from_secs(3600);
const MAX_EXTENDED: Duration = Duration::from_secs(43_200);
const TOKEN_LENGTH: usize = 1000;

//! Answers of the token and introspection endpoints, and the one mapping of a refusal to HTTP.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::http::header::{CACHE_CONTROL, HeaderValue, PRAGMA, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::form::GRANT_TYPE;
use crate::audit::HandOut;
use crate::clock::unix_seconds;
use crate::credential::IssueError;
use crate::exchange::{ExchangeError, IssuedCredential};
use crate::policy::Refusal;
use crate::reason::Reason;
use crate::target::TokenType;

/// RFC 8693 section 2.2.1.
pub(super) fn issued(exchange_id: Uuid, credentials: Vec<IssuedCredential>) -> Response {
    let Some(credential) = credentials.into_iter().next() else { return unavailable() };
    let mut body = json!({
        "access_token": credential.token(),
        "issued_token_type": credential.token_type().urn(),
        "token_type": match credential.token_type() {
            TokenType::AccessToken => "Bearer",
            TokenType::IdToken | TokenType::Jwt => "N_A",
        },
        "expires_in": credential.granted.as_secs(),
        "exchange_id": exchange_id,
        "lifetime_bound": credential.bound.as_str(),
        "refresh_after": unix_seconds(credential.refresh_after),
    });
    if let (TokenType::AccessToken, Some(fields)) = (credential.token_type(), body.as_object_mut()) {
        fields.insert("scope".to_owned(), json!(credential.scopes().joined()));
    }
    never_stored(StatusCode::OK, HeaderMap::new(), body)
}

/// RFC 8693 section 2.2.2, with the fixed reason and the exchange's id.
pub(super) fn refused(exchange_id: Uuid, error: &ExchangeError) -> Response {
    let (status, word) = wire(error);
    let mut body = Map::from_iter([
        ("error".to_owned(), json!(word)),
        ("error_description".to_owned(), json!(error.to_string())),
        ("reason".to_owned(), json!(error.reason().as_str())),
        ("exchange_id".to_owned(), json!(exchange_id)),
    ]);
    if let ExchangeError::Credential { error, .. } = error {
        body.extend(error.code().map(|code| ("cloud_error".to_owned(), json!(code))));
        if let IssueError::InsufficientClaims { claims: Some(claims), .. } = error {
            body.insert("claims".to_owned(), json!(claims));
        }
    }
    never_stored(status, retry_after(error.retry_after()), Value::Object(body))
}

/// A question about a token that cannot be read.
pub(super) fn malformed(description: &str) -> Response {
    let reason = Reason::InvalidRequest.as_str();
    let body = json!({"error": "invalid_request", "error_description": description, "reason": reason});
    never_stored(StatusCode::BAD_REQUEST, HeaderMap::new(), body)
}

/// The store cannot be asked.
pub(super) fn unavailable() -> Response {
    let body = json!({
        "error": "temporarily_unavailable",
        "error_description": "the store cannot be read now",
        "reason": Reason::StoreUnavailable.as_str(),
    });
    never_stored(StatusCode::SERVICE_UNAVAILABLE, retry_after(Some(Duration::from_secs(1))), body)
}

/// Questions from there about tokens that nobody handed out have become too many.
pub(super) fn too_many(wait: Duration) -> Response {
    let body = json!({
        "error": "temporarily_unavailable",
        "error_description": "too many questions about unknown tokens came from this address",
        "reason": Reason::RateLimited.as_str(),
    });
    never_stored(StatusCode::TOO_MANY_REQUESTS, retry_after(Some(wait)), body)
}

/// RFC 7662 section 2.2. A token that is unknown and one that has ended read the same.
pub(super) fn introspection(found: Option<HandOut>, now: SystemTime) -> Response {
    let body = match found.filter(|found| now < found.issued.expires_at) {
        None => json!({"active": false}),
        Some(found) => json!({
            "active": true,
            "client_id": found.target,
            "scope": found.issued.scopes,
            "username": found.issued.acts_as,
            "token_type": "Bearer",
            "iat": unix_seconds(found.issued.issued_at),
            "exp": unix_seconds(found.issued.expires_at),
            "exchange_id": found.exchange_id,
        }),
    };
    never_stored(StatusCode::OK, HeaderMap::new(), body)
}

fn retry_after(wait: Option<Duration>) -> HeaderMap {
    // Whole seconds, and never too early.
    let seconds = |wait: Duration| wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let header = |wait: Duration| (RETRY_AFTER, HeaderValue::from(seconds(wait).max(1)));
    wait.map(header).into_iter().collect()
}

/// RFC 6749 section 5.1.
fn never_stored(status: StatusCode, headers: HeaderMap, body: Value) -> Response {
    let caching =
        [(CACHE_CONTROL, HeaderValue::from_static("no-store")), (PRAGMA, HeaderValue::from_static("no-cache"))];
    (status, headers, caching, Json(body)).into_response()
}

fn wire(error: &ExchangeError) -> (StatusCode, &'static str) {
    match error {
        ExchangeError::Policy(Refusal::NoScope) => return (StatusCode::BAD_REQUEST, "invalid_scope"),
        ExchangeError::Request { field, .. } if field == GRANT_TYPE => {
            return (StatusCode::BAD_REQUEST, "unsupported_grant_type");
        }
        _ => {}
    }
    match error.reason() {
        Reason::InvalidRequest
        | Reason::SubjectTokenMalformed
        | Reason::SubjectTokenSignature
        | Reason::SubjectTokenExpired
        | Reason::SubjectTokenNotYetValid
        | Reason::SubjectTokenIssuer
        | Reason::SubjectTokenAudience
        | Reason::SubjectTokenTenant
        | Reason::SubjectTokenNotForUs
        | Reason::GroupsOverage
        | Reason::InsufficientClaims => (StatusCode::BAD_REQUEST, "invalid_request"),
        // The token endpoint has no leases.
        Reason::LeaseNotFound | Reason::LeaseEnded => (StatusCode::BAD_REQUEST, "invalid_request"),
        Reason::Denied | Reason::CloudRefused => (StatusCode::BAD_REQUEST, "invalid_target"),
        Reason::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "temporarily_unavailable"),
        Reason::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
        Reason::CloudUnavailable | Reason::KeysUnavailable | Reason::StoreUnavailable | Reason::ShuttingDown => {
            (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable")
        }
    }
}

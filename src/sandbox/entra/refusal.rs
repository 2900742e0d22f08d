//! Entra's error answers: one AADSTS code decides the OAuth error, the status and the body.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

use super::directory::Directory;
use crate::sandbox::faults::Fault;
use crate::sandbox::wire::{random_guid, timestamp};

/// How the token endpoint says "too often".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttle {
    /// AADSTS90055: the tenant is throttled.
    Tenant,
    /// AADSTS50196: the client is caught in a loop.
    ClientLoop,
}

/// A refusal on its way out. Texts are of the shape seen in public threads; clients must go by the code.
#[derive(Debug)]
pub(super) struct Refusal {
    code: u32,
    text: String,
    suberror: Option<&'static str>,
    /// In place of the code's own.
    error: Option<&'static str>,
    claims: Option<String>,
}

impl Refusal {
    pub(super) fn new(code: u32, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), suberror: None, error: None, claims: None }
    }

    pub(super) fn unknown_tenant(tenant: &str) -> Self {
        Self::new(
            90002,
            format!(
                "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are signing into \
                 the correct cloud. Check with your subscription administrator, this may happen if there are no \
                 active subscriptions for the tenant."
            ),
        )
    }

    /// RFC 8628 section 3.5; Microsoft does not say how its service answers who asks too often.
    pub(super) fn slow_down() -> Self {
        let text = "OAuth 2.0 device flow error. Authorization is pending. Poll less often.";
        Self { error: Some("slow_down"), ..Self::new(70016, text) }
    }

    pub(super) fn missing(parameter: &str) -> Self {
        Self::new(900_144, format!("The request body must contain the following parameter: '{parameter}'."))
    }

    /// AADSTS50076 with the challenge that a user must answer before on-behalf-of works.
    pub(super) fn interaction(resource: &str) -> Self {
        let claims = json!({"access_token": {"polids":
            {"essential": true, "values": [random_guid()]}}});
        Self {
            suberror: Some("basic_action"),
            claims: Some(claims.to_string()),
            ..Self::new(
                50076,
                format!(
                    "Due to a configuration change made by your administrator, or because you moved to a new \
                     location, you must use multi-factor authentication to access '{resource}'."
                ),
            )
        }
    }

    pub(super) fn into_response(self, directory: &Directory, headers: &HeaderMap) -> Response {
        let correlation = Correlation::of(headers);
        let (status, body) = self.into_parts(directory, &correlation.id);
        answer(status, &body, correlation)
    }

    fn into_parts(self, directory: &Directory, correlation: &str) -> (StatusCode, Value) {
        let (status, error) = class(self.code);
        let error = self.error.unwrap_or(error);
        let (code, trace) = (self.code, random_guid());
        let at = timestamp(directory.now(), "%Y-%m-%d %H:%M:%SZ");
        let mut body = json!({
            "error": error,
            "error_description": format!(
                "AADSTS{code}: {} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {at}",
                self.text
            ),
            "error_codes": [code],
            "timestamp": at,
            "trace_id": trace,
            "correlation_id": correlation,
            "error_uri": format!("{}/error?code={code}", directory.authority()),
        });
        if let Value::Object(members) = &mut body {
            members.extend(self.suberror.map(|value| ("suberror".to_owned(), json!(value))));
            members.extend(self.claims.map(|value| ("claims".to_owned(), json!(value))));
        }
        (status, body)
    }
}

/// The answer that [`Throttle`] stands for, as a fault.
pub(super) fn throttled(directory: &Directory, how: Throttle, retry_after: Duration) -> Fault {
    let refusal = match how {
        Throttle::Tenant => {
            Refusal::new(90055, "The tenant is throttled because of too many requests. Please try again later.")
        }
        Throttle::ClientLoop => Refusal::new(
            50196,
            "The server terminated an operation because it encountered a client request loop. Please contact your \
             app vendor.",
        ),
    };
    let correlation = random_guid();
    let (status, body) = refusal.into_parts(directory, &correlation);
    let mut answer = http::Response::new(body.to_string());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert("content-type", HeaderValue::from_static(JSON));
    headers.insert("retry-after", HeaderValue::from(retry_after.as_secs()));
    Fault::Answer(Box::new(answer))
}

/// An answer of the token endpoint with the headers that Entra puts on every one.
pub(super) fn answer(status: StatusCode, body: &Value, correlation: Correlation) -> Response {
    let mut answer = Response::new(Body::from(body.to_string()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert("content-type", HeaderValue::from_static(JSON));
    headers.insert("cache-control", HeaderValue::from_static("no-store, no-cache"));
    let returned = correlation.is_returned.then_some(("client-request-id", correlation.id));
    for (name, id) in [("x-ms-request-id", random_guid())].into_iter().chain(returned) {
        if let Ok(id) = HeaderValue::try_from(id) {
            headers.insert(name, id);
        }
    }
    answer
}

/// What joins a request to the sign-in log.
pub(super) struct Correlation {
    id: String,
    /// The caller sent `return-client-request-id: true`.
    is_returned: bool,
}

impl Correlation {
    /// The caller's `client-request-id` (or `x-ms-client-request-id`) when it is a GUID, else a new one.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let named = |name| headers.get(name)?.to_str().ok();
        let id = named("client-request-id")
            .or_else(|| named("x-ms-client-request-id"))
            .and_then(|id| uuid::Uuid::parse_str(id).ok())
            .map_or_else(random_guid, |id| id.to_string());
        let is_returned = named("return-client-request-id").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Self { id, is_returned }
    }
}

/// Status and OAuth error of a code, as seen in threads where any were found.
fn class(code: u32) -> (StatusCode, &'static str) {
    match code {
        700_024 | 700_025 | 700_027 | 700_211..=700_213 | 7_000_215 | 7_000_218 | 7_000_272 => {
            (StatusCode::UNAUTHORIZED, "invalid_client")
        }
        700_016 => (StatusCode::BAD_REQUEST, "unauthorized_client"),
        70011 | 1_002_012 => (StatusCode::BAD_REQUEST, "invalid_scope"),
        500_011 => (StatusCode::BAD_REQUEST, "invalid_resource"),
        70003 => (StatusCode::BAD_REQUEST, "unsupported_grant_type"),
        70016 => (StatusCode::BAD_REQUEST, "authorization_pending"),
        70018 => (StatusCode::BAD_REQUEST, "bad_verification_code"),
        70020 => (StatusCode::BAD_REQUEST, "expired_token"),
        65004 => (StatusCode::BAD_REQUEST, "authorization_declined"),
        50013 | 50034 | 50173 | 50196 | 65001 | 70000 | 500_133 | 700_082 | 7_000_113 => {
            (StatusCode::BAD_REQUEST, "invalid_grant")
        }
        50076 => (StatusCode::BAD_REQUEST, "interaction_required"),
        90055 => (StatusCode::TOO_MANY_REQUESTS, "temporarily_unavailable"),
        _ => (StatusCode::BAD_REQUEST, "invalid_request"),
    }
}

const JSON: &str = "application/json; charset=utf-8";

//! Google's two error shapes: OAuth's at STS, `google.rpc.Status` at IAM Credentials.

use axum::Json;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::sandbox::faults::Fault;

/// A refusal of STS.
#[derive(Debug)]
pub(super) struct StsError {
    status: StatusCode,
    error: &'static str,
    description: String,
}

impl StsError {
    pub(super) fn new(error: &'static str, description: impl Into<String>) -> Self {
        let status = match error {
            "invalid_client" => StatusCode::UNAUTHORIZED,
            "quota_exceeded" => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::BAD_REQUEST,
        };
        Self { status, error, description: description.into() }
    }

    pub(super) fn grant(description: impl Into<String>) -> Self {
        Self::new("invalid_grant", description)
    }

    pub(super) fn request(description: impl Into<String>) -> Self {
        Self::new("invalid_request", description)
    }

    fn body(&self) -> Value {
        json!({"error": self.error, "error_description": self.description})
    }
}

impl IntoResponse for StsError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body())).into_response()
    }
}

/// A refusal of IAM Credentials.
#[derive(Debug)]
pub(super) struct IamError {
    status: StatusCode,
    code: &'static str,
    message: String,
    details: Vec<Value>,
}

impl IamError {
    pub(super) fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message)
    }

    pub(super) fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "UNAUTHENTICATED",
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other \
             valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.",
        )
    }

    pub(super) fn insufficient_scopes() -> Self {
        let reason = "ACCESS_TOKEN_SCOPE_INSUFFICIENT";
        Self {
            details: vec![error_info(reason, "googleapis.com", json!({}))],
            ..Self::new(StatusCode::FORBIDDEN, "PERMISSION_DENIED", "Request had insufficient authentication scopes.")
        }
    }

    /// No binding, or no such account: the two look the same.
    pub(super) fn denied(permission: &str) -> Self {
        let metadata = json!({"permission": permission});
        let reason = "IAM_PERMISSION_DENIED";
        Self {
            details: vec![error_info(reason, "iam.googleapis.com", metadata)],
            ..Self::new(
                StatusCode::FORBIDDEN,
                "PERMISSION_DENIED",
                format!("Permission '{permission}' denied on resource (or it may not exist)."),
            )
        }
    }

    pub(super) fn deleted(email: &str) -> Self {
        let message = format!("Gaia id not found for email {email}");
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", message)
    }

    pub(super) fn no_such_method() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", "Method not found.")
    }

    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), details: Vec::new() }
    }

    fn body(&self) -> Value {
        let mut error = json!({
            "code": self.status.as_u16(), "message": self.message, "status": self.code,
        });
        if let (Value::Object(members), false) = (&mut error, self.details.is_empty()) {
            members.insert("details".to_owned(), json!(self.details));
        }
        json!({"error": error})
    }
}

impl IntoResponse for IamError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body())).into_response()
    }
}

pub(super) fn sts_throttled() -> Fault {
    let error = StsError::new(
        "quota_exceeded",
        "[Security Token Service] The request was throttled due to rate limit. Please retry after a few seconds.",
    );
    fault(error.status, &error.body())
}

pub(super) fn iam_throttled() -> Fault {
    let error = IamError::new(
        StatusCode::TOO_MANY_REQUESTS,
        "RESOURCE_EXHAUSTED",
        "Quota exceeded for quota metric 'Generate credentials request count' and limit 'Generate credentials request \
         count per minute' of service 'iamcredentials.googleapis.com'.",
    );
    fault(error.status, &error.body())
}

fn fault(status: StatusCode, body: &Value) -> Fault {
    let mut answer = http::Response::new(body.to_string());
    *answer.status_mut() = status;
    let json = HeaderValue::from_static("application/json; charset=UTF-8");
    answer.headers_mut().insert("content-type", json);
    Fault::Answer(Box::new(answer))
}

fn error_info(reason: &str, domain: &str, metadata: Value) -> Value {
    json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason, "domain": domain, "metadata": metadata,
    })
}

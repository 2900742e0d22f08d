//! What joins the broker's records to the clouds' own logs: the marks that calls carry, and the ids that come back.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderName;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::{Call, Hop, IssueError, Purpose};
use crate::http::{Request, Response, USER_AGENT};
use crate::secret::Secret;

/// Names and ids for the audit record.
pub(super) type Ids = Vec<(&'static str, String)>;

/// The exchange whose id the cloud saw when it issued or refused: of a cached hand-out, an earlier one.
pub const UPSTREAM_EXCHANGE_ID: &str = "upstream_exchange_id";

/// The exchange whose id Google's Security Token Service saw, where the federated token was in the cache.
pub const STS_EXCHANGE_ID: &str = "sts_exchange_id";

/// As whom Google knows the holder of the federated token, which its audit logs name.
pub const GOOGLE_PRINCIPAL: &str = "google_principal";

/// The `uti` and `oid` of a token that Entra issued. Azure's resource logs show both of whoever calls with it.
pub const AZURE_TOKEN_ID: &str = "azure_uti";
pub const AZURE_OBJECT_ID: &str = "azure_oid";

/// Entra's sign-in log has them as `CorrelationId`, and as `OriginalRequestId` and `Id`.
pub const ENTRA_CORRELATION_ID: &str = "entra_correlation_id";
pub const ENTRA_REQUEST_ID: &str = "entra_request_id";
pub const ENTRA_TRACE_ID: &str = "entra_trace_id";

const MANAGED_IDENTITY_CORRELATION_ID: &str = "managed_identity_correlation_id";
const GOOGLE_REQUEST_ID: &str = "google_request_id";
const GOOGLE_ERROR_REASON: &str = "google_error_reason";

/// All that a credential can carry, for those that come from another replica.
pub(super) const NAMES: [&str; 7] = [
    UPSTREAM_EXCHANGE_ID,
    STS_EXCHANGE_ID,
    AZURE_TOKEN_ID,
    AZURE_OBJECT_ID,
    ENTRA_CORRELATION_ID,
    ENTRA_REQUEST_ID,
    ENTRA_TRACE_ID,
];

/// What Google's audit logs keep of each call: `requestMetadata.callerSuppliedUserAgent` and
/// `requestMetadata.requestAttributes.reason` (Google: AuditLog reference).
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub exchange_id: Uuid,
    user_agent: String,
    reason: String,
}

impl Mark {
    pub fn of(call: &Call) -> Self {
        let exchange_id = call.exchange_id;
        if call.purpose == Purpose::Probe {
            return Self::of_probe(exchange_id);
        }
        let mut reason = format!("carnet exchange={exchange_id}");
        if let Some(job) = &call.grant.job().id {
            reason.push_str(" job=");
            reason.extend(job.chars().map(|character| if is_plain(character) { character } else { '_' }));
        }
        reason.push_str(" rule=");
        reason.push_str(call.grant.rule().as_str());
        Self { exchange_id, user_agent: format!("{USER_AGENT} (exchange={exchange_id})"), reason }
    }

    /// Of a question that is no exchange.
    pub fn of_probe(exchange_id: Uuid) -> Self {
        let (user_agent, reason) =
            (format!("{USER_AGENT} (probe={exchange_id})"), format!("carnet probe={exchange_id}"));
        Self { exchange_id, user_agent, reason }
    }

    /// Google documents no limit of a reason's length; with a job's longest id it has less than 300 bytes.
    pub fn on(&self, request: Request) -> Result<Request, IssueError> {
        request
            .header(http::header::USER_AGENT, &self.user_agent)
            .and_then(|request| request.header(REQUEST_REASON, &self.reason))
            .map_err(unsendable)
    }
}

pub(super) fn unsendable(_cause: crate::http::HttpError) -> IssueError {
    IssueError::refused(Hop::Broker, "header", "a header that cannot be sent")
}

/// What no header, filter or query gives a meaning to. Without `@`, so that no mail address passes as one.
fn is_plain(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-._:/".contains(character)
}

/// What an answer of `hop` says of itself.
///
/// Entra names each answer by two headers, and in its refusals by two fields. Google documents no header that identifies
/// a call; its IAM refusals may carry a `google.rpc.RequestInfo`, and mostly a `google.rpc.ErrorInfo`. The metadata
/// service documents nothing, App Service a `correlationId` in its refusals.
pub(super) fn returned(hop: Hop, response: &Response) -> Ids {
    match hop {
        Hop::EntraToken => of_entra(response),
        Hop::GoogleIam => of_google(response),
        Hop::ManagedIdentity => {
            let refusal: ManagedIdentityRefusal = refusal(response);
            let id = identifier(&refusal.correlation_id);
            id.map(|id| (MANAGED_IDENTITY_CORRELATION_ID, id)).into_iter().collect()
        }
        Hop::GoogleSts | Hop::Broker => Ids::new(),
    }
}

fn of_entra(response: &Response) -> Ids {
    let header = |name: &str| response.headers.get(name).and_then(|value| value.to_str().ok()).and_then(identifier);
    let refusal: EntraRefusal = refusal(response);
    let correlation_id = header("client-request-id").or_else(|| identifier(&refusal.correlation_id));
    let ids = [
        (ENTRA_REQUEST_ID, header("x-ms-request-id")),
        (ENTRA_CORRELATION_ID, correlation_id),
        (ENTRA_TRACE_ID, identifier(&refusal.trace_id)),
    ];
    ids.into_iter().filter_map(|(name, id)| Some((name, id?))).collect()
}

fn of_google(response: &Response) -> Ids {
    let refusal: GoogleRefusal = refusal(response);
    let detail = |detail: &GoogleDetail| match detail.kind.strip_prefix("type.googleapis.com/google.rpc.")? {
        "RequestInfo" => Some((GOOGLE_REQUEST_ID, identifier(&detail.request_id)?)),
        "ErrorInfo" => Some((GOOGLE_ERROR_REASON, identifier(&detail.reason)?)),
        _ => None,
    };
    refusal.error.details.iter().take(MAX_DETAILS).filter_map(detail).collect()
}

/// The ids of a token that Entra has just given us: read for the record, and decide nothing.
pub(super) fn of_azure_token(token: &Secret) -> Ids {
    let claims = || {
        let mut parts = token.expose().split('.');
        let (payload, _signature) = (parts.nth(1)?, parts.next()?);
        let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
        serde_json::from_slice::<TokenIds>(&payload).ok()
    };
    let Some(TokenIds { uti, oid }) = claims() else { return Ids::new() };
    let text = |claim: Option<Value>| identifier(claim?.as_str()?);
    let ids = [(AZURE_TOKEN_ID, text(uti)), (AZURE_OBJECT_ID, text(oid))];
    ids.into_iter().filter_map(|(name, id)| Some((name, id?))).collect()
}

fn refusal<T: Default + for<'a> Deserialize<'a>>(response: &Response) -> T {
    let refused = !response.status.is_success();
    refused.then(|| serde_json::from_slice(&response.body).ok()).flatten().unwrap_or_default()
}

/// Nothing that a cloud sends gets into a record as free text.
fn identifier(id: &str) -> Option<String> {
    let plain =
        (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    plain.then(|| id.to_owned())
}

/// Texts and nothing else: a token of other claims of these names has no ids.
#[derive(Deserialize)]
struct TokenIds {
    uti: Option<Value>,
    oid: Option<Value>,
}

#[derive(Deserialize, Default)]
struct EntraRefusal {
    #[serde(default)]
    correlation_id: String,
    #[serde(default)]
    trace_id: String,
}

#[derive(Deserialize, Default)]
struct ManagedIdentityRefusal {
    #[serde(default, rename = "correlationId")]
    correlation_id: String,
}

#[derive(Deserialize, Default)]
struct GoogleRefusal {
    #[serde(default)]
    error: GoogleStatus,
}

#[derive(Deserialize, Default)]
struct GoogleStatus {
    #[serde(default)]
    details: Vec<GoogleDetail>,
}

#[derive(Deserialize, Default)]
struct GoogleDetail {
    #[serde(default, rename = "@type")]
    kind: String,
    #[serde(default)]
    reason: String,
    #[serde(default, rename = "requestId")]
    request_id: String,
}

/// Google sends two or three.
const MAX_DETAILS: usize = 8;

const REQUEST_REASON: HeaderName = HeaderName::from_static("x-goog-request-reason");

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;

    fn response(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Response {
        let headers =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        Response {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: headers.collect::<HeaderMap>(),
            body: bytes::Bytes::copy_from_slice(body.as_bytes()),
            peer_certificate: None,
        }
    }

    #[test]
    fn entra_is_traced_by_headers_and_in_refusals_by_the_body_too() {
        let headers = [("x-ms-request-id", "r-1"), ("client-request-id", "c-1")];
        let good = response(200, &headers, r#"{"trace_id": "not of a refusal"}"#);
        let pairs = [("entra_request_id", "r-1"), ("entra_correlation_id", "c-1")];
        assert_eq!(returned(Hop::EntraToken, &good), pairs.map(|(name, id)| (name, id.to_owned())));
        let refused = response(400, &headers[..1], r#"{"correlation_id": "c-2", "trace_id": "t-2"}"#);
        let pairs = [("entra_request_id", "r-1"), ("entra_correlation_id", "c-2"), ("entra_trace_id", "t-2")];
        assert_eq!(returned(Hop::EntraToken, &refused), pairs.map(|(name, id)| (name, id.to_owned())));
    }

    #[test]
    fn googles_refusals_are_traced_by_their_details() {
        let body = r#"{"error": {"code": 403, "status": "PERMISSION_DENIED", "details": [
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "IAM_PERMISSION_DENIED", "metadata": {}},
            {"@type": "type.googleapis.com/google.rpc.RequestInfo", "requestId": "q-1"},
            {"@type": "type.googleapis.com/google.rpc.DebugInfo", "reason": "no"}]}}"#;
        let pairs = [("google_error_reason", "IAM_PERMISSION_DENIED"), ("google_request_id", "q-1")];
        assert_eq!(returned(Hop::GoogleIam, &response(403, &[], body)), pairs.map(|(name, id)| (name, id.to_owned())));
        assert!(returned(Hop::GoogleIam, &response(200, &[], body)).is_empty());
        assert!(returned(Hop::GoogleIam, &response(403, &[], r#"{"error": "text"}"#)).is_empty());
    }

    #[test]
    fn ids_that_are_no_ids_are_not_kept() {
        let long = "x".repeat(65);
        for hostile in ["", "two words", "a\\nb", "<script>", "ä", &long] {
            let body = format!(r#"{{"trace_id": "{hostile}", "correlationId": "{hostile}"}}"#);
            for hop in [Hop::EntraToken, Hop::ManagedIdentity] {
                assert!(returned(hop, &response(500, &[], &body)).is_empty(), "{hostile}");
            }
        }
    }

    #[test]
    fn the_ids_of_a_new_token_are_read_where_it_is_a_jwt_with_texts() {
        let token = |payload: &str| Secret::new(format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(payload)));
        let ids = of_azure_token(&token(r#"{"uti": "u-1", "oid": "o-1", "aud": "x"}"#));
        assert_eq!(ids, [("azure_uti", "u-1".to_owned()), ("azure_oid", "o-1".to_owned())]);
        assert_eq!(of_azure_token(&token(r#"{"uti": 7, "oid": "o-1"}"#)), [("azure_oid", "o-1".to_owned())]);
        for opaque in [token("[]"), token(r#"{"uti": "two words"}"#), Secret::new("opaque"), Secret::new("a.b.c")] {
            assert!(of_azure_token(&opaque).is_empty());
        }
    }
}

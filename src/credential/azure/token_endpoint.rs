//! Entra's token endpoint: a client assertion, alone or with a user's token, for an access token.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::clock::Clock;
use crate::credential::answer::{TokenAnswer, error_word};
use crate::credential::upstream::{Upstream, Verdict, by_status};
use crate::credential::{CloudIdentity, Credential, Hop, IssueError};
use crate::http::{Request, Response};
use crate::secret::Secret;

pub(super) struct TokenEndpoint {
    pub upstream: Arc<Upstream>,
    pub clock: Arc<dyn Clock>,
    pub url: String,
    pub client_id: Uuid,
    pub identity: CloudIdentity,
}

/// What is redeemed, once.
pub(super) struct Redemption {
    pub client_assertion: Secret,
    /// The user's token, for the on-behalf-of flow.
    pub on_behalf_of: Option<Secret>,
    pub scope: String,
    pub asked: Duration,
    pub exchange_id: Uuid,
}

/// Microsoft (reference-error-codes): `error_codes` are numbers that may change; the class of an unknown one follows
/// from the HTTP status.
#[derive(Deserialize, Default)]
struct Failure {
    #[serde(default)]
    error_codes: Vec<u64>,
    #[serde(default)]
    error: String,
    #[serde(default)]
    correlation_id: String,
    #[serde(default)]
    trace_id: String,
    /// A JSON text with what Conditional Access asks for.
    claims: Option<String>,
}

impl TokenEndpoint {
    pub async fn redeem(&self, redemption: Redemption) -> Result<Credential, IssueError> {
        let (client_id, exchange_id) = (self.client_id.to_string(), redemption.exchange_id.to_string());
        let request = || {
            let mut form = vec![
                ("client_id", client_id.as_str()),
                ("scope", redemption.scope.as_str()),
                ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
                ("client_assertion", redemption.client_assertion.expose()),
            ];
            match &redemption.on_behalf_of {
                None => form.push(("grant_type", "client_credentials")),
                Some(user) => form.extend([
                    ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
                    ("assertion", user.expose()),
                    ("requested_token_use", "on_behalf_of"),
                ]),
            }
            // It becomes the correlation id of Entra's sign-in log.
            let unsendable = |_cause| IssueError::refused(Hop::Broker, "header", "a header that cannot be sent");
            Request::post_form(&self.url, &form).header(CLIENT_REQUEST_ID, &exchange_id).map_err(unsendable)
        };
        let sent_at = self.clock.now();
        let response = self.upstream.call(request, judge).await?;
        if !response.status.is_success() {
            return Err(refusal(&response));
        }
        let success = TokenAnswer::read(&response, Hop::EntraToken)?;
        let expires_at = sent_at + success.life();
        let mut credential =
            Credential::new(success.access_token, sent_at, expires_at, redemption.asked, self.identity.clone());
        let header = |name: &str| response.headers.get(name).and_then(|value| value.to_str().ok()).and_then(identifier);
        credential.upstream.extend(header("x-ms-request-id").map(|id| ("entra_request_id", id)));
        credential.upstream.extend(header("client-request-id").map(|id| ("entra_correlation_id", id)));
        Ok(credential)
    }
}

fn failure(response: &Response) -> Failure {
    serde_json::from_slice(&response.body).unwrap_or_default()
}

/// Passing faults come with status 400 too.
fn judge(response: &Response) -> Verdict {
    match by_status(response) {
        Verdict::Final if response.status.is_client_error() => {
            match class(failure(response).error_codes.first().copied()) {
                Some((Class::Throttled, _meaning)) => Verdict::Throttled,
                Some((Class::Transient, meaning)) => Verdict::Transient(meaning.to_owned()),
                _ => Verdict::Final,
            }
        }
        verdict => verdict,
    }
}

fn refusal(response: &Response) -> IssueError {
    let failure = failure(response);
    let number = failure.error_codes.first().copied();
    let code = number.map_or_else(|| error_word(&failure.error, response), |number| format!("AADSTS{number}"));
    let hop = Hop::EntraToken;
    match class(number) {
        Some((Class::FreshSubjectToken, _meaning)) => IssueError::SubjectToken { hop, code },
        Some((Class::Challenge, _meaning)) => {
            IssueError::InsufficientClaims { code, claims: failure.claims.filter(|claims| is_claims_request(claims)) }
        }
        found => {
            let meaning = found.map_or("see Entra's documentation of the code", |(_class, meaning)| meaning);
            let ids = [("entra_correlation_id", failure.correlation_id), ("entra_trace_id", failure.trace_id)];
            let upstream = ids.into_iter().filter_map(|(name, id)| Some((name, identifier(&id)?))).collect();
            IssueError::Refused { hop, code, meaning, upstream }
        }
    }
}

fn identifier(id: &str) -> Option<String> {
    let plain =
        (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    plain.then(|| id.to_owned())
}

/// Relayed to the caller, so it must be what it claims to be: a short JSON object.
fn is_claims_request(claims: &str) -> bool {
    claims.len() <= 2048 && serde_json::from_str::<serde_json::Map<String, Value>>(claims).is_ok()
}

#[derive(Clone, Copy)]
enum Class {
    Permanent,
    Throttled,
    Transient,
    FreshSubjectToken,
    Challenge,
}

fn class(number: Option<u64>) -> Option<(Class, &'static str)> {
    let number = number?;
    CODES
        .iter()
        .find(|(codes, _class, _meaning)| codes.contains(&number))
        .map(|(_codes, class, meaning)| (*class, *meaning))
}

/// The assertion was too old or too young: a new one may do.
pub(super) const OUTSIDE_VALIDITY: &str = "AADSTS700024";

/// AADSTS codes by what helps (Microsoft: reference-error-codes, and public threads). Codes that are not listed are
/// permanent.
const CODES: [(&[u64], Class, &str); 19] = [
    (
        &[70021],
        Class::Permanent,
        "no federated identity credential matches; a new one takes some minutes to be known everywhere",
    ),
    (
        &[700_211],
        Class::Permanent,
        "no federated identity credential has this issuer: compare with issuer.url to the letter, trailing slash included",
    ),
    (&[700_212], Class::Permanent, "no federated identity credential has this audience"),
    (
        &[700_213, 7_002_138],
        Class::Permanent,
        "no federated identity credential has this subject: it is compared with upper and lower case",
    ),
    (&[700_222], Class::Permanent, "an Entra token was presented as assertion, which Entra never accepts"),
    (&[70023], Class::Permanent, "the assertion lacks `iat` or lives too long"),
    (&[700_024], Class::Permanent, "the assertion is outside its validity: check the broker's clock"),
    (
        &[700_027, 7_000_272],
        Class::Permanent,
        "Entra does not know the key that signed the assertion: publish keys before they are used",
    ),
    (&[90061, 50166], Class::Transient, "Entra cannot fetch the issuer's discovery document or keys"),
    (&[700_016, 700_011], Class::Permanent, "the client id does not exist in the tenant"),
    (&[90002], Class::Permanent, "the tenant does not exist in this cloud"),
    (
        &[500_011, 50001, 650_057],
        Class::Permanent,
        "the scope's resource does not exist in the tenant, or may not be used",
    ),
    (&[70011, 1_002_012], Class::Permanent, "the scope is not valid: one resource, ending in /.default"),
    (&[7_000_113], Class::Permanent, "the on-behalf-of flow takes tokens of users only"),
    (&[50013, 500_133], Class::FreshSubjectToken, "the user's token is not valid any more"),
    (
        &[65001, 50076, 50079, 50105, 50158, 53000, 53001, 53002, 53003, 53004, 70043],
        Class::Challenge,
        "consent or Conditional Access",
    ),
    (&[90055, 50196], Class::Throttled, "too many requests"),
    (&[90033, 90024, 90006], Class::Transient, "Entra says it is a passing fault"),
    (&[50000], Class::Transient, "Entra failed to issue the token"),
];

const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("client-request-id");

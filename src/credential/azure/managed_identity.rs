//! The managed identity of the machine that the broker runs on: the metadata service, or App Service's endpoint.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};
use serde::Deserialize;
use uuid::Uuid;

use crate::clock::{Clock, from_unix_seconds};
use crate::credential::upstream::{Upstream, Verdict, by_status};
use crate::credential::{CloudIdentity, Credential, Hop, IssueError, answer};
use crate::http::{Request, Response};
use crate::secret::Secret;
use crate::target::{ManagedIdentityEndpoint, Scopes};

pub(super) struct ManagedIdentity<'a> {
    pub upstream: Arc<Upstream>,
    pub clock: Arc<dyn Clock>,
    pub endpoint: &'a ManagedIdentityEndpoint,
    pub client_id: Uuid,
    pub identity: CloudIdentity,
}

#[derive(Deserialize)]
struct Success {
    #[serde(deserialize_with = "answer::token")]
    access_token: Secret,
    #[serde(rename = "token_type", deserialize_with = "answer::bearer")]
    _bearer: (),
    #[serde(deserialize_with = "answer::seconds")]
    expires_on: u64,
}

#[derive(Deserialize, Default)]
struct Failure {
    #[serde(default)]
    error: String,
}

impl ManagedIdentity<'_> {
    pub async fn token(&self, scopes: &Scopes, asked: Duration) -> Result<Credential, IssueError> {
        let resource = resource(scopes)?;
        let client_id = self.client_id.to_string();
        let request = || {
            let (base, version, name, value) = match self.endpoint {
                ManagedIdentityEndpoint::Imds(endpoint) => {
                    (endpoint.join("metadata/identity/oauth2/token"), "2018-02-01", METADATA, "true")
                }
                ManagedIdentityEndpoint::AppService { endpoint, header } => {
                    (endpoint.as_str().to_owned(), "2019-08-01", IDENTITY_HEADER, header.0.expose())
                }
            };
            let query = url::form_urlencoded::Serializer::new(String::new())
                .extend_pairs([("api-version", version), ("resource", &resource), ("client_id", &client_id)])
                .finish();
            let unsendable =
                |_cause| IssueError::refused(Hop::Broker, "header", "IDENTITY_HEADER is no legal header value");
            Request::get(format!("{base}?{query}")).header(name, value).map_err(unsendable)
        };
        let response = self.upstream.call(request, judge).await?;
        if !response.status.is_success() {
            return Err(refusal(&response));
        }
        let malformed = || {
            IssueError::refused(
                Hop::ManagedIdentity,
                "malformed_answer",
                "the answer holds no bearer token with an expiry",
            )
        };
        let success: Success = serde_json::from_slice(&response.body).map_err(|_form| malformed())?;
        let expires_at = from_unix_seconds(success.expires_on).ok_or_else(malformed)?;
        Ok(Credential::new(success.access_token, self.clock.now(), expires_at, asked, self.identity.clone()))
    }
}

/// A v1 resource is the scope without `/.default` (Microsoft: v2-oauth2-client-creds-grant-flow); there is one per
/// request.
fn resource(scopes: &Scopes) -> Result<String, IssueError> {
    let mut scopes = scopes.iter().map(|scope| scope.as_str().strip_suffix("/.default"));
    match (scopes.next(), scopes.next()) {
        (Some(Some(resource)), None) => Ok(resource.to_owned()),
        _ => {
            Err(IssueError::refused(Hop::Broker, "scope", "a managed identity takes one scope that ends in /.default"))
        }
    }
}

/// Microsoft (how-to-use-vm-token): 404, 410, 429 and 5xx are retried.
fn judge(response: &Response) -> Verdict {
    match response.status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Verdict::Transient("it is being updated".to_owned()),
        _ => by_status(response),
    }
}

fn refusal(response: &Response) -> IssueError {
    let failure: Failure = serde_json::from_slice(&response.body).unwrap_or_default();
    let code = answer::error_word(&failure.error, response);
    let meaning = match response.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "IDENTITY_HEADER is not the one of this endpoint",
        _ => "the machine has no identity with this client id, or the resource does not exist",
    };
    IssueError::refused(Hop::ManagedIdentity, code, meaning)
}

const METADATA: HeaderName = HeaderName::from_static("metadata");
const IDENTITY_HEADER: HeaderName = HeaderName::from_static("x-identity-header");

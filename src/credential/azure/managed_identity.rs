//! The managed identity of the machine that the broker runs on: the metadata service, or App Service's endpoint.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use uuid::Uuid;

use crate::answer::error_word;
use crate::clock::Clock;
use crate::credential::correlation::{of_azure_token, returned, unsendable};
use crate::credential::upstream::Line;
use crate::credential::{CloudIdentity, Credential, Hop, IssueError, SetUpFault};
use crate::entra::{
    Identity, ManagedIdentityAnswer, X_MS_CLIENT_REQUEST_ID, ask_managed_identity, judge_managed_identity,
};
use crate::http::Response;
use crate::target::{ManagedIdentityEndpoint, Scopes};

pub(super) struct ManagedIdentity<'a> {
    pub upstream: Line,
    pub clock: Arc<dyn Clock>,
    pub endpoint: &'a ManagedIdentityEndpoint,
    pub client_id: Uuid,
    pub exchange_id: Uuid,
    pub identity: CloudIdentity,
}

#[derive(Deserialize, Default)]
struct Failure {
    #[serde(default)]
    error: String,
}

impl ManagedIdentity<'_> {
    pub async fn token(&self, scopes: &Scopes, asked: Duration) -> Result<Credential, IssueError> {
        let resource = resource(scopes)?;
        let (client_id, exchange_id) = (self.client_id.to_string(), self.exchange_id.to_string());
        let request = || {
            let identity = match self.endpoint {
                ManagedIdentityEndpoint::Imds(endpoint) => Identity::Imds(endpoint),
                ManagedIdentityEndpoint::AppService { endpoint, header } => {
                    Identity::AppService { endpoint, header: &header.0 }
                }
            };
            let illegal =
                |_cause| IssueError::refused(Hop::Broker, "header", "IDENTITY_HEADER is no legal header value");
            let request = ask_managed_identity(identity, &resource, Some(&client_id)).map_err(illegal)?;
            request.header(X_MS_CLIENT_REQUEST_ID, &exchange_id).map_err(unsendable)
        };
        let response = self.upstream.call(request, judge_managed_identity).await?;
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
        let success: ManagedIdentityAnswer = serde_json::from_slice(&response.body).map_err(|_form| malformed())?;
        let expires_at = success.expires_at().ok_or_else(malformed)?;
        let ids = of_azure_token(&success.access_token);
        let mut credential =
            Credential::new(success.access_token, self.clock.now(), expires_at, asked, self.identity.clone());
        credential.upstream = ids;
        Ok(credential)
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

fn refusal(response: &Response) -> IssueError {
    let failure: Failure = serde_json::from_slice(&response.body).unwrap_or_default();
    let code = error_word(&failure.error, response);
    let fault = match response.status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => SetUpFault::ManagedIdentityHeader,
        _ => SetUpFault::ManagedIdentity,
    };
    IssueError::not_set_up(Hop::ManagedIdentity, code, fault).traced(returned(Hop::ManagedIdentity, response))
}

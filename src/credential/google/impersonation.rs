//! Google's IAM Credentials API: a service account's access and ID tokens for a federated principal.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{API_IS_OFF, Status, bearing};
use crate::answer::{self, by_form};
use crate::clock::{Clock, from_unix_seconds};
use crate::credential::correlation::{GOOGLE_PRINCIPAL, Ids, Mark, returned};
use crate::credential::upstream::Line;
use crate::credential::{CloudIdentity, Credential, Hop, IssueError, SetUpFault};
use crate::http::{Endpoint, Request, Response};
use crate::secret::Secret;
use crate::target::{IdTokenAudience, Scope, Scopes, ServiceAccount};

/// Calls as `principal` for `account`.
pub(super) struct Impersonation {
    pub upstream: Line,
    pub clock: Arc<dyn Clock>,
    pub endpoint: Endpoint,
    pub account: ServiceAccount,
    pub principal: String,
    pub bearer: Secret,
    pub mark: Mark,
    /// What the exchange before this call left for the record.
    pub federated: Ids,
}

pub(super) enum AccessError {
    /// Google does not give this account so long a life.
    TooLong,
    Other(IssueError),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AccessToken {
    #[serde(deserialize_with = "answer::token")]
    access_token: Secret,
    expire_time: jiff::Timestamp,
}

#[derive(Deserialize)]
struct IdToken {
    #[serde(deserialize_with = "answer::token")]
    token: Secret,
}

impl Impersonation {
    /// `lifetime` is asked for now, `asked` was hoped for at first.
    pub async fn access_token(
        &self,
        scopes: &Scopes,
        lifetime: Duration,
        asked: Duration,
    ) -> Result<Credential, AccessError> {
        let scopes: Vec<&str> = scopes.iter().map(Scope::as_str).collect();
        let body = json!({"scope": scopes, "lifetime": format!("{}s", lifetime.as_secs())});
        let response = self.call("generateAccessToken", &body).await.map_err(AccessError::Other)?;
        if !response.status.is_success() {
            let failure = Status::read(&response);
            if failure.status == "INVALID_ARGUMENT" && failure.message.contains("lifetime cannot exceed") {
                return Err(AccessError::TooLong);
            }
            return Err(AccessError::Other(self.refusal(&failure, &response)));
        }
        let token: AccessToken =
            serde_json::from_slice(&response.body).map_err(|_form| AccessError::Other(malformed()))?;
        Ok(self.credential(token.access_token, SystemTime::from(token.expire_time), asked))
    }

    pub async fn id_token(
        &self,
        audience: Option<&IdTokenAudience>,
        asked: Duration,
    ) -> Result<Credential, IssueError> {
        let audience = audience.map(IdTokenAudience::as_str).unwrap_or_default();
        let response = self.call("generateIdToken", &json!({"audience": audience, "includeEmail": true})).await?;
        if !response.status.is_success() {
            return Err(self.refusal(&Status::read(&response), &response));
        }
        let token: IdToken = serde_json::from_slice(&response.body).map_err(|_form| malformed())?;
        let expires_at = expiry(token.token.expose()).ok_or_else(malformed)?;
        Ok(self.credential(token.token, expires_at, asked))
    }

    async fn call(&self, method: &str, body: &Value) -> Result<Response, IssueError> {
        // The project is always the wildcard (Google: IAM Credentials reference).
        let url = self.endpoint.join(&format!("v1/projects/-/serviceAccounts/{}:{method}", self.account));
        let request = || bearing(self.mark.on(Request::post_json(&url, body))?, &self.bearer);
        let answered = self.upstream.call(request, by_form).await;
        answered.map_err(|error| self.traced(error))
    }

    fn refusal(&self, failure: &Status, response: &Response) -> IssueError {
        self.traced(refusal(failure, response).traced(returned(Hop::GoogleIam, response)))
    }

    fn traced(&self, error: IssueError) -> IssueError {
        error.traced(self.federated.iter().cloned()).traced([(GOOGLE_PRINCIPAL, self.principal.clone())])
    }

    fn credential(&self, token: Secret, expires_at: SystemTime, asked: Duration) -> Credential {
        let identity = CloudIdentity::Google {
            principal: self.principal.clone(),
            service_account: Some(self.account.to_string()),
        };
        let mut credential = Credential::new(token, self.clock.now(), expires_at, asked, identity);
        credential.upstream.clone_from(&self.federated);
        credential
    }
}

/// Google's word for a bearer that it does not accept.
pub(super) const UNAUTHENTICATED: &str = "UNAUTHENTICATED";

/// What is left to say when even the surely accepted lifetime is too long.
pub(super) fn too_long() -> IssueError {
    IssueError::not_set_up(Hop::GoogleIam, "INVALID_ARGUMENT", SetUpFault::GoogleLifetime)
}

fn malformed() -> IssueError {
    IssueError::refused(Hop::GoogleIam, "malformed_answer", "the answer holds no token with an expiry")
}

fn refusal(failure: &Status, response: &Response) -> IssueError {
    let code = answer::error_word(&failure.status, response);
    let fault = match failure.status.as_str() {
        "PERMISSION_DENIED" if failure.message.contains(API_IS_OFF) => SetUpFault::GoogleApi,
        "PERMISSION_DENIED" => SetUpFault::GoogleImpersonation,
        "NOT_FOUND" => SetUpFault::GoogleServiceAccount,
        UNAUTHENTICATED => SetUpFault::GoogleFederatedToken,
        "INVALID_ARGUMENT" => SetUpFault::GoogleArgument,
        _ => return IssueError::refused(Hop::GoogleIam, code, "see the service account's settings"),
    };
    IssueError::not_set_up(Hop::GoogleIam, code, fault)
}

/// `exp` of a token that Google just signed: for the expiry only.
fn expiry(token: &str) -> Option<SystemTime> {
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    from_unix_seconds(serde_json::from_slice::<Value>(&payload).ok()?.get("exp")?.as_u64()?)
}

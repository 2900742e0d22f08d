//! Entra's token endpoint: a client assertion, alone or with a user's token, for an access token.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::clock::Clock;
use crate::credential::correlation::{of_azure_token, returned, unsendable};
use crate::credential::upstream::Line;
use crate::credential::{CloudIdentity, Credential, Hop, IssueError};
use crate::entra::{ASSERTION_TYPE, CLIENT_REQUEST_ID, Class, Failure, RETURN_CLIENT_REQUEST_ID, judge};
use crate::http::{Request, Response};
use crate::secret::Secret;

pub(super) struct TokenEndpoint {
    pub upstream: Line,
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

impl TokenEndpoint {
    pub async fn redeem(&self, redemption: Redemption) -> Result<Credential, IssueError> {
        let (client_id, exchange_id) = (self.client_id.to_string(), redemption.exchange_id.to_string());
        let request = || {
            let mut form = vec![
                ("client_id", client_id.as_str()),
                ("scope", redemption.scope.as_str()),
                ("client_assertion_type", ASSERTION_TYPE),
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
            Request::post_form(&self.url, &form)
                .header(CLIENT_REQUEST_ID, &exchange_id)
                .and_then(|request| request.header(RETURN_CLIENT_REQUEST_ID, "true"))
                .map_err(unsendable)
        };
        let sent_at = self.clock.now();
        let response = self.upstream.call(request, judge).await?;
        if !response.status.is_success() {
            return Err(refusal(&response));
        }
        let mut ids = returned(Hop::EntraToken, &response);
        let success = Hop::EntraToken.token_answer(&response).map_err(|error| error.traced(ids.clone()))?;
        ids.extend(of_azure_token(&success.access_token));
        let expires_at = sent_at + success.life();
        let mut credential =
            Credential::new(success.access_token, sent_at, expires_at, redemption.asked, self.identity.clone());
        credential.upstream = ids;
        Ok(credential)
    }
}

fn refusal(response: &Response) -> IssueError {
    let failure = Failure::read(response);
    let code = failure.code(response);
    let (hop, upstream) = (Hop::EntraToken, returned(Hop::EntraToken, response));
    match failure.class() {
        Some((Class::FreshSubjectToken, _meaning)) => IssueError::SubjectToken { hop, code, upstream },
        Some((Class::Challenge, _meaning)) => {
            let claims = failure.claims.filter(|claims| is_claims_request(claims));
            IssueError::InsufficientClaims { code, claims, upstream }
        }
        found => {
            let meaning = found.map_or("see Entra's documentation of the code", |(_class, meaning)| meaning);
            IssueError::Refused { hop, code, meaning, fault: None, upstream }
        }
    }
}

/// Relayed to the caller, so it must be what it claims to be: a short JSON object.
fn is_claims_request(claims: &str) -> bool {
    claims.len() <= 2048 && serde_json::from_str::<serde_json::Map<String, Value>>(claims).is_ok()
}

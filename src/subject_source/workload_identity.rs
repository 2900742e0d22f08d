//! Workload identity of a Kubernetes cluster: its projected token as the client assertion of an app or managed identity.

use std::path::PathBuf;

use super::call::{TOKEN_ENDPOINT, Web, call, token_answer};
use super::held::Fetched;
use super::{Audience, Environment, SourceError, SourceName, authority, directory_name, file};
use crate::clock::Clock;
use crate::entra::{self, ASSERTION_TYPE, OUTSIDE_VALIDITY};
use crate::http::Request;
use crate::secret::Secret;

#[derive(Debug, Clone)]
pub(super) struct WorkloadIdentity {
    token_file: PathBuf,
    client_id: String,
    token_endpoint: String,
    scope: String,
}

impl WorkloadIdentity {
    /// `None` where the projected token is not named.
    pub fn configured(environment: &Environment, audience: Option<&Audience>) -> Result<Option<Self>, SourceError> {
        let Some(token_file) = environment.text(TOKEN_FILE) else { return Ok(None) };
        let (client_id, tenant) = (environment.text("AZURE_CLIENT_ID"), environment.text("AZURE_TENANT_ID"));
        let (Some(client_id), Some(tenant)) = (&client_id, &tenant) else {
            let missing = [("AZURE_CLIENT_ID", &client_id), ("AZURE_TENANT_ID", &tenant)];
            let missing = missing.into_iter().filter_map(|(name, value)| value.is_none().then_some(name)).collect();
            return Err(SourceError::Incomplete { name: NAME, missing });
        };
        let authority = authority(environment)?;
        let tenant = directory_name("AZURE_TENANT_ID", tenant)?;
        Ok(Some(Self {
            token_file: token_file.into(),
            client_id: client_id.clone(),
            token_endpoint: authority.join(&format!("{tenant}/oauth2/v2.0/token")),
            scope: audience.ok_or(SourceError::NoAudience(NAME))?.scope(),
        }))
    }

    /// A projected token that was replaced meanwhile is tried too (AADSTS700024).
    pub async fn fetch(&self, web: &dyn Web, clock: &dyn Clock) -> Result<Fetched, SourceError> {
        let assertion = file::read(&self.token_file).await?;
        match self.redeem(&assertion, web, clock).await {
            Err(SourceError::Refused { code, .. }) if code == OUTSIDE_VALIDITY => {
                let newer = file::read(&self.token_file).await?;
                self.redeem(&newer, web, clock).await
            }
            result => result,
        }
    }

    async fn redeem(&self, assertion: &Secret, web: &dyn Web, clock: &dyn Clock) -> Result<Fetched, SourceError> {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", self.client_id.as_str()),
            ("scope", self.scope.as_str()),
            ("client_assertion_type", ASSERTION_TYPE),
            ("client_assertion", assertion.expose()),
        ];
        let asked_at = clock.now();
        let request = || Ok(Request::post_form(&self.token_endpoint, &form));
        let response = call(web, clock, NAME, TOKEN_ENDPOINT, request, entra::judge).await?;
        let answer = token_answer(NAME, &response)?;
        let expires_at = asked_at + answer.life();
        Fetched::new(answer.access_token, Some(expires_at)).ok_or(SourceError::Malformed { name: NAME })
    }
}

const NAME: SourceName = SourceName::WorkloadIdentity;
const TOKEN_FILE: &str = "AZURE_FEDERATED_TOKEN_FILE";

//! Entra, or the machine, asked as a call of the target would.

use std::time::Duration;

use uuid::Uuid;

use super::{Azure, ManagedIdentity, Redemption, TokenEndpoint, read_token};
use crate::credential::probe::{Probe, Probed};
use crate::credential::upstream::NOBODY;
use crate::credential::{CloudIdentity, Hop, IssueError, SetUpFault};
use crate::target::{AzureSource, AzureTarget, Scope, Scopes};

impl Azure {
    pub async fn probe(
        &self,
        target: &AzureTarget,
        probe: &Probe<'_>,
        exchange_id: Uuid,
    ) -> Result<Probed, IssueError> {
        let identity = CloudIdentity::Azure { tenant: target.tenant, client_id: target.client_id };
        let client_assertion = match &target.source {
            AzureSource::ManagedIdentity(endpoint) => {
                let upstream = self.upstreams.of(Hop::ManagedIdentity, "this machine", NOBODY);
                let (clock, client_id) = (self.clock.clone(), target.client_id);
                let managed = ManagedIdentity { upstream, clock, endpoint, client_id, identity, exchange_id };
                let credential = managed.token(&probe.target.scopes, Duration::ZERO).await?;
                return Ok(Probed::of(&credential));
            }
            AzureSource::TokenFile(path) => read_token(path)
                .await
                .map_err(|_cause| IssueError::not_set_up(Hop::Broker, "token_file", SetUpFault::TokenFile))?,
            AzureSource::Issuer { .. } | AzureSource::OnBehalfOf { .. } => {
                self.signer.probe_assertion(probe, exchange_id)?
            }
        };
        let endpoint = TokenEndpoint {
            upstream: self.upstreams.of(Hop::EntraToken, target.authority.as_str(), NOBODY),
            clock: self.clock.clone(),
            url: target.authority.join(&format!("{}/oauth2/v2.0/token", target.tenant)),
            client_id: target.client_id,
            identity,
        };
        let scope = match target.source {
            // Without a user, the client itself: Entra looks at the same credential.
            AzureSource::OnBehalfOf { .. } => whole_resource(&probe.target.scopes),
            AzureSource::Issuer { .. } | AzureSource::TokenFile(_) | AzureSource::ManagedIdentity(_) => {
                probe.target.scopes.joined()
            }
        };
        let redemption = Redemption { client_assertion, on_behalf_of: None, scope, asked: Duration::ZERO, exchange_id };
        Ok(Probed::of(&endpoint.redeem(redemption).await?))
    }
}

/// `RESOURCE/.default` for the resource of the first scope.
fn whole_resource(scopes: &Scopes) -> String {
    let first = scopes.iter().next().map(Scope::as_str).unwrap_or_default();
    let resource = first.rsplit_once('/').map_or(first, |(resource, _name)| resource);
    format!("{resource}/.default")
}

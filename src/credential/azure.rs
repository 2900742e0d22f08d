//! Azure: Entra's token endpoint with a federated assertion, or the managed identity of the broker's own machine.

mod managed_identity;
mod probe;
mod token_endpoint;

use std::io;
use std::path::Path;
use std::sync::Arc;

use self::managed_identity::ManagedIdentity;
use self::token_endpoint::{Redemption, TokenEndpoint};
use super::upstream::{Upstreams, holder};
use super::{Call, CloudIdentity, Credential, Hop, IssueError, Service, SetUpFault, Signer};
use crate::clock::Clock;
use crate::entra::OUTSIDE_VALIDITY;
use crate::secret::Secret;
use crate::target::{AzureSource, AzureTarget};

#[derive(Debug)]
pub(super) struct Azure {
    upstreams: Arc<Upstreams>,
    signer: Signer,
    clock: Arc<dyn Clock>,
}

impl Azure {
    pub fn new(upstreams: Arc<Upstreams>, signer: Signer, clock: Arc<dyn Clock>) -> Self {
        Self { upstreams, signer, clock }
    }

    pub async fn issue(&self, target: &AzureTarget, call: &Call) -> Result<Credential, IssueError> {
        let identity = CloudIdentity::Azure { tenant: target.tenant, client_id: target.client_id };
        match &target.source {
            AzureSource::ManagedIdentity(endpoint) => {
                let upstream = self.upstreams.of(Hop::ManagedIdentity, THIS_MACHINE, holder(call.grant.identity()));
                let managed = ManagedIdentity {
                    upstream,
                    clock: self.clock.clone(),
                    endpoint,
                    client_id: target.client_id,
                    exchange_id: call.exchange_id,
                    identity,
                };
                managed.token(call.grant.scopes(), call.grant.plan().lifetime).await
            }
            AzureSource::Issuer { .. } | AzureSource::TokenFile(_) | AzureSource::OnBehalfOf { .. } => {
                self.redeem(target, call, identity).await
            }
        }
    }

    pub fn services(&self, target: &AzureTarget) -> Vec<Service> {
        vec![match &target.source {
            AzureSource::ManagedIdentity(_) => self.upstreams.service(Hop::ManagedIdentity, THIS_MACHINE),
            AzureSource::Issuer { .. } | AzureSource::TokenFile(_) | AzureSource::OnBehalfOf { .. } => {
                self.upstreams.service(Hop::EntraToken, target.authority.as_str())
            }
        }]
    }

    /// An assertion that Entra found outside its validity is made anew once (AADSTS700024).
    async fn redeem(
        &self,
        target: &AzureTarget,
        call: &Call,
        identity: CloudIdentity,
    ) -> Result<Credential, IssueError> {
        let endpoint = TokenEndpoint {
            upstream: self.upstreams.of(Hop::EntraToken, target.authority.as_str(), holder(call.grant.identity())),
            clock: self.clock.clone(),
            url: target.authority.join(&format!("{}/oauth2/v2.0/token", target.tenant)),
            client_id: target.client_id,
            identity,
        };
        let mut attempts = [Retry::Once, Retry::Never].into_iter();
        loop {
            let client_assertion = self.client_assertion(target, call).await?;
            let on_behalf_of = match target.source {
                AzureSource::OnBehalfOf { .. } => Some(call.subject_token(Hop::EntraToken)?.secret().clone()),
                AzureSource::Issuer { .. } | AzureSource::TokenFile(_) | AzureSource::ManagedIdentity(_) => None,
            };
            let redemption = Redemption {
                client_assertion,
                on_behalf_of,
                scope: call.grant.scopes().joined(),
                asked: call.grant.plan().lifetime,
                exchange_id: call.exchange_id,
            };
            match (endpoint.redeem(redemption).await, attempts.next()) {
                (Err(IssueError::Refused { code, .. }), Some(Retry::Once)) if code == OUTSIDE_VALIDITY => {}
                (result, _) => return result,
            }
        }
    }

    async fn client_assertion(&self, target: &AzureTarget, call: &Call) -> Result<Secret, IssueError> {
        match &target.source {
            AzureSource::TokenFile(path) => read_token(path).await.map_err(|error| {
                tracing::error!(path = %path.display(), %error, "the token file {} cannot be read", path.display());
                IssueError::not_set_up(Hop::Broker, "token_file", SetUpFault::TokenFile)
            }),
            AzureSource::Issuer { .. } | AzureSource::OnBehalfOf { .. } | AzureSource::ManagedIdentity(_) => {
                self.signer.assertion(call)
            }
        }
    }
}

/// All identities of a machine share its quota.
const THIS_MACHINE: &str = "this machine";

enum Retry {
    Once,
    Never,
}

async fn read_token(path: &Path) -> io::Result<Secret> {
    let token = Secret::in_file(path).await?;
    if token.is_empty() { Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty")) } else { Ok(token) }
}

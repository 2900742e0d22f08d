//! Google asked as somebody whom a rule would admit.

use std::time::Duration;

use uuid::Uuid;

use super::impersonation::{AccessError, Impersonation, too_long};
use super::{Exchange, FEDERATED_LEAST, Google, IAM_SCOPE, quota};
use crate::credential::correlation::Mark;
use crate::credential::probe::{Probe, Probed, Reach};
use crate::credential::upstream::NOBODY;
use crate::credential::{Hop, IssueError};
use crate::issuer::Assertion;
use crate::secret::Secret;
use crate::target::{GoogleSubjectToken, GoogleTarget, Scopes};

impl Google {
    /// Neither the caches nor what is remembered of refusals has a part in it.
    pub async fn probe(
        &self,
        target: &GoogleTarget,
        probe: &Probe<'_>,
        exchange_id: Uuid,
    ) -> Result<Probed, IssueError> {
        let subject_token = match target.subject_token {
            GoogleSubjectToken::Issuer => self.signer.probe_assertion(probe, exchange_id)?,
            // No token of Entra's: Google says as much of it as it can of what it cannot read.
            GoogleSubjectToken::Entra => Secret::new(UNREADABLE),
        };
        let assertion = Assertion::for_probe(probe.target, probe.subject);
        let principal = target.provider.principal(assertion.as_ref().map(Assertion::subject).unwrap_or_default());
        let impersonates = target.service_account.as_ref().filter(|_account| probe.reach == Reach::Credential);
        let exchange = Exchange {
            upstream: self.upstreams.of(Hop::GoogleSts, &quota(target), NOBODY),
            clock: self.clock.clone(),
            url: target.sts_endpoint.join("v1/token"),
            provider: target.provider.clone(),
            subject_token,
            presents: target.subject_token,
            scope: if impersonates.is_some() { IAM_SCOPE.to_owned() } else { probe.target.scopes.joined() },
            asked: FEDERATED_LEAST,
            principal: principal.clone(),
            mark: Mark::of_probe(exchange_id),
        };
        let federated = exchange.run().await?;
        let Some(account) = impersonates else { return Ok(Probed::of(&federated)) };
        let impersonation = Impersonation {
            upstream: self.upstreams.of(Hop::GoogleIam, target.iam_credentials_endpoint.as_str(), NOBODY),
            clock: self.clock.clone(),
            endpoint: target.iam_credentials_endpoint.clone(),
            account: account.clone(),
            principal,
            bearer: federated.token.clone(),
            mark: Mark::of_probe(exchange_id),
            federated: Vec::new(),
        };
        access_token(&impersonation, &probe.target.scopes, probe.lifetime).await
    }
}

async fn access_token(
    impersonation: &Impersonation,
    scopes: &Scopes,
    lifetime: Duration,
) -> Result<Probed, IssueError> {
    match impersonation.access_token(scopes, lifetime, lifetime).await {
        Ok(credential) => Ok(Probed::of(&credential)),
        Err(AccessError::TooLong) => Err(too_long()),
        Err(AccessError::Other(error)) => Err(error),
    }
}

/// The form of a token and nothing in it.
const UNREADABLE: &str = "e30.e30.e30";

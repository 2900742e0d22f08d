//! Asking the clouds whether trust is set up, as somebody whom a rule would admit. What they issue is dropped unread: no
//! token comes out of here.

use std::time::Duration;

use uuid::Uuid;

use super::{Clouds, Credential, IssueError, SetUpFault, Signer};
use crate::credential::Hop;
use crate::issuer::{Assertion, ProbeSubject};
use crate::secret::Secret;
use crate::target::{Platform, Target};

/// One question to a cloud.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    pub target: &'a Target,
    pub subject: &'a ProbeSubject,
    pub reach: Reach,
    /// Wished for, where the cloud takes a wish.
    pub lifetime: Duration,
}

/// How far a probe goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Google: the exchange alone. Elsewhere there is no half-way.
    Provider,
    /// To the credential that a caller would get.
    Credential,
}

/// What a cloud issued, but for the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// How long it would have lived.
    pub life: Duration,
}

impl Probed {
    pub(super) fn of(credential: &Credential) -> Self {
        let life = credential.expires_at.duration_since(credential.issued_at);
        Self { life: life.unwrap_or_default() }
    }
}

impl Clouds {
    /// Asks the cloud of the target for a credential and drops it.
    ///
    /// # Errors
    /// As the callers of the rule would meet it. A target that redeems its callers' own tokens is asked as far as
    /// that goes without one.
    pub async fn probe(&self, probe: &Probe<'_>) -> Result<Probed, IssueError> {
        let exchange_id = Uuid::now_v7();
        match &probe.target.platform {
            Platform::Google(google) => self.google.probe(google, probe, exchange_id).await,
            Platform::Azure(azure) => self.azure.probe(azure, probe, exchange_id).await,
        }
    }
}

impl Signer {
    /// For a probe: nobody is granted anything by it.
    pub(super) fn probe_assertion(&self, probe: &Probe<'_>, exchange_id: Uuid) -> Result<Secret, IssueError> {
        let no_issuer = || IssueError::not_set_up(Hop::Broker, "no_issuer", SetUpFault::NoIssuer);
        let issuer = self.issuer.as_ref().ok_or_else(no_issuer)?;
        let assertion = Assertion::for_probe(probe.target, probe.subject).ok_or_else(no_issuer)?;
        let unsigned = |_cause| IssueError::not_set_up(Hop::Broker, "no_signature", SetUpFault::NoSignature);
        issuer.sign(&assertion, exchange_id, PROBE_LIFETIME).map_err(unsigned)
    }
}

/// It is shown at once; a minute leaves room for clocks that differ a little.
const PROBE_LIFETIME: Duration = Duration::from_secs(60);

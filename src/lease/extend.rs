//! An extension: a lease goes on because its job shows a fresh subject token.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Applied, Change, Failed, Found, Lease, Leases, SubjectProof, count, detached, record};
use crate::audit::Outcome;
use crate::clock::whole_milliseconds;
use crate::exchange::{Caller, ExchangeError, ExchangeRequest, Proof};
use crate::policy::{ExcessScopes, Tenure};
use crate::secret::Secret;

impl Leases {
    /// A new end, `duration` from now, within what the rules allow whoever the subject token shows; without `duration`,
    /// as long as an opening would get, and no less than the lease has.
    pub async fn extend(
        self: &Arc<Self>,
        lease_token: Secret,
        proof: SubjectProof,
        duration: Option<Duration>,
        caller: Caller,
    ) -> Result<Lease, Failed> {
        let found = self.found(&lease_token, &caller.peer).await.and_then(|Found { lease, .. }| {
            let end = lease.end_at(self.clock.now());
            end.map_or(Ok(lease), |end| Err(Failed::new(ExchangeError::LeaseEnded(end.kind.as_str()))))
        });
        let lease = found.map_err(|failed| self.unrecorded(failed, "an extension", &caller.peer))?;
        let this = self.clone();
        detached(async move { this.extend_whole(lease, proof, duration, caller).await }).await
    }

    async fn extend_whole(
        &self,
        lease: Lease,
        proof: SubjectProof,
        duration: Option<Duration>,
        caller: Caller,
    ) -> Result<Lease, Failed> {
        let exchange_id = Uuid::now_v7();
        let failed = |error| Failed { exchange_id, error };
        let request = ExchangeRequest {
            proof: Proof::SubjectToken { token: proof.token, token_type: proof.token_type },
            tenure: Tenure::Opening(duration),
            lease_id: Some(lease.id),
            targets: lease.targets.to_vec(),
            job: lease.job.clone(),
            excess: ExcessScopes::Refuse,
            caller,
        };
        let shown = self.exchange.shown(&request).await;
        let mut shadow = None;
        let permitted = match &shown {
            // Somebody else's token must not tell that there is such a lease, whatever the rules allow them.
            Ok(identity) if identity.subject() != lease.subject => Err(ExchangeError::LeaseNotFound),
            Ok(identity) => {
                let end;
                (end, shadow) = self.exchange.lease_end(identity, &request).await;
                end
            }
            Err(_refused) => Err(ExchangeError::Internal),
        };
        let now = self.clock.now();
        let mut entry = record(&lease, exchange_id, now, "lease.extend", Outcome::Done);
        entry.attributes =
            vec![("peer", request.caller.peer.address.to_string()), ("lease_subject", lease.subject.clone())];
        entry.attributes.extend(shadow.map(|shadow| ("shadow", shadow)));
        // The record names whoever asked, who need not be the lease's holder.
        entry.subject = shown.as_ref().map(|identity| identity.subject().to_owned()).unwrap_or_default();
        if let Ok(identity) = &shown {
            entry.client_id = identity.client().to_string();
            entry.entra_token_id = identity.token_id().unwrap_or_default().to_owned();
        }
        let permitted = shown.and_then(|identity| Ok((identity, permitted?)));
        if let Err(error) = &permitted {
            (entry.outcome, entry.reason) = (error.outcome(), Some(error.reason()));
        }
        let known = Some(entry.subject.clone()).filter(|subject| !subject.is_empty());
        let refused = permitted.as_ref().err();
        if refused.is_none_or(|error| self.exchange.is_recorded(known.as_deref(), &request.caller.peer, error)) {
            self.exchange.audit.record(vec![entry]).await.map_err(|error| failed(ExchangeError::Audit(error)))?;
        }
        if let Some(error) = refused {
            self.exchange.hold_back(error, &request.caller.peer).await;
        }
        let (identity, allowed_until) = permitted.map_err(failed)?;
        let not_after = match duration {
            Some(_) => allowed_until,
            None => allowed_until.max(lease.not_after),
        };
        let extension = Change::Extend {
            id: lease.id,
            now: whole_milliseconds(now),
            not_after: whole_milliseconds(not_after),
            identity: identity.snapshot(),
        };
        let Applied { lease, changed } = self.writer.apply(extension).await?;
        let lease = lease.ok_or_else(|| failed(ExchangeError::LeaseNotFound))?;
        match lease.end_at(self.clock.now()) {
            Some(end) => Err(failed(ExchangeError::LeaseEnded(end.kind.as_str()))),
            None if changed => {
                count("extend");
                Ok(lease)
            }
            None => Err(failed(ExchangeError::Internal)),
        }
    }
}

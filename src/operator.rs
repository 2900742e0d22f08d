//! For those who run the broker: who may ask why, look at leases and records and end leases, and the record of what they
//! did.

mod audit;
mod delivery;
mod explain;
mod searches;

pub use audit::{AuditQuery, AuditRecords, Follow, ShowFacts};
pub use delivery::Delivery;
pub use explain::{ExplainRequest, ExplainSubject, Explained, Explainer, Running};
pub use searches::Searches;

use std::sync::Arc;

use arc_swap::ArcSwap;
use uuid::Uuid;

use crate::audit::{Audit, AuditRecord, Outcome, Records};
use crate::clock::Clock;
use crate::exchange::{Caller, Exchange, ExchangeError};
use crate::issuer::Issuer;
use crate::lease::{End, Failed, Lease, LeaseFilter, LeaseQuery, Leases, detached};
use crate::limit::Peer;
use crate::line::one_line;
use crate::policy::{Denial, Operators, Permission, Refusal};
use crate::secret::Secret;
use crate::subject::{self, SubjectToken, VerifiedIdentity, Verifier};

/// Every call shows an Entra token and needs a permission of the configuration's `operators`.
#[derive(Debug)]
pub struct Operator {
    pub verifier: Arc<dyn Verifier>,
    /// Replaced as a whole when the configuration file changes.
    pub operators: Arc<ArcSwap<Operators>>,
    pub leases: Arc<Leases>,
    /// What is explained.
    pub exchange: Arc<Exchange>,
    /// Whose tokens are taken: what some remedies depend on.
    pub entra: subject::Settings,
    /// Absent where no target needs an assertion of the broker's.
    pub issuer: Option<Arc<Issuer>>,
    pub audit: Audit,
    pub records: Records,
    /// Places for those under way.
    pub searches: Arc<Searches>,
    pub clock: Arc<dyn Clock>,
}

impl Operator {
    /// Leases with their ends, newest first.
    pub async fn list_leases(
        self: &Arc<Self>,
        token: Secret,
        query: &LeaseQuery,
        caller: &Caller,
    ) -> Result<Vec<(Lease, Option<End>)>, Failed> {
        self.authorized(token, Permission::LeasesRead, caller, Vec::new()).await?;
        self.leases.list(query).await
    }

    /// Ends every lease that matches; an empty filter, which would match all, is refused. What was on record as wanted is
    /// done, although the caller may leave.
    pub async fn revoke_leases(
        self: &Arc<Self>,
        token: Secret,
        filter: LeaseFilter,
        reason: &str,
        caller: &Caller,
    ) -> Result<usize, Failed> {
        let reason = one_line(reason, REASON_CHARACTERS);
        let wanted = one_line(&format!("{filter:?}"), FILTER_CHARACTERS);
        let details = vec![("filter", wanted), ("revoke_reason", reason.clone())];
        let (this, caller) = (self.clone(), caller.clone());
        detached(async move {
            let operator = this.authorized(token, Permission::LeasesRevoke, &caller, details).await?;
            if filter.is_empty() {
                let message = "says nothing: name leases, a subject, a target or a job".to_owned();
                return Err(Failed::new(ExchangeError::Request { field: "filter".to_owned(), message }));
            }
            let reason = format!("{} revoked it: {reason}", operator.subject());
            this.leases.revoke(filter, reason).await
        })
        .await
    }

    /// The decision is on record before anything is done, and comes to be so although the caller may leave.
    async fn authorized(
        self: &Arc<Self>,
        token: Secret,
        permission: Permission,
        caller: &Caller,
        details: Vec<(&'static str, String)>,
    ) -> Result<Arc<VerifiedIdentity>, Failed> {
        let (this, caller) = (self.clone(), caller.clone());
        detached(async move {
            let admission = this.admission(token, permission, &caller).await;
            this.recorded(admission, details).await
        })
        .await
    }

    /// Whether whoever shows `token` may: not yet on record.
    async fn admission(&self, token: Secret, permission: Permission, caller: &Caller) -> Admission {
        let verified = self.verified(token, caller).await;
        let mut record = self.record(Uuid::now_v7(), permission, caller);
        if let Ok(identity) = &verified {
            record.subject = identity.subject().to_owned();
            record.client_id = identity.client().to_string();
            record.entra_token_id = identity.token_id().unwrap_or_default().to_owned();
        }
        let known = verified.is_ok();
        let allowed = verified.and_then(|identity| {
            self.exchange.charge(&identity)?;
            let permitted = self.operators.load().permit(&identity, permission);
            permitted.then_some(identity).ok_or(ExchangeError::Policy(Refusal::Denied(Denial::NoRule)))
        });
        if let Err(error) = &allowed {
            (record.outcome, record.reason) = (error.outcome(), Some(error.reason()));
        }
        Admission { record, known, allowed, peer: caller.peer.clone() }
    }

    /// Puts it on record, with `details` of what was wanted.
    async fn recorded(
        &self,
        admission: Admission,
        details: Vec<(&'static str, String)>,
    ) -> Result<Arc<VerifiedIdentity>, Failed> {
        let Admission { mut record, known, allowed, peer } = admission;
        let exchange_id = record.exchange_id;
        if known {
            // What a stranger wanted is not worth keeping.
            record.attributes.extend(details);
        }
        let subject = known.then_some(record.subject.as_str());
        if allowed.as_ref().err().is_none_or(|error| self.exchange.is_recorded(subject, &peer, error)) {
            let recorded = self.audit.record(vec![record]).await;
            recorded.map_err(|error| Failed { exchange_id, error: ExchangeError::Audit(error) })?;
        }
        if let Err(error) = &allowed {
            self.exchange.hold_back(error, &peer).await;
        }
        allowed.map_err(|error| Failed { exchange_id, error })
    }

    async fn verified(&self, token: Secret, caller: &Caller) -> Result<Arc<VerifiedIdentity>, ExchangeError> {
        self.exchange.verified(&SubjectToken::new(token)?, &caller.peer).await
    }

    fn record(&self, exchange_id: Uuid, permission: Permission, caller: &Caller) -> AuditRecord {
        AuditRecord {
            exchange_id,
            time: self.clock.now(),
            action: match permission {
                Permission::Explain => "operator.explain",
                Permission::AuditRead => "operator.audit",
                Permission::LeasesRead => "operator.leases.read",
                Permission::LeasesRevoke => "operator.leases.revoke",
            },
            lease_id: None,
            outcome: Outcome::Done,
            reason: None,
            subject: String::new(),
            entra_token_id: String::new(),
            client_id: String::new(),
            target: String::new(),
            rule: String::new(),
            job: Arc::default(),
            lifetime: None,
            cached: false,
            issued: None,
            identity: None,
            attributes: vec![("peer", caller.peer.address.to_string()), ("user_agent", caller.user_agent.to_string())],
        }
    }
}

/// A call as it will be recorded.
struct Admission {
    record: AuditRecord,
    /// Whoever calls was verified.
    known: bool,
    peer: Peer,
    allowed: Result<Arc<VerifiedIdentity>, ExchangeError>,
}

/// A sentence or two.
const REASON_CHARACTERS: usize = 200;

/// Enough for every field and a dozen leases.
const FILTER_CHARACTERS: usize = 1000;

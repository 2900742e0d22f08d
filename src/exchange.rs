//! ★ Start here: verify → decide → issue → record → reply. Every front door comes through this one function.

mod answer;
mod beforehand;
mod completion;
mod error;
mod history;
mod limited;
mod record;
mod request;

pub use answer::IssuedCredential;
pub use error::ExchangeError;
#[cfg(any(test, feature = "testing"))]
pub use history::FakeRunHistory;
pub use history::{History, HistoryError, RunHistory};
pub use limited::Limit;
pub use request::{Caller, Door, ExchangeRequest, Proof, TargetRequest, asks};

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use futures_util::future::try_join_all;
use tokio::sync::Semaphore;
use tracing::{Instrument as _, Span};
use uuid::Uuid;

use self::completion::Completion;
use self::record::Record;
use self::request::Asks;
use crate::audit::{Audit, AuditError};
use crate::clock::Clock;
use crate::credential::{Call, Credentials, Purpose};
use crate::limit::Limits;
use crate::policy::{Grant, Inquiry, Policy, Tenure};
use crate::subject::{SubjectToken, VerifiedIdentity, Verifier};
use crate::telemetry::SPANS;

/// The four stages, in their order.
#[derive(Debug)]
pub struct Exchange {
    pub verifier: Arc<dyn Verifier>,
    /// Replaced as a whole when the configuration file changes.
    pub policy: Arc<ArcSwap<Policy>>,
    pub credentials: Credentials,
    pub history: History,
    pub audit: Audit,
    pub clock: Arc<dyn Clock>,
    /// One for each exchange under way: what comes beyond is turned away at once, while there is still time to answer.
    pub places: Arc<Semaphore>,
    /// What each caller and each address may have of all this.
    pub limits: Limits,
}

/// All credentials that were asked for, or none.
pub type Answer = Result<Vec<IssuedCredential>, ExchangeError>;

/// An answer, with the id that joins it to the record and to the clouds' logs.
#[derive(Debug)]
pub struct Exchanged {
    pub exchange_id: Uuid,
    pub result: Answer,
}

impl Exchange {
    pub async fn run(self: &Arc<Self>, request: ExchangeRequest) -> Exchanged {
        self.complete(request, None).await
    }

    /// For what a door could not even read as a request: refused like any other, and recorded.
    pub async fn refuse(self: &Arc<Self>, request: ExchangeRequest, error: ExchangeError) -> Exchanged {
        self.complete(request, Some(error)).await
    }

    async fn steps(&self, request: &ExchangeRequest, record: &mut Record) -> Answer {
        let (grants, subject_token) = self.grants(request, record).await?;
        let credentials = grants.into_iter().map(|grant| self.issue(grant, subject_token.as_ref(), record.exchange_id));
        try_join_all(credentials).await
    }

    async fn grants(
        &self,
        request: &ExchangeRequest,
        record: &mut Record,
    ) -> Result<(Vec<Arc<Grant>>, Option<SubjectToken>), ExchangeError> {
        let asked = request.check()?;
        let (identity, subject_token) = self.identify(request, record).await?;
        record.verified(&identity, &asked.job);
        record.placed(self.place(&request.proof, &identity)?);
        let grants = self.decide(&identity, &asked, request.tenure, record).await?;
        record.granted(&grants);
        Ok((grants, subject_token))
    }

    /// Nobody's history is looked at who may not have what they ask for.
    async fn decide(
        &self,
        identity: &Arc<VerifiedIdentity>,
        asked: &Asks,
        tenure: Tenure,
        record: &mut Record,
    ) -> Result<Vec<Arc<Grant>>, ExchangeError> {
        let policy = self.policy.load_full();
        let mut inquiry = Inquiry { tenure, ..Inquiry::once(identity, &asked.job, self.clock.now()) };
        let mut decided = policy.decide_all(inquiry, &asked.asks);
        if decided.is_ok() {
            inquiry.learned = self.history.learned(identity, &asked.job).await;
            decided = if inquiry.learned.is_some() { policy.decide_all(inquiry, &asked.asks) } else { decided };
        }
        record.shadowed(policy.shadow(inquiry, &asked.asks, &decided));
        Ok(decided?)
    }

    /// Whoever holds a lease was verified when it was opened.
    async fn identify(
        &self,
        request: &ExchangeRequest,
        record: &mut Record,
    ) -> Result<(Arc<VerifiedIdentity>, Option<SubjectToken>), ExchangeError> {
        match &request.proof {
            Proof::Lease(identity) => Ok((identity.clone(), None)),
            Proof::SubjectToken { token, .. } => {
                let token = SubjectToken::new(token.clone())?;
                let verified = self.verified(&token, &request.caller.peer).await;
                let identity = verified.inspect_err(|_refused| record.refused_token(&token))?;
                Ok((identity, Some(token)))
            }
        }
    }

    async fn issue(
        &self,
        grant: Arc<Grant>,
        subject_token: Option<&SubjectToken>,
        exchange_id: Uuid,
    ) -> Result<IssuedCredential, ExchangeError> {
        let call = Call {
            grant: grant.clone(),
            subject_token: subject_token.cloned(),
            exchange_id,
            purpose: Purpose::Exchange,
        };
        match self.credentials.credential(call).instrument(stage("issue")).await {
            Ok(hit) => Ok(IssuedCredential::new(grant, hit, self.clock.now())),
            Err(error) => Err(ExchangeError::Credential { target: grant.target().name.to_string(), error }),
        }
    }

    /// Not recorded, not released.
    async fn record(&self, record: Record, answer: Answer) -> Answer {
        if let Err(error) = &answer
            && !self.is_recorded(record.subject(), record.peer(), error)
        {
            record.count_only(error, self.clock.now());
            return answer;
        }
        let answer = match self.audit.record(record.of(&answer)).instrument(stage("record")).await {
            Ok(()) => answer.inspect(|credentials| credentials.iter().for_each(IssuedCredential::handed_out)),
            Err(AuditError::Closed) => Err(ExchangeError::ShuttingDown),
            Err(error) => Err(ExchangeError::Audit(error)),
        };
        record.log(&answer, self.clock.now());
        answer
    }

    /// To its end: a caller that leaves cannot keep a decision from being recorded, nor can a panic.
    async fn complete(self: &Arc<Self>, request: ExchangeRequest, refusal: Option<ExchangeError>) -> Exchanged {
        let exchange_id = Uuid::now_v7();
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            metrics::counter!("carnet_exchanges_shed_total").increment(1);
            return Exchanged { exchange_id, result: Err(ExchangeError::Overloaded) };
        };
        let (exchange, peer) = (self.clone(), request.caller.peer.clone());
        let decision = async move {
            let mut record = Record::about(&request, exchange_id, exchange.clock.now());
            let answer = match refusal {
                Some(error) => Err(error),
                None => {
                    let steps = AssertUnwindSafe(exchange.steps(&request, &mut record));
                    steps.catch_unwind().await.unwrap_or(Err(ExchangeError::Internal))
                }
            };
            let answer = exchange.record(record, answer).await;
            drop(place);
            answer
        };
        let span = tracing::debug_span!(target: SPANS, "exchange", exchange.id = %exchange_id);
        let decision = AssertUnwindSafe(decision.instrument(span)).catch_unwind();
        let result = Completion::of(decision).await.unwrap_or(Err(ExchangeError::Internal));
        if let Err(error) = &result {
            self.hold_back(error, &peer).await;
        }
        Exchanged { exchange_id, result }
    }
}

/// Places enough for a gang of ten thousand workers; each costs some 10 KB while it waits for a cloud.
pub const PLACES: usize = 16_384;

fn stage(name: &'static str) -> Span {
    tracing::debug_span!(target: SPANS, "stage", stage.name = name)
}

#[cfg(test)]
mod tests;

//! ★ Start here: verify → decide → issue → record → reply. Every front door comes through this one function.

mod error;
mod request;

pub use error::ExchangeError;
pub use request::{Caller, Door, ExchangeRequest, Peer, TargetRequest};

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures_util::future::try_join_all;
use tokio::sync::Semaphore;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::audit::{Audit, AuditError, AuditRecord, Issued, Outcome};
use crate::clock::Clock;
use crate::credential::{Call, CloudIdentity, Credential, Credentials, Hit};
use crate::policy::{Bound, Grant, Policy, refresh_in};
use crate::subject::{SubjectToken, VerifiedIdentity, Verifier};
use crate::target::{Job, Scopes, TokenType};
use crate::telemetry::SPANS;

/// The four stages, in their order.
#[derive(Debug)]
pub struct Exchange {
    pub verifier: Arc<dyn Verifier>,
    /// Replaced as a whole when the configuration file changes.
    pub policy: Arc<ArcSwap<Policy>>,
    pub credentials: Credentials,
    pub audit: Audit,
    pub clock: Arc<dyn Clock>,
    /// One for each exchange under way: what comes beyond is turned away at once, while there is still time to answer.
    pub places: Arc<Semaphore>,
}

/// Places enough for a gang of ten thousand workers; each costs some 10 KB while it waits for a cloud.
pub const PLACES: usize = 16_384;

/// An answer or a refusal, with the id that joins it to the record and to the clouds' logs.
#[derive(Debug)]
pub struct Exchanged {
    pub exchange_id: Uuid,
    pub result: Result<Vec<IssuedCredential>, ExchangeError>,
}

impl Exchange {
    /// Runs in a task of its own: a caller that leaves cannot keep a decision from being recorded.
    pub async fn run(self: &Arc<Self>, request: ExchangeRequest) -> Exchanged {
        self.in_a_task(|exchange, exchange_id| async move { exchange.decide_and_record(request, exchange_id).await })
            .await
    }

    /// For what a door could not even read as a request: refused like any other, and recorded.
    pub async fn refuse(self: &Arc<Self>, request: ExchangeRequest, error: ExchangeError) -> Exchanged {
        self.in_a_task(|exchange, exchange_id| async move {
            let record = Record::about(&request, exchange_id, exchange.clock.now());
            exchange.record(record, Err(error)).await
        })
        .await
    }

    async fn in_a_task<F>(self: &Arc<Self>, decision: impl FnOnce(Arc<Self>, Uuid) -> F) -> Exchanged
    where
        F: Future<Output = Result<Vec<IssuedCredential>, ExchangeError>> + Send + 'static,
    {
        let exchange_id = Uuid::now_v7();
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            metrics::counter!("carnet_exchanges_shed_total").increment(1);
            return Exchanged { exchange_id, result: Err(ExchangeError::Overloaded) };
        };
        let span = tracing::debug_span!(target: SPANS, "exchange", exchange.id = %exchange_id);
        let decision = decision(self.clone(), exchange_id).instrument(span);
        let running = tokio::spawn(async move {
            let result = decision.await;
            drop(place);
            result
        });
        Exchanged { exchange_id, result: running.await.unwrap_or(Err(ExchangeError::ShuttingDown)) }
    }

    async fn decide_and_record(
        &self,
        request: ExchangeRequest,
        exchange_id: Uuid,
    ) -> Result<Vec<IssuedCredential>, ExchangeError> {
        let mut record = Record::about(&request, exchange_id, self.clock.now());
        let result = self.steps(&request, &mut record).await;
        self.record(record, result).await
    }

    /// Not recorded, not released.
    async fn record(
        &self,
        record: Record,
        result: Result<Vec<IssuedCredential>, ExchangeError>,
    ) -> Result<Vec<IssuedCredential>, ExchangeError> {
        let result =
            match self.audit.record(record.of(&result)).instrument(tracing::debug_span!(target: SPANS, "record")).await
            {
                Ok(()) => result,
                Err(AuditError::Closed) => Err(ExchangeError::ShuttingDown),
                Err(error) => Err(ExchangeError::Audit(error)),
            };
        record.log(&result, self.clock.now());
        result
    }

    async fn steps(
        &self,
        request: &ExchangeRequest,
        record: &mut Record,
    ) -> Result<Vec<IssuedCredential>, ExchangeError> {
        let asked = request.check()?;
        record.job = asked.job.clone();
        let subject_token = SubjectToken::new(request.subject_token.clone())?;
        let identity = self
            .verifier
            .verify(&subject_token)
            .instrument(tracing::debug_span!(target: SPANS, "verify"))
            .await
            .inspect_err(|_refused| record.token = Some(subject_token.clone()))?;
        record.identity = Some(identity.clone());
        let policy = self.policy.load_full();
        let now = self.clock.now();
        let decide = |ask| policy.decide(&identity, ask, &asked.job, now);
        let grants = asked.asks.iter().map(decide).collect::<Result<Vec<Grant>, _>>()?;
        record.grants.clone_from(&grants);
        let issue = grants.into_iter().map(|grant| self.issue(grant, &subject_token, record.exchange_id));
        try_join_all(issue).await
    }

    async fn issue(
        &self,
        grant: Grant,
        subject_token: &SubjectToken,
        exchange_id: Uuid,
    ) -> Result<IssuedCredential, ExchangeError> {
        let call = Call { grant: grant.clone(), subject_token: subject_token.clone(), exchange_id };
        let issuing = tracing::debug_span!(target: SPANS, "issue", target.name = %grant.target().name);
        match self.credentials.credential(call).instrument(issuing).await {
            Ok(hit) => Ok(IssuedCredential::new(grant, hit, self.clock.now())),
            Err(error) => Err(ExchangeError::Credential { target: grant.target().name.to_string(), error }),
        }
    }
}

/// A credential on its way to the caller, with what the broker decided about it.
#[derive(Debug)]
pub struct IssuedCredential {
    grant: Grant,
    credential: Arc<Credential>,
    /// The token was minted for an earlier call.
    pub cached: bool,
    /// What is left of the token.
    pub granted: Duration,
    pub bound: Bound,
    /// Before the expiry, spread so that callers do not come back at once.
    pub refresh_after: SystemTime,
}

impl IssuedCredential {
    fn new(grant: Grant, hit: Hit, now: SystemTime) -> Self {
        let Hit { credential, cached } = hit;
        let granted = credential.expires_at.duration_since(now).unwrap_or_default();
        let bound = grant.plan().bound(granted, credential.given);
        let refresh_after = now + refresh_in(granted, rand::random());
        Self { grant, credential, cached, granted, bound, refresh_after }
    }

    pub fn target(&self) -> &str {
        self.grant.target().name.as_str()
    }

    /// Secret.
    pub fn token(&self) -> &str {
        self.credential.token.expose()
    }

    pub fn token_type(&self) -> TokenType {
        self.grant.token_type()
    }

    pub fn scopes(&self) -> &Scopes {
        self.grant.scopes()
    }

    /// As the cloud says it.
    pub fn expires_at(&self) -> SystemTime {
        self.credential.expires_at
    }

    pub fn requested(&self) -> Option<Duration> {
        self.grant.plan().requested
    }

    pub fn identity(&self) -> &CloudIdentity {
        &self.credential.identity
    }
}

/// What is known of an exchange so far: each stage adds its part, and whatever the outcome, it is recorded.
struct Record {
    exchange_id: Uuid,
    began: SystemTime,
    caller: Caller,
    targets: Vec<String>,
    job: Arc<Job>,
    /// A token that was refused: the record keeps what it says of itself.
    token: Option<SubjectToken>,
    identity: Option<Arc<VerifiedIdentity>>,
    grants: Vec<Grant>,
}

impl Record {
    fn about(request: &ExchangeRequest, exchange_id: Uuid, began: SystemTime) -> Self {
        // A hostile request may name anything any number of times.
        let targets = request.targets.iter().take(16).map(|target| target.target.chars().take(63).collect()).collect();
        let caller = request.caller.clone();
        Self {
            exchange_id,
            began,
            caller,
            targets,
            job: Arc::default(),
            token: None,
            identity: None,
            grants: Vec::new(),
        }
    }

    /// One record per target; a request that names none has one all the same.
    fn of(&self, result: &Result<Vec<IssuedCredential>, ExchangeError>) -> Vec<AuditRecord> {
        match result {
            Ok(credentials) => credentials.iter().map(|credential| self.of_issued(credential)).collect(),
            Err(error) if self.targets.is_empty() => vec![self.of_refusal("", None, error)],
            Err(error) => {
                let refused =
                    |(position, target): (usize, &String)| self.of_refusal(target, self.grants.get(position), error);
                self.targets.iter().enumerate().map(refused).collect()
            }
        }
    }

    fn of_issued(&self, issued: &IssuedCredential) -> AuditRecord {
        let credential = &issued.credential;
        let acts_as = match &credential.identity {
            CloudIdentity::Google { principal, service_account } => {
                service_account.as_ref().unwrap_or(principal).clone()
            }
            CloudIdentity::Azure { client_id, .. } => client_id.to_string(),
        };
        let mut record = self.base(issued.target(), Some(&issued.grant), Outcome::Issued);
        record.lifetime = Some(issued.granted);
        record.cached = issued.cached;
        record.attributes.push(("lifetime_bound", issued.bound.as_str().to_owned()));
        record.attributes.extend(credential.upstream.iter().cloned());
        record.issued = Some(Issued {
            token_sha256: credential.token_sha256,
            first: credential.first_hand_out(),
            scopes: issued.scopes().joined(),
            acts_as,
            issued_at: credential.issued_at,
            expires_at: credential.expires_at,
        });
        record
    }

    fn of_refusal(&self, target: &str, grant: Option<&Grant>, error: &ExchangeError) -> AuditRecord {
        let mut record = self.base(target, grant, error.outcome());
        record.reason = Some(error.reason());
        record.attributes.extend(error.details());
        record.attributes.extend(self.token.iter().flat_map(SubjectToken::unverified_trace));
        record
    }

    fn base(&self, target: &str, grant: Option<&Grant>, outcome: Outcome) -> AuditRecord {
        let identity = self.identity.as_ref();
        AuditRecord {
            exchange_id: self.exchange_id,
            time: self.began,
            action: "exchange",
            outcome,
            reason: None,
            subject: identity.map(|identity| identity.subject()).unwrap_or_default(),
            entra_token_id: identity.and_then(|identity| identity.token_id()).unwrap_or_default().to_owned(),
            client_id: identity.map(|identity| identity.client().to_string()).unwrap_or_default(),
            target: target.to_owned(),
            rule: grant.map(|grant| grant.rule().to_string()).unwrap_or_default(),
            job: self.job.clone(),
            lifetime: None,
            cached: false,
            issued: None,
            attributes: vec![
                ("door", self.caller.door.as_str().to_owned()),
                ("peer", self.caller.address.clone()),
                ("user_agent", self.caller.user_agent.clone()),
            ],
        }
    }

    /// The one line of this exchange, and its metrics.
    fn log(&self, result: &Result<Vec<IssuedCredential>, ExchangeError>, now: SystemTime) {
        let took = now.duration_since(self.began).unwrap_or_default();
        let (outcome, reason) = match result {
            Ok(_) => (Outcome::Issued, ""),
            Err(error) => (error.outcome(), error.reason().as_str()),
        };
        let labels = [("door", self.caller.door.as_str()), ("outcome", outcome.as_str()), ("reason", reason)];
        metrics::counter!("carnet_exchanges_total", &labels).increment(1);
        metrics::histogram!("carnet_exchange_seconds", "outcome" => outcome.as_str()).record(took);
        let detail = result.as_ref().err().map(ExchangeError::detail).unwrap_or_default();
        let subject = self.identity.as_ref().map(|identity| identity.subject()).unwrap_or_default();
        let rules = self.grants.iter().map(|grant| grant.rule().as_str()).collect::<Vec<_>>().join(",");
        let cached = result.as_ref().is_ok_and(|credentials| credentials.iter().all(|credential| credential.cached));
        tracing::info!(
            exchange.id = %self.exchange_id, exchange.outcome = outcome.as_str(), exchange.reason = reason, exchange.detail = detail,
            subject.id = subject, grant.rule = rules, target.names = self.targets.join(","), job.id = self.job.id.as_deref(),
            cache.hit = cached, peer.address = self.caller.address, duration_us = took.as_micros() as u64,
            "{} {} for `{subject}`", outcome.as_str(), self.targets.join(",")
        );
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({})", self.exchange_id)
    }
}

#[cfg(test)]
mod tests;

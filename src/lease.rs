//! A grant that outlives its token: open, beat, extend, credentials, watch, end. Its credentials come through the same
//! [`Exchange`] as all others, so every rule is asked again at each of them.

mod ending;
mod ends;
mod extend;
mod pace;
mod state;
mod store;
mod token;
mod upkeep;
mod watch;
mod writer;

pub use state::{End, EndKind, Lease, LeaseFilter};
#[cfg(any(test, feature = "testing"))]
pub use store::FakeLeaseStore;
pub use store::{Applied, Change, Found, LeaseQuery, LeaseStore, LeaseStoreError};
pub use watch::{Update, Watch};

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use subtle::ConstantTimeEq as _;
use tokio::time::timeout;
use uuid::Uuid;

use self::ends::Ends;
use self::pace::Pace;
use self::writer::Writer;
use crate::audit::{AuditRecord, Outcome};
use crate::clock::{Clock, whole_milliseconds};
use crate::exchange::{
    Caller, Exchange, ExchangeError, ExchangeRequest, Exchanged, IssuedCredential, Proof, TargetRequest,
};
use crate::limit::Peer;
use crate::policy::{ExcessScopes, Tenure};
use crate::secret::Secret;
use crate::subject::VerifiedIdentity;
use crate::target::Job;

/// All leases of the store, as this replica serves them.
#[derive(Debug)]
pub struct Leases {
    exchange: Arc<Exchange>,
    store: Arc<dyn LeaseStore>,
    writer: Writer,
    ends: Arc<Ends>,
    pace: Pace,
    clock: Arc<dyn Clock>,
}

/// A subject token as it was shown: RFC 8693 `subject_token` and `subject_token_type`.
#[derive(Debug, Clone)]
pub struct SubjectProof {
    pub token: Secret,
    pub token_type: String,
}

#[derive(Debug)]
pub struct OpenRequest {
    pub proof: SubjectProof,
    pub targets: Vec<TargetRequest>,
    pub job: Arc<Job>,
    /// Absent: as long as the job is expected to take.
    pub duration: Option<Duration>,
    /// What the door could not read.
    pub complaint: Option<ExchangeError>,
    pub caller: Caller,
}

#[derive(Debug)]
pub struct Opened {
    pub lease: Lease,
    /// Handed out once; the broker keeps its digest.
    pub lease_token: Secret,
    pub exchange_id: Uuid,
    pub credentials: Vec<IssuedCredential>,
}

/// A refusal, under the id that its record has.
#[derive(Debug)]
pub struct Failed {
    pub exchange_id: Uuid,
    pub error: ExchangeError,
}

/// An open lease, and who opened it.
type Held = (Lease, Arc<VerifiedIdentity>);

impl Failed {
    pub(crate) fn new(error: impl Into<ExchangeError>) -> Self {
        Self { exchange_id: Uuid::now_v7(), error: error.into() }
    }
}

impl From<LeaseStoreError> for Failed {
    fn from(error: LeaseStoreError) -> Self {
        Self::new(ExchangeError::Leases(Arc::new(error)))
    }
}

impl Leases {
    /// `renewals_per_second`: how many watches get new credentials in a second, when many want them at once.
    pub fn start(exchange: Arc<Exchange>, store: Arc<dyn LeaseStore>, renewals_per_second: NonZeroU32) -> Arc<Self> {
        let (writer, clock) = (Writer::start(store.clone()), exchange.clock.clone());
        let (ends, pace) = (Arc::default(), Pace::start(renewals_per_second));
        Arc::new(Self { exchange, store, writer, ends, pace, clock })
    }

    /// The lease with its first credentials, all or nothing.
    pub async fn open(self: &Arc<Self>, request: OpenRequest) -> Result<Opened, Failed> {
        let this = self.clone();
        detached(async move { this.open_whole(request).await }).await
    }

    async fn open_whole(&self, request: OpenRequest) -> Result<Opened, Failed> {
        let OpenRequest { proof, targets, job, duration, complaint, caller } = request;
        let (id, lease_token) = (Uuid::now_v7(), token::generate());
        let asked = ExchangeRequest {
            proof: Proof::SubjectToken { token: proof.token, token_type: proof.token_type },
            tenure: Tenure::Opening(duration),
            lease_id: Some(id),
            targets: targets.clone(),
            job: job.clone(),
            excess: ExcessScopes::Refuse,
            caller,
        };
        let Exchanged { exchange_id, result } = match complaint {
            None => self.exchange.run(asked).await,
            Some(error) => self.exchange.refuse(asked, error).await,
        };
        let credentials = result.map_err(|error| Failed { exchange_id, error })?;
        let terms = credentials.iter().filter_map(IssuedCredential::lease);
        let (heartbeat, not_after) =
            (terms.clone().map(|terms| terms.heartbeat).min(), terms.map(|terms| terms.ends_at).min());
        let holder = credentials.first().map(IssuedCredential::holder).cloned();
        let (Some(heartbeat), Some(not_after), Some(holder)) = (heartbeat, not_after, holder) else {
            return Err(Failed { exchange_id, error: ExchangeError::Internal });
        };
        let (now, not_after) = (whole_milliseconds(self.clock.now()), whole_milliseconds(not_after));
        let lease = Lease {
            id,
            token_sha256: lease_token.sha256(),
            subject: holder.subject().to_owned(),
            job,
            targets: targets.into(),
            opened_at: now,
            proved_at: now,
            not_after,
            heartbeat,
            heartbeat_before: not_after.min(now + heartbeat),
            end: None,
        };
        let opening = Change::Open { lease: Box::new(lease.clone()), identity: holder.snapshot() };
        self.writer.apply(opening).await.map_err(|error| Failed { exchange_id, ..error.into() })?;
        self.exchange.limits.found_lease(&lease.token_sha256);
        self.remember(id, &credentials);
        count("open");
        Ok(Opened { lease, lease_token, exchange_id, credentials })
    }

    /// A sign of life.
    pub async fn beat(self: &Arc<Self>, lease_token: &Secret, peer: &Peer) -> Result<Lease, Failed> {
        let beaten = async {
            let lease = self.found(lease_token, peer).await?.lease;
            count("beat");
            self.beat_of(lease.id).await
        };
        beaten.await.map_err(|failed| self.unrecorded(failed, "a heartbeat", peer))
    }

    async fn beat_of(&self, id: Uuid) -> Result<Lease, Failed> {
        let now = self.clock.now();
        let mut applied = self.writer.apply(Change::Beat { id, now }).await?;
        if applied.lease.as_ref().is_some_and(|lease| lease.has_lapsed(now)) {
            self.begin().await?;
            applied = self.writer.apply(Change::Beat { id, now }).await?;
        }
        let Applied { lease, changed } = applied;
        let lease = lease.ok_or_else(|| Failed::new(ExchangeError::LeaseNotFound))?;
        match lease.end_at(now) {
            None if changed => Ok(lease),
            Some(end) => Err(Failed::new(ExchangeError::LeaseEnded(end.kind.as_str()))),
            None => Err(Failed::new(ExchangeError::Internal)),
        }
    }

    /// Credentials for those of the lease's targets that are named; for all of them where none is.
    pub async fn credentials(
        self: &Arc<Self>,
        lease_token: &Secret,
        targets: &[String],
        caller: Caller,
    ) -> Result<Update, Failed> {
        let held = match self.holder_of(lease_token, &caller.peer).await {
            Ok(held) => held,
            Err(failed) => return Err(self.refused(failed, None, targets, caller).await),
        };
        count("credentials");
        if let Err(limited) = self.exchange.charge(&held.1) {
            return Err(self.refused(Failed::new(limited), Some(held), targets, caller).await);
        }
        match watch::named(&held.0, targets) {
            Ok(targets) => self.credentials_of(held, targets, caller).await,
            Err(failed) => Err(self.refused(failed, Some(held), targets, caller).await),
        }
    }

    /// As [`credentials`](Self::credentials), of a lease that was open a while ago. What a cloud has to be asked for waits
    /// for its turn.
    async fn in_turn(
        &self,
        lease: &Lease,
        targets: Vec<TargetRequest>,
        caller: Caller,
        urgency: SystemTime,
    ) -> Result<Update, Failed> {
        let held = self.holder(self.look_up(&lease.token_sha256).await?)?;
        let request = request(&held, targets.clone(), caller.clone());
        let Some(missing) = self.exchange.missing(&request).await else {
            return self.credentials_of(held, targets, caller).await;
        };
        self.pace.turn(urgency, missing).await;
        // The turn may have come late.
        let held = self.holder(self.look_up(&lease.token_sha256).await?)?;
        self.credentials_of(held, targets, caller).await
    }

    /// Asks the rules again. Whoever ends the lease meanwhile is heard: nothing is handed out past an end.
    async fn credentials_of(&self, held: Held, targets: Vec<TargetRequest>, caller: Caller) -> Result<Update, Failed> {
        let (request, (lease, _identity)) = (request(&held, targets, caller), held);
        let Exchanged { exchange_id, result } = self.exchange.run(request).await;
        let credentials = result.map_err(|error| Failed { exchange_id, error })?;
        let now = self.look_up(&lease.token_sha256).await?.map(|found| found.lease);
        let now = now.ok_or(Failed { exchange_id, error: ExchangeError::LeaseNotFound })?;
        if let Some(end) = now.end_at(self.clock.now()) {
            for credential in &credentials {
                self.exchange.credentials.forget(&credential.key).await;
            }
            return Err(Failed { exchange_id, error: ExchangeError::LeaseEnded(end.kind.as_str()) });
        }
        self.remember(lease.id, &credentials);
        Ok(Update { lease: now, exchange_id, credentials })
    }

    /// The refusal of a lease token, or of what its holder wants, recorded as those of subject tokens are.
    async fn refused(&self, failed: Failed, held: Option<Held>, targets: &[String], caller: Caller) -> Failed {
        let target = |name: &String| TargetRequest { target: name.clone(), ..TargetRequest::default() };
        let (lease_id, job, proof) = match held {
            Some((lease, identity)) => (Some(lease.id), lease.job.clone(), Proof::Lease(identity)),
            None => {
                let nothing = Proof::SubjectToken { token: Secret::new(""), token_type: String::new() };
                (None, Arc::default(), nothing)
            }
        };
        let request = ExchangeRequest {
            proof,
            tenure: Tenure::Lease { proved_at: SystemTime::UNIX_EPOCH, not_after: SystemTime::UNIX_EPOCH },
            lease_id,
            targets: targets.iter().map(target).collect(),
            job,
            excess: ExcessScopes::Refuse,
            caller,
        };
        let Exchanged { exchange_id, result } = self.exchange.refuse(request, failed.error).await;
        Failed { exchange_id, error: result.err().unwrap_or(ExchangeError::Internal) }
    }

    /// The refusal of what hands out nothing and so has no record: the log has the id that the caller is told, as long as
    /// there are not too many of that address.
    fn unrecorded(&self, failed: Failed, what: &str, peer: &Peer) -> Failed {
        let is_said = match failed.error.outcome() {
            Outcome::Denied => self.exchange.is_recorded(None, peer, &failed.error),
            Outcome::Issued | Outcome::Done | Outcome::Failed => self.exchange.limits.is_recorded(peer),
        };
        if is_said {
            tracing::info!(
                exchange.id = %failed.exchange_id,
                exchange.reason = failed.error.reason().as_str(),
                peer.address = &*peer.address,
                "{what} was refused: {}",
                failed.error
            );
        }
        failed
    }

    /// The lease of an open lease token, and who opened it. Wrong and foreign tokens are unknown ones.
    async fn holder_of(self: &Arc<Self>, lease_token: &Secret, peer: &Peer) -> Result<Held, Failed> {
        self.holder(Some(self.found(lease_token, peer).await?))
    }

    fn holder(&self, found: Option<Found>) -> Result<Held, Failed> {
        let Found { lease, identity } = found.ok_or_else(|| Failed::new(ExchangeError::LeaseNotFound))?;
        if let Some(end) = lease.end_at(self.clock.now()) {
            return Err(Failed::new(ExchangeError::LeaseEnded(end.kind.as_str())));
        }
        // A program that reads claims by other rules than the one that opened it does not know who this is.
        let identity = identity?.and_then(|snapshot| VerifiedIdentity::restore(&snapshot));
        let identity = identity.ok_or_else(|| Failed::new(ExchangeError::Internal))?;
        // A tenant or an audience may have been taken out of the configuration since.
        self.exchange
            .verifier
            .still_accepts(&identity)
            .map_err(|refused| Failed::new(ExchangeError::Subject(refused)))?;
        Ok((lease, Arc::new(identity)))
    }

    /// Those who guess wait for each other. A look into the store is not broken off with its caller: that costs PostgreSQL's
    /// pool a connection.
    async fn found(self: &Arc<Self>, lease_token: &Secret, peer: &Peer) -> Result<Found, Failed> {
        let (digest, limits) = (lease_token.sha256(), &self.exchange.limits);
        let turn = timeout(TURN_DEADLINE, limits.lease_token(&digest, peer)).await;
        let turn = turn.map_err(|_elapsed| Failed::new(ExchangeError::Overloaded))?;
        let this = self.clone();
        let found = detached(async move {
            let _turn = turn;
            Ok(this.look_up(&digest).await?)
        });
        // The store compared digests of 256 random bits; this comparison takes the same time for all.
        let found = found.await?.filter(|found| bool::from(found.lease.token_sha256.ct_eq(&digest)));
        let found = found.ok_or_else(|| Failed::new(ExchangeError::LeaseNotFound))?;
        if found.lease.is_active(self.clock.now()) {
            limits.found_lease(&digest);
            peer.trust();
        }
        Ok(found)
    }

    /// A lease that seems to have lapsed may do so only because nobody could take its heartbeat: that is settled first.
    async fn look_up(&self, token_sha256: &[u8; 32]) -> Result<Option<Found>, LeaseStoreError> {
        let found = self.store.find(token_sha256).await?;
        if !found.as_ref().is_some_and(|found| found.lease.has_lapsed(self.clock.now())) {
            return Ok(found);
        }
        self.begin().await?;
        self.store.find(token_sha256).await
    }

    pub async fn list(&self, query: &LeaseQuery) -> Result<Vec<(Lease, Option<End>)>, Failed> {
        let now = self.clock.now();
        let leases = self.store.list(query, now).await?;
        Ok(leases.into_iter().map(|lease| (lease.end_at(now), lease)).map(|(end, lease)| (lease, end)).collect())
    }

    fn remember(&self, id: Uuid, credentials: &[IssuedCredential]) {
        self.ends.handed_out(id, credentials.iter().map(|credential| credential.key));
    }
}

fn request(
    (lease, identity): &(Lease, Arc<VerifiedIdentity>),
    targets: Vec<TargetRequest>,
    caller: Caller,
) -> ExchangeRequest {
    ExchangeRequest {
        proof: Proof::Lease(identity.clone()),
        tenure: Tenure::Lease { proved_at: lease.proved_at, not_after: lease.not_after },
        lease_id: Some(lease.id),
        targets,
        job: lease.job.clone(),
        excess: ExcessScopes::Refuse,
        caller,
    }
}

/// What a record says of a lease, whatever happened to it.
fn record(lease: &Lease, exchange_id: Uuid, time: SystemTime, action: &'static str, outcome: Outcome) -> AuditRecord {
    let targets: Vec<&str> = lease.targets.iter().map(|target| target.target.as_str()).collect();
    AuditRecord {
        exchange_id,
        time,
        action,
        lease_id: Some(lease.id),
        outcome,
        reason: None,
        subject: lease.subject.clone(),
        entra_token_id: String::new(),
        client_id: String::new(),
        target: targets.join(","),
        rule: String::new(),
        job: lease.job.clone(),
        lifetime: None,
        cached: false,
        issued: None,
        identity: None,
        attributes: Vec::new(),
    }
}

/// To its end, although the caller may leave: what was begun is not left half done.
pub(crate) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failed>> + Send + 'static,
) -> Result<T, Failed> {
    tokio::spawn(work).await.unwrap_or_else(|_panic| Err(Failed::new(ExchangeError::Internal)))
}

/// A store that answers takes a thousandth of it.
const TURN_DEADLINE: Duration = Duration::from_secs(5);

fn count(action: &'static str) {
    metrics::counter!("carnet_lease_calls_total", "action" => action).increment(1);
}

#[cfg(test)]
mod tests;

//! Who may have more of the broker now, and what is put on record of those who may not.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::Instrument as _;
use uuid::Uuid;

use super::{Exchange, ExchangeError, Proof, stage};
use crate::audit::{AuditRecord, Outcome};
use crate::limit::{Holder, Omission, Peer, Share};
use crate::reason::Reason;
use crate::subject::{Identity, SubjectError, SubjectToken, VerifiedIdentity};

/// Which of the broker's own limits keeps a caller waiting. The texts go to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Exchanges in a time.
    Caller,
    /// Exchanges at once.
    Places,
    /// Refused tokens of the caller's address in a time.
    Peer,
}

impl Limit {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Places => "places",
            Self::Peer => "peer",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Caller => "this caller asks for more than its share: use a credential until its refresh_after",
            Self::Places => "this caller has more than its share of exchanges under way",
            Self::Peer => "too many tokens from this address were refused",
        })
    }
}

impl ExchangeError {
    /// Somebody has to wait; it is counted.
    pub(crate) fn limited(limit: Limit, wait: Duration) -> Self {
        metrics::counter!("carnet_limited_total", "limit" => limit.as_str()).increment(1);
        Self::Limited { limit, wait }
    }
}

impl Exchange {
    /// Whom `token` shows. One that was verified before costs next to nothing; any other costs a signature check, which an
    /// address that shows bad ones cannot go on causing.
    pub(crate) async fn verified(
        &self,
        token: &SubjectToken,
        peer: &Peer,
    ) -> Result<Arc<VerifiedIdentity>, ExchangeError> {
        if let Some(identity) = self.verifier.remembered(token) {
            peer.trust();
            return Ok(identity);
        }
        let pretended = || token.unverified_holder();
        self.limits.hear(peer, pretended).map_err(|wait| ExchangeError::limited(Limit::Peer, wait))?;
        // While a key is fetched, many may wait for it.
        let _waiting = self.limits.place_of_peer(peer, self.places.available_permits()).ok_or_else(full)?;
        match self.verifier.verify(token).instrument(stage("verify")).await {
            Ok(identity) => {
                peer.trust();
                self.limits.verified(holder(&identity));
                Ok(identity)
            }
            Err(error) => {
                // That keys are away is nobody's fault out there.
                if !matches!(error, SubjectError::KeysUnavailable { .. }) {
                    self.limits.refused(peer, pretended);
                }
                Err(error.into())
            }
        }
    }

    /// Takes an exchange from what its verified caller may have.
    ///
    /// # Errors
    /// [`ExchangeError::Limited`].
    pub(crate) fn charge(&self, identity: &Identity) -> Result<(), ExchangeError> {
        let charged = self.limits.exchange(holder(identity));
        charged.map_err(|wait| ExchangeError::limited(Limit::Caller, wait))
    }

    /// A place among the exchanges under way. What comes by a lease was charged where its holder asked for it: the broker's
    /// own renewals cost the holder nothing.
    pub(super) fn place(&self, proof: &Proof, identity: &Identity) -> Result<Share, ExchangeError> {
        match proof {
            Proof::SubjectToken { .. } => self.charge(identity)?,
            Proof::Lease(_) => {}
        }
        self.limits.place_of_caller(holder(identity), self.places.available_permits()).ok_or_else(full)
    }

    /// Recording every refusal of a flood would be the flood's success: it would fill the disk, and good callers would wait
    /// for it to be written. What an address or a caller does beyond its limit is counted, and recorded in all.
    ///
    /// `subject`: who it was, if they were verified.
    pub(crate) fn is_recorded(&self, subject: Option<&str>, peer: &Peer, error: &ExchangeError) -> bool {
        let is_limited = matches!(error, ExchangeError::Limited { .. });
        if !is_limited && (subject.is_some() || self.limits.is_recorded(peer)) {
            return true;
        }
        self.limits.unrecorded.add(subject, &peer.shown(), error.reason(), self.clock.now())
    }

    /// Who floods over a connection on which nobody was ever verified waits for each refusal, so that the broker's time is
    /// for others.
    pub(crate) async fn hold_back(&self, error: &ExchangeError, peer: &Peer) {
        if matches!(error, ExchangeError::Limited { limit: Limit::Peer, .. }) && !peer.is_trusted() {
            let held = self.limits.held_back.one_more();
            // Not all at once again: a flood's refusals come in step otherwise, and good callers wait behind each wave.
            sleep(held.wait.mul_f64(rand::random_range(0.5..1.5))).await;
        }
    }

    /// Puts what was counted on record, now and then.
    pub async fn keep_recording_what_was_left_out(self: Arc<Self>) {
        loop {
            sleep(EVERY).await;
            self.record_what_was_left_out().await;
        }
    }

    /// One record for each caller or address of whom something was left out.
    pub async fn record_what_was_left_out(&self) {
        let omissions = self.limits.unrecorded.take();
        metrics::gauge!("carnet_limited_callers").set(omissions.len() as f64);
        if omissions.is_empty() {
            return;
        }
        let records = omissions.iter().map(|omission| self.in_all(omission)).collect();
        if let Err(error) = self.audit.record(records).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "what was left out of the audit log was not recorded in all either"
            );
        }
        for omission in omissions {
            let (count, who) = (omission.count(), omission.who());
            tracing::warn!(
                subject.id = omission.subject,
                peer.address = omission.peer,
                limited.count = count,
                "{count} refusals of {who} were recorded in all, not one by one"
            );
        }
    }

    fn in_all(&self, omission: &Omission) -> AuditRecord {
        let reasons: Vec<String> = omission.reasons.iter().map(|(reason, count)| format!("{reason}={count}")).collect();
        // While Entra is away, everybody is a stranger, and that is nobody's fault out there.
        let ours = omission.reasons.keys().all(|reason| *reason == Reason::KeysUnavailable.as_str());
        let since = omission.since.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        AuditRecord {
            exchange_id: Uuid::now_v7(),
            time: self.clock.now(),
            action: LEFT_OUT,
            lease_id: None,
            outcome: if ours { Outcome::Failed } else { Outcome::Denied },
            reason: Some(if ours { Reason::KeysUnavailable } else { Reason::RateLimited }),
            subject: omission.subject.clone(),
            entra_token_id: String::new(),
            client_id: String::new(),
            target: String::new(),
            rule: String::new(),
            job: Arc::default(),
            lifetime: None,
            cached: false,
            issued: None,
            identity: None,
            attributes: vec![
                ("peer", omission.peer.clone()),
                ("refusals", omission.count().to_string()),
                ("reasons", reasons.join(",")),
                ("since", since.to_string()),
            ],
        }
    }
}

fn holder(identity: &Identity) -> Holder {
    (identity.tenant(), identity.object())
}

fn full() -> ExchangeError {
    ExchangeError::limited(Limit::Places, Duration::from_secs(1))
}

/// The action of a record that stands for many refusals.
const LEFT_OUT: &str = "exchange.limited";

const EVERY: Duration = Duration::from_secs(60);

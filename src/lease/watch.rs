//! A watch: the current credentials at once, then every replacement before the last one expires, until the lease ends.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::sleep;
use uuid::Uuid;

use super::ends::Watching;
use super::{Failed, Lease, Leases, count};
use crate::exchange::{Caller, ExchangeError, IssuedCredential, TargetRequest};
use crate::line::one_line;
use crate::secret::Secret;

/// The lease as it is, with credentials that were not sent before.
#[derive(Debug)]
pub struct Update {
    pub lease: Lease,
    pub exchange_id: Uuid,
    pub credentials: Vec<IssuedCredential>,
}

/// Beats for its lease for as long as it lives. Holds little: who opened the lease is read again for each credential.
#[derive(Debug)]
pub struct Watch {
    leases: Arc<Leases>,
    lease: Lease,
    caller: Caller,
    slots: Vec<Slot>,
    watching: Watching,
    beat_at: SystemTime,
    over: bool,
    _counted: Counted,
}

/// One target of the watch.
#[derive(Debug)]
struct Slot {
    target: TargetRequest,
    token_sha256: Option<[u8; 32]>,
    /// Of the credential that was sent.
    expires_at: SystemTime,
    /// When to ask again.
    due_at: SystemTime,
}

impl Leases {
    /// # Errors
    /// As [`credentials`](Self::credentials), whose rules it follows; those that come later come from [`Watch::next`].
    pub async fn watch(
        self: &Arc<Self>,
        lease_token: &Secret,
        targets: &[String],
        caller: Caller,
    ) -> Result<Watch, Failed> {
        let held = match self.holder_of(lease_token, &caller.peer).await {
            Ok(held) => held,
            Err(failed) => return Err(self.refused(failed, None, targets, caller).await),
        };
        count("watch");
        if let Err(limited) = self.exchange.charge(&held.1) {
            return Err(self.refused(Failed::new(limited), Some(held), targets, caller).await);
        }
        let targets = match named(&held.0, targets) {
            Ok(targets) => targets,
            Err(failed) => return Err(self.refused(failed, Some(held), targets, caller).await),
        };
        let (lease, _identity) = held;
        let now = self.clock.now();
        let slot = |target: TargetRequest| Slot { target, token_sha256: None, expires_at: now, due_at: now };
        let slots = targets.into_iter().map(slot).collect();
        let watching = self.ends.watch(lease.id);
        let counted = Counted::new();
        Ok(Watch { leases: self.clone(), lease, caller, slots, watching, beat_at: now, over: false, _counted: counted })
    }
}

/// The lease's targets of these names; all of them where none is named.
pub(super) fn named(lease: &Lease, names: &[String]) -> Result<Vec<TargetRequest>, Failed> {
    if let Some(unknown) = names.iter().find(|name| !lease.targets.iter().any(|target| target.target == **name)) {
        let message = format!("{} is not one of the lease's", one_line(unknown, 63));
        return Err(Failed::new(ExchangeError::Request { field: "targets".to_owned(), message }));
    }
    let wanted = |target: &&TargetRequest| names.is_empty() || names.contains(&target.target);
    Ok(lease.targets.iter().filter(wanted).cloned().collect())
}

impl Watch {
    /// `None` after the end, which the last update tells.
    pub async fn next(&mut self) -> Option<Result<Update, Failed>> {
        while !self.over {
            let now = self.leases.clock.now();
            if self.watching.ended.is_cancelled() {
                return self.end().await;
            }
            // At the end too: the lease may have been extended since it was last looked at.
            if (now >= self.beat_at || now >= self.lease.not_after) && self.beat().await.is_err() {
                return self.end().await;
            }
            if self.slots.iter().any(|slot| now >= slot.due_at) {
                // Boxed: the hours between two replacements should not carry what a moment needs.
                match Box::pin(self.refresh(now)).await {
                    Ok(Some(update)) => return Some(Ok(update)),
                    Ok(None) => {}
                    Err(failed) => match failed.error {
                        ExchangeError::LeaseEnded(_) | ExchangeError::LeaseNotFound => return self.end().await,
                        _ => {
                            self.over = true;
                            return Some(Err(failed));
                        }
                    },
                }
            }
            self.wait().await;
        }
        None
    }

    /// Until something is due, or the lease ends.
    async fn wait(&self) {
        let due = self.slots.iter().map(|slot| slot.due_at).chain([self.beat_at, self.lease.not_after]).min();
        let wait = due.map(|due| self.until(due)).unwrap_or(LONGEST_WAIT);
        tokio::select! {
            () = self.watching.ended.cancelled() => {}
            () = sleep(wait) => {}
        }
    }

    /// How long to sleep before looking again: a clock that is set must not make a watch sleep through its lease.
    fn until(&self, due: SystemTime) -> Duration {
        let wait = due.duration_since(self.leases.clock.now()).unwrap_or_default();
        wait.clamp(SHORTEST_WAIT, LONGEST_WAIT)
    }

    /// # Errors
    /// The lease has ended.
    async fn beat(&mut self) -> Result<(), Failed> {
        match self.leases.beat_of(self.lease.id).await {
            Ok(lease) => {
                self.lease = lease;
                self.beat_at = self.leases.clock.now() + between(0.4, 0.5, self.lease.heartbeat);
                Ok(())
            }
            Err(failed) if matches!(failed.error, ExchangeError::LeaseEnded(_) | ExchangeError::LeaseNotFound) => {
                Err(failed)
            }
            // The store is away: soon again, for the heartbeat has half of its time left.
            Err(_unavailable) => {
                self.beat_at = self.leases.clock.now() + between(0.5, 1.0, BEAT_AGAIN);
                Ok(())
            }
        }
    }

    /// Asks for what is due; `None` where nothing new came of it.
    async fn refresh(&mut self, now: SystemTime) -> Result<Option<Update>, Failed> {
        let due: Vec<usize> =
            self.slots.iter().enumerate().filter(|(_, slot)| now >= slot.due_at).map(|(number, _)| number).collect();
        let due_slots = || due.iter().filter_map(|number| self.slots.get(*number));
        let urgency = due_slots().map(|slot| slot.expires_at).min().unwrap_or(now);
        let targets = due_slots().map(Slot::request).collect();
        let first = self.slots.iter().all(|slot| slot.token_sha256.is_none());
        let (leases, lease, caller) = (self.leases.clone(), self.lease.clone(), self.caller.clone());
        let mut asking = pin!(async move { leases.in_turn(&lease, targets, caller, urgency).await });
        // In a storm the turn may come late, and the lease must not lapse meanwhile.
        let answer = loop {
            tokio::select! {
                () = self.watching.ended.cancelled() => return Ok(None),
                answer = asking.as_mut() => break answer,
                () = sleep(self.until(self.beat_at)) => self.beat().await?,
            }
        };
        let now = self.leases.clock.now();
        let due = due.into_iter();
        match answer {
            Ok(mut update) => {
                self.lease = update.lease.clone();
                let mut new = Vec::with_capacity(update.credentials.len());
                for (number, credential) in due.zip(update.credentials.drain(..)) {
                    if let Some(slot) = self.slots.get_mut(number)
                        && slot.take(&credential, now)
                    {
                        new.push(credential);
                    }
                }
                Ok((!new.is_empty()).then_some(Update { credentials: new, ..update }))
            }
            Err(failed) if first || is_final(&failed.error) => Err(failed),
            // What was sent is still good: those who failed together do not come back together.
            Err(_failed) => {
                for number in due {
                    if let Some(slot) = self.slots.get_mut(number) {
                        let left = slot.expires_at.duration_since(now).unwrap_or_default();
                        slot.due_at = now + between(0.1, 0.3, left).clamp(RETRY_SOONEST, RETRY_LATEST);
                    }
                }
                Ok(None)
            }
        }
    }

    /// The last update: how the lease ended.
    async fn end(&mut self) -> Option<Result<Update, Failed>> {
        self.over = true;
        let now = self.leases.clock.now();
        match self.leases.look_up(&self.lease.token_sha256).await {
            Ok(Some(found)) => {
                let mut lease = found.lease;
                lease.end = lease.end_at(now);
                Some(Ok(Update { lease, exchange_id: Uuid::now_v7(), credentials: Vec::new() }))
            }
            Ok(None) => Some(Err(Failed::new(ExchangeError::LeaseNotFound))),
            Err(error) => Some(Err(error.into())),
        }
    }
}

impl Slot {
    fn request(&self) -> TargetRequest {
        let beyond = self.token_sha256.map(|_sent| self.expires_at);
        TargetRequest { beyond, ..self.target.clone() }
    }

    /// Whether it is a new one.
    fn take(&mut self, credential: &IssuedCredential, now: SystemTime) -> bool {
        let token_sha256 = credential.token_sha256();
        let new = self.token_sha256 != Some(token_sha256);
        let left = credential.expires_at().duration_since(now).unwrap_or_default();
        // Where the cloud has no better one yet, ask again in half of the time that is left.
        self.due_at = if new { credential.refresh_after } else { now + between(0.4, 0.5, left).max(RETRY_SOONEST) };
        (self.token_sha256, self.expires_at) = (Some(token_sha256), credential.expires_at());
        new
    }
}

/// An open watch in the metrics.
#[derive(Debug)]
struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::gauge!("carnet_watches").increment(1.0);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("carnet_watches").decrement(1.0);
    }
}

/// Whether asking again, while what was sent is good, cannot help.
fn is_final(error: &ExchangeError) -> bool {
    match error {
        ExchangeError::Request { .. }
        | ExchangeError::Subject(_)
        | ExchangeError::Policy(_)
        | ExchangeError::LeaseNotFound
        | ExchangeError::LeaseEnded(_)
        | ExchangeError::ShuttingDown => true,
        ExchangeError::Credential { .. }
        | ExchangeError::Audit(_)
        | ExchangeError::Leases(_)
        | ExchangeError::Overloaded
        | ExchangeError::LogReaders(_)
        | ExchangeError::Limited { .. }
        | ExchangeError::Internal => false,
    }
}

fn between(from: f64, to: f64, length: Duration) -> Duration {
    length.mul_f64(rand::random_range(from..=to))
}

const SHORTEST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

const BEAT_AGAIN: Duration = Duration::from_secs(2);

const RETRY_SOONEST: Duration = Duration::from_secs(2);
const RETRY_LATEST: Duration = Duration::from_secs(120);

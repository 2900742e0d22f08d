//! The credentials that the agent holds. Key: target and ID token audience. Lifetime: the credential's own. Refreshed in
//! the background from `refresh_after` on, those that nobody asks for any more excepted. While the broker is away the last good one is used until it
//! expires; a denial drops it. Refusals are remembered for seconds. Bound: [`MAX_SLOTS`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::source::{Credential, Credentials, Kind, Refusal, Wanted};
use crate::clock::Clock;

#[derive(Debug)]
pub struct Held {
    source: Arc<dyn Credentials>,
    clock: Arc<dyn Clock>,
    slots: Mutex<HashMap<Wanted, Slot>>,
    ended: OnceLock<Refusal>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Also when it has expired: it says what the target is.
    credential: Option<Arc<Credential>>,
    /// Until when this is the answer.
    refusal: Option<(Refusal, Instant)>,
    flight: Option<Flight>,
    /// In a row.
    failures: u32,
    /// A broker that hands out what is nearly over, or a client that finds fault with it, causes no storm.
    not_before: Option<Instant>,
    used: Option<Instant>,
}

/// A call of the source that is under way, for all who wait.
type Flight = Shared<BoxFuture<'static, Result<Arc<Credential>, Refusal>>>;

/// What there is at a moment.
enum Found {
    Good(Arc<Credential>),
    /// Good, but clients would ask again at once for want of life in it; its successor is on the way.
    Short(Arc<Credential>, Flight),
    Refused(Refusal, Instant),
    Flight(Flight),
}

impl Held {
    pub fn new(source: Arc<dyn Credentials>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { source, clock, slots: Mutex::default(), ended: OnceLock::new() })
    }

    /// Puts in what came with the lease.
    pub fn put(&self, wanted: Wanted, credential: Credential) {
        let credential = credential.arrived(self.clock.now());
        self.slots().entry(wanted).or_default().credential = Some(Arc::new(credential));
    }

    /// A credential that is good now. Where there is none, the caller is held for at most `hold`, in which the source is
    /// asked again as often as it makes sense.
    ///
    /// # Errors
    /// The source's refusal; [`Kind::Away`] where the time was too short.
    pub async fn get(self: &Arc<Self>, wanted: &Wanted, hold: Duration) -> Result<Arc<Credential>, Refusal> {
        let deadline = Instant::now() + hold;
        loop {
            if let Some(ended) = self.ended.get() {
                return Err(ended.clone());
            }
            match self.look(wanted) {
                Found::Good(credential) => return Ok(credential),
                Found::Short(credential, flight) => {
                    return match timeout(SHORT_WAIT, flight).await {
                        Ok(Err(refusal)) if refusal.kind == Kind::Denied => Err(refusal),
                        Ok(Ok(better)) => Ok(better),
                        Ok(Err(_)) | Err(_) => Ok(credential),
                    };
                }
                Found::Refused(refusal, until) if until > deadline || !matches!(refusal.kind, Kind::Away(_)) => {
                    return Err(refusal);
                }
                Found::Refused(_away, until) => sleep_until(until).await,
                Found::Flight(flight) => match timeout_at(deadline, flight).await {
                    Ok(Ok(credential)) => return Ok(credential),
                    // It is remembered: the next look decides.
                    Ok(Err(_refusal)) => {}
                    Err(_elapsed) => return Err(Refusal::away("the broker has not answered yet")),
                },
            }
        }
    }

    /// Refreshes what is due without waiting for a request: SDKs ask again only when theirs is nearly over, and an outage
    /// that begins then would be noticed. What nobody has asked for in the time of one credential is left alone.
    pub async fn keep_fresh(self: &Arc<Self>) {
        loop {
            sleep(REFRESH_PAUSE).await;
            self.refresh_due();
        }
    }

    fn refresh_due(self: &Arc<Self>) {
        if self.ended.get().is_some() {
            return;
        }
        let now = self.clock.now();
        for (wanted, slot) in self.slots().iter_mut() {
            slot.refusal.take_if(|(_refusal, until)| *until <= Instant::now());
            let is_wanted =
                |held: &Credential| slot.used.is_some_and(|used| used.elapsed() < held.life().max(IDLE_AFTER));
            let is_due = |held: &Credential| held.left(now) > LEAST_LEFT && held.is_due(now) && is_wanted(held);
            if slot.credential.as_deref().is_some_and(is_due) && slot.refusal.is_none() && !slot.rests() {
                // It lands by itself.
                let _flight = self.fly(wanted, slot);
            }
        }
    }

    /// The client has found the token of this digest to be no good. Where it is the one that is held, the broker is asked
    /// again, not more often than every [`REFRESH_PAUSE`]. Its answer may be the same token: the broker has a cache too,
    /// and the contract has no word for leaving it out.
    pub async fn renew(self: &Arc<Self>, wanted: &Wanted, bad_sha256: &[u8; 32]) {
        let flight = {
            let mut slots = self.slots();
            let Some(slot) = slots.get_mut(wanted) else { return };
            let is_held = slot.credential.as_ref().is_some_and(|held| held.token.sha256() == *bad_sha256);
            if !is_held || slot.rests() {
                return;
            }
            self.fly(wanted, slot)
        };
        // Whatever comes of it, what is held is given next.
        let _ = timeout(RENEW_WAIT, flight).await;
    }

    /// The newest credential of `wanted`, be it expired.
    pub fn last(&self, wanted: &Wanted) -> Option<Arc<Credential>> {
        self.slots().get(wanted).and_then(|slot| slot.credential.clone())
    }

    /// From now on everybody is refused: the lease has ended.
    pub fn end(&self, refusal: Refusal) {
        let _first_reason_stays = self.ended.set(refusal);
    }

    fn look(self: &Arc<Self>, wanted: &Wanted) -> Found {
        let (now, monotonic) = (self.clock.now(), Instant::now());
        let mut slots = self.slots();
        if slots.len() >= MAX_SLOTS && !slots.contains_key(wanted) {
            make_room(&mut slots);
        }
        if slots.len() >= MAX_SLOTS && !slots.contains_key(wanted) {
            let refusal = Refusal::away("too many ID tokens are being asked for at once");
            return Found::Refused(refusal, monotonic + OUTAGE_MEMORY);
        }
        let slot = slots.entry(wanted.clone()).or_default();
        slot.used = Some(monotonic);
        slot.refusal.take_if(|(_refusal, until)| *until <= monotonic);
        let live = slot.credential.clone().filter(|held| held.left(now) > LEAST_LEFT);
        match (live, &slot.refusal) {
            (Some(held), refusal) => {
                if !held.is_due(now) || refusal.is_some() || slot.flight.is_none() && slot.rests() {
                    return Found::Good(held);
                }
                let is_short = held.left(now) < FRESH;
                let flight = self.fly(wanted, slot);
                if is_short { Found::Short(held, flight) } else { Found::Good(held) }
            }
            (None, Some((refusal, until))) => Found::Refused(refusal.clone(), *until),
            (None, None) => Found::Flight(self.fly(wanted, slot)),
        }
    }

    /// The flight under way, else a new one, in a task of its own: whoever waits for it may leave.
    fn fly(self: &Arc<Self>, wanted: &Wanted, slot: &mut Slot) -> Flight {
        if let Some(flight) = &slot.flight {
            return flight.clone();
        }
        let (this, wanted, source) = (self.clone(), wanted.clone(), self.source.clone());
        let asked = wanted.clone();
        // One task more than it seems to need: a call that panics must land too, or its slot would stay taken.
        let call = tokio::spawn(timeout(FLIGHT_DEADLINE, async move { source.credential(&asked).await }));
        let task = tokio::spawn(async move {
            let landed = match call.await {
                Ok(Ok(answered)) => answered,
                Ok(Err(_elapsed)) => Err(Refusal::away("the broker did not answer in time")),
                Err(_panic) => Err(Refusal::away("the call was cut off")),
            };
            this.land(&wanted, landed)
        });
        let flight = task.map(|joined| joined.unwrap_or_else(|_gone| Err(Refusal::away("the call was cut off"))));
        slot.flight.insert(flight.boxed().shared()).clone()
    }

    fn land(&self, wanted: &Wanted, landed: Result<Credential, Refusal>) -> Result<Arc<Credential>, Refusal> {
        let (now, wall) = (Instant::now(), self.clock.now());
        let mut slots = self.slots();
        let slot = slots.entry(wanted.clone()).or_default();
        slot.flight = None;
        let landed = landed.map(|credential| credential.arrived(wall)).and_then(|credential| {
            if credential.left(wall) > LEAST_LEFT {
                return Ok(credential);
            }
            // What the target is gets known all the same.
            slot.credential.get_or_insert_with(|| Arc::new(credential));
            Err(Refusal::away("the broker's credential is over already: are the clocks right?"))
        });
        match landed {
            Ok(credential) => {
                slot.not_before = Some(now + REFRESH_PAUSE);
                slot.refusal = None;
                if std::mem::take(&mut slot.failures) > 0 {
                    tracing::info!(target.name = wanted.target, "there are credentials again");
                }
                Ok(slot.credential.insert(Arc::new(credential)).clone())
            }
            Err(refusal) => {
                if slot.failures == 0 {
                    tracing::warn!(target.name = wanted.target, "no credential: {refusal}");
                }
                let memory = match refusal.kind {
                    Kind::Denied | Kind::Failed => REFUSAL_MEMORY,
                    Kind::Away(wait) => {
                        let longer = OUTAGE_MEMORY * 2u32.saturating_pow(slot.failures.min(8));
                        wait.max(longer.min(OUTAGE_USUAL)).min(OUTAGE_LONGEST)
                    }
                };
                slot.failures = slot.failures.saturating_add(1);
                if refusal.kind == Kind::Denied
                    && let Some(held) = &mut slot.credential
                {
                    // What the target is stays known.
                    *held = Arc::new(Credential { expires_at: SystemTime::UNIX_EPOCH, ..Credential::clone(held) });
                }
                slot.refusal = Some((refusal.clone(), now + memory));
                Err(refusal)
            }
        }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<Wanted, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn rests(&self) -> bool {
        self.not_before.is_some_and(|time| Instant::now() < time)
    }
}

/// Drops the ID token that was asked for longest ago; the targets' own credentials stay.
fn make_room(slots: &mut HashMap<Wanted, Slot>) {
    let idle = slots.iter().filter(|(wanted, slot)| wanted.id_token_audience.is_some() && slot.flight.is_none());
    if let Some(oldest) = idle.min_by_key(|(_wanted, slot)| slot.used).map(|(wanted, _slot)| wanted.clone()) {
        slots.remove(&oldest);
    }
}

/// ID tokens are kept by audience, and audiences come from clients.
const MAX_SLOTS: usize = 256;

/// With less than this, clients ask again at each call: Google's libraries from 3 min 45 s to 5 min on, and a minute for
/// the way.
const FRESH: Duration = Duration::from_secs(360);

/// What lives shorter is dead on arrival.
const LEAST_LEFT: Duration = Duration::from_secs(10);

/// For a better credential than a short one.
const SHORT_WAIT: Duration = Duration::from_secs(1);

const RENEW_WAIT: Duration = Duration::from_secs(5);

/// The clouds' usual hour and a little: what the broker's cache gives may live shorter than what clients still have.
const IDLE_AFTER: Duration = Duration::from_secs(3900);

/// Between two refreshes of the same credential.
const REFRESH_PAUSE: Duration = Duration::from_secs(10);

/// A repaired rule or trust is noticed within this.
const REFUSAL_MEMORY: Duration = Duration::from_secs(5);

/// A broker that starts beside the job is found at once; doubled with each further failure.
const OUTAGE_MEMORY: Duration = Duration::from_millis(250);
/// After a few tries; the broker may wish for more.
const OUTAGE_USUAL: Duration = Duration::from_secs(2);
const OUTAGE_LONGEST: Duration = Duration::from_secs(10);

/// A call's own deadline is longer; nobody waits for it then.
const FLIGHT_DEADLINE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;

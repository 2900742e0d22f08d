//! The token in use: refreshed ahead, by one call however many wait, and kept until it ends where that fails.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use serde::Deserialize;

use super::{SourceError, SourceName};
use crate::clock::{Clock, from_unix_seconds};
use crate::secret::Secret;

/// A token and when it ends, by whoever gave it.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    pub token: Secret,
    pub expires_at: SystemTime,
}

impl Fetched {
    /// Ends when its giver says or when the token itself says, whichever is sooner.
    pub fn new(token: Secret, said: Option<SystemTime>) -> Option<Self> {
        let expires_at = [said, unverified_expiry(&token)].into_iter().flatten().min()?;
        Some(Self { token, expires_at })
    }
}

#[derive(Debug)]
pub(super) struct Held {
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    flight: Option<Flight>,
}

#[derive(Debug, Clone)]
struct Current {
    fetched: Fetched,
    refresh_at: SystemTime,
}

type Flight = Shared<BoxFuture<'static, Result<Secret, SourceError>>>;

impl Held {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Arc::default() }
    }

    /// The held token, or what `fetch` gives. A caller that goes away takes no fetch along: others may wait for it, and
    /// what it brings may have to be stored.
    pub async fn token<F>(&self, name: SourceName, fetch: impl FnOnce() -> F) -> Result<Secret, SourceError>
    where
        F: Future<Output = Result<Fetched, SourceError>> + Send + 'static,
    {
        let (good, flight) = {
            let mut state = locked(&self.state);
            let now = self.clock.now();
            let good = state.current.as_ref().filter(|current| now < current.fetched.expires_at);
            if let Some(current) = good.filter(|current| now < current.refresh_at) {
                return Ok(current.fetched.token.clone());
            }
            let good = good.map(|current| current.fetched.token.clone());
            // One that ended by a panic is over, too, though it did not say so.
            let flight = match state.flight.as_ref().filter(|flight| flight.peek().is_none()) {
                Some(flight) => flight.clone(),
                None => state.flight.insert(self.start(name, fetch())).clone(),
            };
            (good, flight)
        };
        match good {
            Some(token) => Ok(token),
            None => flight.await,
        }
    }

    fn start(
        &self,
        name: SourceName,
        fetch: impl Future<Output = Result<Fetched, SourceError>> + Send + 'static,
    ) -> Flight {
        let (clock, state) = (self.clock.clone(), self.state.clone());
        let running = tokio::spawn(async move {
            let fetched = fetch.await;
            let now = clock.now();
            let mut state = locked(&state);
            state.flight = None;
            match &fetched {
                Ok(new) => {
                    let refresh_at = refresh_at(now, new.expires_at);
                    state.current = Some(Current { fetched: new.clone(), refresh_at });
                }
                Err(error) => {
                    if let Some(current) = state.current.as_mut().filter(|current| now < current.fetched.expires_at) {
                        current.refresh_at = now + AFTER_FAILURE;
                        tracing::warn!(source = %name, %error, "the subject token could not be refreshed; it is kept");
                    }
                }
            }
            fetched.map(|fetched| fetched.token)
        });
        let ended = move |_panicked| SourceError::Unavailable { name, cause: "its fetch ended early".to_owned() };
        async move { running.await.map_err(ended)? }.boxed().shared()
    }
}

/// Five minutes before the end, or half-way where it lives two hours or more (facts of the Azure SDKs: what lives long is
/// renewed while its giver may still be away for long).
fn refresh_at(now: SystemTime, expires_at: SystemTime) -> SystemTime {
    let life = expires_at.duration_since(now).unwrap_or_default();
    let ahead = if life >= LONG_LIFE { life / 2 } else { LAST_MINUTES };
    now + life.checked_sub(ahead).unwrap_or(life / 2)
}

/// Read without any check, for one thing: to know when to ask for another. The broker decides what the token is worth.
fn unverified_expiry(token: &Secret) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Unverified {
        exp: u64,
    }

    let payload = token.expose().split('.').nth(1)?;
    let payload = zeroize::Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?);
    let unverified: Unverified = serde_json::from_slice(&payload).ok()?;
    from_unix_seconds(unverified.exp)
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

const LONG_LIFE: Duration = Duration::from_secs(2 * 3600);
const LAST_MINUTES: Duration = Duration::from_secs(5 * 60);

/// Until a failed refresh is tried again while the token is good.
const AFTER_FAILURE: Duration = Duration::from_secs(30);

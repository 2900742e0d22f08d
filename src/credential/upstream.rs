//! Calls to one cloud service: below its quota, within a deadline, retried where that helps and as long as it helps.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Jitter, Quota, RateLimiter};
use http::StatusCode;
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument as _;
use uuid::Uuid;

use super::correlation::{Ids, returned};
use super::{Hop, IssueError, Service, SetUpFault};
use crate::answer::Verdict;
use crate::clock::Clock;
use crate::http::{Client, Request, Response};
use crate::limit::{FairQueue, Holder};
use crate::subject::Identity;
use crate::telemetry::SPANS;

/// One [`Upstream`] per service and quota, made when it is first called: bounded by the configured targets.
pub(super) struct Upstreams {
    http: Client,
    clock: Arc<dyn Clock>,
    by_quota: Mutex<HashMap<(Hop, String), Arc<Upstream>>>,
}

impl Upstreams {
    pub fn new(http: Client, clock: Arc<dyn Clock>) -> Self {
        Self { http, clock, by_quota: Mutex::default() }
    }

    /// `quota`: what the service counts calls by, such as its endpoint and the project.
    /// `for_whom`: whoever calls with many waits behind whoever calls with one.
    pub fn of(&self, hop: Hop, quota: &str, for_whom: Holder) -> Line {
        let mut by_quota = self.by_quota.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(Upstream::new(hop, self.http.clone(), self.clock.clone()));
        Line { upstream: by_quota.entry((hop, quota.to_owned())).or_insert_with(make).clone(), for_whom }
    }

    /// How the service was found by the last calls.
    pub fn service(&self, hop: Hop, quota: &str) -> Service {
        let by_quota = self.by_quota.lock().unwrap_or_else(PoisonError::into_inner);
        match by_quota.get(&(hop, quota.to_owned())) {
            Some(upstream) => upstream.service(),
            None => Service { hop, failures_in_a_row: 0, left_alone_for: None },
        }
    }
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upstreams")
    }
}

/// An upstream as one caller may call it.
#[derive(Clone)]
pub(super) struct Line {
    upstream: Arc<Upstream>,
    for_whom: Holder,
}

impl Line {
    /// As [`Upstream::call`].
    pub async fn call<R>(&self, request: R, judge: impl Fn(&Response) -> Verdict) -> Result<Response, IssueError>
    where
        R: Fn() -> Result<Request, IssueError>,
    {
        self.upstream.call(self.for_whom, request, judge).await
    }
}

/// Whom a call is made for.
pub(super) fn holder(identity: &Identity) -> Holder {
    (identity.tenant(), identity.object())
}

/// For nobody: somebody looks whether it would work.
pub(super) const NOBODY: Holder = (Uuid::nil(), Uuid::nil());

struct Upstream {
    hop: Hop,
    http: Client,
    clock: Arc<dyn Clock>,
    turns: FairQueue<Holder>,
    rate: DefaultDirectRateLimiter,
    health: Mutex<Health>,
}

/// Circuit breaker and retry budget.
struct Health {
    failures_in_a_row: u32,
    open_until: Option<Instant>,
    /// Tenths of a retry: every call earns two, a retry costs ten.
    budget: u32,
}

/// A failed attempt, and how long the service asks to be left alone.
struct Failed {
    error: IssueError,
    asked: Option<Duration>,
}

impl Failed {
    fn unasked(error: IssueError) -> Self {
        Self { error, asked: None }
    }
}

impl Upstream {
    fn new(hop: Hop, http: Client, clock: Arc<dyn Clock>) -> Self {
        let limits = limits(hop);
        let quota = Quota::per_second(limits.per_second).allow_burst(limits.per_second);
        let health = Health { failures_in_a_row: 0, open_until: None, budget: BUDGET_MAX };
        let turns = FairQueue::new(limits.concurrent);
        Self { hop, http, clock, turns, rate: RateLimiter::direct(quota), health: Mutex::new(health) }
    }

    /// Sends what `request` makes, anew for each attempt, until `judge` calls an answer final.
    async fn call<R>(
        &self,
        for_whom: Holder,
        request: R,
        judge: impl Fn(&Response) -> Verdict,
    ) -> Result<Response, IssueError>
    where
        R: Fn() -> Result<Request, IssueError>,
    {
        let deadline = Instant::now() + CALL_DEADLINE;
        self.earn();
        let mut attempt = 0;
        loop {
            self.check_circuit()?;
            let Failed { error, asked } = match self.attempt(for_whom, request()?, &judge, deadline).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            // What the service asks for, or our own backoff, whichever is longer.
            let wait = backoff(attempt).max(asked.unwrap_or_default());
            attempt += 1;
            if attempt >= ATTEMPTS || Instant::now() + wait >= deadline || !self.spend() {
                return Err(error);
            }
            sleep(wait).await;
        }
    }

    async fn attempt(
        &self,
        for_whom: Holder,
        request: Request,
        judge: &impl Fn(&Response) -> Verdict,
        deadline: Instant,
    ) -> Result<Response, Failed> {
        let left = deadline.saturating_duration_since(Instant::now());
        let turn = async {
            let turn = self.turns.turn(for_whom).await;
            self.rate.until_ready_with_jitter(Jitter::up_to(RATE_JITTER)).await;
            turn
        };
        // A turn that does not come in time is our own limit at work.
        let _turn = timeout(left, turn).await.map_err(|_elapsed| Failed::unasked(self.throttled(BACKOFF_UNASKED)))?;
        let left = deadline.saturating_duration_since(Instant::now()).min(ATTEMPT_DEADLINE);
        let started = Instant::now();
        let calling = tracing::debug_span!(target: SPANS, "call", upstream.hop = self.hop.as_str());
        let answer = self.http.send(request, ANSWER_MAX_BYTES, left).instrument(calling).await;
        self.observe(&answer, started.elapsed());
        let response = answer.map_err(|error| {
            self.failed();
            Failed::unasked(self.unavailable(error.to_string(), BACKOFF_UNASKED))
        })?;
        let asked = response.retry_after(self.clock.now());
        let retry_after = asked.unwrap_or(BACKOFF_UNASKED);
        match judge(&response) {
            Verdict::Final => {
                self.succeeded();
                Ok(response)
            }
            Verdict::Transient(cause) => {
                // What the service says in so many words of one caller's set-up is no sign of its own health.
                if !response.status.is_client_error() || response.status == StatusCode::REQUEST_TIMEOUT {
                    self.failed();
                }
                Err(Failed { error: self.unavailable(cause, retry_after).traced(returned(self.hop, &response)), asked })
            }
            Verdict::IssuerUnreachable => {
                let fault = SetUpFault::IssuerUnreachable;
                let cause = fault.meaning().to_owned();
                let upstream = returned(self.hop, &response);
                let error = IssueError::Unavailable { hop: self.hop, cause, fault: Some(fault), retry_after, upstream };
                Err(Failed { error, asked })
            }
            // It answers, so it is well: the circuit stays closed.
            Verdict::Throttled => {
                Err(Failed { error: self.throttled(retry_after).traced(returned(self.hop, &response)), asked })
            }
        }
    }

    fn observe(&self, answer: &Result<Response, crate::http::HttpError>, took: Duration) {
        let outcome = match answer {
            Ok(response) if response.status.is_success() => "ok",
            Ok(response) if response.status == StatusCode::TOO_MANY_REQUESTS => "throttled",
            Ok(response) if response.status.is_server_error() => "server_error",
            Ok(_) => "refused",
            Err(_) => "no_answer",
        };
        metrics::counter!("carnet_upstream_requests_total", "hop" => self.hop.as_str(), "outcome" => outcome)
            .increment(1);
        metrics::histogram!("carnet_upstream_request_seconds", "hop" => self.hop.as_str()).record(took);
    }

    fn check_circuit(&self) -> Result<(), IssueError> {
        let mut health = self.health();
        let Some(until) = health.open_until else { return Ok(()) };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // One failure more opens it again; until then everyone may try.
            health.open_until = None;
            health.failures_in_a_row = OPEN_AFTER - 1;
            return Ok(());
        }
        Err(self.unavailable("it failed many times in a row".to_owned(), left))
    }

    fn service(&self) -> Service {
        let health = self.health();
        let left = health.open_until.map(|until| until.saturating_duration_since(Instant::now()));
        Service {
            hop: self.hop,
            failures_in_a_row: health.failures_in_a_row,
            left_alone_for: left.filter(|left| !left.is_zero()),
        }
    }

    fn succeeded(&self) {
        self.health().failures_in_a_row = 0;
    }

    fn failed(&self) {
        let mut health = self.health();
        health.failures_in_a_row = health.failures_in_a_row.saturating_add(1);
        if health.failures_in_a_row >= OPEN_AFTER && health.open_until.is_none() {
            health.open_until = Some(Instant::now() + OPEN_FOR);
            tracing::error!(
                upstream.hop = self.hop.as_str(),
                "{} failed {OPEN_AFTER} times in a row; it is left alone for {}s",
                self.hop,
                OPEN_FOR.as_secs()
            );
        }
    }

    fn earn(&self) {
        let mut health = self.health();
        health.budget = (health.budget + 2).min(BUDGET_MAX);
    }

    fn spend(&self) -> bool {
        let mut health = self.health();
        let enough = health.budget >= RETRY_COST;
        if enough {
            health.budget -= RETRY_COST;
        }
        enough
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unavailable(&self, cause: String, retry_after: Duration) -> IssueError {
        IssueError::Unavailable { hop: self.hop, cause, fault: None, retry_after, upstream: Ids::new() }
    }

    fn throttled(&self, retry_after: Duration) -> IssueError {
        IssueError::Throttled { hop: self.hop, retry_after, upstream: Ids::new() }
    }
}

/// Full jitter: anywhere up to the doubled wait, so that those who failed together do not return together.
fn backoff(attempt: u32) -> Duration {
    let ceiling = BACKOFF_FIRST * 2u32.saturating_pow(attempt);
    ceiling.min(BACKOFF_LONGEST).mul_f64(rand::random_range(0.3..=1.0))
}

struct Limits {
    per_second: NonZeroU32,
    concurrent: usize,
}

/// Below what the services publish. Google: 6,000 exchanges and 60,000 impersonations a minute and project. IMDS: 20
/// requests a second and 5 at once per machine, shared with whoever else runs there. Entra publishes nothing.
const fn limits(hop: Hop) -> Limits {
    const fn limits(per_second: u32, concurrent: usize) -> Limits {
        match NonZeroU32::new(per_second) {
            Some(per_second) => Limits { per_second, concurrent },
            None => Limits { per_second: NonZeroU32::MIN, concurrent },
        }
    }
    match hop {
        Hop::GoogleSts => limits(90, 64),
        Hop::GoogleIam => limits(900, 128),
        Hop::EntraToken => limits(100, 64),
        Hop::ManagedIdentity => limits(10, 3),
        Hop::Broker => limits(1, 1),
    }
}

/// Spreads those who wait for the same slot.
const RATE_JITTER: Duration = Duration::from_millis(20);

/// All attempts of one call together.
const CALL_DEADLINE: Duration = Duration::from_secs(9);

/// One attempt; clouds answer within one second or not at all, IMDS may take longer.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(5);

const ATTEMPTS: u32 = 4;

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(2);

/// What callers are told to wait where the service said nothing.
const BACKOFF_UNASKED: Duration = Duration::from_secs(1);

const OPEN_AFTER: u32 = 20;
const OPEN_FOR: Duration = Duration::from_secs(5);

/// Ten retries in stock, then one for every five calls.
const BUDGET_MAX: u32 = 100;
const RETRY_COST: u32 = 10;

/// Google's federated tokens have up to 12,288 bytes.
const ANSWER_MAX_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests;

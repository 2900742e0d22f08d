//! Patience with a broker that is away for a while, and heartbeats by its clock: what holders of a lease have in common.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::clock::{Clock as _, SystemClock};
use crate::proto;

/// What is known of a lease whose broker may be away for a while.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "messages of the contract have none")]
pub struct Patience {
    /// Absent until the broker has answered once: what fails before will not mend.
    lease: Option<proto::Lease>,
    clock: BrokerClock,
    /// The wait between two heartbeats when the broker last answered.
    beat: Option<Duration>,
    attempts: u32,
}

/// What a refused call of a lease's holder leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// After this time.
    In(Duration),
    /// After this time, for the first time since the broker went away.
    Away(Duration),
    /// The lease was closed meanwhile.
    Closed,
    /// Never: the broker has decided, or it has never answered.
    Refused,
    /// Never: the lease's end has come while the broker was away.
    TooLate,
}

impl Patience {
    /// As soon as an answer begins.
    pub fn answered(&mut self, head: &MetadataMap) {
        self.clock = BrokerClock::of(head);
    }

    /// Whether the broker is back.
    pub fn heard(&mut self, lease: Option<&proto::Lease>) -> bool {
        self.lease = lease.cloned().or_else(|| self.lease.take());
        self.beat = self.third();
        std::mem::take(&mut self.attempts) > 0
    }

    /// A third of the time that the lease would live without. Where that is over there is no hurry any more: the broker
    /// forgives its own outages.
    pub fn next_beat(&self) -> Duration {
        self.third().or(self.beat).unwrap_or(LATEST)
    }

    fn third(&self) -> Option<Duration> {
        let lapses = self.lease.as_ref().and_then(|lease| lease.heartbeat_before);
        self.clock.until(lapses).map(|left| (left / 3).max(SHORTEST_BEAT))
    }

    /// Whether and when to ask again.
    pub fn again(&mut self, status: &Status) -> Again {
        let Some(lease) = &self.lease else { return Again::Refused };
        if ended(status).as_deref() == Some("closed") {
            return Again::Closed;
        }
        if !passes(status) && is_the_brokers(status) {
            return Again::Refused;
        }
        if self.clock.until(lease.not_after).is_none() {
            return Again::TooLate;
        }
        if ends_by_rule(status) && self.attempts == 0 {
            return Again::In(SOONEST);
        }
        let longest = (SOONEST * 2u32.saturating_pow(self.attempts.min(16))).min(LATEST);
        self.attempts += 1;
        let wait = longest.mul_f64(rand::random_range(0.5..=1.0)).max(retry_delay(status).min(LATEST));
        if self.attempts == 1 { Again::Away(wait) } else { Again::In(wait) }
    }
}

/// What the broker asks callers to wait.
pub fn retry_delay(status: &Status) -> Duration {
    status.get_error_details().retry_info().and_then(|info| info.retry_delay).unwrap_or_default()
}

/// How the lease of a refused call ended.
fn ended(status: &Status) -> Option<String> {
    status.get_error_details().error_info().and_then(|info| info.metadata.get("lease_state").cloned())
}

/// Connections end every hour, so that brokers can change their certificates.
fn ends_by_rule(status: &Status) -> bool {
    status.get_error_details().error_info().is_some_and(|info| info.reason == "SHUTTING_DOWN")
}

/// The broker gives a reason with all that it decides. What comes without is of a proxy between, of which the broker's
/// own answers are known to have passed it before.
fn is_the_brokers(status: &Status) -> bool {
    status.get_error_details().error_info().is_some()
}

/// Whether time may mend it: the broker or the way to it is away. What the broker itself decided is not, and says why.
pub fn passes(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded => true,
        Code::Unknown | Code::Internal | Code::Cancelled | Code::Aborted => {
            status.get_error_details().error_info().is_none()
        }
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}

/// The broker's clock, by which leases and credentials live: this machine's may be wrong.
#[derive(Debug, Default)]
pub struct BrokerClock {
    ahead: jiff::SignedDuration,
    /// What it showed at an answer. From then on the clock that nobody sets is asked.
    shown: Option<(SystemTime, Instant)>,
}

impl BrokerClock {
    /// RFC 9110 section 6.6.1; without it the clocks are taken to agree.
    pub fn of(head: &MetadataMap) -> Self {
        let date = head.get("date").and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()).map(|date| date.timestamp());
        let now = SystemClock.now();
        let here = jiff::Timestamp::try_from(now).ok();
        let ahead = date.zip(here).map(|(date, here)| date.duration_since(here));
        let shown = date.map_or(now, SystemTime::from);
        Self { ahead: ahead.unwrap_or_default(), shown: Some((shown, Instant::now())) }
    }

    /// What this machine's clock shows at a time of the broker's. Clocks that differ by less than the header and its way
    /// account for are taken to agree.
    pub fn here(&self, time: SystemTime) -> SystemTime {
        if self.ahead.abs() < CLOCKS_AGREE {
            return time;
        }
        let ahead = self.ahead.unsigned_abs();
        let here = if self.ahead.is_negative() { time.checked_add(ahead) } else { time.checked_sub(ahead) };
        here.unwrap_or(time)
    }

    /// What the broker's clock shows now.
    pub fn now(&self) -> SystemTime {
        self.shown.map_or_else(|| SystemClock.now(), |(shown, since)| shown + since.elapsed())
    }

    /// `None` where the time has come.
    fn until(&self, time: Option<prost_types::Timestamp>) -> Option<Duration> {
        let time = SystemTime::try_from(time?).ok()?;
        time.duration_since(self.now()).ok().filter(|left| !left.is_zero())
    }
}

const CLOCKS_AGREE: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);

const SHORTEST_BEAT: Duration = Duration::from_secs(1);

const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn stamp(ahead: i64) -> Option<prost_types::Timestamp> {
        let mut stamp = prost_types::Timestamp::from(SystemClock.now());
        stamp.seconds += ahead;
        Some(stamp)
    }

    fn lease(heartbeat: i64, not_after: i64) -> proto::Lease {
        proto::Lease { heartbeat_before: stamp(heartbeat), not_after: stamp(not_after), ..Default::default() }
    }

    fn decided(code: Code, reason: &str, state: Option<&str>) -> Status {
        let metadata: HashMap<_, _> =
            state.map(|state| ("lease_state".to_owned(), state.to_owned())).into_iter().collect();
        Status::with_error_details(code, reason, ErrorDetails::with_error_info(reason, "carnet", metadata))
    }

    fn wait(again: Again) -> Duration {
        match again {
            Again::In(wait) | Again::Away(wait) => wait,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_outage_is_waited_for_ever_longer_while_the_lease_lives_and_a_decision_is_not() {
        let mut patience = Patience::default();
        let away = Status::unavailable("away");
        assert_eq!(patience.again(&away), Again::Refused, "before the first answer, nothing is known to be right");
        patience.heard(Some(&lease(300, 3600)));
        let waits: Vec<Duration> = (0..8).map(|_| wait(patience.again(&away))).collect();
        assert!(waits[0] <= SOONEST && waits[7] >= LATEST / 2 && waits.iter().all(|wait| *wait <= LATEST), "{waits:?}");
        assert!(matches!(patience.again(&Status::unknown("connection reset")), Again::In(_)));
        for code in [Code::Unimplemented, Code::PermissionDenied, Code::Unauthenticated, Code::NotFound] {
            let of_a_proxy = Status::new(code, "404 page not found");
            assert!(matches!(patience.again(&of_a_proxy), Again::In(_)), "{code}");
        }
        assert_eq!(patience.again(&decided(Code::Internal, "INTERNAL", None)), Again::Refused);
        assert_eq!(patience.again(&decided(Code::PermissionDenied, "DENIED", None)), Again::Refused);
        assert_eq!(patience.again(&decided(Code::FailedPrecondition, "LEASE_ENDED", Some("revoked"))), Again::Refused);
        let closed = decided(Code::FailedPrecondition, "LEASE_ENDED", Some("closed"));
        assert_eq!(patience.again(&closed), Again::Closed);
        assert!(patience.heard(Some(&lease(300, 3600))), "back");
        assert!(!patience.heard(None), "never away");
        assert!(matches!(patience.again(&away), Again::Away(_)));
        patience.heard(Some(&lease(300, -1)));
        assert_eq!(patience.again(&away), Again::TooLate);
    }

    #[test]
    fn beats_come_three_times_as_often_as_they_must_by_the_brokers_clock() {
        let mut patience = Patience::default();
        patience.heard(Some(&lease(300, 3600)));
        assert!((95..=100).contains(&patience.next_beat().as_secs()));
        // This machine's clock is half an hour behind.
        let ahead = jiff::Timestamp::try_from(SystemClock.now()).expect("a time") + jiff::SignedDuration::from_mins(30);
        let date = ahead.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let mut head = MetadataMap::new();
        head.insert("date", date.parse().expect("a value"));
        patience.answered(&head);
        patience.heard(Some(&lease(1800 + 300, 7200)));
        assert!((95..=101).contains(&patience.next_beat().as_secs()), "{:?}", patience.next_beat());
        patience.answered(&MetadataMap::new());
        patience.heard(Some(&lease(1, 3600)));
        assert_eq!(patience.next_beat(), SHORTEST_BEAT);
    }

    #[tokio::test(start_paused = true)]
    async fn c09_an_outage_longer_than_a_lease_lives_without_heartbeats_causes_no_storm_of_them() {
        let mut patience = Patience::default();
        patience.answered(&MetadataMap::new());
        patience.heard(Some(&lease(300, 3600)));
        tokio::time::advance(Duration::from_secs(295)).await;
        assert!(patience.next_beat() <= Duration::from_secs(2), "{:?}", patience.next_beat());
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!((95..=100).contains(&patience.next_beat().as_secs()), "{:?}", patience.next_beat());
        // The lease's end is told by the clock that nobody sets.
        assert!(matches!(patience.again(&Status::unavailable("away")), Again::Away(_)));
        tokio::time::advance(Duration::from_secs(3300)).await;
        assert_eq!(patience.again(&Status::unavailable("away")), Again::TooLate);
    }
}

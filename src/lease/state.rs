//! A lease and its times: pure, so that every boundary can be tested.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use crate::exchange::TargetRequest;
use crate::target::Job;

/// A job's right to fresh credentials. Times have whole milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub id: Uuid,
    /// Of the lease token, which nobody but its holder has.
    pub token_sha256: [u8; 32],
    /// `entra:{tenant}:{object}` of who opened it.
    pub subject: String,
    pub job: Arc<Job>,
    pub targets: Arc<[TargetRequest]>,
    pub opened_at: SystemTime,
    /// When a subject token was last shown: at the opening or at an extension.
    pub proved_at: SystemTime,
    /// Hard end, whatever is renewed without a subject token.
    pub not_after: SystemTime,
    /// Each sign of life keeps the lease for this long.
    pub heartbeat: Duration,
    /// The lease lapses at this moment; never after `not_after`.
    pub heartbeat_before: SystemTime,
    pub end: Option<End>,
}

/// How a lease ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub kind: EndKind,
    pub at: SystemTime,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndKind {
    /// By its job.
    Closed,
    /// By time.
    Expired,
    /// By an operator.
    Revoked,
}

impl EndKind {
    pub const ALL: [Self; 3] = [Self::Closed, Self::Expired, Self::Revoked];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl Lease {
    /// The end that a lease has at `now`: the one that was written down, or the one that time has brought.
    pub fn end_at(&self, now: SystemTime) -> Option<End> {
        self.end.clone().or_else(|| {
            let reason = if self.heartbeat_before < self.not_after { MISSED_HEARTBEAT } else { REACHED_END };
            let end = || End { kind: EndKind::Expired, at: self.heartbeat_before, reason: reason.to_owned() };
            (now >= self.heartbeat_before).then(end)
        })
    }

    /// Time has ended it, and nobody has written that down.
    pub fn has_lapsed(&self, now: SystemTime) -> bool {
        self.end.is_none() && now >= self.heartbeat_before
    }

    pub fn is_active(&self, now: SystemTime) -> bool {
        self.end.is_none() && now < self.heartbeat_before
    }

    /// A sign of life at `now`. A lease that has ended stays as it is.
    pub fn beat(&mut self, now: SystemTime) -> bool {
        let active = self.is_active(now);
        if active {
            self.heartbeat_before = self.not_after.min(self.heartbeat_before.max(now + self.heartbeat));
        }
        active
    }

    /// A subject token was shown at `now`: a new end, and a sign of life.
    pub fn extend(&mut self, now: SystemTime, not_after: SystemTime) -> bool {
        let active = self.is_active(now) && not_after > now;
        if active {
            self.proved_at = now;
            self.not_after = not_after;
            self.heartbeat_before = not_after.min(now + self.heartbeat);
        }
        active
    }

    /// Time that passed while nobody could have taken a heartbeat does not count; `not_after` does.
    pub fn forgive(&mut self, now: SystemTime) {
        if self.end.is_none() {
            self.heartbeat_before = self.not_after.min(self.heartbeat_before.max(now + self.heartbeat));
        }
    }
}

const MISSED_HEARTBEAT: &str = "no heartbeat arrived in time";
const REACHED_END: &str = "not_after was reached";

/// Which leases an operator means; what is absent matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseFilter {
    pub ids: Vec<Uuid>,
    pub subject: Option<String>,
    pub target: Option<String>,
    pub job_id: Option<String>,
    pub job_name: Option<String>,
}

impl LeaseFilter {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn matches(&self, lease: &Lease) -> bool {
        fn admits<T: PartialEq>(wanted: &Option<T>, has: Option<&T>) -> bool {
            wanted.as_ref().is_none_or(|wanted| has == Some(wanted))
        }
        let targeted = |name: &String| lease.targets.iter().any(|target| target.target == *name);
        (self.ids.is_empty() || self.ids.contains(&lease.id))
            && admits(&self.subject, Some(&lease.subject))
            && self.target.as_ref().is_none_or(targeted)
            && admits(&self.job_id, lease.job.id.as_ref())
            && admits(&self.job_name, lease.job.name.as_ref())
    }
}

#[cfg(any(test, feature = "testing"))]
impl Lease {
    /// Opened at `now` for a day, with a heartbeat of five minutes, for target `t`.
    pub fn for_test(number: u128, now: SystemTime) -> Self {
        let mut token_sha256 = [0; 32];
        token_sha256[..16].copy_from_slice(&number.to_be_bytes());
        let heartbeat = Duration::from_secs(300);
        Self {
            id: Uuid::from_u128(number),
            token_sha256,
            subject: "entra:1:2".to_owned(),
            job: Arc::new(Job { id: Some(format!("run-{number}")), name: Some("vision".to_owned()), ..Job::default() }),
            targets: Arc::new([TargetRequest { target: "t".to_owned(), ..TargetRequest::default() }]),
            opened_at: now,
            proved_at: now,
            not_after: now + Duration::from_secs(86_400),
            heartbeat,
            heartbeat_before: now + heartbeat,
            end: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    #[test]
    fn i26_a_lease_lapses_at_the_moment_itself_and_no_later_beat_revives_it() {
        let lapses = now() + Duration::from_secs(300);
        for (at, alive) in [(lapses - SECOND, true), (lapses, false), (lapses + SECOND, false)] {
            let mut lease = Lease::for_test(1, now());
            assert_eq!((lease.is_active(at), lease.end_at(at).is_none(), lease.beat(at)), (alive, alive, alive));
        }
    }

    #[test]
    fn i26_no_heartbeat_and_no_outage_carries_a_lease_past_its_end() {
        let mut lease = Lease { not_after: now() + Duration::from_secs(301), ..Lease::for_test(1, now()) };
        assert!(lease.beat(now() + Duration::from_secs(299)));
        assert_eq!(lease.heartbeat_before, lease.not_after);
        assert!(lease.beat(lease.not_after - SECOND) && !lease.beat(lease.not_after));
        lease.forgive(lease.not_after + SECOND);
        assert!(!lease.is_active(lease.not_after));
        assert_eq!(lease.end_at(lease.not_after).map(|end| end.reason), Some(REACHED_END.to_owned()));
    }

    #[test]
    fn a_beat_from_a_clock_that_lags_takes_nothing_away() {
        let mut lease = Lease::for_test(1, now());
        let before = lease.heartbeat_before;
        assert!(lease.beat(now() - Duration::from_secs(60)));
        assert_eq!(lease.heartbeat_before, before);
    }

    #[test]
    fn what_ended_is_neither_extended_nor_forgiven() {
        let end = End { kind: EndKind::Revoked, at: now(), reason: "leaked".to_owned() };
        let mut lease = Lease { end: Some(end), ..Lease::for_test(1, now()) };
        let before = lease.clone();
        assert!(!lease.extend(now() + SECOND, now() + Duration::from_secs(999)));
        lease.forgive(now() + SECOND);
        assert_eq!(lease, before);
    }
}

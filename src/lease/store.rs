//! Where leases are kept: the port, its changes and its fake.

use std::fmt;
use std::time::{Duration, SystemTime};

use uuid::Uuid;
use zeroize::Zeroizing;

use super::{End, EndKind, Lease, LeaseFilter};

/// Declared by the leases, fulfilled by a store. Every change is durable when it returns.
#[async_trait::async_trait]
pub trait LeaseStore: fmt::Debug + Send + Sync {
    /// Makes all of `changes`, in their order, or none; says of each what became of it.
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, LeaseStoreError>;

    /// The lease whose token has this digest.
    async fn find(&self, token_sha256: &[u8; 32]) -> Result<Option<Found>, LeaseStoreError>;

    /// Newest first; with `states`, only those that have one of these at `now` (`None` in it: active). `before`: older
    /// than this one.
    async fn list(&self, query: &LeaseQuery, now: SystemTime) -> Result<Vec<Lease>, LeaseStoreError>;

    /// Leases that time has ended and nobody has written down yet, at most `most`.
    async fn lapsed(&self, now: SystemTime, most: usize) -> Result<Vec<Lease>, LeaseStoreError>;

    /// Leases whose end was written down within this time, by any replica.
    async fn ended_within(&self, window: Duration) -> Result<Vec<Uuid>, LeaseStoreError>;

    /// Leases whose end was written down longer ago than `age` and is not in the audit log, at most `most`.
    async fn unrecorded(&self, age: Duration, most: usize) -> Result<Vec<Lease>, LeaseStoreError>;

    /// Says that a replica lives. Where none did for longer than `outage`, every lease that was active when the last one
    /// did gets a whole heartbeat from `now`; returns whether that was so.
    async fn alive(&self, now: SystemTime, outage: Duration) -> Result<bool, LeaseStoreError>;

    /// Drops leases that ended before `before`, and are on record; returns how many.
    async fn prune(&self, before: SystemTime) -> Result<usize, LeaseStoreError>;
}

/// A lease as it is kept, with the snapshot of who opened it; an ended lease has none any more. A snapshot that the store's
/// keys do not open is an error for those who need it: the lease can be kept and closed all the same.
pub struct Found {
    pub lease: Lease,
    pub identity: Result<Option<Zeroizing<Vec<u8>>>, LeaseStoreError>,
}

/// A change of one lease, or of nothing where the lease is not as the change needs it.
pub enum Change {
    Open {
        lease: Box<Lease>,
        identity: Zeroizing<Vec<u8>>,
    },
    /// [`Lease::beat`]
    Beat {
        id: Uuid,
        now: SystemTime,
    },
    /// [`Lease::extend`], by an identity that was verified anew.
    Extend {
        id: Uuid,
        now: SystemTime,
        not_after: SystemTime,
        identity: Zeroizing<Vec<u8>>,
    },
    /// Of a lease that has no end written down yet.
    End {
        id: Uuid,
        end: End,
    },
    /// The end is in the audit log.
    Recorded {
        id: Uuid,
    },
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// As it is now; `None` where there is no such lease.
    pub lease: Option<Lease>,
    pub changed: bool,
}

#[derive(Debug, Clone, Default)]
pub struct LeaseQuery {
    pub filter: LeaseFilter,
    pub states: Vec<Option<EndKind>>,
    pub before: Option<Uuid>,
    pub most: usize,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("the leases cannot be {action}")]
pub struct LeaseStoreError {
    pub action: &'static str,
    #[source]
    pub source: std::sync::Arc<dyn std::error::Error + Send + Sync>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Found({:?})", self.lease)
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { lease, .. } => write!(f, "Open({})", lease.id),
            Self::Beat { id, .. } => write!(f, "Beat({id})"),
            Self::Extend { id, .. } => write!(f, "Extend({id})"),
            Self::End { id, end } => write!(f, "End({id}, {})", end.kind.as_str()),
            Self::Recorded { id } => write!(f, "Recorded({id})"),
        }
    }
}

impl LeaseStoreError {
    pub fn read(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { action: "read", source: std::sync::Arc::new(source) }
    }

    pub fn written(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { action: "written", source: std::sync::Arc::new(source) }
    }
}

/// Leases in memory: what the contract means, for tests. It can be told to fail.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Default)]
pub struct FakeLeaseStore {
    kept: std::sync::Mutex<Kept>,
    failing: std::sync::atomic::AtomicBool,
}

#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Default)]
struct Kept {
    leases: std::collections::BTreeMap<Uuid, Row>,
    by_token: std::collections::HashMap<[u8; 32], Uuid>,
    alive: Option<SystemTime>,
}

#[cfg(any(test, feature = "testing"))]
#[derive(Debug)]
struct Row {
    lease: Lease,
    identity: Option<Zeroizing<Vec<u8>>>,
    ended: Option<tokio::time::Instant>,
    recorded: bool,
}

#[cfg(any(test, feature = "testing"))]
impl FakeLeaseStore {
    pub fn fails(&self, failing: bool) {
        self.failing.store(failing, std::sync::atomic::Ordering::Relaxed);
    }

    fn kept(&self) -> Result<std::sync::MutexGuard<'_, Kept>, LeaseStoreError> {
        if self.failing.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(LeaseStoreError::written(std::io::Error::other("no store")));
        }
        Ok(self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

#[cfg(any(test, feature = "testing"))]
impl Kept {
    fn apply(&mut self, change: Change) -> Applied {
        let id = match &change {
            Change::Open { lease, .. } => lease.id,
            Change::Beat { id, .. } | Change::Extend { id, .. } | Change::End { id, .. } | Change::Recorded { id } => {
                *id
            }
        };
        if let Change::Open { lease, identity } = change {
            let row = Row { lease: *lease.clone(), identity: Some(identity), ended: None, recorded: false };
            self.by_token.insert(lease.token_sha256, id);
            self.leases.insert(id, row);
            return Applied { lease: Some(*lease), changed: true };
        }
        let Some(row) = self.leases.get_mut(&id) else { return Applied { lease: None, changed: false } };
        let changed = match change {
            Change::Open { .. } => false,
            Change::Beat { now, .. } => row.lease.beat(now),
            Change::Extend { now, not_after, identity, .. } => {
                let extended = row.lease.extend(now, not_after);
                if extended {
                    row.identity = Some(identity);
                }
                extended
            }
            Change::End { end, .. } => {
                let open = row.lease.end.is_none();
                if open {
                    (row.lease.end, row.identity, row.ended) = (Some(end), None, Some(tokio::time::Instant::now()));
                }
                open
            }
            Change::Recorded { .. } => {
                let new = row.lease.end.is_some() && !row.recorded;
                row.recorded |= new;
                new
            }
        };
        Applied { lease: Some(row.lease.clone()), changed }
    }
}

#[cfg(any(test, feature = "testing"))]
#[async_trait::async_trait]
impl LeaseStore for FakeLeaseStore {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, LeaseStoreError> {
        let mut kept = self.kept()?;
        Ok(changes.into_iter().map(|change| kept.apply(change)).collect())
    }

    async fn find(&self, token_sha256: &[u8; 32]) -> Result<Option<Found>, LeaseStoreError> {
        let kept = self.kept()?;
        let row = kept.by_token.get(token_sha256).and_then(|id| kept.leases.get(id));
        Ok(row.map(|row| Found { lease: row.lease.clone(), identity: Ok(row.identity.clone()) }))
    }

    async fn list(&self, query: &LeaseQuery, now: SystemTime) -> Result<Vec<Lease>, LeaseStoreError> {
        let kept = self.kept()?;
        let state = |lease: &Lease| lease.end_at(now).map(|end| end.kind);
        let leases = kept.leases.values().rev().map(|row| &row.lease);
        let leases = leases
            .filter(|lease| query.before.is_none_or(|before| lease.id < before))
            .filter(|lease| query.filter.matches(lease))
            .filter(|lease| query.states.is_empty() || query.states.contains(&state(lease)));
        Ok(leases.take(query.most).cloned().collect())
    }

    async fn lapsed(&self, now: SystemTime, most: usize) -> Result<Vec<Lease>, LeaseStoreError> {
        let kept = self.kept()?;
        let lapsed = |lease: &&Lease| lease.end.is_none() && now >= lease.heartbeat_before;
        Ok(kept.leases.values().map(|row| &row.lease).filter(lapsed).take(most).cloned().collect())
    }

    async fn ended_within(&self, window: Duration) -> Result<Vec<Uuid>, LeaseStoreError> {
        let kept = self.kept()?;
        let ended = |row: &&Row| row.ended.is_some_and(|at| at.elapsed() <= window);
        Ok(kept.leases.values().filter(ended).map(|row| row.lease.id).collect())
    }

    async fn unrecorded(&self, age: Duration, most: usize) -> Result<Vec<Lease>, LeaseStoreError> {
        let kept = self.kept()?;
        let due = |row: &&Row| !row.recorded && row.ended.is_some_and(|at| at.elapsed() > age);
        Ok(kept.leases.values().filter(due).take(most).map(|row| row.lease.clone()).collect())
    }

    async fn alive(&self, now: SystemTime, outage: Duration) -> Result<bool, LeaseStoreError> {
        let mut kept = self.kept()?;
        let last = kept.alive.unwrap_or(now);
        let forgiven = now > last + outage;
        if forgiven {
            let then_active = kept.leases.values_mut().filter(|row| row.lease.is_active(last));
            then_active.for_each(|row| row.lease.forgive(now));
        }
        kept.alive = Some(last.max(now));
        Ok(forgiven)
    }

    async fn prune(&self, before: SystemTime) -> Result<usize, LeaseStoreError> {
        let mut kept = self.kept()?;
        let all = kept.leases.len();
        kept.leases.retain(|_id, row| !row.recorded || row.lease.end.as_ref().is_none_or(|end| end.at >= before));
        Ok(all - kept.leases.len())
    }
}

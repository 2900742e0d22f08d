//! How leases end, by whomever, and what becomes of an end: written down, made known, recorded.

use std::sync::Arc;

use uuid::Uuid;

use super::{Change, End, EndKind, Failed, Lease, LeaseFilter, LeaseQuery, Leases, count, detached, record};
use crate::audit::{AuditRecord, Outcome};
use crate::clock::whole_milliseconds;
use crate::credential::Key;
use crate::exchange::ExchangeError;
use crate::limit::Peer;
use crate::secret::Secret;

impl Leases {
    /// By its job. A lease that has ended stays as it ended.
    pub async fn close(self: &Arc<Self>, lease_token: &Secret, peer: &Peer) -> Result<Lease, Failed> {
        let found = self.found(lease_token, peer).await;
        let lease = found.map_err(|failed| self.unrecorded(failed, "the end of a lease", peer))?.lease;
        let closed = || End {
            kind: EndKind::Closed,
            at: whole_milliseconds(self.clock.now()),
            reason: "its job closed it".to_owned(),
        };
        let end = lease.end_at(self.clock.now()).unwrap_or_else(closed);
        let (this, id) = (self.clone(), lease.id);
        detached(async move { this.end(vec![(id, end)]).await }).await?;
        let closed = self.look_up(&lease.token_sha256).await?;
        Ok(closed.ok_or_else(|| Failed::new(ExchangeError::LeaseNotFound))?.lease)
    }

    /// Ends every lease that matches; returns how many.
    pub async fn revoke(self: &Arc<Self>, filter: LeaseFilter, reason: String) -> Result<usize, Failed> {
        let this = self.clone();
        detached(async move { this.revoke_all(filter, reason).await }).await
    }

    async fn revoke_all(&self, filter: LeaseFilter, reason: String) -> Result<usize, Failed> {
        let mut query = LeaseQuery { filter, states: vec![None], before: None, most: PIECE };
        let mut revoked = 0;
        loop {
            let now = self.clock.now();
            let active = self.store.list(&query, now).await?;
            // What is opened meanwhile is newer.
            query.before = active.last().map(|lease| lease.id);
            let end = End { kind: EndKind::Revoked, at: whole_milliseconds(now), reason: reason.clone() };
            let ends: Vec<_> = active.into_iter().map(|lease| (lease.id, end.clone())).collect();
            if ends.is_empty() {
                return Ok(revoked);
            }
            revoked += self.end(ends).await?;
        }
    }

    /// Writes ends down, then records them; what fails between is made good by the upkeep. Returns how many were new.
    pub(super) async fn end(&self, ends: Vec<(Uuid, End)>) -> Result<usize, Failed> {
        let changes = ends.into_iter().map(|(id, end)| Change::End { id, end }).collect();
        let applied = self.store.apply(changes).await?;
        let ended: Vec<Lease> =
            applied.into_iter().filter(|applied| applied.changed).filter_map(|applied| applied.lease).collect();
        self.heard_of_ends(ended.iter().map(|lease| lease.id)).await;
        for lease in &ended {
            if let (Some(name), Some(EndKind::Closed)) = (&lease.job.name, lease.end.as_ref().map(|end| end.kind)) {
                self.exchange.history.changed(&lease.subject, name);
            }
        }
        self.record_ends(&ended).await?;
        Ok(ended.len())
    }

    pub(super) async fn record_ends(&self, ended: &[Lease]) -> Result<(), Failed> {
        if ended.is_empty() {
            return Ok(());
        }
        let records: Vec<AuditRecord> = ended.iter().filter_map(|lease| self.end_record(lease)).collect();
        self.exchange.audit.record(records).await.map_err(|error| Failed::new(ExchangeError::Audit(error)))?;
        self.store.apply(ended.iter().map(|lease| Change::Recorded { id: lease.id }).collect()).await?;
        Ok(())
    }

    fn end_record(&self, lease: &Lease) -> Option<AuditRecord> {
        let end = lease.end.as_ref()?;
        let action = match end.kind {
            EndKind::Closed => "lease.close",
            EndKind::Expired => "lease.expire",
            EndKind::Revoked => "lease.revoke",
        };
        count(action.trim_start_matches("lease."));
        let mut record = record(lease, Uuid::now_v7(), self.clock.now(), action, Outcome::Done);
        record.lifetime = end.at.duration_since(lease.opened_at).ok();
        record.attributes = vec![("state", end.kind.as_str().to_owned()), ("end_reason", end.reason.clone())];
        tracing::info!(
            lease.id = %lease.id, lease.state = end.kind.as_str(), subject.id = lease.subject,
            job.id = lease.job.id.as_deref(), "lease {}: {}", end.kind.as_str(), end.reason
        );
        Some(record)
    }

    /// The watches first: forgetting credentials may have to reach other replicas.
    pub(super) async fn heard_of_ends(&self, ids: impl Iterator<Item = Uuid>) {
        let keys: Vec<Key> = ids.flat_map(|id| self.ends.ended(id)).collect();
        for key in keys {
            self.exchange.credentials.forget(&key).await;
        }
    }
}

/// Leases that end in one transaction.
pub(super) const PIECE: usize = 500;

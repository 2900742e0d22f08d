//! How far each way out has come: the port that a store fulfils.

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use super::{AuditError, Gap};

/// Declared beside the log, fulfilled by the same stores. An outlet is a way out of records, by its name.
#[async_trait::async_trait]
pub trait Shipments: fmt::Debug + Send + Sync {
    /// Lets `owner`, and no other of those who share the store, ship to `outlet` until `hold` has passed; false while
    /// another does. Time is the store's own. A store of one broker lets everybody.
    async fn claim(&self, outlet: &str, owner: Uuid, hold: Duration) -> Result<bool, AuditError>;

    /// Ends the claim of `owner`.
    async fn release(&self, outlet: &str, owner: Uuid) -> Result<(), AuditError>;

    /// The last position that was delivered, by chain.
    async fn delivered(&self, outlet: &str) -> Result<Vec<(Uuid, u64)>, AuditError>;

    /// Of what stands before those positions, what was not delivered, the oldest first.
    async fn gaps(&self, outlet: &str) -> Result<Vec<Gap>, AuditError>;

    /// Notes, all or nothing, that these chains were delivered up to these positions, but for `gaps`, which take the place
    /// of all that were noted before; false, and nothing is noted, where `owner` has no claim any more. No position goes
    /// back.
    async fn deliver(&self, outlet: &str, owner: Uuid, moved: &[(Uuid, u64)], gaps: &[Gap])
    -> Result<bool, AuditError>;

    /// Forgets a chain that is no longer in the log.
    async fn forget(&self, outlet: &str, chain: Uuid) -> Result<(), AuditError>;
}

/// In memory; can be shared by several who ship, and told to fail.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Default)]
pub struct FakeShipments {
    claims: std::sync::Mutex<std::collections::HashMap<String, (Uuid, tokio::time::Instant)>>,
    delivered: std::sync::Mutex<std::collections::BTreeMap<(String, Uuid), u64>>,
    gaps: std::sync::Mutex<std::collections::HashMap<String, Vec<Gap>>>,
    failing: std::sync::atomic::AtomicBool,
}

#[cfg(any(test, feature = "testing"))]
impl FakeShipments {
    pub fn fails(&self, failing: bool) {
        self.failing.store(failing, std::sync::atomic::Ordering::Relaxed);
    }

    fn claims(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, (Uuid, tokio::time::Instant)>> {
        self.claims.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn positions(&self) -> std::sync::MutexGuard<'_, std::collections::BTreeMap<(String, Uuid), u64>> {
        self.delivered.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn answer(&self) -> Result<(), AuditError> {
        match self.failing.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(AuditError::Write(std::sync::Arc::new(std::io::Error::other("disk full")))),
            false => Ok(()),
        }
    }

    fn holds(&self, outlet: &str, owner: Uuid) -> bool {
        let now = tokio::time::Instant::now();
        self.claims().get(outlet).is_some_and(|(by, until)| *by == owner && *until >= now)
    }
}

#[cfg(any(test, feature = "testing"))]
#[async_trait::async_trait]
impl Shipments for FakeShipments {
    async fn claim(&self, outlet: &str, owner: Uuid, hold: Duration) -> Result<bool, AuditError> {
        self.answer()?;
        let (mut claims, now) = (self.claims(), tokio::time::Instant::now());
        let free = claims.get(outlet).is_none_or(|(by, until)| *by == owner || *until < now);
        if free {
            claims.insert(outlet.to_owned(), (owner, now + hold));
        }
        Ok(free)
    }

    async fn release(&self, outlet: &str, owner: Uuid) -> Result<(), AuditError> {
        self.claims().retain(|claimed, (by, _until)| claimed != outlet || *by != owner);
        Ok(())
    }

    async fn delivered(&self, outlet: &str) -> Result<Vec<(Uuid, u64)>, AuditError> {
        self.answer()?;
        let positions = self.positions();
        let of_outlet = positions.iter().filter(|((of, _chain), _position)| of == outlet);
        Ok(of_outlet.map(|((_of, chain), position)| (*chain, *position)).collect())
    }

    async fn gaps(&self, outlet: &str) -> Result<Vec<Gap>, AuditError> {
        self.answer()?;
        let gaps = self.gaps.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(gaps.get(outlet).cloned().unwrap_or_default())
    }

    async fn deliver(
        &self,
        outlet: &str,
        owner: Uuid,
        moved: &[(Uuid, u64)],
        gaps: &[Gap],
    ) -> Result<bool, AuditError> {
        self.answer()?;
        if !self.holds(outlet, owner) {
            return Ok(false);
        }
        let mut noted = self.gaps.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        noted.insert(outlet.to_owned(), gaps.to_vec());
        for (chain, position) in moved {
            let mut positions = self.positions();
            let kept = positions.entry((outlet.to_owned(), *chain)).or_default();
            *kept = (*kept).max(*position);
        }
        Ok(true)
    }

    async fn forget(&self, outlet: &str, chain: Uuid) -> Result<(), AuditError> {
        self.positions().remove(&(outlet.to_owned(), chain));
        Ok(())
    }
}

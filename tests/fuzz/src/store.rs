//! An audit store of which somebody else says what is in it.

use std::time::Duration;

use carnet::audit::{AuditError, AuditReader, Checkpoint, Extent, Group, Place, Window};
use uuid::Uuid;

/// How long records are kept.
pub const RETENTION: Duration = Duration::from_secs(90 * 86_400);

/// One chain of one group.
#[derive(Debug, Default)]
pub struct Chest {
    pub group: Option<Group>,
    pub checkpoints: Vec<Checkpoint>,
}

#[async_trait::async_trait]
impl AuditReader for Chest {
    async fn newest_first(
        &self,
        _window: Window,
        behind: Option<Place>,
        _most: u64,
    ) -> Result<Vec<(Place, Group)>, AuditError> {
        let place = |group: &Group| Place { newest_ms: group.newest_ms, sequence: 1 };
        let group = self.group.as_ref().filter(|_group| behind.is_none());
        Ok(group.map(|group| (place(group), group.clone())).into_iter().collect())
    }

    async fn onwards(&self, chain: Uuid, position: u64, _most: u64) -> Result<Vec<Group>, AuditError> {
        let behind = |group: &&Group| group.chain == Some(chain) && group.position > position;
        Ok(self.group.iter().filter(behind).cloned().collect())
    }

    async fn chains(&self) -> Result<Vec<Extent>, AuditError> {
        let extent = |group: &Group| {
            let hash = group.hashes.last_chunk().copied();
            let last = group.position.checked_add(group.records)?.checked_sub(1)?;
            Some(Extent { chain: group.chain?, first: group.position, last, hash, newest_ms: group.newest_ms })
        };
        Ok(self.group.iter().filter_map(extent).collect())
    }

    async fn rows(&self, chain: Uuid, behind: (u64, i64), _most: u64) -> Result<Vec<(i64, Group)>, AuditError> {
        let next = |group: &&Group| group.chain == Some(chain) && (group.position, 1) > behind;
        Ok(self.group.iter().filter(next).map(|group| (1, group.clone())).collect())
    }

    async fn hashes(&self, chain: Uuid, position: u64) -> Result<Option<(u64, Vec<u8>)>, AuditError> {
        let has = |group: &&Group| group.chain == Some(chain) && group.position <= position;
        Ok(self.group.as_ref().filter(has).map(|group| (group.position, group.hashes.clone())))
    }

    async fn unchained(&self) -> Result<(u64, i64), AuditError> {
        Ok((0, 0))
    }

    async fn checkpoints(&self, behind: (Uuid, u64), _most: u32) -> Result<Vec<Checkpoint>, AuditError> {
        let next = |checkpoint: &&Checkpoint| (checkpoint.chain, checkpoint.position) > behind;
        Ok(self.checkpoints.iter().filter(next).cloned().collect())
    }

    async fn fact_sets(&self, _behind: &[u8], _most: u32) -> Result<Vec<(Vec<u8>, String)>, AuditError> {
        Ok(Vec::new())
    }

    async fn has_token(&self, _token_sha256: &[u8; 32]) -> Result<bool, AuditError> {
        Ok(false)
    }

    async fn found_by_tokens(&self, _behind: i64, _most: u32) -> Result<Option<(i64, u64)>, AuditError> {
        Ok(None)
    }

    async fn last_of_others(&self) -> Result<Option<Group>, AuditError> {
        Ok(self.group.clone())
    }

    async fn facts(&self, _digest: &[u8; 32]) -> Result<Option<String>, AuditError> {
        Ok(None)
    }
}

//! The audit log of a SQLite file for those who look at it: a connection and a thread of their own, so that the thread
//! that writes waits for nobody.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use uuid::Uuid;

use super::audit::{CHAINS, GROUP, group};
use super::retention::checkpoint;
use super::worker::Worker;
use super::{BUSY_TIMEOUT, JobError, SCHEMA_VERSION, key_rows};
use crate::audit::{AuditError, AuditReader, Checkpoint, Extent, Group, Place, Window};
use crate::issuer::{KeyStoreError, StoredKey};
use crate::secret::SealingKeys;
use crate::store::{OpenError, signed, unsigned};

/// Changes nothing, not even the schema.
#[derive(Debug)]
pub(in crate::store) struct SqliteReader {
    worker: Worker,
}

impl SqliteReader {
    /// # Errors
    /// There is no such file, or it is of another version of this program.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let store = path.display().to_string();
        let open = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            Ok::<_, rusqlite::Error>((connection, version))
        };
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| OpenError::Open { store: store.clone(), source };
        let (connection, version) = open().map_err(|error| failed(error.into()))?;
        OpenError::unless_equal(&store, version, SCHEMA_VERSION)?;
        let worker = Worker::start("store-reader", connection, |_connection| {}, |_connection| {});
        Ok(Self { worker: worker.map_err(|error| failed(error.into()))? })
    }

    /// The issuer's keys, as its broker would read them.
    pub async fn issuer_keys(&self, sealing: &SealingKeys) -> Result<Vec<StoredKey>, KeyStoreError> {
        let failed = |error: JobError| KeyStoreError { action: "read", source: Box::new(error) };
        let rows = self.worker.run(|connection| key_rows(connection)).await.map_err(failed)?;
        rows.into_iter().map(|row| row.unseal(sealing).map_err(|error| failed(error.into()))).collect()
    }

    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, AuditError> {
        self.worker.run(job).await.map_err(|error| AuditError::Read(Arc::new(error)))
    }
}

#[async_trait::async_trait]
impl AuditReader for SqliteReader {
    async fn newest_first(
        &self,
        window: Window,
        behind: Option<Place>,
        most: u64,
    ) -> Result<Vec<(Place, Group)>, AuditError> {
        let behind = behind.unwrap_or(Place { newest_ms: window.before_ms, sequence: i64::MIN });
        self.read(move |connection| {
            let sql = format!(
                "SELECT sequence, {GROUP} FROM audit
                 WHERE newest_ms >= ?1 AND newest_ms <= ?2 AND (newest_ms, sequence) < (?2, ?3)
                 ORDER BY newest_ms DESC, sequence DESC"
            );
            let mut select = connection.prepare_cached(&sql)?;
            let mut rows = select.query(params![window.from_ms, behind.newest_ms, behind.sequence])?;
            let (mut groups, mut room) = (Vec::new(), most);
            while let Some(row) = rows.next()? {
                let group = group(row, 1)?;
                let place = Place { newest_ms: group.newest_ms, sequence: row.get(0)? };
                room = room.saturating_sub(group.records.max(1));
                groups.push((place, group));
                if room == 0 {
                    break;
                }
            }
            Ok(groups)
        })
        .await
    }

    async fn onwards(&self, chain: Uuid, position: u64, most: u64) -> Result<Vec<Group>, AuditError> {
        self.read(move |connection| {
            // The group in which the first wanted record is begins at or before it.
            let sql = format!(
                "SELECT {GROUP} FROM audit WHERE chain = ?1 AND position >= coalesce((
                     SELECT position FROM audit WHERE chain = ?1 AND position <= ?2 ORDER BY position DESC LIMIT 1
                 ), 0) ORDER BY position"
            );
            let mut select = connection.prepare_cached(&sql)?;
            let mut rows = select.query(params![chain.as_bytes(), signed(position.saturating_add(1))])?;
            let (mut groups, mut room) = (Vec::new(), most);
            while let Some(row) = rows.next()? {
                let group = group(row, 0)?;
                if group.position + group.records <= position.saturating_add(1) {
                    continue;
                }
                room = room.saturating_sub(group.records.max(1));
                groups.push(group);
                if room == 0 {
                    break;
                }
            }
            Ok(groups)
        })
        .await
    }

    async fn chains(&self) -> Result<Vec<Extent>, AuditError> {
        self.read(|connection| {
            let mut select = connection.prepare_cached(CHAINS)?;
            let extents = select.query_map([], |row| {
                Ok(Extent {
                    chain: Uuid::from_bytes(row.get(0)?),
                    first: unsigned(row.get(1)?),
                    last: unsigned(row.get(2)?),
                    hash: row.get(3)?,
                    newest_ms: row.get(4)?,
                })
            })?;
            Ok(extents.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn rows(&self, chain: Uuid, behind: (u64, i64), most: u64) -> Result<Vec<(i64, Group)>, AuditError> {
        self.read(move |connection| {
            let sql = format!(
                "SELECT sequence, {GROUP} FROM audit
                 WHERE chain = ?1 AND position >= ?2 AND (position, sequence) > (?2, ?3) ORDER BY position, sequence"
            );
            let mut select = connection.prepare_cached(&sql)?;
            let mut rows = select.query(params![chain.as_bytes(), signed(behind.0), behind.1])?;
            let (mut groups, mut room) = (Vec::new(), most);
            let sql = "SELECT token_sha256 FROM audit_token WHERE sequence = ?1";
            let mut tokens = connection.prepare_cached(sql)?;
            while let Some(row) = rows.next()? {
                let (sequence, mut group): (i64, _) = (row.get(0)?, group(row, 1)?);
                let of_group = tokens.query_map([sequence], |row| row.get(0).map(digest))?;
                group.tokens = of_group.collect::<Result<_, _>>()?;
                room = room.saturating_sub(group.records.max(1));
                groups.push((sequence, group));
                if room == 0 {
                    break;
                }
            }
            Ok(groups)
        })
        .await
    }

    async fn hashes(&self, chain: Uuid, position: u64) -> Result<Option<(u64, Vec<u8>)>, AuditError> {
        self.read(move |connection| {
            let sql = "SELECT position, coalesce(hashes, x'') FROM audit
                       WHERE chain = ?1 AND position <= ?2 ORDER BY position DESC LIMIT 1";
            let mut select = connection.prepare_cached(sql)?;
            let row = select
                .query_row(params![chain.as_bytes(), signed(position)], |row| Ok((unsigned(row.get(0)?), row.get(1)?)));
            Ok(row.optional()?)
        })
        .await
    }

    async fn unchained(&self) -> Result<(u64, i64), AuditError> {
        self.read(|connection| {
            let sql = "SELECT coalesce(sum(records), 0), coalesce(max(newest_ms), 0) FROM audit WHERE chain IS NULL";
            Ok(connection.query_row(sql, [], |row| Ok((unsigned(row.get(0)?), row.get(1)?)))?)
        })
        .await
    }

    async fn checkpoints(&self, behind: (Uuid, u64), most: u32) -> Result<Vec<Checkpoint>, AuditError> {
        self.read(move |connection| {
            let sql = "SELECT chain, position, at_ms, anchor_ms, statement FROM audit_checkpoint
                       WHERE (chain, position) > (?1, ?2) ORDER BY chain, position LIMIT ?3";
            let mut select = connection.prepare_cached(sql)?;
            let (chain, position) = behind;
            let rows = select.query_map(params![chain.as_bytes(), signed(position), most], checkpoint)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn facts(&self, digest: &[u8; 32]) -> Result<Option<String>, AuditError> {
        let digest = *digest;
        self.read(move |connection| {
            let sql = "SELECT facts FROM audit_identity WHERE digest = ?1";
            let mut select = connection.prepare_cached(sql)?;
            Ok(select.query_row([digest.as_slice()], |row| row.get(0)).optional()?)
        })
        .await
    }

    async fn fact_sets(&self, behind: &[u8], most: u32) -> Result<Vec<(Vec<u8>, String)>, AuditError> {
        let behind = behind.to_vec();
        self.read(move |connection| {
            let sql = "SELECT digest, facts FROM audit_identity WHERE digest > ?1 ORDER BY digest LIMIT ?2";
            let mut select = connection.prepare_cached(sql)?;
            let rows = select.query_map(params![behind, most], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn has_token(&self, token_sha256: &[u8; 32]) -> Result<bool, AuditError> {
        let wanted = *token_sha256;
        self.read(move |connection| {
            let sql = "SELECT EXISTS (SELECT 1 FROM audit_token WHERE token_sha256 = ?1)";
            Ok(connection.prepare_cached(sql)?.query_row([wanted.as_slice()], |row| row.get(0))?)
        })
        .await
    }

    async fn found_by_tokens(&self, behind: i64, most: u32) -> Result<Option<(i64, u64)>, AuditError> {
        self.read(move |connection| {
            let sql = "SELECT max(sequence), count(*) - (SELECT count(*) FROM audit WHERE sequence IN (
                           SELECT DISTINCT sequence FROM audit_token WHERE sequence > ?1 ORDER BY sequence LIMIT ?2
                       )) FROM (SELECT DISTINCT sequence FROM audit_token WHERE sequence > ?1 ORDER BY sequence LIMIT ?2)";
            let last = connection.prepare_cached(sql)?.query_row(params![behind, most], |row| {
                let last: Option<i64> = row.get(0)?;
                Ok((last, unsigned(row.get(1)?)))
            })?;
            Ok(last.0.map(|number| (number, last.1)))
        })
        .await
    }

    async fn last_of_others(&self) -> Result<Option<Group>, AuditError> {
        self.read(|connection| {
            let sql = format!("SELECT {GROUP} FROM audit WHERE NOT own ORDER BY sequence DESC LIMIT 1");
            Ok(connection.prepare_cached(&sql)?.query_row([], |row| group(row, 0)).optional()?)
        })
        .await
    }
}

/// What is no digest was written by nobody here: it is nothing's.
fn digest(bytes: Vec<u8>) -> [u8; 32] {
    bytes.try_into().unwrap_or([0xff; 32])
}

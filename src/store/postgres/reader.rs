//! The audit log in PostgreSQL for those who look at it: connections of their own, which no exchange waits for.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::audit::{CHAINS, checkpoint, extent, uuid};
use super::pool::{Pool, StatementError};
use super::schema::SCHEMA_VERSION;
use super::{PostgresError, PostgresSettings, keys};
use crate::audit::{AuditError, AuditReader, Checkpoint, Extent, Group, Place, Window};
use crate::issuer::{KeyStoreError, StoredKey};
use crate::secret::SealingKeys;
use crate::store::{OpenError, signed, unsigned};

/// Changes nothing, not even the schema.
#[derive(Debug)]
pub(in crate::store) struct PostgresReader {
    pool: Pool,
}

impl PostgresReader {
    /// # Errors
    /// The database does not answer, or is of another version of this program.
    pub async fn open(settings: &PostgresSettings) -> Result<Self, OpenError> {
        let store = settings.to_string();
        let failed = |source: PostgresError| OpenError::Open { store: store.clone(), source: Box::new(source) };
        let pool = Pool::new(settings, CONNECTIONS).map_err(|error| failed(error.into()))?;
        let version = version(&pool).await.map_err(|error| failed(error.into()))?;
        OpenError::unless_equal(&store, version, SCHEMA_VERSION)?;
        Ok(Self { pool })
    }

    /// The issuer's keys, as its brokers would read them.
    pub async fn issuer_keys(&self, sealing: &SealingKeys) -> Result<Vec<StoredKey>, KeyStoreError> {
        keys(&self.pool, sealing).await
    }

    /// To the database of `pool`, which is known to be of this version.
    pub(super) fn beside(pool: &Pool) -> Self {
        Self { pool: pool.beside(CONNECTIONS) }
    }
}

/// 0 for a database that is no store.
async fn version(pool: &Pool) -> Result<i64, StatementError> {
    let there = pool.query("SELECT 1 WHERE to_regclass('carnet_schema') IS NOT NULL", &[]).await?;
    if there.is_empty() {
        return Ok(0);
    }
    let rows = pool.query("SELECT coalesce(max(version), 0) FROM carnet_schema", &[]).await?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or_default())
}

#[async_trait::async_trait]
impl AuditReader for PostgresReader {
    async fn newest_first(
        &self,
        window: Window,
        behind: Option<Place>,
        most: u64,
    ) -> Result<Vec<(Place, Group)>, AuditError> {
        let behind = behind.unwrap_or(Place { newest_ms: window.before_ms, sequence: i64::MIN });
        let values = [
            (&window.from_ms as _, Type::INT8),
            (&behind.newest_ms as _, Type::INT8),
            (&behind.sequence as _, Type::INT8),
            (&signed(most) as _, Type::INT8),
        ];
        let read = async {
            let place = |row: &Row| {
                let group = group(row)?;
                Ok((Place { newest_ms: group.newest_ms, sequence: row.try_get(0)? }, group))
            };
            self.pool.query(NEWEST_FIRST, &values).await?.iter().map(place).collect::<Result<Vec<_>, PostgresError>>()
        };
        read.await.map_err(failed)
    }

    async fn onwards(&self, chain: Uuid, position: u64, most: u64) -> Result<Vec<Group>, AuditError> {
        let chain = chain.as_bytes().as_slice();
        let (position, most) = (signed(position.saturating_add(1)), signed(most));
        let values = [(&chain as _, Type::BYTEA), (&position as _, Type::INT8), (&most as _, Type::INT8)];
        let groups = self.pool.query(ONWARDS, &values).await.map_err(|error| failed(error.into()))?;
        groups.iter().map(group).collect::<Result<_, _>>().map_err(failed)
    }

    async fn chains(&self) -> Result<Vec<Extent>, AuditError> {
        let chains = self.pool.query(CHAINS, &[]).await.map_err(|error| failed(error.into()))?;
        chains.iter().map(extent).collect::<Result<_, _>>().map_err(failed)
    }

    async fn rows(&self, chain: Uuid, behind: (u64, i64), most: u64) -> Result<Vec<(i64, Group)>, AuditError> {
        let (chain, position, most) = (chain.as_bytes().as_slice(), signed(behind.0), signed(most));
        let values = [
            (&chain as _, Type::BYTEA),
            (&position as _, Type::INT8),
            (&behind.1 as _, Type::INT8),
            (&most as _, Type::INT8),
        ];
        let rows = self.pool.query(ROWS, &values).await.map_err(|error| failed(error.into()))?;
        let numbered = |row: &Row| {
            let tokens: Vec<&[u8]> = row.try_get(8)?;
            let tokens = tokens.into_iter().map(digest).collect();
            Ok((row.try_get(0)?, Group { tokens, ..group(row)? }))
        };
        rows.iter().map(numbered).collect::<Result<_, _>>().map_err(failed)
    }

    async fn hashes(&self, chain: Uuid, position: u64) -> Result<Option<(u64, Vec<u8>)>, AuditError> {
        let (chain, position) = (chain.as_bytes().as_slice(), signed(position));
        let sql = "SELECT position, coalesce(hashes, '') FROM audit
                   WHERE chain = $1 AND position <= $2 ORDER BY position DESC LIMIT 1";
        let rows = self.pool.query(sql, &[(&chain, Type::BYTEA), (&position, Type::INT8)]).await;
        let rows = rows.map_err(|error| failed(error.into()))?;
        let hashes = |row: &Row| Ok((unsigned(row.try_get(0)?), row.try_get(1)?));
        rows.first().map(hashes).transpose().map_err(failed)
    }

    async fn unchained(&self) -> Result<(u64, i64), AuditError> {
        let sql =
            "SELECT coalesce(sum(records), 0)::bigint, coalesce(max(newest_ms), 0) FROM audit WHERE chain IS NULL";
        let read = async {
            let rows = self.pool.query(sql, &[]).await?;
            let counted = rows.first().map(|row| Ok::<_, PostgresError>((unsigned(row.try_get(0)?), row.try_get(1)?)));
            Ok(counted.transpose()?.unwrap_or_default())
        };
        read.await.map_err(failed)
    }

    async fn checkpoints(&self, behind: (Uuid, u64), most: u32) -> Result<Vec<Checkpoint>, AuditError> {
        let (chain, position, most) = (behind.0.as_bytes().as_slice(), signed(behind.1), i64::from(most));
        let values = [(&chain as _, Type::BYTEA), (&position as _, Type::INT8), (&most as _, Type::INT8)];
        let sql = "SELECT chain, position, at_ms, anchor_ms, statement FROM audit_checkpoint
                   WHERE (chain, position) > ($1, $2) ORDER BY chain, position LIMIT $3";
        let rows = self.pool.query(sql, &values).await.map_err(|error| failed(error.into()))?;
        rows.iter().map(checkpoint).collect::<Result<_, _>>().map_err(failed)
    }

    async fn facts(&self, digest: &[u8; 32]) -> Result<Option<String>, AuditError> {
        let read = async {
            let sql = "SELECT facts FROM audit_identity WHERE digest = $1";
            let rows = self.pool.query(sql, &[(&digest.as_slice(), Type::BYTEA)]).await?;
            Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
        };
        read.await.map_err(failed)
    }

    async fn fact_sets(&self, behind: &[u8], most: u32) -> Result<Vec<(Vec<u8>, String)>, AuditError> {
        let read = async {
            let most = i64::from(most);
            let sql = "SELECT digest, facts FROM audit_identity WHERE digest > $1 ORDER BY digest LIMIT $2";
            let rows = self.pool.query(sql, &[(&behind, Type::BYTEA), (&most, Type::INT8)]).await?;
            rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, PostgresError>>()
        };
        read.await.map_err(failed)
    }

    async fn has_token(&self, token_sha256: &[u8; 32]) -> Result<bool, AuditError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM audit_token WHERE token_sha256 = $1)";
        let read = async {
            let rows = self.pool.query(sql, &[(&token_sha256.as_slice(), Type::BYTEA)]).await?;
            Ok(rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or_default())
        };
        read.await.map_err(failed)
    }

    async fn found_by_tokens(&self, behind: i64, most: u32) -> Result<Option<(i64, u64)>, AuditError> {
        let sql = "WITH page AS (
                       SELECT DISTINCT sequence FROM audit_token WHERE sequence > $1 ORDER BY sequence LIMIT $2
                   )
                   SELECT max(sequence), count(*) FILTER (
                       WHERE NOT EXISTS (SELECT 1 FROM audit WHERE audit.sequence = page.sequence)
                   ) FROM page";
        let read = async {
            let most = i64::from(most);
            let rows = self.pool.query(sql, &[(&behind, Type::INT8), (&most, Type::INT8)]).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let last: Option<i64> = row.try_get(0)?;
            let missing = unsigned(row.try_get(1)?);
            Ok(last.map(|last| (last, missing)))
        };
        read.await.map_err(failed)
    }

    async fn last_of_others(&self) -> Result<Option<Group>, AuditError> {
        let sql = "SELECT sequence, chain, position, records, newest_ms, own, hashes, bytes FROM audit
                   WHERE NOT own ORDER BY sequence DESC LIMIT 1";
        let read = async { self.pool.query(sql, &[]).await?.first().map(group).transpose() };
        read.await.map_err(failed)
    }
}

/// What is no digest was written by nobody here: it is nothing's.
fn digest(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap_or([0xff; 32])
}

/// Of a row that begins with its sequence; without tokens and facts, which are in tables of their own.
fn group(row: &Row) -> Result<Group, PostgresError> {
    Ok(Group {
        chain: row.try_get::<_, Option<&[u8]>>(1)?.map(uuid),
        position: unsigned(row.try_get::<_, Option<i64>>(2)?.unwrap_or_default()),
        records: unsigned(row.try_get(3)?),
        newest_ms: row.try_get(4)?,
        own: row.try_get(5)?,
        hashes: row.try_get::<_, Option<Vec<u8>>>(6)?.unwrap_or_default(),
        bytes: row.try_get(7)?,
        ..Group::default()
    })
}

fn failed(error: PostgresError) -> AuditError {
    AuditError::Read(Arc::new(error))
}

/// Counts records before it fetches any.
const NEWEST_FIRST: &str = "
    SELECT sequence, chain, position, records, newest_ms, own, hashes, bytes FROM audit JOIN (
        SELECT sequence, sum(greatest(records, 1)) OVER (ORDER BY newest_ms DESC, sequence DESC) - records AS before FROM (
            SELECT sequence, newest_ms, records FROM audit
            WHERE newest_ms >= $1 AND newest_ms <= $2 AND (newest_ms, sequence) < ($2, $3)
            ORDER BY newest_ms DESC, sequence DESC LIMIT $4
        ) AS newest
    ) AS page USING (sequence) WHERE page.before < $4 ORDER BY newest_ms DESC, sequence DESC";

/// The group in which the first wanted record is begins at or before it.
const ONWARDS: &str = "
    SELECT sequence, chain, position, records, newest_ms, own, hashes, bytes FROM audit JOIN (
        SELECT sequence, sum(greatest(records, 1)) OVER (ORDER BY position) - records AS before FROM (
            SELECT sequence, position, records FROM audit
            WHERE chain = $1 AND position >= coalesce((
                SELECT position FROM audit WHERE chain = $1 AND position <= $2 ORDER BY position DESC LIMIT 1
            ), 0) AND position + records > $2 ORDER BY position LIMIT $3
        ) AS next
    ) AS page USING (sequence) WHERE page.before < $3 ORDER BY position";

const ROWS: &str = "
    SELECT sequence, chain, position, records, newest_ms, own, hashes, bytes, array(
        SELECT token_sha256 FROM audit_token WHERE audit_token.sequence = audit.sequence
    ) FROM audit JOIN (
        SELECT sequence, sum(greatest(records, 1)) OVER (ORDER BY position, sequence) - records AS before FROM (
            SELECT sequence, position, records FROM audit
            WHERE chain = $1 AND position >= $2 AND (position, sequence) > ($2, $3)
            ORDER BY position, sequence LIMIT $4
        ) AS next
    ) AS page USING (sequence) WHERE page.before < $4 ORDER BY position, sequence";

/// For searches, and those who follow.
const CONNECTIONS: usize = 3;

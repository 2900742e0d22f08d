//! The audit log in PostgreSQL: one row a group, of whichever replica.

use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{PostgresError, PostgresStore, retention};
use crate::audit::{AuditError, AuditLog, Checkpoint, Expired, Extent, Group, HandOut, Head, Kept, find_hand_out};
use crate::store::{signed, unsigned};

pub(super) const CHAIN: &str = "
    -- Of the group's first record; NULL in rows that are older than the chain.
    ALTER TABLE audit ADD COLUMN chain bytea;
    ALTER TABLE audit ADD COLUMN position bigint;
    ALTER TABLE audit ADD COLUMN hashes bytea; -- 32 bytes for each record
    ALTER TABLE audit ADD COLUMN own boolean NOT NULL DEFAULT false; -- nothing but records of the log about itself
    CREATE UNIQUE INDEX audit_chain ON audit (chain, position) WHERE chain IS NOT NULL;
    CREATE INDEX audit_unchained ON audit (newest_ms, records) WHERE chain IS NULL;
    CREATE TABLE audit_checkpoint (
        chain bytea NOT NULL,
        position bigint NOT NULL,
        at_ms bigint NOT NULL,
        anchor_ms bigint, -- since when the chain begins behind it
        statement text NOT NULL,
        PRIMARY KEY (chain, position)
    );
    -- What decisions were made of, once for all records that refer to it.
    CREATE TABLE audit_identity (
        digest bytea PRIMARY KEY,
        seen_ms bigint NOT NULL,
        facts text NOT NULL
    );
    CREATE INDEX audit_identity_seen ON audit_identity (seen_ms);
";

impl PostgresStore {
    pub(in crate::store) async fn append_group(&self, group: &Group) -> Result<(), AuditError> {
        let append = async {
            let Group { chain, newest_ms, own, hashes, bytes, tokens, identities, .. } = group;
            let chain = chain.as_ref().map(|chain| chain.as_bytes().as_slice());
            let position = chain.map(|_chain| signed(group.position));
            let hashes = chain.map(|_chain| hashes);
            let tokens: Vec<&[u8]> = tokens.iter().map(<[u8; 32]>::as_slice).collect();
            // In the same order at every replica, so that no two wait for each other.
            let digests: Vec<&[u8]> = identities.iter().map(|facts| facts.digest.as_slice()).collect();
            let facts: Vec<&str> = identities.iter().map(|facts| &*facts.json).collect();
            let values = [
                (&chain as _, Type::BYTEA),
                (&position as _, Type::INT8),
                (&signed(group.records) as _, Type::INT8),
                (newest_ms as _, Type::INT8),
                (own as _, Type::BOOL),
                (&hashes as _, Type::BYTEA),
                (bytes as _, Type::BYTEA),
                (&tokens as _, Type::BYTEA_ARRAY),
                (&digests as _, Type::BYTEA_ARRAY),
                (&facts as _, Type::TEXT_ARRAY),
            ];
            let rows = self.pool.query(APPEND, &values).await?;
            if rows.first().map(|row| row.try_get(0)).transpose()? == Some(true) {
                return Ok(());
            }
            // Asked anew: what came first may have been committed while this waited for it.
            let same = "SELECT 1 FROM audit WHERE chain = $1 AND position = $2 AND hashes = $3";
            let place = [(&chain as _, Type::BYTEA), (&position as _, Type::INT8), (&hashes as _, Type::BYTEA)];
            let rows = self.pool.query(same, &place).await?;
            if rows.is_empty() { Err(PostgresError::PlaceTaken) } else { Ok(()) }
        };
        append.await.map_err(written)
    }
}

#[async_trait::async_trait]
impl AuditLog for PostgresStore {
    async fn append(&self, group: Group) -> Result<(), AuditError> {
        self.append_group(&group).await
    }

    async fn heads(&self, most: u32) -> Result<Vec<Head>, AuditError> {
        let read = async {
            let rows = self.leases.query(HEADS, &[(&i64::from(most), Type::INT8)]).await?;
            let extents: Vec<Extent> = rows.iter().map(extent).collect::<Result<_, PostgresError>>()?;
            Ok(extents.iter().filter_map(Extent::head).collect())
        };
        read.await.map_err(|error: PostgresError| AuditError::Read(Arc::new(error)))
    }

    async fn unchained(&self) -> Result<u64, AuditError> {
        let count = async {
            let sql = "SELECT coalesce(sum(records), 0)::bigint FROM audit WHERE chain IS NULL";
            let rows = self.leases.query(sql, &[]).await?;
            Ok(unsigned(rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or_default()))
        };
        count.await.map_err(|error: PostgresError| AuditError::Read(Arc::new(error)))
    }

    async fn find_issued(&self, token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError> {
        let find = async {
            let sql = "SELECT bytes FROM audit_token JOIN audit USING (sequence)
                       WHERE token_sha256 = $1 ORDER BY sequence LIMIT 1";
            let rows = self.leases.query(sql, &[(&token_sha256.as_slice(), Type::BYTEA)]).await?;
            Ok(rows.first().map(|row| row.try_get::<_, Vec<u8>>(0)).transpose()?)
        };
        let found = find.await.map_err(|error: PostgresError| AuditError::Read(Arc::new(error)))?;
        Ok(found.and_then(|bytes| find_hand_out(&bytes, *token_sha256)))
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Kept, AuditError> {
        let Checkpoint { chain, position, at_ms, statement, .. } = checkpoint;
        let (chain, position) = (chain.as_bytes().as_slice(), signed(position));
        let sql = "WITH earlier AS (
                       DELETE FROM audit_checkpoint WHERE chain = $1 AND position < $2 AND anchor_ms IS NULL
                       AND at_ms / 3600000 = $3 / 3600000
                   )
                   INSERT INTO audit_checkpoint (chain, position, at_ms, statement) VALUES ($1, $2, $3, $4)
                   ON CONFLICT (chain, position) DO UPDATE SET at_ms = $3, statement = $4";
        let values = [
            (&chain as _, Type::BYTEA),
            (&position as _, Type::INT8),
            (&at_ms as _, Type::INT8),
            (&statement as _, Type::TEXT),
        ];
        let kept = self.leases.query(sql, &values).await.map(|_rows| Kept::Yes);
        kept.map_err(|error| written(error.into()))
    }

    async fn prune(&self, expired: &Expired) -> Result<u64, AuditError> {
        retention::prune(&self.leases, expired).await.map_err(written)
    }

    async fn probe(&self) -> Result<(), AuditError> {
        // A record that comes and goes in one transaction: everything that an ordinary one needs, and nothing left of it.
        let sql = "INSERT INTO audit (records, newest_ms, bytes) VALUES (0, 0, '');
                   DELETE FROM audit WHERE sequence = lastval()";
        self.pool.execute(sql).await.map_err(|error| written(error.into()))
    }
}

fn written(error: PostgresError) -> AuditError {
    AuditError::Write(Arc::new(error))
}

const APPEND: &str = "
    WITH appended AS (
        INSERT INTO audit (chain, position, records, newest_ms, own, hashes, bytes)
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING sequence
    ), seen AS (
        INSERT INTO audit_identity (digest, seen_ms, facts)
        SELECT digest, $4, facts FROM unnest($9, $10) AS new (digest, facts)
        ON CONFLICT (digest) DO UPDATE SET seen_ms = greatest(audit_identity.seen_ms, excluded.seen_ms)
    ), tokens AS (
        INSERT INTO audit_token (token_sha256, sequence)
        SELECT token, sequence FROM appended, unnest($8) AS token
    )
    SELECT EXISTS (SELECT 1 FROM appended)";

/// With one row for each chain that is there: from one to the next through the index, whatever the number of groups.
macro_rules! from_chain_to_chain {
    ($select:literal) => {
        concat!(
            "WITH RECURSIVE chains (chain) AS (
                 (SELECT chain FROM audit WHERE chain IS NOT NULL ORDER BY chain LIMIT 1)
                 UNION ALL
                 SELECT (SELECT chain FROM audit WHERE audit.chain > chains.chain ORDER BY chain LIMIT 1)
                 FROM chains WHERE chains.chain IS NOT NULL
             ), ends AS (
                 SELECT last.chain, first.position AS first, last.position + last.records - 1 AS last,
                        substr(last.hashes, length(last.hashes) - 31) AS hash, last.newest_ms, last.sequence
                 FROM chains CROSS JOIN LATERAL (
                     SELECT position FROM audit WHERE audit.chain = chains.chain ORDER BY position LIMIT 1
                 ) AS first CROSS JOIN LATERAL (
                     SELECT * FROM audit WHERE audit.chain = chains.chain ORDER BY position DESC LIMIT 1
                 ) AS last
             ) ",
            $select
        )
    };
}

const HEADS: &str = from_chain_to_chain!(
    "SELECT chain, first, last, hash, newest_ms FROM ends ORDER BY newest_ms DESC, sequence DESC LIMIT $1"
);

pub(super) const CHAINS: &str =
    from_chain_to_chain!("SELECT chain, first, last, hash, newest_ms FROM ends ORDER BY chain");

pub(super) fn extent(row: &Row) -> Result<Extent, PostgresError> {
    let hash: Option<&[u8]> = row.try_get(3)?;
    Ok(Extent {
        chain: uuid(row.try_get(0)?),
        first: unsigned(row.try_get(1)?),
        last: unsigned(row.try_get(2)?),
        hash: hash.and_then(|hash| hash.try_into().ok()),
        newest_ms: row.try_get(4)?,
    })
}

/// Of a row with the columns `chain, position, at_ms, anchor_ms, statement`.
pub(super) fn checkpoint(row: &Row) -> Result<Checkpoint, PostgresError> {
    Ok(Checkpoint {
        chain: uuid(row.try_get(0)?),
        position: unsigned(row.try_get(1)?),
        at_ms: row.try_get(2)?,
        anchor_ms: row.try_get(3)?,
        statement: row.try_get(4)?,
    })
}

/// What is no UUID was written by nobody here: it is nobody's chain.
pub(super) fn uuid(bytes: &[u8]) -> Uuid {
    Uuid::from_slice(bytes).unwrap_or_default()
}

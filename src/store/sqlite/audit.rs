//! The audit log in SQLite: one row a group.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use uuid::Uuid;

use super::{JobError, SqliteStore, retention};
use crate::audit::{AuditError, AuditLog, Checkpoint, Expired, Group, HandOut, Head, Kept, find_hand_out};
use crate::store::packed::{pack, unpack};
use crate::store::{signed, unsigned};
use crate::subject::Facts;

pub(super) const CHAIN: &str = "
    -- Of the group's first record; NULL in rows that are older than the chain.
    ALTER TABLE audit ADD COLUMN chain BLOB;
    ALTER TABLE audit ADD COLUMN position INTEGER;
    ALTER TABLE audit ADD COLUMN hashes BLOB; -- 32 bytes for each record
    ALTER TABLE audit ADD COLUMN own INTEGER NOT NULL DEFAULT 0; -- 1: nothing but records of the log about itself
    CREATE UNIQUE INDEX audit_chain ON audit (chain, position) WHERE chain IS NOT NULL;
    CREATE INDEX audit_newest ON audit (newest_ms);
    CREATE INDEX audit_token_sequence ON audit_token (sequence);
    CREATE INDEX audit_unchained ON audit (newest_ms, records) WHERE chain IS NULL;
    CREATE TABLE audit_checkpoint (
        chain BLOB NOT NULL,
        position INTEGER NOT NULL,
        at_ms INTEGER NOT NULL,
        anchor_ms INTEGER, -- since when the chain begins behind it
        statement TEXT NOT NULL,
        PRIMARY KEY (chain, position)
    ) STRICT, WITHOUT ROWID;
    -- What decisions were made of, once for all records that refer to it.
    CREATE TABLE audit_identity (
        digest BLOB PRIMARY KEY,
        seen_ms INTEGER NOT NULL,
        facts TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX audit_identity_seen ON audit_identity (seen_ms);
";

pub(super) const PACKED: &str = "
    -- How long `bytes` were before they were packed; NULL: they were not.
    ALTER TABLE audit ADD COLUMN unpacked INTEGER;
";

impl SqliteStore {
    pub(in crate::store) async fn append_group(&self, group: Group) -> Result<(), AuditError> {
        let append = move |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            // No INSERT ... SELECT: that would put the group into a table of its own first.
            let sql = "INSERT INTO audit (sequence, chain, position, records, newest_ms, own, hashes, bytes, unpacked)
                       VALUES (coalesce((SELECT sequence + records FROM audit ORDER BY sequence DESC LIMIT 1), 1),
                               ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                       ON CONFLICT DO NOTHING";
            let Group { chain, position, records, newest_ms, own, hashes, bytes, tokens, identities, .. } = group;
            let (chain, place) = (chain.as_ref().map(Uuid::as_bytes), chain.map(|_chain| signed(position)));
            let hashes = chain.map(|_chain| hashes);
            let (bytes, unpacked) = pack(bytes);
            let values = params![chain, place, signed(records), newest_ms, own, hashes, bytes, unpacked];
            let is_new = transaction.prepare_cached(sql)?.execute(values)? > 0;
            if !is_new {
                let sql = "SELECT hashes = ?3 FROM audit WHERE chain = ?1 AND position = ?2";
                let same = transaction.query_row(sql, params![chain, place, hashes], |row| row.get(0)).optional()?;
                if same != Some(true) {
                    return Err(JobError::PlaceTaken);
                }
            }
            let sequence = transaction.last_insert_rowid();
            for token in tokens.iter().filter(|_token| is_new) {
                let sql = "INSERT INTO audit_token (token_sha256, sequence) VALUES (?1, ?2)";
                transaction.prepare_cached(sql)?.execute(params![token.as_slice(), sequence])?;
            }
            for facts in identities {
                let sql = "INSERT INTO audit_identity (digest, seen_ms, facts) VALUES (?1, ?2, ?3)
                           ON CONFLICT (digest) DO UPDATE SET seen_ms = max(seen_ms, excluded.seen_ms)";
                transaction.prepare_cached(sql)?.execute(params![facts.digest.as_slice(), newest_ms, facts.json])?;
            }
            Ok(transaction.commit()?)
        };
        self.run(append).await.map_err(|error| AuditError::Write(Arc::new(error)))
    }

    /// With its place, for [`drop_group`](Self::drop_group).
    pub(in crate::store) async fn oldest_group(&self) -> Result<Option<(i64, Group)>, AuditError> {
        let read = |connection: &mut Connection| {
            let sql = format!("SELECT sequence, {GROUP} FROM audit ORDER BY sequence LIMIT 1");
            let row = |row: &Row<'_>| Ok((row.get(0)?, group(row, 1)?));
            let Some((sequence, mut group)) = connection.query_row(&sql, [], row).optional()? else { return Ok(None) };
            let mut tokens = connection.prepare_cached("SELECT token_sha256 FROM audit_token WHERE sequence = ?1")?;
            group.tokens = tokens.query_map([sequence], |row| row.get(0))?.collect::<Result<_, _>>()?;
            let mut facts =
                connection.prepare_cached("SELECT digest, facts FROM audit_identity ORDER BY digest LIMIT ?1")?;
            let facts = facts.query_map([FACTS], |row| Ok(Arc::new(Facts::stored(row.get(0)?, row.get(1)?))))?;
            group.identities = facts.collect::<Result<_, _>>()?;
            Ok(Some((sequence, group)))
        };
        self.run(read).await.map_err(|error| AuditError::Read(Arc::new(error)))
    }

    /// How many groups there are, at most `most`.
    pub(in crate::store) async fn groups(&self, most: u32) -> Result<u32, AuditError> {
        let count = move |connection: &mut Connection| {
            let sql = "SELECT count(*) FROM (SELECT 1 FROM audit LIMIT ?1)";
            Ok(connection.query_row(sql, [most], |row| row.get(0))?)
        };
        self.run(count).await.map_err(|error| AuditError::Read(Arc::new(error)))
    }

    /// Drops a group that is elsewhere now, with the `facts` that went with it.
    pub(in crate::store) async fn drop_group(&self, sequence: i64, facts: Vec<Arc<Facts>>) -> Result<(), AuditError> {
        let drop = move |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM audit_token WHERE sequence = ?1", [sequence])?;
            transaction.execute("DELETE FROM audit WHERE sequence = ?1", [sequence])?;
            for facts in facts {
                let sql = "DELETE FROM audit_identity WHERE digest = ?1";
                transaction.prepare_cached(sql)?.execute([facts.digest.as_slice()])?;
            }
            Ok(transaction.commit()?)
        };
        self.run(drop).await.map_err(|error| AuditError::Write(Arc::new(error)))
    }
}

/// The columns of a [`Group`].
pub(super) const GROUP: &str = "chain, position, records, newest_ms, own, hashes, bytes, unpacked";

/// The group whose columns begin at `first`; without tokens and facts, which are in tables of their own.
pub(super) fn group(row: &Row<'_>, first: usize) -> rusqlite::Result<Group> {
    Ok(Group {
        chain: row.get::<_, Option<[u8; 16]>>(first)?.map(Uuid::from_bytes),
        position: unsigned(row.get::<_, Option<i64>>(first + 1)?.unwrap_or_default()),
        records: unsigned(row.get(first + 2)?),
        newest_ms: row.get(first + 3)?,
        own: row.get(first + 4)?,
        hashes: row.get::<_, Option<Vec<u8>>>(first + 5)?.unwrap_or_default(),
        bytes: unpack(row.get(first + 6)?, row.get(first + 7)?),
        ..Group::default()
    })
}

#[async_trait::async_trait]
impl AuditLog for SqliteStore {
    async fn append(&self, group: Group) -> Result<(), AuditError> {
        self.append_group(group).await
    }

    async fn heads(&self, most: u32) -> Result<Vec<Head>, AuditError> {
        let read = move |connection: &mut Connection| {
            let mut heads = connection.prepare(HEADS)?;
            let heads = heads.query_map([most], |row| {
                let (chain, position) = (Uuid::from_bytes(row.get(0)?), unsigned(row.get(1)?));
                Ok(Head { chain, position, hash: row.get(2)? })
            })?;
            Ok(heads.collect::<Result<_, _>>()?)
        };
        self.run(read).await.map_err(|error| AuditError::Read(Arc::new(error)))
    }

    async fn unchained(&self) -> Result<u64, AuditError> {
        let count = |connection: &mut Connection| {
            let sql = "SELECT coalesce(sum(records), 0) FROM audit WHERE chain IS NULL";
            Ok(unsigned(connection.query_row(sql, [], |row| row.get(0))?))
        };
        self.run(count).await.map_err(|error| AuditError::Read(Arc::new(error)))
    }

    async fn find_issued(&self, token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError> {
        let wanted = *token_sha256;
        let find = move |connection: &mut Connection| {
            let sql = "SELECT bytes, unpacked FROM audit_token JOIN audit USING (sequence) WHERE token_sha256 = ?1
                       ORDER BY sequence LIMIT 1";
            let mut select = connection.prepare_cached(sql)?;
            Ok(select.query_row([wanted.as_slice()], |row| Ok(unpack(row.get(0)?, row.get(1)?))).optional()?)
        };
        let found = self.run(find).await.map_err(|error| AuditError::Read(Arc::new(error)))?;
        Ok(found.and_then(|bytes| find_hand_out(&bytes, wanted)))
    }

    async fn probe(&self) -> Result<(), AuditError> {
        // A record that comes and goes in one transaction: everything that an ordinary one needs, and nothing left of it.
        let write = |connection: &mut Connection| {
            let sql = "BEGIN;
                       INSERT INTO audit (records, newest_ms, bytes) VALUES (0, 0, x'');
                       DELETE FROM audit WHERE sequence = last_insert_rowid();
                       COMMIT;";
            let written = connection.execute_batch(sql);
            if written.is_err() && !connection.is_autocommit() {
                connection.execute_batch("ROLLBACK;")?;
            }
            Ok(written?)
        };
        self.run(write).await.map_err(|error| AuditError::Write(Arc::new(error)))
    }

    async fn checkpoint(&self, checkpoint: Checkpoint) -> Result<Kept, AuditError> {
        let keep = move |connection: &mut Connection| {
            let Checkpoint { chain, position, at_ms, statement, .. } = checkpoint;
            let transaction = connection.transaction()?;
            let sql = "DELETE FROM audit_checkpoint WHERE chain = ?1 AND position < ?2 AND anchor_ms IS NULL
                       AND at_ms / 3600000 = ?3 / 3600000";
            transaction.prepare_cached(sql)?.execute(params![chain.as_bytes(), signed(position), at_ms])?;
            let sql = "INSERT INTO audit_checkpoint (chain, position, at_ms, statement) VALUES (?1, ?2, ?3, ?4)
                       ON CONFLICT (chain, position) DO UPDATE SET at_ms = ?3, statement = ?4";
            let values = params![chain.as_bytes(), signed(position), at_ms, statement];
            transaction.prepare_cached(sql)?.execute(values)?;
            Ok(transaction.commit()?)
        };
        let kept = self.run(keep).await.map(|()| Kept::Yes);
        kept.map_err(|error| AuditError::Write(Arc::new(error)))
    }

    async fn prune(&self, expired: &Expired) -> Result<u64, AuditError> {
        let mut pruned = 0;
        // In pieces, so that exchanges are not held up.
        for step in retention::steps(expired) {
            loop {
                let step = step.clone();
                let piece = move |connection: &mut Connection| retention::take(connection, &step);
                let taken = self.run(piece).await.map_err(|error| AuditError::Write(Arc::new(error)))?;
                pruned += taken.records;
                if taken.rows == 0 {
                    break;
                }
            }
        }
        Ok(pruned)
    }
}

/// With one row for each chain that is there: from one to the next through the index, whatever the number of groups.
macro_rules! from_chain_to_chain {
    ($select:literal) => {
        concat!(
            "WITH RECURSIVE chains (chain) AS (
                 SELECT (SELECT chain FROM audit WHERE chain IS NOT NULL ORDER BY chain LIMIT 1)
                 UNION ALL
                 SELECT (SELECT chain FROM audit WHERE audit.chain > chains.chain ORDER BY chain LIMIT 1)
                 FROM chains WHERE chains.chain IS NOT NULL
             ), ends AS (
                 SELECT chain, (SELECT min(position) FROM audit WHERE audit.chain = chains.chain) AS first, (
                     SELECT sequence FROM audit WHERE audit.chain = chains.chain ORDER BY position DESC LIMIT 1
                 ) AS sequence FROM chains WHERE chains.chain IS NOT NULL
             ) ",
            $select
        )
    };
}

const HEADS: &str = from_chain_to_chain!(
    "SELECT ends.chain, position + records - 1, substr(hashes, -32) FROM ends JOIN audit USING (sequence)
     WHERE length(hashes) >= 32 ORDER BY newest_ms DESC, sequence DESC LIMIT ?1"
);

pub(super) const CHAINS: &str = from_chain_to_chain!(
    "SELECT ends.chain, first, position + records - 1,
            CASE WHEN length(hashes) >= 32 THEN substr(hashes, -32) END, newest_ms
     FROM ends JOIN audit USING (sequence) ORDER BY ends.chain"
);

/// Facts that go with a group of the spool.
const FACTS: u32 = 1000;

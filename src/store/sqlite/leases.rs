//! Leases in SQLite.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::{JobError, SqliteStore};
use crate::clock::{from_unix_milliseconds, unix_milliseconds};
use crate::exchange::{HistoryError, RunHistory};
use crate::lease::{Applied, Change, Found, Lease, LeaseQuery, LeaseStore, LeaseStoreError};
use crate::secret::SealingKeys;
use crate::store::lease::{LeaseRow, renewed, seal, unseal};
use crate::store::readable;

/// Heartbeats write the narrow table alone.
pub(super) const TABLES: &str = "
    CREATE TABLE lease (
        id BLOB PRIMARY KEY,
        token_sha256 BLOB NOT NULL UNIQUE,
        subject TEXT NOT NULL,
        job_id TEXT,
        job_name TEXT,
        opened_ms INTEGER NOT NULL,
        proved_ms INTEGER NOT NULL,
        not_after_ms INTEGER NOT NULL,
        heartbeat_ms INTEGER NOT NULL,
        heartbeat_before_ms INTEGER NOT NULL,
        end_kind TEXT, -- NULL: open
        ended_ms INTEGER,
        end_reason TEXT,
        written_ms INTEGER, -- when the end was written down
        recorded INTEGER NOT NULL DEFAULT 0 -- the end is in the audit log
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX lease_open ON lease (heartbeat_before_ms) WHERE end_kind IS NULL;
    CREATE INDEX lease_written ON lease (written_ms) WHERE end_kind IS NOT NULL;
    CREATE INDEX lease_unrecorded ON lease (written_ms) WHERE end_kind IS NOT NULL AND recorded = 0;
    CREATE INDEX lease_run ON lease (subject, job_name, ended_ms) WHERE end_kind = 'closed';
    CREATE TABLE lease_detail (
        id BLOB PRIMARY KEY,
        details BLOB NOT NULL, -- targets and job
        identity BLOB -- who opened it, sealed; gone when the lease has ended
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE alive (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        at_ms INTEGER NOT NULL -- when a broker last took heartbeats
    ) STRICT;
";

pub(super) const ENDED: &str = "CREATE INDEX lease_ended ON lease (ended_ms) WHERE end_kind IS NOT NULL";

/// The columns of [`LeaseRow`], in its order.
const COLUMNS: &str = "lease.id, token_sha256, subject, opened_ms, proved_ms, not_after_ms, heartbeat_ms, \
                       heartbeat_before_ms, end_kind, ended_ms, end_reason, details";

fn lease_row(row: &Row<'_>) -> rusqlite::Result<LeaseRow> {
    Ok(LeaseRow {
        id: Uuid::from_bytes(row.get(0)?),
        token_sha256: row.get(1)?,
        subject: row.get(2)?,
        opened_ms: row.get(3)?,
        proved_ms: row.get(4)?,
        not_after_ms: row.get(5)?,
        heartbeat_ms: row.get(6)?,
        heartbeat_before_ms: row.get(7)?,
        end_kind: row.get(8)?,
        ended_ms: row.get(9)?,
        end_reason: row.get(10)?,
        details: row.get(11)?,
    })
}

fn by_id(connection: &Connection, id: Uuid) -> Result<Option<Lease>, JobError> {
    let sql = format!("SELECT {COLUMNS} FROM lease JOIN lease_detail USING (id) WHERE lease.id = ?1");
    let row = connection.prepare_cached(&sql)?.query_row([id.as_bytes()], lease_row).optional()?;
    Ok(row.map(LeaseRow::lease).transpose()?)
}

fn make(change: Change, transaction: &Transaction<'_>, sealing: &SealingKeys) -> Result<Applied, JobError> {
    match change {
        Change::Open { lease, identity } => {
            insert(transaction, &LeaseRow::of(&lease), &lease, &seal(sealing, &lease, &identity)?)?;
            Ok(Applied { lease: Some(*lease), changed: true })
        }
        Change::Beat { id, now } => change_of(transaction, id, |lease| lease.beat(now)),
        Change::Extend { id, now, not_after, identity } => {
            let applied = change_of(transaction, id, |lease| lease.extend(now, not_after))?;
            if let (true, Some(lease)) = (applied.changed, &applied.lease) {
                let sql = "UPDATE lease_detail SET identity = ?2 WHERE id = ?1";
                let sealed = seal(sealing, lease, &identity)?;
                transaction.prepare_cached(sql)?.execute(params![id.as_bytes(), sealed])?;
            }
            Ok(applied)
        }
        Change::End { id, end } => {
            let sql = format!(
                "UPDATE lease SET end_kind = ?2, ended_ms = ?3, end_reason = ?4, written_ms = {NOW_MS}
                 WHERE id = ?1 AND end_kind IS NULL"
            );
            let values = params![id.as_bytes(), end.kind.as_str(), unix_milliseconds(end.at), end.reason];
            let changed = transaction.prepare_cached(&sql)?.execute(values)? > 0;
            if changed {
                let sql = "UPDATE lease_detail SET identity = NULL WHERE id = ?1";
                transaction.prepare_cached(sql)?.execute([id.as_bytes()])?;
            }
            Ok(Applied { lease: by_id(transaction, id)?, changed })
        }
        Change::Recorded { id } => {
            let sql = "UPDATE lease SET recorded = 1 WHERE id = ?1 AND end_kind IS NOT NULL AND recorded = 0";
            let changed = transaction.prepare_cached(sql)?.execute([id.as_bytes()])? > 0;
            Ok(Applied { lease: by_id(transaction, id)?, changed })
        }
    }
}

/// Seals anew who opened the leases that an older key had sealed.
pub(super) fn renew(connection: &mut Connection, sealing: &SealingKeys) -> Result<(), JobError> {
    if !sealing.is_rotating() {
        return Ok(());
    }
    let mut last = Vec::new();
    loop {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = format!(
            "SELECT {COLUMNS}, identity FROM lease JOIN lease_detail USING (id)
             WHERE identity IS NOT NULL AND lease.id > ?1 ORDER BY lease.id LIMIT 500"
        );
        let mut select = transaction.prepare_cached(&sql)?;
        let rows = select.query_map([&last], |row| Ok((lease_row(row)?, row.get::<_, Vec<u8>>(12)?)))?;
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        drop(select);
        let Some((row, _sealed)) = rows.last() else { return Ok(()) };
        last = row.id.as_bytes().to_vec();
        for (row, sealed) in rows {
            let lease = row.lease()?;
            if let Some(renewed) = renewed(sealing, &lease, &sealed) {
                let sql = "UPDATE lease_detail SET identity = ?2 WHERE id = ?1";
                transaction.prepare_cached(sql)?.execute(params![lease.id.as_bytes(), renewed])?;
            }
        }
        transaction.commit()?;
    }
}

fn insert(transaction: &Transaction<'_>, row: &LeaseRow, lease: &Lease, identity: &[u8]) -> Result<(), JobError> {
    let sql = "INSERT INTO lease (id, token_sha256, subject, job_id, job_name, opened_ms, proved_ms, not_after_ms,
                                  heartbeat_ms, heartbeat_before_ms)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    transaction.prepare_cached(sql)?.execute(params![
        row.id.as_bytes(),
        row.token_sha256,
        row.subject,
        lease.job.id,
        lease.job.name,
        row.opened_ms,
        row.proved_ms,
        row.not_after_ms,
        row.heartbeat_ms,
        row.heartbeat_before_ms
    ])?;
    let sql = "INSERT INTO lease_detail (id, details, identity) VALUES (?1, ?2, ?3)";
    transaction.prepare_cached(sql)?.execute(params![row.id.as_bytes(), row.details, identity])?;
    Ok(())
}

/// The lease's own rules decide; nobody else writes between reading and writing.
fn change_of(
    transaction: &Transaction<'_>,
    id: Uuid,
    rule: impl FnOnce(&mut Lease) -> bool,
) -> Result<Applied, JobError> {
    let Some(mut lease) = by_id(transaction, id)? else { return Ok(Applied { lease: None, changed: false }) };
    let changed = rule(&mut lease);
    if changed {
        let sql = "UPDATE lease SET proved_ms = ?2, not_after_ms = ?3, heartbeat_before_ms = ?4 WHERE id = ?1";
        let [proved, not_after, heartbeat_before] =
            [lease.proved_at, lease.not_after, lease.heartbeat_before].map(unix_milliseconds);
        transaction.prepare_cached(sql)?.execute(params![id.as_bytes(), proved, not_after, heartbeat_before])?;
    }
    Ok(Applied { lease: Some(lease), changed })
}

impl SqliteStore {
    /// Those that can be read.
    async fn leases(
        &self,
        read: impl FnOnce(&mut Connection) -> Result<Vec<LeaseRow>, JobError> + Send + 'static,
    ) -> Result<Vec<Lease>, LeaseStoreError> {
        let rows = self.run(read).await.map_err(LeaseStoreError::read)?;
        Ok(rows.into_iter().filter_map(readable).collect())
    }
}

#[async_trait::async_trait]
impl LeaseStore for SqliteStore {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, LeaseStoreError> {
        let sealing = self.sealing.clone();
        let apply = move |connection: &mut Connection| {
            // Reads before it writes: begun as a reader, it would fail where another process wrote meanwhile.
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let applied = changes.into_iter().map(|change| make(change, &transaction, &sealing));
            let applied = applied.collect::<Result<Vec<_>, _>>()?;
            transaction.commit()?;
            Ok(applied)
        };
        self.run(apply).await.map_err(LeaseStoreError::written)
    }

    async fn find(&self, token_sha256: &[u8; 32]) -> Result<Option<Found>, LeaseStoreError> {
        let token_sha256 = *token_sha256;
        let find = move |connection: &mut Connection| {
            let sql =
                format!("SELECT {COLUMNS}, identity FROM lease JOIN lease_detail USING (id) WHERE token_sha256 = ?1");
            let mut select = connection.prepare_cached(&sql)?;
            let whole = |row: &Row<'_>| Ok((lease_row(row)?, row.get::<_, Option<Vec<u8>>>(12)?));
            Ok(select.query_row([token_sha256.as_slice()], whole).optional()?)
        };
        let Some((row, sealed)) = self.run(find).await.map_err(LeaseStoreError::read)? else { return Ok(None) };
        let lease = row.lease().map_err(LeaseStoreError::read)?;
        let identity = sealed.map(|sealed| unseal(&self.sealing, &lease, &sealed)).transpose();
        Ok(Some(Found { lease, identity: identity.map_err(LeaseStoreError::read) }))
    }

    async fn list(&self, query: &LeaseQuery, now: SystemTime) -> Result<Vec<Lease>, LeaseStoreError> {
        let (filter, only_active) = (&query.filter, query.states == [None]);
        let wanted = |lease: &Lease| {
            let state = lease.end_at(now).map(|end| end.kind);
            filter.matches(lease) && (query.states.is_empty() || query.states.contains(&state))
        };
        let (mut listed, mut before) = (Vec::new(), query.before);
        loop {
            // In pieces, so that exchanges are not held up.
            let filter = filter.clone();
            let piece = move |connection: &mut Connection| {
                let sql = format!(
                    "SELECT {COLUMNS} FROM lease JOIN lease_detail USING (id)
                     WHERE (?1 IS NULL OR lease.id < ?1) AND (?2 IS NULL OR subject = ?2)
                       AND (?3 IS NULL OR job_id = ?3) AND (?4 IS NULL OR job_name = ?4)
                       AND (NOT ?5 OR (end_kind IS NULL AND heartbeat_before_ms > ?6))
                     ORDER BY lease.id DESC LIMIT ?7"
                );
                let values = params![
                    before.as_ref().map(Uuid::as_bytes),
                    filter.subject,
                    filter.job_id,
                    filter.job_name,
                    only_active,
                    unix_milliseconds(now),
                    limit(LIST_PIECE)
                ];
                let mut select = connection.prepare_cached(&sql)?;
                Ok(select.query_map(values, lease_row)?.collect::<Result<Vec<_>, _>>()?)
            };
            let rows = self.run(piece).await.map_err(LeaseStoreError::read)?;
            before = rows.last().map(|row| row.id);
            let more = rows.len() == LIST_PIECE;
            let leases = rows.into_iter().map(LeaseRow::lease).collect::<Result<Vec<_>, _>>();
            let leases = leases.map_err(LeaseStoreError::read)?;
            listed.extend(leases.into_iter().filter(wanted).take(query.most - listed.len()));
            if !more || listed.len() >= query.most {
                return Ok(listed);
            }
        }
    }

    async fn lapsed(&self, now: SystemTime, most: usize) -> Result<Vec<Lease>, LeaseStoreError> {
        self.leases(move |connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM lease JOIN lease_detail USING (id)
                 WHERE end_kind IS NULL AND heartbeat_before_ms <= ?1 LIMIT ?2"
            );
            let mut select = connection.prepare_cached(&sql)?;
            let rows = select.query_map(params![unix_milliseconds(now), limit(most)], lease_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn ended_within(&self, window: Duration) -> Result<Vec<Uuid>, LeaseStoreError> {
        let ended = move |connection: &mut Connection| {
            let sql = format!("SELECT id FROM lease WHERE end_kind IS NOT NULL AND written_ms >= {NOW_MS} - ?1");
            let mut select = connection.prepare_cached(&sql)?;
            let ids = select.query_map([milliseconds(window)], |row| Ok(Uuid::from_bytes(row.get(0)?)))?;
            Ok(ids.collect::<Result<_, _>>()?)
        };
        self.run(ended).await.map_err(LeaseStoreError::read)
    }

    async fn unrecorded(&self, age: Duration, most: usize) -> Result<Vec<Lease>, LeaseStoreError> {
        self.leases(move |connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM lease JOIN lease_detail USING (id)
                 WHERE end_kind IS NOT NULL AND recorded = 0 AND written_ms < {NOW_MS} - ?1 LIMIT ?2"
            );
            let mut select = connection.prepare_cached(&sql)?;
            let rows = select.query_map(params![milliseconds(age), limit(most)], lease_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn alive(&self, now: SystemTime, outage: Duration) -> Result<bool, LeaseStoreError> {
        let alive = move |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let last = transaction.query_row("SELECT at_ms FROM alive", [], |row| row.get::<_, i64>(0)).optional()?;
            let last = last.map_or(now, from_unix_milliseconds);
            let forgiven = now > last + outage;
            if forgiven {
                let sql = "UPDATE lease
                           SET heartbeat_before_ms = min(not_after_ms, max(heartbeat_before_ms, ?1 + heartbeat_ms))
                           WHERE end_kind IS NULL AND heartbeat_before_ms > ?2";
                transaction.execute(sql, params![unix_milliseconds(now), unix_milliseconds(last)])?;
            }
            let sql = "INSERT INTO alive VALUES (1, ?1) ON CONFLICT (one) DO UPDATE SET at_ms = max(at_ms, ?1)";
            transaction.execute(sql, [unix_milliseconds(now)])?;
            transaction.commit()?;
            Ok(forgiven)
        };
        self.run(alive).await.map_err(LeaseStoreError::written)
    }

    async fn prune(&self, before: SystemTime) -> Result<usize, LeaseStoreError> {
        let before = unix_milliseconds(before);
        let mut pruned = 0;
        loop {
            // In pieces, so that exchanges are not held up.
            let piece = move |connection: &mut Connection| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let old = "SELECT id FROM lease WHERE end_kind IS NOT NULL AND recorded = 1 AND ended_ms < ?1
                           ORDER BY ended_ms LIMIT 500";
                transaction.execute(&format!("DELETE FROM lease_detail WHERE id IN ({old})"), [before])?;
                let dropped = transaction.execute(&format!("DELETE FROM lease WHERE id IN ({old})"), [before])?;
                transaction.commit()?;
                Ok(dropped)
            };
            match self.run(piece).await.map_err(LeaseStoreError::written)? {
                0 => return Ok(pruned),
                dropped => pruned += dropped,
            }
        }
    }
}

#[async_trait::async_trait]
impl RunHistory for SqliteStore {
    async fn runs(&self, subject: &str, job_name: &str, most: usize) -> Result<Vec<Duration>, HistoryError> {
        let (subject, job_name) = (subject.to_owned(), job_name.to_owned());
        let runs = move |connection: &mut Connection| {
            let sql = "SELECT ended_ms - opened_ms FROM lease
                       WHERE end_kind = 'closed' AND subject = ?1 AND job_name = ?2 ORDER BY ended_ms DESC LIMIT ?3";
            let mut select = connection.prepare_cached(sql)?;
            let rows = select.query_map(params![subject, job_name, limit(most)], |row| row.get::<_, i64>(0))?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        };
        let runs = self.run(runs).await.map_err(|error| HistoryError(Box::new(error)))?;
        Ok(runs.into_iter().map(|milliseconds| Duration::from_millis(milliseconds.unsigned_abs())).collect())
    }
}

/// The store's own clock: one for all who look for what was written lately.
const NOW_MS: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

/// Leases that are looked at before others have their turn.
const LIST_PIECE: usize = 1000;

fn milliseconds(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

fn limit(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

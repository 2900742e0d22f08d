//! Leases in PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures_util::future::try_join_all;
use tokio_postgres::types::Type;
use tokio_postgres::{Row, Transaction};
use uuid::Uuid;

use super::pool::{DEADLINE, Parameter, StatementError};
use super::{PostgresError, PostgresStore};
use crate::clock::unix_milliseconds;
use crate::exchange::{HistoryError, RunHistory};
use crate::lease::{Applied, Change, Found, Lease, LeaseQuery, LeaseStore, LeaseStoreError};
use crate::store::lease::{LeaseRow, renewed, seal, unseal};
use crate::store::readable;

/// Heartbeats write the narrow table alone.
pub(super) const TABLES: &str = "
    CREATE TABLE lease (
        id bytea PRIMARY KEY,
        token_sha256 bytea NOT NULL UNIQUE,
        subject text NOT NULL,
        job_id text,
        job_name text,
        opened_ms bigint NOT NULL,
        proved_ms bigint NOT NULL,
        not_after_ms bigint NOT NULL,
        heartbeat_ms bigint NOT NULL,
        heartbeat_before_ms bigint NOT NULL,
        end_kind text, -- NULL: open
        ended_ms bigint,
        end_reason text,
        written timestamptz, -- when the end was written down
        recorded boolean NOT NULL DEFAULT false -- the end is in the audit log
    ) WITH (fillfactor = 80);
    CREATE INDEX lease_open ON lease (heartbeat_before_ms) WHERE end_kind IS NULL;
    CREATE INDEX lease_written ON lease (written) WHERE end_kind IS NOT NULL;
    CREATE INDEX lease_unrecorded ON lease (written) WHERE end_kind IS NOT NULL AND NOT recorded;
    CREATE INDEX lease_run ON lease (subject, job_name, ended_ms) WHERE end_kind = 'closed';
    CREATE TABLE lease_detail (
        id bytea PRIMARY KEY,
        details bytea NOT NULL, -- targets and job
        identity bytea -- who opened it, sealed; gone when the lease has ended
    );
    CREATE TABLE alive (
        one integer PRIMARY KEY CHECK (one = 1),
        at_ms bigint NOT NULL -- when a broker last took heartbeats
    );
";

pub(super) const ENDED: &str = "CREATE INDEX lease_ended ON lease (ended_ms) WHERE end_kind IS NOT NULL";

/// What a replica's clock says, unless it is ahead of the server's: it must not end what the cluster keeps.
const NOW_MS: &str = "least($1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)";

/// The columns of [`LeaseRow`], in its order.
const COLUMNS: &str = "lease.id, token_sha256, subject, opened_ms, proved_ms, not_after_ms, heartbeat_ms, \
                       heartbeat_before_ms, end_kind, ended_ms, end_reason, details";

fn lease_row(row: &Row) -> Result<LeaseRow, tokio_postgres::Error> {
    Ok(LeaseRow {
        id: Uuid::from_slice(row.try_get(0)?).unwrap_or_default(),
        token_sha256: row.try_get(1)?,
        subject: row.try_get(2)?,
        opened_ms: row.try_get(3)?,
        proved_ms: row.try_get(4)?,
        not_after_ms: row.try_get(5)?,
        heartbeat_ms: row.try_get(6)?,
        heartbeat_before_ms: row.try_get(7)?,
        end_kind: row.try_get(8)?,
        ended_ms: row.try_get(9)?,
        end_reason: row.try_get(10)?,
        details: row.try_get(11)?,
    })
}

fn lease(row: &Row) -> Result<Lease, PostgresError> {
    Ok(lease_row(row)?.lease()?)
}

/// A group of changes: every lease that they are about is read and locked at once, the lease's own rules decide, and what
/// changed is written at once.
struct Group<'a> {
    transaction: &'a Transaction<'a>,
    leases: BTreeMap<Uuid, Lease>,
    opened: Vec<(Lease, Vec<u8>)>,
    changed: BTreeSet<Uuid>,
    identities: BTreeMap<Uuid, Vec<u8>>,
    recorded: BTreeSet<Uuid>,
}

impl<'a> Group<'a> {
    /// In the order of their ids, so that groups of two replicas do not wait for each other.
    async fn lock(transaction: &'a Transaction<'a>, ids: &[&[u8]]) -> Result<Self, PostgresError> {
        let sql = format!(
            "SELECT {COLUMNS} FROM lease JOIN lease_detail USING (id)
             WHERE lease.id = ANY($1) ORDER BY lease.id FOR UPDATE OF lease"
        );
        let rows = transaction.query_typed(&sql, &[(&ids as _, Type::BYTEA_ARRAY)]).await?;
        let leases = rows.iter().map(|row| lease(row).map(|lease| (lease.id, lease))).collect::<Result<_, _>>()?;
        let (opened, identities) = (Vec::new(), BTreeMap::new());
        Ok(Self { transaction, leases, opened, changed: BTreeSet::new(), identities, recorded: BTreeSet::new() })
    }

    fn apply(&mut self, store: &PostgresStore, change: Change) -> Result<Applied, PostgresError> {
        let id = id_of(&change);
        if let Change::Open { lease, identity } = change {
            self.opened.push((Lease::clone(&lease), seal(&store.sealing, &lease, &identity)?));
            self.leases.insert(id, Lease::clone(&lease));
            return Ok(Applied { lease: Some(*lease), changed: true });
        }
        let Some(lease) = self.leases.get_mut(&id) else { return Ok(Applied { lease: None, changed: false }) };
        let changed = match change {
            Change::Open { .. } => false,
            Change::Beat { now, .. } => lease.beat(now),
            Change::Extend { now, not_after, identity, .. } => {
                let extended = lease.extend(now, not_after);
                if extended {
                    self.identities.insert(id, seal(&store.sealing, lease, &identity)?);
                }
                extended
            }
            Change::End { end, .. } => {
                let open = lease.end.is_none();
                lease.end.get_or_insert(end);
                open
            }
            Change::Recorded { .. } => {
                let first = lease.end.is_some() && self.recorded.insert(id);
                return Ok(Applied { lease: Some(lease.clone()), changed: first });
            }
        };
        if changed {
            self.changed.insert(id);
        }
        Ok(Applied { lease: Some(lease.clone()), changed })
    }

    /// Returns what was on record before.
    async fn write(self) -> Result<BTreeSet<Uuid>, PostgresError> {
        try_join_all(self.opened.iter().map(|(lease, identity)| insert(self.transaction, lease, identity))).await?;
        self.write_identities().await?;
        self.write_changed().await?;
        self.write_recorded().await
    }

    async fn write_changed(&self) -> Result<(), PostgresError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let rows: Vec<LeaseRow> = self.changed.iter().filter_map(|id| self.leases.get(id)).map(LeaseRow::of).collect();
        let ids: Vec<&[u8]> = rows.iter().map(|row| row.id.as_bytes().as_slice()).collect();
        let times = |time: fn(&LeaseRow) -> i64| rows.iter().map(time).collect::<Vec<i64>>();
        let texts = |text: fn(&LeaseRow) -> &Option<String>| rows.iter().map(text).collect::<Vec<_>>();
        let ended: Vec<Option<i64>> = rows.iter().map(|row| row.ended_ms).collect();
        let sql = "WITH changed AS (
                       SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7)
                       AS changed (id, proved, not_after, heartbeat_before, kind, ended, reason)
                   ), without_identity AS (
                       UPDATE lease_detail SET identity = NULL FROM changed
                       WHERE lease_detail.id = changed.id AND changed.kind IS NOT NULL
                   )
                   UPDATE lease SET proved_ms = proved, not_after_ms = not_after,
                       heartbeat_before_ms = heartbeat_before, end_kind = kind, ended_ms = ended, end_reason = reason,
                       written = CASE WHEN kind IS NULL THEN NULL ELSE clock_timestamp() END
                   FROM changed WHERE lease.id = changed.id";
        let (proved, not_after) = (times(|row| row.proved_ms), times(|row| row.not_after_ms));
        let heartbeat_before = times(|row| row.heartbeat_before_ms);
        let (kinds, reasons) = (texts(|row| &row.end_kind), texts(|row| &row.end_reason));
        let values = [
            (&ids as _, Type::BYTEA_ARRAY),
            (&proved as _, Type::INT8_ARRAY),
            (&not_after as _, Type::INT8_ARRAY),
            (&heartbeat_before as _, Type::INT8_ARRAY),
            (&kinds as _, Type::TEXT_ARRAY),
            (&ended as _, Type::INT8_ARRAY),
            (&reasons as _, Type::TEXT_ARRAY),
        ];
        self.transaction.query_typed(sql, &values).await?;
        Ok(())
    }

    /// After the ends. Returns what was on record before.
    async fn write_recorded(mut self) -> Result<BTreeSet<Uuid>, PostgresError> {
        if self.recorded.is_empty() {
            return Ok(self.recorded);
        }
        let ids: Vec<&[u8]> = self.recorded.iter().map(|id| id.as_bytes().as_slice()).collect();
        let sql = "UPDATE lease SET recorded = true WHERE id = ANY($1) AND NOT recorded RETURNING id";
        for row in self.transaction.query_typed(sql, &[(&ids as _, Type::BYTEA_ARRAY)]).await? {
            self.recorded.remove(&Uuid::from_slice(row.try_get(0)?).unwrap_or_default());
        }
        Ok(self.recorded)
    }

    /// Of leases that were extended; before the ends, which take them away again.
    async fn write_identities(&self) -> Result<(), PostgresError> {
        let sql = "UPDATE lease_detail SET identity = $2 WHERE id = $1";
        let update = |(id, identity): (&Uuid, &Vec<u8>)| {
            let (id, identity) = (id.as_bytes().to_vec(), identity.clone());
            async move { self.transaction.query_typed(sql, &[bytes(&id), bytes(&identity)]).await }
        };
        try_join_all(self.identities.iter().map(update)).await?;
        Ok(())
    }
}

async fn insert(transaction: &Transaction<'_>, lease: &Lease, identity: &Vec<u8>) -> Result<(), PostgresError> {
    let sql = "WITH opened AS (
                   INSERT INTO lease (id, token_sha256, subject, job_id, job_name, opened_ms, proved_ms, not_after_ms,
                                      heartbeat_ms, heartbeat_before_ms)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
               )
               INSERT INTO lease_detail (id, details, identity) VALUES ($1, $11, $12)";
    let row = LeaseRow::of(lease);
    let id = row.id.as_bytes().as_slice();
    let values = [
        bytes(&id),
        bytes(&row.token_sha256),
        (&row.subject as _, Type::TEXT),
        (&lease.job.id as _, Type::TEXT),
        (&lease.job.name as _, Type::TEXT),
        (&row.opened_ms as _, Type::INT8),
        (&row.proved_ms as _, Type::INT8),
        (&row.not_after_ms as _, Type::INT8),
        (&row.heartbeat_ms as _, Type::INT8),
        (&row.heartbeat_before_ms as _, Type::INT8),
        bytes(&row.details),
        bytes(identity),
    ];
    transaction.query_typed(sql, &values).await?;
    Ok(())
}

/// In pieces, each within the time that a statement has, and in the order of ids, as groups lock leases. Nobody sees a
/// piece before the others: it is one transaction.
async fn forgive(transaction: &Transaction<'_>, now_ms: i64, last: i64) -> Result<(), tokio_postgres::Error> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let sql = "WITH piece AS (
                       SELECT id FROM lease
                       WHERE ($3 IS NULL OR id > $3) AND end_kind IS NULL AND heartbeat_before_ms > $2
                       ORDER BY id LIMIT $4 FOR UPDATE
                   ), forgiven AS (
                       UPDATE lease
                       SET heartbeat_before_ms = least(not_after_ms, greatest(heartbeat_before_ms, $1 + heartbeat_ms))
                       FROM piece WHERE lease.id = piece.id
                   )
                   SELECT id FROM piece ORDER BY id DESC LIMIT 1";
        let values = [
            (&now_ms as _, Type::INT8),
            (&last as _, Type::INT8),
            (&after as _, Type::BYTEA),
            (&FORGIVE_PIECE as _, Type::INT8),
        ];
        match transaction.query_typed(sql, &values).await?.first() {
            Some(row) => after = Some(row.try_get(0)?),
            None => return Ok(()),
        }
    }
}

fn id_of(change: &Change) -> Uuid {
    match change {
        Change::Open { lease, .. } => lease.id,
        Change::Beat { id, .. } | Change::Extend { id, .. } | Change::End { id, .. } | Change::Recorded { id } => *id,
    }
}

fn bytes<'a>(bytes: &'a (impl tokio_postgres::types::ToSql + Sync)) -> Parameter<'a> {
    (bytes, Type::BYTEA)
}

impl PostgresStore {
    /// Seals anew who opened the leases that an older key had sealed.
    pub(super) async fn renew_leases(&self) -> Result<(), PostgresError> {
        let mut last = Vec::new();
        while self.sealing.is_rotating() {
            let sql = format!(
                "SELECT {COLUMNS}, identity FROM lease JOIN lease_detail USING (id)
                 WHERE identity IS NOT NULL AND lease.id > $1 ORDER BY lease.id LIMIT 500"
            );
            let rows = self.pool.query(&sql, &[bytes(&last)]).await?;
            let Some(row) = rows.last() else { break };
            last = row.try_get::<_, Vec<u8>>(0)?;
            for row in &rows {
                let (lease, sealed): (Lease, Vec<u8>) = (lease(row)?, row.try_get(12)?);
                if let Some(renewed) = renewed(&self.sealing, &lease, &sealed) {
                    // An extension may have sealed it anew meanwhile.
                    let sql = "UPDATE lease_detail SET identity = $3 WHERE id = $1 AND identity = $2";
                    let id = lease.id.as_bytes().as_slice();
                    self.pool.query(sql, &[bytes(&id), bytes(&sealed), bytes(&renewed)]).await?;
                }
            }
        }
        Ok(())
    }

    async fn apply_group(&self, changes: Vec<Change>) -> Result<Vec<Applied>, PostgresError> {
        let mut lent = self.leases.lend().await?;
        let transaction = lent.client_mut().transaction().await?;
        let ids: BTreeSet<Uuid> = changes.iter().map(id_of).collect();
        let ids: Vec<&[u8]> = ids.iter().map(|id| id.as_bytes().as_slice()).collect();
        let mut group = Group::lock(&transaction, &ids).await?;
        let mut applied = Vec::with_capacity(changes.len());
        let mut recorded = Vec::new();
        for (place, change) in changes.into_iter().enumerate() {
            recorded.extend(matches!(change, Change::Recorded { .. }).then(|| (place, id_of(&change))));
            applied.push(group.apply(self, change)?);
        }
        let before = group.write().await?;
        for (place, _id) in recorded.iter().filter(|(_place, id)| before.contains(id)) {
            applied.get_mut(*place).into_iter().for_each(|applied| applied.changed = false);
        }
        transaction.commit().await?;
        lent.give_back();
        Ok(applied)
    }

    async fn rows(&self, condition: &str, values: &[Parameter<'_>]) -> Result<Vec<LeaseRow>, LeaseStoreError> {
        let sql = format!("SELECT {COLUMNS} FROM lease JOIN lease_detail USING (id) WHERE {condition}");
        let rows = self.leases.query(&sql, values).await.map_err(LeaseStoreError::read)?;
        rows.iter().map(lease_row).collect::<Result<_, _>>().map_err(LeaseStoreError::read)
    }

    /// Those that can be read.
    async fn read_leases(&self, condition: &str, values: &[Parameter<'_>]) -> Result<Vec<Lease>, LeaseStoreError> {
        Ok(self.rows(condition, values).await?.into_iter().filter_map(readable).collect())
    }

    async fn alive_since(&self, now: SystemTime, outage: Duration) -> Result<bool, StatementError> {
        let mut lent = self.leases.lend().await?;
        let transaction = lent.client_mut().transaction().await?;
        transaction.batch_execute("SET LOCAL statement_timeout = '60s'").await?;
        // One replica at a time: of those that come back together, one forgives.
        let sql = format!(
            "INSERT INTO alive VALUES (1, {NOW_MS}) ON CONFLICT (one) DO UPDATE SET one = 1 RETURNING at_ms, {NOW_MS}"
        );
        let (now_ms, outage_ms) = (unix_milliseconds(now), milliseconds(outage));
        let row = transaction.query_typed(&sql, &[(&now_ms as _, Type::INT8)]).await?;
        let Some(row) = row.first() else { return Ok(false) };
        let (last, now_ms): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let forgiven = now_ms > last.saturating_add(outage_ms);
        if forgiven {
            forgive(&transaction, now_ms, last).await?;
        }
        let sql = "UPDATE alive SET at_ms = greatest(at_ms, $1)";
        transaction.query_typed(sql, &[(&now_ms as _, Type::INT8)]).await?;
        transaction.commit().await?;
        lent.give_back();
        Ok(forgiven)
    }
}

#[async_trait::async_trait]
impl LeaseStore for PostgresStore {
    async fn apply(&self, changes: Vec<Change>) -> Result<Vec<Applied>, LeaseStoreError> {
        self.leases.in_time(DEADLINE, self.apply_group(changes)).await.map_err(LeaseStoreError::written)
    }

    async fn find(&self, token_sha256: &[u8; 32]) -> Result<Option<Found>, LeaseStoreError> {
        let find = async {
            let sql =
                format!("SELECT {COLUMNS}, identity FROM lease JOIN lease_detail USING (id) WHERE token_sha256 = $1");
            let rows = self.leases.query(&sql, &[bytes(&token_sha256.as_slice())]).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let lease = lease(row)?;
            let sealed: Option<Vec<u8>> = row.try_get(12)?;
            let identity = sealed.map(|sealed| unseal(&self.sealing, &lease, &sealed)).transpose();
            let identity = identity.map_err(LeaseStoreError::read);
            Ok(Some(Found { lease, identity }))
        };
        find.await.map_err(|error: PostgresError| LeaseStoreError::read(error))
    }

    async fn list(&self, query: &LeaseQuery, now: SystemTime) -> Result<Vec<Lease>, LeaseStoreError> {
        let filter = &query.filter;
        let texts = [&filter.subject, &filter.job_id, &filter.job_name];
        if texts.into_iter().flatten().any(|text| text.contains('\0')) {
            // PostgreSQL takes no such text, so no lease has it.
            return Ok(Vec::new());
        }
        let (only_active, now_ms, piece) = (query.states == [None], unix_milliseconds(now), LIST_PIECE);
        let wanted = |lease: &Lease| {
            let state = lease.end_at(now).map(|end| end.kind);
            filter.matches(lease) && (query.states.is_empty() || query.states.contains(&state))
        };
        let (mut listed, mut before) = (Vec::new(), query.before);
        loop {
            let last = before.map(|id| id.as_bytes().to_vec());
            let values = [
                (&last as _, Type::BYTEA),
                (&filter.subject as _, Type::TEXT),
                (&filter.job_id as _, Type::TEXT),
                (&filter.job_name as _, Type::TEXT),
                (&only_active as _, Type::BOOL),
                (&now_ms as _, Type::INT8),
                (&piece as _, Type::INT8),
            ];
            let condition = "($1 IS NULL OR lease.id < $1) AND ($2 IS NULL OR subject = $2)
                             AND ($3 IS NULL OR job_id = $3) AND ($4 IS NULL OR job_name = $4)
                             AND (NOT $5 OR (end_kind IS NULL AND heartbeat_before_ms > $6))
                             ORDER BY lease.id DESC LIMIT $7";
            let rows = self.rows(condition, &values).await?;
            before = rows.last().map(|row| row.id);
            let more = i64::try_from(rows.len()).is_ok_and(|read| read == LIST_PIECE);
            let leases = rows.into_iter().map(LeaseRow::lease).collect::<Result<Vec<_>, _>>();
            let leases = leases.map_err(LeaseStoreError::read)?;
            listed.extend(leases.into_iter().filter(wanted).take(query.most - listed.len()));
            if !more || listed.len() >= query.most {
                return Ok(listed);
            }
        }
    }

    async fn lapsed(&self, now: SystemTime, most: usize) -> Result<Vec<Lease>, LeaseStoreError> {
        let (now_ms, most) = (unix_milliseconds(now), limit(most));
        let values = [(&now_ms as _, Type::INT8), (&most as _, Type::INT8)];
        let condition = format!("end_kind IS NULL AND heartbeat_before_ms <= {NOW_MS} LIMIT $2");
        self.read_leases(&condition, &values).await
    }

    async fn ended_within(&self, window: Duration) -> Result<Vec<Uuid>, LeaseStoreError> {
        let sql = "SELECT id FROM lease
                   WHERE end_kind IS NOT NULL AND written >= clock_timestamp() - make_interval(secs => $1)";
        let seconds = window.as_secs_f64();
        let rows = self.leases.query(sql, &[(&seconds as _, Type::FLOAT8)]).await.map_err(LeaseStoreError::read)?;
        let id = |row: &Row| Ok(Uuid::from_slice(row.try_get(0)?).unwrap_or_default());
        rows.iter().map(id).collect::<Result<_, tokio_postgres::Error>>().map_err(LeaseStoreError::read)
    }

    async fn unrecorded(&self, age: Duration, most: usize) -> Result<Vec<Lease>, LeaseStoreError> {
        let (seconds, most) = (age.as_secs_f64(), limit(most));
        let condition = "end_kind IS NOT NULL AND NOT recorded
                         AND written < clock_timestamp() - make_interval(secs => $1) LIMIT $2";
        self.read_leases(condition, &[(&seconds as _, Type::FLOAT8), (&most as _, Type::INT8)]).await
    }

    async fn alive(&self, now: SystemTime, outage: Duration) -> Result<bool, LeaseStoreError> {
        self.leases.in_time(ALIVE_DEADLINE, self.alive_since(now, outage)).await.map_err(LeaseStoreError::written)
    }

    async fn prune(&self, before: SystemTime) -> Result<usize, LeaseStoreError> {
        let before = unix_milliseconds(before);
        let mut pruned = 0;
        loop {
            // In pieces, so that exchanges are not held up; replicas that prune together take different ones.
            let sql = "WITH old AS (
                           DELETE FROM lease WHERE id IN (
                               SELECT id FROM lease WHERE end_kind IS NOT NULL AND recorded AND ended_ms < $1
                               ORDER BY ended_ms LIMIT 500 FOR UPDATE SKIP LOCKED
                           ) RETURNING id
                       ), details AS (DELETE FROM lease_detail USING old WHERE lease_detail.id = old.id)
                       SELECT count(*) FROM old";
            let rows = self.leases.query(sql, &[(&before as _, Type::INT8)]).await.map_err(LeaseStoreError::written)?;
            let dropped: i64 =
                rows.first().map(|row| row.try_get(0)).transpose().map_err(LeaseStoreError::written)?.unwrap_or(0);
            if dropped == 0 {
                return Ok(pruned);
            }
            pruned += usize::try_from(dropped).unwrap_or(0);
        }
    }
}

#[async_trait::async_trait]
impl RunHistory for PostgresStore {
    async fn runs(&self, subject: &str, job_name: &str, most: usize) -> Result<Vec<Duration>, HistoryError> {
        let sql = "SELECT ended_ms - opened_ms FROM lease
                   WHERE end_kind = 'closed' AND subject = $1 AND job_name = $2 ORDER BY ended_ms DESC LIMIT $3";
        let most = limit(most);
        let values = [(&subject as _, Type::TEXT), (&job_name as _, Type::TEXT), (&most as _, Type::INT8)];
        let rows = self.leases.query(sql, &values).await.map_err(|error| HistoryError(Box::new(error)))?;
        let run =
            |row: &Row| row.try_get(0).map(|milliseconds: i64| Duration::from_millis(milliseconds.unsigned_abs()));
        rows.iter().map(run).collect::<Result<_, _>>().map_err(|error| HistoryError(Box::new(error)))
    }
}

fn milliseconds(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

fn limit(most: usize) -> i64 {
    i64::try_from(most).unwrap_or(i64::MAX)
}

/// Leases that are forgiven in one statement.
const FORGIVE_PIECE: i64 = 5000;

/// Long enough to forgive a million leases, or to wait for the replica that does.
const ALIVE_DEADLINE: Duration = Duration::from_secs(60);

/// Leases that are looked at in one statement.
const LIST_PIECE: i64 = 1000;

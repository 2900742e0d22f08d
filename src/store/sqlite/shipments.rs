//! How far ways out have come, in SQLite: one broker uses the file, so nobody competes.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::SqliteStore;
use crate::audit::{AuditError, Gap, Shipments};
use crate::store::{signed, unsigned};

pub(super) const GAPS: &str = "
    -- What was not delivered of the records before those positions.
    CREATE TABLE audit_shipment_gap (
        outlet TEXT NOT NULL,
        chain BLOB NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        PRIMARY KEY (outlet, chain, first)
    ) STRICT, WITHOUT ROWID;
";

pub(super) const TABLE: &str = "
    -- How far records were shipped.
    CREATE TABLE audit_shipment (
        outlet TEXT NOT NULL,
        chain BLOB NOT NULL,
        position INTEGER NOT NULL,
        PRIMARY KEY (outlet, chain)
    ) STRICT, WITHOUT ROWID;
";

#[async_trait::async_trait]
impl Shipments for SqliteStore {
    async fn claim(&self, _outlet: &str, _owner: Uuid, _hold: Duration) -> Result<bool, AuditError> {
        Ok(true)
    }

    async fn release(&self, _outlet: &str, _owner: Uuid) -> Result<(), AuditError> {
        Ok(())
    }

    async fn delivered(&self, outlet: &str) -> Result<Vec<(Uuid, u64)>, AuditError> {
        let outlet = outlet.to_owned();
        let read = move |connection: &mut Connection| {
            let mut select = connection.prepare("SELECT chain, position FROM audit_shipment WHERE outlet = ?1")?;
            let rows = select.query_map([outlet], |row| Ok((Uuid::from_bytes(row.get(0)?), unsigned(row.get(1)?))))?;
            Ok(rows.collect::<Result<_, _>>()?)
        };
        self.run(read).await.map_err(|error| AuditError::Read(Arc::new(error)))
    }

    async fn gaps(&self, outlet: &str) -> Result<Vec<Gap>, AuditError> {
        let outlet = outlet.to_owned();
        let read = move |connection: &mut Connection| {
            let sql = "SELECT chain, first, last FROM audit_shipment_gap WHERE outlet = ?1 ORDER BY chain, first";
            let mut select = connection.prepare(sql)?;
            let rows = select.query_map([outlet], |row| {
                let (chain, first, last) = (Uuid::from_bytes(row.get(0)?), row.get(1)?, row.get(2)?);
                Ok(Gap { chain, first: unsigned(first), last: unsigned(last) })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        };
        self.run(read).await.map_err(|error| AuditError::Read(Arc::new(error)))
    }

    async fn deliver(
        &self,
        outlet: &str,
        _owner: Uuid,
        moved: &[(Uuid, u64)],
        gaps: &[Gap],
    ) -> Result<bool, AuditError> {
        let (outlet, moved, gaps) = (outlet.to_owned(), moved.to_vec(), gaps.to_vec());
        let note = move |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            for (chain, position) in moved {
                let sql = "INSERT INTO audit_shipment (outlet, chain, position) VALUES (?1, ?2, ?3)
                           ON CONFLICT (outlet, chain) DO UPDATE SET position = max(position, excluded.position)";
                transaction.prepare_cached(sql)?.execute(params![outlet, chain.as_bytes(), signed(position)])?;
            }
            transaction.prepare_cached("DELETE FROM audit_shipment_gap WHERE outlet = ?1")?.execute([&outlet])?;
            for Gap { chain, first, last } in gaps {
                let sql = "INSERT INTO audit_shipment_gap (outlet, chain, first, last) VALUES (?1, ?2, ?3, ?4)";
                let values = params![outlet, chain.as_bytes(), signed(first), signed(last)];
                transaction.prepare_cached(sql)?.execute(values)?;
            }
            Ok(transaction.commit()?)
        };
        self.run(note).await.map(|()| true).map_err(|error| AuditError::Write(Arc::new(error)))
    }

    async fn forget(&self, outlet: &str, chain: Uuid) -> Result<(), AuditError> {
        let outlet = outlet.to_owned();
        let forget = move |connection: &mut Connection| {
            let sql = "DELETE FROM audit_shipment WHERE outlet = ?1 AND chain = ?2";
            connection.execute(sql, params![outlet, chain.as_bytes()])?;
            let sql = "DELETE FROM audit_shipment_gap WHERE outlet = ?1 AND chain = ?2";
            connection.execute(sql, params![outlet, chain.as_bytes()])?;
            Ok(())
        };
        self.run(forget).await.map_err(|error| AuditError::Write(Arc::new(error)))
    }
}

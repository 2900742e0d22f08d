//! How far ways out have come, in PostgreSQL, and which replica ships.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{PostgresError, PostgresStore};
use crate::audit::{AuditError, Gap, Shipments};
use crate::store::{signed, unsigned};

pub(super) const GAPS: &str = "
    -- What was not delivered of the records before those positions.
    CREATE TABLE audit_shipment_gap (
        outlet text NOT NULL,
        chain bytea NOT NULL,
        first bigint NOT NULL,
        last bigint NOT NULL,
        PRIMARY KEY (outlet, chain, first)
    );
";

pub(super) const TABLES: &str = "
    -- How far records were shipped.
    CREATE TABLE audit_shipment (
        outlet text NOT NULL,
        chain bytea NOT NULL,
        position bigint NOT NULL,
        PRIMARY KEY (outlet, chain)
    );
    -- Which replica ships: after a crash of the server, whichever asks first.
    CREATE UNLOGGED TABLE audit_shipper (
        outlet text PRIMARY KEY,
        owner bytea NOT NULL,
        until timestamptz NOT NULL
    );
";

#[async_trait::async_trait]
impl Shipments for PostgresStore {
    async fn claim(&self, outlet: &str, owner: Uuid, hold: Duration) -> Result<bool, AuditError> {
        let claim = async {
            let sql = "INSERT INTO audit_shipper AS held (outlet, owner, until)
                       VALUES ($1, $2, now() + make_interval(secs => $3))
                       ON CONFLICT (outlet) DO UPDATE SET owner = excluded.owner, until = excluded.until
                       WHERE held.until < now() OR held.owner = excluded.owner RETURNING 1";
            let (owner, hold) = (owner.as_bytes().as_slice(), hold.as_secs_f64());
            let values = [(&outlet as _, Type::TEXT), (&owner as _, Type::BYTEA), (&hold as _, Type::FLOAT8)];
            Ok(!self.leases.query(sql, &values).await?.is_empty())
        };
        claim.await.map_err(written)
    }

    async fn release(&self, outlet: &str, owner: Uuid) -> Result<(), AuditError> {
        let release = async {
            let sql = "DELETE FROM audit_shipper WHERE outlet = $1 AND owner = $2";
            let owner = owner.as_bytes().as_slice();
            Ok(self.leases.query(sql, &[(&outlet as _, Type::TEXT), (&owner as _, Type::BYTEA)]).await.map(drop)?)
        };
        release.await.map_err(written)
    }

    async fn delivered(&self, outlet: &str) -> Result<Vec<(Uuid, u64)>, AuditError> {
        let read = async {
            let sql = "SELECT chain, position FROM audit_shipment WHERE outlet = $1";
            let rows = self.leases.query(sql, &[(&outlet as _, Type::TEXT)]).await?;
            let row = |row: &tokio_postgres::Row| -> Result<Option<(Uuid, u64)>, PostgresError> {
                let (chain, position): (Vec<u8>, i64) = (row.try_get(0)?, row.try_get(1)?);
                Ok(Uuid::from_slice(&chain).ok().map(|chain| (chain, unsigned(position))))
            };
            rows.iter().filter_map(|found| row(found).transpose()).collect::<Result<Vec<_>, _>>()
        };
        read.await.map_err(|error: PostgresError| AuditError::Read(Arc::new(error)))
    }

    async fn gaps(&self, outlet: &str) -> Result<Vec<Gap>, AuditError> {
        let read = async {
            let sql = "SELECT chain, first, last FROM audit_shipment_gap WHERE outlet = $1 ORDER BY chain, first";
            let rows = self.leases.query(sql, &[(&outlet as _, Type::TEXT)]).await?;
            let row = |row: &tokio_postgres::Row| -> Result<Option<Gap>, PostgresError> {
                let (chain, first, last): (Vec<u8>, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                let (first, last) = (unsigned(first), unsigned(last));
                Ok(Uuid::from_slice(&chain).ok().map(|chain| Gap { chain, first, last }))
            };
            rows.iter().filter_map(|found| row(found).transpose()).collect::<Result<Vec<_>, _>>()
        };
        read.await.map_err(|error: PostgresError| AuditError::Read(Arc::new(error)))
    }

    async fn deliver(
        &self,
        outlet: &str,
        owner: Uuid,
        moved: &[(Uuid, u64)],
        gaps: &[Gap],
    ) -> Result<bool, AuditError> {
        let deliver = async {
            let sql = "WITH held AS (SELECT 1 FROM audit_shipper WHERE outlet = $1 AND owner = $2 AND until >= now()),
                       noted AS (INSERT INTO audit_shipment AS kept (outlet, chain, position)
                                 SELECT $1, moved.chain, moved.position
                                 FROM held, unnest($3::bytea[], $4::bigint[]) AS moved (chain, position)
                                 ON CONFLICT (outlet, chain)
                                 DO UPDATE SET position = greatest(kept.position, excluded.position)),
                       gaps AS (SELECT * FROM unnest($5::bytea[], $6::bigint[], $7::bigint[]) AS gap (chain, first, last)),
                       closed AS (DELETE FROM audit_shipment_gap AS gap USING held WHERE gap.outlet = $1
                                  AND NOT EXISTS (SELECT 1 FROM gaps
                                                  WHERE gaps.chain = gap.chain AND gaps.first = gap.first)),
                       opened AS (INSERT INTO audit_shipment_gap AS gap (outlet, chain, first, last)
                                  SELECT $1, gaps.chain, gaps.first, gaps.last FROM held, gaps
                                  ON CONFLICT (outlet, chain, first) DO UPDATE SET last = excluded.last)
                       SELECT 1 FROM held";
            let owner = owner.as_bytes().as_slice();
            let chains: Vec<&[u8]> = moved.iter().map(|(chain, _position)| chain.as_bytes().as_slice()).collect();
            let positions: Vec<i64> = moved.iter().map(|(_chain, position)| signed(*position)).collect();
            let missing: Vec<&[u8]> = gaps.iter().map(|gap| gap.chain.as_bytes().as_slice()).collect();
            let firsts: Vec<i64> = gaps.iter().map(|gap| signed(gap.first)).collect();
            let lasts: Vec<i64> = gaps.iter().map(|gap| signed(gap.last)).collect();
            let values = [
                (&outlet as _, Type::TEXT),
                (&owner as _, Type::BYTEA),
                (&chains as _, Type::BYTEA_ARRAY),
                (&positions as _, Type::INT8_ARRAY),
                (&missing as _, Type::BYTEA_ARRAY),
                (&firsts as _, Type::INT8_ARRAY),
                (&lasts as _, Type::INT8_ARRAY),
            ];
            Ok(!self.leases.query(sql, &values).await?.is_empty())
        };
        deliver.await.map_err(written)
    }

    async fn forget(&self, outlet: &str, chain: Uuid) -> Result<(), AuditError> {
        let forget = async {
            let sql = "WITH gaps AS (DELETE FROM audit_shipment_gap WHERE outlet = $1 AND chain = $2)
                       DELETE FROM audit_shipment WHERE outlet = $1 AND chain = $2";
            let chain = chain.as_bytes().as_slice();
            Ok(self.leases.query(sql, &[(&outlet as _, Type::TEXT), (&chain as _, Type::BYTEA)]).await.map(drop)?)
        };
        forget.await.map_err(written)
    }
}

fn written(error: PostgresError) -> AuditError {
    AuditError::Write(Arc::new(error))
}

//! How far ways out have come, in PostgreSQL, and which replica ships.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{PostgresError, PostgresStore};
use crate::audit::{AuditError, Shipments};
use crate::store::{signed, unsigned};

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

    async fn deliver(&self, outlet: &str, owner: Uuid, moved: &[(Uuid, u64)]) -> Result<bool, AuditError> {
        let deliver = async {
            let sql = "WITH held AS (SELECT 1 FROM audit_shipper WHERE outlet = $1 AND owner = $2 AND until >= now()),
                       noted AS (INSERT INTO audit_shipment AS kept (outlet, chain, position)
                                 SELECT $1, moved.chain, moved.position
                                 FROM held, unnest($3::bytea[], $4::bigint[]) AS moved (chain, position)
                                 ON CONFLICT (outlet, chain)
                                 DO UPDATE SET position = greatest(kept.position, excluded.position))
                       SELECT 1 FROM held";
            let owner = owner.as_bytes().as_slice();
            let chains: Vec<&[u8]> = moved.iter().map(|(chain, _position)| chain.as_bytes().as_slice()).collect();
            let positions: Vec<i64> = moved.iter().map(|(_chain, position)| signed(*position)).collect();
            let values = [
                (&outlet as _, Type::TEXT),
                (&owner as _, Type::BYTEA),
                (&chains as _, Type::BYTEA_ARRAY),
                (&positions as _, Type::INT8_ARRAY),
            ];
            Ok(!self.leases.query(sql, &values).await?.is_empty())
        };
        deliver.await.map_err(written)
    }

    async fn forget(&self, outlet: &str, chain: Uuid) -> Result<(), AuditError> {
        let forget = async {
            let sql = "DELETE FROM audit_shipment WHERE outlet = $1 AND chain = $2";
            let chain = chain.as_bytes().as_slice();
            Ok(self.leases.query(sql, &[(&outlet as _, Type::TEXT), (&chain as _, Type::BYTEA)]).await.map(drop)?)
        };
        forget.await.map_err(written)
    }
}

fn written(error: PostgresError) -> AuditError {
    AuditError::Write(Arc::new(error))
}

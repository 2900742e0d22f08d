//! The store of several replicas: one PostgreSQL database.

mod audit;
mod leases;
mod look;
mod pool;
mod reader;
mod retention;
mod schema;
mod settings;
mod shared;
mod shipments;
mod tls;

pub(super) use look::look;
pub(super) use reader::PostgresReader;
pub use settings::{InvalidUrl, PostgresSettings};

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::Type;

use self::pool::{DEADLINE, Pool, StatementError};
use self::schema::SCHEMA_VERSION;
use super::OpenError;
use super::issuer_key::{self, KeyRow, KeyRowError};
use super::lease::LeaseRowError;
use crate::http::ClientError;
use crate::issuer::{KeyStore, KeyStoreError, StoredKey};
use crate::secret::SealingKeys;

/// Audit records, leases, issuer keys and shared credentials in one database.
#[derive(Debug)]
pub struct PostgresStore {
    pool: Pool,
    /// Connections of their own, for leases and whatever is looked up: nobody queues before the audit log.
    leases: Pool,
    /// Connections of their own: a rush of new credentials does not hold the audit log up.
    shared: Pool,
    sealing: Arc<SealingKeys>,
}

/// Why the store does not do what it is asked.
#[derive(Debug, thiserror::Error)]
enum PostgresError {
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Key(#[from] KeyRowError),
    #[error(transparent)]
    Lease(#[from] LeaseRowError),
    #[error(transparent)]
    Tls(#[from] ClientError),
    #[error("other records have the place in the chain that these were to have")]
    PlaceTaken,
}

impl PostgresStore {
    /// Connects and brings the schema up to date. `sealing` encrypts what must stay secret.
    pub async fn open(settings: &PostgresSettings, sealing: Arc<SealingKeys>) -> Result<Self, OpenError> {
        let failed = |source: PostgresError| OpenError::Open { store: settings.to_string(), source: Box::new(source) };
        let pool = Pool::new(settings, CONNECTIONS).map_err(|error| failed(error.into()))?;
        let (leases, shared) = (pool.beside(LEASE_CONNECTIONS), pool.beside(SHARING_CONNECTIONS));
        let store = Self { pool, leases, shared, sealing };
        let version = store.prepare().await.map_err(failed)?;
        if version > SCHEMA_VERSION {
            return Err(OpenError::Newer { store: settings.to_string(), found: version, known: SCHEMA_VERSION });
        }
        store.renew_keys().await.map_err(failed)?;
        store.renew_leases().await.map_err(failed)?;
        Ok(store)
    }

    /// For those who look at the audit log.
    pub(super) fn reader(&self) -> PostgresReader {
        PostgresReader::beside(&self.pool)
    }

    async fn prepare(&self) -> Result<i64, PostgresError> {
        let mut lent = self.pool.in_time(DEADLINE, self.pool.lend()).await?;
        let version = self
            .pool
            .in_time(PREPARE_DEADLINE, async { Ok::<_, StatementError>(schema::prepare(lent.client_mut()).await?) });
        let version = version.await?;
        lent.give_back();
        Ok(version)
    }

    /// Seals the issuer's keys anew that an older key had sealed.
    async fn renew_keys(&self) -> Result<(), PostgresError> {
        for row in self.pool.query("SELECT kid, sealed FROM issuer_key", &[]).await? {
            let (kid, sealed): (String, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
            if let Some(renewed) = issuer_key::renewed(&self.sealing, &kid, &sealed) {
                // Another replica may have been faster.
                let sql = "UPDATE issuer_key SET sealed = $3 WHERE kid = $1 AND sealed = $2";
                let values = [(&kid as _, Type::TEXT), (&sealed as _, Type::BYTEA), (&renewed as _, Type::BYTEA)];
                self.pool.query(sql, &values).await?;
            }
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl KeyStore for PostgresStore {
    async fn keys(&self) -> Result<Vec<StoredKey>, KeyStoreError> {
        keys(&self.pool, &self.sealing).await
    }

    async fn add(&self, key: &StoredKey, after: Option<&str>) -> Result<(), KeyStoreError> {
        let add = async {
            let row = KeyRow::seal(&self.sealing, key)?;
            Ok(self.pool.in_time(DEADLINE, self.add_after(&row, after)).await?)
        };
        add.await.map_err(|error: PostgresError| KeyStoreError { action: "kept", source: error.into() })
    }

    async fn remove(&self, kid: &str) -> Result<(), KeyStoreError> {
        let removed = self.pool.query("DELETE FROM issuer_key WHERE kid = $1", &[(&kid, Type::TEXT)]).await;
        removed.map(drop).map_err(|error| KeyStoreError { action: "removed", source: Box::new(error) })
    }
}

async fn keys(pool: &Pool, sealing: &SealingKeys) -> Result<Vec<StoredKey>, KeyStoreError> {
    let read = async {
        let sql = "SELECT kid, algorithm, created_ms, signs_from_ms, sealed FROM issuer_key
                   ORDER BY signs_from_ms, created_ms, kid";
        let unsealed = |row: tokio_postgres::Row| -> Result<StoredKey, PostgresError> {
            let (kid, algorithm, sealed) = (row.try_get(0)?, row.try_get(1)?, row.try_get(4)?);
            let row = KeyRow { kid, algorithm, created_ms: row.try_get(2)?, signs_from_ms: row.try_get(3)?, sealed };
            Ok(row.unseal(sealing)?)
        };
        pool.query(sql, &[]).await?.into_iter().map(unsealed).collect::<Result<_, _>>()
    };
    read.await.map_err(|error: PostgresError| KeyStoreError { action: "read", source: error.into() })
}

impl PostgresStore {
    async fn add_after(&self, row: &KeyRow, after: Option<&str>) -> Result<(), StatementError> {
        let mut lent = self.pool.lend().await?;
        let transaction = lent.client_mut().transaction().await?;
        // What another replica adds meanwhile would not be seen.
        transaction.batch_execute("LOCK TABLE issuer_key IN SHARE ROW EXCLUSIVE MODE").await?;
        let sql = "INSERT INTO issuer_key (kid, algorithm, created_ms, signs_from_ms, sealed)
                   SELECT $1, $2, $3, $4, $5 WHERE $6::text IS NOT DISTINCT FROM (
                       SELECT kid FROM issuer_key WHERE algorithm = $2
                       ORDER BY signs_from_ms DESC, created_ms DESC, kid DESC LIMIT 1
                   )";
        let KeyRow { kid, algorithm, created_ms, signs_from_ms, sealed } = row;
        transaction.execute(sql, &[kid, algorithm, created_ms, signs_from_ms, sealed, &after]).await?;
        transaction.commit().await?;
        lent.give_back();
        Ok(())
    }
}

/// For the audit log, which writes one group at a time, and the issuer's keys.
const CONNECTIONS: usize = 4;
const LEASE_CONNECTIONS: usize = 8;
const SHARING_CONNECTIONS: usize = 8;

/// Long enough to wait for another replica that is making the tables.
const PREPARE_DEADLINE: Duration = Duration::from_secs(70);

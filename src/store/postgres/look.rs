//! A PostgreSQL store looked at from beside its brokers.

use super::pool::{DEADLINE, Pool};
use super::schema::SCHEMA_VERSION;
use super::{PostgresError, PostgresSettings};
use crate::issuer::StoredKey;
use crate::secret::SealingKeys;
use crate::store::issuer_key::KeyRow;
use crate::store::look::{Look, LookError};

pub(in crate::store) async fn look(settings: &PostgresSettings, sealing: &SealingKeys) -> Result<Look, LookError> {
    let store = settings.to_string();
    let failed = |error: PostgresError| LookError::Open { store: store.clone(), source: error.into() };
    let pool = Pool::new(settings, 1).map_err(|error| failed(error.into()))?;
    let query = async |sql: &str| pool.query(sql, &[]).await.map_err(PostgresError::from);
    let there = query("SELECT to_regclass('carnet_schema') IS NOT NULL").await.map_err(failed)?;
    let there = there.first().is_some_and(|row| row.try_get(0).unwrap_or(false));
    if !there {
        return Err(LookError::Missing(format!("the tables of {store}")));
    }
    let version = query("SELECT coalesce(max(version), 0) FROM carnet_schema").await.map_err(failed)?;
    let version = version.first().and_then(|row| row.try_get(0).ok()).unwrap_or_default();
    let written = write(&pool).await.map_err(|error| LookError::Write(error.into()));
    let keys = keys(&pool, sealing).await;
    Ok(Look { schema: (version, SCHEMA_VERSION), written, keys, free_bytes: None, loose_mode: None, store })
}

/// A transaction that is rolled back.
async fn write(pool: &Pool) -> Result<(), PostgresError> {
    pool.in_time(DEADLINE, async {
        let mut lent = pool.lend().await?;
        let transaction = lent.client_mut().transaction().await?;
        transaction.batch_execute("DELETE FROM issuer_key WHERE kid = ''").await?;
        transaction.rollback().await?;
        lent.give_back();
        Ok(())
    })
    .await
}

async fn keys(pool: &Pool, sealing: &SealingKeys) -> Result<Vec<StoredKey>, LookError> {
    let unreadable = |error: PostgresError| LookError::Keys(error.into());
    let sql = "SELECT kid, algorithm, created_ms, signs_from_ms, sealed FROM issuer_key ORDER BY signs_from_ms";
    let rows = pool.query(sql, &[]).await.map_err(|error| unreadable(error.into()))?;
    let row = |row: &tokio_postgres::Row| -> Result<KeyRow, tokio_postgres::Error> {
        Ok(KeyRow {
            kid: row.try_get(0)?,
            algorithm: row.try_get(1)?,
            created_ms: row.try_get(2)?,
            signs_from_ms: row.try_get(3)?,
            sealed: row.try_get(4)?,
        })
    };
    let rows: Result<Vec<KeyRow>, _> = rows.iter().map(row).collect();
    let rows = rows.map_err(|error| unreadable(error.into()))?;
    rows.into_iter().map(|row| row.unseal(sealing).map_err(|error| LookError::Sealed(error.into()))).collect()
}

//! Credentials that replicas leave for each other, and who mints which.

use std::time::{Duration, SystemTime};

use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::PostgresStore;
use super::pool::{Parameter, StatementError};
use crate::credential::{Key, SharedCredentials, SharedError};

#[async_trait::async_trait]
impl SharedCredentials for PostgresStore {
    async fn find(&self, key: &Key) -> Result<Option<Vec<u8>>, SharedError> {
        let sql = "SELECT sealed FROM shared_credential WHERE key = $1 AND expires > now()";
        let rows = self.shared.query(sql, &[of(&key.as_slice())]).await.map_err(failed)?;
        rows.first().map(|row| row.try_get(0)).transpose().map_err(|error| failed(error.into()))
    }

    async fn lock(&self, key: &Key, owner: Uuid, hold: Duration) -> Result<bool, SharedError> {
        let sql = "INSERT INTO mint_lock AS held (key, owner, until) VALUES ($1, $2, now() + make_interval(secs => $3))
                   ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until = excluded.until
                   WHERE held.until < now() RETURNING 1";
        let (key, owner, hold) = (key.as_slice(), owner.as_bytes().as_slice(), hold.as_secs_f64());
        let values = [of(&key), of(&owner), (&hold as _, Type::FLOAT8)];
        let rows = self.shared.query(sql, &values).await.map_err(failed)?;
        Ok(!rows.is_empty())
    }

    async fn put(&self, key: &Key, owner: Uuid, sealed: Vec<u8>, expires_at: SystemTime) -> Result<(), SharedError> {
        let sql = "WITH minted AS (DELETE FROM mint_lock WHERE key = $1 AND owner = $2)
                   INSERT INTO shared_credential (key, sealed, expires) VALUES ($1, $3, $4)
                   ON CONFLICT (key) DO UPDATE SET sealed = excluded.sealed, expires = excluded.expires";
        let (key, owner, expires) =
            (key.as_slice(), owner.as_bytes().as_slice(), (&expires_at as _, Type::TIMESTAMPTZ));
        self.shared.query(sql, &[of(&key), of(&owner), of(&sealed), expires]).await.map(drop).map_err(failed)
    }

    async fn unlock(&self, key: &Key, owner: Uuid) -> Result<(), SharedError> {
        let sql = "DELETE FROM mint_lock WHERE key = $1 AND owner = $2";
        let (key, owner) = (key.as_slice(), owner.as_bytes().as_slice());
        self.shared.query(sql, &[of(&key), of(&owner)]).await.map(drop).map_err(failed)
    }

    async fn forget(&self, key: &Key) -> Result<(), SharedError> {
        let sql = "DELETE FROM shared_credential WHERE key = $1";
        self.shared.query(sql, &[of(&key.as_slice())]).await.map(drop).map_err(failed)
    }

    async fn sweep(&self) -> Result<(), SharedError> {
        let sql = "DELETE FROM shared_credential WHERE expires < now(); DELETE FROM mint_lock WHERE until < now()";
        self.shared.execute(sql).await.map_err(failed)
    }
}

fn of<'a>(bytes: &'a (impl ToSql + Sync)) -> Parameter<'a> {
    (bytes, Type::BYTEA)
}

fn failed(error: StatementError) -> SharedError {
    SharedError(error.into())
}

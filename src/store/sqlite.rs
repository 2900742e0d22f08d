//! The default store: one SQLite file, one thread that writes it.

mod audit;
mod leases;
mod look;
mod reader;
mod retention;
mod shipments;
mod worker;

pub(super) use look::look;
pub(super) use reader::SqliteReader;

use std::error::Error;
use std::fmt;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, params};

use self::worker::Worker;
use super::OpenError;
use super::issuer_key::{self, KeyRow, KeyRowError};
use super::lease::LeaseRowError;
use crate::issuer::{KeyStore, KeyStoreError, StoredKey};
use crate::secret::SealingKeys;

/// Audit records, leases and issuer keys in one file, which only its owner can read.
pub struct SqliteStore {
    worker: Worker,
    sealing: Arc<SealingKeys>,
}

/// Why a job did not succeed.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(transparent)]
    Key(#[from] KeyRowError),
    #[error(transparent)]
    Lease(#[from] LeaseRowError),
    #[error("other records have the place in the chain that these were to have")]
    PlaceTaken,
    #[error("the store is closed")]
    Closed,
}

impl SqliteStore {
    /// Opens or makes the file and brings its schema up to date. `sealing` encrypts what must stay secret.
    pub fn open(path: &Path, sealing: Arc<SealingKeys>) -> Result<Self, OpenError> {
        let (mut connection, checkpointing) = (connect(path)?, connect(path)?);
        let failed =
            |source: Box<dyn Error + Send + Sync>| OpenError::Open { store: path.display().to_string(), source };
        renew_keys(&mut connection, &sealing).map_err(|error| failed(error.into()))?;
        leases::renew(&mut connection, &sealing).map_err(|error| failed(error.into()))?;
        let (writing, written) = sync_channel(CHECKPOINT_JOBS);
        // Where there is no room for it, enough is known.
        let after = move |_connection: &Connection| {
            let _ = writing.try_send(());
        };
        let at_end = |connection: &Connection| drop(connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);"));
        let worker = Worker::start("store", connection, after, at_end).map_err(|error| failed(error.into()))?;
        let thread = thread::Builder::new().name("checkpoint".to_owned());
        let checkpoint = thread.spawn(move || checkpoint(&checkpointing, &written));
        checkpoint.map_err(|error| failed(error.into()))?;
        Ok(Self { worker, sealing })
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, JobError> {
        self.worker.run(job).await
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqliteStore")
    }
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    let failed = |source: Box<dyn Error + Send + Sync>| OpenError::Open { store: path.display().to_string(), source };
    // SQLite gives its journal the same permissions as the file.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|error| failed(error.into()))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|error| failed(error.into()))?;
    let mut connection = Connection::open(path).map_err(|error| failed(error.into()))?;
    let version = prepare(&mut connection).map_err(|error| failed(error.into()))?;
    if version > SCHEMA_VERSION {
        return Err(OpenError::Newer { store: path.display().to_string(), found: version, known: SCHEMA_VERSION });
    }
    Ok(connection)
}

/// Runs the migrations that are missing; returns the version that the file had or now has.
fn prepare(connection: &mut Connection) -> rusqlite::Result<i64> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // FULL: a committed group survives a power failure, not only a crash.
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for (number, migration) in (1..).zip(MIGRATIONS) {
        if version < number {
            transaction.execute_batch(migration)?;
            transaction.pragma_update(None, "user_version", number)?;
            version = number;
        }
    }
    transaction.commit()?;
    Ok(version)
}

/// Seals the issuer's keys anew that an older key had sealed.
fn renew_keys(connection: &mut Connection, sealing: &SealingKeys) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let rows = transaction
        .prepare("SELECT kid, sealed FROM issuer_key")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<Vec<(String, Vec<u8>)>, _>>()?;
    for (kid, sealed) in rows {
        if let Some(renewed) = issuer_key::renewed(sealing, &kid, &sealed) {
            transaction.execute("UPDATE issuer_key SET sealed = ?2 WHERE kid = ?1", params![kid, renewed])?;
        }
    }
    transaction.commit()
}

/// Added to, never edited.
const MIGRATIONS: [&str; 8] = [
    "
    -- One row a group: the records that were committed together, each with its length before it.
    CREATE TABLE audit (
        sequence INTEGER PRIMARY KEY, -- of the group's first record
        records INTEGER NOT NULL,
        newest_ms INTEGER NOT NULL,
        bytes BLOB NOT NULL
    ) STRICT;
    -- First hand-outs only: a cache hit costs no index entry.
    CREATE TABLE audit_token (
        token_sha256 BLOB NOT NULL,
        sequence INTEGER NOT NULL,
        PRIMARY KEY (token_sha256, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE issuer_key (
        kid TEXT PRIMARY KEY,
        algorithm TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        sealed BLOB NOT NULL
    ) STRICT;
",
    "
    -- Keys of before signed from the moment they were made.
    ALTER TABLE issuer_key ADD COLUMN signs_from_ms INTEGER NOT NULL DEFAULT 0;
    UPDATE issuer_key SET signs_from_ms = created_ms;
",
    leases::TABLES,
    leases::ENDED,
    audit::CHAIN,
    shipments::TABLE,
    shipments::GAPS,
    audit::PACKED,
];

const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Moves what the log has into the database, beside the thread that writes, in pieces so small that no group of records
/// waits for one. Sleeps where nothing is written; ends after that thread.
fn checkpoint(connection: &Connection, written: &Receiver<()>) {
    // After each of them the log begins anew, which costs the next writer a flush: not for a lone record.
    while (0..CHECKPOINT_JOBS).all(|_job| written.recv().is_ok()) {
        thread::sleep(CHECKPOINT_AFTER);
        // What does not succeed now is tried again, and at last by the writer itself.
        let _ = connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE);");
    }
}

#[async_trait::async_trait]
impl KeyStore for SqliteStore {
    async fn keys(&self) -> Result<Vec<StoredKey>, KeyStoreError> {
        let failed = |error: JobError| KeyStoreError { action: "read", source: Box::new(error) };
        let rows = self.run(|connection| key_rows(connection)).await.map_err(failed)?;
        rows.into_iter().map(|row| row.unseal(&self.sealing).map_err(|error| failed(error.into()))).collect()
    }

    async fn add(&self, key: &StoredKey, after: Option<&str>) -> Result<(), KeyStoreError> {
        let failed = |error: JobError| KeyStoreError { action: "kept", source: Box::new(error) };
        let row = KeyRow::seal(&self.sealing, key).map_err(|error| failed(error.into()))?;
        let after = after.map(str::to_owned);
        let add = move |connection: &mut Connection| {
            // One statement: nobody writes between the look at the last key and the new one. IS compares NULL too.
            let sql = "INSERT INTO issuer_key (kid, algorithm, created_ms, signs_from_ms, sealed)
                       SELECT ?1, ?2, ?3, ?4, ?5 WHERE ?6 IS (SELECT kid FROM issuer_key WHERE algorithm = ?2
                       ORDER BY signs_from_ms DESC, created_ms DESC, kid DESC LIMIT 1)";
            let KeyRow { kid, algorithm, created_ms, signs_from_ms, sealed } = row;
            connection.execute(sql, params![kid, algorithm, created_ms, signs_from_ms, sealed, after])?;
            Ok(())
        };
        self.run(add).await.map_err(failed)
    }

    async fn remove(&self, kid: &str) -> Result<(), KeyStoreError> {
        let kid = kid.to_owned();
        let remove = move |connection: &mut Connection| {
            connection.execute("DELETE FROM issuer_key WHERE kid = ?1", [kid])?;
            Ok(())
        };
        self.run(remove).await.map_err(|error| KeyStoreError { action: "removed", source: Box::new(error) })
    }
}

fn key_rows(connection: &Connection) -> Result<Vec<KeyRow>, JobError> {
    let sql = "SELECT kid, algorithm, created_ms, signs_from_ms, sealed FROM issuer_key
               ORDER BY signs_from_ms, created_ms, kid";
    let mut select = connection.prepare_cached(sql)?;
    let rows = select.query_map([], |row| {
        let (kid, algorithm, sealed) = (row.get(0)?, row.get(1)?, row.get(4)?);
        Ok(KeyRow { kid, algorithm, created_ms: row.get(2)?, signs_from_ms: row.get(3)?, sealed })
    })?;
    Ok(rows.collect::<Result<Vec<KeyRow>, _>>()?)
}

/// Another process that backs the file up holds it for moments only.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Some 500 KB at 30,000 records a second, which one core has moved in a millisecond.
const CHECKPOINT_AFTER: Duration = Duration::from_millis(25);
const CHECKPOINT_JOBS: usize = 8;

/// The log begins anew when everything of it was moved. Under load without a pause there is always a rest; past this
/// length, 32 MB, the writer moves it.
const WAL_PAGES: i64 = 8192;

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::issuer::{Algorithm, SigningKey};

    #[test]
    fn a_file_is_for_its_owner_only_and_one_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("carnet.db");
        drop(connect(&path).expect("a store"));
        assert_eq!(std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        Connection::open(&path).expect("open").pragma_update(None, "user_version", 99).expect("changed");
        assert!(matches!(connect(&path), Err(OpenError::Newer { found: 99, .. })));
    }

    #[tokio::test]
    async fn keys_of_the_first_schema_have_signed_since_they_were_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("carnet.db");
        let created_at = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
        let key = SigningKey::generate(Algorithm::Es256, created_at).expect("a key");
        let sealing = Arc::new(SealingKeys::random().expect("a key"));
        let connection = Connection::open(&path).expect("open");
        connection.execute_batch(MIGRATIONS[0]).expect("the first schema");
        connection.pragma_update(None, "user_version", 1).expect("its version");
        let sealed = sealing.seal(&key.pkcs8, &issuer_key::row(&key.kid)).expect("sealed");
        let sql = "INSERT INTO issuer_key VALUES (?1, 'ES256', 7000, ?2)";
        connection.execute(sql, params![key.kid, sealed]).expect("a row");
        drop(connection);
        let back = SqliteStore::open(&path, sealing).expect("a store").keys().await.expect("read");
        assert_eq!((&back[0].pkcs8, back[0].created_at, back[0].signs_from), (&key.pkcs8, created_at, created_at));
    }

    #[test]
    fn a_path_that_cannot_be_written_is_named() {
        let error = connect(Path::new("/nowhere/carnet.db")).expect_err("no such folder");
        assert!(error.to_string().contains("/nowhere/carnet.db"));
    }
}

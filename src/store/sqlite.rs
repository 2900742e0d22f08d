//! The default store: one SQLite file, one thread that writes it.

use std::fmt;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::{mpsc, oneshot};

use super::{OpenError, record};
use crate::audit::{AuditError, AuditLog, AuditRecord, HandOut};
use crate::clock::Clock;
use crate::issuer::{Algorithm, KeyStore, KeyStoreError, StoredKey};
use crate::secret::{SealError, SealingKey};

/// Audit records and issuer keys in one file, which only its owner can read.
pub struct SqliteStore {
    jobs: mpsc::Sender<Job>,
    key: SealingKey,
    clock: Arc<dyn Clock>,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// Why a job did not succeed.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("issuer key {kid}")]
    Seal { kid: String, source: SealError },
    #[error("issuer key {0} is for an unknown algorithm")]
    Algorithm(String),
    #[error("the store is closed")]
    Closed,
}

impl SqliteStore {
    /// Opens or makes the file and brings its schema up to date. `key` encrypts what must stay secret.
    pub fn open(path: &Path, key: SealingKey, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let (connection, checkpointing) = (connect(path)?, connect(path)?);
        let (jobs, queue) = mpsc::channel(64);
        let (working, ended) = std::sync::mpsc::channel();
        let failed = |source| OpenError::Open { path: path.to_owned(), source: Box::new(source) };
        let work = move || work(connection, queue, working);
        thread::Builder::new().name("store".to_owned()).spawn(work).map_err(failed)?;
        let checkpoint = move || checkpoint(&checkpointing, &ended);
        thread::Builder::new().name("checkpoint".to_owned()).spawn(checkpoint).map_err(failed)?;
        Ok(Self { jobs, key, clock })
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, JobError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Whoever asked may have left; the job is done all the same.
            let _ = reply.send(job(connection));
        });
        self.jobs.send(job).await.map_err(|_closed| JobError::Closed)?;
        answer.await.map_err(|_closed| JobError::Closed)?
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqliteStore")
    }
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| OpenError::Open { path: path.to_owned(), source };
    // SQLite gives its journal the same permissions as the file.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|error| failed(error.into()))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|error| failed(error.into()))?;
    let mut connection = Connection::open(path).map_err(|error| failed(error.into()))?;
    let version = prepare(&mut connection).map_err(|error| failed(error.into()))?;
    if version > SCHEMA_VERSION {
        return Err(OpenError::Newer { path: PathBuf::from(path), found: version, known: SCHEMA_VERSION });
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

/// Added to, never edited.
const MIGRATIONS: [&str; 1] = ["
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
"];

const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

/// Ends when the store is dropped and everything queued is done; `working` is dropped with it.
fn work(mut connection: Connection, mut queue: mpsc::Receiver<Job>, _working: Sender<()>) {
    while let Some(job) = queue.blocking_recv() {
        job(&mut connection);
    }
    let _ = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE);");
}

/// Moves what the log has into the database, beside the thread that writes: a group of records never waits for it. Ends
/// after that thread.
fn checkpoint(connection: &Connection, ended: &Receiver<()>) {
    while ended.recv_timeout(CHECKPOINT_EVERY) == Err(RecvTimeoutError::Timeout) {
        // What does not succeed now is tried again, and at last by the writer itself.
        let _ = connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE);");
    }
}

#[async_trait::async_trait]
impl AuditLog for SqliteStore {
    async fn append(&self, group: Vec<AuditRecord>) -> Result<(), AuditError> {
        // Before the store's thread, which all groups share, has it.
        let records = i64::try_from(group.len()).unwrap_or(i64::MAX);
        let newest = group.iter().map(|record| record::milliseconds(record.time)).max().unwrap_or_default();
        let mut bytes = Vec::with_capacity(group.len() * RECORD_BYTES);
        group.iter().for_each(|record| record::encode(record, &mut bytes));
        let first = group.iter().filter_map(|record| record.issued.as_ref()).filter(|issued| issued.first);
        let mut tokens: Vec<[u8; 32]> = first.map(|issued| issued.token_sha256).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let append = move |connection: &mut Connection| {
            let transaction = connection.transaction()?;
            let sql = "INSERT INTO audit (sequence, records, newest_ms, bytes)
                       SELECT coalesce((SELECT sequence + records FROM audit ORDER BY sequence DESC LIMIT 1), 1), ?1, ?2, ?3";
            transaction.prepare_cached(sql)?.execute(params![records, newest, bytes])?;
            let sequence = transaction.last_insert_rowid();
            for token in tokens {
                let sql = "INSERT INTO audit_token (token_sha256, sequence) VALUES (?1, ?2)";
                transaction.prepare_cached(sql)?.execute(params![token.as_slice(), sequence])?;
            }
            Ok(transaction.commit()?)
        };
        self.run(append).await.map_err(|error| AuditError::Write(Arc::new(error)))
    }

    async fn find_issued(&self, token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError> {
        let wanted = *token_sha256;
        let find = move |connection: &mut Connection| {
            let sql = "SELECT bytes FROM audit_token JOIN audit USING (sequence) WHERE token_sha256 = ?1 ORDER BY sequence LIMIT 1";
            let mut select = connection.prepare_cached(sql)?;
            Ok(select.query_row([wanted.as_slice()], |row| row.get::<_, Vec<u8>>(0)).optional()?)
        };
        let found = self.run(find).await.map_err(|error| AuditError::Read(Arc::new(error)))?;
        Ok(found.and_then(|bytes| record::find_hand_out(&bytes, wanted)))
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

    async fn prune(&self, now: SystemTime, retention: Duration) -> Result<usize, AuditError> {
        let newest = |connection: &mut Connection| {
            let sql = "SELECT newest_ms FROM audit ORDER BY sequence DESC LIMIT 1";
            Ok(connection.query_row(sql, [], |row| row.get::<_, i64>(0)).optional()?)
        };
        let newest = self.run(newest).await.map_err(|error| AuditError::Read(Arc::new(error)))?;
        let retention = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let before = record::milliseconds(now).min(newest.unwrap_or(0)).saturating_sub(retention);
        let mut pruned = 0;
        loop {
            // In pieces, so that exchanges are not held up; the primary key is in the order of time.
            let piece = move |connection: &mut Connection| {
                let transaction = connection.transaction()?;
                let sql = "SELECT max(sequence), sum(records) FROM
                           (SELECT * FROM audit ORDER BY sequence LIMIT ?2) WHERE newest_ms < ?1";
                let oldest =
                    |row: &rusqlite::Row<'_>| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?));
                let (last, records) = transaction.query_row(sql, params![before, PRUNE_PIECE], oldest)?;
                for sql in ["DELETE FROM audit_token WHERE sequence <= ?1", "DELETE FROM audit WHERE sequence <= ?1"] {
                    transaction.execute(sql, [last.unwrap_or(0)])?;
                }
                transaction.commit()?;
                Ok(usize::try_from(records.unwrap_or(0)).unwrap_or(0))
            };
            let dropped = self.run(piece).await.map_err(|error| AuditError::Write(Arc::new(error)))?;
            pruned += dropped;
            if dropped == 0 {
                return Ok(pruned);
            }
        }
    }
}

#[async_trait::async_trait]
impl KeyStore for SqliteStore {
    async fn keys(&self) -> Result<Vec<StoredKey>, KeyStoreError> {
        let read = |connection: &mut Connection| {
            let mut select =
                connection.prepare("SELECT kid, algorithm, sealed FROM issuer_key ORDER BY created_ms, kid")?;
            let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            Ok(rows.collect::<Result<Vec<(String, String, Vec<u8>)>, _>>()?)
        };
        let failed = |error: JobError| KeyStoreError { action: "read", source: Box::new(error) };
        let rows = self.run(read).await.map_err(failed)?;
        rows.into_iter().map(|(kid, algorithm, sealed)| self.unseal(kid, &algorithm, &sealed).map_err(failed)).collect()
    }

    async fn add_first(&self, key: &StoredKey) -> Result<(), KeyStoreError> {
        let failed = |error: JobError| KeyStoreError { action: "kept", source: Box::new(error) };
        let sealed = self.key.seal(&key.pkcs8, &row(&key.kid));
        let sealed = sealed.map_err(|source| failed(JobError::Seal { kid: key.kid.clone(), source }))?;
        let (kid, algorithm, created) =
            (key.kid.clone(), key.algorithm.as_str(), record::milliseconds(self.clock.now()));
        let add = move |connection: &mut Connection| {
            let sql = "INSERT INTO issuer_key (kid, algorithm, created_ms, sealed)
                       SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM issuer_key WHERE algorithm = ?2)";
            connection.execute(sql, params![kid, algorithm, created, sealed])?;
            Ok(())
        };
        self.run(add).await.map_err(failed)
    }
}

impl SqliteStore {
    fn unseal(&self, kid: String, algorithm: &str, sealed: &[u8]) -> Result<StoredKey, JobError> {
        let known = [Algorithm::Es256, Algorithm::Rs256].into_iter().find(|known| known.as_str() == algorithm);
        let algorithm = known.ok_or_else(|| JobError::Algorithm(kid.clone()))?;
        let pkcs8 = self.key.open(sealed, &row(&kid)).map_err(|source| JobError::Seal { kid: kid.clone(), source })?;
        Ok(StoredKey { kid, algorithm, pkcs8 })
    }
}

/// The identity of a key's row, which its ciphertext is bound to.
fn row(kid: &str) -> String {
    format!("issuer_key/{kid}")
}

/// Another process that backs the file up holds it for moments only.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Some 5 MB at 30,000 records a second.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(250);

/// The log begins anew when everything of it was moved. Under load without a pause there is always a rest; past this
/// length, 32 MB, the writer moves it.
const WAL_PAGES: i64 = 8192;

const PRUNE_PIECE: i64 = 500;

/// An ordinary record, so that a group's buffer does not grow record by record.
const RECORD_BYTES: usize = 700;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Issued, Outcome};
    use crate::clock::ManualClock;
    use crate::issuer::SigningKey;

    fn open(path: &Path) -> SqliteStore {
        open_with(path, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
    }

    fn open_with(path: &Path, key: &str) -> SqliteStore {
        let key = SealingKey::from_base64(&crate::secret::Secret::new(key)).expect("a key");
        SqliteStore::open(path, key, Arc::new(ManualClock::start())).expect("a store")
    }

    fn issued(first: bool) -> AuditRecord {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let issued = Issued {
            token_sha256: [7; 32],
            first,
            scopes: "a b".to_owned(),
            acts_as: "sa@p.iam.gserviceaccount.com".to_owned(),
            issued_at: at(1_000),
            expires_at: at(4_600),
        };
        AuditRecord { outcome: Outcome::Issued, issued: Some(issued), ..AuditRecord::for_test(9) }
    }

    #[tokio::test]
    async fn records_survive_the_process_and_the_first_hand_out_of_a_token_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("carnet.db");
        let store = open(&path);
        store.append(vec![AuditRecord::for_test(1), issued(true), issued(false)]).await.expect("written");
        drop(store);
        let found = open(&path).find_issued(&[7; 32]).await.expect("read").expect("a hand-out");
        assert_eq!((found.exchange_id, found.target.as_str()), (uuid::Uuid::from_u128(9), "t"));
        assert_eq!(Some(found.issued), issued(true).issued);
        assert_eq!(open(&path).find_issued(&[8; 32]).await.expect("read"), None);
    }

    #[tokio::test]
    async fn records_past_their_retention_are_dropped_and_no_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(&folder.path().join("carnet.db"));
        let at = |seconds| AuditRecord {
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            ..AuditRecord::for_test(1)
        };
        for seconds in 0..50 {
            store.append(vec![at(seconds * 2), at(seconds * 2 + 1)]).await.expect("written");
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(store.prune(now, Duration::from_secs(60)).await.expect("pruned"), 38);
        assert_eq!(store.prune(now, Duration::from_secs(60)).await.expect("pruned"), 0);
        // A clock that has jumped a year ahead.
        let jumped = now + Duration::from_secs(365 * 86_400);
        assert_eq!(store.prune(jumped, Duration::from_secs(60)).await.expect("pruned"), 0);
    }

    #[tokio::test]
    async fn keys_come_back_whole_but_only_with_the_store_key() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("carnet.db");
        let key = SigningKey::generate(Algorithm::Es256).expect("a key");
        open(&path).add_first(&key).await.expect("kept");
        let back = open(&path).keys().await.expect("read");
        assert_eq!((back.len(), &back[0].kid, &back[0].pkcs8), (1, &key.kid, &key.pkcs8));
        let bytes = std::fs::read(&path).expect("the file");
        assert!(!bytes.windows(32).any(|window| window == &key.pkcs8[..32]), "the key lies in the file in clear");
        let other = open_with(&path, "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        assert!(other.keys().await.is_err());
    }

    #[tokio::test]
    async fn the_first_key_of_an_algorithm_stays_the_only_one_made_at_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("carnet.db");
        let (one, other) = (open(&path), open(&path));
        let keys = [(); 2].map(|()| SigningKey::generate(Algorithm::Es256).expect("a key"));
        one.add_first(&keys[0]).await.expect("kept");
        other.add_first(&keys[1]).await.expect("no error");
        assert_eq!(other.keys().await.expect("read").len(), 1);
    }

    #[test]
    fn a_file_is_for_its_owner_only_and_one_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("carnet.db");
        drop(connect(&path).expect("a store"));
        assert_eq!(std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        Connection::open(&path).expect("open").pragma_update(None, "user_version", 99).expect("changed");
        assert!(matches!(connect(&path), Err(OpenError::Newer { found: 99, .. })));
    }

    #[test]
    fn a_path_that_cannot_be_written_is_named() {
        let error = connect(Path::new("/nowhere/carnet.db")).expect_err("no such folder");
        assert!(error.to_string().contains("/nowhere/carnet.db"));
    }
}

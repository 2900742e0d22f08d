//! What outlives the process: audit records, leases and the issuer's keys, in one SQLite file or, for replicas, in
//! PostgreSQL.

mod issuer_key;
mod lease;
mod look;
mod packed;
mod postgres;
mod spool;
mod sqlite;

pub use look::{Look, LookError, look};
pub use postgres::{InvalidUrl, PostgresSettings, PostgresStore};
pub use spool::SpooledLog;
pub use sqlite::SqliteStore;

use std::cmp::Ordering;
use std::path::PathBuf;
use std::sync::Arc;

use self::lease::LeaseRow;
use self::postgres::PostgresReader;
use self::sqlite::SqliteReader;
use crate::audit::{AuditLog, AuditReader, Shipments};
use crate::credential::SharedCredentials;
use crate::exchange::RunHistory;
use crate::http;
use crate::issuer::{KeyStore, KeyStoreError, StoredKey};
use crate::lease::{Lease, LeaseStore};
use crate::secret::{SealingKeys, Secret};
use crate::telemetry::Causes;

/// Where the store is.
#[derive(Debug, Clone)]
pub enum StoreSettings {
    /// One file, of one broker.
    Sqlite(PathBuf),
    /// One database, of any number of replicas; `spool`: a file for audit records while it is away.
    Postgres { settings: Box<PostgresSettings>, spool: Option<PathBuf> },
}

/// Why a text is no store.
#[derive(Debug, thiserror::Error)]
pub enum InvalidStore {
    #[error("expected sqlite:PATH or postgres://USER@HOST/DATABASE")]
    Kind,
    #[error(transparent)]
    Postgres(#[from] InvalidUrl),
}

impl StoreSettings {
    /// `outbound`: authorities that a server's certificate may be signed by.
    pub fn parse(text: &Secret, outbound: &http::Settings) -> Result<Self, InvalidStore> {
        let path = text.expose().strip_prefix("sqlite:").filter(|path| !path.is_empty() && !path.starts_with(':'));
        if let Some(path) = path {
            return Ok(Self::Sqlite(PathBuf::from(path)));
        }
        if ["postgres://", "postgresql://"].iter().any(|scheme| text.expose().starts_with(scheme)) {
            let settings = Box::new(PostgresSettings::parse(text, outbound)?);
            return Ok(Self::Postgres { settings, spool: None });
        }
        Err(InvalidStore::Kind)
    }
}

/// One store as the ports that it fulfils.
#[derive(Debug, Clone)]
pub struct Stores {
    pub audit: Arc<dyn AuditLog>,
    pub records: Arc<dyn AuditReader>,
    pub shipments: Arc<dyn Shipments>,
    pub keys: Arc<dyn KeyStore>,
    pub leases: Arc<dyn LeaseStore>,
    pub history: Arc<dyn RunHistory>,
    /// Where replicas leave credentials for each other; a broker on a file has none.
    pub shared: Option<Arc<dyn SharedCredentials>>,
    /// To be kept empty.
    pub spool: Option<Arc<SpooledLog>>,
}

/// Opens the store, brings its schema up to date and seals the issuer's keys anew that an older key of `sealing` had
/// sealed. Who opened a lease stays as it is: it opens with the older key for as long as `sealing` has that.
///
/// # Errors
/// [`OpenError`] names the store, without its password.
pub async fn open(settings: &StoreSettings, sealing: Arc<SealingKeys>) -> Result<Stores, OpenError> {
    match settings {
        StoreSettings::Sqlite(path) => {
            let store = Arc::new(SqliteStore::open(path, sealing)?);
            let records = Arc::new(SqliteReader::open(path)?);
            let (audit, keys, leases, history) = (store.clone(), store.clone(), store.clone(), store.clone());
            Ok(Stores { audit, records, shipments: store, keys, leases, history, shared: None, spool: None })
        }
        StoreSettings::Postgres { settings, spool } => {
            let store = Arc::new(PostgresStore::open(settings, sealing.clone()).await?);
            let spool = spool.as_deref().map(|path| SpooledLog::open(store.clone(), path, sealing));
            let spool = spool.transpose()?.map(Arc::new);
            let audit: Arc<dyn AuditLog> = match &spool {
                Some(spool) => spool.clone(),
                None => store.clone(),
            };
            let records = Arc::new(store.reader());
            let (keys, leases, history, shipments) = (store.clone(), store.clone(), store.clone(), store.clone());
            Ok(Stores { audit, records, shipments, keys, leases, history, shared: Some(store), spool })
        }
    }
}

/// Opens the store's audit log for reading only: beside a broker, or where none runs. Nothing is made or brought up to
/// date. What waits in a broker's spool is not there yet.
///
/// # Errors
/// [`OpenError`] names the store, without its password, and says what to do where it is of another version.
pub async fn open_to_read(settings: &StoreSettings) -> Result<Arc<dyn AuditReader>, OpenError> {
    Ok(match settings {
        StoreSettings::Sqlite(path) => Arc::new(SqliteReader::open(path)?),
        StoreSettings::Postgres { settings, .. } => Arc::new(PostgresReader::open(settings).await?),
    })
}

/// The issuer's keys of a store that is only read: none is made where there is none.
///
/// # Errors
/// As [`open_to_read`], or a key cannot be decrypted.
pub async fn read_issuer_keys(
    settings: &StoreSettings,
    sealing: &SealingKeys,
) -> Result<Vec<StoredKey>, ReadKeysError> {
    Ok(match settings {
        StoreSettings::Sqlite(path) => SqliteReader::open(path)?.issuer_keys(sealing).await?,
        StoreSettings::Postgres { settings, .. } => PostgresReader::open(settings).await?.issuer_keys(sealing).await?,
    })
}

/// Why keys cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadKeysError {
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Keys(#[from] KeyStoreError),
}

/// The lease of `row`. One that cannot be read is no reason to leave the others as they are.
fn readable(row: LeaseRow) -> Option<Lease> {
    let id = row.id;
    let lease = row.lease();
    lease.inspect_err(|error| tracing::error!(lease.id = %id, error = %Causes(error), "a lease cannot be read")).ok()
}

/// As SQL counts; what a database says below 0 is none.
fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot open the store {store}")]
    Open { store: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the store {store} has schema version {found}, this program knows {known}: use a newer carnet")]
    Newer { store: String, found: i64, known: i64 },
    #[error(
        "the store {store} has schema version {found}, this program reads {known}: a broker of this version brings it up \
         to date when it starts"
    )]
    Older { store: String, found: i64, known: i64 },
}

impl OpenError {
    /// For whoever reads a store without changing it.
    fn unless_equal(store: &str, found: i64, known: i64) -> Result<(), Self> {
        let store = store.to_owned();
        match found.cmp(&known) {
            Ordering::Equal => Ok(()),
            Ordering::Greater => Err(Self::Newer { store, found, known }),
            Ordering::Less => Err(Self::Older { store, found, known }),
        }
    }
}

//! A SQLite store looked at from beside its broker.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{BUSY_TIMEOUT, SCHEMA_VERSION};
use crate::issuer::StoredKey;
use crate::secret::SealingKeys;
use crate::store::issuer_key::{KeyRow, KeyRowError};
use crate::store::look::{Look, LookError};

pub(in crate::store) fn look(path: &Path, sealing: &SealingKeys) -> Result<Look, LookError> {
    let store = path.display().to_string();
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(LookError::Missing(store)),
        Err(error) => return Err(LookError::Open { store, source: error.into() }),
    };
    let failed = |source: rusqlite::Error| LookError::Open { store: store.clone(), source: source.into() };
    let (connection, written) = connect(path).map_err(failed)?;
    let schema = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    let written = written.and_then(|()| write(&connection));
    let free = path.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
    let free_bytes = free.and_then(|folder| rustix::fs::statvfs(folder).ok());
    let mode = metadata.permissions().mode() & 0o777;
    Ok(Look {
        schema: (schema, SCHEMA_VERSION),
        written: written.map_err(|error| LookError::Write(error.into())),
        keys: keys(&connection, sealing),
        free_bytes: free_bytes.map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize)),
        loose_mode: (mode & 0o077 != 0).then_some(mode),
        store,
    })
}

/// For writing, or where that is refused for reading, with the refusal.
fn connect(path: &Path) -> rusqlite::Result<(Connection, rusqlite::Result<()>)> {
    let open = |mode: OpenFlags| {
        let connection = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_row| Ok(()))?;
        Ok(connection)
    };
    match open(OpenFlags::SQLITE_OPEN_READ_WRITE) {
        Ok(connection) => Ok((connection, Ok(()))),
        Err(refused) => Ok((open(OpenFlags::SQLITE_OPEN_READ_ONLY)?, Err(refused))),
    }
}

/// The lock and the permission that a record needs, and nothing left of it.
fn write(connection: &Connection) -> rusqlite::Result<()> {
    let written = connection.execute_batch("BEGIN IMMEDIATE; CREATE TABLE carnet_look (x); ROLLBACK;");
    if written.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK;")?;
    }
    written
}

fn keys(connection: &Connection, sealing: &SealingKeys) -> Result<Vec<StoredKey>, LookError> {
    let unreadable = |error: rusqlite::Error| LookError::Keys(error.into());
    let sql = "SELECT kid, algorithm, created_ms, signs_from_ms, sealed FROM issuer_key ORDER BY signs_from_ms";
    let mut select = connection.prepare(sql).map_err(unreadable)?;
    let rows = select.query_map([], |row| {
        Ok(KeyRow {
            kid: row.get(0)?,
            algorithm: row.get(1)?,
            created_ms: row.get(2)?,
            signs_from_ms: row.get(3)?,
            sealed: row.get(4)?,
        })
    });
    let rows: Vec<KeyRow> = rows.and_then(Iterator::collect).map_err(unreadable)?;
    rows.into_iter().map(|row| row.unseal(sealing).map_err(sealed)).collect()
}

fn sealed(error: KeyRowError) -> LookError {
    LookError::Sealed(error.into())
}

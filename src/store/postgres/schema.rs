//! The tables, and how an older database gets them.

use tokio_postgres::{Client, Error, Transaction};

use super::{audit, leases, shipments};

/// Runs the migrations that are missing; returns the version that the database had or now has. Of replicas that start
/// together one does it, the others wait.
pub(super) async fn prepare(client: &mut Client) -> Result<i64, Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("SET LOCAL statement_timeout = '60s'; {LOCK}")).await?;
    let mut version = version(&transaction).await?;
    for (number, migration) in (1..).zip(MIGRATIONS) {
        if version < number {
            transaction.batch_execute(migration).await?;
            transaction.execute("INSERT INTO carnet_schema (version) VALUES ($1)", &[&number]).await?;
            version = number;
        }
    }
    transaction.commit().await?;
    Ok(version)
}

/// 0 for an empty database. A role that may not make tables can use those that are there.
async fn version(transaction: &Transaction<'_>) -> Result<i64, Error> {
    let there: bool =
        transaction.query_one("SELECT to_regclass('carnet_schema') IS NOT NULL", &[]).await?.try_get(0)?;
    if !there {
        transaction.batch_execute("CREATE TABLE carnet_schema (version bigint PRIMARY KEY)").await?;
    }
    transaction.query_one("SELECT coalesce(max(version), 0) FROM carnet_schema", &[]).await?.try_get(0)
}

/// The number is arbitrary; whoever prepares a carnet database takes the same one.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7163952288194873)";

/// Added to, never edited.
const MIGRATIONS: [&str; 8] = [
    "
    -- One row a group: the records that were committed together, each with its length before it.
    CREATE TABLE audit (
        sequence bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        records bigint NOT NULL,
        newest_ms bigint NOT NULL,
        bytes bytea NOT NULL
    );
    CREATE INDEX audit_newest ON audit (newest_ms);
    -- First hand-outs only: a cache hit costs no index entry.
    CREATE TABLE audit_token (
        token_sha256 bytea NOT NULL,
        sequence bigint NOT NULL,
        PRIMARY KEY (token_sha256, sequence)
    );
    CREATE INDEX audit_token_sequence ON audit_token (sequence);
    CREATE TABLE issuer_key (
        kid text PRIMARY KEY,
        algorithm text NOT NULL,
        created_ms bigint NOT NULL,
        sealed bytea NOT NULL
    );
",
    "
    -- What replicas share can be minted anew: nothing of it is written ahead, and a crash of the server empties it.
    CREATE UNLOGGED TABLE shared_credential (
        key bytea PRIMARY KEY,
        sealed bytea NOT NULL,
        expires timestamptz NOT NULL
    );
    CREATE INDEX shared_credential_expires ON shared_credential (expires);
    CREATE UNLOGGED TABLE mint_lock (
        key bytea PRIMARY KEY,
        owner bytea NOT NULL,
        until timestamptz NOT NULL
    );
",
    "
    -- Keys of before signed from the moment they were made.
    ALTER TABLE issuer_key ADD COLUMN signs_from_ms bigint NOT NULL DEFAULT 0;
    UPDATE issuer_key SET signs_from_ms = created_ms;
",
    leases::TABLES,
    leases::ENDED,
    audit::CHAIN,
    shipments::TABLES,
    shipments::GAPS,
];

pub(super) const SCHEMA_VERSION: i64 = MIGRATIONS.len() as i64;

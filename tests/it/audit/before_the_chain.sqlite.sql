-- The schema of version 4, which had no chain yet.
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
-- Keys of before signed from the moment they were made.
ALTER TABLE issuer_key ADD COLUMN signs_from_ms INTEGER NOT NULL DEFAULT 0;
UPDATE issuer_key SET signs_from_ms = created_ms;
CREATE TABLE lease (
    id BLOB PRIMARY KEY,
    token_sha256 BLOB NOT NULL UNIQUE,
    subject TEXT NOT NULL,
    job_id TEXT,
    job_name TEXT,
    opened_ms INTEGER NOT NULL,
    proved_ms INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL,
    heartbeat_ms INTEGER NOT NULL,
    heartbeat_before_ms INTEGER NOT NULL,
    end_kind TEXT, -- NULL: open
    ended_ms INTEGER,
    end_reason TEXT,
    written_ms INTEGER, -- when the end was written down
    recorded INTEGER NOT NULL DEFAULT 0 -- the end is in the audit log
) STRICT, WITHOUT ROWID;
CREATE INDEX lease_open ON lease (heartbeat_before_ms) WHERE end_kind IS NULL;
CREATE INDEX lease_written ON lease (written_ms) WHERE end_kind IS NOT NULL;
CREATE INDEX lease_unrecorded ON lease (written_ms) WHERE end_kind IS NOT NULL AND recorded = 0;
CREATE INDEX lease_run ON lease (subject, job_name, ended_ms) WHERE end_kind = 'closed';
CREATE TABLE lease_detail (
    id BLOB PRIMARY KEY,
    details BLOB NOT NULL, -- targets and job
    identity BLOB -- who opened it, sealed; gone when the lease has ended
) STRICT, WITHOUT ROWID;
CREATE TABLE alive (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    at_ms INTEGER NOT NULL -- when a broker last took heartbeats
) STRICT;
CREATE INDEX lease_ended ON lease (ended_ms) WHERE end_kind IS NOT NULL;
PRAGMA user_version = 4;

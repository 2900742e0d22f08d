-- The schema of version 5, which had no chain yet.
CREATE TABLE carnet_schema (version bigint PRIMARY KEY);
INSERT INTO carnet_schema (version) VALUES (1), (2), (3), (4), (5);
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
-- Keys of before signed from the moment they were made.
ALTER TABLE issuer_key ADD COLUMN signs_from_ms bigint NOT NULL DEFAULT 0;
UPDATE issuer_key SET signs_from_ms = created_ms;
CREATE TABLE lease (
    id bytea PRIMARY KEY,
    token_sha256 bytea NOT NULL UNIQUE,
    subject text NOT NULL,
    job_id text,
    job_name text,
    opened_ms bigint NOT NULL,
    proved_ms bigint NOT NULL,
    not_after_ms bigint NOT NULL,
    heartbeat_ms bigint NOT NULL,
    heartbeat_before_ms bigint NOT NULL,
    end_kind text, -- NULL: open
    ended_ms bigint,
    end_reason text,
    written timestamptz, -- when the end was written down
    recorded boolean NOT NULL DEFAULT false -- the end is in the audit log
) WITH (fillfactor = 80);
CREATE INDEX lease_open ON lease (heartbeat_before_ms) WHERE end_kind IS NULL;
CREATE INDEX lease_written ON lease (written) WHERE end_kind IS NOT NULL;
CREATE INDEX lease_unrecorded ON lease (written) WHERE end_kind IS NOT NULL AND NOT recorded;
CREATE INDEX lease_run ON lease (subject, job_name, ended_ms) WHERE end_kind = 'closed';
CREATE TABLE lease_detail (
    id bytea PRIMARY KEY,
    details bytea NOT NULL, -- targets and job
    identity bytea -- who opened it, sealed; gone when the lease has ended
);
CREATE TABLE alive (
    one integer PRIMARY KEY CHECK (one = 1),
    at_ms bigint NOT NULL -- when a broker last took heartbeats
);
CREATE INDEX lease_ended ON lease (ended_ms) WHERE end_kind IS NOT NULL;

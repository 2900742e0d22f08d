//! What is past its retention in PostgreSQL, and how it goes: in pieces that nobody waits for, of whichever replica.

use tokio_postgres::types::Type;

use super::PostgresError;
use super::pool::{Parameter, Pool};
use crate::audit::{Expired, Head};
use crate::store::{signed, unsigned};

pub(super) async fn prune(pool: &Pool, expired: &Expired) -> Result<u64, PostgresError> {
    let Expired { reference_ms, before_ms, ref spans, .. } = *expired;
    let mut pruned = 0;
    for Head { chain, position, .. } in spans {
        let (chain, position) = (chain.as_bytes().as_slice(), signed(*position));
        let span: [Parameter<'_>; 2] = [(&chain, Type::BYTEA), (&position, Type::INT8)];
        let [of, to] = span.clone();
        // In this order: at every moment, what is left of the chain begins at an anchor or before one.
        let sql = "UPDATE audit_checkpoint SET anchor_ms = $3 WHERE chain = $1 AND position = $2 AND anchor_ms IS NULL";
        pool.query(sql, &[of.clone(), to.clone(), (&reference_ms, Type::INT8)]).await?;
        pruned += piece_by_piece(pool, SPAN, &[of, to, (&PIECE, Type::INT8)]).await?;
        let sql = "DELETE FROM audit_checkpoint WHERE chain = $1 AND position < $2";
        pool.query(sql, &span).await?;
    }
    pruned += piece_by_piece(pool, UNCHAINED, &[(&before_ms, Type::INT8), (&PIECE, Type::INT8)]).await?;
    let as_long_again_ms = before_ms.saturating_sub(reference_ms.saturating_sub(before_ms));
    pool.query(ANCHORS, &[(&as_long_again_ms, Type::INT8)]).await?;
    let seen_ms = before_ms.saturating_sub(SEEN_AGAIN_MS);
    piece_by_piece(pool, IDENTITIES, &[(&seen_ms, Type::INT8), (&PIECE, Type::INT8)]).await?;
    Ok(pruned)
}

/// Until a piece is empty: so that exchanges are not held up, and replicas that prune together take different ones.
async fn piece_by_piece(pool: &Pool, sql: &str, values: &[Parameter<'_>]) -> Result<u64, PostgresError> {
    let mut taken = 0;
    loop {
        let rows = pool.query(sql, values).await?;
        let piece: i64 = rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or(0);
        taken += unsigned(piece);
        if piece == 0 {
            return Ok(taken);
        }
    }
}

const SPAN: &str = "
    WITH oldest AS (
        DELETE FROM audit WHERE sequence IN (
            SELECT sequence FROM audit WHERE chain = $1 AND position <= $2
            ORDER BY position LIMIT $3 FOR UPDATE SKIP LOCKED
        ) RETURNING sequence, records
    ), tokens AS (
        DELETE FROM audit_token USING oldest WHERE audit_token.sequence = oldest.sequence
    )
    SELECT coalesce(sum(records), 0)::bigint FROM oldest";

/// Records that are older than the chain.
const UNCHAINED: &str = "
    WITH oldest AS (
        DELETE FROM audit WHERE sequence IN (
            SELECT sequence FROM audit WHERE newest_ms < $1 AND chain IS NULL
            ORDER BY newest_ms LIMIT $2 FOR UPDATE SKIP LOCKED
        ) RETURNING sequence, records
    ), tokens AS (
        DELETE FROM audit_token USING oldest WHERE audit_token.sequence = oldest.sequence
    )
    SELECT coalesce(sum(records), 0)::bigint FROM oldest";

/// Of chains that have had no records for as long again.
const ANCHORS: &str = "
    DELETE FROM audit_checkpoint WHERE chain IN (
        SELECT chain FROM audit_checkpoint AS anchor WHERE anchor_ms < $1
        AND NOT EXISTS (SELECT 1 FROM audit WHERE audit.chain = anchor.chain)
    )";

const IDENTITIES: &str = "
    WITH old AS (
        DELETE FROM audit_identity WHERE digest IN (
            SELECT digest FROM audit_identity WHERE seen_ms < $1 LIMIT $2 FOR UPDATE SKIP LOCKED
        ) RETURNING 1
    )
    SELECT count(*) FROM old";

const PIECE: i64 = 500;

/// Facts are stored again at least every half day that somebody refers to them.
const SEEN_AGAIN_MS: i64 = 24 * 3600 * 1000;

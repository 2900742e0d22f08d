//! What is past its retention in SQLite, and how it goes: in pieces that nobody waits for.

use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::JobError;
use crate::audit::{Checkpoint, Expired, Head};
use crate::store::{signed, unsigned};

/// The columns `chain, position, at_ms, anchor_ms, statement`.
pub(super) fn checkpoint(row: &Row<'_>) -> rusqlite::Result<Checkpoint> {
    Ok(Checkpoint {
        chain: Uuid::from_bytes(row.get(0)?),
        position: unsigned(row.get(1)?),
        at_ms: row.get(2)?,
        anchor_ms: row.get(3)?,
        statement: row.get(4)?,
    })
}

/// What is taken away together, some rows at a time, until nothing of it is left.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// From now on the chain begins behind this position.
    Anchor {
        chain: Uuid,
        position: u64,
        reference_ms: i64,
    },
    Groups {
        chain: Uuid,
        position: u64,
    },
    /// Those before the one where the chain begins.
    Checkpoints {
        chain: Uuid,
        position: u64,
    },
    /// Records that are older than the chain.
    Unchained {
        before_ms: i64,
    },
    /// Checkpoints of chains that have had no records for as long again.
    Anchors {
        before_ms: i64,
    },
    Identities {
        before_ms: i64,
    },
}

pub(super) fn steps(expired: &Expired) -> Vec<Step> {
    let Expired { reference_ms, before_ms, ref spans, .. } = *expired;
    let mut steps = Vec::new();
    for Head { chain, position, .. } in spans.iter().copied() {
        // In this order: at every moment, what is left of the chain begins at an anchor or before one.
        steps.push(Step::Anchor { chain, position, reference_ms });
        steps.push(Step::Groups { chain, position });
        steps.push(Step::Checkpoints { chain, position });
    }
    let retention_ms = reference_ms.saturating_sub(before_ms);
    steps.push(Step::Unchained { before_ms });
    steps.push(Step::Anchors { before_ms: before_ms.saturating_sub(retention_ms) });
    steps.push(Step::Identities { before_ms: before_ms.saturating_sub(SEEN_AGAIN_MS) });
    steps
}

pub(super) struct Taken {
    pub rows: usize,
    pub records: u64,
}

pub(super) fn take(connection: &mut Connection, step: &Step) -> Result<Taken, JobError> {
    let transaction = connection.transaction()?;
    let mut records = 0;
    let rows = match step {
        Step::Anchor { chain, position, reference_ms } => {
            let sql = "UPDATE audit_checkpoint SET anchor_ms = ?3
                       WHERE chain = ?1 AND position = ?2 AND anchor_ms IS NULL";
            transaction.execute(sql, params![chain.as_bytes(), signed(*position), reference_ms])?
        }
        Step::Groups { chain, position } => {
            let sql =
                "SELECT sequence, records FROM audit WHERE chain = ?1 AND position <= ?2 ORDER BY position LIMIT ?3";
            let mut groups = transaction.prepare_cached(sql)?;
            let groups = groups.query_map(params![chain.as_bytes(), signed(*position), PIECE], sequence)?;
            let groups: Vec<_> = groups.collect::<Result<_, _>>()?;
            records = drop_groups(&transaction, &groups)?;
            groups.len()
        }
        Step::Unchained { before_ms } => {
            let sql = "SELECT sequence, records FROM audit WHERE newest_ms < ?1 AND chain IS NULL LIMIT ?2";
            let mut groups = transaction.prepare_cached(sql)?;
            let groups: Vec<_> = groups.query_map(params![before_ms, PIECE], sequence)?.collect::<Result<_, _>>()?;
            records = drop_groups(&transaction, &groups)?;
            groups.len()
        }
        Step::Checkpoints { chain, position } => {
            let sql = "DELETE FROM audit_checkpoint WHERE chain = ?1 AND position < ?2";
            transaction.execute(sql, params![chain.as_bytes(), signed(*position)])?
        }
        Step::Anchors { before_ms } => {
            let sql = "DELETE FROM audit_checkpoint WHERE chain IN (
                           SELECT chain FROM audit_checkpoint AS anchor WHERE anchor_ms < ?1
                           AND NOT EXISTS (SELECT 1 FROM audit WHERE audit.chain = anchor.chain)
                       )";
            transaction.execute(sql, params![before_ms])?
        }
        Step::Identities { before_ms } => {
            let sql = "DELETE FROM audit_identity WHERE digest IN (
                           SELECT digest FROM audit_identity WHERE seen_ms < ?1 LIMIT ?2
                       )";
            transaction.execute(sql, params![before_ms, PIECE])?
        }
    };
    transaction.commit()?;
    Ok(Taken { rows, records })
}

fn sequence(row: &Row<'_>) -> rusqlite::Result<(i64, i64)> {
    Ok((row.get(0)?, row.get(1)?))
}

/// Returns how many records they had.
fn drop_groups(connection: &Connection, groups: &[(i64, i64)]) -> rusqlite::Result<u64> {
    for (sequence, _records) in groups {
        for sql in ["DELETE FROM audit_token WHERE sequence = ?1", "DELETE FROM audit WHERE sequence = ?1"] {
            connection.prepare_cached(sql)?.execute([sequence])?;
        }
    }
    Ok(groups.iter().map(|(_sequence, records)| unsigned(*records)).sum())
}

const PIECE: i64 = 200;

/// Facts are stored again at least every half day that somebody refers to them.
const SEEN_AGAIN_MS: i64 = 24 * 3600 * 1000;

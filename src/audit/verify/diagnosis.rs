//! What happened to a record that does not fit: told by where it, or what belongs in its place, would fit.

use super::walk::{Foot, shown, time_of, worth};
use super::{Fault, FaultKind, Seen, Verification};
use crate::audit::chain::{Hash, hash_at, link};
use crate::audit::{AuditError, Group, READ_AT_ONCE, encoding};

/// Why a group does not follow the one before it.
#[derive(Debug)]
pub(super) enum Misfit {
    /// It has another place.
    Position {
        expected: u64,
    },
    /// The record's hash is not the one that stands beside it, or there is none.
    Hash {
        position: u64,
        is_first: bool,
        has_one: bool,
    },
    /// Something else than records, or more or fewer than it says.
    Length {
        position: u64,
    },
    Checkpoint {
        position: u64,
        seen: Seen,
    },
    /// The store finds the group under another time, or as of another kind, than its records say.
    Index {
        position: u64,
    },
}

impl Verification {
    /// `foot`: before the record that does not fit, in `group`.
    pub(super) async fn diagnosed(
        &self,
        misfit: Misfit,
        foot: &Foot,
        sequence: i64,
        group: &Group,
    ) -> Result<Fault, AuditError> {
        let (kind, position, detail) = match misfit {
            Misfit::Position { expected } if group.position > expected => {
                let last = group.position - 1;
                let detail = format!("the records up to {last} are gone, unless they wait in a broker's spool");
                (FaultKind::Missing, expected, detail)
            }
            Misfit::Position { .. } => {
                let detail = "its place in the chain is taken by another record".to_owned();
                (FaultKind::Inserted, group.position, detail)
            }
            Misfit::Length { position } => {
                let detail =
                    format!("the group that begins at {} is no longer the one that was written", group.position);
                (FaultKind::Edited, position, detail)
            }
            Misfit::Index { position } => {
                let detail = "the time or kind that the store has for its group is not that of its records: searches \
                              may miss them"
                    .to_owned();
                (FaultKind::Edited, position, detail)
            }
            Misfit::Checkpoint { position, seen } => {
                let (worth, at) = (worth(&seen.standing), shown(seen.at));
                let detail = format!(
                    "the checkpoint of {at}, {worth}, saw another record here: it, or one since the checkpoint before, \
                     was rewritten"
                );
                (FaultKind::CheckpointContradicts, position, detail)
            }
            Misfit::Hash { position, is_first: true, .. } => match self.displaced(foot, sequence, group).await? {
                Some(found) => found,
                None => (FaultKind::Edited, position, REWRITTEN.to_owned()),
            },
            Misfit::Hash { position, has_one: true, .. } => (FaultKind::Edited, position, REWRITTEN.to_owned()),
            Misfit::Hash { position, has_one: false, .. } => {
                (FaultKind::Edited, position, "its hash is gone".to_owned())
            }
        };
        let index = position.checked_sub(group.position).and_then(|index| usize::try_from(index).ok());
        let frame = index.and_then(|index| encoding::frames(&group.bytes).nth(index));
        let record = frame.and_then(encoding::decode).filter(|_record| kind != FaultKind::Missing);
        Ok(Fault {
            exchange_id: record.as_ref().map(|record| record.exchange_id.clone()).unwrap_or_default(),
            time: record.as_ref().and_then(time_of),
            ..Fault::of(kind, foot.chain, position, detail)
        })
    }

    /// Whether `group`, or the one before it, stands where it was not written.
    async fn displaced(
        &self,
        foot: &Foot,
        sequence: i64,
        group: &Group,
    ) -> Result<Option<(FaultKind, u64, String)>, AuditError> {
        if let Some((before, hash)) = foot.before
            && fits(foot, before, &hash, group)
        {
            let detail = "it was not written here: what follows belongs in its place".to_owned();
            return Ok(Some((FaultKind::Inserted, before + 1, detail)));
        }
        let Some(hash) = foot.hash else { return Ok(None) };
        let mut behind = (0, i64::MIN);
        let mut copied = None;
        loop {
            let rows = self.reader.rows(foot.chain, behind, READ_AT_ONCE).await?;
            let Some((last, group_at_end)) = rows.last() else { break };
            behind = (group_at_end.position, *last);
            for (other_sequence, other) in rows.iter().filter(|(other, _group)| *other != sequence) {
                if fits(foot, foot.position, &hash, other) {
                    return Ok(Some(moved(foot, group, other)));
                }
                if other.bytes == group.bytes && copied.is_none() {
                    copied = Some((*other_sequence, other.position));
                }
            }
        }
        Ok(copied.map(|(_sequence, position)| {
            let detail = format!("it is a copy of the record at {position}");
            (FaultKind::Inserted, group.position, detail)
        }))
    }
}

/// `other` belongs where `group` stands.
fn moved(foot: &Foot, group: &Group, other: &Group) -> (FaultKind, u64, String) {
    let at = group.position;
    // Where everything behind was moved up to make room, `group` has no place of its own.
    let last = other.hashes.last_chunk().copied();
    let behind_other = last.is_some_and(|hash: Hash| fits(foot, foot.position + other.records, &hash, group));
    if other.position == group.position + group.records && !behind_other {
        let detail = "it was not written here: what follows belongs in its place".to_owned();
        return (FaultKind::Inserted, at, detail);
    }
    let detail = format!("what belongs here stands at {}", other.position);
    (FaultKind::Reordered, at, detail)
}

/// Whether `group` was written behind the record at `position`, which has this hash.
fn fits(foot: &Foot, position: u64, hash: &Hash, group: &Group) -> bool {
    let Some(first) = encoding::frames(&group.bytes).next() else { return false };
    hash_at(1, &group.hashes, 1) == Some(link(foot.chain, position + 1, hash, first))
}

const REWRITTEN: &str = "it is not the record that was written, or the one before it is not";

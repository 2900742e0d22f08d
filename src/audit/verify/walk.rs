//! One chain from where it begins to its end: each record's hash computed anew, each checkpoint held against it.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::SystemTime;

use regex::bytes::Regex;
use uuid::Uuid;

use super::beside::token_of;
use super::diagnosis::Misfit;
use super::{Anchor, CHECKPOINTS_AT_ONCE, Fault, FaultKind, Seen, Signatures, Verification};
use crate::audit::chain::{BEGINNING, Hash, hash_at, link};
use crate::audit::writer::UNCHAINED;
use crate::audit::{AuditError, Extent, Group, Head, OWN_ACTIONS, PRUNE, READ_AT_ONCE, encoding, is_own};
use crate::clock::{from_unix_milliseconds, unix_milliseconds};
use crate::issuer::Standing;
use crate::proto;

/// How far a walk has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Foot {
    pub chain: Uuid,
    pub position: u64,
    /// `None` where the chain was cut before this program saw it: the next record's own is believed.
    pub hash: Option<Hash>,
    /// The position before the last group, and its hash.
    pub before: Option<(u64, Hash)>,
    /// Of the last group.
    pub row: (u64, i64),
}

/// A checkpoint of the chain that is walked.
struct Due {
    seen: Seen,
    anchored: bool,
}

impl Verification {
    pub(super) async fn walk(&mut self, extent: Extent) -> Result<(), AuditError> {
        let chain = extent.chain;
        let checkpoints = self.checkpoints_of(chain).await?;
        let believed = self.believed(&extent, &checkpoints).await?;
        let ends = checkpoints.last().is_none_or(|due| due.seen.head.position <= extent.last);
        if self.faulty.contains(&chain) || ends && believed.is_some() && believed == extent.head() {
            return Ok(());
        }
        self.report.chains += 1;
        let Some(mut foot) = self.beginning(&extent, &checkpoints, believed) else { return Ok(()) };
        let from = foot.position;
        self.coverage.walks(chain, from);
        let mut due = checkpoints.into_iter().filter(|due| due.seen.head.position > from).peekable();
        loop {
            let rows = self.reader.rows(chain, foot.row, READ_AT_ONCE).await?;
            if rows.is_empty() {
                break;
            }
            for (sequence, group) in &rows {
                if let Err(misfit) = self.step(&mut foot, *sequence, group, &mut due).await? {
                    let fault = self.diagnosed(misfit, &foot, *sequence, group).await?;
                    self.fault_of(fault);
                    return Ok(());
                }
            }
        }
        self.coverage.walked(chain, foot.position);
        if let Some(Due { seen, .. }) = due.last() {
            let detail = format!(
                "the checkpoint of {} saw records up to {}: those behind {} are gone, unless they wait in a broker's spool",
                shown(seen.at),
                seen.head.position,
                foot.position
            );
            self.fault(FaultKind::Missing, chain, foot.position + 1, detail);
        }
        Ok(())
    }

    async fn checkpoints_of(&mut self, chain: Uuid) -> Result<Vec<Due>, AuditError> {
        let (mut checkpoints, mut behind) = (Vec::new(), 0);
        loop {
            let page = self.reader.checkpoints((chain, behind), CHECKPOINTS_AT_ONCE).await?;
            let of_chain = page.iter().take_while(|checkpoint| checkpoint.chain == chain);
            for checkpoint in of_chain {
                behind = checkpoint.position;
                let anchored = checkpoint.anchor_ms.is_some();
                let seen = self.examined(checkpoint);
                checkpoints.extend(seen.map(|seen| Due { seen, anchored }));
            }
            if page.last().is_none_or(|last| last.chain != chain) {
                return Ok(checkpoints);
            }
        }
    }

    /// Up to where the records are believed without a look at them: to the last checkpoint of before the time from which
    /// all is checked. That time is what a signature covers, not what the store says.
    async fn believed(&mut self, extent: &Extent, checkpoints: &[Due]) -> Result<Option<Head>, AuditError> {
        let Some(since) = self.scope.since.map(unix_milliseconds) else { return Ok(None) };
        let worth = |standing: &Standing| match (standing, self.scope.signatures) {
            (Standing::Signed, _) | (Standing::Unsigned, Signatures::None) => true,
            (Standing::Unsigned | Standing::UnknownKey(_) | Standing::Untimely(_) | Standing::Wrong(_), _) => false,
        };
        let before = |due: &&Due| {
            unix_milliseconds(due.seen.at) < since
                && worth(&due.seen.standing)
                && (extent.first..=extent.last).contains(&due.seen.head.position)
        };
        let Some(due) = checkpoints.iter().rev().find(before) else { return Ok(None) };
        let Head { chain, position, hash } = due.seen.head;
        if self.stored_hash(chain, position).await? == Some(hash) {
            return Ok(Some(due.seen.head));
        }
        let detail = format!(
            "the checkpoint of {} saw another record here: it, or one before it, was rewritten",
            shown(due.seen.at)
        );
        self.fault(FaultKind::CheckpointContradicts, chain, position, detail);
        Ok(None)
    }

    /// Before the first record that is to be checked; `None` where there is no such place.
    fn beginning(&mut self, extent: &Extent, checkpoints: &[Due], believed: Option<Head>) -> Option<Foot> {
        let Extent { chain, first, .. } = *extent;
        let at = |head: Option<Head>, position: u64| Foot {
            chain,
            position,
            hash: head.map(|head| head.hash),
            before: None,
            row: (position, i64::MAX),
        };
        if let Some(head) = believed {
            return Some(at(Some(head), head.position));
        }
        match first {
            0 => {
                self.fault(FaultKind::Inserted, chain, 0, "a chain's first record is at 1".to_owned());
                return None;
            }
            1 => return Some(Foot { hash: Some(BEGINNING), ..at(None, 0) }),
            _ => {}
        }
        // What is being dropped now, or was when its broker ended, begins before its anchor.
        let anchor = checkpoints.iter().find(|due| due.anchored && due.seen.head.position + 1 >= first);
        let Some(Due { seen: Seen { head, at: made, standing }, .. }) = anchor else {
            let detail = format!("the records up to {} are gone, and no checkpoint says why", first - 1);
            self.fault(FaultKind::Missing, chain, 1, detail);
            return None;
        };
        let anchor = Anchor { head: *head, at: *made, standing: standing.clone(), needed: true };
        self.anchors.insert(chain, anchor);
        Some(at((head.position + 1 == first).then_some(*head), first - 1))
    }

    /// Over one group.
    async fn step(
        &mut self,
        foot: &mut Foot,
        sequence: i64,
        group: &Group,
        due: &mut std::iter::Peekable<impl Iterator<Item = Due>>,
    ) -> Result<Result<(), Misfit>, AuditError> {
        let expected = foot.position + 1;
        if group.position != expected {
            return Ok(Err(Misfit::Position { expected }));
        }
        let talks_of_chains = OWN.is_match(&group.bytes);
        let (before, mut read) = (foot.hash.map(|hash| (foot.position, hash)), 0);
        let (mut newest, mut own) = (None, true);
        let mut handed_out = BTreeMap::new();
        for (position, frame) in (expected..).zip(encoding::frames(&group.bytes)) {
            read += frame.len();
            let stored = hash_at(expected, &group.hashes, position);
            let computed = foot.hash.map(|hash| link(foot.chain, position, &hash, frame));
            let Some(hash) = stored.filter(|stored| computed.is_none_or(|computed| computed == *stored)) else {
                return Ok(Err(Misfit::Hash { position, is_first: position == expected, has_one: stored.is_some() }));
            };
            (foot.position, foot.hash) = (position, Some(hash));
            self.report.records += 1;
            while let Some(Due { seen, .. }) = due.next_if(|due| due.seen.head.position == position) {
                if seen.head.hash != hash {
                    return Ok(Err(Misfit::Checkpoint { position, seen }));
                }
                self.coverage.checkpoint(foot.chain, position, &seen.standing);
            }
            let Some(record) = encoding::decode(frame) else {
                return Ok(Err(Misfit::Length { position }));
            };
            newest = newest.max(time_of(&record).map(unix_milliseconds));
            own &= is_own(&record.action);
            self.facts_of(foot.chain, position, &record).await?;
            if let Some(token) = token_of(&record) {
                handed_out.entry(token).or_insert((position, record.cached));
            }
            if talks_of_chains {
                self.hear(foot.chain, position, &record).await?;
            }
        }
        // What the store looks records up by, and no hash covers.
        if newest != Some(group.newest_ms) || own != group.own {
            return Ok(Err(Misfit::Index { position: expected }));
        }
        if read != group.bytes.len() || foot.position + 1 != expected + group.records {
            return Ok(Err(Misfit::Length { position: foot.position + 1 }));
        }
        self.tokens_of(foot.chain, group, &handed_out).await?;
        (foot.before, foot.row) = (before, (group.position, sequence));
        Ok(Ok(()))
    }

    /// What the log says of its own chains.
    async fn hear(&mut self, chain: Uuid, position: u64, record: &proto::AuditRecord) -> Result<(), AuditError> {
        if !OWN_ACTIONS.contains(&record.action.as_str()) {
            return Ok(());
        }
        let unchained = record.attributes.get(UNCHAINED).and_then(|unchained| unchained.parse::<u64>().ok());
        self.unchained_before = unchained.into_iter().chain(self.unchained_before).min();
        let heads = record.attributes.get("heads").map(String::as_str).unwrap_or_default();
        for head in heads.split(',').filter(|head| !head.is_empty()) {
            if record.action == PRUNE {
                self.dropped.entry(head.to_owned()).or_default().insert((chain, position));
                continue;
            }
            match head.parse() {
                Ok(head) => self.named((chain, position), time_of(record), head).await?,
                Err(_unreadable) => {
                    let detail = "what it says of other chains cannot be read".to_owned();
                    self.fault(FaultKind::Edited, chain, position, detail);
                }
            }
        }
        Ok(())
    }

    /// The record at `by` saw `head`.
    async fn named(&mut self, by: (Uuid, u64), time: Option<SystemTime>, head: Head) -> Result<(), AuditError> {
        let Head { chain, position, hash } = head;
        if self.faulty.contains(&chain) {
            return Ok(());
        }
        let witness = format!("record {} of chain {}", by.1, by.0);
        let Some(extent) = self.extents.get(&chain) else {
            if let Some(anchor) = self.anchors.get_mut(&chain).filter(|anchor| anchor.head.position >= position) {
                anchor.needed = true;
                self.seen_before.entry((chain, position)).or_insert((hash, witness));
                return Ok(());
            }
            let until = time.and_then(|time| time.checked_add(self.scope.retention));
            if until.is_none_or(|until| until > self.scope.now) {
                let detail = format!("{witness} saw it, and the store has nothing of it");
                let fault = Fault { time, ..Fault::of(FaultKind::ChainMissing, chain, 1, detail) };
                self.fault_of(fault);
            }
            return Ok(());
        };
        if position < extent.first {
            self.seen_before.entry((chain, position)).or_insert((hash, witness));
            return Ok(());
        }
        let stored = self.stored_hash(chain, position).await?;
        // What was added while this looks on is there, though the chain was shorter when it began.
        if position > extent.last && stored.is_none() {
            let (first, last) = (extent.last + 1, position);
            let detail =
                format!("{witness} saw records up to {last}: they are gone, unless they wait in a broker's spool");
            self.fault(FaultKind::Missing, chain, first, detail);
        } else if stored == Some(hash) {
            self.coverage.named(by, (chain, position));
        } else {
            let detail = format!("{witness} saw another record here: it, or one before it, was rewritten");
            self.fault(FaultKind::CheckpointContradicts, chain, position, detail);
        }
        Ok(())
    }
}

pub(super) fn time_of(record: &proto::AuditRecord) -> Option<SystemTime> {
    record.time.and_then(|time| SystemTime::try_from(time).ok())
}

/// To the second.
pub(super) fn shown(time: SystemTime) -> String {
    let time = from_unix_milliseconds(unix_milliseconds(time));
    jiff::Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}

/// What a checkpoint is worth, in words.
pub(super) fn worth(standing: &Standing) -> &'static str {
    match standing {
        Standing::Signed => "signed",
        Standing::Unsigned => "unsigned",
        Standing::UnknownKey(_) => "signed by a key that is not known here",
        Standing::Untimely(_) => "signed by a key outside the time in which it signed",
        Standing::Wrong(_) => "wrongly signed",
    }
}

/// Groups without it need no decoding.
static OWN: LazyLock<Regex> = LazyLock::new(|| {
    let actions = OWN_ACTIONS.map(regex::escape).join("|");
    #[expect(clippy::expect_used, reason = "a fixed text")]
    Regex::new(&actions).expect("an expression of plain words")
});

//! Records that come back: the port that a store fulfils for those who look at the log.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::asked::facts_digest;
use super::cursors::{Cursors, Gap, Gaps};
use super::search::{Filter, Search};
use super::{AuditError, Checkpoint, Group, Head, chain, encoding};
use crate::clock::unix_milliseconds;
use crate::proto;
use crate::secret::sha256;

/// Reads the log beside its writer, whom it never holds up. A broker's spool is no part of the log: what waits there is
/// read when it has been moved.
#[async_trait::async_trait]
pub trait AuditReader: fmt::Debug + Send + Sync {
    /// The groups whose newest record is in `window`, the newest first, beginning behind the place of an earlier answer.
    /// At least one where there is one, and no more than hold some `most` records.
    async fn newest_first(
        &self,
        window: Window,
        behind: Option<Place>,
        most: u64,
    ) -> Result<Vec<(Place, Group)>, AuditError>;

    /// The groups of `chain` that have records behind `position`, in their order; no more than hold some `most` records.
    async fn onwards(&self, chain: Uuid, position: u64, most: u64) -> Result<Vec<Group>, AuditError>;

    /// Every chain that is in the log, in the order of their beginnings.
    async fn chains(&self) -> Result<Vec<Extent>, AuditError>;

    /// Every row of `chain` behind the one with this position and number, in that order, and its number: for those who
    /// trust nothing in the store, and each with the tokens that the store finds it by. No more than hold some `most`
    /// records.
    async fn rows(&self, chain: Uuid, behind: (u64, i64), most: u64) -> Result<Vec<(i64, Group)>, AuditError>;

    /// The hashes of the group that has the record at `position` of `chain`, and the position of its first record.
    async fn hashes(&self, chain: Uuid, position: u64) -> Result<Option<(u64, Vec<u8>)>, AuditError>;

    /// How many records are older than the chain, and the time of the newest of them in milliseconds since 1970.
    async fn unchained(&self) -> Result<(u64, i64), AuditError>;

    /// The checkpoints behind that of this chain at this position, chain by chain, at most `most`.
    async fn checkpoints(&self, behind: (Uuid, u64), most: u32) -> Result<Vec<Checkpoint>, AuditError>;

    /// The facts with this digest, which a record's attribute `identity` names.
    async fn facts(&self, digest: &[u8; 32]) -> Result<Option<String>, AuditError>;

    /// Facts in the order of the digests that the store has for them, behind this one; at most `most`.
    async fn fact_sets(&self, behind: &[u8], most: u32) -> Result<Vec<(Vec<u8>, String)>, AuditError>;

    /// Whether the store finds any group by the token with this digest.
    async fn has_token(&self, token_sha256: &[u8; 32]) -> Result<bool, AuditError>;

    /// Of the next groups by their numbers, at most `most`, that the store would find by tokens: the last number, and how
    /// many of them it does not have. `None` where there are no more.
    async fn found_by_tokens(&self, behind: i64, most: u32) -> Result<Option<(i64, u64)>, AuditError>;

    /// The group that was written last and has more than records of the log about itself.
    async fn last_of_others(&self) -> Result<Option<Group>, AuditError>;
}

/// Milliseconds since 1970: from the first to before the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub from_ms: i64,
    pub before_ms: i64,
}

/// Where a group stands among all of the log, by its newest record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub newest_ms: i64,
    pub sequence: i64,
}

/// What the log has of one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub chain: Uuid,
    /// Position of the oldest record.
    pub first: u64,
    pub last: u64,
    /// Of the last record; `None` where it has none.
    pub hash: Option<chain::Hash>,
    /// Of the last group.
    pub newest_ms: i64,
}

impl Extent {
    pub fn head(&self) -> Option<Head> {
        Some(Head { chain: self.chain, position: self.last, hash: self.hash? })
    }
}

/// What comes next in the log.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "messages of the contract have none")]
pub struct Onwards {
    /// Each chain's in its order, but for those that close a gap.
    pub records: Vec<proto::AuditRecord>,
    /// Gaps that are known from now on.
    pub opened: Vec<Gap>,
    /// Records that were not read and will not be any more: retention was faster, or a gap is too old.
    pub lost: u64,
}

/// Of the newest record of `group`, as its records say themselves: milliseconds since 1970.
pub(super) fn newest_said(group: &Group) -> Option<i64> {
    encoding::frames(&group.bytes).filter_map(encoding::decode).filter_map(|record| time_of(&record)).max()
}

/// Milliseconds since 1970.
pub(super) fn time_of(record: &proto::AuditRecord) -> Option<i64> {
    let time = record.time.and_then(|time| SystemTime::try_from(time).ok());
    time.map(unix_milliseconds)
}

/// The chain of a record as it is shown; records that are older than the chain have none.
pub fn chain_of(record: &proto::AuditRecord) -> Option<Uuid> {
    record.attributes.get(CHAIN)?.parse().ok()
}

/// The log as records: each with its position as `sequence`, its `chain_hash`, and its chain among the attributes.
#[derive(Debug, Clone)]
pub struct Records {
    reader: Arc<dyn AuditReader>,
}

impl Records {
    pub fn new(reader: Arc<dyn AuditReader>) -> Self {
        Self { reader }
    }

    pub fn reader(&self) -> &Arc<dyn AuditReader> {
        &self.reader
    }

    /// What `filter` takes, newest first.
    pub fn search(&self, filter: Filter) -> Search {
        Search::new(self.reader.clone(), filter)
    }

    /// Behind everything that is in the log now.
    pub async fn end(&self) -> Result<Cursors, AuditError> {
        let ends = self.reader.chains().await?.into_iter().map(|extent| (extent.chain, extent.last));
        Ok(Cursors::new(ends, Gaps::default()))
    }

    /// The next records behind `cursors`, which move on: some [`READ_AT_ONCE`] at most; none when there is nothing new.
    /// From where the cursors are empty, everything in the log that has a chain.
    ///
    /// A replica whose spool is being moved has later records in the log before earlier ones: those wait until the gap
    /// closes, or is `GAP_PATIENCE` old at `now`. Then the cursors remember it, and what comes of it later is among the
    /// next records.
    pub async fn read_on(&self, cursors: &mut Cursors, now: SystemTime) -> Result<Onwards, AuditError> {
        let chains = self.reader.chains().await?;
        let mut moved = Cursors {
            positions: chains.iter().map(|chain| (chain.chain, cursors.position(chain.chain))).collect(),
            gaps: cursors.gaps.clone(),
            asked_ms: cursors.asked_ms,
        };
        let mut onwards = Onwards::default();
        let mut room = READ_AT_ONCE;
        let late = self.late(&mut moved, &chains, now, &mut onwards, &mut room).await?;
        let patient = unix_milliseconds(now.checked_sub(GAP_PATIENCE).unwrap_or(SystemTime::UNIX_EPOCH));
        let mut groups = Vec::new();
        for Extent { chain, first, last, .. } in chains {
            if room == 0 {
                break;
            }
            let Some(cursor) = moved.positions.get_mut(&chain).filter(|cursor| **cursor < last) else { continue };
            for group in self.reader.onwards(chain, *cursor, room).await? {
                if group.position > *cursor + 1 {
                    if group.newest_ms > patient {
                        break;
                    }
                    let gap = Gap { chain, first: *cursor + 1, last: group.position - 1 };
                    if *cursor > 0 && first > *cursor {
                        onwards.lost += gap.records();
                    } else {
                        onwards.lost += moved
                            .gaps
                            .open(gap)
                            .filter(|given_up| !given_up.is_beginning())
                            .map_or(0, |it| it.records());
                        onwards.opened.push(gap);
                    }
                }
                room = room.saturating_sub(group.records.max(1));
                let seen = std::mem::replace(cursor, (group.position + group.records).saturating_sub(1));
                groups.push((group, seen));
            }
        }
        // What several replicas recorded meanwhile, in the order in which they did.
        groups.sort_by_key(|(group, _seen)| group.newest_ms);
        let records = groups.iter().flat_map(|(group, seen)| shown(group).filter(|record| record.sequence > *seen));
        onwards.records = late.into_iter().chain(records).collect();
        // Chains that are gone need no cursor any more.
        *cursors = moved;
        Ok(onwards)
    }

    /// What the gaps lacked and the log has now.
    async fn late(
        &self,
        cursors: &mut Cursors,
        chains: &[Extent],
        now: SystemTime,
        onwards: &mut Onwards,
        room: &mut u64,
    ) -> Result<Vec<proto::AuditRecord>, AuditError> {
        let is_over = |gap: &Gap| {
            let extent = chains.iter().find(|extent| extent.chain == gap.chain);
            extent.is_none_or(|extent| extent.first > gap.last && !gap.is_beginning())
        };
        let given_up = cursors.gaps.give_up(is_over);
        onwards.lost += given_up.iter().filter(|gap| !gap.is_beginning()).map(Gap::records).sum::<u64>();
        let now_ms = unix_milliseconds(now);
        if cursors.asked_ms.is_some_and(|asked| (asked..asked.saturating_add(ASK_EVERY_MS)).contains(&now_ms)) {
            return Ok(Vec::new());
        }
        cursors.asked_ms = Some(now_ms);
        let mut late = Vec::new();
        for gap in cursors.gaps.iter().copied().collect::<Vec<_>>() {
            let dropped = |extent: &Extent| extent.chain == gap.chain && extent.first > gap.last;
            if gap.is_beginning() && chains.iter().any(dropped) {
                continue;
            }
            let wanted = gap.records().min(*room);
            if wanted == 0 {
                // There is more than is read at once.
                cursors.asked_ms = None;
                break;
            }
            let groups = self.reader.onwards(gap.chain, gap.first.saturating_sub(1), wanted).await?;
            for group in groups.iter().take_while(|group| group.position <= gap.last) {
                *room = room.saturating_sub(group.records.max(1));
                let found = (group.position..group.position.saturating_add(group.records))
                    .filter(|position| cursors.gaps.close(gap.chain, *position))
                    .collect::<BTreeSet<u64>>();
                late.extend(shown(group).filter(|record| found.contains(&record.sequence)));
            }
        }
        Ok(late)
    }

    /// Adds to each record the facts that it names, as the attribute `identity_facts`; to those whose facts are gone,
    /// nothing.
    pub async fn show_facts(
        &self,
        records: &mut [proto::AuditRecord],
        known: &mut KnownFacts,
    ) -> Result<(), AuditError> {
        for record in records {
            let Some(digest) = facts_digest(record) else { continue };
            let facts = match known.0.get(&digest) {
                Some(facts) => facts.clone(),
                None => {
                    let facts: Option<Arc<str>> = self.facts(&digest).await?.map(Arc::from);
                    if known.0.len() >= KNOWN_FACTS {
                        known.0.clear();
                    }
                    known.0.insert(digest, facts.clone());
                    facts
                }
            };
            if let Some(facts) = facts {
                record.attributes.insert(IDENTITY_FACTS.to_owned(), facts.to_string());
            }
        }
        Ok(())
    }

    /// The facts that a record's attribute `identity` names, as JSON. Others in their place are none: a record is linked to
    /// the digest only.
    pub async fn facts(&self, digest: &[u8; 32]) -> Result<Option<String>, AuditError> {
        let facts = self.reader.facts(digest).await?;
        Ok(facts.filter(|facts| sha256(facts.as_bytes()) == *digest))
    }
}

/// The records of `group` that can be read, as they are shown.
pub(super) fn shown(group: &Group) -> impl DoubleEndedIterator<Item = proto::AuditRecord> {
    let mut hashes = group.hashes.chunks_exact(chain::BEGINNING.len());
    let frames = (group.position..).zip(encoding::frames(&group.bytes));
    let placed: Vec<_> = frames.map(|(position, frame)| (position, frame, hashes.next())).collect();
    let chain = group.chain;
    placed.into_iter().filter_map(move |(position, frame, hash)| {
        let mut record = encoding::decode(frame)?;
        if let Some(chain) = chain {
            record.sequence = position;
            record.chain_hash = hash.and_then(|hash| hash.try_into().ok()).map(chain::shown).unwrap_or_default();
            record.attributes.insert(CHAIN.to_owned(), chain.to_string());
        }
        Some(record)
    })
}

/// Facts that were read for earlier records. Full, it forgets all.
#[derive(Debug, Default)]
pub struct KnownFacts(HashMap<[u8; 32], Option<Arc<str>>>);

/// Some kilobytes each where somebody is in many groups.
const KNOWN_FACTS: usize = 2000;

/// The attribute that holds what a record was decided about, where that is asked for.
pub const IDENTITY_FACTS: &str = "identity_facts";

/// The attribute that names a record's chain where the record is shown.
const CHAIN: &str = "chain";

/// Records that are read in one go.
pub const READ_AT_ONCE: u64 = 1024;

/// A spool is moved every two seconds; what has not come by then waits on the disk of a broker that is gone, perhaps for
/// good.
const GAP_PATIENCE: Duration = Duration::from_secs(600);

/// How often the log is asked for what a gap lacks.
const ASK_EVERY_MS: i64 = 5000;

//! Records that come back: the port that a store fulfils for those who look at the log.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::asked::facts_digest;
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

/// How far somebody has read every chain: the position of the last record that they saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursors(BTreeMap<Uuid, u64>);

impl Cursors {
    pub fn iter(&self) -> impl Iterator<Item = (Uuid, u64)> {
        self.0.iter().map(|(chain, position)| (*chain, *position))
    }

    /// 0 for a chain that was not seen.
    pub fn position(&self, chain: Uuid) -> u64 {
        self.0.get(&chain).copied().unwrap_or_default()
    }

    /// Whether `record`, as it is shown, is at or before the cursor of its chain. Records of no chain always are.
    pub fn passed(&self, record: &proto::AuditRecord) -> bool {
        chain_of(record).is_none_or(|chain| record.sequence <= self.position(chain))
    }
}

impl FromIterator<(Uuid, u64)> for Cursors {
    fn from_iter<I: IntoIterator<Item = (Uuid, u64)>>(cursors: I) -> Self {
        Self(cursors.into_iter().collect())
    }
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
        Ok(self.reader.chains().await?.into_iter().map(|extent| (extent.chain, extent.last)).collect())
    }

    /// The next records behind `cursors`, which move on: none left out, each chain's in its order, some
    /// [`READ_AT_ONCE`] at most; none when there is nothing new. From where the cursors are empty, everything in the log
    /// that has a chain.
    ///
    /// A replica whose spool is being moved has later records in the log before earlier ones: those wait until the gap
    /// closes, or is `GAP_PATIENCE` old at `now`.
    pub async fn read_on(&self, cursors: &mut Cursors, now: SystemTime) -> Result<Vec<proto::AuditRecord>, AuditError> {
        let chains = self.reader.chains().await?;
        let mut moved: BTreeMap<Uuid, u64> =
            chains.iter().map(|chain| (chain.chain, cursors.position(chain.chain))).collect();
        let patient = unix_milliseconds(now.checked_sub(GAP_PATIENCE).unwrap_or(SystemTime::UNIX_EPOCH));
        let (mut groups, mut room) = (Vec::new(), READ_AT_ONCE);
        for Extent { chain, last, .. } in chains {
            let Some(cursor) = moved.get_mut(&chain).filter(|cursor| **cursor < last) else { continue };
            for group in self.reader.onwards(chain, *cursor, room).await? {
                if group.position > *cursor + 1 && group.newest_ms > patient {
                    break;
                }
                room = room.saturating_sub(group.records.max(1));
                let seen = std::mem::replace(cursor, (group.position + group.records).saturating_sub(1));
                groups.push((group, seen));
            }
            if room == 0 {
                break;
            }
        }
        // What several replicas recorded meanwhile, in the order in which they did.
        groups.sort_by_key(|(group, _seen)| group.newest_ms);
        let records = groups.iter().flat_map(|(group, seen)| shown(group).filter(|record| record.sequence > *seen));
        let records = records.collect();
        // Chains that are gone need no cursor any more.
        *cursors = Cursors(moved);
        Ok(records)
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

/// A spool is moved every two seconds; what has not come by then was lost with the spool's disk.
const GAP_PATIENCE: Duration = Duration::from_secs(600);

//! How old the records of a chain are, by what a signature or their own hashes cover: what the store says beside them is
//! nobody's word, and makes no record old.

use uuid::Uuid;

use crate::audit::chain::{BEGINNING, Hash, hash_at, link};
use crate::audit::reader::{newest_said, time_of};
use crate::audit::{AuditError, AuditReader, Checkpoint, Expired, Extent, Group, Head, READ_AT_ONCE, Reach, encoding};
use crate::clock::{from_unix_milliseconds, unix_milliseconds};
use crate::issuer::{Standing, StatementKeys};

/// What is asked of each chain.
pub(super) struct Ages<'a> {
    pub reader: &'a dyn AuditReader,
    /// The issuer's own.
    pub keys: StatementKeys,
    /// What is earlier is past its retention: milliseconds since 1970.
    pub before_ms: i64,
}

/// A chain with records that seem to be past their retention, and why they stay.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub chain: Uuid,
    pub why: String,
}

/// Why nothing can be said of an age.
type Doubt = String;

impl Ages<'_> {
    /// Adds to `expired` what is past its retention; what may be, and cannot be believed, is held.
    pub async fn judge(&self, expired: &mut Expired) -> Result<Vec<Held>, AuditError> {
        let mut held = Vec::new();
        for extent in self.reader.chains().await? {
            if let Err(why) = self.chain(&extent, expired).await? {
                held.push(Held { chain: extent.chain, why });
            }
        }
        Ok(held)
    }

    async fn chain(&self, extent: &Extent, expired: &mut Expired) -> Result<Result<(), Doubt>, AuditError> {
        let checkpoints = self.checkpoints(extent).await?;
        let (mut span, mut doubt) = (None, None);
        for checkpoint in checkpoints.iter().rev().filter(|checkpoint| checkpoint.position >= extent.first) {
            match self.age(checkpoint).await? {
                Ok(Some(head)) => {
                    span = Some(head);
                    break;
                }
                // It says itself that it is too young.
                Ok(None) => {}
                Err(why) => doubt = doubt.or(Some(why)),
            }
        }
        expired.spans.extend(span);
        let anchor = checkpoints.iter().find(|checkpoint| checkpoint.position + 1 == extent.first);
        let begins = anchor.and_then(|anchor| Some(anchor.statement()?.0.head.hash));
        let covered = span.map_or((extent.first.saturating_sub(1), begins), |span| (span.position, Some(span.hash)));
        if covered.0 < extent.last {
            match self.tail(extent, covered).await? {
                Ok(tail) => expired.tails.extend(tail),
                Err(why) => doubt = doubt.or(Some(why)),
            }
        }
        Ok(doubt.map_or(Ok(()), Err))
    }

    /// Of the chain's beginning and what comes behind it.
    async fn checkpoints(&self, extent: &Extent) -> Result<Vec<Checkpoint>, AuditError> {
        let (mut checkpoints, mut behind) = (Vec::new(), extent.first.saturating_sub(2));
        loop {
            let page = self.reader.checkpoints((extent.chain, behind), AT_ONCE).await?;
            let last = page.last().filter(|last| last.chain == extent.chain).map(|last| last.position);
            checkpoints.extend(page.into_iter().take_while(|checkpoint| checkpoint.chain == extent.chain));
            let Some(last) = last else { return Ok(checkpoints) };
            behind = last;
        }
    }

    /// As far as a checkpoint covers what is past its retention; `None` where it says itself that it is too young.
    async fn age(&self, checkpoint: &Checkpoint) -> Result<Result<Option<Head>, Doubt>, AuditError> {
        let Checkpoint { chain, position, .. } = *checkpoint;
        let Some((said, statement)) = checkpoint.statement() else {
            return Ok(Err(format!("what stands in the place of its checkpoint at {position} is none")));
        };
        if (said.head.chain, said.head.position) != (chain, position) {
            return Ok(Err(format!("its checkpoint at {position} is that of another record")));
        }
        if unix_milliseconds(said.at) >= self.before_ms {
            return Ok(Ok(None));
        }
        if self.stored_hash(chain, position).await? != Some(said.head.hash) {
            return Ok(Err(format!("its record at {position} is not the one that the checkpoint of it saw")));
        }
        match statement.standing(&self.keys) {
            Standing::Signed => Ok(Ok(Some(said.head))),
            // Without a signature, or with that of a key that was withdrawn since: the record itself says when it was made.
            Standing::Unsigned | Standing::UnknownKey(_) => match self.own_time(chain, position).await? {
                Ok(time) => Ok(Ok((time < self.before_ms).then_some(said.head))),
                Err(why) => Ok(Err(why)),
            },
            Standing::Untimely(kid) | Standing::Wrong(kid) => {
                Ok(Err(format!("its checkpoint at {position} is not one that the key {kid} signed in its time")))
            }
        }
    }

    /// The time in the record at `position`, which its hash covers.
    async fn own_time(&self, chain: Uuid, position: u64) -> Result<Result<i64, Doubt>, AuditError> {
        let before = match position {
            1 => Some(BEGINNING),
            _ => self.stored_hash(chain, position.saturating_sub(1)).await?,
        };
        let groups = self.reader.onwards(chain, position.saturating_sub(1), 1).await?;
        let group = groups.first().filter(|group| group.position <= position);
        let time = group.and_then(|group| {
            let index = usize::try_from(position - group.position).ok()?;
            let frame = encoding::frames(&group.bytes).nth(index)?;
            let stored = hash_at(group.position, &group.hashes, position)?;
            // What stood before it may be gone already.
            let fits = before.is_none_or(|before| link(chain, position, &before, frame) == stored);
            fits.then(|| encoding::decode(frame)).flatten().as_ref().and_then(time_of)
        });
        Ok(time.ok_or_else(|| format!("its record at {position} is not the one that was written")))
    }

    /// The rest of a chain behind what is past its retention, where all of that is, too: of writers that were killed.
    async fn tail(
        &self,
        extent: &Extent,
        (mut position, mut hash): (u64, Option<Hash>),
    ) -> Result<Result<Option<Reach>, Doubt>, AuditError> {
        let Extent { chain, last, .. } = *extent;
        let end = self.reader.onwards(chain, last.saturating_sub(1), 1).await?;
        let newest = end.last().and_then(newest_said);
        if newest.is_some_and(|newest| newest >= self.before_ms) {
            return self.overdue(chain, position).await;
        }
        let mut newest = i64::MIN;
        if position == 0 {
            hash = Some(BEGINNING);
        }
        while position < last {
            let groups = self.reader.onwards(chain, position, READ_AT_ONCE).await?;
            let from = position;
            for group in &groups {
                match walk(chain, group, &mut position, &mut hash) {
                    Some(said) => newest = newest.max(said),
                    None => return Ok(Err(format!("what follows its record at {position} is not what was written"))),
                }
            }
            if newest >= self.before_ms {
                return Ok(Ok(None));
            }
            if position == from {
                return Ok(Err(format!("what follows its record at {position} is gone")));
            }
        }
        let head = hash.map(|hash| Head { chain, position, hash });
        Ok(Ok(head.map(|head| Reach { head, newest_ms: newest })))
    }

    /// The chain lives. What is behind `position` is covered by younger checkpoints: of a day there are twenty.
    async fn overdue(&self, chain: Uuid, position: u64) -> Result<Result<Option<Reach>, Doubt>, AuditError> {
        let groups = self.reader.onwards(chain, position, 1).await?;
        let oldest = groups.first().and_then(|group| encoding::frames(&group.bytes).next().and_then(encoding::decode));
        match oldest.as_ref().and_then(time_of) {
            Some(oldest) if oldest < self.before_ms.saturating_sub(OVERDUE_MS) => {
                let since = jiff::Timestamp::try_from(from_unix_milliseconds(oldest)).unwrap_or_default();
                Ok(Err(format!("no checkpoint covers its records of {since} and of the day behind that alone")))
            }
            Some(_) | None => Ok(Ok(None)),
        }
    }

    async fn stored_hash(&self, chain: Uuid, position: u64) -> Result<Option<Hash>, AuditError> {
        let Some((first, hashes)) = self.reader.hashes(chain, position).await? else { return Ok(None) };
        Ok(hash_at(first, &hashes, position))
    }
}

/// Over the records of `group` that are behind `position`; the time of the newest, `None` where one does not follow the one
/// before it.
fn walk(chain: Uuid, group: &Group, position: &mut u64, hash: &mut Option<Hash>) -> Option<i64> {
    let mut newest = i64::MIN;
    for (at, frame) in (group.position..).zip(encoding::frames(&group.bytes)) {
        if at <= *position {
            continue;
        }
        let stored = hash_at(group.position, &group.hashes, at)?;
        let fits = hash.is_none_or(|before| link(chain, at, &before, frame) == stored);
        if !fits || at != *position + 1 {
            return None;
        }
        newest = newest.max(time_of(&encoding::decode(frame)?)?);
        (*position, *hash) = (at, Some(stored));
    }
    Some(newest)
}

const AT_ONCE: u32 = 1000;

/// Brokers make a checkpoint a minute, of which one an hour stays.
const OVERDUE_MS: i64 = 24 * 3600 * 1000;

//! The tamper-evident chain: every record's hash covers the one before it, so that none can be changed, left out, added or
//! moved alone.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::encoding;
use super::{AuditRecord, Group, is_own};
use crate::clock::unix_milliseconds;
use crate::secret::sha256;
use crate::subject::Facts;

/// The last record of a chain, as somebody saw it: everything before it is fixed by its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub chain: Uuid,
    /// From 1.
    pub position: u64,
    pub hash: Hash,
}

/// SHA-256 over a record and the hash before it.
pub type Hash = [u8; 32];

/// `chain:position:hash`, the hash in base64url.
impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.chain, self.position, shown(&self.hash))
    }
}

/// Why a text is no [`Head`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected chain:position:hash")]
pub struct InvalidHead;

impl FromStr for Head {
    type Err = InvalidHead;

    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        let mut parts = text.split(':');
        let (Some(chain), Some(position), Some(hash), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidHead);
        };
        let hash = BASE64_URL_SAFE_NO_PAD.decode(hash).ok().and_then(|hash| Hash::try_from(hash).ok());
        Ok(Self {
            chain: chain.parse().map_err(|_not_a_uuid| InvalidHead)?,
            position: position.parse().map_err(|_not_a_number| InvalidHead)?,
            hash: hash.ok_or(InvalidHead)?,
        })
    }
}

/// A hash as records and checkpoints show it.
pub(super) fn shown(hash: &Hash) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(hash)
}

/// What stands before the first record.
pub(super) const BEGINNING: Hash = [0; 32];

/// The hash of the record `frame`, its length before it, at `position` of `chain`, after the record with `before`.
pub(super) fn link(chain: Uuid, position: u64, before: &Hash, frame: &[u8]) -> Hash {
    let mut linked = Vec::with_capacity(DOMAIN.len() + 16 + 8 + 32 + frame.len());
    link_in(&mut linked, chain, position, before, frame)
}

/// As [`link`], with a buffer that several use. All fields before the record have a fixed length, and the record begins
/// with its own: no two chains have the same input.
fn link_in(buffer: &mut Vec<u8>, chain: Uuid, position: u64, before: &Hash, frame: &[u8]) -> Hash {
    buffer.clear();
    buffer.extend_from_slice(DOMAIN);
    buffer.extend_from_slice(chain.as_bytes());
    buffer.extend_from_slice(&position.to_be_bytes());
    buffer.extend_from_slice(before);
    buffer.extend_from_slice(frame);
    sha256(buffer)
}

/// The hash of the record at `position`, of those of a group that begins at `first`.
pub(super) fn hash_at(first: u64, hashes: &[u8], position: u64) -> Option<Hash> {
    let index = usize::try_from(position.checked_sub(first)?).ok()?;
    hashes.chunks_exact(BEGINNING.len()).nth(index)?.try_into().ok()
}

const DOMAIN: &[u8] = b"carnet.audit.1";

/// A chain as its one writer knows it: each record that is added moves its head.
#[derive(Debug)]
pub struct Chain {
    head: Head,
}

impl Chain {
    pub fn new(id: Uuid) -> Self {
        Self { head: Head { chain: id, position: 0, hash: BEGINNING } }
    }

    /// A chain that somebody else has written so far.
    #[cfg(any(test, feature = "testing"))]
    pub fn resume(head: Head) -> Self {
        Self { head }
    }

    /// `None` before the first record.
    pub fn head(&self) -> Option<Head> {
        (self.head.position > 0).then_some(self.head)
    }

    /// Links `records` to the chain; `identities`: the facts that they refer to and the store may not have, in the order of
    /// their digests. What does not become durable has no place to be tried again in: the next record
    /// goes into another chain.
    pub fn seal(&mut self, records: Vec<AuditRecord>, identities: Vec<Arc<Facts>>) -> Group {
        let mut group = Group {
            chain: Some(self.head.chain),
            position: self.head.position + 1,
            records: u64::try_from(records.len()).unwrap_or(u64::MAX),
            newest_ms: records.iter().map(|record| unix_milliseconds(record.time)).max().unwrap_or_default(),
            own: records.iter().all(|record| is_own(record.action)),
            hashes: Vec::with_capacity(records.len() * BEGINNING.len()),
            bytes: Vec::with_capacity(records.len() * RECORD_BYTES),
            tokens: Vec::new(),
            identities,
            #[cfg(any(test, feature = "testing"))]
            sealed: Vec::new(),
        };
        let mut buffer = Vec::with_capacity(2 * RECORD_BYTES);
        for record in &records {
            let start = group.bytes.len();
            encoding::encode(record, &mut group.bytes);
            let frame = group.bytes.get(start..).unwrap_or_default();
            let Head { chain, position, hash } = self.head;
            self.head =
                Head { chain, position: position + 1, hash: link_in(&mut buffer, chain, position + 1, &hash, frame) };
            group.hashes.extend_from_slice(&self.head.hash);
            let first = record.issued.as_ref().filter(|issued| issued.first);
            group.tokens.extend(first.map(|issued| issued.token_sha256));
        }
        group.tokens.sort_unstable();
        group.tokens.dedup();
        #[cfg(any(test, feature = "testing"))]
        {
            group.sealed = records;
        }
        group
    }
}

/// An ordinary record, so that a group's buffer does not grow record by record.
const RECORD_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(chain: &mut Chain, ids: &[u128]) -> Group {
        chain.seal(ids.iter().map(|id| AuditRecord::for_test(*id)).collect(), Vec::new())
    }

    #[test]
    fn every_hash_covers_the_record_its_place_and_all_before_it() {
        let id = Uuid::from_u128(7);
        let mut chain = Chain::new(id);
        assert_eq!(chain.head(), None);
        let (first, second) = (sealed(&mut chain, &[1, 2]), sealed(&mut chain, &[3]));
        assert_eq!((first.position, first.records, second.position), (1, 2, 3));
        let frames: Vec<&[u8]> = encoding::frames(&first.bytes).chain(encoding::frames(&second.bytes)).collect();
        let mut before = BEGINNING;
        for (position, frame) in (1..).zip(&frames) {
            before = link(id, position, &before, frame);
        }
        assert_eq!(chain.head(), Some(Head { chain: id, position: 3, hash: before }));
        assert_eq!(&second.hashes, &before);
        for other in [
            link(Uuid::from_u128(8), 3, &BEGINNING, frames[2]),
            link(id, 4, &BEGINNING, frames[2]),
            link(id, 3, &[1; 32], frames[2]),
            link(id, 3, &BEGINNING, frames[1]),
        ] {
            assert_ne!(other, link(id, 3, &BEGINNING, frames[2]));
        }
    }

    #[test]
    fn a_head_reads_back_as_it_is_shown() {
        let head = Head { chain: Uuid::from_u128(9), position: 12, hash: [5; 32] };
        assert_eq!(head.to_string().parse(), Ok(head));
        for broken in ["", "x", "::", &format!("{}:1:x", Uuid::nil()), &format!("{head}:1")] {
            assert_eq!(broken.parse::<Head>(), Err(InvalidHead), "{broken}");
        }
    }
}

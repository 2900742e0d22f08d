//! The log against what was taken out of it earlier, which nobody who can write the store could change: exports, and the
//! heads in brokers' own logs.

use std::io::{BufRead, Read as _};
use std::time::SystemTime;

use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use super::walk::shown;
use super::{Fault, FaultKind, Verification};
use crate::audit::chain::{Hash, hash_at, shown as shown_hash};
use crate::audit::{AuditError, Head};

/// What is compared of a line that `carnet audit export` printed, or that a broker logged when it made a checkpoint.
#[derive(Debug, Deserialize)]
pub struct Exported {
    #[serde(default)]
    exchange_id: String,
    time: Option<Timestamp>,
    #[serde(default)]
    sequence: u64,
    #[serde(default)]
    chain_hash: String,
    #[serde(default)]
    attributes: Attributes,
    /// Of a broker's log.
    #[serde(rename = "audit.head")]
    head: Option<String>,
    timestamp: Option<Timestamp>,
}

#[derive(Debug, Default, Deserialize)]
struct Attributes {
    chain: Option<Uuid>,
}

/// Why an export cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("line {line} is neither a record as `carnet audit export` prints it nor a line of a broker's log as JSON")]
    Line { line: u64, source: serde_json::Error },
    #[error("line {0} has an audit.head that is none")]
    Head(u64),
    #[error("line {0} is longer than any record")]
    Long(u64),
    #[error("it cannot be read")]
    Read(#[from] std::io::Error),
    #[error(transparent)]
    Store(#[from] AuditError),
}

/// The hashes of the group that was compared last: an export has a group's records one after the other.
type Last = Option<(Uuid, u64, Vec<u8>)>;

impl Verification {
    /// Compares every line of an export with the store's record at its place, and every head in a broker's log as JSON; its
    /// other lines say nothing. Call it after [`chains`](Self::chains).
    ///
    /// # Errors
    /// A line is none, or the store cannot be read.
    pub async fn against(&mut self, mut export: impl BufRead) -> Result<(), ExportError> {
        let (mut text, mut last, mut line) = (Vec::new(), None, 0);
        loop {
            text.clear();
            line += 1;
            let read = export.by_ref().take(LINE_BYTES).read_until(b'\n', &mut text)?;
            if read == 0 {
                return Ok(());
            }
            if text.last() != Some(&b'\n') && u64::try_from(read).is_ok_and(|read| read == LINE_BYTES) {
                return Err(ExportError::Long(line));
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let exported = serde_json::from_slice(&text).map_err(|source| ExportError::Line { line, source })?;
            self.compare(line, exported, &mut last).await?;
        }
    }

    async fn compare(&mut self, line: u64, exported: Exported, last: &mut Last) -> Result<(), ExportError> {
        let Exported { exchange_id, time, sequence, chain_hash, attributes, head, timestamp } = exported;
        let logged = head.as_deref().map(str::parse::<Head>).transpose();
        let logged = logged.map_err(|_no_head| ExportError::Head(line))?;
        let (chain, position, expected, time, source) = match (logged, attributes.chain) {
            (Some(Head { chain, position, hash }), _) => {
                self.report.heads += 1;
                (chain, position, shown_hash(&hash), timestamp, "a broker's log")
            }
            (None, Some(chain)) if sequence > 0 => {
                self.report.exported += 1;
                (chain, sequence, chain_hash, time, "the export")
            }
            // Records of before the chain have no place to be found at.
            (None, Some(_) | None) => return Ok(()),
        };
        let stored = self.stored_beside(chain, position, last).await?;
        if stored.is_some_and(|stored| shown_hash(&stored) == expected) {
            return Ok(());
        }
        let time = time.map(SystemTime::from);
        let detail = match stored {
            Some(_other) => format!("the store has another record here than {source}"),
            None if self.is_over(chain, position, time) => {
                self.report.exported_before += 1;
                return Ok(());
            }
            None => format!("{source} has it, and the store no longer does, unless it waits in a broker's spool"),
        };
        let detail = match time {
            Some(time) => format!("{detail} (recorded {})", shown(time)),
            None => detail,
        };
        let fault = Fault { exchange_id, time, ..Fault::of(FaultKind::ExportContradicts, chain, position, detail) };
        self.fault_of(fault);
        Ok(())
    }

    async fn stored_beside(&self, chain: Uuid, position: u64, last: &mut Last) -> Result<Option<Hash>, AuditError> {
        if let Some((of, first, hashes)) = last
            && *of == chain
            && let Some(hash) = hash_at(*first, hashes, position)
        {
            return Ok(Some(hash));
        }
        let Some((first, hashes)) = self.reader.hashes(chain, position).await? else { return Ok(None) };
        let hash = hash_at(first, &hashes, position);
        *last = Some((chain, first, hashes));
        Ok(hash)
    }

    /// Whether the record's time is over, and that it is gone no wonder.
    fn is_over(&self, chain: Uuid, position: u64, time: Option<SystemTime>) -> bool {
        let anchored = self.anchors.get(&chain).is_some_and(|anchor| position <= anchor.head.position);
        let until = time.and_then(|time| time.checked_add(self.scope.retention));
        anchored || until.is_some_and(|until| until <= self.scope.now)
    }
}

const LINE_BYTES: u64 = 1024 * 1024;

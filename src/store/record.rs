//! Audit records as bytes: the contract's own `AuditRecord` message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use prost::Message as _;
use uuid::Uuid;

use crate::audit::{AuditRecord, HandOut, Issued};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::proto;
use crate::reason::Reason;

/// The records that are committed together, as one row.
pub(super) struct Group {
    pub records: i64,
    pub newest_ms: i64,
    /// Each record with its length before it.
    pub bytes: Vec<u8>,
    /// Tokens that leave for the first time, each once.
    pub tokens: Vec<[u8; 32]>,
}

impl Group {
    pub fn encode(records: Vec<AuditRecord>) -> Result<Self, prost::EncodeError> {
        let mut group = Self {
            records: i64::try_from(records.len()).unwrap_or(i64::MAX),
            newest_ms: records.iter().map(|record| milliseconds(record.time)).max().unwrap_or_default(),
            bytes: Vec::with_capacity(records.len() * RECORD_BYTES),
            tokens: Vec::new(),
        };
        for record in records {
            let first = record.issued.as_ref().filter(|issued| issued.first);
            group.tokens.extend(first.map(|issued| issued.token_sha256));
            encode(record, &mut group.bytes)?;
        }
        group.tokens.sort_unstable();
        group.tokens.dedup();
        Ok(group)
    }
}

/// Appends `record` to a group, its length before it.
fn encode(record: AuditRecord, group: &mut Vec<u8>) -> Result<(), prost::EncodeError> {
    let mut attributes: BTreeMap<String, String> =
        record.attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let mut token_sha256 = String::new();
    if let Some(issued) = record.issued {
        token_sha256 = BASE64_URL_SAFE_NO_PAD.encode(issued.token_sha256);
        attributes.insert(SCOPES.to_owned(), issued.scopes);
        attributes.insert(ACTS_AS.to_owned(), issued.acts_as);
        attributes.insert(ISSUED_AT.to_owned(), unix_seconds(issued.issued_at).to_string());
        attributes.insert(EXPIRES_AT.to_owned(), unix_seconds(issued.expires_at).to_string());
    }
    let job = Arc::unwrap_or_clone(record.job);
    proto::AuditRecord {
        exchange_id: record.exchange_id.to_string(),
        time: Some(record.time.into()),
        action: record.action.to_owned(),
        outcome: record.outcome.as_str().to_owned(),
        reason: record.reason.map_or("", Reason::as_str).to_owned(),
        subject: record.subject,
        entra_token_id: record.entra_token_id,
        client_id: record.client_id,
        target: record.target,
        rule: record.rule,
        job: Some(proto::Job {
            id: job.id.unwrap_or_default(),
            name: job.name.unwrap_or_default(),
            expected_duration: job.expected_duration.and_then(|duration| duration.try_into().ok()),
            labels: job.labels,
            datasets: job.datasets,
        }),
        lease_id: record.lease_id.map(|id| id.to_string()).unwrap_or_default(),
        lifetime: record.lifetime.and_then(|lifetime| lifetime.try_into().ok()),
        cached: record.cached,
        token_sha256,
        attributes,
        sequence: 0,
        chain_hash: String::new(),
    }
    .encode_length_delimited(group)
}

/// The records of a group, as far as they can be read.
fn decode(mut group: &[u8]) -> impl Iterator<Item = proto::AuditRecord> {
    std::iter::from_fn(move || {
        let more = !group.is_empty();
        more.then(|| proto::AuditRecord::decode_length_delimited(&mut group).ok()).flatten()
    })
}

/// The hand-out of the token with this digest, where the group has it.
pub(super) fn find_hand_out(group: &[u8], token_sha256: [u8; 32]) -> Option<HandOut> {
    let digest = BASE64_URL_SAFE_NO_PAD.encode(token_sha256);
    let record = decode(group).find(|record| record.token_sha256 == digest)?;
    let attribute = |name: &str| record.attributes.get(name).cloned();
    Some(HandOut {
        exchange_id: record.exchange_id.parse::<Uuid>().ok()?,
        subject: record.subject.clone(),
        target: record.target.clone(),
        issued: Issued {
            token_sha256,
            first: true,
            scopes: attribute(SCOPES)?,
            acts_as: attribute(ACTS_AS)?,
            issued_at: time(&attribute(ISSUED_AT)?)?,
            expires_at: time(&attribute(EXPIRES_AT)?)?,
        },
    })
}

fn time(text: &str) -> Option<SystemTime> {
    from_unix_seconds(text.parse().ok()?)
}

const SCOPES: &str = "scopes";
const ACTS_AS: &str = "acts_as";
const ISSUED_AT: &str = "issued_at";
const EXPIRES_AT: &str = "expires_at";

/// Milliseconds since 1970, for the column that retention compares.
pub(super) fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// An ordinary record, so that a group's buffer does not grow record by record.
const RECORD_BYTES: usize = 700;

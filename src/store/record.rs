//! Audit records as bytes: the contract's own `AuditRecord` message.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prost::Message as _;
use uuid::Uuid;

use crate::audit::{AuditRecord, HandOut, Issued};
use crate::proto;
use crate::reason::Reason;

pub(super) fn encode(record: AuditRecord) -> Vec<u8> {
    let mut attributes: BTreeMap<String, String> =
        record.attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let mut token_sha256 = String::new();
    if let Some(issued) = record.issued {
        token_sha256 = hex::encode(issued.token_sha256);
        attributes.insert(SCOPES.to_owned(), issued.scopes);
        attributes.insert(ACTS_AS.to_owned(), issued.acts_as);
        attributes.insert(ISSUED_AT.to_owned(), rfc3339(issued.issued_at));
        attributes.insert(EXPIRES_AT.to_owned(), rfc3339(issued.expires_at));
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
        lease_id: String::new(),
        lifetime: record.lifetime.and_then(|lifetime| lifetime.try_into().ok()),
        cached: record.cached,
        token_sha256,
        attributes,
        sequence: 0,
        chain_hash: String::new(),
    }
    .encode_to_vec()
}

/// `None` where the bytes are no record of a hand-out.
pub(super) fn decode_hand_out(bytes: &[u8]) -> Option<HandOut> {
    let record = proto::AuditRecord::decode(bytes).ok()?;
    let attribute = |name: &str| record.attributes.get(name).cloned();
    let mut token_sha256 = [0; 32];
    hex::decode_to_slice(&record.token_sha256, &mut token_sha256).ok()?;
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

fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}

fn time(text: &str) -> Option<SystemTime> {
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
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

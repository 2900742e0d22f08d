//! Audit records as bytes: the contract's own `AuditRecord` message.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use prost::Message as _;
use prost::encoding::{WireType, decode_varint, encode_varint, encoded_len_varint};
use prost_types::Timestamp;
use uuid::Uuid;

use super::{AuditRecord, HandOut, Issued};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::proto;
use crate::reason::Reason;
use crate::target::Job;

/// Appends `record` to a group, its length before it. Field by field, because the contract's own message
/// would want a text of its own for each.
pub(super) fn encode(record: &AuditRecord, group: &mut Vec<u8>) {
    Writer(group).record(record);
}

/// Writes fields of protobuf messages; like `prost`, it leaves out what is empty.
struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn record(&mut self, record: &AuditRecord) {
        self.framed(ROOM_OF_RECORD, |message| {
            message.text(1, record.exchange_id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
            let time = Timestamp::from(record.time);
            message.time(2, time.seconds, time.nanos);
            message.text(3, record.action);
            message.text(4, record.outcome.as_str());
            message.text(5, record.reason.map_or("", Reason::as_str));
            message.text(6, &record.subject);
            message.text(7, &record.entra_token_id);
            message.text(8, &record.client_id);
            message.text(9, &record.target);
            message.text(10, &record.rule);
            message.nested(11, |message| message.job(&record.job));
            if let Some(lease_id) = record.lease_id {
                message.text(12, lease_id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
            }
            message.duration(13, record.lifetime);
            if record.cached {
                prost::encoding::bool::encode(14, &true, message.0);
            }
            for (name, value) in &record.attributes {
                message.entry(16, name, value);
            }
            if let Some(facts) = &record.identity {
                message.entry(16, IDENTITY, &facts.name);
            }
            if let Some(issued) = &record.issued {
                message.text(15, &BASE64_URL_SAFE_NO_PAD.encode(issued.token_sha256));
                message.entry(16, SCOPES, &issued.scopes);
                message.entry(16, ACTS_AS, &issued.acts_as);
                message.entry(16, ISSUED_AT, &unix_seconds(issued.issued_at).to_string());
                message.entry(16, EXPIRES_AT, &unix_seconds(issued.expires_at).to_string());
            }
        });
    }

    fn job(&mut self, job: &Job) {
        self.text(1, job.id.as_deref().unwrap_or_default());
        self.text(2, job.name.as_deref().unwrap_or_default());
        self.duration(3, job.expected_duration);
        for (name, label) in &job.labels {
            self.entry(4, name, label);
        }
        prost::encoding::string::encode_repeated(5, &job.datasets, self.0);
    }

    fn text(&mut self, tag: u32, text: &str) {
        if !text.is_empty() {
            self.key(tag, WireType::LengthDelimited);
            self.varint(length(text.len()));
            self.0.extend_from_slice(text.as_bytes());
        }
    }

    fn duration(&mut self, tag: u32, duration: Option<Duration>) {
        if let Some(duration) = duration.and_then(|duration| prost_types::Duration::try_from(duration).ok()) {
            self.time(tag, duration.seconds, duration.nanos);
        }
    }

    /// `google.protobuf.Timestamp` and `Duration` have the same fields.
    fn time(&mut self, tag: u32, seconds: i64, nanos: i32) {
        self.nested(tag, |message| {
            for (tag, value) in [(1, seconds), (2, i64::from(nanos))] {
                if value != 0 {
                    message.key(tag, WireType::Varint);
                    // Signed numbers go out in two's complement.
                    message.varint(u64::from_ne_bytes(value.to_ne_bytes()));
                }
            }
        });
    }

    /// Of a map. Its length is known before it is written: records have a dozen of them.
    fn entry(&mut self, tag: u32, name: &str, value: &str) {
        self.key(tag, WireType::LengthDelimited);
        self.varint(length(room_of_text(name) + room_of_text(value)));
        self.text(1, name);
        self.text(2, value);
    }

    fn nested(&mut self, tag: u32, write: impl FnOnce(&mut Writer<'_>)) {
        self.key(tag, WireType::LengthDelimited);
        self.framed(ROOM_OF_FIELD, write);
    }

    /// Puts the length of what `write` writes before it: into as many bytes as it most often takes, or others in their place.
    fn framed(&mut self, room: usize, write: impl FnOnce(&mut Writer<'_>)) {
        let start = self.0.len();
        self.0.resize(start + room, 0);
        write(&mut Writer(self.0));
        let written = length(self.0.len() - start - room);
        match self.0.get_mut(start..start + room) {
            Some([one]) if written < 0x80 => *one = low_bits(written),
            Some([low, high]) if (0x80..0x4000).contains(&written) => {
                (*low, *high) = (low_bits(written) | 0x80, low_bits(written >> 7));
            }
            _ => {
                let mut prefix = Vec::new();
                encode_varint(written, &mut prefix);
                self.0.splice(start..start + room, prefix);
            }
        }
    }

    fn key(&mut self, tag: u32, wire_type: WireType) {
        self.varint(u64::from(tag << 3 | u32::from(wire_type as u8)));
    }

    fn varint(&mut self, value: u64) {
        if value < 0x80 { self.0.push(low_bits(value)) } else { encode_varint(value, self.0) }
    }
}

/// Bytes that a text takes with its key, of a field whose number is below 16.
fn room_of_text(text: &str) -> usize {
    if text.is_empty() { 0 } else { 1 + encoded_len_varint(length(text.len())) + text.len() }
}

/// Lengths that a varint of one byte has, and one of two.
const ROOM_OF_FIELD: usize = 1;
const ROOM_OF_RECORD: usize = 2;

/// The seven that a byte of a varint carries.
fn low_bits(value: u64) -> u8 {
    u8::try_from(value & 0x7f).unwrap_or_default()
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// The records of a group as they lie in it, each with its length before it. Ends where there is no whole record any more.
pub(super) fn frames(mut group: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let mut rest = group;
        let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
        let frame = group.len().checked_sub(rest.len().checked_sub(length)?)?;
        let (record, others) = group.split_at_checked(frame)?;
        group = others;
        Some(record)
    })
}

/// The record in `frame`; `None` for bytes that are none.
pub(super) fn decode(frame: &[u8]) -> Option<proto::AuditRecord> {
    proto::AuditRecord::decode_length_delimited(frame).ok()
}

/// The hand-out of the token with this digest, where the group has it.
pub fn find_hand_out(group: &[u8], token_sha256: [u8; 32]) -> Option<HandOut> {
    let digest = BASE64_URL_SAFE_NO_PAD.encode(token_sha256);
    let record = frames(group).filter_map(decode).find(|record| record.token_sha256 == digest)?;
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

const IDENTITY: &str = "identity";
const SCOPES: &str = "scopes";
const ACTS_AS: &str = "acts_as";
const ISSUED_AT: &str = "issued_at";
const EXPIRES_AT: &str = "expires_at";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::audit::Outcome;
    use crate::subject::Facts;

    #[test]
    fn a_record_reads_back_as_the_contracts_message() {
        let job = Job {
            id: Some("run-1".to_owned()),
            name: None,
            expected_duration: Some(Duration::from_secs(90)),
            labels: [("team", "x".repeat(200)), ("empty", String::new())]
                .map(|(name, label)| (name.to_owned(), label))
                .into(),
            datasets: vec!["a".to_owned(), "b".to_owned()],
        };
        let issued = Issued {
            token_sha256: [7; 32],
            first: true,
            scopes: "a b".to_owned(),
            acts_as: "sa".to_owned(),
            issued_at: SystemTime::UNIX_EPOCH + Duration::from_secs(1),
            expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(2),
        };
        let record = AuditRecord {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
            outcome: Outcome::Issued,
            reason: None,
            subject: "entra:1:2".to_owned(),
            entra_token_id: "uti".to_owned(),
            client_id: "client".to_owned(),
            rule: "rule".to_owned(),
            job: Arc::new(job.clone()),
            lifetime: Some(Duration::from_secs(600)),
            cached: true,
            issued: Some(issued),
            identity: Some(Arc::new(Facts::stored([8; 32], "{}".to_owned()))),
            attributes: vec![("door", "grpc".to_owned()), ("peer", String::new())],
            ..AuditRecord::for_test(9)
        };
        let mut group = Vec::new();
        encode(&AuditRecord::for_test(1), &mut group);
        encode(&record, &mut group);
        let records: Vec<_> = frames(&group).filter_map(decode).collect();
        let [refused, read] = records.as_slice() else { panic!("{} records", records.len()) };
        assert_eq!((refused.outcome.as_str(), refused.reason.as_str(), refused.lifetime), ("denied", "DENIED", None));
        let attributes = [
            ("acts_as", "sa"),
            ("door", "grpc"),
            ("expires_at", "2"),
            ("identity", "CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg"),
            ("issued_at", "1"),
            ("peer", ""),
            ("scopes", "a b"),
        ];
        let expected = proto::AuditRecord {
            exchange_id: Uuid::from_u128(9).to_string(),
            time: Some(Timestamp { seconds: 1, nanos: 500_000_000 }),
            action: "exchange".to_owned(),
            outcome: "issued".to_owned(),
            reason: String::new(),
            subject: "entra:1:2".to_owned(),
            entra_token_id: "uti".to_owned(),
            client_id: "client".to_owned(),
            target: "t".to_owned(),
            rule: "rule".to_owned(),
            job: Some(proto::Job {
                id: "run-1".to_owned(),
                name: String::new(),
                expected_duration: Some(prost_types::Duration { seconds: 90, nanos: 0 }),
                labels: job.labels,
                datasets: job.datasets,
            }),
            lease_id: String::new(),
            lifetime: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
            cached: true,
            token_sha256: BASE64_URL_SAFE_NO_PAD.encode([7; 32]),
            attributes: attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            sequence: 0,
            chain_hash: String::new(),
        };
        assert!(*read == expected, "a field is lost or changed");
    }

    #[test]
    fn a_group_that_was_cut_or_is_no_group_has_the_records_before_the_break() {
        let mut group = Vec::new();
        encode(&AuditRecord::for_test(1), &mut group);
        let first = group.len();
        encode(&AuditRecord::for_test(2), &mut group);
        assert_eq!(frames(&group).map(<[u8]>::len).collect::<Vec<_>>(), [first, group.len() - first]);
        for cut in first..group.len() {
            assert_eq!(frames(&group[..cut]).count(), 1);
        }
        assert_eq!(frames(&[0xff; 20]).count(), 0);
        assert_eq!(frames(&[]).count(), 0);
    }
}

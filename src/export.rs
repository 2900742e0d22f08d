//! Audit records on their way out of the broker: the forms that they take, and where they are shipped to.

mod json;
mod lines;
mod ocsf;
mod otlp;
mod shipping;
mod sink;

pub use json::{json, rfc3339};
pub use ocsf::ocsf;
pub use otlp::{OtlpError, OtlpSettings};
pub use shipping::Log;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::lines::Lines;
use self::otlp::Otlp;
use self::shipping::Shipper;
use self::sink::Sink;
use crate::proto::AuditRecord;

/// What a record is written as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The record itself, as one line of JSON.
    #[default]
    Jsonl,
    /// An Authentication event of the Open Cybersecurity Schema Framework, as one line of JSON.
    Ocsf,
}

impl Format {
    pub fn of(self, record: &AuditRecord) -> Value {
        match self {
            Self::Jsonl => json(record),
            Self::Ocsf => ocsf(record),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jsonl => "jsonl",
            Self::Ocsf => "ocsf",
        })
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Jsonl, Self::Ocsf].into_iter().find(|format| format.to_string() == text).ok_or(UnknownFormat)
    }
}

/// A text that names no format.
#[derive(Debug, thiserror::Error)]
#[error("is jsonl or ocsf")]
pub struct UnknownFormat;

/// A way out of records, to where a team keeps its logs.
#[derive(Debug, Clone)]
pub struct OutletSettings {
    /// Where it has come to is kept under this name.
    pub name: String,
    pub to: Destination,
}

#[derive(Debug, Clone)]
pub enum Destination {
    /// One line of JSON for each record.
    Stdout(Format),
    Otlp(OtlpSettings),
}

/// The ways out of a broker, each at its own pace. Exchanges know nothing of them.
#[derive(Debug)]
pub struct Outlets {
    stopping: CancellationToken,
    shippers: JoinSet<()>,
}

impl Outlets {
    /// # Errors
    /// [`OtlpError`] where a collector can never be reached.
    pub fn start(settings: &[OutletSettings], log: &Log) -> Result<Self, OtlpError> {
        let (stopping, mut shippers) = (CancellationToken::new(), JoinSet::new());
        for OutletSettings { name, to } in settings {
            let sink: Box<dyn Sink> = match to {
                Destination::Stdout(format) => Box::new(Lines::to_stdout(*format)),
                Destination::Otlp(settings) => Box::new(Otlp::to(settings)?),
            };
            shippers.spawn(Shipper::new(name, sink, log.clone()).run(stopping.clone()));
        }
        Ok(Self { stopping, shippers })
    }

    /// When the last record is in the log: what can be delivered in a moment still is.
    pub async fn stop(mut self) {
        self.stopping.cancel();
        let ended = async { while self.shippers.join_next().await.is_some() {} };
        if timeout(STOP_DEADLINE, ended).await.is_err() {
            tracing::warn!("the last audit records are shipped when the broker starts again");
        }
    }
}

/// A process that is told to end has other things to end.
const STOP_DEADLINE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use prost_types::{Duration, Timestamp};

    use super::*;
    use crate::proto::Job;

    /// With everything that a hand-out leaves behind.
    pub(super) fn full_record() -> AuditRecord {
        let attributes = [
            ("door", "grpc"),
            ("peer", "10.0.0.7:50001"),
            ("user_agent", "grpc-python/1.70"),
            ("acts_as", "trainer@ml.iam.gserviceaccount.com"),
            ("issued_at", "1795280400"),
            ("expires_at", "1795284000"),
            ("chain", "0199a1b2-0000-7000-8000-00000000000c"),
        ];
        AuditRecord {
            exchange_id: "0199a1b2-0000-7000-8000-000000000001".to_owned(),
            time: Some(Timestamp { seconds: 1_795_280_401, nanos: 500_000_000 }),
            action: "exchange".to_owned(),
            outcome: "issued".to_owned(),
            reason: String::new(),
            subject: "entra:11111111-1111-1111-1111-111111111111:66666666-6666-6666-6666-666666666666".to_owned(),
            entra_token_id: "uti-1".to_owned(),
            client_id: "55555555-5555-5555-5555-555555555555".to_owned(),
            target: "vertex".to_owned(),
            rule: "training".to_owned(),
            job: Some(Job {
                id: "run-1".to_owned(),
                name: "vision".to_owned(),
                expected_duration: Some(Duration { seconds: 5400, nanos: 0 }),
                labels: [("team".to_owned(), "vision".to_owned())].into(),
                datasets: vec!["gs://a".to_owned(), "gs://b".to_owned()],
            }),
            lease_id: String::new(),
            lifetime: Some(Duration { seconds: 3600, nanos: 0 }),
            cached: true,
            token_sha256: "c2hhMjU2".to_owned(),
            attributes: attributes.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            sequence: 7,
            chain_hash: "aGFzaA".to_owned(),
        }
    }

    #[test]
    fn a_format_reads_as_it_is_written() {
        for format in [Format::Jsonl, Format::Ocsf] {
            assert_eq!(format.to_string().parse::<Format>().ok(), Some(format));
        }
        assert!("json".parse::<Format>().is_err());
    }

    #[test]
    fn whatever_stands_in_a_record_is_one_line() {
        let hostile = "two\nlines\r\u{2028}\u{0}\"},{\"outcome\":\"issued";
        let mut record = full_record();
        record.target = hostile.to_owned();
        record.attributes.insert(hostile.to_owned(), hostile.to_owned());
        for format in [Format::Jsonl, Format::Ocsf] {
            let line = format.of(&record).to_string();
            assert!(!line.contains(['\n', '\r', '\u{0}']), "{line}");
        }
        assert_eq!(json(&record)["attributes"][hostile], hostile);
    }
}

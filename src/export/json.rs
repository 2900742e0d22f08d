//! An audit record as JSON: the contract's names in snake case, times in RFC 3339, durations as numbers of seconds.

use prost_types::{Duration, Timestamp};
use serde_json::{Map, Value, json};

use crate::proto::{AuditRecord, Job};

/// What a record does not have is left out, but `outcome` and `cached` always stand in it.
pub fn json(record: &AuditRecord) -> Value {
    let mut object = Object::default();
    object.text("exchange_id", &record.exchange_id);
    object.some("time", rfc3339(record.time));
    object.text("action", &record.action);
    object.some("outcome", Some(record.outcome.as_str()));
    object.text("reason", &record.reason);
    object.text("subject", &record.subject);
    object.text("entra_token_id", &record.entra_token_id);
    object.text("client_id", &record.client_id);
    object.text("target", &record.target);
    object.text("rule", &record.rule);
    object.some("job", record.job.as_ref().and_then(job));
    object.text("lease_id", &record.lease_id);
    object.some("lifetime", record.lifetime.map(seconds));
    object.some("cached", Some(record.cached));
    object.text("token_sha256", &record.token_sha256);
    // In their order, so that one record has one text.
    let attributes: Map<String, Value> =
        record.attributes.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    object.some("attributes", (!attributes.is_empty()).then_some(attributes));
    object.some("sequence", (record.sequence != 0).then_some(record.sequence));
    object.text("chain_hash", &record.chain_hash);
    Value::Object(object.0)
}

/// `None` for a job of which nothing is known.
fn job(job: &Job) -> Option<Map<String, Value>> {
    let mut object = Object::default();
    object.text("id", &job.id);
    object.text("name", &job.name);
    object.some("expected_duration", job.expected_duration.map(seconds));
    let labels: Map<String, Value> = job.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    object.some("labels", (!labels.is_empty()).then_some(labels));
    object.some("datasets", (!job.datasets.is_empty()).then_some(job.datasets.as_slice()));
    (!object.0.is_empty()).then_some(object.0)
}

/// To the millisecond that stores keep, or finer; `None` for a time that no calendar has.
pub fn rfc3339(time: Option<Timestamp>) -> Option<String> {
    let time = time?;
    jiff::Timestamp::new(time.seconds, time.nanos).ok().map(|time| time.to_string())
}

/// A whole number where it is one.
fn seconds(duration: Duration) -> Value {
    match duration.nanos {
        0 => json!(duration.seconds),
        nanos => {
            let exact = std::time::Duration::try_from(duration).unwrap_or_default();
            if nanos < 0 { json!(0) } else { json!(exact.as_secs_f64()) }
        }
    }
}

#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn text(&mut self, name: &str, text: &str) {
        self.some(name, (!text.is_empty()).then_some(text));
    }

    fn some(&mut self, name: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), value.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_a_record_has_stands_in_its_json() {
        let record = crate::export::tests::full_record();
        let expected = json!({
            "exchange_id": "0199a1b2-0000-7000-8000-000000000001",
            "time": "2026-11-21T17:00:01.5Z",
            "action": "exchange",
            "outcome": "issued",
            "subject": "entra:11111111-1111-1111-1111-111111111111:66666666-6666-6666-6666-666666666666",
            "entra_token_id": "uti-1",
            "client_id": "55555555-5555-5555-5555-555555555555",
            "target": "vertex",
            "rule": "training",
            "job": {
                "id": "run-1",
                "name": "vision",
                "expected_duration": 5400,
                "labels": {"team": "vision"},
                "datasets": ["gs://a", "gs://b"],
            },
            "lifetime": 3600,
            "cached": true,
            "token_sha256": "c2hhMjU2",
            "attributes": {
                "acts_as": "trainer@ml.iam.gserviceaccount.com",
                "chain": "0199a1b2-0000-7000-8000-00000000000c",
                "door": "grpc",
                "expires_at": "1795284000",
                "issued_at": "1795280400",
                "peer": "10.0.0.7:50001",
                "user_agent": "grpc-python/1.70",
            },
            "sequence": 7,
            "chain_hash": "aGFzaA",
        });
        assert_eq!(json(&record), expected);
    }

    #[test]
    fn what_a_record_does_not_have_is_left_out() {
        let bare = AuditRecord { outcome: "denied".to_owned(), job: Some(Job::default()), ..Default::default() };
        assert_eq!(json(&bare), json!({"outcome": "denied", "cached": false}));
    }

    #[test]
    fn times_and_durations_that_no_calendar_has_make_no_panic() {
        let far = Some(Timestamp { seconds: i64::MAX, nanos: -5 });
        let odd = [(1, 500_000_000, json!(1.5)), (-1, 0, json!(-1)), (0, -7, json!(0)), (i64::MIN, 0, json!(i64::MIN))];
        assert_eq!(rfc3339(far), None);
        for (whole, nanos, expected) in odd {
            assert_eq!(seconds(Duration { seconds: whole, nanos }), expected);
        }
    }
}

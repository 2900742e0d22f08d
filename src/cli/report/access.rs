//! Who used what as whom: credentials that were handed out, by subject, target, cloud identity, job and dataset.

use std::collections::BTreeMap;

use prost_types::Timestamp;
use serde_json::{Value, json};

use crate::cli::records::milliseconds;
use crate::export::rfc3339;
use crate::proto::AuditRecord;

/// What is told apart. Runs of one job are one.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    subject: String,
    target: String,
    acts_as: String,
    job_name: String,
    dataset: String,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    first: Timestamp,
    last: Timestamp,
    hand_outs: u64,
    /// Hand-outs for which a cloud was asked.
    minted: u64,
    /// In seconds.
    shortest: i64,
    longest: i64,
}

/// Gathers records in any order; its memory is bounded by [`MOST`], not by how many records there are.
#[derive(Debug)]
pub(super) struct Access {
    uses: BTreeMap<Key, Use>,
    most: usize,
    /// Hand-outs that found no room of their own.
    left_out: u64,
}

impl Default for Access {
    fn default() -> Self {
        Self { uses: BTreeMap::new(), most: MOST, left_out: 0 }
    }
}

impl Access {
    pub fn add(&mut self, record: &AuditRecord) {
        if record.outcome != "issued" {
            return;
        }
        let job = record.job.as_ref();
        let key = Key {
            subject: record.subject.clone(),
            target: record.target.clone(),
            acts_as: record.attributes.get("acts_as").cloned().unwrap_or_default(),
            job_name: job.map(|job| job.name.clone()).unwrap_or_default(),
            dataset: String::new(),
        };
        match job.map(|job| job.datasets.as_slice()) {
            None | Some([]) => self.count(key, record),
            Some(datasets) => {
                for (place, dataset) in datasets.iter().enumerate() {
                    // A job that names a dataset twice reads it once.
                    if !datasets.iter().take(place).any(|earlier| earlier == dataset) {
                        self.count(Key { dataset: dataset.clone(), ..key.clone() }, record);
                    }
                }
            }
        }
    }

    fn count(&mut self, key: Key, record: &AuditRecord) {
        if self.uses.len() >= self.most && !self.uses.contains_key(&key) {
            self.left_out += 1;
            return;
        }
        let time = record.time.unwrap_or_default();
        let lifetime = record.lifetime.unwrap_or_default().seconds;
        let new = Use { first: time, last: time, hand_outs: 0, minted: 0, shortest: lifetime, longest: lifetime };
        let found = self.uses.entry(key).or_insert(new);
        let order = |time: &Timestamp| (time.seconds, time.nanos);
        found.first = [found.first, time].into_iter().min_by_key(order).unwrap_or(time);
        found.last = [found.last, time].into_iter().max_by_key(order).unwrap_or(time);
        found.hand_outs += 1;
        found.minted += u64::from(!record.cached);
        found.shortest = found.shortest.min(lifetime);
        found.longest = found.longest.max(lifetime);
    }

    /// Hand-outs that the rows leave out, because there were too many different ones.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// For a table and for CSV.
    pub fn rows(&self) -> Vec<[String; 11]> {
        let head = [
            "SUBJECT",
            "TARGET",
            "ACTS AS",
            "JOB NAME",
            "DATASET",
            "FIRST USE",
            "LAST USE",
            "HAND-OUTS",
            "MINTED",
            "SHORTEST S",
            "LONGEST S",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        rows.extend(self.uses.iter().map(|(key, found)| {
            let Key { subject, target, acts_as, job_name, dataset } = key.clone();
            let [first, last] = [found.first, found.last].map(|time| milliseconds(Some(time)));
            let numbers = [found.hand_outs, found.minted].map(|number| number.to_string());
            let [hand_outs, minted] = numbers;
            let [shortest, longest] = [found.shortest, found.longest].map(|seconds| seconds.to_string());
            [subject, target, acts_as, job_name, dataset, first, last, hand_outs, minted, shortest, longest]
        }));
        rows
    }

    pub fn json(&self) -> Vec<Value> {
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        let row = |(key, found): (&Key, &Use)| {
            json!({
                "subject": key.subject,
                "target": key.target,
                "acts_as": some(&key.acts_as),
                "job_name": some(&key.job_name),
                "dataset": some(&key.dataset),
                "first_use": rfc3339(Some(found.first)),
                "last_use": rfc3339(Some(found.last)),
                "hand_outs": found.hand_outs,
                "minted": found.minted,
                "shortest_lifetime": found.shortest,
                "longest_lifetime": found.longest,
            })
        };
        self.uses.iter().map(row).collect()
    }
}

/// Rows of some 500 bytes: a hundred MB at most.
const MOST: usize = 200_000;

#[cfg(test)]
mod tests {
    use prost_types::Duration;

    use super::*;
    use crate::proto::Job;

    fn record(second: i64, target: &str, datasets: &[&str], cached: bool) -> AuditRecord {
        AuditRecord {
            time: Some(Timestamp { seconds: second, nanos: 0 }),
            outcome: "issued".to_owned(),
            subject: "entra:t:o".to_owned(),
            target: target.to_owned(),
            job: Some(Job {
                id: format!("run-{second}"),
                name: "vision".to_owned(),
                datasets: datasets.iter().map(|dataset| (*dataset).to_owned()).collect(),
                ..Default::default()
            }),
            lifetime: Some(Duration { seconds: 600 + second, nanos: 0 }),
            cached,
            attributes: [("acts_as".to_owned(), "sa@p.iam.gserviceaccount.com".to_owned())].into(),
            ..Default::default()
        }
    }

    #[test]
    fn hand_outs_are_counted_by_dataset_and_their_order_does_not_matter() {
        let records = [
            record(30, "vertex", &["gs://a"], true),
            record(10, "vertex", &["gs://a", "gs://b", "gs://a"], false),
            record(20, "azure-ml", &[], false),
            AuditRecord { outcome: "denied".to_owned(), ..record(40, "vertex", &["gs://a"], false) },
        ];
        let mut access = Access::default();
        records.iter().for_each(|record| access.add(record));
        let rows: Vec<[String; 7]> = access
            .rows()
            .into_iter()
            .skip(1)
            .map(|[_subject, target, _as, _job, dataset, first, last, count, _minted, shortest, longest]| {
                [target, dataset, first, last, count, shortest, longest]
            })
            .collect();
        let expected = [
            ["azure-ml", "", "1970-01-01T00:00:20.000Z", "1970-01-01T00:00:20.000Z", "1", "620", "620"],
            ["vertex", "gs://a", "1970-01-01T00:00:10.000Z", "1970-01-01T00:00:30.000Z", "2", "610", "630"],
            ["vertex", "gs://b", "1970-01-01T00:00:10.000Z", "1970-01-01T00:00:10.000Z", "1", "610", "610"],
        ];
        assert_eq!(rows, expected.map(|row| row.map(str::to_owned)));
        assert_eq!(access.json()[1]["minted"], 1);
        assert_eq!(access.json()[0]["dataset"], Value::Null);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let mut access = Access { most: 2, ..Access::default() };
        for second in 0..5 {
            access.add(&record(second, &format!("target-{second}"), &[], false));
            access.add(&record(second, "target-0", &[], true));
        }
        assert_eq!((access.rows().len(), access.left_out()), (1 + 2, 3));
        assert_eq!(access.json()[0]["hand_outs"], 6);
    }
}

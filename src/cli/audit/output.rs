//! Records on standard output, for people and programs.

use std::fmt::Display;
use std::io::{self, BufWriter, Stdout, Write as _};

use serde_json::Value;

use crate::cli::records::milliseconds;
use crate::line::{plain_json, value};
use crate::proto::AuditRecord;

/// Standard output, whose reader may leave when it has seen enough.
#[derive(Debug)]
pub(super) struct Out(BufWriter<Stdout>);

impl Default for Out {
    fn default() -> Self {
        Self(BufWriter::new(io::stdout()))
    }
}

impl Out {
    pub fn line(&mut self, text: impl Display) -> anyhow::Result<()> {
        Ok(writeln!(self.0, "{text}")?)
    }

    /// On one line.
    pub fn json(&mut self, value: &Value) -> anyhow::Result<()> {
        self.line(plain_json(value.to_string()))
    }

    pub fn pretty_json(&mut self, value: &Value) -> anyhow::Result<()> {
        self.line(plain_json(serde_json::to_string_pretty(value)?))
    }

    pub fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.0.flush()?)
    }

    pub fn end(mut self) -> anyhow::Result<()> {
        unless_closed(self.flush())
    }
}

/// `... | head` is no failure.
pub(super) fn unless_closed(result: anyhow::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        result => result,
    }
}

pub(super) fn head() -> [String; 9] {
    ["TIME", "ACTION", "OUTCOME", "REASON", "SUBJECT", "TARGET", "RULE", "JOB", "EXCHANGE"].map(str::to_owned)
}

pub(super) fn row(record: &AuditRecord) -> [String; 9] {
    let cached = if record.cached { " (cached)" } else { "" };
    [
        milliseconds(record.time),
        record.action.clone(),
        format!("{}{cached}", record.outcome),
        or_dash(&record.reason),
        or_dash(&record.subject),
        or_dash(&record.target),
        or_dash(&record.rule),
        record.job.as_ref().map_or_else(|| "-".to_owned(), |job| or_dash(&job.id)),
        record.exchange_id.clone(),
    ]
}

/// One record in one line, with names where a table has columns. No value can be taken for another field.
pub(super) fn line(record: &AuditRecord) -> String {
    let named =
        |name: &str, text: &str| if text.is_empty() { String::new() } else { format!(" {name}={}", value(text)) };
    let job = record.job.as_ref().map(|job| job.id.as_str()).unwrap_or_default();
    let lifetime = record.lifetime.map(|lifetime| format!("{}s", lifetime.seconds)).unwrap_or_default();
    let why = ["denial", "error"].iter().find_map(|name| record.attributes.get(*name));
    format!(
        "{} {} {}{}{}{}{}{}{}{}{}{}",
        milliseconds(record.time),
        value(&record.action),
        value(&record.outcome),
        named("reason", &record.reason),
        named("subject", &record.subject),
        named("target", &record.target),
        named("rule", &record.rule),
        named("job", job),
        named("lifetime", &lifetime),
        if record.cached { " cached" } else { "" },
        named("exchange", &record.exchange_id),
        why.map(|why| named("why", why)).unwrap_or_default(),
    )
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Job;

    #[test]
    fn what_a_caller_chose_is_one_value_of_a_tails_line() {
        let job = Job { id: "x rule=admin\u{202e}\u{1b}[2J exchange=1".to_owned(), ..Job::default() };
        let record = AuditRecord {
            action: "exchange".to_owned(),
            outcome: "issued".to_owned(),
            target: "vertex".to_owned(),
            job: Some(job),
            exchange_id: "0199".to_owned(),
            attributes: [("denial".to_owned(), "no rule \"x\" allows it".to_owned())].into(),
            ..AuditRecord::default()
        };
        assert_eq!(
            line(&record).trim_start(),
            "exchange issued target=vertex job=\"x rule=admin\u{fffd}\u{fffd}[2J exchange=1\" exchange=0199 \
             why=\"no rule \\\"x\\\" allows it\""
        );
    }
}

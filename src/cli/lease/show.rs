//! Leases for people and programs.

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::cli::credentials::{self, bound, rfc3339, seconds};
use crate::cli::table::table;
use crate::cli::{print, print_json};
use crate::proto;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Table,
    /// Everything, as one JSON object
    Json,
}

impl Output {
    pub fn lease(self, lease: Option<&proto::Lease>) -> anyhow::Result<()> {
        match self {
            Self::Table => print(summary(lease)),
            Self::Json => print_json(&json!({"lease": json(lease)}))?,
        }
        Ok(())
    }
}

pub(super) fn json(lease: Option<&proto::Lease>) -> Value {
    let Some(lease) = lease else { return Value::Null };
    let job = lease.job.clone().unwrap_or_default();
    let some = |text: String| (!text.is_empty()).then_some(text);
    json!({
        "lease_id": lease.lease_id,
        "state": state(lease.state()),
        "subject": lease.subject,
        "job": {
            "id": some(job.id),
            "name": some(job.name),
            "expected_duration_seconds": seconds(job.expected_duration),
            "labels": job.labels,
            "datasets": job.datasets,
        },
        "targets": lease.targets,
        "opened_at": rfc3339(lease.opened_at),
        "not_after": rfc3339(lease.not_after),
        "heartbeat_before": rfc3339(lease.heartbeat_before),
        "ended_at": rfc3339(lease.ended_at),
    })
}

/// Credentials under a lease, as an answer or an update of a watch brings them.
pub(super) fn update(lease: Option<&proto::Lease>, exchange_id: &str, credentials: &[proto::Credential]) -> Value {
    json!({
        "lease": json(lease),
        "exchange_id": exchange_id,
        "credentials": credentials.iter().map(credentials::json).collect::<Vec<_>>(),
    })
}

/// The state as the contract names it, without its prefix.
pub(super) fn state(state: proto::LeaseState) -> String {
    state.as_str_name().trim_start_matches("LEASE_STATE_").to_ascii_lowercase()
}

/// The lease and what its first credentials are, without the tokens.
pub(super) fn opened(opened: &proto::OpenLeaseResponse) -> String {
    let mut rows = vec![["TARGET", "EXPIRES AT", "REFRESH AFTER", "BOUND"].map(str::to_owned)];
    rows.extend(opened.credentials.iter().map(|credential| {
        let [expires_at, refresh_after] = [credential.expires_at, credential.refresh_after].map(shown);
        [credential.target.clone(), expires_at, refresh_after, bound(credential)]
    }));
    format!("{}\n\n{}", summary(opened.lease.as_ref()), table(&rows))
}

fn summary(lease: Option<&proto::Lease>) -> String {
    let Some(lease) = lease else { return String::new() };
    let job = lease.job.clone().unwrap_or_default();
    let [opened_at, not_after, heartbeat_before] =
        [lease.opened_at, lease.not_after, lease.heartbeat_before].map(shown);
    let mut rows = [
        ["lease", &lease.lease_id],
        ["state", &state(lease.state())],
        ["subject", &lease.subject],
        ["job name", or_dash(&job.name)],
        ["job id", or_dash(&job.id)],
        ["targets", &lease.targets.join(", ")],
        ["opened at", &opened_at],
        ["not after", &not_after],
    ]
    .map(|row| row.map(str::to_owned))
    .to_vec();
    rows.push(match lease.ended_at {
        None => ["heartbeat before".to_owned(), heartbeat_before],
        Some(at) => ["ended at".to_owned(), shown(Some(at))],
    });
    table(&rows)
}

/// One row for each lease.
pub(super) fn list(leases: &[proto::Lease]) -> String {
    let head = ["LEASE", "STATE", "JOB NAME", "JOB ID", "TARGETS", "OPENED AT", "NOT AFTER", "ENDED AT", "SUBJECT"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(leases.iter().map(|lease| {
        let job = lease.job.clone().unwrap_or_default();
        let [opened_at, not_after, ended_at] = [lease.opened_at, lease.not_after, lease.ended_at].map(shown);
        [
            lease.lease_id.clone(),
            state(lease.state()),
            or_dash(&job.name).to_owned(),
            or_dash(&job.id).to_owned(),
            lease.targets.join(","),
            opened_at,
            not_after,
            ended_at,
            lease.subject.clone(),
        ]
    }));
    table(&rows)
}

fn shown(time: Option<prost_types::Timestamp>) -> String {
    rfc3339(time).unwrap_or_else(|| "-".to_owned())
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

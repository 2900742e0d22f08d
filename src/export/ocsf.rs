//! An audit record as an event of the Open Cybersecurity Schema Framework: class Authentication, version 1.8.0.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value, json};

use super::json::{json as as_json, rfc3339};
use crate::proto::AuditRecord;

/// The schema that events follow: the newest that is published and stable, of March 2026.
const OCSF_VERSION: &str = "1.8.0";

/// Every record is an event. What OCSF has no attribute for stands in `unmapped`, under the record's own names.
pub fn ocsf(record: &AuditRecord) -> Value {
    let (activity_id, activity) = activity(&record.action);
    let (severity_id, severity) = severity(&record.outcome);
    let (status_id, status) = status(&record.outcome);
    let mut event = json!({
        "activity_id": activity_id,
        "activity_name": activity,
        "category_uid": 3,
        "category_name": "Identity & Access Management",
        "class_uid": CLASS,
        "class_name": "Authentication",
        "type_uid": CLASS * 100 + activity_id,
        "type_name": format!("Authentication: {activity}"),
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "time": milliseconds(record),
        "message": message(record),
        "metadata": metadata(record),
        "user": user(record),
        "service": { "name": if record.target.is_empty() { PRODUCT } else { &record.target } },
        // RFC 8693 is an extension of OAuth 2.0.
        "auth_protocol_id": 6,
        "auth_protocol": "OAUTH 2.0",
        "logon_type_id": 3,
        "logon_type": "Network",
        "is_remote": true,
        "unmapped": unmapped(record),
    });
    if let Value::Object(event) = &mut event {
        let mut some = |name: &str, value: Option<Value>| event.extend(value.map(|value| (name.to_owned(), value)));
        some("status_code", text(&record.reason));
        some("status_detail", ["denial", "error"].iter().find_map(|name| attribute(record, name)).map(Value::from));
        some("actor", text(&record.client_id).map(|client| json!({"app_uid": client})));
        some("src_endpoint", attribute(record, "peer").map(endpoint));
        some("http_request", attribute(record, "user_agent").map(|agent| json!({"user_agent": agent})));
        some("session", session(record));
    }
    event
}

/// What hands out credentials, or refuses to, begins a session at the target; the end of a lease ends one.
fn activity(action: &str) -> (u64, &str) {
    match action {
        "exchange" | "lease.open" | "lease.credentials" => (1, "Logon"),
        "lease.close" | "lease.expire" | "lease.revoke" => (2, "Logoff"),
        "" => (0, "Unknown"),
        other => (99, other),
    }
}

/// A denial is the broker at work, and for its caller to act on; a failure is for the broker's operators.
fn severity(outcome: &str) -> (u64, &'static str) {
    match outcome {
        "issued" | "done" => (1, "Informational"),
        "denied" => (2, "Low"),
        "failed" => (3, "Medium"),
        _ => (0, "Unknown"),
    }
}

fn status(outcome: &str) -> (u64, &'static str) {
    match outcome {
        "issued" | "done" => (1, "Success"),
        "denied" | "failed" => (2, "Failure"),
        _ => (0, "Unknown"),
    }
}

fn milliseconds(record: &AuditRecord) -> i64 {
    let time = record.time.unwrap_or_default();
    time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos / 1_000_000))
}

fn message(record: &AuditRecord) -> String {
    let target = if record.target.is_empty() { String::new() } else { format!(" of {}", record.target) };
    let subject = if record.subject.is_empty() { "an unknown subject" } else { &record.subject };
    let reason = if record.reason.is_empty() { String::new() } else { format!(": {}", record.reason) };
    format!("{}{target} for {subject}: {}{reason}", record.action, record.outcome)
}

fn metadata(record: &AuditRecord) -> Value {
    let mut metadata = Map::new();
    metadata.insert("version".to_owned(), json!(OCSF_VERSION));
    let product = json!({"name": PRODUCT, "vendor_name": PRODUCT, "version": env!("CARGO_PKG_VERSION")});
    metadata.insert("product".to_owned(), product);
    metadata.insert("log_name".to_owned(), json!("audit"));
    metadata.insert("uid".to_owned(), json!(event_id(record)));
    let mut some = |name: &str, value: Option<Value>| metadata.extend(value.map(|value| (name.to_owned(), value)));
    some("event_code", text(&record.action));
    some("correlation_uid", text(&record.exchange_id));
    some("original_time", rfc3339(record.time).map(Value::from));
    some("tenant_uid", tenant_and_object(record).map(|(tenant, _object)| json!(tenant)));
    some("sequence", (record.sequence != 0).then(|| json!(record.sequence)));
    Value::Object(metadata)
}

/// The same however often the record leaves, so that whoever receives it twice can tell.
pub(super) fn event_id(record: &AuditRecord) -> String {
    match attribute(record, "chain") {
        Some(chain) if record.sequence != 0 => format!("{chain}:{}", record.sequence),
        _ => format!("{}:{}", record.exchange_id, record.target),
    }
}

/// OCSF wants a name or an id: a token that was refused shows nobody.
fn user(record: &AuditRecord) -> Value {
    match tenant_and_object(record) {
        Some((tenant, object)) => {
            json!({"uid": record.subject, "uid_alt": object, "domain": tenant, "type_id": 0, "type": "Unknown"})
        }
        None if record.subject.is_empty() => json!({"name": "unknown", "type_id": 0, "type": "Unknown"}),
        None => json!({"uid": record.subject, "type_id": 0, "type": "Unknown"}),
    }
}

/// Of `entra:{tenant}:{object}`.
fn tenant_and_object(record: &AuditRecord) -> Option<(&str, &str)> {
    record.subject.strip_prefix("entra:")?.split_once(':')
}

fn endpoint(peer: &str) -> Value {
    match (peer.parse::<SocketAddr>(), peer.parse::<IpAddr>()) {
        (Ok(address), _) => json!({"ip": address.ip().to_string(), "port": address.port()}),
        (Err(_no_socket), Ok(address)) => json!({"ip": address.to_string()}),
        (Err(_no_socket), Err(_no_address)) => json!({"name": peer}),
    }
}

/// The credential that was handed out, by its digest, or the lease alone.
fn session(record: &AuditRecord) -> Option<Value> {
    let (token, lease) = (text(&record.token_sha256), text(&record.lease_id));
    let mut session = Map::new();
    session.insert("uid".to_owned(), lease.or_else(|| token.clone())?);
    session.insert("is_remote".to_owned(), json!(true));
    let mut some = |name: &str, value: Option<Value>| session.extend(value.map(|value| (name.to_owned(), value)));
    let time = |name| attribute(record, name)?.parse::<i64>().ok()?.checked_mul(1000).map(Value::from);
    some("created_time", time("issued_at"));
    some("expiration_time", time("expires_at"));
    some("credential_uid", token);
    Some(Value::Object(session))
}

/// Everything that has no place of its own in the class.
fn unmapped(record: &AuditRecord) -> Value {
    let Value::Object(mut all) = as_json(record) else { return Value::Null };
    for mapped in ["time", "reason", "subject", "client_id", "sequence"] {
        all.remove(mapped);
    }
    Value::Object(all)
}

fn attribute<'a>(record: &'a AuditRecord, name: &str) -> Option<&'a str> {
    record.attributes.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

fn text(text: &str) -> Option<Value> {
    (!text.is_empty()).then(|| json!(text))
}

const CLASS: u64 = 3002;

const PRODUCT: &str = "carnet";

#[cfg(test)]
mod tests;

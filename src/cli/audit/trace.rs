//! The same event in the clouds' own logs: queries that are ready to run, made from what a record keeps.

mod azure;
mod google;
mod quote;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::cli::records::milliseconds;
use crate::credential::{Hop, STS_EXCHANGE_ID, UPSTREAM_EXCHANGE_ID};
use crate::export::json as record_json;
use crate::proto::AuditRecord;

/// What is known of one record, and where the rest stands.
pub(super) struct Trace<'a> {
    record: &'a AuditRecord,
    notes: Vec<String>,
    queries: Vec<Query>,
}

/// A query of a cloud's log.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    finds: &'static str,
    /// What must have been switched on beforehand.
    needs: &'static str,
    language: Language,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    /// Of a Log Analytics workspace.
    Kql,
    /// A command for a shell.
    Gcloud,
}

impl Language {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Kql => "kql",
            Self::Gcloud => "gcloud",
        }
    }
}

impl<'a> Trace<'a> {
    pub fn of(record: &'a AuditRecord) -> Self {
        let mut trace = Self { record, notes: Vec::new(), queries: Vec::new() };
        let facts = Facts::of(record);
        trace.queries.extend(azure::subject_token_sign_in(record, &facts));
        match facts.cloud {
            _ if record.outcome == "done" => {}
            Some(Cloud::Google) => trace.queries.extend(google::queries(record, &facts)),
            Some(Cloud::Azure) => trace.queries.extend(azure::queries(record, &facts)),
            None => trace.notes.push("no cloud was asked: the broker decided this by itself".to_owned()),
        }
        if let Some(minted_by) = attribute(record, UPSTREAM_EXCHANGE_ID) {
            trace.notes.push(format!(
                "the clouds have no entry of this exchange: its answer was in the broker's cache. They saw exchange \
                 {minted_by} ({}); see `carnet audit trace {minted_by}`",
                quote::line(&facts.asked_at.to_string())
            ));
        }
        if attribute(record, "cloud_hop") == Some(Hop::ManagedIdentity.as_str()) {
            trace.notes.push("the machine's metadata endpoint keeps no log of what it refuses".to_owned());
        }
        trace
    }

    pub fn json(&self) -> Value {
        let queries: Vec<Value> = self.queries.iter().map(Query::json).collect();
        json!({"record": record_json(self.record), "notes": self.notes, "queries": queries})
    }

    /// For people: each query stands alone on its lines, to be copied.
    pub fn text(&self) -> String {
        let notes = self.notes.iter().map(|note| format!("# {}\n", quote::line(note)));
        let queries = self.queries.iter().map(|query| {
            let kind = match query.language {
                Language::Kql => "KQL, in the Log Analytics workspace",
                Language::Gcloud => "in a shell",
            };
            format!("\n## {} ({kind})\n# needs {}\n{}\n", query.finds, query.needs, query.text)
        });
        notes.chain(queries).collect()
    }
}

impl Query {
    fn json(&self) -> Value {
        json!({
            "finds": self.finds,
            "needs": self.needs,
            "language": self.language.as_str(),
            "query": self.text,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cloud {
    Google,
    Azure,
}

/// What all queries of a record need.
struct Facts {
    cloud: Option<Cloud>,
    /// When the cloud was asked: of a cached hand-out, an earlier time than the record's.
    asked_at: Timestamp,
    /// Until when the credential could be used.
    expires_at: Option<Timestamp>,
    /// The exchange whose id the cloud has seen.
    upstream: String,
    /// The exchange whose id Google's Security Token Service has seen.
    sts: String,
}

impl Facts {
    fn of(record: &AuditRecord) -> Self {
        let time = record.time.unwrap_or_default();
        let recorded = Timestamp::new(time.seconds, time.nanos).unwrap_or_default();
        let seconds = |name| Timestamp::from_second(attribute(record, name)?.parse().ok()?).ok();
        let upstream = attribute(record, UPSTREAM_EXCHANGE_ID).unwrap_or(&record.exchange_id).to_owned();
        Self {
            cloud: cloud(record),
            asked_at: seconds("issued_at").unwrap_or(recorded),
            expires_at: seconds("expires_at"),
            sts: attribute(record, STS_EXCHANGE_ID).map_or_else(|| upstream.clone(), str::to_owned),
            upstream,
        }
    }

    /// Around the call: clocks differ, and a call may have been tried again.
    fn call(&self) -> Window {
        Window::around(self.asked_at, self.asked_at)
    }

    /// While the credential was good.
    fn life(&self) -> Window {
        Window::around(self.asked_at, self.expires_at.unwrap_or(self.asked_at))
    }
}

/// By whose refusal it is, or by whose credential.
fn cloud(record: &AuditRecord) -> Option<Cloud> {
    let hop = |hop: Hop| match hop {
        Hop::GoogleSts | Hop::GoogleIam => Some(Cloud::Google),
        Hop::EntraToken | Hop::ManagedIdentity => Some(Cloud::Azure),
        Hop::Broker => None,
    };
    let hops = [Hop::GoogleSts, Hop::GoogleIam, Hop::EntraToken, Hop::ManagedIdentity, Hop::Broker];
    match attribute(record, "cloud_hop") {
        Some(name) => hops.into_iter().find(|hop| hop.as_str() == name).and_then(hop),
        None => {
            let acts_as = attribute(record, "acts_as")?;
            let google = acts_as.starts_with("principal:") || acts_as.contains('@');
            Some(if google { Cloud::Google } else { Cloud::Azure })
        }
    }
}

/// A span of time, as both query languages write it.
struct Window {
    from: Timestamp,
    to: Timestamp,
}

impl Window {
    fn around(from: Timestamp, to: Timestamp) -> Self {
        Self::stretched(from, to, MARGIN)
    }

    fn stretched(from: Timestamp, to: Timestamp, before: SignedDuration) -> Self {
        // Kusto's times have seven digits after the point at most.
        let whole = |time: Timestamp| Timestamp::from_second(time.as_second()).unwrap_or(time);
        Self {
            from: whole(from.checked_sub(before).unwrap_or(Timestamp::MIN)),
            to: whole(to.checked_add(MARGIN).unwrap_or(Timestamp::MAX)),
        }
    }
}

fn attribute<'a>(record: &'a AuditRecord, name: &str) -> Option<&'a str> {
    record.attributes.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// A heading for people.
pub(super) fn heading(record: &AuditRecord) -> String {
    let time = milliseconds(record.time);
    let reason = if record.reason.is_empty() { String::new() } else { format!(" ({})", record.reason) };
    let by_rule = if record.rule.is_empty() { String::new() } else { format!(" by rule {}", record.rule) };
    let text = format!(
        "{time} {} {}{reason}: {} for {}{by_rule}",
        record.action,
        record.outcome,
        if record.target.is_empty() { "no target" } else { &record.target },
        if record.subject.is_empty() { "nobody known" } else { &record.subject },
    );
    quote::line(&text)
}

/// Entra and Google allow clocks to differ by five minutes.
const MARGIN: SignedDuration = SignedDuration::from_mins(10);

#[cfg(test)]
mod tests;

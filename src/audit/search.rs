//! Which records somebody wants to see, and the way to them: newest first, page by page.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use regex::bytes::Regex;
use uuid::Uuid;

use super::reader::{READ_AT_ONCE, shown};
use super::{AuditError, AuditReader, Group, Place, Window};
use crate::clock::{from_unix_seconds, unix_milliseconds};
use crate::proto;

/// All that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// At this time or later.
    pub after: Option<SystemTime>,
    /// Earlier than this.
    pub before: Option<SystemTime>,
    pub exchange_id: Option<Uuid>,
    pub lease_id: Option<Uuid>,
    /// `entra:{tenant}:{object}`.
    pub subject: Option<String>,
    /// One of the record's targets.
    pub target: Option<String>,
    pub job_id: Option<String>,
    pub outcome: Option<String>,
    pub action: Option<String>,
    pub reason: Option<String>,
}

/// What is asked for, in one line: `subject=entra:... target=vertex`; empty where that is everything.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: Option<SystemTime>| {
            let time = time.and_then(|time| Timestamp::try_from(time).ok());
            time.map(|time| time.to_string())
        };
        let id = |id: Option<Uuid>| id.map(|id| id.to_string());
        let fields = [
            ("after", time(self.after)),
            ("before", time(self.before)),
            ("exchange_id", id(self.exchange_id)),
            ("lease_id", id(self.lease_id)),
            ("subject", self.subject.clone()),
            ("target", self.target.clone()),
            ("job_id", self.job_id.clone()),
            ("outcome", self.outcome.clone()),
            ("action", self.action.clone()),
            ("reason", self.reason.clone()),
        ];
        let given = fields.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        f.write_str(&given.collect::<Vec<_>>().join(" "))
    }
}

impl Filter {
    pub fn takes(&self, record: &proto::AuditRecord) -> bool {
        let time = record.time.and_then(|time| SystemTime::try_from(time).ok()).unwrap_or(SystemTime::UNIX_EPOCH);
        let same = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        let same_id = |wanted: Option<Uuid>, found: &str| wanted.is_none_or(|wanted| found.parse() == Ok(wanted));
        self.after.is_none_or(|after| time >= after)
            && self.before.is_none_or(|before| time < before)
            && same_id(self.exchange_id, &record.exchange_id)
            && same_id(self.lease_id, &record.lease_id)
            && same(&self.subject, &record.subject)
            && self.target.as_ref().is_none_or(|wanted| record.target.split(',').any(|target| target == wanted))
            && self.job_id.as_ref().is_none_or(|wanted| record.job.as_ref().is_some_and(|job| job.id == *wanted))
            && same(&self.outcome, &record.outcome)
            && same(&self.action, &record.action)
            && same(&self.reason, &record.reason)
    }

    /// A text that stands as it is in every record that this takes: the one that the fewest others have.
    fn needle(&self) -> Option<String> {
        let id = |id: Option<Uuid>| id.map(|id| id.to_string());
        let texts = [&self.job_id, &self.subject, &self.target, &self.reason, &self.action].map(Clone::clone);
        [id(self.exchange_id), id(self.lease_id)].into_iter().chain(texts).flatten().find(|text| !text.is_empty())
    }

    /// Where to look, in this order, the rest only where nothing was found before.
    fn windows(&self) -> Vec<Window> {
        // A record's time is that of the beginning; it is written, with others, when its exchange has ended.
        let latest = self.before.map_or(i64::MAX, |before| unix_milliseconds(before).saturating_add(LONGEST_MS));
        let whole = Window { from_ms: self.after.map_or(i64::MIN, unix_milliseconds), before_ms: latest };
        let Some(begun) = self.exchange_id.and_then(begun_at).map(unix_milliseconds) else { return vec![whole] };
        let from_ms = begun.saturating_sub(LONGEST_MS).clamp(whole.from_ms, whole.before_ms);
        let before_ms = begun.saturating_add(LONGEST_MS).clamp(whole.from_ms, whole.before_ms);
        // Clocks of replicas differ a little; one that was wrong by much is no reason to find nothing.
        let near = Window { from_ms, before_ms };
        vec![near, Window { from_ms: before_ms, ..whole }, Window { before_ms: from_ms, ..whole }]
    }
}

/// A UUID of version 7 carries the time at which it was made (RFC 9562 section 5.7).
fn begun_at(exchange_id: Uuid) -> Option<SystemTime> {
    let (seconds, nanoseconds) = exchange_id.get_timestamp().filter(|_| exchange_id.get_version_num() == 7)?.to_unix();
    Some(from_unix_seconds(seconds)? + Duration::from_nanos(nanoseconds.into()))
}

/// A search under way. Holds one page at a time.
#[derive(Debug)]
pub struct Search {
    reader: Arc<dyn AuditReader>,
    filter: Arc<Filter>,
    needle: Option<Arc<Regex>>,
    /// To be looked through, the next one last.
    windows: Vec<Window>,
    behind: Option<Place>,
    found: bool,
}

impl Search {
    pub(super) fn new(reader: Arc<dyn AuditReader>, filter: Filter) -> Self {
        let needle = filter.needle().and_then(|needle| Regex::new(&regex::escape(&needle)).ok()).map(Arc::new);
        let mut windows = filter.windows();
        windows.reverse();
        Self { reader, filter: Arc::new(filter), needle, windows, behind: None, found: false }
    }

    /// The next records, newest first; `None` when there are no more.
    ///
    /// # Errors
    /// The store cannot be read; the search may be continued.
    pub async fn page(&mut self) -> Result<Option<Vec<proto::AuditRecord>>, AuditError> {
        loop {
            let Some(window) = self.windows.last().copied() else { return Ok(None) };
            let groups = self.reader.newest_first(window, self.behind, READ_AT_ONCE).await?;
            let Some((place, _group)) = groups.last() else {
                self.behind = None;
                self.windows.pop();
                if self.found {
                    self.windows.clear();
                }
                continue;
            };
            self.behind = Some(*place);
            let (filter, needle) = (self.filter.clone(), self.needle.clone());
            // Beside the exchanges: what is read may be megabytes.
            let sifted = tokio::task::spawn_blocking(move || sift(&groups, &filter, needle.as_deref())).await;
            let records = sifted.map_err(|panicked| AuditError::Read(Arc::new(panicked)))?;
            if !records.is_empty() {
                self.found = true;
                return Ok(Some(records));
            }
        }
    }
}

fn sift(groups: &[(Place, Group)], filter: &Filter, needle: Option<&Regex>) -> Vec<proto::AuditRecord> {
    let worth = |group: &&Group| needle.is_none_or(|needle| needle.is_match(&group.bytes));
    let records = groups.iter().map(|(_place, group)| group).filter(worth).flat_map(|group| shown(group).rev());
    records.filter(|record| filter.takes(record)).collect()
}

/// Longer than any exchange takes from its beginning to its record, by far.
const LONGEST_MS: i64 = 15 * 60 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_is_looked_for_where_its_id_says_and_then_everywhere_else() {
        let id = Uuid::new_v7(uuid::Timestamp::from_unix_time(1_767_225_600, 0, 0, 0));
        let begun = 1_767_225_600_000;
        let filter = Filter { exchange_id: Some(id), ..Filter::default() };
        let window = |from_ms, before_ms| Window { from_ms, before_ms };
        let (from, before) = (begun - LONGEST_MS, begun + LONGEST_MS);
        assert_eq!(filter.windows(), [window(from, before), window(before, i64::MAX), window(i64::MIN, from)]);
        let late = Filter { after: from_unix_seconds(1_767_225_600), ..filter };
        assert_eq!(late.windows(), [window(begun, before), window(before, i64::MAX), window(begun, begun)]);
        let random = Filter { exchange_id: Some(Uuid::from_u128(7)), ..Filter::default() };
        assert_eq!(random.windows(), [window(i64::MIN, i64::MAX)]);
    }

    #[test]
    fn every_field_of_a_filter_has_a_say() {
        let record = proto::AuditRecord {
            exchange_id: Uuid::from_u128(1).to_string(),
            time: Some(prost_types::Timestamp { seconds: 100, nanos: 0 }),
            action: "exchange".to_owned(),
            outcome: "issued".to_owned(),
            subject: "entra:a:b".to_owned(),
            target: "vertex,azure-ml".to_owned(),
            job: Some(proto::Job { id: "run-1".to_owned(), ..proto::Job::default() }),
            ..proto::AuditRecord::default()
        };
        let text = |text: &str| Some(text.to_owned());
        let at = from_unix_seconds;
        let filter = Filter::default;
        for (filter, takes) in [
            (filter(), true),
            (Filter { after: at(100), before: at(101), ..filter() }, true),
            (Filter { after: at(101), ..filter() }, false),
            (Filter { before: at(100), ..filter() }, false),
            (Filter { exchange_id: Some(Uuid::from_u128(1)), ..filter() }, true),
            (Filter { exchange_id: Some(Uuid::from_u128(2)), ..filter() }, false),
            (Filter { lease_id: Some(Uuid::from_u128(1)), ..filter() }, false),
            (Filter { subject: text("entra:a:b"), target: text("azure-ml"), ..filter() }, true),
            (Filter { subject: text("entra:a:c"), ..filter() }, false),
            (Filter { target: text("vertex,azure-ml"), ..filter() }, false),
            (Filter { job_id: text("run-1"), outcome: text("issued"), action: text("exchange"), ..filter() }, true),
            (Filter { job_id: text("run-2"), ..filter() }, false),
            (Filter { outcome: text("denied"), ..filter() }, false),
            (Filter { action: text("lease.open"), ..filter() }, false),
            (Filter { reason: text("DENIED"), ..filter() }, false),
        ] {
            assert_eq!(filter.takes(&record), takes, "{filter:?}");
        }
    }
}

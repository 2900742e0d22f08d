//! Audit records for commands: from the broker, or straight from its store.

mod follow;
mod shown;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use tokio::time::sleep;
use tonic::Status;
use uuid::Uuid;

use self::follow::Tail;
use super::broker::{Bearer, chain, no_subject_token, refusal, usage};
use super::operator::{Operator, Session};
use super::remark;
use super::request::span;
use crate::audit::{self, KnownFacts};
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::proto::{AuditRecord, SearchAuditRequest};
use crate::store;
use crate::target::Span;

/// Where records are read.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// Read the store of this configuration file, beside its broker or without one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    operator: Operator,
}

/// Which records; what is given must all hold.
#[derive(Debug, Args)]
pub(super) struct Filter {
    #[command(flatten)]
    time: Time,
    /// Of the exchange with this id
    #[arg(long, value_name = "ID")]
    exchange_id: Option<String>,
    /// Of this identity, as entra:TENANT_ID:OBJECT_ID
    #[arg(long)]
    subject: Option<String>,
    /// About this target
    #[arg(long)]
    target: Option<String>,
    /// Of the run with this identifier
    #[arg(long, value_name = "ID")]
    job_id: Option<String>,
    /// Of this lease
    #[arg(long, value_name = "LEASE_ID")]
    lease: Option<String>,
    #[arg(long, value_enum)]
    outcome: Option<Outcome>,
    /// With this reason of a refusal, such as DENIED
    #[arg(long)]
    reason: Option<String>,
    /// Of this kind, such as exchange, lease.open or operator.explain
    #[arg(long)]
    action: Option<String>,
}

/// A span of time.
#[derive(Debug, Args)]
pub(super) struct Time {
    /// At most this old, such as 2h or 90d
    #[arg(long, value_name = "DURATION", value_parser = span, conflicts_with = "after")]
    since: Option<Span>,
    /// Of this time or later, as 2026-11-21T16:00:00Z
    #[arg(long, value_name = "TIME")]
    after: Option<Timestamp>,
    /// Earlier than this
    #[arg(long, value_name = "TIME")]
    before: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Outcome {
    /// A credential was handed out
    Issued,
    /// The broker refused it
    Denied,
    /// Something did not work
    Failed,
    /// Nothing was asked to be issued, as when a lease ends
    Done,
}

impl Time {
    pub fn since(span: Option<Span>) -> Self {
        Self { since: span, after: None, before: None }
    }

    /// From when; `None`: from the beginning.
    pub fn after(&self, now: SystemTime) -> Option<SystemTime> {
        let since = self.since.map(|span| now.checked_sub(span.0).unwrap_or(SystemTime::UNIX_EPOCH));
        self.after.map(SystemTime::from).or(since)
    }

    pub fn message(&self, now: SystemTime) -> SearchAuditRequest {
        SearchAuditRequest {
            after: self.after(now).map(prost_types::Timestamp::from),
            before: self.before.map(|time| SystemTime::from(time).into()),
            ..SearchAuditRequest::default()
        }
    }
}

impl Filter {
    pub fn message(&self, now: SystemTime) -> SearchAuditRequest {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let outcome = self.outcome.and_then(|outcome| outcome.to_possible_value());
        SearchAuditRequest {
            exchange_id: text(&self.exchange_id),
            subject: text(&self.subject),
            target: text(&self.target),
            job_id: text(&self.job_id),
            lease_id: text(&self.lease),
            outcome: outcome.map(|outcome| outcome.get_name().to_owned()).unwrap_or_default(),
            reason: text(&self.reason),
            action: text(&self.action),
            ..self.time.message(now)
        }
    }
}

impl Source {
    /// The configuration whose store is read.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    pub async fn open(&self) -> anyhow::Result<Records> {
        match &self.config {
            Some(path) => Records::of_store(path).await,
            None => Records::of_broker(&self.operator).await,
        }
    }
}

/// The log as a command reads it.
pub(super) enum Records {
    Broker(Box<Session>),
    Store(audit::Records),
}

/// What is done with each record.
pub(super) type Each<'a> = &'a mut (dyn FnMut(AuditRecord) -> anyhow::Result<()> + Send);

/// Why records do not come.
pub(super) enum Unread {
    /// By the broker, or on the way to it.
    Refused(Box<Status>),
    Failed(anyhow::Error),
}

impl From<Status> for Unread {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl From<anyhow::Error> for Unread {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Unread> for anyhow::Error {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Refused(status) => refusal(&status),
            Unread::Failed(error) => error,
        }
    }
}

impl Records {
    /// Of the store that the configuration in this file names.
    pub async fn of_store(path: &Path) -> anyhow::Result<Self> {
        let config = Config::load(path)?;
        Ok(Self::Store(audit::Records::new(store::open_to_read(&config.store).await?)))
    }

    pub async fn of_broker(operator: &Operator) -> anyhow::Result<Self> {
        Ok(Self::Broker(Box::new(operator.session().await?)))
    }

    /// Newest first, at most `most`.
    pub async fn newest_first(
        &mut self,
        asked: &SearchAuditRequest,
        most: usize,
        each: Each<'_>,
    ) -> Result<usize, Unread> {
        let mut found = 0;
        match self {
            Self::Broker(session) => {
                let limit = i32::try_from(most.min(MOST_AT_ONCE)).unwrap_or(i32::MAX);
                let token = session.token().await.map_err(no_subject_token)?;
                let request = Bearer::new(token.expose())?.show_for_long(SearchAuditRequest { limit, ..asked.clone() });
                let mut stream = session.client.search_audit(request).await?.into_inner();
                while let Some(record) = stream.message().await? {
                    found += 1;
                    each(record)?;
                }
            }
            Self::Store(records) => {
                let (mut search, mut known) = (records.search(filter(asked)?), KnownFacts::default());
                while found < most
                    && let Some(mut page) = search.page().await.map_err(anyhow::Error::from)?
                {
                    if asked.facts {
                        records.show_facts(&mut page, &mut known).await.map_err(anyhow::Error::from)?;
                    }
                    for record in page.into_iter().take(most - found) {
                        found += 1;
                        each(record)?;
                    }
                }
            }
        }
        Ok(found)
    }

    /// All of them, in whatever order costs least; those of one exchange come one after the other.
    pub async fn all(&mut self, asked: &SearchAuditRequest, each: Each<'_>) -> Result<(), Unread> {
        match self {
            // Nobody holds more than a page.
            Self::Store(_) => self.newest_first(asked, usize::MAX, each).await.map(|_found| ()),
            // A broker ends a search at some number.
            Self::Broker(..) => self.oldest_first(asked, each).await,
        }
    }

    /// All of them, oldest first: looked through once for where to divide them, then read part by part, so that no more
    /// than a part is held.
    pub async fn oldest_first(&mut self, asked: &SearchAuditRequest, each: Each<'_>) -> Result<(), Unread> {
        // What is recorded meanwhile is for the next time.
        let before = asked.before.unwrap_or_else(|| SystemClock.now().into());
        let asked = SearchAuditRequest { before: Some(before), ..asked.clone() };
        let mut borders = self.borders(&SearchAuditRequest { facts: false, ..asked.clone() }).await?;
        let mut from = asked.after;
        loop {
            let to = borders.pop();
            let window = SearchAuditRequest { after: from, before: to.or(asked.before), ..asked.clone() };
            let mut part = Vec::new();
            self.newest_first(&window, MOST_AT_ONCE, &mut |record| {
                part.push(record);
                Ok(())
            })
            .await?;
            // Newest first is by when records were written; their time is when their exchange began.
            part.reverse();
            part.sort_by_key(|record| record.time.map(order));
            part.into_iter().try_for_each(&mut *each)?;
            if to.is_none() {
                return Ok(());
            }
            from = to;
        }
    }

    /// Times between parts of some [`PART`] records, the newest first.
    async fn borders(&mut self, asked: &SearchAuditRequest) -> Result<Vec<prost_types::Timestamp>, Unread> {
        let mut borders: Vec<prost_types::Timestamp> = Vec::new();
        let mut asked = asked.clone();
        loop {
            let mut since_border = 0;
            let found = self
                .newest_first(&asked, MOST_AT_ONCE, &mut |record| {
                    since_border += 1;
                    if since_border >= PART
                        && let Some(time) = record.time
                        && borders.last().is_none_or(|last| order(time) < order(*last))
                    {
                        borders.push(time);
                        since_border = 0;
                    }
                    Ok(())
                })
                .await?;
            match borders.last() {
                // The broker gave as many as it gives at once: the rest is older than the last border.
                Some(last) if found == MOST_AT_ONCE && asked.before != Some(*last) => asked.before = Some(*last),
                _ => return Ok(borders),
            }
        }
    }

    /// The newest `last` of them, oldest first, then whatever is recorded from now on; ends with the first error of `each`.
    /// A broker or a store that is away is asked again.
    pub async fn follow(mut self, asked: &SearchAuditRequest, last: usize, each: Each<'_>) -> anyhow::Result<()> {
        let records = match self {
            Self::Broker(session) => return Tail::new(*session, asked.clone(), last).run(each).await,
            Self::Store(ref records) => records.clone(),
        };
        let wanted = filter(asked)?;
        let mut cursors = records.end().await?;
        let mut newest = Vec::new();
        self.newest_first(asked, last, &mut |record| {
            newest.push(record);
            Ok(())
        })
        .await?;
        // What came between the two looks comes with what follows.
        newest.into_iter().rev().filter(|record| cursors.passed(record)).try_for_each(&mut *each)?;
        let mut away = false;
        loop {
            let read = match records.read_on(&mut cursors, SystemClock.now()).await {
                Ok(read) => read.records,
                Err(error) => {
                    if !std::mem::replace(&mut away, true) {
                        remark(format_args!("{}; asking again", chain(&error)));
                    }
                    sleep(ASK_AGAIN).await;
                    continue;
                }
            };
            away = false;
            if read.is_empty() {
                sleep(LOOK_EVERY).await;
            }
            read.into_iter().filter(|record| wanted.takes(record)).try_for_each(&mut *each)?;
        }
    }
}

/// The broker checks the same.
fn filter(asked: &SearchAuditRequest) -> anyhow::Result<audit::Filter> {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let id = |name: &str, text: &String| {
        let parsed = some(text).map(|text| text.parse::<Uuid>()).transpose();
        parsed.map_err(|_not_a_uuid| usage(format!("{name} {text}: is no id")))
    };
    let time = |time: Option<prost_types::Timestamp>| time.map(SystemTime::try_from).transpose();
    Ok(audit::Filter {
        after: time(asked.after)?,
        before: time(asked.before)?,
        exchange_id: id("--exchange-id", &asked.exchange_id)?,
        lease_id: id("--lease", &asked.lease_id)?,
        subject: some(&asked.subject),
        target: some(&asked.target),
        job_id: some(&asked.job_id),
        outcome: some(&asked.outcome),
        action: some(&asked.action),
        reason: some(&asked.reason),
    })
}

/// A time for people: with milliseconds, in UTC; empty where there is none.
pub(super) fn milliseconds(time: Option<prost_types::Timestamp>) -> String {
    let time = time.and_then(|time| Timestamp::new(time.seconds, time.nanos).ok());
    time.map(|time| time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()).unwrap_or_default()
}

fn order(time: prost_types::Timestamp) -> (i64, i32) {
    (time.seconds, time.nanos)
}

/// What the broker gives at most in one search.
const MOST_AT_ONCE: usize = 1_000_000;

/// Records that are held at once: some 20 MB.
const PART: usize = 10_000;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const ASK_AGAIN: Duration = Duration::from_secs(2);

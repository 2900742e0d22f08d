//! `carnet audit`: what the broker decided and recorded, for those who may see it.

mod output;
mod trace;
mod verify;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use self::output::{Out, head, line, row};
use self::trace::{Trace, heading};
use self::verify::Verify;
use super::broker::usage;
use super::records::{Filter, Records, Source};
use super::table::table;
use super::{Ended, Exit};
use crate::clock::{Clock as _, SystemClock};
use crate::export::{Format, json as record_json};
use crate::proto::{AuditRecord, SearchAuditRequest};

/// Records of every decision: search them, follow them, take them elsewhere, verify them
///
/// Records come from the broker (permission audit.read; what is searched for is on
/// record, too), or with --config straight from its store.
#[derive(Debug, Subcommand)]
#[command(verbatim_doc_comment)]
pub(super) enum Audit {
    /// Print records, the newest first
    Search(Box<Search>),
    /// Print records as they are made
    Tail(Box<Tail>),
    /// Print all records of a span of time, the oldest first, one line of JSON for each
    Export(Box<Export>),
    /// Print the records of one exchange, and the queries that find it in the clouds' own logs
    Trace(Box<TraceExchange>),
    Verify(Verify),
}

#[derive(Debug, Args)]
pub(super) struct Search {
    #[command(flatten)]
    filter: Filter,
    /// At most so many
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Args)]
pub(super) struct Tail {
    #[command(flatten)]
    filter: Filter,
    /// Begin with so many of the newest
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1000))]
    last: u32,
    #[arg(long, value_enum, default_value_t = Lines::Text)]
    output: Lines,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    #[command(flatten)]
    filter: Filter,
    /// jsonl: the records themselves; ocsf: Authentication events of the Open Cybersecurity Schema Framework 1.8.0
    #[arg(long, default_value_t = Format::Jsonl)]
    format: Format,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Args)]
pub(super) struct TraceExchange {
    /// Every answer and every refusal of the broker names it
    exchange_id: String,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// Everything, as one JSON object
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lines {
    /// A line of text for each record
    Text,
    /// A line of JSON for each record
    Json,
}

impl Audit {
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Search(search) => search.run().await,
            Self::Tail(tail) => tail.run().await,
            Self::Export(export) => export.run().await,
            Self::Trace(trace) => trace.run().await,
            Self::Verify(verify) => verify.run().await,
        }
    }
}

impl Search {
    async fn run(self) -> anyhow::Result<()> {
        let asked = self.filter.message(SystemClock.now());
        let records = found(&mut self.source.open().await?, &asked, usize::try_from(self.limit)?).await?;
        let mut out = Out::default();
        match self.output {
            Output::Table => {
                let rows: Vec<_> = std::iter::once(head()).chain(records.iter().map(row)).collect();
                out.line(table(&rows))
            }
            Output::Json => {
                let records: Vec<Value> = records.iter().map(record_json).collect();
                out.pretty_json(&json!({"records": records}))
            }
        }?;
        out.end()
    }
}

async fn found(records: &mut Records, asked: &SearchAuditRequest, most: usize) -> anyhow::Result<Vec<AuditRecord>> {
    let mut found = Vec::new();
    let mut keep = |record| {
        found.push(record);
        Ok(())
    };
    records.newest_first(asked, most, &mut keep).await?;
    Ok(found)
}

impl Tail {
    async fn run(self) -> anyhow::Result<()> {
        let asked = self.filter.message(SystemClock.now());
        if asked.before.is_some() {
            return Err(usage("--before ends a search: what is followed has no end"));
        }
        let mut out = Out::default();
        let mut print = |record: AuditRecord| {
            match self.output {
                Lines::Text => out.line(line(&record)),
                Lines::Json => out.json(&record_json(&record)),
            }?;
            out.flush()
        };
        let followed = self.source.open().await?.follow(&asked, usize::try_from(self.last)?, &mut print).await;
        output::unless_closed(followed)
    }
}

impl Export {
    async fn run(self) -> anyhow::Result<()> {
        let asked = self.filter.message(SystemClock.now());
        let mut out = Out::default();
        let mut print = |record: AuditRecord| out.json(&self.format.of(&record));
        let exported = self.source.open().await?.oldest_first(&asked, &mut print).await;
        output::unless_closed(exported.map_err(anyhow::Error::from).and_then(|()| out.end()))
    }
}

impl TraceExchange {
    async fn run(self) -> anyhow::Result<()> {
        let asked = SearchAuditRequest { exchange_id: self.exchange_id.clone(), ..SearchAuditRequest::default() };
        let mut records = found(&mut self.source.open().await?, &asked, MOST_TARGETS).await?;
        records.reverse();
        if records.is_empty() {
            let message = format!(
                "there is no record of exchange {}: it is older than audit.retention, of another broker, or mistyped",
                self.exchange_id
            );
            return Err(Ended { exit: Exit::Failed, message }.into());
        }
        let mut out = Out::default();
        let traces: Vec<(&AuditRecord, Trace<'_>)> = records.iter().map(|record| (record, Trace::of(record))).collect();
        match self.output {
            Output::Table => traces
                .iter()
                .try_for_each(|(record, trace)| out.line(format_args!("# {}\n{}", heading(record), trace.text())))?,
            Output::Json => {
                let traces: Vec<Value> = traces.iter().map(|(_record, trace)| trace.json()).collect();
                let object = json!({"exchange_id": self.exchange_id, "records": traces});
                out.pretty_json(&object)?;
            }
        }
        out.end()
    }
}

/// An exchange has a record for each of its targets, a lease's end another.
const MOST_TARGETS: usize = 1000;

//! `carnet report`: what the records tell those who answer for access.

mod access;
mod csv;
mod unused;

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::{Value, json};

use self::access::Access;
use self::csv::csv;
use self::unused::{Granted, Unused};
use super::operator::Operator;
use super::records::{Each, Records, Source, Time};
use super::request::span;
use super::table::table;
use super::{print, print_json, remark};
use crate::clock::{Clock as _, SystemClock};
use crate::config::PolicyFile;
use crate::policy::RuleDocument;
use crate::proto::{AuditRecord, SearchAuditRequest};
use crate::target::{Guid, Span};

/// Who used what as whom, and what is granted and not used
#[derive(Debug, Subcommand)]
pub(super) enum Report {
    /// Credentials that were handed out, by subject, target, cloud identity, job and dataset
    Access(Box<AccessReport>),
    /// Rules, targets and named subjects of a configuration that nobody used
    ///
    /// A rule, a target or a subject that rules name by its object id, its client or its
    /// tenant is used when a credential was handed out. Groups, roles and scopes are no
    /// names: who has them does not stand in a record.
    #[command(verbatim_doc_comment)]
    Unused(Box<UnusedReport>),
}

#[derive(Debug, Args)]
pub(super) struct AccessReport {
    #[command(flatten)]
    time: Time,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Args)]
pub(super) struct UnusedReport {
    /// For how long it was not used
    #[arg(long, value_name = "DURATION", value_parser = span, default_value = "90d")]
    since: Span,
    /// The configuration file that grants it
    #[arg(long, value_name = "FILE", env = "CARNET_CONFIG")]
    config: PathBuf,
    /// Where the records are read
    #[arg(long, value_enum, default_value_t = From::Store)]
    records: From,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    operator: Operator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum From {
    /// In the store of the configuration
    Store,
    /// From the broker
    Broker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// Everything, as one JSON object
    Json,
    /// For spreadsheets (RFC 4180)
    Csv,
}

impl Report {
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Access(report) => report.run().await,
            Self::Unused(report) => report.run().await,
        }
    }
}

/// How far the log goes back.
struct Reach {
    /// From when records were asked for.
    after: Option<SystemTime>,
    /// When the oldest record was made, where all that there are were asked for.
    begins: Option<SystemTime>,
}

impl Reach {
    fn is_short(&self) -> bool {
        self.after.is_some() && self.begins.is_some()
    }

    fn json(&self) -> [Value; 2] {
        [self.after, self.begins].map(|time| time.and_then(shown).map_or(Value::Null, Value::from))
    }
}

/// Shows `each` every record of `time`, the oldest first.
async fn read(records: &mut Records, time: &Time, each: Each<'_>) -> anyhow::Result<Reach> {
    let now = SystemClock.now();
    let mut first = None;
    // Whatever its outcome: the first of them tells where the log begins.
    let mut all = |record: AuditRecord| {
        first = first.or(record.time);
        each(record)
    };
    records.oldest_first(&time.message(now), &mut all).await?;
    let after = time.after(now);
    let mut older = false;
    if let Some(after) = after {
        let asked = SearchAuditRequest { before: Some(after.into()), ..SearchAuditRequest::default() };
        older = records.newest_first(&asked, 1, &mut |_record| Ok(())).await? > 0;
    }
    // Without a record there is a beginning, too: it has not come yet.
    let first = first.map(SystemTime::try_from).transpose()?.or(Some(now));
    Ok(Reach { after, begins: first.filter(|_first| !older) })
}

impl AccessReport {
    async fn run(self) -> anyhow::Result<()> {
        let mut access = Access::default();
        let mut add = |record: AuditRecord| {
            access.add(&record);
            Ok(())
        };
        let reach = read(&mut self.source.open().await?, &self.time, &mut add).await?;
        let left_out = access.left_out();
        if left_out > 0 {
            remark(format_args!(
                "{left_out} hand-outs are not shown: there are too many different ones, take less time"
            ));
        }
        match self.output {
            Output::Table => print(table(&access.rows())),
            Output::Csv => print(csv(&access.rows()).trim_end()),
            Output::Json => {
                let [after, begins] = reach.json();
                let rows = access.json();
                let object = json!({"after": after, "log_begins": begins, "left_out": left_out, "access": rows});
                print_json(&object)?;
            }
        }
        Ok(())
    }
}

impl UnusedReport {
    async fn run(self) -> anyhow::Result<()> {
        let file = PolicyFile::load(&self.config, None)?;
        let mut unused = Unused::of(file.rules.iter().filter(|rule| !rule.deny).map(granted).collect());
        let mut records = match self.records {
            From::Store => Records::of_store(&self.config).await?,
            From::Broker => Records::of_broker(&self.operator).await?,
        };
        let mut add = |record: AuditRecord| {
            unused.add(&record);
            Ok(())
        };
        let reach = read(&mut records, &Time::since(Some(self.since)), &mut add).await?;
        if let (true, Some(begins)) = (reach.is_short(), reach.begins.and_then(shown)) {
            remark(format_args!(
                "the log does not go back that far: it begins {begins}. What was used before that looks unused here"
            ));
        }
        match self.output {
            Output::Table => print(table(&unused.rows())),
            Output::Csv => print(csv(&unused.rows()).trim_end()),
            Output::Json => {
                let [after, begins] = reach.json();
                let (far, rows) = (!reach.is_short(), unused.json());
                let object =
                    json!({"after": after, "log_begins": begins, "log_goes_back_that_far": far, "unused": rows});
                print_json(&object)?;
            }
        }
        Ok(())
    }
}

fn shown(time: SystemTime) -> Option<String> {
    Some(Timestamp::try_from(time).ok()?.to_string())
}

fn granted(rule: &RuleDocument) -> Granted {
    let ids = |ids: &Option<Vec<Guid>>| ids.iter().flatten().map(|id| id.0.to_string()).collect::<Vec<String>>();
    Granted {
        rule: rule.name.to_string(),
        targets: rule.targets.iter().map(ToString::to_string).collect(),
        objects: ids(&rule.subject.objects),
        clients: ids(&rule.subject.clients),
        tenants: ids(&rule.subject.tenants),
    }
}

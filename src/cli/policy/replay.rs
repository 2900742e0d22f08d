//! `carnet policy replay`: what changed rules would have made of the decisions that are on record.

mod recorded;
mod tally;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use self::recorded::Replay;
use crate::cli::broker::usage;
use crate::cli::records::{Source, Time};
use crate::cli::{Told, print, print_json, remark};
use crate::clock::{Clock as _, SystemClock};
use crate::config::PolicyFile;
use crate::proto::SearchAuditRequest;

/// Ask changed rules what is on record, and show what they decide otherwise
///
/// Each recorded exchange and each opening and use of a lease is asked again, as it was asked then, of whom it was asked:
/// who loses access, who gets it, and what is decided under another rule or for another life. A record keeps no names,
/// addresses and ages of tokens: decisions that hang on them are counted and not asked again. Lifetimes are compared where
/// a record tells what was planned. Exit code 0 where nothing changes, 1 where something does, 2 where a file is wrong.
#[derive(Debug, Args)]
pub(in crate::cli) struct ReplayRules {
    /// The changed rules: a configuration file, or one with `rules` and, where they differ, `targets` alone, which then
    /// needs --config; default: those of --config
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    time: Time,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// One JSON object
    Json,
}

impl ReplayRules {
    pub async fn run(self) -> anyhow::Result<()> {
        let (policy, config) = (self.policy.as_deref(), self.source.config());
        let path = policy.or(config).ok_or_else(|| usage("give the changed rules with --policy"))?;
        let file = PolicyFile::load(path, config).map_err(|error| usage(error.to_string()))?;
        let mut replay = Replay::of(file).map_err(|error| usage(error.to_string()))?;
        let asked = SearchAuditRequest { facts: true, ..self.time.message(SystemClock.now()) };
        let mut records = self.source.open().await?;
        records
            .all(&asked, &mut |record| {
                replay.take(record);
                Ok(())
            })
            .await?;
        let tally = replay.end();
        match self.output {
            Output::Table if tally.changes() == 0 => print("nothing changes"),
            Output::Table => print(tally.table()),
            Output::Json => print_json(&tally.json())?,
        }
        tally.summary().into_iter().for_each(remark);
        if tally.changes() > 0 { Err(Told.into()) } else { Ok(()) }
    }
}

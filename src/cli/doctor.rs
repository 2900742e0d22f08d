//! `carnet doctor`: what is wrong with a set-up, and what repairs it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{Told, print, print_json, remark, table};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::doctor::{self, Finding, Options, Reach, Severity};
use crate::line::{plain, plain_lines};
use crate::secret::Secret;
use crate::target;

/// Walk the real chain of a configuration and say what is wrong with each link, how badly, and what repairs it
///
/// The clouds are asked for short credentials as somebody whom the rules admit, and once as somebody whom they do not;
/// whatever they issue is dropped unread. Only the hosts of the configuration are called. Exit code 1 where anything is an
/// error.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "CARNET_CONFIG")]
    config: PathBuf,
    /// Only this target, and what it needs
    #[arg(long)]
    target: Option<String>,
    /// Leave out everything that calls another machine than the store's
    #[arg(long)]
    offline: bool,
    /// Ask as this object (`oid`), for bindings that name somebody; default: the rule's, or nobody
    #[arg(long = "as", value_name = "OBJECT_ID")]
    object: Option<String>,
    /// Value of an attribute of the rules, for bindings by it
    #[arg(long = "attribute", value_name = "NAME=VALUE")]
    attributes: Vec<String>,
    /// Try what the owner of this Entra token would get, too
    #[arg(long, value_name = "FILE")]
    subject_token_file: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Output {
    Table,
    Json,
}

impl Doctor {
    pub async fn run(self) -> anyhow::Result<()> {
        let config = Config::load(&self.config)?;
        let options = self.options(&config).await?;
        let findings = doctor::examine(&config, &options, Arc::new(SystemClock)).await?;
        match self.output {
            Output::Table => print(shown(&findings)),
            Output::Json => print_json(&json!({"findings": findings.iter().map(of).collect::<Vec<_>>()}))?,
        }
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        if errors > 0 {
            remark(format_args!("{errors} of {} findings are errors", findings.len()));
            return Err(Told.into());
        }
        Ok(())
    }

    async fn options(&self, config: &Config) -> anyhow::Result<Options> {
        if let Some(name) = &self.target
            && config.policy.targets().all(|target| target.name.as_str() != name)
        {
            bail!("the configuration has no target {name}");
        }
        let object = self.object.as_deref().map(target::guid).transpose().context("--as")?;
        let pair = |text: &String| {
            let pair = text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
            pair.with_context(|| format!("--attribute {text}: expected NAME=VALUE"))
        };
        let subject_token = match &self.subject_token_file {
            Some(path) => {
                let token = Secret::in_file(path).await;
                Some(token.with_context(|| format!("the subject token file {} cannot be read", path.display()))?)
            }
            None => None,
        };
        Ok(Options {
            target: self.target.clone(),
            reach: if self.offline { Reach::ThisMachine } else { Reach::Clouds },
            object,
            attributes: self.attributes.iter().map(pair).collect::<anyhow::Result<_>>()?,
            subject_token,
        })
    }
}

fn of(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity.as_str(),
        "code": finding.code,
        "about": finding.about,
        "seen": finding.seen,
        "advice": finding.advice,
        "commands": finding.commands,
    })
}

/// A line for each, the worst last, where a terminal shows it; then what repairs what is not in order.
fn shown(findings: &[Finding]) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.severity);
    let row = |finding: &&Finding| {
        [finding.severity.as_str(), &finding.about, &finding.code, &finding.seen].map(str::to_owned)
    };
    let head = ["SEVERITY", "ABOUT", "CODE", "SEEN"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(sorted.iter().map(row)).collect();
    let mut text = table::table(&rows);
    for finding in sorted {
        if finding.severity < Severity::Warning || (finding.advice.is_empty() && finding.commands.is_empty()) {
            continue;
        }
        text.push_str("\n\n# ");
        text.push_str(&plain(&format!("{} {}: {}", finding.about, finding.code, finding.advice)));
        for command in &finding.commands {
            text.push('\n');
            text.push_str(&plain_lines(command));
        }
    }
    text
}

//! `carnet policy test`: what rules say to a table of subjects and jobs, and what they should say.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::junit;
use crate::cli::broker::usage;
use crate::cli::{Told, print};
use crate::config::{Cases, PolicyFile};
use crate::line::plain;
use crate::policy::{Case, Tried};

/// Ask rules what a table of cases expects of them
///
/// No broker, no cloud and no token is needed: subjects are made from what the cases say. Exit code 1 where a case fails,
/// 2 where a file is wrong. `carnet explain --config FILE` tells the whole way of one decision.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLE)]
pub(in crate::cli) struct Test {
    /// The configuration file, or one with `rules` and, where they differ, `targets` alone
    file: PathBuf,
    /// The cases; default: policy.test.yaml beside FILE
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
    /// The configuration whose targets and tenants a file of rules alone goes with
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write the results as JUnit XML, too
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

const EXAMPLE: &str = r#"A file of cases:
  subjects:                    # those whom several cases are about
    runner: { kind: service_principal, roles: [Training.Submit] }
    alice: { kind: user, scopes: [jobs.submit], groups: [44444444-4444-4444-4444-444444444444] }
  cases:
    - name: runners train for up to three days
      subject: runner          # or written out here
      job: { name: vision, duration: 9h, labels: { team: vision }, datasets: [public] }
      target: vertex-training  # or `targets`, of which all have to be allowed
      expect: { decision: allowed, rule: vision-training, lifetime: 1h, bound: rule, lease: 594m }
    - name: people do not
      subject: alice
      target: vertex-training
      expect: denied

A subject: kind, tenant (default: the first of entra.tenants), object and client (default: made up), roles, groups (or the
  word overage), scopes, auth_contexts, claims (more of the token's), token_lifetime (what is left of it; default: 1h).
A case, besides: lifetime, scopes, token_type (access_token, id_token, jwt), audience (of an ID token), lease_duration,
  now (default: the file's, else 2026-01-01T00:00:00Z).
expect: allowed, denied, or a section with decision and what has to be so: rule (that allows or denies), lifetime, bound,
  lease (yes, no, or its length), reason (of a denial)."#;

/// A case with what came of it.
pub(super) struct Judged {
    pub line: Option<u64>,
    pub case: Case,
    pub tried: Tried,
}

impl Judged {
    pub fn failed(&self) -> bool {
        !self.tried.differences.is_empty()
    }

    /// What differs, a line each, and why it is so.
    pub fn told(&self) -> Vec<String> {
        let differences = self.tried.differences.iter();
        let differs = differences.map(|it| format!("{}: expected {}, is {}", it.what, it.expected, it.actual));
        differs.chain([format!("because: {}", self.tried.why)]).collect()
    }
}

impl Test {
    pub fn run(self) -> anyhow::Result<()> {
        let file = PolicyFile::load(&self.file, self.config.as_deref()).map_err(|error| usage(error.to_string()))?;
        let path = self.cases.unwrap_or_else(|| Cases::beside(&self.file));
        let cases = Cases::load(&path, file.tenants.first().copied()).map_err(|error| usage(error.to_string()))?;
        let rules: Vec<String> = file.rules.iter().map(|rule| rule.name.to_string()).collect();
        let policy = file.policy().map_err(|error| usage(error.to_string()))?;
        let tried = |(line, case): (Option<u64>, Case)| Judged { line, tried: policy.try_case(&case), case };
        let results: Vec<Judged> = cases.cases.into_iter().map(tried).collect();
        print(shown(&results, &rules));
        if let Some(junit) = &self.junit {
            let suite = self.file.display().to_string();
            let text = junit::document(&suite, &path.display().to_string(), &results);
            std::fs::write(junit, text).with_context(|| format!("cannot write {}", junit.display()))?;
        }
        if results.iter().any(Judged::failed) { Err(Told.into()) } else { Ok(()) }
    }
}

/// `rules`: all that there are.
fn shown(results: &[Judged], rules: &[String]) -> String {
    let mut text = String::new();
    for result in results {
        let word = if result.failed() { "FAILED" } else { "ok    " };
        let _ = writeln!(text, "{word}  {}", plain(&result.case.name));
        if result.failed() {
            for line in result.told() {
                let _ = writeln!(text, "          {}", plain(&line));
            }
            if let Some(line) = result.line {
                let _ = writeln!(text, "          the case stands at line {line}");
            }
        }
    }
    let failed = results.iter().filter(|result| result.failed()).count();
    let _ = write!(text, "\ncases: {}, ok: {}, failed: {failed}", results.len(), results.len() - failed);
    let decided: BTreeSet<&str> =
        results.iter().flat_map(|result| &result.tried.rules).map(|rule| rule.as_str()).collect();
    let unused: Vec<&str> = rules.iter().map(String::as_str).filter(|rule| !decided.contains(rule)).collect();
    if !unused.is_empty() {
        let _ = write!(text, "\nno case is decided by: {}", unused.join(", "));
    }
    text
}

//! `carnet policy check`: what is wrong with rules, or probably not meant, for people and for pipelines.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::cli::table::table;
use crate::cli::{Told, print, print_json, remark};
use crate::config::PolicyFile;
use crate::policy::{Code, Finding, Severity};

/// Report what is wrong with rules, or probably not meant
///
/// Beyond `carnet config check`: rules that are never reached, subjects that are too wide or that nobody can have, deny
/// rules that miss whom they are for, conditions that always hold or never do. What only a running broker needs, such as
/// `${env:STORE_KEY}`, need not be there. Exit code 1 where there are errors.
#[derive(Debug, Args)]
#[command(after_long_help = codes())]
pub(in crate::cli) struct Check {
    /// The configuration file, or one with `rules` and, where they differ, `targets` alone
    file: PathBuf,
    /// The configuration whose targets and tenants a file of rules alone goes with
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Exit with 1 where there are warnings, too
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// One JSON object
    Json,
    /// SARIF 2.1.0, which code hosts show beside the lines of a change
    Sarif,
}

/// A finding with its line.
struct Placed {
    line: Option<u64>,
    finding: Finding,
}

impl Check {
    pub fn run(self) -> anyhow::Result<()> {
        let file = PolicyFile::load(&self.file, self.config.as_deref())?;
        let findings = file.draft().check().into_iter();
        let mut findings: Vec<Placed> =
            findings.map(|finding| Placed { line: file.line(&finding.at), finding }).collect();
        findings.sort_by_key(|placed| (placed.line, placed.finding.code));
        let shown = self.file.display().to_string();
        match self.output {
            Output::Table if findings.is_empty() => {
                print(format!("{shown}: nothing found ({} rules)", file.rules.len()))
            }
            Output::Table => print(rows(&findings)),
            Output::Json => print_json(&json(&shown, &findings))?,
            Output::Sarif => print_json(&sarif(&shown, &findings))?,
        }
        let count = |severity| findings.iter().filter(|placed| placed.finding.code.severity() == severity).count();
        let [errors, warnings, notes] = [Severity::Error, Severity::Warning, Severity::Note].map(count);
        if !findings.is_empty() {
            remark(format_args!("{shown}: errors: {errors}, warnings: {warnings}, notes: {notes}"));
        }
        if errors > 0 || (self.strict && warnings > 0) { Err(Told.into()) } else { Ok(()) }
    }
}

fn rows(findings: &[Placed]) -> String {
    let mut rows = vec![["LINE", "SEVERITY", "CODE", "WHAT, AND WHAT TO CHANGE"].map(str::to_owned)];
    for Placed { line, finding } in findings {
        let line = line.map_or_else(|| "-".to_owned(), |line| line.to_string());
        let (severity, code) = (finding.code.severity().as_str(), finding.code.as_str());
        rows.push([line, severity.to_owned(), code.to_owned(), format!("{}: {}", finding.at, finding.message)]);
        rows.push([String::new(), String::new(), String::new(), finding.change.clone()]);
    }
    table(&rows)
}

fn json(file: &str, findings: &[Placed]) -> Value {
    let finding = |Placed { line, finding }: &Placed| {
        json!({
            "code": finding.code.as_str(),
            "severity": finding.code.severity().as_str(),
            "line": line,
            "at": finding.at,
            "message": finding.message,
            "change": finding.change,
        })
    };
    json!({"file": file, "findings": findings.iter().map(finding).collect::<Vec<_>>()})
}

fn sarif(file: &str, findings: &[Placed]) -> Value {
    let rule = |code: &Code| {
        json!({
            "id": code.as_str(),
            "shortDescription": {"text": code.meaning()},
            "defaultConfiguration": {"level": code.severity().as_str()},
        })
    };
    let result = |Placed { line, finding }: &Placed| {
        let mut place = json!({"artifactLocation": {"uri": file.replace('\\', "/")}});
        if let (Some(line), Some(place)) = (line, place.as_object_mut()) {
            place.insert("region".to_owned(), json!({"startLine": line}));
        }
        json!({
            "ruleId": finding.code.as_str(),
            "level": finding.code.severity().as_str(),
            "message": {"text": format!("{}: {}. {}", finding.at, finding.message, finding.change)},
            "locations": [{"physicalLocation": place}],
        })
    };
    let driver = json!({
        "name": "carnet policy check",
        "version": env!("CARGO_PKG_VERSION"),
        "rules": Code::ALL.iter().map(rule).collect::<Vec<_>>(),
    });
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": findings.iter().map(result).collect::<Vec<_>>()}],
    })
}

/// The list in the long help.
fn codes() -> String {
    let line = |code: &Code| format!("  {}  {:8} {}", code.as_str(), code.severity().as_str(), code.meaning());
    let lines: Vec<String> = Code::ALL.iter().map(line).collect();
    format!("Findings, by code, which keeps its meaning:\n{}", lines.join("\n"))
}

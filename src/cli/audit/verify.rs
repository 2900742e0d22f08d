//! `carnet audit verify`: whether the log in a store is the one that was written.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::Output;
use crate::app::{rfc3339, statement_keys};
use crate::audit::{Fault, Report, Scope, Signatures, Verification};
use crate::cli::request::span;
use crate::cli::{Told, print, print_json, remark};
use crate::clock::{Clock as _, SystemClock};
use crate::config::Config;
use crate::issuer::StatementKeys;
use crate::line::plain;
use crate::store::open_to_read;
use crate::target::Span;

/// Check that no record was changed, taken out, added or moved
///
/// Walks every chain of the store, beside its brokers or without one, and changes nothing. Names the first bad record of
/// each chain. Ends with 0 where the log is whole and with 1 where it is not.
///
/// Proven is what a checkpoint covers: brokers sign one every minute with the issuer's key. Whoever can write the store can
/// cut off the end of a log together with its checkpoints. Another replica, or the next start, names how far a chain came;
/// where there is none yet, only what is kept elsewhere shows it: exports, or the brokers' own logs (telemetry.log: json),
/// which name the last record at each checkpoint. Both go to --against.
#[derive(Debug, Args)]
pub(in crate::cli) struct Verify {
    /// The configuration file of the store's brokers
    #[arg(long, value_name = "FILE", env = "CARNET_CONFIG")]
    config: PathBuf,
    /// Begin at the last checkpoint that was signed at least this long ago, such as 30d; what is before it is believed
    #[arg(long, value_name = "DURATION", value_parser = span)]
    since: Option<Span>,
    /// Also compare with what `carnet audit export` printed, or with the log of a broker as JSON lines, whose `audit.head`
    /// is compared; may be given several times
    #[arg(long, value_name = "FILE.jsonl")]
    against: Vec<PathBuf>,
    /// More public keys of the issuer, as `carnet issuer jwks` printed them before keys were changed; may be given
    /// several times
    #[arg(long, value_name = "FILE")]
    jwks: Vec<PathBuf>,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

impl Verify {
    pub async fn run(self) -> anyhow::Result<()> {
        let config = Config::load(&self.config)?;
        let now = SystemClock.now();
        let scope = Scope {
            keys: self.keys(&config).await?,
            signatures: if config.issuer.is_some() { Signatures::Expected } else { Signatures::None },
            retention: config.retention,
            since: self.since.and_then(|since| now.checked_sub(since.0)),
            now,
        };
        let mut verification = Verification::new(open_to_read(&config.store).await?, scope);
        verification.chains().await?;
        for path in &self.against {
            let named = || path.display().to_string();
            let export = File::open(path).with_context(named)?;
            verification.against(BufReader::new(export)).await.with_context(named)?;
        }
        let report = verification.into_report();
        match self.output {
            Output::Table => print(text(&report)),
            Output::Json => print_json(&json(&report))?,
        }
        if report.faults.is_empty() { Ok(()) } else { Err(Told.into()) }
    }

    async fn keys(&self, config: &Config) -> anyhow::Result<StatementKeys> {
        let mut keys = match statement_keys(config).await {
            Ok(keys) => keys,
            // With others, the log can be verified where nobody may know the issuer's own.
            Err(error) if !self.jwks.is_empty() => {
                remark(format_args!("the issuer's keys cannot be read, only those of --jwks are used: {error:#}"));
                StatementKeys::default()
            }
            Err(error) => return Err(error.context("the issuer's keys; --jwks brings its public keys from a file")),
        };
        for path in &self.jwks {
            let named = || format!("the keys of {}", path.display());
            let text = std::fs::read_to_string(path).with_context(named)?;
            keys = keys.and(StatementKeys::from_jwks(&text).with_context(named)?);
        }
        Ok(keys)
    }
}

fn text(report: &Report) -> String {
    let Report { chains, records, signed, unsigned, newer, unchained, facts, .. } = report;
    let Report { exported, heads, exported_before, .. } = report;
    let mut lines = vec![format!("{records} records in {chains} chains")];
    lines.push(format!("  {signed} covered by a signed checkpoint"));
    if *unsigned > 0 {
        lines.push(format!(
            "  {unsigned} covered by an unsigned checkpoint only: whoever can write the store could have rewritten them"
        ));
    }
    if *newer > 0 {
        lines.push(format!("  {newer} newer than the last checkpoint that can be checked"));
    }
    if *unchained > 0 {
        lines.push(format!("{unchained} records are older than the chain: nothing can be said of them"));
    }
    for (kid, checkpoints) in &report.unknown_keys {
        lines.push(format!(
            "{checkpoints} checkpoints are signed by the key {kid}, which is not known here: --jwks may bring it"
        ));
    }
    for (kid, checkpoints) in &report.untimely_keys {
        lines.push(format!(
            "{checkpoints} checkpoints are signed by the key {kid} at times when it did not sign: they prove nothing"
        ));
    }
    if *facts > 0 {
        lines.push(format!("{facts} sets of facts that decisions were made of"));
    }
    if *heads > 0 {
        lines.push(format!("{heads} heads of brokers' logs compared"));
    }
    if *exported > 0 {
        lines.push(format!("{exported} exported records compared"));
    }
    if *exported_before > 0 {
        lines.push(format!("  {exported_before} of what was compared were dropped since, because of their age"));
    }
    if report.faults.is_empty() {
        lines.push("whole".to_owned());
        return lines.join("\n");
    }
    lines.push("BROKEN".to_owned());
    lines.extend(report.faults.iter().map(told));
    lines.join("\n")
}

/// One fault in one line.
fn told(fault: &Fault) -> String {
    let chain = fault.chain.map(|chain| format!(" chain {chain} record {}", fault.position)).unwrap_or_default();
    let exchange =
        if fault.exchange_id.is_empty() { String::new() } else { format!(" exchange {}", fault.exchange_id) };
    let time = fault.time.map(|time: SystemTime| format!(" of {}", rfc3339(time))).unwrap_or_default();
    let text = format!("  {}:{chain}{time}{exchange}: {}", fault.kind.as_str(), fault.detail);
    // The store's writer may have chosen it.
    plain(&text).into_owned()
}

fn json(report: &Report) -> Value {
    let fault = |fault: &Fault| {
        json!({
            "kind": fault.kind.as_str(),
            "chain": fault.chain,
            "sequence": fault.position,
            "exchange_id": (!fault.exchange_id.is_empty()).then_some(&fault.exchange_id),
            "time": fault.time.map(rfc3339),
            "detail": fault.detail,
        })
    };
    json!({
        "whole": report.faults.is_empty(),
        "faults": report.faults.iter().map(fault).collect::<Vec<_>>(),
        "chains": report.chains,
        "records": report.records,
        "signed": report.signed,
        "unsigned": report.unsigned,
        "newer": report.newer,
        "unchained": report.unchained,
        "unknown_keys": report.unknown_keys,
        "untimely_keys": report.untimely_keys,
        "facts": report.facts,
        "heads": report.heads,
        "exported": report.exported,
        "exported_before": report.exported_before,
    })
}

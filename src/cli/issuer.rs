//! `carnet issuer`: the broker's keys, for those who have to trust or change them.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::{print, print_json, remark};
use crate::app::{self, KeySource, rfc3339};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, IssuerSettings};
use crate::issuer::{Algorithm, Issuer as OidcIssuer, KeyStatus, Rotated, Rotation};

/// The first keys are made where there are none yet.
#[derive(Debug, Subcommand)]
pub(super) enum Issuer {
    /// Print the JWKS, for upload to a Google provider (`--jwk-json-path`)
    Jwks {
        #[command(flatten)]
        file: File,
    },
    /// List the keys: what each is for, and when it begins to sign and is withdrawn
    Keys {
        #[command(flatten)]
        file: File,
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Make new keys now that sign after `issuer.publish_ahead`; running brokers notice within 30 s
    Rotate {
        #[command(flatten)]
        file: File,
        /// Only the key of this algorithm; default: both
        #[arg(long, value_enum)]
        algorithm: Option<AlgorithmName>,
        /// For a leaked key: the new key signs at once and the old ones are withdrawn at once, which refuses what they
        /// signed
        #[arg(long)]
        now: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct File {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "CARNET_CONFIG")]
    config: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Output {
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum AlgorithmName {
    #[value(name = "ES256")]
    Es256,
    #[value(name = "RS256")]
    Rs256,
}

impl Issuer {
    pub async fn run(self) -> anyhow::Result<()> {
        let clock = Arc::new(SystemClock);
        match self {
            Self::Jwks { file } => {
                let (settings, source) = file.open(clock.clone()).await?;
                let issuer = OidcIssuer::new(settings.url, source.load().await?, clock);
                print_json(&issuer.jwks())?;
            }
            Self::Keys { file, output } => {
                let (_settings, source) = file.open(clock.clone()).await?;
                let keys = source.status(&*clock).await?;
                match output {
                    Output::Table => print(table(&keys)),
                    Output::Json => print_json(&json(&keys))?,
                }
                if matches!(source, KeySource::Files(_)) {
                    remark("these keys are rotated by changing the files of issuer.key_files");
                }
            }
            Self::Rotate { file, algorithm, now } => {
                let (_settings, source) = file.open(clock).await?;
                let KeySource::Store(rotation) = source else { bail!(ROTATED_BY_FILES) };
                let algorithms = match algorithm {
                    Some(AlgorithmName::Es256) => vec![Algorithm::Es256],
                    Some(AlgorithmName::Rs256) => vec![Algorithm::Rs256],
                    None => Algorithm::ALL.to_vec(),
                };
                if now { replace(&rotation, algorithms).await? } else { rotate(&rotation, algorithms).await? }
            }
        }
        Ok(())
    }
}

impl File {
    async fn open(&self, clock: Arc<dyn Clock>) -> anyhow::Result<(IssuerSettings, KeySource)> {
        let config = Config::load(&self.config)?;
        let source = app::key_source(&config, clock).await?;
        config.issuer.zip(source).context("the configuration has no `issuer`")
    }
}

async fn rotate(rotation: &Rotation, algorithms: Vec<Algorithm>) -> anyhow::Result<()> {
    let mut first = None;
    for algorithm in algorithms {
        let (next, made) = match rotation.rotate(algorithm).await? {
            Rotated::Made(next) => (next, "made"),
            Rotated::Waiting(next) => (next, "waiting already"),
        };
        print(format!("{} {}: {made}, signs from {}", next.algorithm.as_str(), next.kid, shown(next.signs_from)));
        first = [first, next.signs_from].into_iter().flatten().min();
    }
    remark(format!(
        "where the keys are uploaded instead of fetched, as at a Google provider with --jwk-json-path, upload what \
         `carnet issuer jwks` prints before {}: otherwise exchanges are refused from then on",
        shown(first)
    ));
    Ok(())
}

async fn replace(rotation: &Rotation, algorithms: Vec<Algorithm>) -> anyhow::Result<()> {
    for algorithm in algorithms {
        let key = rotation.replace(algorithm).await?;
        print(format!("{} {}: made, signs at once; the older ones are withdrawn", algorithm.as_str(), key.kid));
    }
    remark(
        "assertions of the old keys that are under way are refused, and so are new ones until a cloud fetches the keys \
         anew. Where the keys are uploaded, upload what `carnet issuer jwks` prints at once: until then that cloud \
         refuses the new keys and accepts the old ones",
    );
    Ok(())
}

fn table(keys: &[KeyStatus]) -> String {
    let row = |kid: &str, algorithm: &str, state: &str, created: &str, from: &str, after: &str| {
        format!("{kid:<43}  {algorithm:<9}  {state:<9}  {created:<20}  {from:<20}  {after}").trim_end().to_owned()
    };
    let head = row("KID", "ALGORITHM", "STATE", "CREATED", "SIGNS FROM", "WITHDRAWN AFTER");
    let rows = keys.iter().map(|key| {
        let [created, from, after] = [key.created_at, key.signs_from, key.withdrawn_after].map(shown);
        row(&key.kid, key.algorithm.as_str(), key.phase.as_str(), &created, &from, &after)
    });
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}

fn json(keys: &[KeyStatus]) -> Value {
    let key = |key: &KeyStatus| {
        json!({
            "kid": key.kid,
            "algorithm": key.algorithm.as_str(),
            "state": key.phase.as_str(),
            "created_at": key.created_at.map(rfc3339),
            "signs_from": key.signs_from.map(rfc3339),
            "withdrawn_after": key.withdrawn_after.map(rfc3339),
        })
    };
    json!({"keys": keys.iter().map(key).collect::<Vec<_>>()})
}

fn shown(time: Option<std::time::SystemTime>) -> String {
    time.map_or_else(|| "-".to_owned(), rfc3339)
}

const ROTATED_BY_FILES: &str = "the keys are those of issuer.key_files and are rotated there: add the new key behind the \
                                old one of its algorithm, wait a day, and change their places";

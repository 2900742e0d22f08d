//! `carnet credential google-config`: the `external_account` file that Google's libraries read (AIP-4117).

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::credentials;
use crate::cli::broker::{Broker, SubjectToken, usage};
use crate::cli::remark;
use crate::cli::request::span;
use crate::http::Endpoint;
use crate::proto::credential::Identity;
use crate::target::{PoolProvider, ServiceAccount, Span, TokenType};

/// Write the file that makes Google's own libraries ask the broker; it holds no secret
///
/// The libraries read it from GOOGLE_APPLICATION_CREDENTIALS. With --via broker they
/// exchange the caller's Entra token at the broker's token endpoint. With --via google they
/// get the broker's assertion by running this program and redeem it at Google themselves:
/// the target's configuration must say `hand_out_assertion: true`, and Google alone then
/// bounds scopes and lifetime.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Config {
    /// Name of a Google target in the broker's configuration
    #[arg(long, value_name = "TARGET", env = "CARNET_TARGET")]
    target: String,
    /// Where to write the file
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite FILE whatever it is
    #[arg(long)]
    force: bool,
    #[arg(long, value_enum, default_value_t = Via::Broker)]
    via: Via,
    /// The broker's HTTP listener: https://, or http:// on loopback (Google's library for Java takes https:// only)
    #[arg(long, value_name = "URL", env = "CARNET_HTTP_ADDRESS", default_value = "http://127.0.0.1:7080")]
    http_address: Endpoint,
    /// This program's path where the file will be used; by default the path here
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    #[command(flatten)]
    google: AtGoogle,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    subject_token: SubjectToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Via {
    Broker,
    Google,
}

/// With --via google.
#[derive(Debug, Args)]
struct AtGoogle {
    /// The target's provider, //iam.googleapis.com/...; without it, the broker is asked for credentials that tell it
    #[arg(long, value_name = "NAME")]
    provider: Option<PoolProvider>,
    /// Whom to impersonate, with --provider; without that, it is the target's
    #[arg(long, value_name = "ACCOUNT", requires = "provider")]
    service_account: Option<ServiceAccount>,
    /// Life of the impersonated tokens, 10m to 12h
    #[arg(long, value_name = "DURATION", value_parser = span)]
    token_lifetime: Option<Span>,
    #[arg(long, value_name = "URL", default_value = "https://sts.googleapis.com")]
    sts_endpoint: Endpoint,
    #[arg(long, value_name = "URL", default_value = "https://iamcredentials.googleapis.com")]
    iam_credentials_endpoint: Endpoint,
}

impl Config {
    pub async fn run(self) -> anyhow::Result<()> {
        self.may_write()?;
        let file = match self.via {
            Via::Broker => self.via_broker()?,
            Via::Google => self.via_google().await?,
        };
        let mut text = serde_json::to_string_pretty(&file)?;
        text.push('\n');
        fs::write(&self.output, text).with_context(|| format!("{} cannot be written", self.output.display()))?;
        self.tell(&file);
        Ok(())
    }

    fn via_broker(&self) -> anyhow::Result<Value> {
        if self.google.provider.is_some() || self.google.token_lifetime.is_some() {
            return Err(usage("--provider, --service-account and --token-lifetime go with --via google"));
        }
        let source = match self.subject_token.absolute_file()? {
            Some(path) => json!({"file": path}),
            None => self.executable(Vec::new())?,
        };
        Ok(json!({
            "type": TYPE,
            "audience": self.target,
            "subject_token_type": TokenType::Jwt.urn(),
            "token_url": self.http_address.join("v1/token"),
            "token_info_url": self.http_address.join("v1/introspect"),
            "credential_source": source,
        }))
    }

    async fn via_google(&self) -> anyhow::Result<Value> {
        let google = &self.google;
        let source = self.executable(vec!["--assertion-for".to_owned(), self.target.clone()])?;
        let (provider, service_account) = match &google.provider {
            Some(provider) => (provider.clone(), google.service_account.clone()),
            None => self.ask().await?,
        };
        let mut file = json!({
            "type": TYPE,
            "audience": provider.as_str(),
            "subject_token_type": TokenType::Jwt.urn(),
            "token_url": google.sts_endpoint.join("v1/token"),
            "token_info_url": google.sts_endpoint.join("v1/introspect"),
            "credential_source": source,
        });
        let lifetime = google.token_lifetime.map(|span| span.0.as_secs());
        match (service_account, file.as_object_mut()) {
            (Some(account), Some(fields)) => {
                let path = format!("v1/projects/-/serviceAccounts/{account}:generateAccessToken");
                let url = google.iam_credentials_endpoint.join(&path);
                fields.insert("service_account_impersonation_url".to_owned(), json!(url));
                if let Some(seconds) = lifetime {
                    if !GOOGLE_LIFETIMES.contains(&seconds) {
                        return Err(usage("--token-lifetime is between 10m and 12h"));
                    }
                    let nested = json!({"token_lifetime_seconds": seconds});
                    fields.insert("service_account_impersonation".to_owned(), nested);
                }
            }
            (None, _) if lifetime.is_some() => {
                return Err(usage("--token-lifetime is that of a service account's tokens, and there is none here"));
            }
            _ => {}
        }
        Ok(file)
    }

    /// The provider stands in the assertion, the service account in the answer for an access token.
    async fn ask(&self) -> anyhow::Result<(PoolProvider, Option<ServiceAccount>)> {
        let types = [TokenType::Jwt, TokenType::AccessToken];
        let asked = credentials(&self.broker, &self.subject_token, &self.target, types).await;
        let [assertion, access_token] = asked.context(
            "the target's provider and service account are not known: the broker does not give the credentials that \
             tell them. Give --provider and --service-account, or mend this",
        )?;
        let payload = assertion.token.split('.').nth(1).unwrap_or_default();
        let claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap_or_default())
            .context("the broker's assertion cannot be read")?;
        let provider = claims.get("aud").and_then(Value::as_str).unwrap_or_default().parse()?;
        let account = match &access_token.identity {
            Some(Identity::Google(google)) if !google.service_account.is_empty() => {
                Some(google.service_account.parse()?)
            }
            Some(_) | None => None,
        };
        Ok((provider, account))
    }

    fn executable(&self, mut arguments: Vec<String>) -> anyhow::Result<Value> {
        arguments.extend(self.broker.arguments()?);
        arguments.extend(self.subject_token.arguments()?);
        let program = match &self.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("the path of this program is not known: give --program")?,
        };
        let program = program.to_str().context("this program's path is not text: give --program")?;
        let command = [program, "credential", "google-executable"];
        let words: Vec<&str> = command.into_iter().chain(arguments.iter().map(String::as_str)).collect();
        // Some libraries split the command as a shell does, others at every blank.
        let unsafe_word =
            |word: &&&str| word.is_empty() || word.contains(|c: char| !c.is_ascii_graphic() || "'\"\\`$".contains(c));
        if let Some(word) = words.iter().find(unsafe_word) {
            return Err(usage(format!(
                "`{word}` would stand in the file's command, which clients split at blanks: it can have no blank, \
                 quote, backslash or `$`. Link or move what it names"
            )));
        }
        Ok(json!({"executable": {"command": words.join(" "), "timeout_millis": TIMEOUT_MILLIS}}))
    }

    /// Somebody's key file or anything else is not lost by a wrong name.
    fn may_write(&self) -> anyhow::Result<()> {
        if self.force || !self.output.exists() {
            return Ok(());
        }
        let text = fs::read(&self.output).unwrap_or_default();
        let found: Value = serde_json::from_slice(&text).unwrap_or_default();
        if found.get("type").and_then(Value::as_str) == Some(TYPE) {
            return Ok(());
        }
        bail!("{} exists and is no `{TYPE}` file: give another --output, or --force", self.output.display())
    }

    /// What the file's users need besides it.
    fn tell(&self, file: &Value) {
        let source = file.get("credential_source");
        let executable = source.is_some_and(|source| source.get("executable").is_some());
        let allow = if executable { "\n  export GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES=1" } else { "" };
        let path = std::path::absolute(&self.output).unwrap_or_else(|_unknown| self.output.clone());
        remark(format_args!(
            "for Google's libraries, with the project that they are to work in:\n  export \
             GOOGLE_APPLICATION_CREDENTIALS={}{allow}\n  export GOOGLE_CLOUD_PROJECT=PROJECT",
            path.display()
        ));
        if self.via == Via::Broker && self.http_address.as_str().starts_with("http://") {
            remark("Google's library for Java refuses a token_url without https://");
        }
    }
}

const TYPE: &str = "external_account";

/// Seconds (Google: `service_account_impersonation.token_lifetime_seconds`).
const GOOGLE_LIFETIMES: std::ops::RangeInclusive<u64> = 600..=43_200;

/// Longer than a call of the broker may take; libraries allow up to 120 s.
const TIMEOUT_MILLIS: u32 = 45_000;

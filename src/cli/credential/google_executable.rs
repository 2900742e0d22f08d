//! `carnet credential google-executable`: what Google's libraries run for a subject token (AIP-4117, executable-sourced
//! credentials).

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::credentials;
use crate::cli::broker::{Broker, SubjectToken};
use crate::cli::private_file::PrivateFile;
use crate::cli::{Ended, Exit, print};
use crate::clock::{Clock, SystemClock, unix_seconds};
use crate::target::TokenType;

/// Google's libraries: the subject token of an `external_account` file, see google-config
///
/// Prints the caller's Entra token, for a `token_url` that is the broker's; with
/// --assertion-for the broker's own assertion, for Google's. Failures are told in the
/// answer, with exit code 0; nothing goes to standard error, which some libraries mix
/// into the answer.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Executable {
    /// Print the assertion that the broker signs for this Google target, which its configuration must allow
    #[arg(long, value_name = "TARGET", env = "CARNET_ASSERTION_FOR")]
    assertion_for: Option<String>,
    /// The `audience` of the file: with --assertion-for, no assertion for another one is printed
    #[arg(long, value_name = "NAME", env = "GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE")]
    google_audience: Option<String>,
    /// The `subject_token_type` of the file
    #[arg(long, value_name = "URN", env = "GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE", default_value = TokenType::Jwt.urn())]
    token_type: String,
    /// Write a good answer to this file too, which only its owner can read
    #[arg(long, value_name = "FILE", env = "GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE")]
    output_file: Option<PathBuf>,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    subject_token: SubjectToken,
}

/// Read by nobody who decides anything: the one who redeems the token verifies it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct UnverifiedClaims {
    pub exp: Option<u64>,
    pub aud: Option<Value>,
}

impl Executable {
    /// Libraries take every other exit code than 0 for a crash, whatever the answer says.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.answer().await {
            Ok(answer) => print(answer),
            Err(error) => print(self.failure(&error)),
        }
        Ok(())
    }

    async fn answer(&self) -> anyhow::Result<Value> {
        if ![TokenType::Jwt, TokenType::IdToken].iter().any(|known| known.urn() == self.token_type) {
            bail!("the token is a JWT: have the file say \"subject_token_type\": \"{}\"", TokenType::Jwt.urn());
        }
        let token = match &self.assertion_for {
            Some(target) => {
                let [assertion] = credentials(&self.broker, &self.subject_token, target, [TokenType::Jwt]).await?;
                assertion.token
            }
            None => self.subject_token.token(&self.broker).await?,
        };
        let claims = unverified_claims(&token);
        if let (Some(_), Some(wanted), Some(given)) = (&self.assertion_for, &self.google_audience, &claims.aud)
            && given.as_str() != Some(wanted)
        {
            bail!("the file's audience is {wanted}, and the target's assertion is for {given}: write the file anew");
        }
        let mut answer = json!({
            "version": 1,
            "success": true,
            "token_type": self.token_type,
            "id_token": token,
        });
        if let (Some(exp), Some(fields)) = (claims.exp, answer.as_object_mut()) {
            if exp <= unix_seconds(now()) {
                bail!("the subject token has expired: whatever issues it has to renew it");
            }
            fields.insert("expiration_time".to_owned(), json!(exp));
        }
        if let Some(path) = &self.output_file {
            if claims.exp.is_none() {
                bail!("the subject token does not say when it ends, so it cannot be kept in an output file");
            }
            write(path, &answer)?;
        }
        Ok(answer)
    }

    fn failure(&self, error: &anyhow::Error) -> Value {
        let exit = error.downcast_ref::<Ended>().map_or(Exit::Failed, |ended| ended.exit);
        let code = match exit {
            Exit::Failed => "FAILED",
            Exit::Usage => "USAGE",
            Exit::Denied => "DENIED",
            Exit::SubjectToken => "SUBJECT_TOKEN_REFUSED",
            Exit::Unavailable => "UNAVAILABLE",
        };
        // Google's Rust library wants the type of a failure, too.
        json!({
            "version": 1,
            "success": false,
            "token_type": self.token_type,
            "code": code,
            "message": format!("{error:#}"),
        })
    }
}

fn write(path: &Path, answer: &Value) -> anyhow::Result<()> {
    let write = |file: PrivateFile| file.write(&answer.to_string());
    let written = PrivateFile::prepare(path).and_then(write);
    written.with_context(|| format!("the output file {} cannot be written", path.display()))
}

/// Of an opaque token: none.
pub(super) fn unverified_claims(token: &str) -> UnverifiedClaims {
    let payload = token.split('.').nth(1).unwrap_or_default();
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn now() -> SystemTime {
    SystemClock.now()
}

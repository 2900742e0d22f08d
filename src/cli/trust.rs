//! `carnet trust`: the commands that make Google and Entra trust this broker, with the configuration's own values.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::print;
use crate::config::Config;
use crate::target::{AzureSource, Platform, Target};
use crate::trust::{self, Format, Holder, Keys, Presented, Wishes};

/// Print what has to be set up at a cloud for a target; nothing is called
#[derive(Debug, Subcommand)]
pub(super) enum Trust {
    /// Pool, provider and bindings. The provider takes only what the target's rules lead to: its attribute condition
    /// names the tenants and the rules
    Google {
        #[command(flatten)]
        of: Of,
        #[arg(long, value_enum, default_value_t = GoogleFormat::Gcloud)]
        format: GoogleFormat,
        /// Upload the issuer's keys, for an issuer that Google cannot reach
        #[arg(long)]
        jwks: bool,
    },
    /// The federated identity credential, and the role that the identity needs
    Azure {
        #[command(flatten)]
        of: Of,
        #[arg(long, value_enum, default_value_t = AzureFormat::Az)]
        format: AzureFormat,
        /// What has the target's client id; default: an application for `source: on_behalf_of`, else a managed identity
        #[arg(long, value_enum)]
        holder: Option<HolderName>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Of {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "CARNET_CONFIG")]
    config: PathBuf,
    /// Name of a target in the configuration
    #[arg(long)]
    target: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum GoogleFormat {
    Gcloud,
    Terraform,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum AzureFormat {
    Az,
    Terraform,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum HolderName {
    ManagedIdentity,
    Application,
}

impl Trust {
    pub async fn run(self) -> anyhow::Result<()> {
        let (of, format, keys, holder) = match &self {
            Self::Google { of, format, jwks } => {
                let format = match format {
                    GoogleFormat::Gcloud => Format::Shell,
                    GoogleFormat::Terraform => Format::Terraform,
                };
                (of, format, if *jwks { Keys::Uploaded } else { Keys::Fetched }, None)
            }
            Self::Azure { of, format, holder } => {
                let format = match format {
                    AzureFormat::Az => Format::Shell,
                    AzureFormat::Terraform => Format::Terraform,
                };
                let holder = holder.map(|holder| match holder {
                    HolderName::ManagedIdentity => Holder::ManagedIdentity,
                    HolderName::Application => Holder::Application,
                });
                (of, format, Keys::Fetched, holder)
            }
        };
        let config = Config::load(&of.config)?;
        let target = config.policy.targets().find(|target| target.name.as_str() == of.target);
        let target = target.with_context(|| format!("the configuration has no target {}", of.target))?;
        match (&self, &target.platform) {
            (Self::Google { .. }, Platform::Google(_)) | (Self::Azure { .. }, Platform::Azure(_)) => {}
            (Self::Google { .. }, Platform::Azure(_)) => {
                bail!("{} is an Azure target: carnet trust azure", target.name)
            }
            (Self::Azure { .. }, Platform::Google(_)) => {
                bail!("{} is a Google target: carnet trust google", target.name)
            }
        }
        let presented = presented(target);
        let path = of.config.display().to_string();
        let wishes = Wishes { config: &path, keys, holder, presented: presented.as_ref() };
        let issuer = config.issuer.as_ref().map(|issuer| issuer.url.as_str());
        let trust = trust::Trust { target, issuer, entra: &config.entra, policy: &config.policy };
        print(trust.set_up(format, &wishes)?);
        Ok(())
    }
}

/// What the token file says of itself, where there is one on this machine: the values that the credential needs.
fn presented(target: &Target) -> Option<Presented> {
    let Platform::Azure(azure) = &target.platform else { return None };
    let AzureSource::TokenFile(path) = &azure.source else { return None };
    let token = std::fs::read_to_string(path).ok()?;
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let claim = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
    let audience = claim("aud").or_else(|| Some(claims.get("aud")?.get(0)?.as_str()?.to_owned()));
    Some(Presented { issuer: claim("iss")?, subject: claim("sub")?, audience: audience? })
}

//! Why there is no subject token, and what to change.

use std::path::PathBuf;
use std::sync::Arc;

use super::SourceName;
use super::login::LoginError;
use crate::http::ClientError;

/// The message says what to change. Cloned for everyone who waited for the same token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    #[error("{NOWHERE}")]
    Nowhere,
    #[error("--subject-source {name}: it is not configured here: {what}")]
    NotConfigured { name: SourceName, what: &'static str },
    #[error(
        "no subject token: the source {0} needs the broker's own audience; give --audience or set CARNET_AUDIENCE to \
         the application ID URI or client id of the broker's registration"
    )]
    NoAudience(SourceName),
    #[error("no subject token: the source {name} also needs {}", .missing.join(" and "))]
    Incomplete { name: SourceName, missing: Vec<&'static str> },
    #[error("{variable} {problem}")]
    Variable { variable: &'static str, problem: String },
    #[error("the subject token file {path} cannot be read")]
    File { path: PathBuf, source: Arc<std::io::Error> },
    #[error("the subject token is empty")]
    Empty,
    #[error("the authorities of --ca cannot be used")]
    Authorities(#[source] Arc<ClientError>),
    #[error("{name}: {code}: {meaning}")]
    Refused { name: SourceName, code: String, meaning: String },
    #[error("{name}: no answer that helps: {cause}")]
    Unavailable { name: SourceName, cause: String },
    #[error("{name}: the answer holds no bearer token with an expiry")]
    Malformed { name: SourceName },
    #[error("az: {0}")]
    AzureCli(String),
    #[error(transparent)]
    Login(#[from] LoginError),
}

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The command line or the environment.
    Usage,
    /// Entra, or whoever else gives the token, refuses it.
    Refused,
    /// It may work later.
    Unavailable,
    /// This machine.
    Machine,
}

impl SourceError {
    pub fn fault(&self) -> Fault {
        match self {
            Self::Nowhere
            | Self::NotConfigured { .. }
            | Self::NoAudience(_)
            | Self::Incomplete { .. }
            | Self::Variable { .. } => Fault::Usage,
            Self::Refused { .. } => Fault::Refused,
            Self::Unavailable { .. } => Fault::Unavailable,
            Self::File { .. } | Self::Empty | Self::Authorities(_) | Self::Malformed { .. } | Self::AzureCli(_) => {
                Fault::Machine
            }
            Self::Login(error) => error.fault(),
        }
    }
}

const NOWHERE: &str = "no subject token: none of its sources is configured. One of
  file               give --subject-token-file, or set CARNET_SUBJECT_TOKEN_FILE
  environment        set CARNET_SUBJECT_TOKEN
  workload-identity  set AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID and AZURE_TENANT_ID, and CARNET_AUDIENCE
  login              run `carnet login`
  managed-identity   set CARNET_AUDIENCE on a machine of Azure's with a managed identity
  azure-cli          set CARNET_AUDIENCE, install az and run `az login`";

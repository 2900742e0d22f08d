//! How Google and Entra are told to trust this broker, and what repairs it where they do not: commands with this
//! configuration's own values, as text. Nothing here calls anybody.

mod azure;
mod google;
mod remedy;
mod set_up;
mod shell;
mod terraform;

pub use azure::Holder;
pub use set_up::Format;

use std::fmt;

use uuid::Uuid;

use crate::credential::{Hop, IssueError, SetUpFault};
use crate::policy::Policy;
use crate::subject;
use crate::target::{Name, Target};

/// One target among the settings that its trust depends on.
#[derive(Debug, Clone, Copy)]
pub struct Trust<'a> {
    pub target: &'a Target,
    /// `issuer.url`
    pub issuer: Option<&'a str>,
    pub entra: &'a subject::Settings,
    /// The rules say whom a provider may take, and other targets may share the provider.
    pub policy: &'a Policy,
}

/// Whom a cloud refused, where that is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    pub rule: Option<&'a str>,
    /// `sub` of what the cloud was shown.
    pub subject: Option<&'a str>,
}

/// A cloud's refusal, as it happened or as a record keeps it.
#[derive(Debug, Clone, Copy)]
pub struct CloudError<'a> {
    pub hop: Hop,
    /// The cloud's own word: `AADSTS700213`, `invalid_grant`, `PERMISSION_DENIED`.
    pub code: Option<&'a str>,
    pub fault: Option<SetUpFault>,
}

impl<'a> From<&'a IssueError> for CloudError<'a> {
    fn from(error: &'a IssueError) -> Self {
        Self { hop: error.hop(), code: error.code(), fault: error.fault() }
    }
}

impl<'a> CloudError<'a> {
    /// From the attributes `cloud_hop`, `cloud_error` and `cloud_fault` of a record. Without a hop there was no refusal.
    pub fn recorded(attribute: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let hop = attribute("cloud_hop")?;
        let hop = Hop::ALL.into_iter().find(|known| known.as_str() == hop)?;
        let fault = attribute("cloud_fault").and_then(SetUpFault::named);
        Some(Self { hop, code: attribute("cloud_error"), fault })
    }
}

/// What is wrong, who can act, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// One sentence without a full stop.
    pub meaning: String,
    pub who: Who,
    /// What the commands do not say; may be empty.
    pub advice: String,
    /// For a POSIX shell, in this order; a line that begins with `#` is a comment.
    pub commands: Vec<String>,
}

/// Who can act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Those who may change the pool or the service account.
    Google,
    /// Those who may change the identity or the application.
    Entra,
    /// Those who run the broker.
    Broker,
    Caller,
    /// It passes.
    Nobody,
}

impl Who {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Google => "the Google project's administrator",
            Self::Entra => "the Entra tenant's administrator",
            Self::Broker => "whoever runs the broker",
            Self::Caller => "the caller",
            Self::Nobody => "nobody",
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.meaning)?;
        if !self.advice.is_empty() {
            write!(f, ": {}", self.advice)?;
        }
        self.commands.iter().try_for_each(|command| write!(f, "\n{command}"))
    }
}

impl Trust<'_> {
    /// What repairs the trust after `error`.
    pub fn remedy(&self, error: CloudError<'_>, asked: Asked<'_>) -> Remedy {
        remedy::remedy(self, error, asked)
    }

    /// Everything that has to be set up for the target, with the values of this configuration.
    ///
    /// # Errors
    /// What the configuration lacks for it.
    pub fn set_up(&self, format: Format, wishes: &Wishes<'_>) -> Result<String, CannotSetUp> {
        set_up::set_up(self, format, wishes)
    }

    /// What of the target's rules its cloud does not enforce where it is shown the callers' own tokens, in sentences.
    pub fn unenforced(&self) -> Vec<String> {
        google::Google::of(self).map(|google| google.warnings()).unwrap_or_default()
    }

    fn accepts(&self, tenant: Uuid) -> bool {
        self.entra.tenants.contains(&tenant)
    }

    /// `iss` of a tenant's v2.0 tokens.
    fn entra_issuer(&self, tenant: Uuid) -> String {
        format!("{}/{tenant}/v2.0", self.entra.authority)
    }
}

/// What the configuration does not say.
#[derive(Debug, Clone, Copy)]
pub struct Wishes<'a> {
    /// Path of the configuration file, for commands of carnet's own.
    pub config: &'a str,
    pub keys: Keys,
    /// What has the client id of an Azure target; `None`: what is usual for its source.
    pub holder: Option<Holder>,
    /// What the token file of an Azure target says of itself, where it could be read.
    pub presented: Option<&'a Presented>,
}

/// How Google comes to know the issuer's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    Fetched,
    /// For issuers that Google cannot reach.
    Uploaded,
}

/// Why there is nothing to print.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotSetUp {
    #[error("the configuration has no `issuer`, which this target needs")]
    NoIssuer,
    #[error("no rule allows target {0}: its provider would have to refuse everybody. Write the rule first")]
    NoRule(Name),
    #[error(
        "the attribute condition would have {0} characters and Google takes 4096: give some of the targets a provider of \
         their own"
    )]
    LongCondition(usize),
    #[error(
        "the mapping of `{0}` would have {1} characters and Google takes 2048: name groups or roles instead of single \
         people or applications, or divide the rule"
    )]
    LongMapping(String, usize),
    #[error(
        "the provider would map {0} attributes and Google takes 50: give some of the targets a provider of their own"
    )]
    ManyAttributes(usize),
    #[error("Entra's keys are fetched: --jwks goes with `subject_token: issuer`")]
    EntrasKeys,
    #[error("the machine's own identity is assigned to the machine: use --format az")]
    MachineIdentity,
    #[error("the target is of another cloud")]
    Cloud,
}

/// The claims by which Entra finds a federated identity credential, as a token of a cluster has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    pub issuer: String,
    pub subject: String,
    pub audience: String,
}

#[cfg(test)]
mod tests;

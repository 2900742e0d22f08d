//! Why an exchange gave no credential: one variant per stage, with a text for the caller and details for the record.

use std::sync::Arc;
use std::time::Duration;

use super::limited::Limit;
use crate::audit::{AuditError, Outcome};
use crate::credential::IssueError;
use crate::policy::Refusal;
use crate::reason::Reason;
use crate::subject::SubjectError;
use crate::telemetry::Causes;

/// The texts go to the caller.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("{field}: {message}")]
    Request { field: String, message: String },
    #[error(transparent)]
    Subject(#[from] SubjectError),
    #[error(transparent)]
    Policy(#[from] Refusal),
    #[error("target {target}: {error}")]
    Credential { target: String, error: IssueError },
    #[error("the decision cannot be recorded now, so nothing is released")]
    Audit(#[source] AuditError),
    #[error("the broker is busy")]
    Overloaded,
    /// By one operator, or by one who does not take what was read.
    #[error("{0}")]
    LogReaders(&'static str),
    #[error("{limit}: wait as long as the answer says")]
    Limited { limit: Limit, wait: Duration },
    /// Wrong and foreign lease tokens too: nobody learns which leases there are.
    #[error("there is no such lease")]
    LeaseNotFound,
    #[error("the lease has ended: it is {0}")]
    LeaseEnded(&'static str),
    #[error("the leases cannot be used now")]
    Leases(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Connections end within the hour, too: whoever goes on comes back on a new one.
    #[error("the broker, or this connection to it, is about to end: call again on a new connection")]
    ShuttingDown,
    #[error("the broker failed; its operators find why under the exchange's id")]
    Internal,
}

impl ExchangeError {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Request { .. } => Reason::InvalidRequest,
            Self::Subject(error) => error.reason(),
            Self::Policy(refusal) => refusal.reason(),
            Self::Credential { error, .. } => error.reason(),
            Self::LeaseNotFound => Reason::LeaseNotFound,
            Self::LeaseEnded(_) => Reason::LeaseEnded,
            Self::Audit(_) | Self::Leases(_) => Reason::StoreUnavailable,
            Self::Overloaded | Self::Limited { .. } | Self::LogReaders(_) => Reason::RateLimited,
            Self::ShuttingDown => Reason::ShuttingDown,
            Self::Internal => Reason::Internal,
        }
    }

    /// How long to wait before asking again; `None` where waiting does not help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Subject(error) => error.retry_after(),
            Self::Credential { error, .. } => error.retry_after(),
            Self::Limited { wait, .. } => Some((*wait).max(RETRY_SOON)),
            Self::Audit(_) | Self::Leases(_) | Self::Overloaded | Self::LogReaders(_) | Self::ShuttingDown => {
                Some(RETRY_SOON)
            }
            Self::Request { .. } | Self::Policy(_) | Self::LeaseNotFound | Self::LeaseEnded(_) | Self::Internal => None,
        }
    }

    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Request { .. }
            | Self::Policy(_)
            | Self::LeaseNotFound
            | Self::LeaseEnded(_)
            | Self::Limited { .. } => Outcome::Denied,
            Self::Subject(error) => match error.reason() {
                Reason::KeysUnavailable => Outcome::Failed,
                _ => Outcome::Denied,
            },
            Self::Credential { .. }
            | Self::Audit(_)
            | Self::Leases(_)
            | Self::Overloaded
            | Self::LogReaders(_)
            | Self::ShuttingDown
            | Self::Internal => Outcome::Failed,
        }
    }

    /// One sentence for the log: the caller is told less.
    pub(super) fn detail(&self) -> String {
        match self {
            Self::Policy(refusal) => refusal.detail(),
            Self::Request { .. }
            | Self::Subject(_)
            | Self::Credential { .. }
            | Self::Audit(_)
            | Self::Leases(_)
            | Self::LeaseNotFound
            | Self::LeaseEnded(_)
            | Self::Overloaded
            | Self::LogReaders(_)
            | Self::Limited { .. }
            | Self::ShuttingDown
            | Self::Internal => self.to_string(),
        }
    }

    /// What the record keeps besides the reason, for those who may see it.
    pub(super) fn details(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Policy(Refusal::Denied(_)) => vec![("denial", self.detail())],
            Self::Credential { target, error } => {
                let mut details = vec![("failed_target", target.clone()), ("error", error.to_string())];
                details.push(("cloud_hop", error.hop().as_str().to_owned()));
                details.extend(error.code().map(|code| ("cloud_error", code.to_owned())));
                details.extend(error.fault().map(|fault| ("cloud_fault", fault.as_str().to_owned())));
                details.extend(error.upstream().iter().cloned());
                details
            }
            Self::Subject(SubjectError::KeysUnavailable { source: Some(source), .. }) => {
                vec![("error", Causes(&**source).to_string())]
            }
            Self::Request { .. }
            | Self::Subject(_)
            | Self::Policy(_)
            | Self::LeaseNotFound
            | Self::LeaseEnded(_)
            | Self::Limited { .. } => {
                vec![("error", self.to_string())]
            }
            Self::Audit(_)
            | Self::Leases(_)
            | Self::Overloaded
            | Self::LogReaders(_)
            | Self::ShuttingDown
            | Self::Internal => Vec::new(),
        }
    }
}

const RETRY_SOON: Duration = Duration::from_secs(1);

//! The real chain of a configuration walked link by link, without a caller where that is possible: what is wrong with each,
//! how badly, and what repairs it.
//!
//! Every question has a deadline of its own and all are asked at once: a host that does not answer holds nobody up.
//! Whatever a cloud issues on the way is dropped unread.

mod caller;
mod certificate;
mod clock;
mod entra;
mod issuer;
mod network;
mod server;
mod store;
mod targets;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use tokio::time::timeout;
use uuid::Uuid;

use self::network::Network;
use crate::clock::Clock;
use crate::config::Config;
use crate::credential::Clouds;
use crate::http::{self, Client};
use crate::issuer::{Issuer, Keyring};
use crate::secret::Secret;
use crate::target::Target;
use crate::trust::{Remedy, Trust};

/// What a look at one thing came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// The same word for the same fault: a fault of a set-up, a code of Entra's, or a word of the check's own.
    pub code: String,
    /// What was looked at: `store`, `tenant GUID`, `target NAME`.
    pub about: String,
    /// One line, never a token.
    pub seen: String,
    pub advice: String,
    /// For a POSIX shell.
    pub commands: Vec<String>,
}

/// Worse ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Ok,
    /// Worth knowing, nothing to do.
    Note,
    /// It works, and will not for ever or not for everyone.
    Warning,
    /// Callers are refused, or could be let in who must not be.
    Error,
}

impl Severity {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Finding {
    fn new(severity: Severity, code: &str, about: impl Into<String>, seen: impl Into<String>) -> Self {
        let seen = seen.into().replace(char::is_control, " ");
        Self { severity, code: code.to_owned(), about: about.into(), seen, advice: String::new(), commands: Vec::new() }
    }

    fn repair(mut self, advice: impl Into<String>, commands: &[&str]) -> Self {
        self.advice = advice.into();
        self.commands = commands.iter().map(ToString::to_string).collect();
        self
    }

    fn remedied(mut self, remedy: Remedy) -> Self {
        let Remedy { meaning, who, advice, commands } = remedy;
        self.seen = format!("{}: {meaning}", self.seen);
        self.advice = match advice.is_empty() {
            true => format!("for {}", who.as_str()),
            false => format!("for {}: {advice}", who.as_str()),
        };
        self.commands = commands;
        self
    }
}

/// What to look at.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Of the targets, only this one.
    pub target: Option<String>,
    /// Whether anybody outside of this machine is asked.
    pub reach: Reach,
    /// Whom the probes stand for, where a binding names somebody; otherwise nobody.
    pub object: Option<Uuid>,
    /// Values of the rules' attributes, for bindings by them.
    pub attributes: Vec<(String, String)>,
    /// A caller's own token: what it would get is tried, too.
    pub subject_token: Option<Secret>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reach {
    #[default]
    Clouds,
    ThisMachine,
}

/// What the checks have in common.
struct Examination<'a> {
    config: &'a Config,
    options: &'a Options,
    clock: Arc<dyn Clock>,
    network: Network,
    /// With the keys that the brokers sign with, where they could be read.
    issuer: Option<Arc<Issuer>>,
    clouds: Clouds,
}

impl<'a> Examination<'a> {
    fn issuer_url(&self) -> Option<&'a str> {
        self.config.issuer.as_ref().map(|issuer| issuer.url.as_str())
    }

    fn trust(&self, target: &'a Target) -> Trust<'a> {
        Trust { target, issuer: self.issuer_url(), entra: &self.config.entra, policy: &self.config.policy }
    }

    /// Those to look at, by name.
    fn targets(&self) -> Vec<&'a Target> {
        let wanted = |target: &&Target| self.options.target.as_ref().is_none_or(|name| target.name.as_str() == name);
        let mut targets: Vec<&Target> = self.config.policy.targets().map(AsRef::as_ref).filter(wanted).collect();
        targets.sort_by_key(|target| &target.name);
        targets
    }
}

/// Looks at everything that `config` depends on. What is sound is among the findings, so that it is known to have been
/// looked at.
///
/// # Errors
/// The authorities that calls trust cannot be read.
pub async fn examine(
    config: &Config,
    options: &Options,
    clock: Arc<dyn Clock>,
) -> Result<Vec<Finding>, http::ClientError> {
    let mut findings = server::examine(config, clock.now());
    let (of_store, keys) = store::examine(config, clock.now()).await;
    findings.extend(of_store);
    if options.reach == Reach::ThisMachine {
        return Ok(findings);
    }
    let issuer = config
        .issuer
        .as_ref()
        .zip(keys)
        .map(|(settings, keys): (_, Keyring)| Arc::new(Issuer::new(settings.url.clone(), keys, clock.clone())));
    let client = Client::keeping_certificates(&config.outbound)?;
    let examination = Examination {
        config,
        options,
        network: Network::new(client.clone(), clock.clone()),
        clouds: Clouds::new(client, issuer.clone(), clock.clone()),
        issuer,
        clock,
    };
    let mut checks: Vec<Check<'_>> = vec![check("clock", clock::examine(&examination))];
    for tenant in &config.entra.tenants {
        checks.push(check(format!("tenant {tenant}"), entra::examine(&examination, *tenant)));
    }
    checks.push(check("issuer", issuer::examine(&examination)));
    for target in examination.targets() {
        checks.push(check(format!("target {}", target.name), targets::examine(&examination, target)));
    }
    if let Some(token) = &options.subject_token {
        checks.push(check("caller", caller::examine(&examination, token.clone())));
    }
    let found = join_all(checks.into_iter().map(within_deadline)).await;
    findings.extend(found.into_iter().flatten());
    issuer::weigh(&examination, &mut findings);
    Ok(findings)
}

/// A check and what it is about.
type Check<'a> = (String, BoxFuture<'a, Vec<Finding>>);

fn check<'a>(about: impl Into<String>, of: impl Future<Output = Vec<Finding>> + Send + 'a) -> Check<'a> {
    (about.into(), of.boxed())
}

async fn within_deadline((about, check): Check<'_>) -> Vec<Finding> {
    let late = |_elapsed| {
        let seen = format!("no end within {}s", CHECK_DEADLINE.as_secs());
        vec![Finding::new(Severity::Error, "deadline", about, seen)]
    };
    timeout(CHECK_DEADLINE, check).await.unwrap_or_else(late)
}

/// Some calls one after another, each with a shorter deadline of its own.
const CHECK_DEADLINE: Duration = Duration::from_secs(45);

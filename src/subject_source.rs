//! Where a client's own Entra token comes from. It is looked for anew at each use, so that what the platform renews is used.
//!
//! The first source that is configured is the one that is used, and its failure is the error: another source would be
//! another identity.

mod azure_cli;
mod call;
mod environment;
mod error;
mod file;
mod held;
mod login;
mod managed_identity;
mod workload_identity;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::OnceCell;

use self::azure_cli::AzureCli;
use self::call::Web;
use self::held::{Fetched, Held};
use self::managed_identity::ManagedIdentity;
use self::workload_identity::WorkloadIdentity;
use crate::clock::{Clock, SystemClock};
use crate::http::{self, Client, Endpoint};
use crate::secret::Secret;

pub use self::environment::Environment;
pub use self::error::{Fault, SourceError};
pub use self::login::{Account, DevicePrompt, Keep, LoginError, LoginStore, SignIn};

/// The places to look in. What is not given is taken from the environment.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `-` is standard input. `CARNET_SUBJECT_TOKEN_FILE`
    pub token_file: Option<PathBuf>,
    /// The one to use, whatever else is configured. `CARNET_SUBJECT_SOURCE`
    pub source: Option<SourceName>,
    /// The broker's own. `CARNET_AUDIENCE`
    pub audience: Option<String>,
    /// PEM file with authorities that are trusted besides the system's. `CARNET_CA_FILE`
    pub ca_file: Option<PathBuf>,
    pub environment: Environment,
}

/// A source by its name, in the order in which they are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SourceName {
    /// A file with the token
    File,
    /// The variable CARNET_SUBJECT_TOKEN
    Environment,
    /// The projected token of a Kubernetes cluster
    WorkloadIdentity,
    /// The person who signed in with `carnet login`
    Login,
    /// The managed identity of a machine or service of Azure's
    ManagedIdentity,
    /// The person signed in to az
    AzureCli,
}

/// Gives the client's Entra token, as often as it is asked, to as many as ask at once.
#[derive(Debug, Clone)]
pub struct SubjectSource(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    clock: Arc<dyn Clock>,
    web: OnceCell<Arc<dyn Web>>,
    /// Once, so that a long-lived process does not turn into somebody else half-way.
    chosen: OnceCell<Source>,
    standard_input: OnceCell<Secret>,
    held: Held,
}

#[derive(Debug, Clone)]
enum Source {
    File(PathBuf),
    Environment,
    WorkloadIdentity(WorkloadIdentity),
    Login(LoginStore),
    ManagedIdentity(ManagedIdentity),
    AzureCli(AzureCli),
}

impl SubjectSource {
    pub fn new(settings: Settings) -> Self {
        Self::with(settings, Arc::new(SystemClock), OnceCell::new())
    }

    /// With these in place of the time and the network.
    #[cfg(any(test, feature = "testing"))]
    pub fn over(settings: Settings, clock: Arc<dyn Clock>, client: Client) -> Self {
        let web: Arc<dyn Web> = Arc::new(client);
        Self::with(settings, clock, OnceCell::new_with(Some(web)))
    }

    fn with(settings: Settings, clock: Arc<dyn Clock>, web: OnceCell<Arc<dyn Web>>) -> Self {
        let held = Held::new(clock.clone());
        let (chosen, standard_input) = (OnceCell::new(), OnceCell::new());
        Self(Arc::new(Inner { settings, clock, web, chosen, standard_input, held }))
    }

    /// # Errors
    /// [`SourceError`] of the source that was to give it: no other one is asked in its place, for that would be another
    /// identity.
    pub async fn token(&self) -> Result<Secret, SourceError> {
        match self.0.chosen.get_or_try_init(|| self.0.choose()).await? {
            Source::File(path) if path.as_os_str() == "-" => {
                self.0.standard_input.get_or_try_init(|| file::read(path)).await.cloned()
            }
            Source::File(path) => file::read(path).await,
            Source::Environment => {
                let value = self.0.settings.environment.set(TOKEN).ok_or(SourceError::Nowhere)?;
                file::not_empty(Secret::new(value.trim()))
            }
            source => {
                let (inner, fetched) = (self.0.clone(), source.clone());
                self.0.held.token(source.name(), || async move { inner.fetch(&fetched).await }).await
            }
        }
    }
}

impl Inner {
    async fn choose(&self) -> Result<Source, SourceError> {
        let environment = &self.settings.environment;
        if let Some(name) = self.named()? {
            let what = hint(name);
            return self.configured(name, true).await?.ok_or(SourceError::NotConfigured { name, what });
        }
        for name in CHAIN {
            // What needs no variable of its own is asked only where the broker's audience is known.
            let asks = matches!(name, SourceName::ManagedIdentity | SourceName::AzureCli);
            let pointless = asks && self.audience().is_none() && !has_platform_variable(environment);
            if !pointless && let Some(source) = self.configured(name, false).await? {
                return Ok(source);
            }
        }
        Err(SourceError::Nowhere)
    }

    /// `None` where this source is not configured; `named`: it was asked for by name.
    async fn configured(&self, name: SourceName, named: bool) -> Result<Option<Source>, SourceError> {
        let (environment, audience) = (&self.settings.environment, self.audience());
        let audience = audience.as_ref();
        Ok(match name {
            SourceName::File => self.token_file().map(Source::File),
            SourceName::Environment => environment.set(TOKEN).map(|_value| Source::Environment),
            SourceName::WorkloadIdentity => {
                WorkloadIdentity::configured(environment, audience)?.map(Source::WorkloadIdentity)
            }
            SourceName::Login => {
                // Without a home there is no login either.
                let store = LoginStore::of(environment).ok();
                let account = store.as_ref().map(LoginStore::account).transpose()?.flatten();
                store.filter(|_store| account.is_some()).map(Source::Login)
            }
            SourceName::ManagedIdentity => match ManagedIdentity::configured(environment, audience)? {
                Some(of_the_platform) => Some(of_the_platform),
                None => {
                    let machine = ManagedIdentity::of_the_machine(environment, audience)?;
                    let there = named || machine.is_there(self.web().await?.as_ref()).await;
                    there.then_some(machine)
                }
            }
            .map(Source::ManagedIdentity),
            SourceName::AzureCli => AzureCli::configured(environment, audience)?.map(Source::AzureCli),
        })
    }

    async fn fetch(&self, source: &Source) -> Result<Fetched, SourceError> {
        let (web, clock) = (self.web().await?, self.clock.as_ref());
        match source {
            Source::WorkloadIdentity(source) => source.fetch(web.as_ref(), clock).await,
            Source::Login(store) => login::fetch(store, self.audience().as_ref(), web.as_ref(), clock).await,
            Source::ManagedIdentity(source) => source.fetch(web.as_ref(), clock).await,
            Source::AzureCli(source) => source.fetch().await,
            Source::File(_) | Source::Environment => Err(SourceError::Nowhere),
        }
    }

    /// Made when it is first needed: reading the system's authorities takes longer than reading a token.
    async fn web(&self) -> Result<&Arc<dyn Web>, SourceError> {
        let make = || async {
            let from_environment = || self.settings.environment.text("CARNET_CA_FILE").map(PathBuf::from);
            let ca_file = self.settings.ca_file.clone().or_else(from_environment);
            let client = Client::new(&http::Settings { ca_file });
            let client = client.map_err(|error| SourceError::Authorities(Arc::new(error)))?;
            Ok(Arc::new(client) as Arc<dyn Web>)
        };
        self.web.get_or_try_init(make).await
    }

    fn token_file(&self) -> Option<PathBuf> {
        let from_environment = || self.settings.environment.text("CARNET_SUBJECT_TOKEN_FILE").map(PathBuf::from);
        self.settings.token_file.clone().or_else(from_environment)
    }

    fn named(&self) -> Result<Option<SourceName>, SourceError> {
        let variable = "CARNET_SUBJECT_SOURCE";
        match (self.settings.source, self.settings.environment.text(variable)) {
            (Some(name), _) => Ok(Some(name)),
            (None, None) => Ok(None),
            (None, Some(text)) => {
                <SourceName as clap::ValueEnum>::from_str(&text, false).map(Some).map_err(|_unknown| {
                    let problem = format!("must be one of {}", CHAIN.map(|name| name.to_string()).join(", "));
                    SourceError::Variable { variable, problem }
                })
            }
        }
    }

    fn audience(&self) -> Option<Audience> {
        let text = self.settings.audience.clone().or_else(|| self.settings.environment.text("CARNET_AUDIENCE"))?;
        Audience::of(&text)
    }
}

/// The broker's audience: the application ID URI or client id of its registration.
#[derive(Debug, Clone)]
struct Audience(String);

impl Audience {
    fn of(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_suffix("/.default").unwrap_or(text);
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// What Entra's version 2 endpoints are asked for.
    fn scope(&self) -> String {
        format!("{}/.default", self.0)
    }

    /// What managed identity endpoints are asked for.
    fn resource(&self) -> String {
        self.0.clone()
    }
}

impl Source {
    const fn name(&self) -> SourceName {
        match self {
            Self::File(_) => SourceName::File,
            Self::Environment => SourceName::Environment,
            Self::WorkloadIdentity(_) => SourceName::WorkloadIdentity,
            Self::Login(_) => SourceName::Login,
            Self::ManagedIdentity(_) => SourceName::ManagedIdentity,
            Self::AzureCli(_) => SourceName::AzureCli,
        }
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Environment => "environment",
            Self::WorkloadIdentity => "workload-identity",
            Self::Login => "login",
            Self::ManagedIdentity => "managed-identity",
            Self::AzureCli => "azure-cli",
        })
    }
}

fn hint(name: SourceName) -> &'static str {
    match name {
        SourceName::File => "give --subject-token-file, or set CARNET_SUBJECT_TOKEN_FILE",
        SourceName::Environment => "set CARNET_SUBJECT_TOKEN",
        SourceName::WorkloadIdentity => "set AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID and AZURE_TENANT_ID",
        SourceName::Login => "nobody is logged in; run `carnet login`",
        SourceName::ManagedIdentity => "there is no managed identity endpoint",
        SourceName::AzureCli => "there is no az on the PATH; install it and run `az login`",
    }
}

fn has_platform_variable(environment: &Environment) -> bool {
    let variables = ["IDENTITY_ENDPOINT", "MSI_SECRET", "AZURE_POD_IDENTITY_AUTHORITY_HOST"];
    variables.into_iter().any(|name| environment.text(name).is_some())
}

/// `AZURE_AUTHORITY_HOST`: sovereign clouds have their own.
fn authority(environment: &Environment) -> Result<Endpoint, SourceError> {
    let variable = "AZURE_AUTHORITY_HOST";
    let text = environment.text(variable).unwrap_or_else(|| DEFAULT_AUTHORITY.to_owned());
    text.parse().map_err(|error: http::InvalidEndpoint| SourceError::Variable { variable, problem: error.to_string() })
}

/// A tenant's GUID or domain name, which becomes a part of a URL's path.
fn directory_name<'a>(variable: &'static str, text: &'a str) -> Result<&'a str, SourceError> {
    let plain = text
        .split('.')
        .all(|label| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
    let problem = || "must be a tenant's GUID or domain name".to_owned();
    if plain { Ok(text) } else { Err(SourceError::Variable { variable, problem: problem() }) }
}

const CHAIN: [SourceName; 6] = [
    SourceName::File,
    SourceName::Environment,
    SourceName::WorkloadIdentity,
    SourceName::Login,
    SourceName::ManagedIdentity,
    SourceName::AzureCli,
];
const TOKEN: &str = "CARNET_SUBJECT_TOKEN";
const DEFAULT_AUTHORITY: &str = "https://login.microsoftonline.com";

#[cfg(test)]
mod tests;

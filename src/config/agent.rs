//! The agent's configuration file: where it listens, whom it asks, and what the credentials do not say of their targets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use super::ConfigError;
use super::document::TelemetryDocument;
use super::source::Source;
use crate::agent::{Settings, TargetSettings, Users};
use crate::grpc;
use crate::policy::Mistake;
use crate::proto;
use crate::secret::Secret;
use crate::socket::Address;
use crate::subject_source;
use crate::target::{Guid, Job, Name, Span};
use crate::telemetry;

/// A whole configuration of the agent, checked.
#[expect(missing_debug_implementations, reason = "messages of the contract have none")]
pub struct AgentConfig {
    pub listen: Address,
    pub users: Users,
    pub broker: grpc::Address,
    pub ca_file: Option<PathBuf>,
    pub subject: subject_source::Settings,
    pub job: proto::Job,
    pub agent: Settings,
    pub telemetry: telemetry::Settings,
}

/// carnet's agent.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Document {
    /// `ADDRESS:PORT` on loopback, or `unix:PATH`
    #[serde(default = "default_listen")]
    listen: String,
    /// Who may ask besides root: numeric user ids. Absent: whoever runs the agent (on a Unix socket: whom the file's
    /// permissions let).
    allow_uids: Option<Vec<u32>>,
    /// Every user whose programs can reach the address: where each program of a pod has a user of its own.
    #[serde(default)]
    allow_all_uids: bool,
    broker: BrokerDocument,
    #[serde(default)]
    subject: SubjectDocument,
    #[serde(default)]
    job: JobDocument,
    /// The order decides: the first Google target is the default service account.
    targets: Vec<TargetDocument>,
    #[serde(default)]
    azure: AzureDocument,
    #[serde(default)]
    telemetry: TelemetryDocument,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BrokerDocument {
    /// `https://`, `http://` on loopback, or `unix:PATH`
    address: String,
    /// Trusted besides the system's roots.
    ca_file: Option<PathBuf>,
}

/// Where the agent's own Entra token comes from; what is not said here, as for all of carnet's clients.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SubjectDocument {
    /// Read anew at each use.
    token_file: Option<PathBuf>,
    /// `file`, `environment`, `workload-identity`, `login`, `managed-identity` or `azure-cli`
    source: Option<String>,
    /// The broker's own audience, for the sources that ask Entra.
    audience: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct JobDocument {
    id: Option<String>,
    name: Option<String>,
    duration: Option<Span>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    datasets: Vec<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TargetDocument {
    /// Name of a target in the broker's configuration.
    target: Name,
    google: Option<GoogleDocument>,
    /// Says, be it empty, that the target is Azure's: Google's default account then does not wait for it.
    azure: Option<IdentityDocument>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct GoogleDocument {
    /// This one is the default service account, wherever it stands.
    #[serde(default)]
    default: bool,
    /// Default: the project of the service account.
    project_id: Option<String>,
    /// Default: that of the workload identity pool.
    project_number: Option<u64>,
}

/// What SDKs may ask for the identity by, besides its client id.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct IdentityDocument {
    object_id: Option<Guid>,
    resource_id: Option<String>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AzureDocument {
    /// The value of IDENTITY_HEADER in the programs that ask. Absent: only the instance metadata endpoint is served.
    #[schemars(with = "Option<String>")]
    identity_header: Option<Secret>,
}

impl AgentConfig {
    /// # Errors
    /// Every mistake of the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let environment = |name: &str| std::env::var(name).ok();
        super::load(path, &environment, |document, _digest, mistakes| Self::build(document, mistakes))
    }

    /// Whether the file is one of the agent's: only those say what the broker's address is.
    pub fn is_meant(path: &Path) -> bool {
        Source::read(path, &|_name| Some(String::new())).is_ok_and(|source| source.has("broker"))
    }

    /// The JSON Schema of the file.
    pub fn schema() -> schemars::Schema {
        schemars::schema_for!(Document)
    }

    fn build(document: Document, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let Document { listen, allow_uids, allow_all_uids, broker, subject, job, targets, azure, telemetry } = document;
        let listen = reading("listen", mistakes, listen.parse::<Address>());
        if matches!(&listen, Some(Address::Tcp(address)) if !address.ip().is_loopback()) {
            mistake(mistakes, "listen", "is not loopback: whoever reached it would get the credentials");
        }
        let address = reading("broker.address", mistakes, broker.address.parse::<grpc::Address>());
        let source = subject.source.as_deref().and_then(|name| {
            let known = <subject_source::SourceName as clap::ValueEnum>::from_str(name, false);
            reading("subject.source", mistakes, known.map_err(|_unknown| "names no source"))
        });
        let job = reading("job", mistakes, job.checked());
        let targets = compiled(&targets, mistakes);
        if azure.identity_header.as_ref().is_some_and(|header| header.len() < SHORTEST_HEADER) {
            mistake(mistakes, "azure.identity_header", "has at least 16 characters: `openssl rand -hex 32` makes one");
        }
        if allow_all_uids && allow_uids.is_some() {
            mistake(mistakes, "allow_all_uids", "leaves nothing to allow_uids: take one of them out");
        }
        let users = match (allow_uids, &listen) {
            _ if allow_all_uids => Users::All,
            (Some(uids), _) => Users::Only(uids),
            (None, Some(Address::Unix(_))) => Users::All,
            (None, _) => Users::own(),
        };
        Some(Self {
            listen: listen?,
            users,
            broker: address?,
            subject: subject_source::Settings {
                token_file: subject.token_file,
                source,
                audience: subject.audience,
                ca_file: broker.ca_file.clone(),
                ..subject_source::Settings::default()
            },
            ca_file: broker.ca_file,
            job: job?,
            agent: Settings { targets, identity_header: azure.identity_header },
            telemetry: telemetry::Settings { otlp: telemetry.otlp, log: telemetry.log },
        })
    }
}

impl JobDocument {
    fn checked(self) -> Result<proto::Job, crate::target::Invalid> {
        let Self { id, name, duration, labels, datasets } = self;
        let expected_duration = duration.map(|span| span.0);
        let job = Job { id, name, expected_duration, labels, datasets };
        job.check()?;
        Ok(proto::Job {
            id: job.id.unwrap_or_default(),
            name: job.name.unwrap_or_default(),
            expected_duration: job.expected_duration.and_then(|span| prost_types::Duration::try_from(span).ok()),
            labels: job.labels.into_iter().collect(),
            datasets: job.datasets,
        })
    }
}

fn compiled(targets: &[TargetDocument], mistakes: &mut Vec<Mistake>) -> Vec<TargetSettings> {
    if targets.is_empty() {
        mistake(mistakes, "targets", "names no target");
    }
    for (index, TargetDocument { target, google, azure }) in targets.iter().enumerate() {
        let before = targets.get(..index).unwrap_or_default();
        if before.iter().any(|other| other.target == *target) {
            mistake(mistakes, &format!("targets[{index}].target"), "stands here a second time");
        }
        if google.is_some() && azure.is_some() {
            mistake(mistakes, &format!("targets[{index}]"), "is of one cloud");
        }
        let is_default = |document: &TargetDocument| document.google.as_ref().is_some_and(|google| google.default);
        if google.as_ref().is_some_and(|google| google.default) && before.iter().any(is_default) {
            mistake(mistakes, &format!("targets[{index}].google.default"), "there is one default");
        }
    }
    let settings = |document: &TargetDocument| TargetSettings {
        name: document.target.to_string(),
        is_default: document.google.as_ref().is_some_and(|google| google.default),
        project_id: document.google.as_ref().and_then(|google| google.project_id.clone()),
        project_number: document.google.as_ref().and_then(|google| google.project_number),
        object_id: document.azure.as_ref().and_then(|azure| azure.object_id.as_ref().map(|id| id.0.to_string())),
        resource_id: document.azure.as_ref().and_then(|azure| azure.resource_id.clone()),
        is_azure: document.azure.is_some(),
    };
    targets.iter().map(settings).collect()
}

fn reading<T, E: std::fmt::Display>(at: &str, mistakes: &mut Vec<Mistake>, read: Result<T, E>) -> Option<T> {
    read.map_err(|error| mistake(mistakes, at, &error.to_string())).ok()
}

fn mistake(mistakes: &mut Vec<Mistake>, at: &str, message: &str) {
    mistakes.push(Mistake { at: at.to_owned(), message: message.to_owned() });
}

fn default_listen() -> String {
    "127.0.0.1:7070".to_owned()
}

/// Against guessing: 64 bits in hexadecimal.
const SHORTEST_HEADER: usize = 16;

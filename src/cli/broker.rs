//! The broker as every client command reaches it: where it is, who asks, and what its refusals mean for the exit code.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum as _};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use super::{Ended, Exit};
pub(super) use crate::grpc::call;
use crate::grpc::{Address, connect};
use crate::subject_source::{self, Environment, Fault, SourceError, SourceName, SubjectSource};

#[derive(Debug, Args)]
pub(super) struct Broker {
    /// http:// on loopback, https://, or unix:PATH
    #[arg(long, value_name = "ADDRESS", env = "CARNET_ADDRESS", default_value = "http://127.0.0.1:7443")]
    address: String,
    /// PEM file with authorities to trust besides the system's
    #[arg(long, value_name = "FILE", env = "CARNET_CA_FILE")]
    ca: Option<PathBuf>,
}

/// Who asks.
#[derive(Debug, Args)]
pub(super) struct SubjectToken {
    /// File with the Entra access token; `-` is standard input
    #[arg(long, value_name = "FILE", env = "CARNET_SUBJECT_TOKEN_FILE")]
    subject_token_file: Option<PathBuf>,
    /// The one source to ask for the token, instead of the first that is configured
    #[arg(long, value_name = "NAME", env = "CARNET_SUBJECT_SOURCE")]
    subject_source: Option<SourceName>,
    /// The broker's own audience, for the sources that ask Entra: its application ID URI or client id
    #[arg(long, value_name = "AUDIENCE", env = "CARNET_AUDIENCE")]
    audience: Option<String>,
}

impl Broker {
    pub fn at(address: String) -> Self {
        Self { address, ca: None }
    }

    /// These settings for another run of the program, wherever that is.
    pub fn arguments(&self) -> anyhow::Result<Vec<String>> {
        let ca = self.ca.as_deref().map(absolute).transpose()?;
        Ok(words([("--address", Some(self.address.clone())), ("--ca", ca)]))
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Authorities to trust besides the system's.
    pub fn ca(&self) -> Option<&PathBuf> {
        self.ca.as_ref()
    }

    pub async fn connect(&self) -> anyhow::Result<Channel> {
        let address = self.address.parse::<Address>();
        let address = address.map_err(|error| usage(format!("--address {}: {error}", self.address)))?;
        let connected = connect(&address, self.ca.as_ref()).await;
        Ok(connected.map_err(|error| Ended { exit: Exit::Unavailable, message: chain(&error) })?)
    }
}

impl SubjectToken {
    pub fn in_file(path: PathBuf) -> Self {
        Self { subject_token_file: Some(path), subject_source: Some(SourceName::File), audience: None }
    }

    /// These settings for another run of the program, wherever that is; a token in a variable is not among them.
    pub fn arguments(&self) -> anyhow::Result<Vec<String>> {
        let source = self.subject_source.and_then(|source| source.to_possible_value());
        let source = source.map(|value| value.get_name().to_owned());
        let (file, audience) = (self.absolute_file()?, self.audience.clone());
        Ok(words([("--subject-token-file", file), ("--subject-source", source), ("--audience", audience)]))
    }

    pub fn file(&self) -> Option<&Path> {
        self.subject_token_file.as_deref()
    }

    /// The file's absolute path, where the token comes from one.
    pub fn absolute_file(&self) -> anyhow::Result<Option<String>> {
        match (self.file(), self.subject_source) {
            (Some(path), None | Some(SourceName::File)) => absolute(path).map(Some),
            _ => Ok(None),
        }
    }

    /// Its calls trust whom the calls to the broker trust.
    pub fn source(&self, broker: &Broker) -> SubjectSource {
        SubjectSource::new(subject_source::Settings {
            token_file: self.subject_token_file.clone(),
            source: self.subject_source,
            audience: self.audience.clone(),
            ca_file: broker.ca.clone(),
            environment: Environment::default(),
        })
    }

    pub async fn token(&self, broker: &Broker) -> anyhow::Result<String> {
        let token = self.source(broker).token().await.map_err(no_subject_token)?;
        Ok(token.expose().to_owned())
    }
}

/// A token that is shown with calls (RFC 6750 section 2.1).
pub(super) struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    pub fn new(token: &str) -> anyhow::Result<Self> {
        let mut value: MetadataValue<_> = match format!("Bearer {token}").parse() {
            Ok(value) => value,
            Err(_not_ascii) => return Err(usage("the token is no token: it has characters that none has")),
        };
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// With a call that is answered at once.
    pub fn show<T>(&self, message: T) -> Request<T> {
        self.put(call(message))
    }

    /// With a call without a deadline: its answers come for as long as they are read.
    pub fn show_for_long<T>(&self, message: T) -> Request<T> {
        self.put(Request::new(message))
    }

    fn put<T>(&self, mut request: Request<T>) -> Request<T> {
        request.metadata_mut().insert("authorization", self.0.clone());
        request
    }
}

fn words<const N: usize>(named: [(&str, Option<String>); N]) -> Vec<String> {
    let given = named.into_iter().filter_map(|(name, value)| value.map(|value| [name.to_owned(), value]));
    given.flatten().collect()
}

fn absolute(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        return Err(usage("another run of the program has another standard input: name a file"));
    }
    let path = std::path::absolute(path).with_context(|| format!("{} has no absolute path", path.display()))?;
    Ok(path.to_str().with_context(|| format!("the path {} is not text", path.display()))?.to_owned())
}

/// With the exit code of whoever has to act.
pub(super) fn no_subject_token(error: SourceError) -> anyhow::Error {
    let exit = match error.fault() {
        Fault::Usage => Exit::Usage,
        Fault::Refused => Exit::SubjectToken,
        Fault::Unavailable => Exit::Unavailable,
        Fault::Machine => Exit::Failed,
    };
    Ended { exit, message: chain(&error) }.into()
}

/// From the file, else from the environment. Never from an argument, which everybody on the machine can see.
pub(super) fn token(name: &str, file: Option<&Path>, variable: &str) -> anyhow::Result<String> {
    let token = match (file, std::env::var(variable)) {
        (Some(path), _) if path.as_os_str() == "-" => {
            let mut text = String::new();
            let read = std::io::stdin().read_to_string(&mut text);
            read.with_context(|| format!("the {name} cannot be read from standard input"))?;
            text
        }
        (Some(path), _) => std::fs::read_to_string(path)
            .with_context(|| format!("the {name} file {} cannot be read", path.display()))?,
        (None, Ok(token)) => token,
        (None, Err(_unset)) => {
            let flag = name.replace(' ', "-");
            return Err(usage(format!("no {name}: give --{flag}-file, or set {variable}_FILE or {variable}")));
        }
    };
    match token.trim() {
        "" => bail!("the {name} is empty"),
        token => Ok(token.to_owned()),
    }
}

pub(super) fn answer<T>(answered: Result<Response<T>, Status>) -> anyhow::Result<T> {
    match answered {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => Err(refusal(&status)),
    }
}

/// The broker's words, its reason and the id to ask an operator about.
pub(super) fn refusal(status: &Status) -> anyhow::Error {
    let details = status.get_error_details();
    let info = details.error_info();
    let reason = info.map(|info| info.reason.as_str()).unwrap_or_default();
    let exit = match (reason, status.code()) {
        ("DENIED" | "GROUPS_OVERAGE", _) => Exit::Denied,
        (reason, _) if reason.starts_with("SUBJECT_TOKEN") || reason == "INSUFFICIENT_CLAIMS" => Exit::SubjectToken,
        (_, Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded) => Exit::Unavailable,
        _ => Exit::Failed,
    };
    let id =
        info.and_then(|info| info.metadata.get("exchange_id")).map(|id| format!(", exchange {id}")).unwrap_or_default();
    let reason = if reason.is_empty() { format!("{:?}", status.code()) } else { reason.to_owned() };
    Ended { exit, message: format!("{} ({reason}{id})", status.message()) }.into()
}

pub(super) fn usage(message: impl Into<String>) -> anyhow::Error {
    Ended { exit: Exit::Usage, message: message.into() }.into()
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

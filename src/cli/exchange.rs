//! `carnet exchange`: one exchange over gRPC, its result for people, programs or a shell.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tonic::Status;
use tonic_types::StatusExt as _;

use super::{Ended, Exit, print};
use crate::grpc::{Address, token_exchange};
use crate::proto;
use crate::proto::credential::Identity;
use crate::target::Span;

/// The subject token is taken from --subject-token-file, else from CARNET_SUBJECT_TOKEN.
#[derive(Debug, Args)]
pub(super) struct Exchange {
    /// Name of a target in the broker's configuration; several times for several credentials, all or nothing
    #[arg(long = "target", value_name = "TARGET", required = true)]
    targets: Vec<String>,
    /// A subset of the target's scopes; with one target only
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Ask for an ID token with this audience instead of an access token
    #[arg(long, value_name = "AUDIENCE")]
    id_token_audience: Option<String>,
    /// Ask for this lifetime, such as 15m, instead of one scaled to the job
    #[arg(long, value_name = "DURATION", value_parser = span)]
    lifetime: Option<Span>,
    /// Unique identifier of the run
    #[arg(long, value_name = "ID")]
    job_id: Option<String>,
    /// Stable name of the pipeline or experiment
    #[arg(long, value_name = "NAME")]
    job_name: Option<String>,
    /// How long the job is expected to run, such as 9h
    #[arg(long, value_name = "DURATION", value_parser = span)]
    duration: Option<Span>,
    /// A label of the job; several times for several
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// A dataset that the job reads; several times for several
    #[arg(long = "dataset", value_name = "NAME")]
    datasets: Vec<String>,
    #[arg(long, value_enum, default_value_t = Output::Json)]
    output: Output,
    #[command(flatten)]
    broker: Broker,
}

/// Where the broker is, and who asks.
#[derive(Debug, Args)]
pub(super) struct Broker {
    /// http:// on loopback, https://, or unix:PATH
    #[arg(long, value_name = "ADDRESS", env = "CARNET_ADDRESS", default_value = "http://127.0.0.1:7443")]
    address: String,
    /// PEM file with authorities to trust besides the system's
    #[arg(long, value_name = "FILE", env = "CARNET_CA_FILE")]
    ca: Option<PathBuf>,
    /// File with the Entra access token; `-` is standard input
    #[arg(long, value_name = "FILE", env = "CARNET_SUBJECT_TOKEN_FILE")]
    subject_token_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Everything, as one JSON object
    Json,
    /// The token alone; with one target only
    Token,
    /// Lines for `eval` in a shell: the variables that the clouds' tools read
    Env,
}

fn span(text: &str) -> Result<Span, String> {
    text.parse::<Span>().map_err(|complaint| complaint.0.to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Exchange {
    pub async fn run(self) -> anyhow::Result<()> {
        if self.targets.len() > 1 && (self.output == Output::Token || !self.scopes.is_empty()) {
            return Err(usage("--output token and --scope go with one --target"));
        }
        let answer = self.broker.exchange(self.request()).await?;
        match self.output {
            Output::Json => print(serde_json::to_string_pretty(&json(&answer))?),
            Output::Token => answer.credentials.iter().for_each(|credential| print(&credential.token)),
            Output::Env => answer.credentials.iter().for_each(|credential| print(variables(credential))),
        }
        Ok(())
    }

    fn request(&self) -> proto::ExchangeRequest {
        let wire = |span: Option<Span>| span.and_then(|span| prost_types::Duration::try_from(span.0).ok());
        let id_token = self.id_token_audience.as_ref().map(|_audience| crate::target::TokenType::IdToken.urn());
        let target = |target: &String| proto::TargetRequest {
            target: target.clone(),
            scopes: self.scopes.clone(),
            requested_token_type: id_token.unwrap_or_default().to_owned(),
            audience: self.id_token_audience.clone().unwrap_or_default(),
            lifetime: wire(self.lifetime),
        };
        proto::ExchangeRequest {
            subject_token: String::new(),
            subject_token_type: String::new(),
            targets: self.targets.iter().map(target).collect(),
            job: Some(proto::Job {
                id: self.job_id.clone().unwrap_or_default(),
                name: self.job_name.clone().unwrap_or_default(),
                expected_duration: wire(self.duration),
                labels: self.labels.iter().cloned().collect(),
                datasets: self.datasets.clone(),
            }),
        }
    }
}

impl Broker {
    pub fn new(address: String, subject_token_file: PathBuf) -> Self {
        Self { address, ca: None, subject_token_file: Some(subject_token_file) }
    }

    /// `request` is sent with the subject token added.
    pub async fn exchange(&self, mut request: proto::ExchangeRequest) -> anyhow::Result<proto::ExchangeResponse> {
        request.subject_token = self.subject_token()?;
        let address = self.address.parse::<Address>();
        let address = address.map_err(|error| usage(format!("--address {}: {error}", self.address)))?;
        let connected = token_exchange(&address, self.ca.as_ref()).await;
        let mut client = connected.map_err(|error| Ended { exit: Exit::Unavailable, message: chain(&error) })?;
        let mut request = tonic::Request::new(request);
        request.set_timeout(CALL_DEADLINE);
        match client.exchange(request).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(ended(&status).into()),
        }
    }

    fn subject_token(&self) -> anyhow::Result<String> {
        let token = match (&self.subject_token_file, std::env::var("CARNET_SUBJECT_TOKEN")) {
            (Some(path), _) if path.as_os_str() == "-" => {
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .context("the subject token cannot be read from standard input")?;
                text
            }
            (Some(path), _) => std::fs::read_to_string(path)
                .with_context(|| format!("the subject token file {} cannot be read", path.display()))?,
            (None, Ok(token)) => token,
            (None, Err(_unset)) => {
                return Err(usage(
                    "no subject token: give --subject-token-file, or set CARNET_SUBJECT_TOKEN_FILE or CARNET_SUBJECT_TOKEN",
                ));
            }
        };
        match token.trim() {
            "" => bail!("the subject token is empty"),
            token => Ok(token.to_owned()),
        }
    }
}

fn usage(message: impl Into<String>) -> anyhow::Error {
    Ended { exit: Exit::Usage, message: message.into() }.into()
}

/// A little more than the broker allows itself.
const CALL_DEADLINE: Duration = Duration::from_secs(35);

/// The broker's words, its reason and the id to ask an operator about.
fn ended(status: &Status) -> Ended {
    let details = status.get_error_details();
    let info = details.error_info();
    let reason = info.map(|info| info.reason.as_str()).unwrap_or_default();
    let exit = match (reason, status.code()) {
        ("DENIED" | "GROUPS_OVERAGE", _) => Exit::Denied,
        (reason, _) if reason.starts_with("SUBJECT_TOKEN") || reason == "INSUFFICIENT_CLAIMS" => Exit::SubjectToken,
        (_, tonic::Code::Unavailable | tonic::Code::ResourceExhausted | tonic::Code::DeadlineExceeded) => {
            Exit::Unavailable
        }
        _ => Exit::Failed,
    };
    let id =
        info.and_then(|info| info.metadata.get("exchange_id")).map(|id| format!(", exchange {id}")).unwrap_or_default();
    let reason = if reason.is_empty() { format!("{:?}", status.code()) } else { reason.to_owned() };
    Ended { exit, message: format!("{} ({reason}{id})", status.message()) }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn json(answer: &proto::ExchangeResponse) -> Value {
    let credential = |credential: &proto::Credential| {
        let lifetime = credential.lifetime.unwrap_or_default();
        let seconds = |duration: Option<prost_types::Duration>| duration.map(|duration| duration.seconds);
        json!({
            "target": credential.target,
            "token": credential.token,
            "issued_token_type": credential.issued_token_type,
            "token_type": credential.token_type,
            "scopes": credential.scopes,
            "expires_at": rfc3339(credential.expires_at),
            "refresh_after": rfc3339(credential.refresh_after),
            "lifetime": {
                "requested_seconds": seconds(lifetime.requested),
                "granted_seconds": seconds(lifetime.granted),
                "bound": bound(credential),
            },
            "cached": credential.cached,
            "identity": match &credential.identity {
                Some(Identity::Google(google)) => json!({"google": {"principal": google.principal, "service_account": google.service_account}}),
                Some(Identity::Azure(azure)) => json!({"azure": {"tenant_id": azure.tenant_id, "client_id": azure.client_id}}),
                None => Value::Null,
            },
        })
    };
    json!({"exchange_id": answer.exchange_id, "credentials": answer.credentials.iter().map(credential).collect::<Vec<_>>()})
}

/// The bound as the contract names it, without its prefix.
pub(super) fn bound(credential: &proto::Credential) -> String {
    let bound = credential.lifetime.unwrap_or_default().bound();
    bound.as_str_name().trim_start_matches("LIFETIME_BOUND_").to_ascii_lowercase()
}

pub(super) fn rfc3339(time: Option<prost_types::Timestamp>) -> Option<String> {
    let time = time?;
    jiff::Timestamp::from_second(time.seconds).ok().map(|time| time.to_string())
}

/// gcloud and Terraform read Google's; Azure's tools read none, so its name is ours.
fn variables(credential: &proto::Credential) -> String {
    let names: &[&str] = match &credential.identity {
        Some(Identity::Google(_)) => &["CLOUDSDK_AUTH_ACCESS_TOKEN", "GOOGLE_OAUTH_ACCESS_TOKEN"],
        Some(Identity::Azure(_)) | None => &["AZURE_ACCESS_TOKEN"],
    };
    let token = credential.token.replace('\'', r"'\''");
    names.iter().map(|name| format!("export {name}='{token}'")).collect::<Vec<_>>().join("\n")
}

//! `carnet explain`: why a request is allowed or denied, asked of a broker or of a configuration file.

mod show;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use clap::Args;
use serde_json::{Map, Value};
use uuid::Uuid;

use self::show::Output;
use super::broker::{Bearer, Broker, SubjectToken, answer, token, usage};
use super::request::Details;
use super::{Ended, Exit, print, print_json, remark};
use crate::audit::Records;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::grpc;
use crate::http::Client;
use crate::json::UniqueMap;
use crate::operator::{Explained, Explainer};
use crate::proto;
use crate::proto::explain_request::Subject;
use crate::proto::operator_client::OperatorClient;
use crate::step::Step;
use crate::store;
use crate::subject::EntraVerifier;

/// Why a request is allowed or denied, step by step, with what would mend it
///
/// It takes what `carnet exchange` takes and shows every step from the subject token to the lifetime; nothing is issued.
///
/// With EXCHANGE_ID, a recorded decision is explained, and its question asked again of the rules that hold now.
///
/// Else, whose request it is: the subject token comes from the sources of `carnet exchange` (--subject-token-file,
/// CARNET_SUBJECT_TOKEN, ...); with --claims it is made of claims, which are taken as verified.
///
/// Who asks: the token in --operator-token-file or CARNET_OPERATOR_TOKEN, which needs the permission `explain`; without
/// them, the token of the usual sources. With --config nobody is asked: the file's rules answer, a token is checked with
/// the keys that Entra publishes, and claims need no network at all.
///
/// Exit codes: 0 allowed, 3 it would be denied, 4 the subject token would be refused; 1 the rules allow it and something
/// else fails, or nothing could be explained; 2 usage; 5 the broker is unavailable.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// A decision that is on record, by the id that its caller was told: why it came out so, and whether it would again
    #[arg(value_name = "EXCHANGE_ID", conflicts_with_all = ["targets", "claims"])]
    exchange_id: Option<Uuid>,
    /// Name of a target in the broker's configuration; several times for several. Without one, the subject is looked at
    #[arg(long = "target", value_name = "TARGET")]
    targets: Vec<String>,
    /// A JSON object with the claims of a token, instead of a token; `-` is standard input
    #[arg(long, value_name = "FILE")]
    claims: Option<PathBuf>,
    /// Ask the rules of this configuration file instead of a broker
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// File with the Entra access token of whoever asks; `-` is standard input
    #[arg(long, value_name = "FILE", env = "CARNET_OPERATOR_TOKEN_FILE")]
    operator_token_file: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    details: Details,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    subject_token: SubjectToken,
}

impl Explain {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let request = match self.exchange_id {
            Some(id) => proto::ExplainRequest { exchange_id: id.to_string(), ..Default::default() },
            None => proto::ExplainRequest {
                subject: Some(self.subject().await?),
                targets: self.details.targets(&self.targets),
                job: Some(self.details.job()),
                ..Default::default()
            },
        };
        let Told { allowed, steps } = match &self.config {
            Some(path) => offline(path, request).await?,
            None => self.online(request).await?,
        };
        match self.output {
            Output::Table => {
                print(show::table(&steps));
                remark(verdict(allowed, &steps));
            }
            Output::Json => print_json(&show::json(allowed, &steps))?,
        }
        Ok(exit(allowed, &steps))
    }

    async fn subject(&self) -> anyhow::Result<Subject> {
        Ok(match &self.claims {
            Some(path) => Subject::Claims(structure(claims(path)?)),
            None => Subject::SubjectToken(self.subject_token.token(&self.broker).await?),
        })
    }

    async fn online(&self, request: proto::ExplainRequest) -> anyhow::Result<Told> {
        let bearer = Bearer::new(&self.operator_token().await?)?;
        let mut client = OperatorClient::new(self.broker.connect().await?).max_decoding_message_size(ANSWER_MAX_BYTES);
        let answered = answer(client.explain(bearer.show(request)).await).map_err(|error| self.not_told(error))?;
        Ok(Told { allowed: answered.allowed, steps: answered.steps.into_iter().map(grpc::step).collect() })
    }

    async fn operator_token(&self) -> anyhow::Result<String> {
        match (&self.operator_token_file, std::env::var_os(OPERATOR_TOKEN)) {
            (None, None) => self.subject_token.token(&self.broker).await,
            (file, _) => token("operator token", file.as_deref(), OPERATOR_TOKEN),
        }
    }

    /// Whoever asks was refused, and nothing was explained: an exit code of its own would be taken for the answer.
    fn not_told(&self, error: anyhow::Error) -> anyhow::Error {
        let ended = match error.downcast::<Ended>() {
            Ok(ended) => ended,
            Err(other) => return other,
        };
        match ended.exit {
            Exit::Denied | Exit::SubjectToken => {
                let hint = "whoever asks needs the permission `explain`: see `operators` in the broker's configuration, \
                            and give their token with --operator-token-file";
                anyhow!("{}; {hint}", ended.message)
            }
            Exit::Failed | Exit::Usage | Exit::Unavailable => ended.into(),
        }
    }
}

/// What was explained.
struct Told {
    allowed: bool,
    steps: Vec<Step>,
}

async fn offline(path: &Path, request: proto::ExplainRequest) -> anyhow::Result<Told> {
    let config = Config::load(path)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let verifier = EntraVerifier::new(config.entra.clone(), Client::new(&config.outbound)?, clock.clone());
    let records = match request.exchange_id.is_empty() {
        true => None,
        false => Some(Records::new(store::open_to_read(&config.store).await?)),
    };
    let explainer = Explainer {
        verifier: Arc::new(verifier),
        policy: Arc::new(config.policy),
        entra: config.entra,
        issuer: config.issuer.map(|issuer| issuer.url),
        clock,
        records,
        running: None,
    };
    let explained = explainer.explain(grpc::explain_request(request)).await;
    let Explained { allowed, steps, .. } = explained.map_err(|error| usage(error.to_string()))?;
    Ok(Told { allowed, steps })
}

/// Of the first step that failed; what a cloud or the broker lacks is no denial.
fn exit(allowed: bool, steps: &[Step]) -> ExitCode {
    let failed = steps.iter().find(|step| step.has_failed()).map(|step| step.name.as_str());
    let exit = match (allowed, failed) {
        (true, None) => return ExitCode::SUCCESS,
        // The token that was refused is not on record.
        (true, Some(_)) | (false, None) => Exit::Failed,
        (false, Some(name)) if TOKEN_CHECKS.contains(&name) => Exit::SubjectToken,
        (false, Some(_)) => Exit::Denied,
    };
    ExitCode::from(exit as u8)
}

fn verdict(allowed: bool, steps: &[Step]) -> &'static str {
    match (allowed, steps.iter().find(|step| step.has_failed())) {
        (true, None) => "allowed",
        (true, Some(_)) => "the rules allow it, and something else fails",
        (false, Some(step)) if TOKEN_CHECKS.contains(&step.name.as_str()) => "the subject token is refused",
        (false, None) => "the record alone does not tell",
        (false, Some(_)) => "denied",
    }
}

/// What is asked of the token before the rules are.
const TOKEN_CHECKS: [&str; 7] = ["subject_token", "tenant", "signature", "issuer", "time", "audience", "kind"];

fn claims(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).context("the claims cannot be read from standard input")?;
    } else {
        text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    }
    let claims: Result<UniqueMap, _> = serde_json::from_str(&text);
    let claims = claims.map_err(|error| usage(format!("the claims are not one JSON object: {error}")))?;
    Ok(claims.0)
}

fn structure(object: Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct { fields: object.into_iter().map(|(name, value)| (name, value_of(value))).collect() }
}

fn value_of(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(truth),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => {
            Kind::ListValue(prost_types::ListValue { values: items.into_iter().map(value_of).collect() })
        }
        Value::Object(object) => Kind::StructValue(structure(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

const OPERATOR_TOKEN: &str = "CARNET_OPERATOR_TOKEN";

/// Hundreds of rules for each of sixteen targets.
const ANSWER_MAX_BYTES: usize = 32 * 1024 * 1024;

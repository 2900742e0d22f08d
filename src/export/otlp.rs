//! OTLP logs over gRPC as a way out: the collector's answer to each batch is awaited.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Kind;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use serde_json::Value;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::Format;
use super::ocsf::event_id;
use super::sink::{SendError, Sink, Taken};
use crate::http::Endpoint;
use crate::line::one_line;
use crate::proto::AuditRecord;
use crate::secret::Secret;

/// Where a collector is, and what it wants to see.
#[derive(Debug, Clone)]
pub struct OtlpSettings {
    pub endpoint: Endpoint,
    pub format: Format,
    /// Metadata of each call, such as `authorization`.
    pub headers: BTreeMap<String, Secret>,
    /// Trusted besides the system's authorities.
    pub ca_file: Option<PathBuf>,
}

/// One collector.
pub(super) struct Otlp {
    client: LogsServiceClient<Channel>,
    format: Format,
    headers: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
}

/// Why records can never be sent to a collector.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    #[error("cannot read the authorities in {path}")]
    CaFile { path: PathBuf, source: std::io::Error },
    #[error("cannot export audit records to {endpoint}")]
    Endpoint { endpoint: Endpoint, source: tonic::transport::Error },
    #[error("the header `{0}` cannot be sent: its name or its value has characters that none has")]
    Header(String),
}

impl OtlpSettings {
    /// # Errors
    /// [`OtlpError::Header`] names the first that cannot be sent.
    pub fn check(&self) -> Result<(), OtlpError> {
        self.headers.iter().try_for_each(|(name, value)| header(name, value).map(drop))
    }
}

impl Otlp {
    /// Connects when the first batch is sent.
    pub fn to(settings: &OtlpSettings) -> Result<Self, OtlpError> {
        let endpoint = &settings.endpoint;
        let failed = |source| OtlpError::Endpoint { endpoint: endpoint.clone(), source };
        let channel = Channel::from_shared(endpoint.to_string());
        // Every `Endpoint` is a URI; where tonic thinks otherwise, connecting says so.
        let channel = channel.unwrap_or_else(|_no_uri| Channel::from_static("http://[::1]:0"));
        let mut channel = channel.connect_timeout(CONNECT_TIMEOUT).timeout(DEADLINE);
        if endpoint.as_str().starts_with("https:") {
            let mut tls = ClientTlsConfig::new().with_native_roots();
            if let Some(path) = &settings.ca_file {
                let read = std::fs::read(path);
                let pem = read.map_err(|source| OtlpError::CaFile { path: path.clone(), source })?;
                tls = tls.ca_certificate(Certificate::from_pem(pem));
            }
            channel = channel.tls_config(tls).map_err(failed)?;
        }
        let headers = settings.headers.iter().map(|(name, value)| header(name, value)).collect::<Result<_, _>>()?;
        let client = LogsServiceClient::new(channel.connect_lazy()).max_decoding_message_size(ANSWER_MAX_BYTES);
        Ok(Self { client, format: settings.format, headers })
    }
}

/// As metadata of a call.
fn header(name: &str, value: &Secret) -> Result<(AsciiMetadataKey, AsciiMetadataValue), OtlpError> {
    let key = name.to_ascii_lowercase().parse::<AsciiMetadataKey>();
    match (key, value.expose().parse::<AsciiMetadataValue>()) {
        (Ok(key), Ok(mut value)) => {
            value.set_sensitive(true);
            Ok((key, value))
        }
        _ => Err(OtlpError::Header(name.to_owned())),
    }
}

#[async_trait::async_trait]
impl Sink for Otlp {
    async fn send(&mut self, batch: &[AuditRecord]) -> Result<Taken, SendError> {
        let mut request = Request::new(message(batch, self.format));
        for (name, value) in &self.headers {
            request.metadata_mut().insert(name.clone(), value.clone());
        }
        let answer = self.client.export(request).await.map_err(|status| failure(&status))?.into_inner();
        // OTLP: what is rejected in an answer that is a success must not be sent again.
        let Some(partial) = answer.partial_success else { return Ok(Taken::default()) };
        let rejected = usize::try_from(partial.rejected_log_records).unwrap_or_default().min(batch.len());
        Ok(Taken { rejected, why: one_line(&partial.error_message, MESSAGE_CHARACTERS) })
    }
}

/// OTLP (specification, failures) lists what may be asked again; a batch that is too large or malformed is sent in parts.
/// Whatever else is wrong, such as a missing permission, is for somebody to mend: nothing is dropped meanwhile.
fn failure(status: &Status) -> SendError {
    let retry_after = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
    let cause = format!("{:?}: {}", status.code(), one_line(status.message(), MESSAGE_CHARACTERS));
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => SendError::Refused(cause),
        // Without a time to wait, it is the size that is exhausted.
        Code::ResourceExhausted if retry_after.is_none() => SendError::Refused(cause),
        _ => SendError::Unavailable { cause, retry_after },
    }
}

fn message(batch: &[AuditRecord], format: Format) -> ExportLogsServiceRequest {
    let attributes =
        vec![text_attribute("service.name", "carnet"), text_attribute("service.version", env!("CARGO_PKG_VERSION"))];
    let scope = InstrumentationScope {
        name: "carnet.audit".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let logs = ScopeLogs {
        scope: Some(scope),
        log_records: batch.iter().map(|record| log_record(record, format)).collect(),
        ..ScopeLogs::default()
    };
    let resource = Resource { attributes, ..Resource::default() };
    let logs = ResourceLogs { resource: Some(resource), scope_logs: vec![logs], ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![logs] }
}

fn log_record(record: &AuditRecord, format: Format) -> LogRecord {
    let time = record.time.unwrap_or_default();
    let nanoseconds = time.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanos));
    let time_unix_nano = u64::try_from(nanoseconds).unwrap_or_default();
    let severity = match record.outcome.as_str() {
        "denied" => SeverityNumber::Warn,
        "failed" => SeverityNumber::Error,
        _ => SeverityNumber::Info,
    };
    LogRecord {
        time_unix_nano,
        observed_time_unix_nano: time_unix_nano,
        severity_number: severity.into(),
        severity_text: severity.as_str_name().trim_start_matches("SEVERITY_NUMBER_").to_owned(),
        body: Some(any(format.of(record))),
        attributes: vec![
            text_attribute("log.record.uid", &event_id(record)),
            text_attribute("carnet.exchange_id", &record.exchange_id),
        ],
        event_name: format!("carnet.audit.{}", record.action),
        ..LogRecord::default()
    }
}

fn text_attribute(name: &str, value: &str) -> KeyValue {
    attribute(name.to_owned(), Value::from(value))
}

fn attribute(key: String, value: Value) -> KeyValue {
    KeyValue { key, value: Some(any(value)), ..KeyValue::default() }
}

fn any(value: Value) -> AnyValue {
    let kind = match value {
        Value::Null => None,
        Value::Bool(value) => Some(Kind::BoolValue(value)),
        Value::Number(number) => Some(match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Kind::IntValue(whole),
            (None, Some(value)) => Kind::DoubleValue(value),
            (None, None) => Kind::StringValue(number.to_string()),
        }),
        Value::String(text) => Some(Kind::StringValue(text)),
        Value::Array(values) => Some(Kind::ArrayValue(ArrayValue { values: values.into_iter().map(any).collect() })),
        Value::Object(members) => {
            let values = members.into_iter().map(|(name, value)| attribute(name, value)).collect();
            Some(Kind::KvlistValue(KeyValueList { values }))
        }
    };
    AnyValue { value: kind }
}

impl fmt::Debug for Otlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Otlp({})", self.format)
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Below the patience of whoever ships.
const DEADLINE: Duration = Duration::from_secs(8);

/// A collector answers with a few words.
const ANSWER_MAX_BYTES: usize = 64 * 1024;

/// Of what a collector says, for our log.
const MESSAGE_CHARACTERS: usize = 300;

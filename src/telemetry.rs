//! Logs, traces and metrics: where they go, and what the metrics mean.

mod json;
mod lines;

use std::error::Error;
use std::fmt::Display;
use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;
use std::time::Duration;

use metrics::Gauge;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use schemars::JsonSchema;
use serde::Deserialize;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, filter, fmt};

use self::json::Json;
use self::lines::{Flush, Lines};
use crate::http::Endpoint;

/// Where a process reports to.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// OTLP over gRPC; absent: no traces.
    pub otlp: Option<Endpoint>,
    pub log: LogFormat,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Json,
    Text,
}

/// Dropping it writes out what is still on its way.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    _logs: Flush,
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("cannot export traces to {endpoint}")]
    Otlp { endpoint: Endpoint, source: opentelemetry_otlp::ExporterBuildError },
    #[error("no thread for the log")]
    Thread(#[from] io::Error),
    #[error("another log subscriber is installed")]
    Logs(#[from] tracing_subscriber::util::TryInitError),
}

/// Logs to standard error. `RUST_LOG` chooses what.
///
/// # Errors
/// [`InstallError`] where the exporter's address is refused, or when called twice.
pub fn install(settings: &Settings) -> Result<Telemetry, InstallError> {
    let (lines, flush) = Lines::to_stderr()?;
    let chosen = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info"));
    let logs = fmt::layer().with_writer(lines).with_target(false).with_ansi(io::stderr().is_terminal());
    let logs = match settings.log {
        LogFormat::Json => logs.event_format(Json).boxed(),
        LogFormat::Text => logs.boxed(),
    };
    let traces = settings.otlp.as_ref().map(exporter).transpose()?;
    let spans = traces.as_ref().map(|traces| {
        let ours = filter::Targets::new().with_target(SPANS, tracing::Level::DEBUG);
        tracing_opentelemetry::layer().with_tracer(traces.tracer("carnet")).with_filter(ours)
    });
    tracing_subscriber::registry().with(logs.with_filter(chosen)).with(spans).try_init()?;
    Ok(Telemetry { traces, _logs: flush })
}

fn exporter(endpoint: &Endpoint) -> Result<SdkTracerProvider, InstallError> {
    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(endpoint.as_str()).with_timeout(EXPORT_DEADLINE).build();
    let exporter = exporter.map_err(|source| InstallError::Otlp { endpoint: endpoint.clone(), source })?;
    let service = Resource::builder().with_service_name("carnet").build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(service).build())
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(traces) = &self.traces {
            // A collector that is away must not keep the process from ending.
            let _ = traces.shutdown_with_timeout(EXPORT_DEADLINE);
        }
    }
}

/// The target of the spans that are exported: without an exporter they cost nothing.
pub const SPANS: &str = "carnet::spans";

/// An error with everything that led to it, in one line: log lines have a place for one text.
#[derive(Debug)]
pub struct Causes<'a>(pub &'a (dyn Error + 'static));

impl Display for Causes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        std::iter::successors(self.0.source(), |error| (*error).source()).try_for_each(|error| write!(f, ": {error}"))
    }
}

/// How much a cache holds, by its own count: looked up in the registry once.
#[derive(Debug)]
pub struct CacheSize {
    entries: Gauge,
    bytes: Gauge,
}

impl CacheSize {
    /// `cache` is the label.
    pub fn of(cache: &'static str) -> Self {
        Self {
            entries: metrics::gauge!("carnet_cache_entries", "cache" => cache),
            bytes: metrics::gauge!("carnet_cache_bytes", "cache" => cache),
        }
    }

    pub fn set(&self, entries: u64, bytes: u64) {
        self.entries.set(entries as f64);
        self.bytes.set(bytes as f64);
    }
}

/// The process's metrics, recorded from the first call on.
pub fn metrics() -> &'static PrometheusHandle {
    static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
    METRICS.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        let builder = builder.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS);
        let builder = builder
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_records".to_owned()), &RECORDS));
        let recorder = builder.unwrap_or_else(|_no_buckets| PrometheusBuilder::new()).build_recorder();
        let handle = recorder.handle();
        // Another recorder is there only where a test brought its own.
        let _ = metrics::set_global_recorder(recorder);
        describe();
        handle
    })
}

/// The exporter drops what it has merged only when it is told to.
pub async fn upkeep() {
    let mut tick = tokio::time::interval(UPKEEP_EVERY);
    loop {
        tick.tick().await;
        metrics().run_upkeep();
    }
}

fn describe() {
    for (name, meaning) in COUNTERS {
        metrics::describe_counter!(name, meaning);
    }
    for (name, meaning) in GAUGES {
        metrics::describe_gauge!(name, meaning);
    }
    for (name, meaning) in HISTOGRAMS {
        metrics::describe_histogram!(name, meaning);
    }
}

/// Every counter, with its meaning. Labels are closed lists; no subject, tenant or target is one.
pub const COUNTERS: [(&str, &str); 18] = [
    ("carnet_agent_requests_total", "Requests to the agent by outcome: answered, refused, away"),
    ("carnet_exchanges_shed_total", "Exchanges that were turned away because too many were under way"),
    ("carnet_exchanges_total", "Exchanges by door, outcome and reason"),
    ("carnet_cache_lookups_total", "Look-ups by cache and outcome: hit, miss, joined a call under way, stale, failed"),
    ("carnet_shared_credentials_total", "Mints by what the replicas' store said: found, minted here, away"),
    ("carnet_upstream_requests_total", "HTTP calls to the clouds by hop and outcome"),
    ("carnet_entra_key_fetches_total", "Fetches of Entra's signing keys by outcome"),
    ("carnet_issuer_key_reloads_total", "Reloads of the issuer's keys by outcome"),
    ("carnet_audit_records_total", "Audit records by outcome and reason"),
    (
        "carnet_audit_shipped_total",
        "Audit records by outlet and what became of them: shipped, rejected for good, lost: not in the log any more before they were shipped",
    ),
    (
        "carnet_audit_shipping_failures_total",
        "Times that an outlet, or the store before it, did not do what it was asked",
    ),
    ("carnet_audit_write_failures_total", "Groups of audit records that could not be written"),
    (
        "carnet_negative_proofs_total",
        "Tokens that had to be refused, by door, fault and outcome: refused, other_reason, taken, unproven",
    ),
    ("carnet_policy_reloads_total", "Reloads of the configuration file by outcome"),
    (
        "carnet_shadow_decisions_total",
        "Decisions that the shadow rules were asked about, by difference: same, would_allow, would_deny, other_rule, other_lifetime, failed",
    ),
    ("carnet_tls_reloads_total", "Reloads of the server certificate by outcome"),
    (
        "carnet_lease_calls_total",
        "What was done with leases, by action: open, beat, extend, credentials, watch, close, expire, revoke",
    ),
    ("carnet_connections_refused_total", "Connections that were not served, by reason"),
];

pub const GAUGES: [(&str, &str); 17] = [
    (
        "carnet_audit_changed",
        "1 where the store no longer has the audit record that this broker's last checkpoint covers",
    ),
    (
        "carnet_audit_held_chains",
        "Chains of the audit log with records that seem to be past audit.retention and cannot be proven to be; the log says why",
    ),
    (
        "carnet_audit_missing",
        "Audit records by outlet that it has later ones than, and that are not in the log: a spool has them",
    ),
    ("carnet_audit_unshipped", "Audit records by outlet that it does not have yet; 0 where another replica ships"),
    (
        "carnet_audit_spooled_groups",
        "Groups of audit records in the spool, not yet in PostgreSQL; at most 10000 are counted",
    ),
    ("carnet_negative_proof_failed", "1 where a token of the last round was taken that had to be refused"),
    ("carnet_shadow_stale", "1 while the file of shadow rules cannot be used and nothing is compared"),
    ("carnet_tls_stale", "1 while a changed server certificate cannot be used and the old one is served"),
    ("carnet_policy_stale", "1 while the configuration file cannot be loaded and old rules are in force"),
    (
        "carnet_issuer_key_age_seconds",
        "How long the issuer's signing key has signed, by algorithm; keys of the store only",
    ),
    ("carnet_issuer_keys_stale", "1 while the issuer's keys cannot be read and the old ones sign"),
    ("carnet_cache_entries", "Entries by cache"),
    ("carnet_cache_bytes", "Weight in bytes by cache"),
    ("carnet_connections", "Open connections by listener"),
    ("carnet_tasks", "Tasks of the broker that have not ended"),
    ("carnet_watches", "Watches of leases that are open at this replica"),
    ("carnet_ready", "1 while the broker is ready"),
];

pub const HISTOGRAMS: [(&str, &str); 4] = [
    ("carnet_exchange_seconds", "Time from request to answer by outcome"),
    ("carnet_upstream_request_seconds", "Time of one HTTP call by hop"),
    ("carnet_audit_write_seconds", "Time to make a group of audit records durable"),
    ("carnet_audit_group_records", "Audit records per group"),
];

const SECONDS: [f64; 12] = [0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 10.0];
const RECORDS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 512.0];

const EXPORT_DEADLINE: Duration = Duration::from_secs(3);
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_shown_with_all_that_led_to_it() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot write")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(Causes(&Outer(std::io::Error::other("disk full"))).to_string(), "cannot write: disk full");
    }
}

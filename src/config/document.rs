//! The configuration file's form: sections as they are written, before anything is checked against anything else.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use crate::export::Format;
use crate::http::Endpoint;
use crate::policy::{OperatorDocument, RuleDocument};
use crate::secret::Secret;
use crate::target::{Guid, Name, PoolProvider, Scope, ServiceAccount, Span};
use crate::telemetry::LogFormat;

/// carnet's configuration.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    #[serde(default)]
    pub server: ServerDocument,
    pub entra: EntraDocument,
    pub issuer: Option<IssuerDocument>,
    #[serde(default)]
    pub targets: BTreeMap<Name, TargetDocument>,
    /// Any one that matches allows; none: denied.
    #[serde(default)]
    pub rules: Vec<RuleDocument>,
    #[serde(default)]
    pub operators: Vec<OperatorDocument>,
    /// Rules that are asked beside `rules` on live traffic, to compare: they decide nothing.
    pub shadow: Option<ShadowDocument>,
    #[serde(default)]
    pub outbound: OutboundDocument,
    /// `sqlite:PATH`, or `postgres://USER@HOST/DATABASE` for several replicas
    #[serde(default = "default_store")]
    #[schemars(with = "String")]
    pub store: Secret,
    /// 32 bytes in base64: encrypts what the store keeps secret. Of a list, the first seals and all of them open; an older
    /// one can go when no lease is open that was opened before the new one came.
    #[serde(default)]
    #[schemars(with = "OneOrMany")]
    pub store_key: StoreKeys,
    #[serde(default)]
    pub audit: AuditDocument,
    #[serde(default)]
    pub limits: LimitsDocument,
    #[serde(default)]
    pub negative_proof: NegativeProofDocument,
    #[serde(default)]
    pub telemetry: TelemetryDocument,
}

/// One text or a list of them.
#[derive(Debug, Default)]
pub(super) struct StoreKeys(pub Vec<Secret>);

/// The same for the schema.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes; is never made")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for StoreKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = StoreKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key or a list of keys")
            }

            fn visit_str<E>(self, text: &str) -> Result<StoreKeys, E> {
                Ok(StoreKeys(vec![Secret::new(text)]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<StoreKeys, A::Error> {
                let mut keys = Vec::new();
                while let Some(key) = list.next_element()? {
                    keys.push(key);
                }
                Ok(StoreKeys(keys))
            }
        }

        deserializer.deserialize_any(Keys)
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerDocument {
    /// `ADDRESS:PORT`, `unix:PATH` or `off`
    #[serde(default = "default_grpc")]
    pub grpc: String,
    /// `ADDRESS:PORT`, `unix:PATH` or `off`
    #[serde(default = "default_http")]
    pub http: String,
    /// Required unless the address is loopback.
    pub tls: Option<TlsDocument>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsDocument {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    /// Mutual TLS: callers show a certificate of one of these authorities.
    pub client_ca: Option<PathBuf>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EntraDocument {
    /// Sovereign clouds: their host.
    #[serde(default = "default_authority")]
    pub authority: Endpoint,
    pub tenants: Vec<Guid>,
    pub audiences: Vec<String>,
    #[serde(default = "default_clock_skew")]
    pub clock_skew: Span,
}

/// The broker as an OIDC issuer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct IssuerDocument {
    /// Exactly what the clouds are told to trust.
    pub url: String,
    /// PEM keys from outside, read again when they change: the first of each algorithm signs, all are published.
    /// Otherwise keys are made, rotated and kept in the store.
    #[serde(default)]
    pub key_files: Vec<PathBuf>,
    /// How long a key of the store signs.
    #[serde(default = "default_rotate_every")]
    pub rotate_every: Span,
    /// A new key of the store is published this long before it signs.
    #[serde(default = "default_publish_ahead")]
    pub publish_ahead: Span,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TargetDocument {
    pub google: Option<GoogleDocument>,
    pub azure: Option<AzureDocument>,
    #[serde(default)]
    pub sharing: SharingDocument,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum SharingDocument {
    #[default]
    Subject,
    Target,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GoogleDocument {
    pub audience: PoolProvider,
    #[serde(default)]
    pub subject_token: SubjectTokenDocument,
    pub service_account: Option<ServiceAccount>,
    /// Whether callers may have the broker's assertion, to redeem it at Google themselves: scopes, impersonation and
    /// lifetime are then Google's to bound. With `subject_token: issuer` only.
    #[serde(default)]
    pub hand_out_assertion: bool,
    #[serde(default = "default_google_scopes")]
    pub scopes: Vec<Scope>,
    /// Up to 12h where the organization policy allows it.
    #[serde(default = "default_google_lifetime")]
    pub max_lifetime: Span,
    /// Where neither the request nor its job says how long; default: 1h, or max_lifetime where that is less.
    pub default_lifetime: Option<Span>,
    #[serde(default = "default_sts")]
    pub sts_endpoint: Endpoint,
    #[serde(default = "default_iam_credentials")]
    pub iam_credentials_endpoint: Endpoint,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum SubjectTokenDocument {
    #[default]
    Issuer,
    Entra,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AzureDocument {
    pub tenant: Guid,
    pub client_id: Guid,
    pub source: SourceDocument,
    /// `sub` of the broker's assertion; default: `carnet:` and the target's name.
    pub subject: Option<String>,
    pub scopes: Vec<Scope>,
    /// Default: the one of `entra`.
    pub authority: Option<Endpoint>,
    /// `source: token_file` only.
    pub token_file: Option<PathBuf>,
    /// `source: managed_identity` only; default: IDENTITY_ENDPOINT of the environment, else http://169.254.169.254.
    pub endpoint: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum SourceDocument {
    Issuer,
    TokenFile,
    ManagedIdentity,
    OnBehalfOf,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ShadowDocument {
    /// A file with `rules` and, where they differ, `targets`; relative to this one. It is watched, too.
    pub file: PathBuf,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OutboundDocument {
    /// Trusted besides the system's roots.
    pub ca_file: Option<PathBuf>,
    /// How many credentials watches may have renewed in a second: when many are due at once, the soonest to expire come
    /// first. Below what Google's token service takes per project, so that others who call have the rest.
    #[serde(default = "default_renewals")]
    pub renewals_per_second: NonZeroU32,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditDocument {
    #[serde(default = "default_retention")]
    pub retention: Span,
    /// With PostgreSQL only: a file of this broker's own, for records while PostgreSQL is away. Without it nothing is
    /// released then.
    pub spool: Option<PathBuf>,
    /// Where records are shipped to besides the store: each of them at least once.
    #[serde(default)]
    pub sinks: Vec<SinkDocument>,
}

/// One of `stdout` and `otlp`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SinkDocument {
    /// Where it has come to is kept under this name; default: `stdout` or `otlp`.
    pub name: Option<Name>,
    /// Lines of JSON.
    pub stdout: Option<StdoutDocument>,
    /// OpenTelemetry logs over gRPC.
    pub otlp: Option<OtlpDocument>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StdoutDocument {
    #[serde(default)]
    pub format: Format,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OtlpDocument {
    pub endpoint: Endpoint,
    #[serde(default)]
    pub format: Format,
    /// Metadata of each call, such as `authorization`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub headers: BTreeMap<String, Secret>,
}

/// How much one caller, or one address, may ask for before it has to wait.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitsDocument {
    #[serde(default)]
    pub per_caller: CallerLimitDocument,
    #[serde(default)]
    pub per_peer: PeerLimitDocument,
}

/// A caller is a tenant's object, whatever tokens it shows and wherever it calls from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CallerLimitDocument {
    /// Beyond the burst; renewals of leases that are watched do not count.
    #[serde(default = "default_exchanges")]
    pub exchanges_per_second: NonZeroU32,
    /// At once: a gang of workers has one identity.
    #[serde(default = "default_exchange_burst")]
    pub burst: NonZeroU32,
}

/// A peer is an address of IPv4 or 64 bits of IPv6. Only refused tokens and what strangers leave in the audit log count.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PeerLimitDocument {
    /// Beyond the burst.
    #[serde(default = "default_refusals")]
    pub refusals_per_second: NonZeroU32,
    #[serde(default = "default_refusal_burst")]
    pub burst: NonZeroU32,
}

/// Tokens that must be refused, which the broker shows to itself.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NegativeProofDocument {
    /// 1m to 1d.
    #[serde(default = "default_prove_every")]
    pub every: Span,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TelemetryDocument {
    pub otlp: Option<Endpoint>,
    #[serde(default)]
    pub log: LogFormat,
}

impl Default for ServerDocument {
    fn default() -> Self {
        Self { grpc: default_grpc(), http: default_http(), tls: None }
    }
}

impl Default for OutboundDocument {
    fn default() -> Self {
        Self { ca_file: None, renewals_per_second: default_renewals() }
    }
}

/// Four fifths of what the broker lets itself call Google's token service.
fn default_renewals() -> NonZeroU32 {
    NonZeroU32::new(72).unwrap_or(NonZeroU32::MIN)
}

impl Default for AuditDocument {
    fn default() -> Self {
        Self { retention: default_retention(), spool: None, sinks: Vec::new() }
    }
}

impl Default for CallerLimitDocument {
    fn default() -> Self {
        Self { exchanges_per_second: default_exchanges(), burst: default_exchange_burst() }
    }
}

impl Default for PeerLimitDocument {
    fn default() -> Self {
        Self { refusals_per_second: default_refusals(), burst: default_refusal_burst() }
    }
}

/// Seventeen million a day of one identity.
fn default_exchanges() -> NonZeroU32 {
    number(200)
}

/// A gang of ten thousand workers, and another one.
fn default_exchange_burst() -> NonZeroU32 {
    number(20_000)
}

/// A refused token costs some 50 µs and a record.
fn default_refusals() -> NonZeroU32 {
    number(20)
}

fn default_refusal_burst() -> NonZeroU32 {
    number(200)
}

const fn number(number: u32) -> NonZeroU32 {
    match NonZeroU32::new(number) {
        Some(number) => number,
        None => NonZeroU32::MIN,
    }
}

impl Default for NegativeProofDocument {
    fn default() -> Self {
        Self { every: default_prove_every() }
    }
}

macro_rules! defaults {
    ($($name:ident: $type:ty = $value:expr;)+) => {
        $(pub(super) fn $name() -> $type { $value })+
    };
}

const fn seconds(seconds: u64) -> Span {
    Span(std::time::Duration::from_secs(seconds))
}

#[expect(clippy::expect_used, reason = "a literal; a test reads every default")]
fn literal<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a good default")
}

defaults! {
    default_grpc: String = "127.0.0.1:7443".to_owned();
    default_http: String = "127.0.0.1:7080".to_owned();
    default_authority: Endpoint = literal("https://login.microsoftonline.com");
    default_clock_skew: Span = seconds(300);
    default_rotate_every: Span = seconds(30 * 86_400);
    default_publish_ahead: Span = seconds(86_400);
    default_google_scopes: Vec<Scope> = vec![literal("https://www.googleapis.com/auth/cloud-platform")];
    default_google_lifetime: Span = seconds(3600);
    default_sts: Endpoint = literal("https://sts.googleapis.com");
    default_iam_credentials: Endpoint = literal("https://iamcredentials.googleapis.com");
    default_store: Secret = Secret::new("sqlite:carnet.db");
    default_retention: Span = seconds(90 * 86_400);
    default_prove_every: Span = seconds(3600);
}

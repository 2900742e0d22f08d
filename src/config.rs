//! The configuration file as every module's settings: all mistakes at once, each with its line.

mod agent;
mod cases;
mod document;
mod outlets;
mod rules;
mod shadow;
mod source;
mod targets;

pub use agent::AgentConfig;
pub use cases::Cases;
pub use rules::PolicyFile;
pub use shadow::ShadowFile;
pub use source::Fault;

use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use self::document::{Document, EntraDocument, IssuerDocument, LimitsDocument, ServerDocument, TlsDocument};
use self::source::Source;
use crate::export::OutletSettings;
use crate::http::{self, Endpoint};
use crate::issuer::Schedule;
use crate::limit::{self, Rate};
use crate::policy::{Mistake, Operators, Policy};
use crate::secret::{SealingKeys, Secret, sha256};
use crate::socket::{Address, InvalidAddress};
use crate::store::StoreSettings;
use crate::subject;
use crate::telemetry;

/// A whole configuration, checked.
#[derive(Debug)]
pub struct Config {
    pub server: ServerSettings,
    pub entra: subject::Settings,
    pub issuer: Option<IssuerSettings>,
    /// Targets and rules: the part that a changed file replaces while the broker runs.
    pub policy: Policy,
    pub operators: Operators,
    /// Rules that are asked beside the policy's and decide nothing.
    pub shadow: Option<ShadowFile>,
    pub outbound: http::Settings,
    /// How many credentials watches may have renewed in a second.
    pub renewals_per_second: NonZeroU32,
    pub store: StoreSettings,
    /// The first seals, all of them open; none: the store keeps no secrets.
    pub store_key: Vec<Secret>,
    /// How long audit records are kept.
    pub retention: Duration,
    /// Where audit records are shipped to.
    pub outlets: Vec<OutletSettings>,
    /// How much one caller, or one address, may ask for.
    pub limits: limit::Settings,
    /// Between two rounds of tokens that must be refused.
    pub prove_every: Duration,
    pub telemetry: telemetry::Settings,
    /// Of everything but the policy: a difference needs a restart.
    pub fixed: [u8; 32],
    /// SHA-256 of the file.
    pub digest: [u8; 32],
}

#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// `None`: off.
    pub grpc: Option<Address>,
    /// `None`: off.
    pub http: Option<Address>,
    pub tls: Option<TlsSettings>,
}

/// Paths of PEM files, read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct IssuerSettings {
    pub url: String,
    /// Empty: the keys are in the store.
    pub key_files: Vec<PathBuf>,
    pub schedule: Schedule,
}

/// Everything that is wrong with a file.
#[derive(Debug, Clone)]
pub struct ConfigError {
    pub path: PathBuf,
    pub faults: Vec<Fault>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be used:", self.path.display())?;
        self.faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// # Errors
    /// Every mistake of the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with(path, &|name| std::env::var(name).ok())
    }

    /// `environment` stands for the process's own.
    pub fn load_with(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        load(path, environment, |document, digest, mistakes| Self::build(path, document, digest, environment, mistakes))
    }

    /// The JSON Schema of the file.
    pub fn schema() -> schemars::Schema {
        schemars::schema_for!(Document)
    }

    fn build(
        path: &Path,
        document: Document,
        digest: [u8; 32],
        environment: &dyn Fn(&str) -> Option<String>,
        mistakes: &mut Vec<Mistake>,
    ) -> Option<Self> {
        let Document { server: s, entra: e, issuer: i, outbound: o, audit: a, telemetry: t, .. } = &document;
        let (n, l) = (&document.negative_proof, &document.limits);
        let secrets: Vec<_> =
            std::iter::once(&document.store).chain(&document.store_key.0).map(Secret::sha256).collect();
        let headers: Vec<_> = outlets::secrets(&document.audit.sinks).map(Secret::sha256).collect();
        let fixed =
            sha256(format!("{s:?} {e:?} {i:?} {o:?} {a:?} {l:?} {n:?} {t:?} {secrets:?} {headers:?}").as_bytes());
        let server = server(&document.server, mistakes);
        let entra = entra(&document.entra, mistakes);
        let issuer = issuer(document.issuer.as_ref(), mistakes);
        let targets = targets::compile(&document.targets, &document.entra.authority, environment, mistakes);
        let asserted = targets.iter().flatten().find(|target| target.needs_issuer());
        if let (Some(target), None) = (asserted, &issuer) {
            let message = format!("is missing: target {} is reached with the broker's own assertions", target.name);
            mistakes.push(Mistake { at: "issuer".to_owned(), message });
        }
        let outbound = http::Settings { ca_file: document.outbound.ca_file };
        let store = StoreSettings::parse(&document.store, &outbound);
        let store =
            store.map_err(|error| mistakes.push(Mistake { at: "store".to_owned(), message: error.to_string() }));
        let store = store.and_then(|store| with_spool(store, document.audit.spool.as_ref(), mistakes));
        let keeps_keys = issuer.as_ref().is_some_and(|issuer| issuer.key_files.is_empty());
        let keeps = match keeps_keys {
            true => Some("the issuer's keys are kept in the store"),
            false if document.rules.iter().any(|rule| rule.lease.is_some()) => {
                Some("leases outlive the process, and who opened them is kept in the store")
            }
            false => None,
        };
        mistakes.extend(store_key(&document.store_key.0, keeps, store.as_ref().ok()));
        let operators = Operators::compile(&document.operators, mistakes);
        if document.audit.retention.0 < SHORTEST_RETENTION {
            let message =
                "is at least 2d: introspection and every question about yesterday need the records".to_owned();
            mistakes.push(Mistake { at: "audit.retention".to_owned(), message });
        }
        let outlets = outlets::compile(&document.audit.sinks, outbound.ca_file.as_ref(), mistakes);
        if !PROVE_EVERY.contains(&document.negative_proof.every.0) {
            let message = "is 1m to 1d: whether bad tokens are refused is proved at least once a day".to_owned();
            mistakes.push(Mistake { at: "negative_proof.every".to_owned(), message });
        }
        let policy = match targets {
            Some(targets) => Policy::compile(&document.rules, targets).map_err(|found| mistakes.extend(found)).ok(),
            None => {
                // The rules have mistakes of their own; that they name targets which are wrong is none.
                let found = Policy::compile(&document.rules, Vec::new()).err().unwrap_or_default();
                mistakes.extend(found.into_iter().filter(|mistake| !mistake.at.contains(".targets[")));
                None
            }
        };
        Some(Self {
            server: server?,
            entra: entra?,
            issuer,
            policy: policy?,
            operators,
            shadow: document.shadow.map(|shadow| ShadowFile::named(&shadow.file, path)),
            outbound,
            renewals_per_second: document.outbound.renewals_per_second,
            store: store.ok()?,
            store_key: document.store_key.0,
            retention: document.audit.retention.0,
            outlets,
            limits: limits(&document.limits),
            prove_every: document.negative_proof.every.0,
            telemetry: telemetry::Settings { otlp: document.telemetry.otlp, log: document.telemetry.log },
            fixed,
            digest,
        })
    }
}

fn limits(document: &LimitsDocument) -> limit::Settings {
    let LimitsDocument { per_caller, per_peer } = document;
    limit::Settings {
        per_caller: Rate { per_second: per_caller.exchanges_per_second, burst: per_caller.burst },
        per_peer: Rate { per_second: per_peer.refusals_per_second, burst: per_peer.burst },
    }
}

/// Reads the file as a `D`, of which `build` makes a `C`.
fn load<D: DeserializeOwned, C>(
    path: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
    build: impl FnOnce(D, [u8; 32], &mut Vec<Mistake>) -> Option<C>,
) -> Result<C, ConfigError> {
    let failed = |faults| ConfigError { path: path.to_owned(), faults };
    let source = Source::read(path, environment).map_err(failed)?;
    let mut typed = source.typed::<D>();
    let mut mistakes = Vec::new();
    let config = typed.value.take().and_then(|document| build(document, source.digest, &mut mistakes));
    mistakes.into_iter().for_each(|Mistake { at, message }| typed.add(&source, &at, message));
    let mut faults = typed.faults;
    faults.sort_by_key(|fault| fault.line);
    config.filter(|_config| faults.is_empty()).ok_or_else(|| failed(faults))
}

fn server(document: &ServerDocument, mistakes: &mut Vec<Mistake>) -> Option<ServerSettings> {
    let tls = document.tls.clone().map(|TlsDocument { certificate, private_key, client_ca }| TlsSettings {
        certificate,
        private_key,
        client_ca,
    });
    let mut listen = |field: &str, text: &str| {
        let mut mistake =
            |message: &str| mistakes.push(Mistake { at: format!("server.{field}"), message: message.to_owned() });
        let address = match (text, text.parse()) {
            ("off", _) => None,
            (_, Ok(address)) => Some(address),
            (_, Err(InvalidAddress)) => {
                mistake(&format!("{InvalidAddress}, or off"));
                return None;
            }
        };
        if let Some(Address::Tcp(address)) = &address
            && !address.ip().is_loopback()
            && tls.is_none()
        {
            mistake("is not loopback, so server.tls is required: tokens would travel in clear");
        }
        Some(address)
    };
    let (grpc, http) = (listen("grpc", &document.grpc), listen("http", &document.http));
    Some(ServerSettings { grpc: grpc?, http: http?, tls })
}

fn entra(document: &EntraDocument, mistakes: &mut Vec<Mistake>) -> Option<subject::Settings> {
    let before = mistakes.len();
    let mut mistake = |field: &str, message: &str| {
        mistakes.push(Mistake { at: format!("entra.{field}"), message: message.to_owned() })
    };
    if document.tenants.is_empty() {
        mistake("tenants", "name at least one tenant: without it any tenant's tokens would be taken");
    }
    if document.audiences.is_empty() {
        mistake(
            "audiences",
            "name at least one audience, the broker's own application: without it tokens for others would be taken",
        );
    }
    for (index, audience) in document.audiences.iter().enumerate() {
        let microsoft = subject::is_microsoft_audience(audience);
        if audience.trim().is_empty() || audience.trim() != audience {
            mistake(
                &format!("audiences[{index}]"),
                "an audience is a client id or an application id URI without blanks",
            );
        } else if microsoft {
            mistake(
                &format!("audiences[{index}]"),
                "is one of Microsoft's own applications: the audience is the broker's application",
            );
        }
    }
    if document.clock_skew.0 > LARGEST_SKEW {
        mistake("clock_skew", "is at most 10m: it prolongs the life of every stolen token");
    }
    (mistakes.len() == before).then(|| subject::Settings {
        authority: document.authority.clone(),
        tenants: document.tenants.iter().map(|tenant| tenant.0).collect(),
        audiences: document.audiences.clone(),
        clock_skew: document.clock_skew.0,
    })
}

fn issuer(document: Option<&IssuerDocument>, mistakes: &mut Vec<Mistake>) -> Option<IssuerSettings> {
    let document = document?;
    let mut mistake = |field: &str, message: String| mistakes.push(Mistake { at: format!("issuer.{field}"), message });
    match document.url.parse::<Endpoint>() {
        Err(error) => mistake("url", error.to_string()),
        // Two loopback forms of one URL are two issuers: the text is compared, never the URL.
        Ok(_) if document.url.ends_with('/') => {
            mistake("url", "ends in `/`: the clouds compare it to the letter, and their consoles drop it".to_owned());
        }
        Ok(_) => {}
    }
    let schedule = Schedule { rotate_every: document.rotate_every.0, publish_ahead: document.publish_ahead.0 };
    if schedule.publish_ahead > schedule.rotate_every {
        mistake("publish_ahead", "is longer than rotate_every (their defaults are 24h and 30d)".to_owned());
    }
    if schedule.publish_ahead < SHORTEST_PUBLISH_AHEAD {
        mistake("publish_ahead", "is at least 1m: a key has to be known everywhere before it signs".to_owned());
    }
    Some(IssuerSettings { url: document.url.clone(), key_files: document.key_files.clone(), schedule })
}

fn with_spool(store: StoreSettings, spool: Option<&PathBuf>, mistakes: &mut Vec<Mistake>) -> Result<StoreSettings, ()> {
    match (store, spool) {
        (StoreSettings::Postgres { settings, .. }, spool) => {
            Ok(StoreSettings::Postgres { settings, spool: spool.cloned() })
        }
        (StoreSettings::Sqlite(_), Some(_)) => {
            let message = "goes with `store: postgres://...`: a store on this disk needs no other file".to_owned();
            mistakes.push(Mistake { at: "audit.spool".to_owned(), message });
            Err(())
        }
        (store, None) => Ok(store),
    }
}

/// `keeps`: what needs the key in any store.
fn store_key(keys: &[Secret], keeps: Option<&'static str>, store: Option<&StoreSettings>) -> Vec<Mistake> {
    let missing = match store {
        _ if !keys.is_empty() => None,
        _ if keeps.is_some() => keeps,
        Some(StoreSettings::Postgres { .. }) => Some("replicas share credentials through PostgreSQL, sealed with it"),
        Some(StoreSettings::Sqlite(_)) | None => None,
    };
    let missing = missing.map(|why| Mistake {
        at: "store_key".to_owned(),
        message: format!("is missing: {why}. Make one with `openssl rand -base64 32`"),
    });
    let wrong = keys.iter().enumerate().filter_map(|(index, key)| {
        let error = SealingKeys::from_base64(std::slice::from_ref(key)).err()?;
        let at = if keys.len() == 1 { "store_key".to_owned() } else { format!("store_key[{index}]") };
        Some(Mistake { at, message: error.to_string() })
    });
    missing.into_iter().chain(wrong).collect()
}

/// Longer than any credential that is handed out.
const SHORTEST_RETENTION: Duration = Duration::from_secs(2 * 86_400);

const PROVE_EVERY: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(86_400);

/// Replicas look at the store twice in this time.
const SHORTEST_PUBLISH_AHEAD: Duration = Duration::from_secs(60);

/// Microsoft's own library takes 5 minutes.
const LARGEST_SKEW: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests;

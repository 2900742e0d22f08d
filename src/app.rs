//! The composition root: a configuration in, running servers out; reload, readiness and drain.

mod frames;
mod inside;
mod keys;
mod listener;
mod places;
mod shadow;
mod tls;
mod watched;

pub use keys::{KeySource, KeysError, rfc3339};
pub use tls::{TlsError, check_tls};

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::keys::IssuerKeys;
use self::listener::{Listener, Serves, most_connections};
use self::shadow::ShadowRules;
use self::tls::{Protocols, Tls};
use crate::audit::{Audit, Records, Upkeep};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, IssuerSettings, TlsSettings};
use crate::credential::{Clouds, Credentials, keep_swept};
use crate::exchange::{Exchange, History, PLACES};
use crate::export::{Log, OtlpError, Outlets};
use crate::grpc::{self, Doors, Health};
use crate::http;
use crate::issuer::{Issuer, KeyStore, Rotation, StatementKeys};
use crate::lease::{LeaseStoreError, Leases};
use crate::limit::Limits;
use crate::oauth::{self, Http, Metrics, Ready};
use crate::operator::{Operator, Searches};
use crate::policy::{Operators, Policy};
use crate::prober::{FrontDoors, Prober, ProberError, Round};
use crate::secret::{SealError, SealingKeys, sha256};
use crate::socket::{Address, Socket};
use crate::store::{self, OpenError, SpooledLog};
use crate::subject::{EntraVerifier, KeyCache};
use crate::telemetry;

/// A running broker.
#[derive(Debug)]
pub struct App {
    grpc_address: Option<SocketAddr>,
    http_address: Option<SocketAddr>,
    reloading: Arc<Reloading>,
    issuer_keys: Option<Arc<IssuerKeys>>,
    ready: Ready,
    health: Health,
    grpc: Drain,
    http: Drain,
    /// What runs beside the exchanges; ends when the app does.
    background: JoinSet<()>,
    audit_writer: JoinHandle<()>,
    upkeep: Upkeep,
    spool: Option<Arc<SpooledLog>>,
    outlets: Outlets,
    prober: Arc<Prober>,
    /// Has counted what was not recorded one by one.
    accounts: Arc<Exchange>,
}

/// Why the broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Http(#[from] http::ClientError),
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Leases(#[from] LeaseStoreError),
    #[error("audit.sinks")]
    Outlets(#[from] OtlpError),
    #[error("store_key")]
    StoreKey(#[from] SealError),
    #[error("the issuer's keys")]
    IssuerKeys(#[from] KeysError),
    #[error("cannot listen on {address:?} (server.{name})")]
    Listen { name: &'static str, address: Address, source: io::Error },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the compiled-in descriptors are broken")]
    Descriptors(#[from] tonic_reflection::server::Error),
}

impl App {
    /// Starts everything that `config` says. `path`, where the configuration came from, is watched for new rules.
    ///
    /// # Errors
    /// [`StartError`] says what to change.
    pub async fn start(config: Config, path: Option<PathBuf>, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        // From the first call on, what the modules count is kept.
        telemetry::metrics();
        let outbound = http::Client::new(&config.outbound)?;
        let sealing = sealing(&config)?;
        let stores = store::open(&config.store, sealing.clone()).await?;
        let issuer_keys = match &config.issuer {
            Some(settings) => Some(issuer_keys(settings, stores.keys, clock.clone()).await?),
            None => None,
        };
        let issuer = issuer_keys.as_ref().map(|keys| keys.issuer().clone());
        let verifier = Arc::new(EntraVerifier::new(config.entra.clone(), outbound.clone(), clock.clone()));
        let keys = verifier.keys().clone();
        let clouds = Clouds::new(outbound, issuer.clone(), clock.clone());
        let mut credentials = Credentials::new(Arc::new(clouds), clock.clone());
        let mut background = JoinSet::new();
        if let Some(shared) = stores.shared {
            credentials = credentials.shared_through(shared.clone(), sealing);
            background.spawn(keep_swept(shared));
        }
        if let Some(spool) = stores.spool.clone() {
            background.spawn(spool.keep_empty());
        }
        let records = Records::new(stores.records);
        let (audit, audit_writer) = Audit::start(stores.audit, clock.clone());
        let upkeep = audit.upkeep(records.reader().clone(), issuer.clone());
        let shadow = ShadowRules::default();
        let policy = Arc::new(ArcSwap::from_pointee(shadow.beside(config.policy, config.shadow)));
        let operators = Arc::new(ArcSwap::from_pointee(config.operators));
        let exchange = Arc::new(Exchange {
            verifier: verifier.clone(),
            policy: policy.clone(),
            credentials,
            history: History::new(stores.history),
            audit: audit.clone(),
            clock: clock.clone(),
            places: Arc::new(Semaphore::new(PLACES)),
            limits: Limits::new(config.limits),
        });
        background.spawn(exchange.clone().keep_recording_what_was_left_out());
        let accounts = exchange.clone();
        let ready = Ready::default();
        let leases = Leases::start(exchange.clone(), stores.leases, config.renewals_per_second);
        leases.begin().await?;
        let operator = Operator {
            verifier,
            operators: operators.clone(),
            leases: leases.clone(),
            exchange: exchange.clone(),
            entra: config.entra.clone(),
            issuer: issuer.clone(),
            audit: audit.clone(),
            records: records.clone(),
            searches: Arc::new(Searches::default()),
            clock: clock.clone(),
        };
        let doors = Doors {
            exchange: exchange.clone(),
            leases: leases.clone(),
            operator: Arc::new(operator),
            clock: clock.clone(),
        };
        let log = Log { records, shipments: stores.shipments, clock: clock.clone() };
        let services = grpc::services(doors).await?;
        let http_router = oauth::router(Http {
            exchange,
            issuer,
            keys_max_age: config.issuer.as_ref().map(|issuer| issuer.schedule.publish_ahead / 4).unwrap_or_default(),
            ready: ready.clone(),
            metrics: Metrics::default(),
            clock: clock.clone(),
        });

        let doors = FrontDoors {
            grpc: config.server.grpc.as_ref().map(|_address| inside::channel(services.routes.clone())),
            http: config.server.http.as_ref().map(|_address| http_router.clone()),
        };
        let target = policy.load().targets().map(|target| target.name.to_string()).min().unwrap_or_default();
        let (proving, keys_known) = (clock.clone(), keys.clone());
        let prober = Arc::new(Prober { doors, entra: config.entra, keys: keys_known, target, clock: proving });
        let (proving, every) = (prober.clone(), config.prove_every);
        background.spawn(async move { proving.keep_proving(every).await });

        let most = most_connections([&config.server.grpc, &config.server.http].into_iter().flatten().count());
        let mut servers = Servers { tls: config.server.tls.as_ref(), most, background: &mut background };
        let (grpc_address, grpc) =
            servers.add("grpc", config.server.grpc.as_ref(), Serves::Grpc(services.routes)).await?;
        let (http_address, http) = servers.add("http", config.server.http.as_ref(), Serves::Http(http_router)).await?;

        let seen = Mutex::new(config.digest);
        let reloading = Arc::new(Reloading {
            path,
            policy,
            operators,
            shadow,
            fixed: config.fixed,
            seen,
            stale: AtomicBool::new(false),
        });
        let watching = reloading.clone();
        background.spawn(async move { watching.watch().await });
        background.spawn(upkeep.clone().keep(audit.clone(), config.retention));
        background.spawn(leases.keep(config.retention));
        background.spawn(telemetry::upkeep());
        if let Some(keys) = issuer_keys.clone() {
            background.spawn(async move { keys.keep_current().await });
        }
        let (becoming, serving) = (ready.clone(), services.health.clone());
        background.spawn(async move { become_ready(keys, audit, becoming, serving).await });
        let outlets = Outlets::start(&config.outlets, &log)?;
        Ok(Self {
            grpc_address,
            http_address,
            reloading,
            issuer_keys,
            ready,
            health: services.health,
            grpc,
            http,
            background,
            audit_writer,
            upkeep,
            spool: stores.spool,
            outlets,
            prober,
            accounts,
        })
    }

    /// Where gRPC is served; `None` where it is off or on a Unix socket.
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc_address
    }

    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Returns once the broker is ready: store open, keys loaded, Entra's keys fetched once.
    pub async fn until_ready(&self) {
        while !self.ready.is() {
            sleep(READY_POLL).await;
        }
    }

    /// Loads targets, rules and operators anew from the file.
    ///
    /// # Errors
    /// What is wrong with the file; the old rules stay in force.
    pub fn reload(&self) -> Result<(), ConfigError> {
        self.reloading.reload()
    }

    /// Reads the issuer's keys anew, as happens every few seconds, after making and removing those that are due.
    pub async fn refresh_issuer_keys(&self) {
        if let Some(keys) = &self.issuer_keys {
            keys.refresh().await;
        }
    }

    /// Shows tokens that must be refused to the front doors, as happens at intervals.
    ///
    /// # Errors
    /// Where nothing could be shown.
    pub async fn prove(&self) -> Result<Round, ProberError> {
        self.prober.round().await
    }

    /// Takes no new call, lets those under way end, and returns when they have or their time is up, within 20 s.
    /// Whatever was decided is recorded before it returns.
    pub async fn drain(mut self) {
        self.background.shutdown().await;
        // It has doors, behind which the audit log is.
        drop(self.prober);
        self.ready.set(false);
        self.health.set_serving(false).await;
        self.grpc.run(GRPC_DRAIN).await;
        // Last, because a cloud may have to fetch the issuer's keys for a call that is still under way.
        self.http.run(HTTP_DRAIN).await;
        if timeout(WRITER_DEADLINE, self.accounts.record_what_was_left_out()).await.is_err() {
            tracing::error!("the audit log did not take in time what was left out of it");
        }
        drop(self.accounts);
        // The last exchange drops the last sender; then the writer ends.
        if timeout(WRITER_DEADLINE, &mut self.audit_writer).await.is_err() {
            tracing::error!("the audit log did not take its last records in time");
        }
        if let Some(spool) = &self.spool {
            spool.leave_empty().await;
        }
        if timeout(LAST_CHECKPOINT, self.upkeep.checkpoint()).await.is_err() {
            tracing::warn!("no checkpoint of the last audit records was made: the store does not answer");
        }
        self.outlets.stop().await;
    }
}

fn sealing(config: &Config) -> Result<Arc<SealingKeys>, SealError> {
    Ok(Arc::new(match &config.store_key[..] {
        [] => SealingKeys::random()?,
        keys => SealingKeys::from_base64(keys)?,
    }))
}

async fn issuer_keys(
    settings: &IssuerSettings,
    store: Arc<dyn KeyStore>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<IssuerKeys>, KeysError> {
    let source = match settings.key_files.as_slice() {
        [] => KeySource::Store(Rotation::new(store, settings.schedule, clock.clone())),
        files => KeySource::Files(files.to_vec()),
    };
    let issuer = Arc::new(Issuer::new(settings.url.clone(), source.load().await?, clock.clone()));
    Ok(Arc::new(IssuerKeys::new(source, issuer, clock)))
}

/// Where the keys of `config`'s issuer are, for those who want them and no broker.
///
/// # Errors
/// As [`App::start`]; `None` where the configuration has no issuer.
pub async fn key_source(config: &Config, clock: Arc<dyn Clock>) -> Result<Option<KeySource>, StartError> {
    let Some(settings) = &config.issuer else { return Ok(None) };
    if !settings.key_files.is_empty() {
        return Ok(Some(KeySource::Files(settings.key_files.clone())));
    }
    let store = store::open(&config.store, sealing(config)?).await?;
    Ok(Some(KeySource::Store(Rotation::new(store.keys, settings.schedule, clock))))
}

/// What the issuer's checkpoints of the audit log are verified with, by those who run no broker and change nothing.
///
/// # Errors
/// The keys cannot be read; none where the configuration has no issuer.
pub async fn statement_keys(config: &Config) -> anyhow::Result<StatementKeys> {
    let Some(settings) = &config.issuer else { return Ok(StatementKeys::default()) };
    if !settings.key_files.is_empty() {
        return Ok(StatementKeys::of(&KeySource::Files(settings.key_files.clone()).load().await?));
    }
    Ok(StatementKeys::stored(&store::read_issuer_keys(&config.store, &*sealing(config)?).await?))
}

/// How one listener ends.
#[derive(Debug, Clone, Default)]
struct Drain {
    /// Stops accepting and asks connections to end.
    draining: CancellationToken,
    /// Ends what did not end by itself.
    aborting: CancellationToken,
    connections: TaskTracker,
}

impl Drain {
    async fn run(&self, deadline: Duration) {
        self.draining.cancel();
        self.connections.close();
        if timeout(deadline, self.connections.wait()).await.is_err() {
            tracing::warn!(
                connections = self.connections.len(),
                "peers did not end their connections in time; they are cut off"
            );
            self.aborting.cancel();
            self.connections.wait().await;
        }
    }
}

/// What every listener needs while it is put together.
struct Servers<'a> {
    tls: Option<&'a TlsSettings>,
    most: usize,
    background: &'a mut JoinSet<()>,
}

impl Servers<'_> {
    async fn add(
        &mut self,
        name: &'static str,
        address: Option<&Address>,
        serves: Serves,
    ) -> Result<(Option<SocketAddr>, Drain), StartError> {
        let drain = Drain::default();
        let Some(address) = address else { return Ok((None, drain)) };
        let bound = Socket::bind(address).await;
        let socket = bound.map_err(|source| StartError::Listen { name, address: address.clone(), source })?;
        let protocols: Protocols = match serves {
            Serves::Grpc(_) => &[b"h2"],
            Serves::Http(_) => &[b"h2", b"http/1.1"],
        };
        // On a Unix socket the file's permissions protect what TLS protects on a network.
        let tls = match (self.tls, address) {
            (Some(settings), Address::Tcp(_)) => Some(Arc::new(Tls::load(settings, protocols)?)),
            _ => None,
        };
        if let Some(tls) = tls.clone() {
            self.background.spawn(async move { tls.keep_current().await });
        }
        let local = socket.local_address();
        let Drain { draining, aborting, connections } = drain.clone();
        let most = self.most;
        let listener = Listener { name, socket, tls, serves, most, draining, aborting, connections };
        drain.connections.spawn(listener.serve());
        Ok((local, drain))
    }
}

/// New rules from the file they came from.
#[derive(Debug)]
struct Reloading {
    path: Option<PathBuf>,
    policy: Arc<ArcSwap<Policy>>,
    operators: Arc<ArcSwap<Operators>>,
    shadow: ShadowRules,
    fixed: [u8; 32],
    /// Digest of the file as it was last loaded, or tried to.
    seen: Mutex<[u8; 32]>,
    /// The last try failed.
    stale: AtomicBool,
}

impl Reloading {
    /// Contents, not times: a mounted ConfigMap is replaced by changing a symbolic link.
    async fn watch(&self) {
        let Some(path) = &self.path else { return };
        let (mut look, mut retry) = (tokio::time::interval(LOOK_EVERY), tokio::time::interval(RETRY_EVERY));
        loop {
            // A file that is away for a moment is being replaced; one that failed may lack a file that it refers to.
            let due = tokio::select! {
                _ = look.tick() => {
                    let changed = tokio::fs::read(path).await.is_ok_and(|now| sha256(&now) != *self.seen());
                    changed || self.shadow.changed()
                }
                _ = retry.tick() => self.stale.load(Ordering::Relaxed),
            };
            if due {
                // It logs what is wrong.
                let _ = self.reload();
            }
        }
    }

    fn reload(&self) -> Result<(), ConfigError> {
        let Some(path) = &self.path else { return Ok(()) };
        let loaded = Config::load(path);
        *self.seen() = match &loaded {
            Ok(config) => config.digest,
            Err(_refused) => std::fs::read(path).map(|text| sha256(&text)).unwrap_or_default(),
        };
        self.stale.store(loaded.is_err(), Ordering::Relaxed);
        let outcome = if loaded.is_ok() { "ok" } else { "failed" };
        metrics::counter!("carnet_policy_reloads_total", "outcome" => outcome).increment(1);
        metrics::gauge!("carnet_policy_stale").set(if loaded.is_ok() { 0.0 } else { 1.0 });
        let config = loaded.inspect_err(|error| {
            tracing::error!(%error, "the changed configuration cannot be used; the old rules stay in force");
        })?;
        if config.fixed != self.fixed {
            tracing::warn!("besides targets, rules and operators, settings changed that need a restart");
        }
        self.policy.store(Arc::new(self.shadow.beside(config.policy, config.shadow)));
        self.operators.store(Arc::new(config.operators));
        tracing::info!(path = %path.display(), "targets, rules and operators were loaded anew");
        Ok(())
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, [u8; 32]> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ready from the moment some tenant's keys are known, except while the audit log takes no records; keeps keys fresh for
/// as long as the app runs.
async fn become_ready(keys: Arc<KeyCache>, audit: Audit, ready: Ready, health: Health) {
    while !keys.prefetch().await {
        sleep(PREFETCH_AGAIN).await;
    }
    let follow_the_log = async {
        // Each waits for the state itself: one that comes and goes while nobody looks is not missed for ever.
        loop {
            health.set_serving(true).await;
            ready.set(true);
            tracing::info!("ready");
            audit.until_unwell().await;
            health.set_serving(false).await;
            ready.set(false);
            tracing::info!("not ready: the audit log takes no records");
            audit.until_well().await;
        }
    };
    tokio::join!(follow_the_log, keys.keep_fresh());
}

/// Together, and with the last look at the spool, below the 20 s after which the process has to be gone.
const GRPC_DRAIN: Duration = Duration::from_secs(12);
const HTTP_DRAIN: Duration = Duration::from_secs(3);
const WRITER_DEADLINE: Duration = Duration::from_secs(3);
const LAST_CHECKPOINT: Duration = Duration::from_millis(500);
const READY_POLL: Duration = Duration::from_millis(5);
const PREFETCH_AGAIN: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_secs(2);
const RETRY_EVERY: Duration = Duration::from_secs(30);

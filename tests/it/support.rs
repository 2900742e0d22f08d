//! The real application on port 0 beside the stand-ins, and a watch for secrets in everything it leaves behind.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use carnet::app::App;
use carnet::clock::{Clock, ManualClock, SystemClock};
use carnet::config::Config;
use carnet::grpc::{Address, connect};
use carnet::proto::token_exchange_client::TokenExchangeClient;
use carnet::proto::{AuditRecord, ExchangeRequest, ExchangeResponse, Job, TargetRequest};
use carnet::sandbox::{Entra, EntraToken, Fault, FederatedCredential, Google, Identity, PoolProvider};
use prost::Message as _;
use rusqlite::OpenFlags;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

pub const TENANT: &str = "11111111-1111-1111-1111-111111111111";
pub const AUDIENCE: &str = "api://carnet";
pub const RUNNER: &str = "66666666-6666-6666-6666-666666666666";
pub const PERSON: &str = "77777777-7777-7777-7777-777777777777";
pub const ML: &str = "33333333-3333-3333-3333-333333333333";
pub const TRAINER: &str = "trainer@ml.iam.gserviceaccount.com";
pub const PROVIDER: &str =
    "//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/carnet";

pub const STORE_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

const RULES: &str = "
rules:
  - name: training
    targets: [vertex, azure-ml]
    subject: { roles: [Training.Submit] }
    max_lifetime: 1h
  - name: by-group
    targets: [grouped]
    subject: { groups: [44444444-4444-4444-4444-444444444444] }
";

/// A running broker with its clouds.
pub struct Broker {
    pub entra: Arc<Entra>,
    pub google: Arc<Google>,
    pub folder: TempDir,
    app: Option<App>,
    clock: Arc<dyn Clock>,
    grpc: String,
    pub http: String,
    secrets: Mutex<Vec<String>>,
}

/// What a test changes before the broker starts.
#[derive(Default)]
pub struct Setup {
    pub rules: Option<&'static str>,
    /// Appended to the file as it is.
    pub more: String,
    /// More targets, as lines of the section; `GOOGLE` stands for its stand-in's address.
    pub targets: &'static str,
    pub server: Option<String>,
    /// More fields of `issuer`, each with a comma before it.
    pub issuer: String,
    /// The machine's, unless the test moves it by hand.
    pub clock: Option<ManualClock>,
    /// The clouds', where the broker's is another.
    pub clouds_clock: Option<ManualClock>,
    /// Variables besides those of the process.
    pub environment: Vec<(&'static str, String)>,
    /// Nothing of the broker's comes to a disk: for a test in virtual time, which a slow disk would spend.
    pub in_memory: bool,
    /// In place of a file of the broker's own.
    pub store: Option<String>,
    /// Entra answers nobody, and the broker is not waited for.
    pub entra_is_away: bool,
    pub replica_of: Option<Original>,
}

/// What a replica has in common with the first broker of its cluster: the clouds and the issuer.
pub struct Original {
    entra: Arc<Entra>,
    google: Arc<Google>,
    issuer: String,
}

/// Runs `test` against a broker that is ready; afterwards it must drain cleanly and have shown no secret anywhere.
pub async fn with_broker(test: impl AsyncFnOnce(&Broker)) {
    with_setup(Setup::default(), test).await;
}

pub async fn with_setup(setup: Setup, test: impl AsyncFnOnce(&Broker)) {
    let mut broker = Broker::start(setup).await;
    test(&broker).await;
    if let Some(app) = broker.app.take() {
        app.drain().await;
    }
    broker.no_secret_was_left_behind();
}

impl Broker {
    async fn start(setup: Setup) -> Self {
        captured_logs();
        let clock: Arc<dyn Clock> = match setup.clock {
            Some(clock) => Arc::new(clock),
            None => Arc::new(SystemClock),
        };
        let port = free_port();
        let http = format!("http://127.0.0.1:{port}");
        let is_replica = setup.replica_of.is_some();
        let Original { entra, google, issuer } = match setup.replica_of {
            Some(original) => original,
            None => {
                let theirs = setup.clouds_clock.map(|clock| -> Arc<dyn Clock> { Arc::new(clock) });
                Original::start(http.clone(), theirs.unwrap_or(clock.clone())).await
            }
        };
        if setup.entra_is_away {
            entra.faults().always("", Fault::Drop);
        }
        let memory = std::path::Path::new("/dev/shm");
        let folder =
            if setup.in_memory && memory.exists() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.expect("a folder");
        let server = setup.server.unwrap_or_else(|| format!("{{ grpc: '127.0.0.1:0', http: '127.0.0.1:{port}' }}"));
        let path = folder.path().join("carnet.yaml");
        let rules = setup.rules.unwrap_or(RULES);
        let store = setup.store.unwrap_or_else(|| format!("sqlite:{}/carnet.db", folder.path().display()));
        let section = format!("url: '{issuer}'{}", setup.issuer);
        let targets = setup.targets.replace("GOOGLE", google.sts_endpoint());
        let rest = format!("{targets}{rules}");
        let text = configuration(&server, &entra, &google, &section, &store, &rest, &setup.more);
        std::fs::write(&path, text).expect("written");
        let environment = |name: &str| {
            let own = setup.environment.iter().find(|(own, _value)| *own == name);
            own.map(|(_name, value)| value.clone()).or_else(|| std::env::var(name).ok())
        };
        let config = Config::load_with(&path, &environment).unwrap_or_else(|error| panic!("{error}"));
        let app = App::start(config, Some(path), clock.clone()).await.unwrap_or_else(|error| panic!("{error:?}"));
        if !setup.entra_is_away {
            app.until_ready().await;
        }
        if !is_replica {
            trust(&entra, &google, &issuer);
        }
        let grpc = app.grpc_address().map(|address| format!("http://{address}")).unwrap_or_default();
        Self { entra, google, folder, app: Some(app), clock, grpc, http, secrets: Mutex::default() }
    }

    /// For another broker of the same cluster.
    pub fn original(&self) -> Original {
        Original { entra: self.entra.clone(), google: self.google.clone(), issuer: self.http.clone() }
    }

    pub fn app(&self) -> &App {
        self.app.as_ref().expect("running")
    }

    /// For a test that drains by itself.
    pub fn take_app(&mut self) -> App {
        self.app.take().expect("running")
    }

    /// Drains. Its store and its places stay its own.
    pub async fn stop(&mut self) {
        self.take_app().drain().await;
        let path = self.config_path();
        let text = std::fs::read_to_string(&path).expect("the file");
        let given = self.grpc.trim_start_matches("http://");
        std::fs::write(path, text.replace("grpc: '127.0.0.1:0'", &format!("grpc: '{given}'"))).expect("kept");
    }

    /// What was stopped, at the same places.
    pub async fn start_again(&mut self) {
        let path = self.config_path();
        let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
        let app = App::start(config, Some(path), self.clock.clone()).await.unwrap_or_else(|error| panic!("{error:?}"));
        app.until_ready().await;
        self.app = Some(app);
    }

    pub async fn start_for(setup: Setup) -> Self {
        Self::start(setup).await
    }

    pub fn grpc_address(&self) -> &str {
        &self.grpc
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("carnet.yaml")
    }

    /// A token of the pipeline runner that the rules allow.
    pub fn runner(&self) -> EntraToken {
        self.entra.app_token(TENANT, RUNNER).roles(["Training.Submit"])
    }

    /// Signs, and remembers the text as something that must never show.
    pub fn signed(&self, token: &EntraToken) -> String {
        let text = token.sign();
        self.is_secret(&text);
        text
    }

    pub fn is_secret(&self, text: &str) {
        self.secrets.lock().expect("no panic").push(text.to_owned());
    }

    pub async fn client(&self) -> TokenExchangeClient<Channel> {
        let address: Address = self.grpc.parse().expect("an address");
        TokenExchangeClient::new(connect(&address, None).await.expect("a connection"))
    }

    pub async fn exchange(&self, request: ExchangeRequest) -> Result<ExchangeResponse, Status> {
        let answer = self.client().await.exchange(request).await.map(tonic::Response::into_inner);
        if let Ok(answer) = &answer {
            answer.credentials.iter().for_each(|credential| self.is_secret(&credential.token));
        }
        answer
    }

    /// A request of the runner for these targets.
    pub fn request(&self, targets: &[&str]) -> ExchangeRequest {
        self.request_with(&self.runner(), targets)
    }

    pub fn request_with(&self, token: &EntraToken, targets: &[&str]) -> ExchangeRequest {
        let target = |target: &&str| TargetRequest { target: (*target).to_owned(), ..Default::default() };
        ExchangeRequest {
            subject_token: self.signed(token),
            targets: targets.iter().map(target).collect(),
            job: Some(Job { id: "run-1".to_owned(), name: "vision".to_owned(), ..Default::default() }),
            ..Default::default()
        }
    }

    /// The token endpoint with these fields; the answer's status and JSON.
    pub async fn token(&self, fields: &[(&str, &str)]) -> (u16, serde_json::Value) {
        let mut form = vec![
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ];
        form.retain(|(name, _value)| fields.iter().all(|(other, _value)| other != name));
        form.extend(fields.iter().filter(|(_name, value)| !value.is_empty()));
        let answer =
            reqwest::Client::new().post(format!("{}/v1/token", self.http)).form(&form).send().await.expect("an answer");
        let status = answer.status().as_u16();
        let body: serde_json::Value = answer.json().await.expect("JSON");
        if let Some(token) = body["access_token"].as_str() {
            self.is_secret(token);
        }
        (status, body)
    }

    /// What the store holds, oldest first, but for what the log says of itself.
    pub fn audit_records(&self) -> Vec<AuditRecord> {
        let store = rusqlite::Connection::open(self.store_path()).expect("the store");
        let groups = groups_of(&store).expect("a table");
        let records = groups.iter().flat_map(|group| records_of(group));
        records.filter(|record| !carnet::audit::is_own(&record.action)).collect()
    }

    pub fn store_path(&self) -> PathBuf {
        self.folder.path().join("carnet.db")
    }

    /// Tokens are searched for in whole and by their signatures, in logs, metrics and every file of the store.
    pub fn no_secret_was_left_behind(&self) {
        let logs = captured_logs().text();
        let metrics = carnet::telemetry::metrics().render();
        let files = std::fs::read_dir(self.folder.path()).expect("a folder");
        let mut files: Vec<Vec<u8>> =
            files.map(|file| std::fs::read(file.expect("a file").path()).unwrap_or_default()).collect();
        // Packed, a text may have been taken apart.
        let store = rusqlite::Connection::open_with_flags(self.store_path(), OpenFlags::SQLITE_OPEN_READ_ONLY);
        files.extend(store.and_then(|store| groups_of(&store)).unwrap_or_default());
        for secret in self.secrets.lock().expect("no panic").iter() {
            let tail = secret.rsplit('.').next().filter(|tail| tail.len() > 40).unwrap_or(secret);
            assert!(!logs.contains(tail), "a token is in the logs");
            assert!(!metrics.contains(tail), "a token is in the metrics");
            for file in &files {
                assert!(!file.windows(tail.len()).any(|window| window == tail.as_bytes()), "a token is in the store");
            }
        }
    }
}

impl Original {
    async fn start(issuer: String, clock: Arc<dyn Clock>) -> Self {
        let entra = Entra::start(clock.clone(), [TENANT]).await.expect("Entra");
        entra.set_default_audience(AUDIENCE);
        entra.register(Identity::managed_identity(TENANT, ML, PERSON));
        let google = Google::start(clock).await.expect("Google");
        google.add_service_account(TRAINER);
        Self { entra: Arc::new(entra), google: Arc::new(google), issuer }
    }
}

/// Sets up at both clouds that `issuer` is believed.
fn trust(entra: &Entra, google: &Google, issuer: &str) {
    let provider = PoolProvider::new(PROVIDER, issuer)
        .map("google.subject", "assertion.sub")
        .map("attribute.tid", "assertion.tid");
    google.register_provider(provider).expect("a provider");
    let pool = PROVIDER.split("/providers/").next().expect("a pool");
    google.bind(TRAINER, &format!("principalSet:{pool}/attribute.tid/{TENANT}"));
    entra.trust(ML, FederatedCredential::new(issuer, "carnet:azure-ml")).expect("a credential");
}

/// The groups of a SQLite store, oldest first, as they were before they were packed.
pub fn groups_of(store: &rusqlite::Connection) -> rusqlite::Result<Vec<Vec<u8>>> {
    let mut select = store.prepare("SELECT bytes, unpacked FROM audit ORDER BY sequence")?;
    let groups = select.query_map([], |row| {
        let (bytes, unpacked): (Vec<u8>, Option<u32>) = (row.get(0)?, row.get(1)?);
        let unpack = |length| lz4_flex::block::decompress(&bytes, length as usize).expect("packed records");
        Ok(unpacked.map_or_else(|| bytes.clone(), unpack))
    })?;
    groups.collect()
}

/// Those that were committed together.
pub fn records_of(mut group: &[u8]) -> Vec<AuditRecord> {
    let mut records = Vec::new();
    while !group.is_empty() {
        records.push(AuditRecord::decode_length_delimited(&mut group).expect("a record"));
    }
    records
}

/// `google.rpc.ErrorInfo`'s reason.
pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

fn configuration(
    server: &str,
    entra: &Entra,
    google: &Google,
    issuer: &str,
    store: &str,
    rules: &str,
    more: &str,
) -> String {
    let (authority, sts, iam) = (entra.authority(), google.sts_endpoint(), google.iam_credentials_endpoint());
    let google = |account: &str| {
        format!(
            "{{ audience: '{PROVIDER}', {account}sts_endpoint: '{sts}', iam_credentials_endpoint: '{iam}', max_lifetime: 1h }}"
        )
    };
    let (vertex, direct) = (google(&format!("service_account: {TRAINER}, ")), google(""));
    let handed_out = google(&format!("service_account: {TRAINER}, hand_out_assertion: true, "));
    format!(
        "
server: {server}
entra: {{ authority: '{authority}', tenants: [{TENANT}], audiences: ['{AUDIENCE}'] }}
issuer: {{ {issuer} }}
targets:
  vertex: {{ google: {vertex} }}
  direct: {{ google: {direct} }}
  grouped: {{ google: {vertex} }}
  handed-out: {{ google: {handed_out} }}
  azure-ml:
    azure: {{ tenant: {TENANT}, client_id: {ML}, source: issuer, scopes: [https://ml.azure.com/.default] }}
{rules}
store: '{store}'
store_key: {STORE_KEY}
{more}
"
    )
}

/// A port that nobody else takes before it is used: each is given once, and none is of the range from which the system
/// takes the ports of outgoing connections.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = u16::try_from(std::process::id() % 100).expect("small") * 100;
    let mut ports = std::iter::repeat_with(|| 20_000 + (base + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000);
    ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

/// Waits for what happens in the background, for at most ten seconds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..500 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} did not happen");
}

/// Everything that any broker of this process logged, at every level of its own.
#[derive(Clone, Default)]
pub struct Logs(Arc<Mutex<Vec<u8>>>);

impl Logs {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }
}

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn captured_logs() -> &'static Logs {
    static LOGS: OnceLock<Logs> = OnceLock::new();
    LOGS.get_or_init(|| {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let logs = Logs::default();
        let writer = logs.clone();
        // What dependencies log at debug level is not ours to promise.
        let subscriber =
            tracing_subscriber::fmt().with_env_filter("info,carnet=trace").with_writer(move || writer.clone()).finish();
        tracing::subscriber::set_global_default(subscriber).expect("the first subscriber");
        logs
    })
}

//! The real binary beside stand-ins of the clouds, set up as one company would.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, BytesMut};
use carnet::clock::SystemClock;
use carnet::proto;
use carnet::proto::token_exchange_client::TokenExchangeClient;
use carnet::sandbox::{Entra, Google, PoolProvider};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, ClientTlsConfig};

use crate::machine::{self, Core, Running};

/// Entra and Google, in this process.
pub struct Clouds {
    pub entra: Entra,
    pub google: Google,
}

impl Clouds {
    pub async fn start() -> Result<Self> {
        let clock = Arc::new(SystemClock);
        let entra = Entra::start(clock.clone(), [TENANT]).await?;
        entra.set_default_audience(AUDIENCE);
        let google = Google::start(clock).await?;
        google.add_service_account(TRAINER);
        Ok(Self { entra, google })
    }

    /// What an operator sets up at Google. `keys`: the issuer's, where Google is not to fetch them.
    fn trust(&self, issuer: &str, keys: Option<String>) -> Result<()> {
        let provider = PoolProvider::new(PROVIDER, issuer)
            .map("google.subject", "assertion.sub")
            .map("attribute.tid", "assertion.tid");
        let provider = match keys {
            Some(keys) => provider.keys(keys),
            None => provider,
        };
        self.google.register_provider(provider)?;
        let pool = PROVIDER.split("/providers/").next().unwrap_or_default();
        self.google.bind(TRAINER, &format!("principalSet:{pool}/attribute.tid/{TENANT}"));
        Ok(())
    }

    /// Every call upstream takes this much longer.
    pub fn delay(&self, delay: Duration) {
        for endpoint in [STS, IAM] {
            self.google.faults().always(endpoint, carnet::sandbox::Fault::Delay(delay));
        }
    }

    /// A workload's token of about 1.5 KB.
    pub fn subject_token(&self) -> String {
        self.token_of(RUNNER)
    }

    /// The same of another workload.
    pub fn subject_token_of(&self, number: usize) -> String {
        self.token_of(&format!("66666666-0000-0000-0000-{number:012}"))
    }

    fn token_of(&self, object: &str) -> String {
        let token = self.entra.app_token(TENANT, object).roles(["Training.Submit"]);
        token.claim("xms_padding", "p".repeat(250)).sign()
    }
}

/// Under valgrind everything takes fifty times as long.
const READY_DEADLINE: Duration = Duration::from_secs(90);

/// The real binary.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_carnet");

pub const STS: &str = "/v1/token";
pub const IAM: &str = ":generateAccessToken";

/// Where a broker keeps its things, and where it listens.
pub struct Place {
    pub folder: TempDir,
    pub config: PathBuf,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    /// Where it serves over TLS.
    pub certificate: Option<Certificate>,
}

/// A certificate that signs for itself, and where it lies.
pub struct Certificate {
    pub path: PathBuf,
    pub key_path: PathBuf,
    pub pem: String,
}

impl Certificate {
    fn make(folder: &Path) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
        let (path, key_path) = (folder.join("tls.crt"), folder.join("tls.key"));
        fs::write(&path, made.cert.pem())?;
        fs::write(&key_path, made.signing_key.serialize_pem())?;
        Ok(Self { path, key_path, pem: made.cert.pem() })
    }
}

/// How a server's callers reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Plain,
    Tls,
}

impl Place {
    pub fn on(clouds: &Clouds, wire: Wire) -> Result<Self> {
        let plain = Self::make(clouds)?;
        let certificate = match wire {
            Wire::Plain => return Ok(plain),
            Wire::Tls => Certificate::make(plain.folder.path())?,
        };
        let text = fs::read_to_string(&plain.config)?;
        let tls = format!(
            ", tls: {{ certificate: '{}', private_key: '{}' }} }}\nentra:",
            certificate.path.display(),
            certificate.key_path.display()
        );
        let secure = text.replacen(" }\nentra:", &tls, 1).replace("url: 'http:", "url: 'https:");
        fs::write(&plain.config, secure)?;
        Ok(Self { certificate: Some(certificate), ..plain })
    }

    pub fn make(clouds: &Clouds) -> Result<Self> {
        // Beside the build: on a disk, which the folder of temporary files need not be.
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
        Self::in_folder(clouds, folder)
    }

    pub fn in_folder(clouds: &Clouds, folder: TempDir) -> Result<Self> {
        let store = format!("sqlite:{}", folder.path().join("carnet.db").display());
        Self::with_store(clouds, folder, &store)
    }

    pub fn with_store(clouds: &Clouds, folder: TempDir, store: &str) -> Result<Self> {
        let (grpc, http) = (free_address()?, free_address()?);
        let config = folder.path().join("carnet.yaml");
        fs::write(&config, configuration(clouds, grpc, http, store))?;
        clouds.trust(&format!("http://{http}"), None)?;
        Ok(Self { folder, config, grpc, http, certificate: None })
    }

    /// The broker as it is run, but for its log, which goes nowhere.
    pub fn command(&self, core: Option<Core>) -> Command {
        let program = Path::new(PROGRAM);
        self.command_by(core.map_or_else(|| Command::new(program), |core| machine::pinned(core, program)))
    }

    /// As [`command`](Self::command); `program` runs the broker's.
    pub fn command_by(&self, mut program: Command) -> Command {
        program.arg("serve").arg("--config").arg(&self.config).stderr(Stdio::null());
        program
    }

    /// Starts the broker; returns once it is ready, and how long that took.
    pub async fn start(&self, core: Option<Core>) -> Result<(Running, Duration)> {
        self.start_by(self.command(core)).await
    }

    pub async fn start_by(&self, mut command: Command) -> Result<(Running, Duration)> {
        let began = Instant::now();
        let running = Running::start(&mut command)?;
        let (client, ready) = (self.http_client()?, format!("{}/readyz", self.http_url()));
        loop {
            if client.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok((running, began.elapsed()));
            }
            ensure!(began.elapsed() < READY_DEADLINE, "the broker does not become ready");
            sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn client(&self) -> Result<TokenExchangeClient<Channel>> {
        let channel = match &self.certificate {
            None => Channel::from_shared(format!("http://{}", self.grpc))?,
            Some(certificate) => {
                let trusted = tonic::transport::Certificate::from_pem(&certificate.pem);
                let tls = ClientTlsConfig::new().ca_certificate(trusted).domain_name("localhost");
                Channel::from_shared(format!("https://{}", self.grpc))?.tls_config(tls)?
            }
        };
        Ok(TokenExchangeClient::new(channel.connect().await?))
    }

    /// Gives the running broker's keys to Google, which cannot fetch them over TLS.
    pub async fn upload_keys(&self, clouds: &Clouds) -> Result<()> {
        let keys = self.http_client()?.get(format!("{}/keys", self.http_url())).send().await?.error_for_status()?;
        clouds.trust(&self.http_url(), Some(keys.text().await?))
    }

    fn http_url(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.http)
    }

    fn http_client(&self) -> Result<reqwest::Client> {
        let builder = reqwest::Client::builder();
        Ok(match &self.certificate {
            None => builder.build()?,
            Some(certificate) => {
                let trusted = reqwest::Certificate::from_pem(certificate.pem.as_bytes())?;
                builder.tls_certs_merge([trusted]).build()?
            }
        })
    }
}

/// One target for one job, as most calls are.
pub fn request(subject_token: String, job: &str) -> proto::ExchangeRequest {
    proto::ExchangeRequest {
        subject_token,
        targets: vec![proto::TargetRequest { target: "vertex-training".to_owned(), ..Default::default() }],
        job: Some(proto::Job {
            id: job.to_owned(),
            name: "vision".to_owned(),
            expected_duration: Some(prost_types::Duration { seconds: 40 * 60, nanos: 0 }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A message as gRPC sends it: not compressed, its length before it.
pub fn frame(message: &impl prost::Message) -> Result<BytesMut> {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len())?);
    message.encode(&mut frame)?;
    Ok(frame)
}

pub fn free_address() -> Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr().context("no port is free")
}

/// The store's key is made of zeros: nothing here is secret. All load is one caller's, who may have all of it.
pub fn configuration(clouds: &Clouds, grpc: SocketAddr, http: SocketAddr, store: &str) -> String {
    format!(
        "\
server: {{ grpc: '{grpc}', http: '{http}' }}
entra:
  authority: {authority}
  tenants: [{TENANT}]
  audiences: ['{AUDIENCE}']
issuer: {{ url: 'http://{http}' }}
targets:
  vertex-training:
    google:
      audience: {PROVIDER}
      service_account: {TRAINER}
      max_lifetime: 1h
      sts_endpoint: {sts}
      iam_credentials_endpoint: {iam}
rules:
  - name: vision-training
    targets: [vertex-training]
    subject: {{ tenants: [{TENANT}], roles: [Training.Submit] }}
    when: '!has(job.expected_duration) || job.expected_duration <= duration(\"72h\")'
    max_lifetime: 1h
    lease: {{ max_duration: 72h, heartbeat: 5m, token_lifetime: 1h }}
limits: {{ per_caller: {{ exchanges_per_second: 1000000, burst: 1000000 }} }}
store: {store}
store_key: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
",
        authority = clouds.entra.authority(),
        sts = clouds.google.sts_endpoint(),
        iam = clouds.google.iam_credentials_endpoint(),
    )
}

/// Audit records of a broker; a row of the table is a group of them.
pub fn records(place: &Place) -> Result<i64> {
    let store = rusqlite::Connection::open(place.folder.path().join("carnet.db"))?;
    Ok(store.query_row("SELECT coalesce(sum(records), 0) FROM audit", [], |row| row.get(0))?)
}

pub const TENANT: &str = "11111111-1111-1111-1111-111111111111";
pub const AUDIENCE: &str = "api://carnet";
pub const RUNNER: &str = "66666666-6666-6666-6666-666666666666";
const TRAINER: &str = "trainer@ml-sandbox.iam.gserviceaccount.com";
const PROVIDER: &str =
    "//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/carnet";

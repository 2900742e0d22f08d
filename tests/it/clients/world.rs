//! A broker with a clock that is moved by hand, and the APIs of both clouds that take its credentials.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use carnet::clock::{Clock as _, ManualClock, SystemClock};
use carnet::sandbox::{AzureStorage, FederatedCredential, Identity};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::support::{Broker, Setup, TENANT, TRAINER, free_port};
use crate::tls::Authority;

pub struct World {
    pub broker: Broker,
    pub clock: ManualClock,
    /// The broker's HTTP behind TLS.
    pub broker_tls: String,
    /// What stands for Google, behind TLS.
    pub google_tls: String,
    storage: AzureStorage,
    blobs: String,
}

impl World {
    pub async fn start() -> Self {
        Self::start_before(Duration::ZERO).await
    }

    /// With a clock that is so much behind that of the machine, which the programs go by.
    pub async fn start_before(now: Duration) -> Self {
        let clock = ManualClock::at(SystemClock.now() - now);
        let broker = Broker::start_for(Setup {
            clock: Some(clock.clone()),
            rules: Some(RULES),
            targets: TARGETS,
            ..Setup::default()
        })
        .await;
        for object in OBJECTS {
            broker.google.add_object(DATA, object);
        }
        broker.google.let_read(DATA, &format!("serviceAccount:{TRAINER}"));
        broker.entra.register(Identity::managed_identity(TENANT, READER, READER_OBJECT));
        let trusted = FederatedCredential::new(broker.http.clone(), "carnet:blobs");
        broker.entra.trust(READER, trusted).expect("a credential");
        let storage = AzureStorage::start(&broker.entra, "mldata").await.expect("a storage account");
        for object in OBJECTS {
            storage.add_blob(DATA, object);
        }
        storage.let_read(DATA, READER_OBJECT);
        let authority = Authority::new();
        std::fs::write(broker.folder.path().join("ca.crt"), authority.pem()).expect("written");
        let blobs = with_tls(&authority, &storage.endpoint()).await;
        let broker_tls = with_tls(&authority, &broker.http).await;
        let google_tls = with_tls(&authority, broker.google.sts_endpoint()).await;
        let world = Self { broker, clock, broker_tls, google_tls, storage, blobs };
        world.write_entra_token();
        world
    }

    /// Everything ends cleanly, and no secret has shown.
    pub async fn end(mut self) {
        self.broker.stop().await;
        self.broker.no_secret_was_left_behind();
    }

    pub fn home(&self) -> &Path {
        self.broker.folder.path()
    }

    /// The file with the runner's Entra token.
    pub fn entra_token(&self) -> PathBuf {
        self.home().join("entra-token")
    }

    pub fn write_entra_token(&self) {
        // Not one of the secrets: this file is where the platform puts it.
        std::fs::write(self.entra_token(), self.broker.runner().sign()).expect("written");
    }

    /// Moves the clock on; the platform has renewed the Entra token meanwhile.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
        self.write_entra_token();
    }

    /// What a program needs to know to call the APIs; nothing of credentials.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let ca = self.home().join("ca.crt").display().to_string();
        let java = format!(
            "-Djavax.net.ssl.trustStore={} -Djavax.net.ssl.trustStorePassword={STORE}",
            self.java_trust().display()
        );
        vec![
            ("STORAGE_URL", self.broker.google.storage_endpoint().to_owned()),
            ("BLOBS_URL", self.blobs.clone()),
            ("REQUESTS_CA_BUNDLE", ca.clone()),
            ("NODE_EXTRA_CA_CERTS", ca.clone()),
            ("SSL_CERT_FILE", ca),
            ("JAVA_TOOL_OPTIONS", java),
        ]
    }

    /// Java takes no PEM. Where there is no Java, nobody misses it.
    fn java_trust(&self) -> PathBuf {
        let store = self.home().join("ca.p12");
        if !store.exists() {
            let mut command = Command::new("keytool");
            command.args(["-importcert", "-noprompt", "-storepass", STORE, "-file"]).arg(self.home().join("ca.crt"));
            let _absent = command.arg("-keystore").arg(&store).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        store
    }

    /// The token that Google's API was shown last; it was good then.
    pub fn google_token(&self) -> String {
        self.token_of(self.broker.google.calls().to(&format!("/b/{DATA}/o")))
    }

    pub fn azure_token(&self) -> String {
        self.token_of(self.storage.calls().to(&format!("/{DATA}")))
    }

    fn token_of(&self, calls: Vec<carnet::sandbox::Call>) -> String {
        let header = calls.last().expect("a call").header("authorization").expect("a header").to_owned();
        let token = header.trim_start_matches("Bearer ").to_owned();
        self.broker.is_secret(&token);
        token
    }

    /// Moves the clock to where `token` of Google's has this much left.
    pub fn leave_of_google(&self, token: &str, left: Duration) {
        let expires_at = self.broker.google.check(token).expect("a good token").expires_at;
        self.advance(expires_at.duration_since(self.clock.now()).expect("good") - left);
    }
}

/// Some libraries send tokens over TLS only: passes what comes by TLS on to a server that speaks none.
async fn with_tls(authority: &Authority, plain: &str) -> String {
    let (certificate, key) = authority.issue("127.0.0.1");
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("a configuration")));
    let listener = TcpListener::bind(("127.0.0.1", free_port())).await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let server = plain.trim_start_matches("http://");
    let (server, path) = server.find('/').map_or((server, ""), |at| server.split_at(at));
    let server = server.to_owned();
    tokio::spawn(async move {
        loop {
            let (near, _peer) = listener.accept().await.expect("a connection");
            let (server, acceptor) = (server.clone(), acceptor.clone());
            tokio::spawn(async move {
                // Whoever does not trust the authority hangs up.
                let Ok(mut near) = acceptor.accept(near).await else { return };
                let mut far = TcpStream::connect(server).await.expect("a connection");
                let _ended = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    format!("https://{address}{path}")
}

const READER: &str = "88888888-8888-8888-8888-888888888888";
const READER_OBJECT: &str = "99999999-9999-9999-9999-999999999999";
const DATA: &str = "training-data";
const OBJECTS: [&str; 2] = ["images/0001.jpg", "labels.csv"];
const STORE: &str = "changeit";

/// How long a managed identity's token lives, whatever is asked for.
pub const DAY: Duration = Duration::from_secs(24 * 3600);

const TARGETS: &str = "
  bucket:
    google:
      audience: //iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/carnet
      service_account: trainer@ml.iam.gserviceaccount.com
      hand_out_assertion: true
      scopes:
        - https://www.googleapis.com/auth/cloud-platform
        - https://www.googleapis.com/auth/devstorage.full_control
        - https://www.googleapis.com/auth/devstorage.read_only
        - https://www.googleapis.com/auth/devstorage.read_write
      sts_endpoint: 'GOOGLE'
      iam_credentials_endpoint: 'GOOGLE'
  blobs:
    azure: { tenant: 11111111-1111-1111-1111-111111111111, client_id: 88888888-8888-8888-8888-888888888888, source: issuer, scopes: [https://storage.azure.com/.default] }
";

const RULES: &str = "
rules:
  - name: training
    targets: [bucket, blobs]
    subject: { roles: [Training.Submit] }
    max_lifetime: 2h
    lease: { max_duration: 72h, heartbeat: 5m }
";

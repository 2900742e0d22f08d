//! An agent in the test's own process, reached by way of a counter of requests.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use carnet::agent::{Agent, Exchanges, Listener, Settings, TargetSettings, Users};
use carnet::grpc::{Address, connect_lazily};
use carnet::proto::Job;
use carnet::secret::Secret;
use carnet::socket;
use carnet::subject_source::{self, SubjectSource};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::program::{Client, Program};
use super::world::World;

/// Serves one target; ends with its holder.
pub struct Front {
    pub agent: Arc<Agent>,
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    ended: CancellationToken,
}

/// Which of the agent's protocols a client is pointed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    GoogleMetadata,
    AppService,
    InstanceMetadata,
}

impl Front {
    /// The credentials are those of `target`, for whoever the token in the world's file is of.
    pub async fn of(world: &World, target: &str) -> Self {
        let address: Address = world.broker.grpc_address().parse().expect("an address");
        let channel = connect_lazily(&address, None).await.expect("a channel");
        let subject = SubjectSource::new(subject_source::Settings {
            token_file: Some(world.entra_token()),
            ..subject_source::Settings::default()
        });
        let settings = Settings {
            targets: vec![TargetSettings { name: target.to_owned(), ..TargetSettings::default() }],
            identity_header: Some(Secret::new(HEADER.to_owned())),
        };
        let source = Arc::new(Exchanges::new(channel, subject, Job::default()));
        let agent = Agent::new(settings, source, Arc::new(world.clock.clone()));
        let listener =
            Listener::bind(&socket::Address::Tcp(([127, 0, 0, 1], 0).into()), Users::own()).await.expect("a port");
        let served_at = listener.address().expect("an address");
        let ended = CancellationToken::new();
        tokio::spawn(listener.serve(agent.clone(), ended.clone()));
        let requests = Arc::new(AtomicUsize::new(0));
        let address = count(served_at, requests.clone()).await;
        Self { agent, address, requests, ended }
    }

    /// How many requests it has had.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn start(&self, world: &World, program: &Program, way: Way, arguments: &[&str]) -> Client {
        let mut environment = world.environment();
        environment.extend(way.environment(&self.address.to_string()));
        environment.push(("GOOGLE_CLOUD_PROJECT", "ml-prod".to_owned()));
        program.start(arguments, world.home(), &environment)
    }
}

impl Way {
    /// What `carnet exec` sets, for this protocol only.
    pub fn environment(self, address: &str) -> Vec<(&'static str, String)> {
        let address = address.to_owned();
        match self {
            Way::GoogleMetadata => vec![
                ("GCE_METADATA_HOST", address.clone()),
                ("GCE_METADATA_IP", address.clone()),
                ("GCE_METADATA_ROOT", address),
                ("METADATA_SERVER_DETECTION", "assume-present".to_owned()),
                ("GCE_METADATA_MTLS_MODE", "none".to_owned()),
            ],
            Way::AppService => vec![
                ("IDENTITY_ENDPOINT", format!("http://{address}/msi/token")),
                ("IDENTITY_HEADER", HEADER.to_owned()),
                ("AZURE_TOKEN_CREDENTIALS", "prod".to_owned()),
            ],
            Way::InstanceMetadata => vec![
                ("AZURE_POD_IDENTITY_AUTHORITY_HOST", format!("http://{address}")),
                ("AZURE_TOKEN_CREDENTIALS", "prod".to_owned()),
            ],
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

/// Passes everything on, and counts the request lines.
async fn count(server: SocketAddr, requests: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let (near, _peer) = listener.accept().await.expect("a connection");
            let requests = requests.clone();
            tokio::spawn(async move {
                let far = TcpStream::connect(server).await.expect("a connection");
                let ((mut from, mut back), (mut answers, mut to)) = (near.into_split(), far.into_split());
                let answering = tokio::spawn(async move { copy(&mut answers, &mut back).await });
                let mut chunk = [0; 16 * 1024];
                while let Ok(read @ 1..) = from.read(&mut chunk).await {
                    // Every client sends a request's first line in one piece.
                    let lines = chunk[..read].windows(LINE_END.len()).filter(|window| *window == LINE_END).count();
                    requests.fetch_add(lines, Ordering::Relaxed);
                    if to.write_all(&chunk[..read]).await.is_err() {
                        break;
                    }
                }
                drop(to);
                let _ended = answering.await;
            });
        }
    });
    address
}

const LINE_END: &[u8] = b" HTTP/1.1\r\n";
pub const HEADER: &str = "header-of-the-tests";

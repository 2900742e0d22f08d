//! A rolling restart as a cluster does it: three replicas under load, each told to end by SIGTERM, and no call fails.

use std::error::Error as _;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carnet::proto::token_exchange_client::TokenExchangeClient;
use carnet::proto::{ExchangeRequest, Job};
use carnet::sandbox::Fault;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::command_line::signal;
use crate::postgres::with_database;
use crate::process::Process;
use crate::support::{Broker, Setup, eventually, free_port};

/// What a client of the cluster knows: the addresses of the pods that are ready. Endpoints for gRPC, which balances by
/// itself; for HTTP, one address that every connection of is forwarded to some pod.
struct Cluster<'a> {
    broker: &'a Broker,
    endpoints: Sender<Change<u16, Endpoint>>,
    http: Arc<Mutex<Vec<u16>>>,
    pods: Vec<Pod>,
}

struct Pod {
    process: Process,
    grpc: u16,
    http: u16,
}

/// Whether the clients hear that a pod ends before or after it is told to: a cluster promises no order.
#[derive(Clone, Copy)]
enum Heard {
    Before,
    After,
    AtOnce,
}

impl Cluster<'_> {
    /// A pod more, from its start until it is among the endpoints.
    async fn add(&mut self) {
        let (grpc, http) = (free_port(), free_port());
        let text = std::fs::read_to_string(self.broker.config_path()).expect("the file");
        let server = text.lines().find(|line| line.starts_with("server:")).expect("a line").to_owned();
        let own = format!("server: {{ grpc: '127.0.0.1:{grpc}', http: '127.0.0.1:{http}' }}");
        let config = self.broker.folder.path().join(format!("pod-{grpc}.yaml"));
        std::fs::write(&config, text.replace(&server, &own)).expect("written");
        let process = Process::start(&config, format!("http://127.0.0.1:{http}"));
        process.until_ready().await;
        let pod = Pod { process, grpc, http };
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{grpc}")).expect("an address");
        self.endpoints.send(Change::Insert(grpc, endpoint)).await.expect("a client");
        self.http.lock().expect("no panic").push(http);
        self.pods.push(pod);
    }

    async fn forget(&self, pod: &Pod) {
        self.endpoints.send(Change::Remove(pod.grpc)).await.expect("a client");
        self.http.lock().expect("no panic").retain(|port| *port != pod.http);
    }

    /// Ends the oldest pod as the kubelet does.
    async fn end_oldest(&mut self, heard: Heard, load: &Load) -> ExitStatus {
        let mut pod = self.pods.remove(0);
        let terminate = || signal("TERM", pod.process.child.id());
        match heard {
            Heard::Before => {
                self.forget(&pod).await;
                load.goes_on().await;
                terminate();
            }
            Heard::After => {
                terminate();
                load.goes_on().await;
                self.forget(&pod).await;
            }
            Heard::AtOnce => {
                terminate();
                self.forget(&pod).await;
            }
        }
        let log = pod.process.log.clone();
        let status = tokio::task::spawn_blocking(move || pod.process.child.wait().expect("an end"));
        let (status, log) = (status.await.expect("no panic"), std::fs::read_to_string(log).expect("a log"));
        assert!(log.contains("draining") && !log.contains("cut off"), "it did not let its calls end:\n{log}");
        status
    }
}

/// Callers who never stop.
#[derive(Clone, Default)]
struct Load {
    answered: Arc<AtomicUsize>,
    tried_again: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Calls have begun and ended since.
    async fn goes_on(&self) {
        let since = self.answered.load(Ordering::Relaxed);
        eventually("calls", async || self.answered.load(Ordering::Relaxed) > since + CALLERS * 4).await;
    }

    async fn call(self, client: TokenExchangeClient<Channel>, request: ExchangeRequest, caller: usize) {
        let mut call = 0_usize;
        while !self.stop.load(Ordering::Relaxed) {
            call += 1;
            // Every other call is for a job of its own, which no cache knows.
            let id = if call.is_multiple_of(2) { "known".to_owned() } else { format!("{caller}-{call}") };
            let job = Some(Job { id, name: "vision".to_owned(), ..Job::default() });
            self.exchange(&client, ExchangeRequest { job, ..request.clone() }).await;
        }
    }

    /// With the retry policy that deploy/README.md gives to clients: what is UNAVAILABLE is tried again, three times.
    async fn exchange(&self, client: &TokenExchangeClient<Channel>, request: ExchangeRequest) {
        for attempt in 1..=ATTEMPTS {
            match client.clone().exchange(request.clone()).await {
                Ok(_credentials) => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(status)
                    if attempt < ATTEMPTS && (status.code() == Code::Unavailable || lost_connection(&status)) =>
                {
                    self.tried_again.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(BACKOFF * attempt).await;
                }
                Err(status) => return self.failed.lock().expect("no panic").push(format!("{status:?}")),
            }
        }
    }
}

/// What libraries of gRPC call UNAVAILABLE, or send again by themselves; tonic says CANCELLED or UNKNOWN.
fn lost_connection(status: &Status) -> bool {
    status.source().is_some_and(|cause| cause.is::<tonic::transport::Error>())
}

/// Where the issuer and the token endpoint are: each connection goes to a pod that is ready.
async fn forward(listener: TcpListener, pods: Arc<Mutex<Vec<u16>>>) {
    let mut turn = 0;
    loop {
        let (mut near, _peer) = listener.accept().await.expect("a connection");
        turn += 1;
        let pod = {
            let pods = pods.lock().expect("no panic");
            pods[turn % pods.len()]
        };
        tokio::spawn(async move {
            let mut far = TcpStream::connect(("127.0.0.1", pod)).await?;
            copy_bidirectional(&mut near, &mut far).await
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_three_replicas_under_load_fails_no_call() {
    with_database(async |database| {
        let mut broker = Broker::start_for(Setup { store: Some(database.url()), ..Setup::default() }).await;
        // The clouds and the configuration stay; pods take the place of the application itself.
        broker.take_app().drain().await;
        let issuer = TcpListener::bind(broker.http.trim_start_matches("http://")).await.expect("the issuer's place");
        // Calls are under way when the signal comes.
        broker.google.faults().always("/v1/token", Fault::Delay(Duration::from_millis(20)));

        let (channel, endpoints) = Channel::balance_channel(16);
        let mut cluster = Cluster { broker: &broker, endpoints, http: Arc::default(), pods: Vec::new() };
        for _pod in 0..3 {
            cluster.add().await;
        }
        let forwarding = tokio::spawn(forward(issuer, cluster.http.clone()));
        let (load, mut callers) = (Load::default(), JoinSet::new());
        for caller in 0..CALLERS {
            let client = TokenExchangeClient::new(channel.clone());
            let request = broker.request(&[["vertex", "azure-ml"][caller % 2]]);
            callers.spawn(load.clone().call(client, request, caller));
        }
        load.goes_on().await;
        for heard in [Heard::Before, Heard::After, Heard::AtOnce] {
            cluster.add().await;
            load.goes_on().await;
            let before = load.tried_again.load(Ordering::Relaxed);
            let status = cluster.end_oldest(heard, &load).await;
            if matches!(heard, Heard::Before) {
                assert_eq!(load.tried_again.load(Ordering::Relaxed), before, "nobody noticed");
            }
            assert!(status.success(), "it ended with {status}");
            load.goes_on().await;
        }
        load.stop.store(true, Ordering::Relaxed);
        callers.join_all().await;
        forwarding.abort();
        let failed = load.failed.lock().expect("no panic").clone();
        let (answered, again) = (load.answered.load(Ordering::Relaxed), load.tried_again.load(Ordering::Relaxed));
        tell(format_args!("{answered} calls answered, {again} of them tried again, {} failed", failed.len()));
        assert_eq!(failed, Vec::<String>::new());
        drop(cluster);
        broker.no_secret_was_left_behind();
    })
    .await;
}

#[expect(clippy::print_stderr, reason = "figures for the guide")]
fn tell(figures: std::fmt::Arguments<'_>) {
    eprintln!("{figures}");
}

const CALLERS: usize = 8;
const ATTEMPTS: u32 = 4;
const BACKOFF: Duration = Duration::from_millis(50);

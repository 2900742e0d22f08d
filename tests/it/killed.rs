//! The real process under load, killed again and again: whatever it has answered is in its store.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use carnet::proto::leases_client::LeasesClient;
use carnet::proto::operator_client::OperatorClient;
use carnet::proto::token_exchange_client::TokenExchangeClient;
use carnet::proto::{
    AuditRecord, CloseLeaseRequest, Credential, ExchangeRequest, GetCredentialsRequest, Lease, LeaseState,
    ListLeasesRequest, OpenLeaseRequest, RenewLeaseRequest, TargetRequest, WatchCredentialsRequest,
};
use carnet::secret::sha256;
use futures_util::future::{join, join_all};
use rand::Rng as _;
use tokio::time::sleep;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::holder::{LEASING, bearing, job};
use crate::postgres::with_database;
use crate::process::{Process, make_place};
use crate::support::{Broker, Setup, eventually, reason, records_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_a_hundred_times_has_forgotten_nothing_that_it_answered() {
    keeps_its_promises(None, 100, 400, async |broker| broker.audit_records()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_on_postgresql_that_is_killed_has_forgotten_nothing_that_it_answered() {
    with_database(async |database| {
        let records = async |_broker: &Broker| {
            let sql = "SELECT bytes FROM audit ORDER BY sequence";
            let groups = database.client().await.query(sql, &[]).await.expect("rows");
            groups.iter().flat_map(|row| records_of(row.get::<_, &[u8]>(0))).collect()
        };
        keeps_its_promises(Some(database.url()), 20, 1000, records).await;
    })
    .await;
}

/// `longest`: milliseconds of a life under load.
async fn keeps_its_promises(
    store: Option<String>,
    kills: usize,
    longest: u64,
    records: impl AsyncFn(&Broker) -> Vec<AuditRecord>,
) {
    let mut broker = Broker::start_for(Setup { rules: Some(LEASING), store, ..Setup::default() }).await;
    let grpc = make_place(&mut broker).await;
    let endpoint = Endpoint::from_shared(format!("http://{grpc}")).expect("a URI");

    let told = Told::default();
    let callers = join_all((0..5).map(|_| Caller::new(&broker, &told, &endpoint).call()));
    let watchers = join_all((0..3).map(|_| Caller::new(&broker, &told, &endpoint).watch()));
    let killing = async {
        // On a machine that is busy with other things, lives are shorter than they look: then there are more of them.
        for number in 0..5 * kills {
            if number >= kills && told.fewest() > kills / 4 {
                break;
            }
            let before = told.answers();
            let mut process = Process::start(&broker.config_path(), broker.http.clone());
            // Every other life ends wherever its start has come to.
            if number % 2 == 0 {
                eventually("an answer", async || told.answers() > before).await;
            }
            sleep(Duration::from_millis(rand::rng().random_range(0..longest))).await;
            process.kill();
        }
        told.over.store(true, Ordering::Relaxed);
    };
    join(join(callers, watchers), killing).await;

    let records = records(&broker).await;
    told.is_on_record(&records);
    let process = Process::start(&broker.config_path(), broker.http.clone());
    process.until_ready().await;
    told.is_true(&broker, endpoint.connect().await.expect("a connection")).await;
    drop(process);
    broker.no_secret_was_left_behind();

    let counts = told.counts.into_inner().expect("no panic");
    let said = format!("{kills} kills or more, {} records; {counts:?}\n", records.len());
    // Past the harness, which keeps what a test that succeeds prints to itself.
    std::io::stderr().write_all(said.as_bytes()).expect("said");
    for answered in ANSWERS {
        let count = counts.get(answered).copied().unwrap_or_default();
        assert!(count > kills / 4, "only {count} answers to {answered}: this proves little");
    }
}

/// What is answered, one way or another.
const ANSWERS: [&str; 6] = ["exchange", "open", "beat", "credentials", "close", "watch"];

/// What callers have been told, and may rely on.
#[derive(Default)]
struct Told {
    leases: Mutex<Vec<Promise>>,
    /// Exchange id and the digest of a token that was handed out under it.
    tokens: Mutex<HashSet<(String, String)>>,
    counts: Mutex<BTreeMap<String, usize>>,
    over: AtomicBool,
}

/// A lease whose opening was answered.
#[derive(Clone)]
struct Promise {
    lease_id: String,
    lease_token: String,
    opened_under: String,
    /// In milliseconds, as the last answer said it.
    heartbeat_before: i64,
    close: Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Close {
    No,
    Asked,
    Answered,
}

impl Told {
    fn count(&self, what: &str) {
        *self.counts.lock().expect("no panic").entry(what.to_owned()).or_default() += 1;
    }

    /// Of the answer that was given least.
    fn fewest(&self) -> usize {
        let counts = self.counts.lock().expect("no panic");
        ANSWERS.iter().map(|answer| counts.get(*answer).copied().unwrap_or_default()).min().unwrap_or_default()
    }

    fn answers(&self) -> usize {
        self.counts.lock().expect("no panic").values().sum()
    }

    fn tokens(&self, exchange_id: &str, credentials: &[Credential]) {
        let digest = |credential: &Credential| BASE64_URL_SAFE_NO_PAD.encode(sha256(credential.token.as_bytes()));
        let tokens = credentials.iter().map(|credential| (exchange_id.to_owned(), digest(credential)));
        self.tokens.lock().expect("no panic").extend(tokens);
    }

    /// A lease that nobody has asked to close.
    fn some_open(&self) -> Option<(usize, String)> {
        let leases = self.leases.lock().expect("no panic");
        let number = rand::rng().random_range(0..leases.len().max(1));
        let open = leases.get(number).filter(|promise| promise.close == Close::No);
        open.map(|promise| (number, promise.lease_token.clone()))
    }

    fn closing(&self, number: usize, close: Close) {
        let mut leases = self.leases.lock().expect("no panic");
        leases[number].close = leases[number].close.max(close);
    }

    fn beaten(&self, number: usize, lease: &Lease) {
        let mut leases = self.leases.lock().expect("no panic");
        leases[number].heartbeat_before = leases[number].heartbeat_before.max(heartbeat_before(lease));
    }

    fn is_closing(&self, number: usize) -> bool {
        self.leases.lock().expect("no panic")[number].close > Close::No
    }

    fn is_on_record(&self, records: &[AuditRecord]) {
        let issued = records.iter().filter(|record| record.outcome == "issued");
        let issued: HashSet<_> =
            issued.map(|record| (record.exchange_id.clone(), record.token_sha256.clone())).collect();
        let tokens = self.tokens.lock().expect("no panic");
        let lost = tokens.iter().filter(|told| !issued.contains(told)).count();
        assert_eq!(lost, 0, "of {} tokens that were handed out, so many have no record", tokens.len());
        let of = |action: &str| -> HashSet<&str> {
            records.iter().filter(|record| record.action == action).map(|record| record.lease_id.as_str()).collect()
        };
        let (opened, closed) = (of("lease.open"), of("lease.close"));
        for promise in self.leases.lock().expect("no panic").iter() {
            assert!(opened.contains(promise.lease_id.as_str()), "an opening has no record");
            assert!(promise.close < Close::Answered || closed.contains(promise.lease_id.as_str()), "an end has none");
            assert!(records.iter().any(|record| record.exchange_id == promise.opened_under));
        }
    }

    async fn is_true(&self, broker: &Broker, channel: Channel) {
        let found = all_leases(broker, OperatorClient::new(channel.clone())).await;
        let mut client = LeasesClient::new(channel);
        let leases = self.leases.lock().expect("no panic").clone();
        for promise in leases {
            let lease = found.get(&promise.lease_id).expect("a lease that was answered is there");
            let closed = lease.state() == LeaseState::Closed;
            assert!(closed || lease.state() == LeaseState::Active, "nobody ended it");
            match promise.close {
                Close::No => assert!(!closed, "nobody closed it"),
                Close::Asked => {}
                Close::Answered => assert!(closed, "it was closed"),
            }
            assert!(heartbeat_before(lease) >= promise.heartbeat_before, "a heartbeat was forgotten");
            let beat = RenewLeaseRequest { lease_token: promise.lease_token, ..RenewLeaseRequest::default() };
            let beaten = client.renew_lease(beat).await;
            assert_eq!(beaten.is_ok(), !closed);
        }
    }
}

async fn all_leases(broker: &Broker, mut client: OperatorClient<Channel>) -> HashMap<String, Lease> {
    let (mut all, mut page_token) = (HashMap::new(), String::new());
    loop {
        let request = ListLeasesRequest { page_size: 1000, page_token, ..ListLeasesRequest::default() };
        let page = client.list_leases(bearing(broker, "Carnet.Operator", request)).await.expect("leases").into_inner();
        all.extend(page.leases.into_iter().map(|lease| (lease.lease_id.clone(), lease)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

fn heartbeat_before(lease: &Lease) -> i64 {
    let stamp = lease.heartbeat_before.expect("a time");
    stamp.seconds * 1000 + i64::from(stamp.nanos / 1_000_000)
}

struct Caller<'a> {
    told: &'a Told,
    broker: &'a Broker,
    subject_token: String,
    exchange: TokenExchangeClient<Channel>,
    leases: LeasesClient<Channel>,
}

impl<'a> Caller<'a> {
    fn new(broker: &'a Broker, told: &'a Told, endpoint: &Endpoint) -> Self {
        let channel = endpoint.connect_lazy();
        let (exchange, leases) = (TokenExchangeClient::new(channel.clone()), LeasesClient::new(channel));
        Self { told, broker, subject_token: broker.signed(&broker.runner()), exchange, leases }
    }

    async fn call(mut self) {
        while !self.told.over.load(Ordering::Relaxed) {
            let (act, lease) = (rand::rng().random_range(0..10), self.told.some_open());
            let answer = match (act, lease) {
                (0..=2, _) => self.exchange().await,
                (3..=4, _) | (_, None) => self.open().await,
                (5..=6, Some((number, token))) => self.beat(number, token).await,
                (7..=8, Some((number, token))) => self.credentials(number, token).await,
                (_, Some((number, token))) => self.close(number, token).await,
            };
            self.hear(answer).await;
        }
    }

    /// From one lease to the next: sometimes after the first message, sometimes not before the end.
    async fn watch(mut self) {
        while !self.told.over.load(Ordering::Relaxed) {
            let answer = match self.told.some_open() {
                Some((number, token)) => self.follow(number, token).await,
                None => Err(Status::unavailable("no lease yet")),
            };
            self.hear(answer).await;
        }
    }

    /// What a caller may hear: an answer, or that nobody is there.
    async fn hear(&self, answer: Result<(), Status>) {
        let Err(status) = answer else { return };
        let reason = reason(&status);
        let about_the_broker = ["", "KEYS_UNAVAILABLE", "CLOUD_UNAVAILABLE"];
        assert!(about_the_broker.contains(&reason.as_str()), "{status:?}");
        if !reason.is_empty() {
            self.told.count(&reason);
        }
        sleep(Duration::from_millis(5)).await;
    }

    /// An end that was asked for is no news.
    fn unless_closing<T>(&self, number: usize, answer: Result<T, Status>) -> Result<Option<T>, Status> {
        match answer {
            Err(status) if reason(&status) == "LEASE_ENDED" && self.told.is_closing(number) => Ok(None),
            answer => answer.map(Some),
        }
    }

    async fn exchange(&mut self) -> Result<(), Status> {
        let (subject_token, targets) = (self.subject_token.clone(), some_targets());
        let request = ExchangeRequest { subject_token, targets, job: Some(some_job()), ..ExchangeRequest::default() };
        let answer = self.exchange.exchange(request).await?.into_inner();
        self.told.tokens(&answer.exchange_id, &answer.credentials);
        self.told.count("exchange");
        Ok(())
    }

    async fn open(&mut self) -> Result<(), Status> {
        let (subject_token, targets) = (self.subject_token.clone(), some_targets());
        let request = OpenLeaseRequest { subject_token, targets, job: Some(some_job()), ..OpenLeaseRequest::default() };
        let answer = self.leases.open_lease(request).await?.into_inner();
        self.told.tokens(&answer.exchange_id, &answer.credentials);
        let lease = answer.lease.expect("a lease");
        let promise = Promise {
            heartbeat_before: heartbeat_before(&lease),
            lease_id: lease.lease_id,
            lease_token: answer.lease_token,
            opened_under: answer.exchange_id,
            close: Close::No,
        };
        let mut leases = self.told.leases.lock().expect("no panic");
        if leases.len() < SEARCHED_FOR {
            self.broker.is_secret(&promise.lease_token);
        }
        leases.push(promise);
        self.told.count("open");
        Ok(())
    }

    async fn beat(&mut self, number: usize, lease_token: String) -> Result<(), Status> {
        let beat = RenewLeaseRequest { lease_token, ..RenewLeaseRequest::default() };
        let answer = self.leases.renew_lease(beat).await;
        if let Some(answer) = self.unless_closing(number, answer)? {
            self.told.beaten(number, &answer.into_inner().lease.expect("a lease"));
            self.told.count("beat");
        }
        Ok(())
    }

    async fn credentials(&mut self, number: usize, lease_token: String) -> Result<(), Status> {
        let answer = self.leases.get_credentials(GetCredentialsRequest { lease_token, targets: Vec::new() }).await;
        if let Some(answer) = self.unless_closing(number, answer)? {
            let answer = answer.into_inner();
            self.told.tokens(&answer.exchange_id, &answer.credentials);
            self.told.count("credentials");
        }
        Ok(())
    }

    async fn close(&mut self, number: usize, lease_token: String) -> Result<(), Status> {
        self.told.closing(number, Close::Asked);
        let answer = self.leases.close_lease(CloseLeaseRequest { lease_token }).await?.into_inner();
        assert!(answer.lease.is_some_and(|lease| lease.state() == LeaseState::Closed));
        self.told.closing(number, Close::Answered);
        self.told.count("close");
        Ok(())
    }

    async fn follow(&mut self, number: usize, lease_token: String) -> Result<(), Status> {
        let request = WatchCredentialsRequest { lease_token, targets: Vec::new() };
        let begun = self.leases.watch_credentials(request).await;
        let Some(messages) = self.unless_closing(number, begun)? else { return Ok(()) };
        let mut messages = messages.into_inner();
        while let Some(message) = messages.message().await? {
            self.told.tokens(&message.exchange_id, &message.credentials);
            let lease = message.lease.expect("a lease");
            if lease.state() == LeaseState::Active {
                self.told.beaten(number, &lease);
            } else {
                assert!(lease.state() == LeaseState::Closed && self.told.is_closing(number), "nobody ended it");
            }
            self.told.count("watch");
            if rand::rng().random_bool(0.9) {
                break;
            }
        }
        Ok(())
    }
}

fn some_targets() -> Vec<TargetRequest> {
    let names = [&["vertex"][..], &["azure-ml"], &["vertex", "azure-ml"]][rand::rng().random_range(0..3)];
    names.iter().map(|name| TargetRequest { target: (*name).to_owned(), ..TargetRequest::default() }).collect()
}

/// Few, so that most tokens come from the cache.
fn some_job() -> carnet::proto::Job {
    job(&format!("run-{}", rand::rng().random_range(0..5)))
}

/// Lease tokens that logs and store are searched for; searching for all of them would take longer than the test.
const SEARCHED_FOR: usize = 20;

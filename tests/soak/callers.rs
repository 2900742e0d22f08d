//! The load: callers of every kind, each at its own pace until they are told to stop.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use carnet::proto;
use carnet::proto::leases_client::LeasesClient;
use carnet::proto::operator_client::OperatorClient;
use carnet::proto::token_exchange_client::TokenExchangeClient;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, interval, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};

use crate::broker::{Clouds, Place, RUNNER, TENANT, request};
use crate::ledger::{self, Ledger};

/// What all callers share.
#[derive(Clone)]
pub struct World {
    pub clouds: Arc<Clouds>,
    pub place: Arc<Place>,
    pub ledger: Arc<Ledger>,
    pub stopping: CancellationToken,
    tokens: Arc<Mutex<Option<(Instant, String)>>>,
    /// An issued token.
    issued: Arc<Mutex<Option<String>>>,
}

impl World {
    pub fn new(clouds: Clouds, place: Place) -> Self {
        Self {
            clouds: Arc::new(clouds),
            place: Arc::new(place),
            ledger: Arc::default(),
            stopping: CancellationToken::new(),
            tokens: Arc::default(),
            issued: Arc::default(),
        }
    }

    /// The same, for callers that stop before the others.
    pub fn of_its_own_end(&self) -> Self {
        Self { stopping: CancellationToken::new(), ..self.clone() }
    }

    /// As a workload has it: renewed long before it ends.
    fn subject_token(&self) -> String {
        let mut held = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_ref().filter(|(at, _token)| at.elapsed() < RENEW_TOKEN_AFTER) {
            Some((_at, token)) => token.clone(),
            None => held.insert((Instant::now(), self.clouds.subject_token())).1.clone(),
        }
    }

    async fn channel(&self) -> Result<Channel> {
        Ok(Endpoint::from_shared(format!("http://{}", self.place.grpc))?.connect().await?)
    }
}

/// How often something is done, until the end.
struct Pace {
    ticks: Interval,
    number: u64,
}

impl Pace {
    fn of(pace: Duration) -> Self {
        Self { ticks: interval(pace), number: 0 }
    }

    /// The number of the next time; `None` at the end.
    async fn next(&mut self, world: &World) -> Option<u64> {
        world.stopping.run_until_cancelled(self.ticks.tick()).await?;
        self.number += 1;
        Some(self.number)
    }
}

/// All of them.
pub fn start(world: &World) -> JoinSet<Result<()>> {
    let mut callers = JoinSet::new();
    world.ledger.connected();
    for caller in 0..WARM_CALLERS {
        callers.spawn(warm(world.clone(), caller));
    }
    callers.spawn(cold(world.clone()));
    callers.spawn(bad(world.clone()));
    callers.spawn(introspect(world.clone()));
    callers.spawn(short_connections(world.clone()));
    callers.spawn(jobs(world.clone()));
    callers
}

/// The same jobs again and again: served from the cache, whatever is away.
async fn warm(world: World, caller: u64) -> Result<()> {
    let mut client = TokenExchangeClient::new(world.channel().await?);
    let mut pace = Pace::of(Duration::from_millis(40));
    while let Some(number) = pace.next(&world).await {
        let job = format!("warm-{}", (caller + number) % WARM_JOBS);
        match client.exchange(request(world.subject_token(), &job)).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                world.ledger.answered("warm", &answer.exchange_id);
                if let Some(credential) = answer.credentials.into_iter().next().filter(|it| !it.cached) {
                    let mut issued = world.issued.lock().unwrap_or_else(PoisonError::into_inner);
                    *issued = Some(credential.token);
                }
            }
            Err(status) => world.ledger.refused("warm", &status, &[]),
        }
    }
    Ok(())
}

/// A new job each time, whose credential is minted.
async fn cold(world: World) -> Result<()> {
    let mut client = TokenExchangeClient::new(world.channel().await?);
    let mut pace = Pace::of(Duration::from_millis(300));
    while let Some(number) = pace.next(&world).await {
        match client.exchange(request(world.subject_token(), &format!("cold-{number}"))).await {
            Ok(answer) => world.ledger.answered("cold", &answer.get_ref().exchange_id),
            Err(status) => world.ledger.refused("cold", &status, &[]),
        }
    }
    Ok(())
}

/// Tokens that must be refused, each for its own fault.
async fn bad(world: World) -> Result<()> {
    let mut client = TokenExchangeClient::new(world.channel().await?);
    let mut pace = Pace::of(Duration::from_millis(100));
    while let Some(number) = pace.next(&world).await {
        let token = world.clouds.entra.app_token(TENANT, RUNNER).roles(["Training.Submit"]);
        let (token, reason) = match number % 5 {
            0 => (token.sign_with_foreign_key(), "SUBJECT_TOKEN_SIGNATURE"),
            1 => (token.audience("api://elsewhere").sign(), "SUBJECT_TOKEN_AUDIENCE"),
            2 => {
                let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
                (token.issued_at(long_ago).sign(), "SUBJECT_TOKEN_EXPIRED")
            }
            3 => (format!("not.a.token-{number}"), "SUBJECT_TOKEN_MALFORMED"),
            _ => (world.clouds.entra.app_token(TENANT, RUNNER).sign(), "DENIED"),
        };
        match client.exchange(request(token, "bad")).await {
            Ok(_taken) => world.ledger.surprise(format!("a token that had to be {reason} was taken")),
            Err(status) => world.ledger.refused("bad token", &status, &[reason]),
        }
    }
    Ok(())
}

async fn introspect(world: World) -> Result<()> {
    let client = reqwest::Client::new();
    let url = format!("http://{}/v1/introspect", world.place.http);
    let knows = |id: &str| world.ledger.knows(id);
    let mut pace = Pace::of(Duration::from_millis(200));
    while let Some(number) = pace.next(&world).await {
        let issued = world.issued.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(token) = issued else { continue };
        let known = number % 2 == 0;
        let shown = if known { token } else { format!("made-up-{number}") };
        let answer = client.post(&url).form(&[("token", shown)]).send().await;
        let answer: Result<Value, _> = match answer {
            Ok(answer) => answer.json().await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(told) if told.get("active").and_then(Value::as_bool) != Some(known) => {
                world.ledger.surprise(format!("introspection: {told}"))
            }
            // Of callers who waited for one mint, the first to be recorded is named.
            Ok(told) if known && !told.get("exchange_id").and_then(Value::as_str).is_some_and(knows) => {
                world.ledger.surprise(format!("introspection names another exchange: {told}"));
            }
            Ok(_told) => world.ledger.done("introspection"),
            Err(error) => world.ledger.surprise(format!("introspection: {error}")),
        }
    }
    Ok(())
}

/// A connection for each call, as command lines have it.
async fn short_connections(world: World) -> Result<()> {
    let mut pace = Pace::of(Duration::from_millis(250));
    while let Some(_number) = pace.next(&world).await {
        let answered = async {
            let mut client = TokenExchangeClient::new(world.channel().await?);
            Ok::<_, anyhow::Error>(client.exchange(request(world.subject_token(), "warm-0")).await)
        };
        match answered.await {
            Ok(Ok(answer)) => world.ledger.answered("alone", &answer.get_ref().exchange_id),
            Ok(Err(status)) => world.ledger.refused("alone", &status, &[]),
            Err(error) => world.ledger.surprise(format!("a connection: {error:#}")),
        }
    }
    Ok(())
}

/// How a job with a lease ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Closes,
    /// It is killed: nobody beats any more.
    Dies,
    Revoked,
}

/// Jobs that come and go, each with a lease.
async fn jobs(world: World) -> Result<()> {
    let channel = world.channel().await?;
    let mut running = JoinSet::new();
    let mut pace = Pace::of(Duration::from_millis(700));
    while let Some(number) = pace.next(&world).await {
        while running.try_join_next().is_some() {}
        let fate = match number % 5 {
            0..=2 => Fate::Closes,
            3 => Fate::Dies,
            _ => Fate::Revoked,
        };
        running.spawn(job(world.clone(), LeasesClient::new(channel.clone()), number, fate));
    }
    while let Some(ended) = running.join_next().await {
        ended?;
    }
    Ok(())
}

async fn job(world: World, mut client: LeasesClient<Channel>, number: u64, fate: Fate) {
    let name = if fate == Fate::Revoked { REVOKED } else { "leased" };
    // Of jobs of one name, some share a credential.
    let exchange = request(world.subject_token(), &format!("leased-{}", number % 50));
    let opening = proto::OpenLeaseRequest {
        subject_token: exchange.subject_token,
        targets: exchange.targets,
        job: exchange.job.map(|job| proto::Job { name: name.to_owned(), ..job }),
        duration: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..Default::default()
    };
    let lease_token = match client.open_lease(opening).await {
        Ok(opened) => {
            world.ledger.answered("lease.open", &opened.get_ref().exchange_id);
            opened.into_inner().lease_token
        }
        Err(status) => return world.ledger.refused("lease.open", &status, &[]),
    };
    let ended: &[&str] = if fate == Fate::Revoked { &["LEASE_ENDED"] } else { &[] };
    let watching = tokio::spawn(watch(world.clone(), client.clone(), lease_token.clone()));
    let ends_at = Instant::now() + if fate == Fate::Revoked { world_without_end() } else { LIFE };
    while Instant::now() < ends_at && !world.stopping.is_cancelled() {
        let asked = proto::GetCredentialsRequest { lease_token: lease_token.clone(), targets: Vec::new() };
        match client.get_credentials(asked).await {
            Ok(answer) => world.ledger.answered("lease.credentials", &answer.get_ref().exchange_id),
            Err(status) => {
                world.ledger.refused("lease.credentials", &status, ended);
                if status.code() == Code::FailedPrecondition {
                    break;
                }
            }
        }
        let beat = proto::RenewLeaseRequest { lease_token: lease_token.clone(), ..Default::default() };
        match client.renew_lease(beat).await {
            Ok(_renewed) => world.ledger.done("lease.renew"),
            Err(status) => {
                // A heartbeat is not recorded.
                world.ledger.refused_off_record("lease.renew", &status, ended.first().copied());
                if status.code() == Code::FailedPrecondition {
                    break;
                }
            }
        }
        let _ = world.stopping.run_until_cancelled(sleep(BEAT)).await;
    }
    if fate == Fate::Closes {
        match client.close_lease(proto::CloseLeaseRequest { lease_token }).await {
            Ok(_closed) => world.ledger.done("lease.close"),
            Err(status) => world.ledger.refused("lease.close", &status, &[]),
        }
    } else {
        watching.abort();
    }
    if let Err(error) = watching.await
        && error.is_panic()
    {
        world.ledger.surprise(format!("a watch: {error}"));
    }
}

/// Begun anew when its connection ends, as each does within the hour.
async fn watch(world: World, mut client: LeasesClient<Channel>, lease_token: String) {
    loop {
        let request = proto::WatchCredentialsRequest { lease_token: lease_token.clone(), targets: Vec::new() };
        let mut updates = match client.watch_credentials(request).await {
            Ok(updates) => updates.into_inner(),
            // Its lease may have ended before.
            Err(status) => return world.ledger.refused("lease.watch", &status, &["LEASE_ENDED"]),
        };
        let ended = loop {
            match updates.message().await {
                Ok(Some(update)) if update.credentials.is_empty() => world.ledger.done("lease.watch"),
                Ok(Some(update)) => world.ledger.answered("lease.watch", &update.exchange_id),
                Ok(None) => return,
                Err(status) => break status,
            }
        };
        if ledger::reason(&ended) != CONNECTION_ENDS {
            return world.ledger.refused("lease.watch", &ended, &["LEASE_ENDED"]);
        }
        world.ledger.connection_ended("lease.watch");
    }
}

/// An operator's call, with a token that is fresh.
pub struct Operator {
    world: World,
    client: OperatorClient<Channel>,
}

impl Operator {
    pub async fn of(world: &World) -> Result<Self> {
        Ok(Self { world: world.clone(), client: OperatorClient::new(world.channel().await?) })
    }

    fn show<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        let token = self.world.clouds.entra.user_token(TENANT, OPERATOR).roles(["Carnet.Operator"]).sign();
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
        Ok(request)
    }

    /// Ends the leases of the jobs that are to be revoked.
    pub async fn revoke(&mut self) -> Result<i32> {
        let filter = proto::LeaseFilter { job_name: REVOKED.to_owned(), ..Default::default() };
        let request = self.show(proto::RevokeLeasesRequest { filter: Some(filter), reason: "soak".to_owned() })?;
        Ok(self.client.revoke_leases(request).await.context("revocation")?.into_inner().revoked)
    }

    /// Leases that are active, at most a thousand.
    pub async fn active(&mut self) -> Result<usize> {
        let request = proto::ListLeasesRequest {
            states: vec![proto::LeaseState::Active.into()],
            page_size: 1000,
            ..Default::default()
        };
        let request = self.show(request)?;
        Ok(self.client.list_leases(request).await.context("a list of leases")?.into_inner().leases.len())
    }
}

/// Longer than any run.
fn world_without_end() -> Duration {
    Duration::from_secs(7 * 86_400)
}

const OPERATOR: &str = "88888888-8888-8888-8888-888888888888";
const REVOKED: &str = "to-be-revoked";
const CONNECTION_ENDS: &str = "SHUTTING_DOWN";

const WARM_CALLERS: u64 = 4;
const WARM_JOBS: u64 = 16;
const RENEW_TOKEN_AFTER: Duration = Duration::from_secs(300);

/// Of a job with a lease.
const LIFE: Duration = Duration::from_secs(20);
const BEAT: Duration = Duration::from_secs(4);

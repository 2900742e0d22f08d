//! Two servers that are asked the same: a broker that has the credential already, and a method that does nothing.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use carnet::proto::token_exchange_client::TokenExchangeClient;
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::broker::{self, Clouds, Place, Wire};
use crate::empty;
use crate::load::{self, Job, Outcome, Shape};
use crate::machine::{self, Core, Running};
use crate::table::Spread;

/// The two of them, running.
pub struct Sides {
    pub place: Place,
    /// Bytes of a request, and of its answer.
    pub bytes: (usize, usize),
    broker: Running,
    empty: Running,
    empty_address: SocketAddr,
    request: PathBuf,
    pub clouds: Clouds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Empty,
    Exchange,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Empty, Self::Exchange];
}

impl Sides {
    pub async fn start(wire: Wire) -> Result<Self> {
        Self::start_as(wire, |program| machine::pinned(Core::Server, program)).await
    }

    /// `server` makes the command that runs a server's program.
    pub async fn start_as(wire: Wire, server: impl Fn(&Path) -> Command) -> Result<Self> {
        let clouds = Clouds::start().await?;
        let place = Place::on(&clouds, wire)?;
        let (broker, _took) = place.start_by(place.command_by(server(Path::new(broker::PROGRAM)))).await?;
        if wire == Wire::Tls {
            place.upload_keys(&clouds).await?;
        }
        let request = broker::request(clouds.subject_token(), "run-1");
        let mut client = place.client().await?;
        client.exchange(request.clone()).await?;
        let answer = client.exchange(request.clone()).await?.into_inner();
        ensure!(answer.credentials.iter().all(|credential| credential.cached), "the second answer is not a cached one");

        let (request_path, answer_path) = (place.folder.path().join("request"), place.folder.path().join("answer"));
        fs::write(&request_path, broker::frame(&request)?)?;
        fs::write(&answer_path, answer.encode_to_vec())?;
        let empty_address = broker::free_address()?;
        let tls = place.certificate.as_ref().map(|tls| (tls.path.clone(), tls.key_path.clone()));
        let job = empty::Job { address: empty_address, answer: answer_path, tls };
        let empty = empty::start(server(&std::env::current_exe()?), &job)?;
        while TcpStream::connect(empty_address).await.is_err() {
            sleep(Duration::from_millis(10)).await;
        }
        let bytes = (request.encoded_len(), answer.encoded_len());
        Ok(Self { place, bytes, broker, empty, empty_address, request: request_path, clouds })
    }

    pub fn process(&self, side: Side) -> &Running {
        match side {
            Side::Empty => &self.empty,
            Side::Exchange => &self.broker,
        }
    }

    /// Over plaintext.
    pub async fn client(&self, side: Side) -> Result<TokenExchangeClient<Channel>> {
        let channel = Channel::from_shared(format!("http://{}", self.address(side)))?;
        Ok(TokenExchangeClient::new(channel.connect().await?))
    }

    fn address(&self, side: Side) -> SocketAddr {
        match side {
            Side::Empty => self.empty_address,
            Side::Exchange => self.place.grpc,
        }
    }

    pub fn job(&self, side: Side, shape: Shape) -> Job {
        let (_request, length) = self.bytes;
        Job {
            address: self.address(side),
            method: load::EXCHANGE.to_owned(),
            request: self.request.clone(),
            answer: (length - TIMES_VARY, length + TIMES_VARY),
            connections: CONNECTIONS,
            shape,
            certificate: self.place.certificate.as_ref().map(|certificate| certificate.path.clone()),
        }
    }

    /// One run of load on each, one after the other, so that a slow moment of the machine meets both.
    pub async fn pair(&self, shape: impl Fn(Side) -> Shape) -> Result<Pair> {
        let (empty, exchange) = (Side::Empty, Side::Exchange);
        let empty = Round::run(&self.job(empty, shape(empty)), self.process(empty)).await?;
        let exchange = Round::run(&self.job(exchange, shape(exchange)), self.process(exchange)).await?;
        Ok(Pair { empty, exchange })
    }
}

/// One run of each.
pub struct Pair {
    pub empty: Round,
    pub exchange: Round,
}

impl Pair {
    pub fn late(&self) -> f64 {
        self.empty.outcome.late.max(self.exchange.outcome.late)
    }
}

pub fn ratios(rounds: &[Pair], of: fn(&Round) -> f64) -> Spread {
    Spread::of(rounds.iter().map(|pair| of(&pair.exchange) / of(&pair.empty)))
}

/// Of the empty method, of the exchange.
pub fn medians(rounds: &[Pair], of: fn(&Round) -> f64) -> (f64, f64) {
    let median = |side: fn(&Pair) -> &Round| Spread::of(rounds.iter().map(side).map(of)).median;
    (median(|pair| &pair.empty), median(|pair| &pair.exchange))
}

/// A run of load, with what the server spent on it.
pub struct Round {
    pub outcome: Outcome,
    busy: Duration,
}

impl Round {
    pub async fn run(job: &Job, server: &Running) -> Result<Self> {
        let before = server.busy()?;
        let outcome = load::run(job).await?;
        Ok(Self { busy: server.busy()? - before, outcome })
    }

    pub fn rate(&self) -> f64 {
        self.outcome.rate()
    }

    pub fn p50(&self) -> f64 {
        self.outcome.p50
    }

    pub fn p99(&self) -> f64 {
        self.outcome.p99
    }

    /// Processor time per call, in microseconds.
    pub fn cpu(&self) -> f64 {
        self.busy.as_secs_f64() / self.outcome.called as f64 * 1e6
    }
}

pub const CONNECTIONS: usize = 8;

/// On each connection: enough calls wait while a group of records is flushed, whatever the disk.
pub const STREAMS: usize = 16;

pub const ROUND: Duration = Duration::from_secs(4);

/// Fractions of a second are numbers of varying length.
const TIMES_VARY: usize = 16;

//! A credential from the cache, recorded on disk before it leaves, against the same method that does nothing.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use prost::Message as _;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::broker::{self, Clouds, Place};
use crate::empty;
use crate::load::{self, Job, Outcome, Shape};
use crate::machine::{Core, Running};
use crate::table::{Row, Spread, aside, row};

pub async fn run() -> Result<Vec<Row>> {
    let clouds = Clouds::start().await?;
    let place = Place::make(&clouds)?;
    let (broker, _took) = place.start(Some(Core::Server)).await?;
    let request = broker::request(clouds.subject_token(), "run-1");
    let mut client = place.client().await?;
    client.exchange(request.clone()).await?;
    let answer = client.exchange(request.clone()).await?.into_inner();
    ensure!(answer.credentials.iter().all(|credential| credential.cached), "the second answer is not a cached one");

    let (request_path, answer_path) = (place.folder.path().join("request"), place.folder.path().join("answer"));
    fs::write(&request_path, broker::frame(&request)?)?;
    fs::write(&answer_path, answer.encode_to_vec())?;
    let empty_address = broker::free_address()?;
    let empty = empty::start(&empty_address.to_string(), &answer_path)?;
    while TcpStream::connect(empty_address).await.is_err() {
        sleep(Duration::from_millis(10)).await;
    }

    let length = answer.encoded_len();
    let job = |address: SocketAddr, shape| Job {
        address,
        method: load::EXCHANGE.to_owned(),
        request: request_path.clone(),
        answer: (length - TIMES_VARY, length + TIMES_VARY),
        connections: CONNECTIONS,
        shape,
    };
    let sides = Sides { empty: (empty_address, &empty), exchange: (place.grpc, &broker) };
    let mut closed = Vec::new();
    for _ in 0..ROUNDS {
        let shape = |_side| Shape::Closed { streams: STREAMS, time: ROUND };
        closed.push(sides.round(&job, shape).await?);
    }
    let (empty_rate, exchange_rate) = medians(&closed, Round::rate);
    let (mut open, mut spoilt) = (Vec::new(), 0);
    while open.len() < ROUNDS {
        let shape = |side| Shape::Open {
            rate: match side {
                Side::Empty => empty_rate / 2.0,
                Side::Exchange => exchange_rate / 2.0,
            },
            time: ROUND,
        };
        let pair = sides.round(&job, shape).await?;
        if pair.late() > LATE && spoilt < SPOILT {
            spoilt += 1;
        } else {
            open.push(pair);
        }
    }
    let (flush_median, flush_p99) = flushes(&place)?;

    let whole = |(empty, exchange): (f64, f64)| format!("{empty:.0}, {exchange:.0}");
    let (empty_busy, exchange_busy) = medians(&closed, |round| round.busy * 100.0);
    let (empty_cpu, exchange_cpu) = medians(&closed, Round::cpu);
    Ok(vec![
        row("exchanges per second / empty method's", ratios(&closed, Round::rate).show("×"), ">= 0.60"),
        aside("bytes in, bytes out", format!("{}, {length}", request.encoded_len())),
        aside("per second: empty, exchange", whole((empty_rate, exchange_rate))),
        aside("server's core busy: empty, exchange", format!("{empty_busy:.0}%, {exchange_busy:.0}%")),
        aside("µs of processor time per call: empty, exchange", format!("{empty_cpu:.1}, {exchange_cpu:.1}")),
        row("p99 at half of the own maximum / empty method's", ratios(&open, Round::p99).show("×"), "<= 2.5"),
        aside("p50 in µs: empty, exchange", whole(medians(&open, |round| round.outcome.p50))),
        aside("p99 in µs: empty, exchange", whole(medians(&open, Round::p99))),
        aside("rounds repeated because the load itself was late", spoilt.to_string()),
        aside("one write and flush of this disk in µs: p50, p99", whole((flush_median, flush_p99))),
    ])
}

/// The two servers: where they listen, and their processes.
struct Sides<'a> {
    empty: (SocketAddr, &'a Running),
    exchange: (SocketAddr, &'a Running),
}

enum Side {
    Empty,
    Exchange,
}

impl Sides<'_> {
    /// One run of load on each, one after the other, so that a slow moment of the machine meets both.
    async fn round(&self, job: impl Fn(SocketAddr, Shape) -> Job, shape: impl Fn(Side) -> Shape) -> Result<Pair> {
        let empty = Round::run(&job(self.empty.0, shape(Side::Empty)), self.empty.1).await?;
        let exchange = Round::run(&job(self.exchange.0, shape(Side::Exchange)), self.exchange.1).await?;
        Ok(Pair { empty, exchange })
    }
}

struct Pair {
    empty: Round,
    exchange: Round,
}

impl Pair {
    fn late(&self) -> f64 {
        self.empty.outcome.late.max(self.exchange.outcome.late)
    }
}

fn ratios(rounds: &[Pair], of: fn(&Round) -> f64) -> Spread {
    Spread::of(rounds.iter().map(|pair| of(&pair.exchange) / of(&pair.empty)))
}

fn medians(rounds: &[Pair], of: fn(&Round) -> f64) -> (f64, f64) {
    let median = |side: fn(&Pair) -> &Round| Spread::of(rounds.iter().map(side).map(of)).median;
    (median(|pair| &pair.empty), median(|pair| &pair.exchange))
}

/// A run of load, with what the server spent on it.
struct Round {
    outcome: Outcome,
    /// Share of one core.
    busy: f64,
}

impl Round {
    async fn run(job: &Job, server: &Running) -> Result<Self> {
        let watch = async {
            // The middle of the run.
            sleep(ROUND / 2).await;
            let before = server.busy()?;
            sleep(ROUND / 2).await;
            Ok::<_, anyhow::Error>((server.busy()? - before).as_secs_f64() / (ROUND / 2).as_secs_f64())
        };
        let (outcome, busy) = tokio::try_join!(load::run(job), watch)?;
        Ok(Self { outcome, busy })
    }

    fn rate(&self) -> f64 {
        self.outcome.rate()
    }

    fn p99(&self) -> f64 {
        self.outcome.p99
    }

    /// Processor time per call, in microseconds.
    fn cpu(&self) -> f64 {
        self.busy / self.rate() * 1e6
    }
}

/// What the disk itself takes for a page of records, by which every group of them has to wait.
fn flushes(place: &Place) -> Result<(f64, f64)> {
    use std::io::{Seek as _, Write as _};
    let mut file = fs::File::create(place.folder.path().join("flush"))?;
    let page = [1; 16 * 1024];
    file.write_all(&page)?;
    file.sync_all()?;
    let mut took = Vec::new();
    for _ in 0..FLUSHES {
        let began = tokio::time::Instant::now();
        file.rewind()?;
        file.write_all(&page)?;
        file.sync_data()?;
        took.push(began.elapsed().as_secs_f64() * 1e6);
    }
    took.sort_by(f64::total_cmp);
    let at = |share: usize| took.get(FLUSHES * share / 100).copied().unwrap_or(f64::NAN);
    Ok((at(50), at(99)))
}

const FLUSHES: usize = 200;

const CONNECTIONS: usize = 8;

/// On each connection: enough calls wait while a group of records is flushed, whatever the disk.
const STREAMS: usize = 16;

const ROUNDS: usize = 5;
/// In microseconds: something else had the load's core.
const LATE: f64 = 300.0;

/// A machine this busy is not going to be quiet.
const SPOILT: usize = 10;

const ROUND: Duration = Duration::from_secs(4);

/// Fractions of a second are numbers of varying length.
const TIMES_VARY: usize = 16;

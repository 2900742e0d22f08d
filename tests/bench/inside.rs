//! The exchange without a wire: what its stages cost with the audit log on and off, with few and with many callers, and
//! with few and with many credentials kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use arc_swap::ArcSwap;
use carnet::audit::{Audit, AuditError, AuditLog, Checkpoint, Expired, Group, HandOut, Head, Kept};
use carnet::clock::{Clock, SystemClock};
use carnet::config::Config;
use carnet::credential::Credentials;
use carnet::exchange::{Caller, Door, Exchange, ExchangeRequest, FakeRunHistory, History, Proof, TargetRequest};
use carnet::limit::Limits;
use carnet::policy::{ExcessScopes, Tenure};
use carnet::secret::{SealingKeys, Secret};
use carnet::store;
use carnet::subject::EntraVerifier;
use carnet::target::Job;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::broker::{Clouds, Place};
use crate::machine::{self, Core};
use crate::memory::Mint;
use crate::table::{Row, Spread, aside, row};

pub const ROLE: &str = "exchange-inside";

/// What one process is to measure.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Measure {
    Audit,
    Subjects,
    Credentials,
}

/// A figure per round: microseconds of processor time, and exchanges per second.
#[derive(Debug, Serialize, Deserialize)]
struct Series {
    of: usize,
    rounds: Vec<(f64, f64)>,
}

impl Series {
    fn cpu(&self) -> f64 {
        Spread::of(self.rounds.iter().map(|(cpu, _rate)| *cpu)).median
    }

    fn rate(&self) -> f64 {
        Spread::of(self.rounds.iter().map(|(_cpu, rate)| *rate)).median
    }
}

pub async fn audit() -> Result<Vec<Row>> {
    let series = measured(Measure::Audit).await?;
    let [off, on] = &series[..] else { anyhow::bail!("two series") };
    Ok(vec![
        row(
            "exchanges per second, the log on disk / discarded (no wire)",
            format!("{:.2}×", on.rate() / off.rate()),
            "",
        ),
        aside("µs of processor time per exchange: discarded, on disk", format!("{:.1}, {:.1}", off.cpu(), on.cpu())),
    ])
}

pub async fn growth() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (measure, what, goal) in
        [(Measure::Subjects, "subjects", ""), (Measure::Credentials, "cached credentials", "<= 1.15×")]
    {
        let series = measured(measure).await?;
        let (first, last) = (series.first().context("a series")?, series.last().context("a series")?);
        rows.push(row(
            format!("processor time per exchange, {} {what} / {}", last.of, first.of),
            format!("{:.2}×", last.cpu() / first.cpu()),
            goal,
        ));
        for Series { of, .. } in &series {
            let cpu = series.iter().find(|series| series.of == *of).map_or(f64::NAN, Series::cpu);
            rows.push(aside(format!("µs with {of} {what}"), format!("{cpu:.1}")));
        }
    }
    Ok(rows)
}

async fn measured(measure: Measure) -> Result<Vec<Series>> {
    let mut command = machine::role(Core::Server, ROLE)?;
    command.arg(serde_json::to_string(&measure)?);
    Ok(serde_json::from_slice(&machine::output(command).await?)?)
}

#[expect(clippy::print_stdout, reason = "the result, for the process that started this one")]
pub fn child(measure: &str) -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let measure: Measure = serde_json::from_str(measure)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let series = runtime.block_on(async {
        match measure {
            Measure::Audit => audits().await,
            Measure::Subjects => subjects().await,
            Measure::Credentials => credentials().await,
        }
    })?;
    println!("{}", serde_json::to_string(&series)?);
    Ok(())
}

async fn audits() -> Result<Vec<Series>> {
    let clouds = Clouds::start().await?;
    let place = Place::make(&clouds)?;
    let off = Arc::new(Inside::start(&clouds, &place, Log::Discarded, 1).await?);
    let on = Arc::new(Inside::start(&clouds, &place, Log::OnDisk, 1).await?);
    let one = |_turn| (0, 0);
    let mut series = [Series { of: 0, rounds: Vec::new() }, Series { of: 1, rounds: Vec::new() }];
    for _ in 0..ROUNDS {
        for (inside, series) in [&off, &on].into_iter().zip(&mut series) {
            series.rounds.push(inside.round(one).await?);
        }
    }
    Ok(series.into())
}

async fn subjects() -> Result<Vec<Series>> {
    let clouds = Clouds::start().await?;
    let place = Place::make(&clouds)?;
    let inside = Arc::new(Inside::start(&clouds, &place, Log::OnDisk, SUBJECTS[SUBJECTS.len() - 1]).await?);
    series(&inside, &SUBJECTS, |turn, of| (turn % of, 0)).await
}

async fn credentials() -> Result<Vec<Series>> {
    let clouds = Clouds::start().await?;
    let place = Place::make(&clouds)?;
    let inside = Arc::new(Inside::start(&clouds, &place, Log::OnDisk, 1).await?);
    series(&inside, &CREDENTIALS, |turn, of| (0, turn % of)).await
}

/// Fills up to each number first.
async fn series(
    inside: &Arc<Inside>,
    numbers: &[usize],
    which: fn(usize, usize) -> (usize, usize),
) -> Result<Vec<Series>> {
    let (mut series, mut filled) = (Vec::new(), 0);
    for of in numbers.iter().copied() {
        inside.calls(filled..of, move |turn| which(turn, of)).await?;
        filled = of;
        let mut rounds = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            // In no order that a processor could foresee.
            rounds.push(inside.round(move |turn| which(turn.wrapping_mul(STRIDE), of)).await?);
        }
        series.push(Series { of, rounds });
    }
    Ok(series)
}

/// The stages as the broker puts them together; a cloud that issues at once.
struct Inside {
    exchange: Arc<Exchange>,
    tokens: Vec<Secret>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    OnDisk,
    Discarded,
}

impl Inside {
    async fn start(clouds: &Clouds, place: &Place, log: Log, subjects: usize) -> Result<Self> {
        let config = Config::load(&place.config)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let http = carnet::http::Client::new(&config.outbound)?;
        let log: Arc<dyn AuditLog> = match log {
            Log::Discarded => Arc::new(Discarding),
            Log::OnDisk => store::open(&config.store, Arc::new(SealingKeys::random()?)).await?.audit,
        };
        let (audit, _writer) = Audit::start(log, clock.clone());
        let mint = Arc::new(Mint { clock: clock.clone(), minted: AtomicUsize::new(0) });
        let exchange = Exchange {
            verifier: Arc::new(EntraVerifier::new(config.entra, http, clock.clone())),
            policy: Arc::new(ArcSwap::from_pointee(config.policy)),
            credentials: Credentials::with_room(mint, clock.clone(), ROOM),
            history: History::new(Arc::new(FakeRunHistory::default())),
            audit,
            clock,
            places: Arc::new(Semaphore::new(carnet::exchange::PLACES)),
            limits: Limits::new(config.limits),
        };
        let tokens = (0..subjects).map(|number| Secret::new(clouds.subject_token_of(number))).collect();
        Ok(Self { exchange: Arc::new(exchange), tokens })
    }

    /// Processor time and rate of [`CALLS`] exchanges.
    async fn round(
        self: &Arc<Self>,
        which: impl Fn(usize) -> (usize, usize) + Copy + Send + 'static,
    ) -> Result<(f64, f64)> {
        self.calls(0..CALLS / 10, which).await?;
        let (before, began) = (machine::busy("self")?, Instant::now());
        self.calls(0..CALLS, which).await?;
        let (busy, took) = (machine::busy("self")? - before, began.elapsed());
        Ok((busy.as_secs_f64() / CALLS as f64 * 1e6, CALLS as f64 / took.as_secs_f64()))
    }

    /// `which`: the numbers of a turn's subject and job.
    async fn calls(
        self: &Arc<Self>,
        turns: std::ops::Range<usize>,
        which: impl Fn(usize) -> (usize, usize) + Copy + Send + 'static,
    ) -> Result<()> {
        let next = Arc::new(AtomicUsize::new(turns.start));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (inside, next) = (self.clone(), next.clone());
            callers.spawn(async move {
                loop {
                    let turn = next.fetch_add(1, Ordering::Relaxed);
                    if turn >= turns.end {
                        return Ok::<_, anyhow::Error>(());
                    }
                    let (subject, job) = which(turn);
                    let exchanged = inside.exchange.run(inside.request(subject, job)).await;
                    ensure!(exchanged.result.is_ok(), "refused: {:?}", exchanged.result);
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended??;
        }
        Ok(())
    }

    fn request(&self, subject: usize, job: usize) -> ExchangeRequest {
        let token = self.tokens.get(subject).cloned().unwrap_or_else(|| Secret::new(""));
        ExchangeRequest {
            // Of its own, as a message's is.
            proof: Proof::SubjectToken { token: Secret::new(token.expose()), token_type: String::new() },
            tenure: Tenure::Once,
            lease_id: None,
            targets: vec![TargetRequest { target: "vertex-training".to_owned(), ..TargetRequest::default() }],
            job: Arc::new(Job {
                id: Some(format!("run-{job}")),
                name: Some("vision".to_owned()),
                expected_duration: Some(Duration::from_secs(40 * 60)),
                ..Job::default()
            }),
            excess: ExcessScopes::Refuse,
            caller: Caller::new(Door::Grpc, "127.0.0.1:1".into(), "carnet-bench"),
        }
    }
}

/// Keeps nothing.
#[derive(Debug)]
struct Discarding;

#[async_trait::async_trait]
impl AuditLog for Discarding {
    async fn append(&self, _group: Group) -> Result<(), AuditError> {
        Ok(())
    }

    async fn heads(&self, _most: u32) -> Result<Vec<Head>, AuditError> {
        Ok(Vec::new())
    }

    async fn find_issued(&self, _token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError> {
        Ok(None)
    }

    async fn checkpoint(&self, _checkpoint: Checkpoint) -> Result<Kept, AuditError> {
        Ok(Kept::Yes)
    }

    async fn unchained(&self) -> Result<u64, AuditError> {
        Ok(0)
    }

    async fn prune(&self, _expired: &Expired) -> Result<u64, AuditError> {
        Ok(0)
    }

    async fn probe(&self) -> Result<(), AuditError> {
        Ok(())
    }
}

const ROUNDS: usize = 5;
const CALLS: usize = 100_000;
const CALLERS: usize = 128;
/// Prime to every number of subjects and credentials.
const STRIDE: usize = 7_368_787;
const SUBJECTS: [usize; 4] = [1, 100, 5_000, 100_000];
const CREDENTIALS: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// For a million credentials of 1.2 KB.
const ROOM: u64 = 4 * 1024 * 1024 * 1024;

//! A broker under mixed load for as long as is asked, while keys rotate, rules change, leases are revoked and clouds go
//! away: `tests/soak/run 1h`. At the end nothing may be left behind, and every answer is on record once.

#[expect(dead_code, reason = "the benches use more of it")]
#[path = "../bench/broker.rs"]
mod broker;
mod callers;
mod ledger;
#[expect(dead_code, reason = "the benches use more of it")]
#[path = "../bench/machine.rs"]
mod machine;
mod samples;
#[expect(dead_code, reason = "the benches use more of it")]
#[path = "../bench/table.rs"]
mod table;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use carnet::sandbox::Fault;
use carnet::target::Span;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, sleep_until};

use crate::broker::{Clouds, IAM, Place, STS};
use crate::callers::{Operator, World};
use crate::machine::Running;
use crate::samples::{Sample, slope};
use crate::table::{Row, aside, row};

/// As in the real binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    // `cargo test --all-targets` starts it, too, without a duration.
    let [duration] = arguments.as_slice() else { return ExitCode::SUCCESS };
    match run(duration) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            complain(&format!("{failed} of the goals were missed"));
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns how many goals were missed.
fn run(duration: &str) -> Result<usize> {
    let Span(duration) = duration.parse()?;
    ensure!(duration >= SHORTEST, "at least {} s: a shorter run shows nothing", SHORTEST.as_secs());
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(soak(duration))?;
    runtime.shutdown_background();
    table::head()?;
    table::print("soak", &report.rows);
    report.complaints.iter().for_each(|complaint| complain(complaint));
    Ok(report.missed)
}

#[derive(Default)]
struct Report {
    rows: Vec<Row>,
    missed: usize,
    complaints: Vec<String>,
}

impl Report {
    fn goal(&mut self, figure: &str, measured: impl Into<String>, goal: &'static str, is_met: bool) {
        let measured = measured.into();
        if !is_met {
            self.missed += 1;
            self.complaints.push(format!("MISSED: {figure}: {measured}, where {goal} is right"));
        }
        self.rows.push(row(figure, measured, goal));
    }
}

async fn soak(duration: Duration) -> Result<Report> {
    let clouds = Clouds::start().await?;
    // Sooner than a key signs that was published.
    clouds.google.keep_issuer_keys_for(Duration::from_secs(20));
    let place = Place::in_folder(&clouds, TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?)?;
    let text = fs::read_to_string(&place.config)?.replace("heartbeat: 5m", "heartbeat: 15s") + OPERATORS + PROOF;
    let text = text.replace("issuer: { ", "issuer: { rotate_every: 3m, publish_ahead: 1m, ");
    ensure!(text.contains("heartbeat: 15s") && text.contains("rotate_every"), "the configuration has changed");
    fs::write(&place.config, &text)?;
    let log = place.folder.path().join("log");
    let mut command = place.command(None);
    command.env("RUST_LOG", "warn").stderr(fs::File::create(&log)?);
    let mut broker = Running::start(&mut command)?;
    let world = World::new(clouds, place);
    until_ready(&world).await?;
    let (process, metrics) = (broker.0.id(), format!("http://{}/metrics", world.place.http));
    warm_up(&world).await?;
    let start = Sample::take(0.0, process, &metrics).await?;

    let began = Instant::now();
    let ends_at = began + duration;
    let mut callers = callers::start(&world);
    let trouble = tokio::spawn(trouble(world.clone(), text, ends_at));
    let mut samples = Vec::new();
    let every = (duration / SAMPLES).max(Duration::from_secs(1));
    while Instant::now() < ends_at {
        sleep(every).await;
        ensure!(broker.0.try_wait()?.is_none(), "the broker has ended: {}", fs::read_to_string(&log)?);
        samples.push(Sample::take(began.elapsed().as_secs_f64(), process, &metrics).await?);
    }
    let schedule = trouble.await??;
    world.stopping.cancel();
    while let Some(ended) = callers.join_next().await {
        ended??;
    }

    let mut report = Report::default();
    let quiet_at = Instant::now() + QUIET;
    let mut operator = Operator::of(&world).await?;
    operator.revoke().await?;
    let mut active = operator.active().await?;
    while active > 0 && Instant::now() < quiet_at {
        sleep(Duration::from_secs(1)).await;
        active = operator.active().await?;
    }
    drop(operator);
    let mut end = Sample::take(began.elapsed().as_secs_f64(), process, &metrics).await?;
    while !is_back(&start, &end) && Instant::now() < quiet_at {
        sleep(Duration::from_secs(1)).await;
        end = Sample::take(began.elapsed().as_secs_f64(), process, &metrics).await?;
    }
    let drained = stop(&mut broker).await?;

    counts(&world, &schedule, &mut report);
    memory(&samples, &mut report);
    left_behind(&start, &end, &mut report);
    report.goal("leases that are still active", active.to_string(), "0", active == 0);
    report.goal("the broker's exit after SIGTERM", drained.clone(), "exit status: 0", drained == "exit status: 0");
    logged(&log, &mut report)?;
    audit(&world, &mut report).await?;
    Ok(report)
}

/// Some load, and silence after it: what is made with the first call that needs it, and then stays, is there before anything
/// is compared.
async fn warm_up(world: &World) -> Result<()> {
    let world = world.of_its_own_end();
    let mut callers = callers::start(&world);
    sleep(WARM_UP).await;
    world.stopping.cancel();
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Operator::of(&world).await?.revoke().await?;
    sleep(QUIET).await;
    Ok(())
}

/// How often something was done to the broker or its clouds.
#[derive(Debug, Default)]
struct Schedule {
    rotations: usize,
    reloads: usize,
    revoked: i32,
    outages: usize,
}

/// One thing after the other, round after round.
async fn trouble(world: World, text: String, ends_at: Instant) -> Result<Schedule> {
    let mut done = Schedule::default();
    let mut operator = Operator::of(&world).await?;
    let changed = text.replace("    max_lifetime: 1h\n    lease", "    max_lifetime: 50m\n    lease");
    ensure!(changed != text, "the rule's lifetime is not where it was");
    let mut at = Instant::now() + STEP;
    loop {
        for step in 0..4 {
            if at + STEP > ends_at {
                return Ok(done);
            }
            sleep_until(at).await;
            at += STEP;
            match step {
                0 => {
                    carnet(&world, &["issuer", "rotate"])?;
                    done.rotations += 1;
                }
                1 => {
                    let new = if done.reloads % 2 == 0 { &changed } else { &text };
                    // Whole or not at all.
                    let beside = world.place.config.with_extension("new");
                    fs::write(&beside, new)?;
                    fs::rename(&beside, &world.place.config)?;
                    done.reloads += 1;
                }
                2 => done.revoked += operator.revoke().await?,
                _ => {
                    let fault = match done.outages % 3 {
                        0 => Fault::Drop,
                        1 => Fault::status(http::StatusCode::SERVICE_UNAVAILABLE),
                        _ => Fault::Truncate,
                    };
                    let faults = world.clouds.google.faults();
                    world.ledger.outage_until(Instant::now() + OUTAGE);
                    [STS, IAM].iter().for_each(|endpoint| faults.always(endpoint, fault.clone()));
                    sleep(OUTAGE).await;
                    [STS, IAM].iter().for_each(|endpoint| faults.clear(endpoint));
                    done.outages += 1;
                }
            }
        }
    }
}

/// A command of the program beside its broker.
fn carnet(world: &World, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carnet"));
    let output = command.args(arguments).arg("--config").arg(&world.place.config).output()?;
    ensure!(output.status.success(), "carnet {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn until_ready(world: &World) -> Result<()> {
    let (client, url) = (reqwest::Client::new(), format!("http://{}/readyz", world.place.http));
    for _ in 0..300 {
        if client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        sleep(Duration::from_millis(100)).await;
    }
    bail!("the broker does not become ready");
}

async fn stop(broker: &mut Running) -> Result<String> {
    let told = Command::new("kill").args(["-TERM", &broker.0.id().to_string()]).status()?;
    ensure!(told.success(), "no signal was sent");
    for _ in 0..300 {
        if let Some(status) = broker.0.try_wait()? {
            return Ok(status.to_string());
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok("it did not end".to_owned())
}

fn counts(world: &World, schedule: &Schedule, report: &mut Report) {
    let Schedule { rotations, reloads, revoked, outages } = schedule;
    let trouble = format!("{rotations}, {reloads}, {revoked}, {outages}");
    report.rows.push(aside("key rotations, reloads of the rules, leases revoked, outages", trouble));
    for ((call, outcome), count) in world.ledger.counts() {
        report.rows.push(aside(format!("{call}: {outcome}"), count.to_string()));
    }
    let (surprised, surprises) = world.ledger.surprises();
    report.goal("answers that were not right", surprised.to_string(), "0", surprised == 0);
    report.complaints.extend(surprises);
}

/// Flat, but for what the caches say that they hold.
fn memory(samples: &[Sample], report: &mut Report) {
    let measured = samples.get(samples.len() / 3..).unwrap_or_default();
    let (Some(first), Some(last)) = (measured.first(), measured.last()) else {
        return report.goal("samples of memory", "0", "some", false);
    };
    let held = |sample: &Sample| sample.resident - sample.cached * OVERHEAD;
    let points: Vec<(f64, f64)> = measured.iter().map(|sample| (sample.seconds, held(sample))).collect();
    let grown = slope(&points) * (last.seconds - first.seconds);
    let allowed = ALLOWED.max(first.resident * 0.1);
    report.goal(
        "memory that grew after the first third, caches left out",
        format!("{} in {:.0} s", megabytes(grown), last.seconds - first.seconds),
        "<= 4 MB, or a tenth of what is resident",
        grown <= allowed,
    );
    report.rows.push(aside("resident: after the first third, at the end", {
        format!("{}, {}", megabytes(first.resident), megabytes(last.resident))
    }));
    report.rows.push(aside("caches: after the first third, at the end", {
        format!("{}, {}", megabytes(first.cached), megabytes(last.cached))
    }));
    let most = |of: fn(&Sample) -> f64| format!("{:.0}", samples.iter().map(of).fold(0.0, f64::max));
    let most = [most(|it| it.descriptors), most(|it| it.tasks), most(|it| it.watches), most(|it| it.connections)];
    report.rows.push(aside("most descriptors, tasks, watches, connections", most.join(", ")));
}

fn is_back(start: &Sample, end: &Sample) -> bool {
    end.descriptors <= start.descriptors + UNDER_WAY && end.tasks <= start.tasks + UNDER_WAY && end.watches == 0.0
}

fn left_behind(start: &Sample, end: &Sample, report: &mut Report) {
    for (figure, of) in [
        ("descriptors: before, after", (|it| it.descriptors) as fn(&Sample) -> f64),
        ("tasks: before, after", |it| it.tasks),
    ] {
        let (before, after) = (of(start), of(end));
        let is_back = after <= before + UNDER_WAY && before > 0.0;
        report.goal(figure, format!("{before:.0}, {after:.0}"), "at most 3 more, under way", is_back);
    }
    report.goal("watches that are left", format!("{:.0}", end.watches), "0", end.watches == 0.0);
    for (figure, of) in [
        ("threads: before, after", (|it| it.threads) as fn(&Sample) -> f64),
        ("connections of callers: before, after", |it| it.connections),
    ] {
        report.rows.push(aside(figure, format!("{:.0}, {:.0}", of(start), of(end))));
    }
}

fn logged(log: &Path, report: &mut Report) -> Result<()> {
    let text = fs::read_to_string(log)?;
    let errors = text.lines().filter(|line| line.contains("\"level\":\"ERROR\"") || line.contains("panicked"));
    // That a cloud is away.
    let errors: Vec<&str> = errors.filter(|line| !line.contains("\"upstream.hop\"")).collect();
    report.goal("errors and panics in the broker's log", errors.len().to_string(), "0", errors.is_empty());
    report.complaints.extend(errors.iter().take(5).map(|line| (*line).to_owned()));
    Ok(())
}

/// Every answer's exchange is in the log once, and the log is whole.
async fn audit(world: &World, report: &mut Report) -> Result<()> {
    let (program, config) = (env!("CARGO_BIN_EXE_carnet"), &world.place.config);
    let mut export = Command::new(program);
    let mut export = export.args(["audit", "export", "--config"]).arg(config).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(export.stdout.take().context("a pipe")?).lines();
    let mut records = 0u64;
    for line in lines {
        let record: serde_json::Value = serde_json::from_str(&line?)?;
        world.ledger.recorded(record.get("exchange_id").and_then(|id| id.as_str()).unwrap_or_default());
        records += 1;
    }
    ensure!(export.wait()?.success(), "carnet audit export failed");
    let (answered, missing, repeated) = world.ledger.audit();
    report.rows.push(aside("records in the log", records.to_string()));
    report.goal("answers that are not on record, of all", format!("{missing} of {answered}"), "0", missing == 0);
    report.goal("answers that are on record more than once", repeated.to_string(), "0", repeated == 0);
    let verified = Command::new(program).args(["audit", "verify", "--config"]).arg(config).output()?;
    let said = String::from_utf8_lossy(&verified.stdout).trim().to_owned();
    let last = said.lines().last().unwrap_or_default().to_owned();
    report.goal("carnet audit verify", last, "whole", verified.status.success() && said.contains("whole"));
    if !verified.status.success() {
        report.complaints.push(said);
    }
    Ok(())
}

fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / (1024.0 * 1024.0))
}

#[expect(clippy::print_stderr, reason = "the soak's own voice")]
fn complain(what: &str) {
    eprintln!("soak: {what}");
}

const OPERATORS: &str = "\
operators:
  - permissions: [leases.read, leases.revoke, audit.read]
    subject: { roles: [Carnet.Operator] }
";

/// Within the warming up, too.
const PROOF: &str = "negative_proof: { every: 1m }\n";

const SHORTEST: Duration = Duration::from_secs(120);
const WARM_UP: Duration = Duration::from_secs(90);
const SAMPLES: u32 = 360;

/// Between two troubles. A round of four is short enough that a short run has one.
const STEP: Duration = Duration::from_secs(10);
const OUTAGE: Duration = Duration::from_secs(8);

/// Within which everything is as it was: leases lapse, and connections to the clouds end when they were idle for 90 s, which
/// is looked at every 90 s.
const QUIET: Duration = Duration::from_secs(200);

/// A look at a tenant's keys or a proof that may just be under way, and the connection that a cloud is kept on for it.
const UNDER_WAY: f64 = 3.0;

/// What an entry takes beyond its weight.
const OVERHEAD: f64 = 1.25;
const ALLOWED: f64 = 4.0 * 1024.0 * 1024.0;

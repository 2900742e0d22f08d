//! The agent: a token that it holds against an HTTP handler that does nothing, its memory, and what `carnet exec` adds.

use std::convert::Infallible;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::broker::{self, Clouds, Place};
use crate::machine::{self, Core, Running};
use crate::table::{Row, Spread, aside, row};

pub const EMPTY: &str = "serve-empty-http";
pub const LOAD: &str = "ask-agent";

pub async fn run() -> Result<Vec<Row>> {
    let clouds = Clouds::start().await?;
    let place = Place::make(&clouds)?;
    let (_broker, _took) = place.start(Some(Core::Server)).await?;
    let token = place.folder.path().join("subject-token");
    fs::write(&token, clouds.subject_token())?;
    let address = broker::free_address()?;
    let agent = start_agent(&place, &token, address)?;
    until_answered(address, "/readyz").await?;
    let empty_address = broker::free_address()?;
    let _empty = Running::start(machine::role(Core::Server, EMPTY)?.arg(empty_address.to_string()))?;
    until_answered(empty_address, "/").await?;

    let (mut agents, mut empties, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (of_empty, of_agent) = (ask(empty_address).await?, ask(address).await?);
        ratios.push(of_agent / of_empty);
        empties.push(of_empty);
        agents.push(of_agent);
    }
    let (alone, under_exec) = (command(&["true"], &place, &token).await?, under_exec(&place, &token).await?);
    let added = under_exec.iter().zip(&alone).map(|(under, alone)| under - alone);
    Ok(vec![
        row(format!("hit at {RATE} requests/s, p99"), Spread::of(agents).show(" ms"), "<= 1 ms"),
        aside("an empty HTTP handler, p99", Spread::of(empties).show(" ms")),
        aside("ratio of both", Spread::of(ratios).show("")),
        row("resident memory of the agent", format!("{:.1} MB", agent.resident()? as f64 / 1e6), "<= 20 MB"),
        row("`carnet exec -- true` adds", Spread::of(added).show(" ms"), "<= 60 ms"),
        aside("`true` alone", Spread::of(alone).show(" ms")),
    ])
}

fn start_agent(place: &Place, token: &Path, address: SocketAddr) -> Result<Running> {
    let config = place.folder.path().join("agent.yaml");
    let (grpc, token) = (place.grpc, token.display());
    fs::write(
        &config,
        format!(
            "\
listen: '{address}'
broker: {{ address: 'http://{grpc}' }}
subject: {{ token_file: '{token}' }}
targets: [{{ target: vertex-training }}]
"
        ),
    )?;
    let mut command = machine::pinned(Core::Server, Path::new(PROGRAM));
    Running::start(command.arg("agent").arg("--config").arg(&config).stderr(Stdio::null()))
}

async fn until_answered(address: SocketAddr, path: &str) -> Result<()> {
    let (client, began) = (reqwest::Client::builder().no_proxy().build()?, Instant::now());
    while !client.get(format!("http://{address}{path}")).send().await.is_ok_and(|answer| answer.status().is_success()) {
        ensure!(began.elapsed() < Duration::from_secs(20), "{address} does not answer");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// The 99th percentile in milliseconds, measured by a process of its own.
async fn ask(address: SocketAddr) -> Result<f64> {
    let mut command = machine::role(Core::Load, LOAD)?;
    command.arg(address.to_string());
    Ok(serde_json::from_slice(&machine::output(command).await?)?)
}

/// Milliseconds of each run of `carnet exec -- true`.
async fn under_exec(place: &Place, token: &Path) -> Result<Vec<f64>> {
    command(&[PROGRAM, "exec", "--target", "vertex-training", "--", "true"], place, token).await
}

async fn command(words: &[&str], place: &Place, token: &Path) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    for _ in 0..RUNS {
        let (program, arguments) = words.split_first().context("a program")?;
        let mut command = Command::new(program);
        command.args(arguments).env("CARNET_ADDRESS", format!("http://{}", place.grpc));
        command.env("CARNET_SUBJECT_TOKEN_FILE", token);
        let began = Instant::now();
        machine::output(command).await?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(took)
}

/// The empty handler's process: the same server library, one answer of a token's size.
pub fn serve_empty(address: &str) -> Result<()> {
    let body = Bytes::from("x".repeat(1100));
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _peer) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let body = body.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |_request| {
                    let body = body.clone();
                    async move { Ok::<_, Infallible>(http::Response::new(Full::new(body))) }
                });
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await
            });
        }
    })
}

/// The load's process: so many requests a second, each timed from when it was due. Threads that sleep, because the
/// runtime's timers are right to a millisecond or two only, which is what is measured.
#[expect(clippy::print_stdout, reason = "the result, for the process that started this one")]
pub fn load(address: &str) -> Result<()> {
    let (address, began): (SocketAddr, _) = (address.parse()?, Instant::now());
    let connection = |number| thread::spawn(move || requests(address, began + Duration::from_secs(1) * number / RATE));
    let connections: Vec<_> = (0..CONNECTIONS).map(connection).collect();
    let mut took = Vec::new();
    for connection in connections {
        took.extend(connection.join().map_err(|_panic| anyhow!("a connection's thread gave up"))??);
    }
    took.sort_by(f64::total_cmp);
    let p99 = took.get(took.len() * 99 / 100).context("no request was made")?;
    println!("{p99}");
    Ok(())
}

fn requests(address: SocketAddr, first: Instant) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET /computeMetadata/v1/instance/service-accounts/default/token HTTP/1.1\r\nHost: {address}\r\nMetadata-Flavor: Google\r\n\r\n"
    );
    let mut took = Vec::new();
    for number in 0..RATE * SECONDS / CONNECTIONS {
        let due = first + Duration::from_secs(1) * CONNECTIONS / RATE * number;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(request.as_bytes())?;
        read_answer(&mut stream)?;
        took.push(due.elapsed().as_secs_f64() * 1e3);
    }
    Ok(took)
}

fn read_answer(stream: &mut TcpStream) -> Result<()> {
    let (mut answer, mut buffer) = (Vec::new(), [0; 8192]);
    loop {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the server hung up");
        answer.extend_from_slice(buffer.get(..read).unwrap_or_default());
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        ensure!(head.starts_with("http/1.1 200"), "not an answer: {head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("no length")?;
        if body.len() >= length.parse()? {
            return Ok(());
        }
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_carnet");
const RATE: u32 = 500;
const CONNECTIONS: u32 = 10;
const SECONDS: u32 = 4;
const ROUNDS: usize = 5;
const RUNS: usize = 25;

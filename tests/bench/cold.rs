//! A credential that has to be minted: what the broker adds to the two calls upstream.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carnet::sandbox::Call;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::broker::{self, IAM, STS, Wire};
use crate::sides::{Side, Sides};
use crate::table::{Row, Spread, aside, row};

/// Makes calls again that the broker has made, in a process of its own as the broker is.
pub const ROLE: &str = "call-again";

pub async fn run() -> Result<Vec<Row>> {
    let sides = Sides::start_as(Wire::Plain, |program| Command::new(program)).await?;
    let clouds = &sides.clouds;
    clouds.delay(DELAY);
    let token = clouds.subject_token();
    let (mut client, mut empty) = (sides.client(Side::Exchange).await?, sides.client(Side::Empty).await?);
    let mut direct = Direct::start()?;
    let (mut own, mut wire, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for job in 0..JOBS + WARMING_UP {
        // Nobody had this job's credential before, nor its assertion.
        let request = broker::request(token.clone(), &format!("cold-{job}"));
        clouds.google.calls().clear();
        let began = Instant::now();
        let answer = client.exchange(request.clone()).await?.into_inner();
        let exchange = began.elapsed();
        ensure!(answer.credentials.iter().all(|credential| !credential.cached), "an answer from the cache");
        let mut upstream = Duration::ZERO;
        for endpoint in [STS, IAM] {
            let calls = clouds.google.calls().to(endpoint);
            ensure!(calls.len() == 1, "{} calls to {endpoint}", calls.len());
            let call = calls.into_iter().next().context("a call")?;
            let call = Again::of(clouds.google.sts_endpoint(), call)?;
            upstream += tokio::task::block_in_place(|| direct.again(&call))?;
        }
        let began = Instant::now();
        empty.exchange(request).await?;
        let round_trip = began.elapsed();
        if job >= WARMING_UP {
            wire.push(round_trip.as_secs_f64() * 1e3);
            own.push((exchange.as_secs_f64() - upstream.as_secs_f64()) * 1e3);
            whole.push(exchange.as_secs_f64() * 1e3);
        }
    }
    Ok(vec![
        row("the broker's own time, calls upstream taken off", Spread::of(own).show(" ms"), "<= 1.5 ms"),
        aside("of which the wire: the empty method, called as seldom", Spread::of(wire).show(" ms")),
        aside("a whole exchange, with two calls of 20 ms and more", Spread::of(whole).show(" ms")),
    ])
}

/// A call as the stand-in has received it.
#[derive(Serialize, Deserialize)]
struct Again {
    method: String,
    url: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Again {
    fn of(endpoint: &str, call: Call) -> Result<Self> {
        let headers = call.headers.iter().filter(|(name, _value)| *name != http::header::HOST);
        let headers = headers.map(|(name, value)| Ok((name.to_string(), value.to_str()?.to_owned())));
        Ok(Self {
            method: call.method.to_string(),
            url: format!("{endpoint}{}", call.path),
            headers: headers.collect::<Result<_>>()?,
            body: call.body.to_vec(),
        })
    }

    async fn send(self, client: &reqwest::Client) -> Result<Duration> {
        let mut request = client.request(self.method.parse()?, self.url).body(self.body);
        for (name, value) in self.headers {
            request = request.header(name.parse::<HeaderName>()?, value.parse::<HeaderValue>()?);
        }
        let began = Instant::now();
        let answer = request.send().await?.error_for_status()?;
        answer.bytes().await?;
        Ok(began.elapsed())
    }
}

/// The process that makes them. Ends with its input.
struct Direct {
    child: Child,
    calls: Option<ChildStdin>,
    times: BufReader<ChildStdout>,
}

impl Direct {
    fn start() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg(ROLE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (calls, times) = (child.stdin.take(), child.stdout.take().context("a pipe")?);
        Ok(Self { child, calls, times: BufReader::new(times) })
    }

    /// How long the same call takes directly.
    fn again(&mut self, call: &Again) -> Result<Duration> {
        let calls = self.calls.as_mut().context("a pipe")?;
        writeln!(calls, "{}", serde_json::to_string(call)?)?;
        let mut time = String::new();
        self.times.read_line(&mut time)?;
        Ok(Duration::from_secs_f64(time.trim().parse().context("the call failed")?))
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        drop(self.calls.take());
        let _ = self.child.wait();
    }
}

#[expect(clippy::print_stdout, reason = "the result, for the process that started this one")]
pub fn child() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let client = reqwest::Client::new();
    for line in std::io::stdin().lines() {
        let (again, client) = (serde_json::from_str::<Again>(&line?)?, client.clone());
        // By a worker, as the broker's calls are.
        let took = runtime.block_on(async { runtime.spawn(async move { again.send(&client).await }).await })??;
        println!("{}", took.as_secs_f64());
    }
    Ok(())
}

const DELAY: Duration = Duration::from_millis(20);
const JOBS: usize = 150;

/// The first calls open connections and fetch keys.
const WARMING_UP: usize = 5;

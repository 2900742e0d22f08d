//! A credential that has to be minted: what the broker adds to the two calls upstream.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use carnet::sandbox::Call;
use tokio::time::Instant;

use crate::broker::{self, Clouds, IAM, Place, STS};
use crate::table::{Row, Spread, aside, row};

pub async fn run() -> Result<Vec<Row>> {
    let clouds = Clouds::start().await?;
    clouds.delay(DELAY);
    let place = Place::make(&clouds)?;
    let (_broker, _took) = place.start(None).await?;
    let token = clouds.subject_token();
    let (mut client, direct) = (place.client().await?, reqwest::Client::new());
    let mut own = Vec::new();
    let mut whole = Vec::new();
    for job in 0..JOBS + WARMING_UP {
        // Nobody had this job's credential before, nor its assertion.
        let request = broker::request(token.clone(), &format!("run-{job}"));
        clouds.google.calls().clear();
        let began = Instant::now();
        let answer = client.exchange(request).await?.into_inner();
        let exchange = began.elapsed();
        ensure!(answer.credentials.iter().all(|credential| !credential.cached), "an answer from the cache");
        let mut upstream = Duration::ZERO;
        for endpoint in [STS, IAM] {
            let calls = clouds.google.calls().to(endpoint);
            ensure!(calls.len() == 1, "{} calls to {endpoint}", calls.len());
            let call = calls.into_iter().next().context("a call")?;
            upstream += again(&direct, clouds.google.sts_endpoint(), call).await?;
        }
        if job >= WARMING_UP {
            own.push((exchange.as_secs_f64() - upstream.as_secs_f64()) * 1e3);
            whole.push(exchange.as_secs_f64() * 1e3);
        }
    }
    Ok(vec![
        row("the broker's own time, calls upstream taken off", Spread::of(own).show(" ms"), "<= 1.5 ms"),
        aside("a whole exchange, with two calls of 20 ms and more", Spread::of(whole).show(" ms")),
    ])
}

/// The time of the same call, made directly.
async fn again(client: &reqwest::Client, endpoint: &str, call: Call) -> Result<Duration> {
    let mut headers = call.headers;
    headers.remove(http::header::HOST);
    let request = client.request(call.method, format!("{endpoint}{}", call.path)).headers(headers).body(call.body);
    let began = Instant::now();
    let answer = request.send().await?.error_for_status()?;
    answer.bytes().await?;
    Ok(began.elapsed())
}

const DELAY: Duration = Duration::from_millis(20);
const JOBS: usize = 150;

/// The first calls open connections and fetch keys.
const WARMING_UP: usize = 5;

//! Many callers of one credential that nobody has yet.

use std::fs;
use std::time::Duration;

use anyhow::Result;

use crate::broker::{self, Clouds, IAM, Place, STS};
use crate::load::{self, Job, Shape};
use crate::machine::Core;
use crate::table::{Row, aside, row};

pub async fn run() -> Result<Vec<Row>> {
    let clouds = Clouds::start().await?;
    clouds.delay(DELAY);
    let place = Place::make(&clouds)?;
    let (_broker, _took) = place.start(Some(Core::Server)).await?;
    let request = place.folder.path().join("request");
    fs::write(&request, broker::frame(&broker::request(clouds.subject_token(), "run-1"))?)?;
    let shape = Shape::Once { streams: STREAMS };
    let method = load::EXCHANGE.to_owned();
    let job = Job { address: place.grpc, method, request, answer: (500, 5_000), connections: CONNECTIONS, shape };
    let outcome = load::run(&job).await?;
    let calls = clouds.google.calls();
    Ok(vec![
        row("answered OK", format!("{} of {}", outcome.answered, CONNECTIONS * STREAMS), "10000 of 10000"),
        row("calls of STS, of IAM Credentials", format!("{}, {}", calls.count(STS), calls.count(IAM)), "1, 1"),
        aside("from first to last, with two calls of 500 ms", format!("{:.2} s", outcome.seconds)),
    ])
}

/// All of them come while the credential is being minted.
const DELAY: Duration = Duration::from_millis(500);

const CONNECTIONS: usize = 40;
const STREAMS: usize = 250;

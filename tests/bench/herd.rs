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
    let token = clouds.subject_token();
    let mut rows = Vec::new();
    for (connections, streams) in HERDS {
        let size = connections * streams;
        let request = place.folder.path().join("request");
        // Nobody has this job's credential yet.
        fs::write(&request, broker::frame(&broker::request(token.clone(), &format!("run-{size}")))?)?;
        let (method, shape) = (load::EXCHANGE.to_owned(), Shape::Once { streams });
        let answer = (500, 5_000);
        let job = Job { address: place.grpc, method, request, answer, connections, shape, certificate: None };
        clouds.google.calls().clear();
        let outcome = load::run(&job).await?;
        let calls = clouds.google.calls();
        rows.extend([
            row(
                format!("{size} callers of one credential: calls of STS, of IAM Credentials"),
                format!("{}, {}", calls.count(STS), calls.count(IAM)),
                "1, 1",
            ),
            aside("answered OK; from first to last", format!("{}; {:.2} s", outcome.answered, outcome.seconds)),
        ]);
    }
    Ok(rows)
}

/// All of them come while the credential is being minted.
const DELAY: Duration = Duration::from_millis(500);

/// Connections, and streams on each.
const HERDS: [(usize, usize); 4] = [(1, 10), (1, 100), (4, 250), (40, 250)];

//! Leases against the warm exchange of the same broker: heartbeats and openings, on each store.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use carnet::proto;
use carnet::proto::leases_client::LeasesClient;
use prost::Message;
use tempfile::TempDir;

use crate::broker::{self, Clouds, Place};
use crate::load::{self, Job, Shape};
use crate::machine::Core;
use crate::table::{Row, Spread, aside, row};

pub async fn run() -> Result<Vec<Row>> {
    let clouds = Clouds::start().await?;
    let folder = || TempDir::new_in(env!("CARGO_TARGET_TMPDIR"));
    let place = Place::make(&clouds)?;
    let database = place.folder.path().join("carnet.db");
    let mut rows = on(&clouds, &place, "SQLite", Some(&database)).await?;
    match std::env::var(POSTGRES) {
        Ok(url) => {
            let place = Place::with_store(&clouds, folder()?, &url)?;
            rows.extend(on(&clouds, &place, "PostgreSQL", None).await?);
        }
        Err(_unset) => {
            rows.push(aside(format!("PostgreSQL: not measured, {POSTGRES} is no URL of an empty database"), ""))
        }
    }
    Ok(rows)
}

async fn on(clouds: &Clouds, place: &Place, store: &str, file: Option<&Path>) -> Result<Vec<Row>> {
    let (_broker, _took) = place.start(Some(Core::Server)).await?;
    let exchange = broker::request(clouds.subject_token(), "run-1");
    let opening = open_request(&exchange);
    let mut client = LeasesClient::connect(format!("http://{}", place.grpc)).await?;
    let mut beats = Vec::with_capacity(LEASES);
    let mut opened = proto::OpenLeaseResponse::default();
    for _ in 0..LEASES {
        opened = client.open_lease(opening.clone()).await?.into_inner();
        beats.push(proto::RenewLeaseRequest { lease_token: opened.lease_token.clone(), ..Default::default() });
    }
    let beat = beats.first().context("a lease")?.clone();
    let renewed = client.renew_lease(beat).await?.into_inner();
    let exchanged = place.client().await?.exchange(exchange.clone()).await?.into_inner();

    let method = |name: &str, requests: Vec<Vec<u8>>, answer: usize| -> Result<Job> {
        let request: PathBuf = place.folder.path().join(name.replace('/', "."));
        fs::write(&request, requests.concat())?;
        let answer = (answer - TIMES_VARY, answer + TIMES_VARY);
        let shape = Shape::Closed { streams: STREAMS, time: ROUND };
        Ok(Job {
            address: place.grpc,
            method: name.to_owned(),
            request,
            answer,
            connections: CONNECTIONS,
            shape,
            certificate: None,
        })
    };
    let frame = |message: &dyn Fn() -> Result<bytes::BytesMut>| message().map(|frame| frame.to_vec());
    let beats: Vec<Vec<u8>> = beats.iter().map(|beat| frame(&|| broker::frame(beat))).collect::<Result<_>>()?;
    let exchanging = method(load::EXCHANGE, vec![frame(&|| broker::frame(&exchange))?], exchanged.encoded_len())?;
    let beating = method("carnet.v1.Leases/RenewLease", beats, renewed.encoded_len())?;
    let opening =
        method("carnet.v1.Leases/OpenLease", vec![frame(&|| broker::frame(&opening))?], opened.encoded_len())?;

    let (mut exchanges, mut heartbeats, mut openings, mut opened) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut grown = 0;
    for _ in 0..ROUNDS {
        let warm = load::run(&exchanging).await?.rate();
        heartbeats.push(load::run(&beating).await?.rate() / warm);
        let before = size(file);
        let outcome = load::run(&opening).await?;
        (grown, opened) = (grown + size(file) - before, opened + outcome.answered);
        openings.push(outcome.rate() / warm);
        exchanges.push(warm);
    }
    let mut rows = vec![
        row(format!("{store}: heartbeats per second / warm exchanges"), Spread::of(heartbeats).show("×"), ""),
        row(format!("{store}: leases opened per second / warm exchanges"), Spread::of(openings).show("×"), ""),
        aside(format!("{store}: warm exchanges per second"), format!("{:.0}", Spread::of(exchanges).median)),
    ];
    if file.is_some() {
        let each = grown as f64 / opened as f64;
        rows.push(aside(format!("{store}: bytes per lease opened, its audit record included"), format!("{each:.0}")));
    }
    Ok(rows)
}

/// The lease of the job of `exchange`, for a day.
pub fn open_request(exchange: &proto::ExchangeRequest) -> proto::OpenLeaseRequest {
    proto::OpenLeaseRequest {
        subject_token: exchange.subject_token.clone(),
        targets: exchange.targets.clone(),
        job: exchange.job.clone(),
        duration: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
        ..Default::default()
    }
}

/// Of the file and its journal.
fn size(file: Option<&Path>) -> u64 {
    let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    file.map_or(0, |file| length(file) + length(&file.with_extension("db-wal")))
}

const POSTGRES: &str = "CARNET_BENCH_POSTGRES";

/// Which the heartbeats are for, in turn.
const LEASES: usize = 1000;

const CONNECTIONS: usize = 8;
const STREAMS: usize = 16;
const ROUNDS: usize = 5;
const ROUND: std::time::Duration = std::time::Duration::from_secs(3);

/// Fractions of a second are numbers of varying length.
const TIMES_VARY: usize = 24;

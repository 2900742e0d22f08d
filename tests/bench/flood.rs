//! A flood of bad tokens beside a good caller: what the caller feels of it, and what it costs the broker.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use prost::Message as _;

use crate::broker::{self, Clouds, Place};
use crate::load::{self, Job, Shape};
use crate::machine::{Core, Running};
use crate::table::{Row, Spread, aside, row};

pub async fn run() -> Result<Vec<Row>> {
    let clouds = Clouds::start().await?;
    let place = Place::make(&clouds)?;
    let (broker, _took) = place.start(Some(Core::Server)).await?;
    let good = broker::request(clouds.subject_token(), "run-1");
    let mut client = place.client().await?;
    client.exchange(good.clone()).await?;
    let answer = client.exchange(good.clone()).await?.into_inner();
    ensure!(answer.credentials.iter().all(|credential| credential.cached), "the second answer is not a cached one");
    let (good_path, bad_path) = (place.folder.path().join("good"), place.folder.path().join("bad"));
    fs::write(&good_path, broker::frame(&good)?)?;
    let (mut bad, token) = (Vec::new(), clouds.subject_token());
    for number in 0..DISTINCT {
        let token = if number % 2 == 0 { spoilt(&token, number) } else { of_made_up_key(&token, number) };
        bad.extend_from_slice(&broker::frame(&broker::request(token, "run-1"))?);
    }
    fs::write(&bad_path, bad)?;
    let length = answer.encoded_len();
    let job = |request, connections, shape| Job {
        address: place.grpc,
        method: load::EXCHANGE.to_owned(),
        request,
        answer: (length - TIMES_VARY, length + TIMES_VARY),
        connections,
        shape,
        certificate: None,
    };
    let calm = job(good_path.clone(), 16, Shape::Open { rate: GOOD_PER_SECOND, time: ROUND });
    let refused = job(bad_path, FLOODING, Shape::Refused { streams: STREAMS, time: ROUND + SETTLING * 2 });
    let (mut ratios, mut quiet, mut flooded, mut rates, mut busy) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    clouds.entra.calls().clear();
    let before = broker::records(&place)?;
    for _ in 0..ROUNDS {
        let alone = load::run(&calm).await?;
        let used = broker.busy()?;
        let attack = load::run(&refused);
        let caller = async {
            tokio::time::sleep(SETTLING).await;
            load::run(&calm).await
        };
        let (attack, caller) = tokio::try_join!(attack, caller)?;
        busy.push(share(&broker, used, attack.seconds)?);
        ratios.push(caller.p99 / alone.p99);
        quiet.push(alone.p99);
        flooded.push(caller.p99);
        rates.push(attack.rate());
    }
    let fetches = clouds.entra.calls().count("/discovery/v2.0/keys");
    let recorded = broker::records(&place)? - before;
    let good_calls = GOOD_PER_SECOND * (ROUND + SETTLING).as_secs_f64() * (ROUNDS * 2) as f64;
    let at = |values: &[f64]| Spread::of(values.iter().copied());
    Ok(vec![
        row("a good caller's p99 beside the flood / without it", Spread::of(ratios).show("×"), "<= 2"),
        aside("p99 in µs: without, beside", format!("{:.0}, {:.0}", at(&quiet).median, at(&flooded).median)),
        aside("bad tokens per second, refused and answered", at(&rates).show("")),
        aside("streams that flood, over connections", format!("{}, {FLOODING}", STREAMS * FLOODING)),
        aside("server's core busy beside the flood", format!("{:.0}%", at(&busy).median * 100.0)),
        row("key fetches", fetches.to_string(), "<= 2"),
        aside("records: of all, of the good caller's calls", format!("{recorded}, {good_calls:.0}")),
    ])
}

/// A signature of another token's, so that it takes a check to refuse it.
fn spoilt(token: &str, number: usize) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap_or_default();
    let tail = format!("{number:08}");
    let kept = signature.get(..signature.len().saturating_sub(tail.len() + 2)).unwrap_or_default();
    format!("{signed}.{kept}{tail}AA")
}

/// A key's name that nobody has published, so that somebody has to look for it.
fn of_made_up_key(token: &str, number: usize) -> String {
    let header = format!(r#"{{"alg":"RS256","kid":"made-up-{number}","typ":"JWT"}}"#);
    let (_header, rest) = token.split_once('.').unwrap_or_default();
    format!("{}.{rest}", BASE64_URL_SAFE_NO_PAD.encode(header))
}

fn share(broker: &Running, before: Duration, seconds: f64) -> Result<f64> {
    Ok((broker.busy()? - before).as_secs_f64() / seconds)
}

/// Of the good caller: a small part of what the broker can do.
const GOOD_PER_SECOND: f64 = 200.0;

/// Each is a token of its own to the broker.
const DISTINCT: usize = 20_000;

const FLOODING: usize = 80;
const STREAMS: usize = 120;

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(4);
const SETTLING: Duration = Duration::from_millis(1000);

/// The times in an answer take more or fewer bytes.
const TIMES_VARY: usize = 16;

//! A credential from the cache, recorded on disk before it leaves, against the same method that does nothing.

use std::fs;

use anyhow::Result;

use crate::broker::{self, Place, Wire};
use crate::load::Shape;
use crate::machine;
use crate::sides::{ROUND, Round, STREAMS, Side, Sides, medians, ratios};
use crate::table::{Row, aside, row};

pub async fn run() -> Result<Vec<Row>> {
    let sides = Sides::start(Wire::Plain).await?;
    let mut closed = Vec::new();
    for _ in 0..ROUNDS {
        let shape = |_side| Shape::Closed { streams: STREAMS, time: ROUND };
        closed.push(sides.pair(shape).await?);
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
        let pair = sides.pair(shape).await?;
        if pair.late() > LATE && spoilt < SPOILT {
            spoilt += 1;
        } else {
            open.push(pair);
        }
    }
    let (flush_median, flush_p99) = flushes(&sides.place)?;
    let store = sides.place.folder.path().join("carnet.db");
    let room = fs::metadata(&store)?.len() as f64 / broker::records(&sides.place)? as f64;

    let whole = |(empty, exchange): (f64, f64)| format!("{empty:.0}, {exchange:.0}");
    let (empty_cpu, exchange_cpu) = medians(&closed, Round::cpu);
    Ok(vec![
        row("exchanges per second / empty method's", ratios(&closed, Round::rate).show("×"), ">= 0.60"),
        aside("bytes in, bytes out", format!("{}, {}", sides.bytes.0, sides.bytes.1)),
        aside("per second: empty, exchange", whole((empty_rate, exchange_rate))),
        aside("µs of processor time per call: empty, exchange", format!("{empty_cpu:.1}, {exchange_cpu:.1}")),
        row("p99 at half of the own maximum / empty method's", ratios(&open, Round::p99).show("×"), "<= 2.5"),
        aside("p50 in µs: empty, exchange", whole(medians(&open, Round::p50))),
        aside("p99 in µs: empty, exchange", whole(medians(&open, Round::p99))),
        aside("rounds repeated because the load itself was late", spoilt.to_string()),
        aside("bytes of the store per record, at full load and at half", format!("{room:.0}")),
        aside("one write and flush of this disk in µs: p50, p99", whole((flush_median, flush_p99))),
    ])
}

/// The same over TLS, the handshakes not counted.
pub async fn over_tls() -> Result<Vec<Row>> {
    let sides = Sides::start(Wire::Tls).await?;
    let mut closed = Vec::new();
    for _ in 0..ROUNDS {
        closed.push(sides.pair(|_side| Shape::Closed { streams: STREAMS, time: ROUND }).await?);
    }
    let ((empty_rate, exchange_rate), (empty_cpu, exchange_cpu)) =
        (medians(&closed, Round::rate), medians(&closed, Round::cpu));
    Ok(vec![
        row("exchanges per second / empty method's, over TLS", ratios(&closed, Round::rate).show("×"), ""),
        aside("per second: empty, exchange", format!("{empty_rate:.0}, {exchange_rate:.0}")),
        aside("µs of processor time per call: empty, exchange", format!("{empty_cpu:.1}, {exchange_cpu:.1}")),
    ])
}

/// With 1, 2, ... cores for the servers; the load has the last one, and shares it where they have all.
pub async fn on_cores() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for cores in 1..=machine::cores() {
        let sides = Sides::start_as(Wire::Plain, |program| machine::pinned_to(cores, program)).await?;
        let mut closed = Vec::new();
        for _ in 0..ROUNDS {
            closed.push(sides.pair(|_side| Shape::Closed { streams: STREAMS, time: ROUND }).await?);
        }
        let (_empty, rate) = medians(&closed, Round::rate);
        let (_empty, cpu) = medians(&closed, Round::cpu);
        let shared = if cores == machine::cores() { ", one of them the load's too" } else { "" };
        let figure = format!("{cores} cores{shared}: exchanges per second / empty method's");
        rows.push(row(figure, ratios(&closed, Round::rate).show("×"), ""));
        rows.push(aside("per second; µs of processor time each", format!("{rate:.0}; {cpu:.1}")));
    }
    Ok(rows)
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

const ROUNDS: usize = 5;
/// In microseconds: something else had the load's core.
const LATE: f64 = 300.0;

/// A machine this busy is not going to be quiet.
const SPOILT: usize = 10;

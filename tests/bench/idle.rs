//! The broker when nobody asks: its memory, and how soon it is ready.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::broker::{Clouds, Place};
use crate::table::{Row, Spread, row};

pub async fn run() -> Result<Vec<Row>> {
    let clouds = Clouds::start().await?;
    let (mut first, mut second, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let place = Place::make(&clouds)?;
        let (broker, took) = place.start(None).await?;
        first.push(took.as_secs_f64() * 1e3);
        drop(broker);
        let (broker, took) = place.start(None).await?;
        second.push(took.as_secs_f64() * 1e3);
        sleep(Duration::from_secs(1)).await;
        resident.push(broker.resident()? as f64 / 1e6);
    }
    Ok(vec![
        row("resident memory", Spread::of(resident).show(" MB"), "<= 30 MB"),
        row("first start, with keys made, until ready", Spread::of(first).show(" ms"), "<= 300 ms"),
        row("later start until ready", Spread::of(second).show(" ms"), "<= 300 ms"),
    ])
}

const STARTS: usize = 7;

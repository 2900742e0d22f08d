//! What the broker holds while it runs: looked at from outside, and as its own metrics tell.

use std::fs;

use anyhow::{Context as _, Result};

/// One look.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub seconds: f64,
    pub resident: f64,
    /// What the caches say that they weigh.
    pub cached: f64,
    pub descriptors: f64,
    pub tasks: f64,
    pub threads: f64,
    pub watches: f64,
    pub connections: f64,
}

impl Sample {
    /// Of the process with this id, which serves its metrics at `url`.
    pub async fn take(seconds: f64, process: u32, url: &str) -> Result<Self> {
        // Its own connection does not stay.
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).build()?;
        let metrics = client.get(url).send().await?.text().await?;
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).context("no Threads")?;
        Ok(Self {
            seconds,
            resident: crate::machine::resident(&process.to_string())? as f64,
            cached: sum(&metrics, "carnet_cache_bytes"),
            descriptors: fs::read_dir(format!("/proc/{process}/fd"))?.count() as f64,
            tasks: sum(&metrics, "carnet_tasks"),
            threads: threads.trim().parse()?,
            watches: sum(&metrics, "carnet_watches"),
            connections: sum(&metrics, "carnet_connections"),
        })
    }
}

/// Of all labels.
fn sum(metrics: &str, name: &str) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    };
    metrics.lines().filter_map(value).sum()
}

/// The slope of the line through `points` that is nearest to them (least squares).
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let (mut along, mut across) = (0.0, 0.0);
    for point in points {
        along += (point.0 - x) * (point.1 - y);
        across += (point.0 - x).powi(2);
    }
    if across > 0.0 { along / across } else { 0.0 }
}

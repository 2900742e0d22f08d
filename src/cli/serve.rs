//! `carnet serve`: the broker, until it is told to end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::notice::Notice;
use crate::app::App;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::telemetry;

/// SIGHUP loads targets, rules and the issuer's keys anew, as happens by itself when they change. SIGTERM and SIGINT let the calls under way end,
/// for less than 20 s.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "CARNET_CONFIG")]
    config: PathBuf,
}

impl Serve {
    pub async fn run(self) -> anyhow::Result<()> {
        let config = Config::load(&self.config)?;
        let telemetry = telemetry::install(&config.telemetry)?;
        open_as_many_files_as_allowed();
        // Before anything listens: a signal that comes during the start is not lost.
        let (mut hangup, mut terminate, mut interrupt) =
            (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let app = App::start(config, Some(self.config), Arc::new(SystemClock)).await?;
        tracing::info!(server.grpc = ?app.grpc_address(), server.http = ?app.http_address(), "started");
        // Not only once it is ready: an outage of a cloud at that moment is no reason to start it again.
        Notice::Serving.tell();
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    // It has logged what is wrong, and keeps the old rules.
                    let _ = app.reload();
                    // A store that hangs must not keep the signals waiting; the next look is never far.
                    let _ = tokio::time::timeout(KEYS_DEADLINE, app.refresh_issuer_keys()).await;
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        tracing::info!("draining");
        Notice::Ending.tell();
        app.drain().await;
        tracing::info!("ended");
        drop(telemetry);
        Ok(())
    }
}

/// The soft limit is low for the sake of programs that use `select`; this one does not.
fn open_as_many_files_as_allowed() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

const KEYS_DEADLINE: Duration = Duration::from_secs(1);

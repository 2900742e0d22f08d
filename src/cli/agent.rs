//! `carnet agent`: the metadata endpoints of both clouds for the programs of a pod or a node, until it is told to end.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::notice::Notice;
use crate::agent::{self, Exchanges, Listener};
use crate::clock::SystemClock;
use crate::config::AgentConfig;
use crate::grpc::connect_lazily;
use crate::subject_source::SubjectSource;
use crate::telemetry;

/// Serve Google's metadata server and Azure's managed identity endpoints, beside a job or on a node
///
/// Credentials come from the broker by plain exchanges, with the subject token read anew for
/// each, and are held until they expire: the broker may be away for shorter than that.
/// GET /readyz is 200 once a credential of every target has been got. SIGTERM and SIGINT let
/// the requests under way end.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Agent {
    /// The agent's configuration file
    #[arg(long, value_name = "FILE", env = "CARNET_AGENT_CONFIG")]
    config: PathBuf,
}

impl Agent {
    pub async fn run(self) -> anyhow::Result<()> {
        let config = AgentConfig::load(&self.config)?;
        let telemetry = telemetry::install(&config.telemetry)?;
        telemetry::metrics();
        // Before anything listens: a signal that comes during the start is not lost.
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let channel = connect_lazily(&config.broker, config.ca_file.as_ref()).await?;
        let source = Exchanges::new(channel, SubjectSource::new(config.subject), config.job);
        let agent = agent::Agent::new(config.agent, Arc::new(source), Arc::new(SystemClock));
        let listener = Listener::bind(&config.listen, config.users).await;
        let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.address().map_or_else(|| config.listen.to_string(), |bound| bound.to_string());
        tracing::info!(agent.address = address, "started");
        Notice::Serving.tell();
        let draining = CancellationToken::new();
        let serving = tokio::spawn(listener.serve(agent.clone(), draining.clone()));
        let background =
            tokio::spawn(async move { tokio::join!(agent.warm_up(), agent.keep_fresh(), telemetry::upkeep()) });
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("draining");
        Notice::Ending.tell();
        draining.cancel();
        background.abort();
        let _ = serving.await;
        tracing::info!("ended");
        drop(telemetry);
        Ok(())
    }
}

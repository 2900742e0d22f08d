//! `carnet exec`: a command whose Google and Azure SDKs get their credentials from the broker, without a change to it.

mod child;
mod environment;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use self::child::Signals;
use self::environment::Environment;
use super::broker::{Broker, SubjectToken, call, no_subject_token, refusal, usage};
use super::remark;
use super::request::{Job, duration, span};
use crate::agent::{
    Agent, Credential, Credentials, Exchanges, Lease, Listener, News, Refusal, Settings, TargetSettings, Users,
};
use crate::clock::SystemClock;
use crate::grpc::Patience;
use crate::proto;
use crate::proto::leases_client::LeasesClient;
use crate::proto::token_exchange_client::TokenExchangeClient;
use crate::secret::Secret;
use crate::socket::Address;
use crate::target::Span;

/// Run a command whose cloud SDKs get their credentials from the broker
///
/// Opens a lease for the job, serves Google's metadata server and Azure's managed
/// identity endpoint on a loopback port for as long as the command runs, points the
/// SDKs there, and closes the lease at the end. Nothing is written to disk, and no
/// token stands in the command's environment.
///
/// The command shares carnet's process group and terminal, and gets the signals that
/// carnet gets. The exit status is the command's; 128 + N when signal N ended it; 127 when
/// there is no such command, 126 when it cannot be run; carnet's own before it has begun.
/// Should carnet be killed by SIGKILL, the command goes on without credentials and the lease
/// lapses for want of heartbeats.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = EXAMPLES)]
pub(super) struct Exec {
    /// Name of a target in the broker's configuration; several times for several credentials, all or nothing
    ///
    /// The first Google target is the default service account.
    #[arg(long = "target", value_name = "TARGET", required = true)]
    targets: Vec<String>,
    #[command(flatten)]
    job: Job,
    /// How long the lease is to last; default: as long as the job is expected to run, with headroom
    #[arg(long, value_name = "DURATION", value_parser = span, conflicts_with = "no_lease")]
    lease_duration: Option<Span>,
    /// Show the subject token anew for each credential, instead of once for a lease
    #[arg(long)]
    no_lease: bool,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    subject_token: SubjectToken,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  carnet exec --target vertex-training --target azure-ml --job-name vision -- python train.py
  carnet exec --target vertex-training -- gcloud storage ls gs://datasets";

/// What stands before the command begins.
struct Opened {
    source: Arc<dyn Credentials>,
    /// With their targets' names.
    credentials: Vec<(String, Credential)>,
    lease: Option<(Arc<Lease>, Patience)>,
}

impl Exec {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        if self.subject_token.file().is_some_and(|path| path.as_os_str() == "-") {
            return Err(usage("--subject-token-file -: standard input is the command's"));
        }
        let mut signals = Signals::install()?;
        let listener = Listener::bind(&Address::Tcp(([127, 0, 0, 1], 0).into()), Users::own()).await;
        let listener = listener.context("cannot listen on 127.0.0.1")?;
        let address = listener.address().context("the port that the system has chosen is not known")?;
        let opening = self.open();
        tokio::pin!(opening);
        let opened = tokio::select! {
            opened = opening.as_mut() => opened?,
            signal = signals.ending() => {
                // The broker may have opened the lease already: it would be nobody's.
                if let Ok(Ok(opened)) = tokio::time::timeout(child::PATIENCE, opening).await {
                    opened.close().await;
                }
                return Ok(child::ended_by(signal));
            }
        };
        let secret = identity_header();
        let settings = Settings {
            targets: self
                .targets
                .iter()
                .map(|name| TargetSettings { name: name.clone(), ..Default::default() })
                .collect(),
            identity_header: Some(secret.clone()),
        };
        let agent = Agent::new(settings, opened.source.clone(), Arc::new(SystemClock));
        for (target, credential) in opened.credentials {
            agent.put(&target, credential);
        }
        let environment = Environment::of(&agent, address, &secret);
        environment.warnings().for_each(remark);
        let ended = CancellationToken::new();
        let serving = tokio::spawn(listener.serve(agent.clone(), ended.clone()));
        let lease = opened.lease.map(|(lease, patience)| {
            let (kept, agent) = (lease.clone(), agent.clone());
            (lease, tokio::spawn(async move { kept.keep(patience, |news| heard(&agent, news)).await }))
        });
        let keeping = tokio::spawn({
            let agent = agent.clone();
            async move { agent.keep_fresh().await }
        });
        let status = child::run(&self.command, &environment, &mut signals).await;
        ended.cancel();
        serving.abort();
        keeping.abort();
        if let Some((lease, beats)) = lease {
            // An end that was heard of needs no closing.
            let is_over = beats.is_finished();
            beats.abort();
            if !is_over && !lease.close().await {
                remark("the lease could not be closed: it lapses for want of heartbeats");
            }
        }
        Ok(status)
    }

    /// A lease, or the first exchange: whoever is refused is told before the command begins.
    async fn open(&self) -> anyhow::Result<Opened> {
        let subject = self.subject_token.source(&self.broker);
        let (channel, subject_token) = tokio::join!(self.broker.connect(), subject.token());
        let subject_token = subject_token.map_err(no_subject_token)?.expose().to_owned();
        let channel = channel?;
        let target = |target: &String| proto::TargetRequest { target: target.clone(), ..Default::default() };
        let targets = self.targets.iter().map(target).collect();
        let exchanges = Exchanges::new(channel.clone(), subject, self.job.message());
        if self.no_lease {
            return self.exchange(channel, subject_token, targets, exchanges).await;
        }
        let request = proto::OpenLeaseRequest {
            subject_token,
            subject_token_type: String::new(),
            targets,
            job: Some(self.job.message()),
            duration: duration(self.lease_duration),
        };
        let mut client = LeasesClient::new(channel);
        let opened = client.open_lease(call(request)).await.map_err(|status| refusal(&status))?;
        let mut patience = Patience::default();
        patience.answered(opened.metadata());
        let (head, opened, _extensions) = opened.into_parts();
        patience.heard(opened.lease.as_ref());
        let lease = Arc::new(Lease::new(client, Secret::new(opened.lease_token), exchanges));
        match read(opened.credentials, &head) {
            Ok(credentials) => Ok(Opened { source: lease.clone(), credentials, lease: Some((lease, patience)) }),
            Err(refusal) => {
                // Else it would be nobody's.
                lease.close().await;
                Err(refusal.into())
            }
        }
    }

    async fn exchange(
        &self,
        channel: Channel,
        subject_token: String,
        targets: Vec<proto::TargetRequest>,
        exchanges: Exchanges,
    ) -> anyhow::Result<Opened> {
        let request = proto::ExchangeRequest {
            subject_token,
            subject_token_type: String::new(),
            targets,
            job: Some(self.job.message()),
        };
        let exchanged = TokenExchangeClient::new(channel).exchange(call(request)).await;
        let (head, exchanged, _extensions) = exchanged.map_err(|status| refusal(&status))?.into_parts();
        let credentials = read(exchanged.credentials, &head)?;
        Ok(Opened { source: Arc::new(exchanges), credentials, lease: None })
    }
}

impl Opened {
    async fn close(&self) {
        if let Some((lease, _patience)) = &self.lease {
            lease.close().await;
        }
    }
}

fn read(answers: Vec<proto::Credential>, head: &MetadataMap) -> Result<Vec<(String, Credential)>, Refusal> {
    answers.into_iter().map(|answer| Ok((answer.target.clone(), Credential::read(answer, head)?))).collect()
}

/// The command goes on, whatever the news is.
fn heard(agent: &Agent, news: News) {
    match news {
        News::Away(message) => {
            remark(format_args!("the broker is away, and is asked again until it is back: {message}"))
        }
        News::Back => remark("the broker answers again"),
        News::Ended(refusal) => {
            remark(format_args!("{refusal}: the command goes on, without credentials"));
            agent.end(refusal);
        }
    }
}

/// The endpoint's own secret: 256 bits, of this run only.
fn identity_header() -> Secret {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes);
    Secret::new(hex::encode(bytes))
}

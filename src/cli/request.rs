//! What is asked for, as arguments: targets and the job that they are for.

use clap::Args;

use crate::proto;
use crate::target::{Span, TokenType};

#[derive(Debug, Args)]
pub(super) struct Request {
    /// Name of a target in the broker's configuration; several times for several credentials, all or nothing
    #[arg(long = "target", value_name = "TARGET", required = true)]
    targets: Vec<String>,
    #[command(flatten)]
    details: Details,
}

/// How the credentials are wanted.
#[derive(Debug, Args)]
pub(super) struct Details {
    /// A subset of the target's scopes; with one target only
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Ask for an ID token with this audience instead of an access token
    #[arg(long, value_name = "AUDIENCE")]
    id_token_audience: Option<String>,
    /// Ask for this lifetime, such as 15m, instead of one scaled to the job
    #[arg(long, value_name = "DURATION", value_parser = span)]
    lifetime: Option<Span>,
    #[command(flatten)]
    job: Job,
}

/// What the credentials are for.
#[derive(Debug, Args)]
pub(super) struct Job {
    /// Unique identifier of the run
    #[arg(long, value_name = "ID")]
    job_id: Option<String>,
    /// Stable name of the pipeline or experiment
    #[arg(long, value_name = "NAME")]
    job_name: Option<String>,
    /// How long the job is expected to run, such as 9h
    #[arg(long, value_name = "DURATION", value_parser = span)]
    duration: Option<Span>,
    /// A label of the job; several times for several
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// A dataset that the job reads; several times for several
    #[arg(long = "dataset", value_name = "NAME")]
    datasets: Vec<String>,
}

impl Request {
    pub fn has_one_target(&self) -> bool {
        self.targets.len() == 1
    }

    pub fn has_scopes(&self) -> bool {
        !self.details.scopes.is_empty()
    }

    pub fn targets(&self) -> Vec<proto::TargetRequest> {
        self.details.targets(&self.targets)
    }

    pub fn job(&self) -> proto::Job {
        self.details.job()
    }
}

impl Details {
    pub fn targets(&self, names: &[String]) -> Vec<proto::TargetRequest> {
        let id_token = self.id_token_audience.as_ref().map(|_audience| TokenType::IdToken.urn());
        let target = |target: &String| proto::TargetRequest {
            target: target.clone(),
            scopes: self.scopes.clone(),
            requested_token_type: id_token.unwrap_or_default().to_owned(),
            audience: self.id_token_audience.clone().unwrap_or_default(),
            lifetime: duration(self.lifetime),
        };
        names.iter().map(target).collect()
    }

    pub fn job(&self) -> proto::Job {
        self.job.message()
    }
}

impl Job {
    pub fn message(&self) -> proto::Job {
        proto::Job {
            id: self.job_id.clone().unwrap_or_default(),
            name: self.job_name.clone().unwrap_or_default(),
            expected_duration: duration(self.duration),
            labels: self.labels.iter().cloned().collect(),
            datasets: self.datasets.clone(),
        }
    }
}

pub(super) fn span(text: &str) -> Result<Span, String> {
    text.parse::<Span>().map_err(|complaint| complaint.0.to_owned())
}

pub(super) fn duration(span: Option<Span>) -> Option<prost_types::Duration> {
    span.and_then(|span| prost_types::Duration::try_from(span.0).ok())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

//! All leases, for operators: list them, end them.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::show::{self, Output};
use crate::cli::broker::{answer, usage};
use crate::cli::operator::Operator;
use crate::cli::{print, print_json};
use crate::proto;

#[derive(Debug, Args)]
pub(in crate::cli) struct List {
    #[command(flatten)]
    filter: Filter,
    /// Leases in this state; several times for several
    #[arg(long = "state", value_enum, value_name = "STATE", default_value = "active")]
    states: Vec<State>,
    /// Leases in every state
    #[arg(long, conflicts_with = "states")]
    all: bool,
    /// At most this many, the newest
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u32>,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    operator: Operator,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Revoke {
    #[command(flatten)]
    filter: Filter,
    /// Why: it stands in the audit records of the leases
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    operator: Operator,
}

/// What is given must all match.
#[derive(Debug, Args)]
struct Filter {
    /// The lease with this id; several times for several
    #[arg(long = "lease", value_name = "LEASE_ID")]
    lease_ids: Vec<String>,
    /// Leases that this identity opened, as entra:TENANT_ID:OBJECT_ID
    #[arg(long)]
    subject: Option<String>,
    /// Leases that include this target
    #[arg(long)]
    target: Option<String>,
    /// Leases of the run with this identifier
    #[arg(long, value_name = "ID")]
    job_id: Option<String>,
    /// Leases of the pipeline or experiment with this name
    #[arg(long, value_name = "NAME")]
    job_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// Open
    Active,
    /// Closed by its job
    Closed,
    /// Missed a heartbeat, or reached its end
    Expired,
    /// Ended by an operator
    Revoked,
}

impl List {
    pub async fn run(self) -> anyhow::Result<()> {
        let mut asked = proto::ListLeasesRequest { filter: Some(self.filter.into_message()), ..Default::default() };
        if !self.all {
            asked.states = self.states.iter().map(|state| state.message().into()).collect();
        }
        let limit = self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let (mut client, authorization) = self.operator.connect().await?;
        let mut leases = Vec::new();
        loop {
            let page = answer(client.list_leases(authorization.show(asked.clone())).await)?;
            leases.extend(page.leases);
            if page.next_page_token.is_empty() || leases.len() >= limit {
                break;
            }
            asked.page_token = page.next_page_token;
        }
        leases.truncate(limit);
        match self.output {
            Output::Table => print(show::list(&leases)),
            Output::Json => {
                let leases: Vec<Value> = leases.iter().map(|lease| show::json(Some(lease))).collect();
                print_json(&json!({"leases": leases}))?;
            }
        }
        Ok(())
    }
}

impl Revoke {
    pub async fn run(self) -> anyhow::Result<()> {
        let filter = self.filter.into_message();
        if filter == proto::LeaseFilter::default() {
            return Err(usage("which leases? Give --lease, --subject, --target, --job-id or --job-name"));
        }
        let (mut client, authorization) = self.operator.connect().await?;
        let request = proto::RevokeLeasesRequest { filter: Some(filter), reason: self.reason };
        let revoked = answer(client.revoke_leases(authorization.show(request)).await)?.revoked;
        match self.output {
            Output::Table if revoked == 1 => print("revoked 1 lease"),
            Output::Table => print(format_args!("revoked {revoked} leases")),
            Output::Json => print_json(&json!({"revoked": revoked}))?,
        }
        Ok(())
    }
}

impl Filter {
    fn into_message(self) -> proto::LeaseFilter {
        proto::LeaseFilter {
            lease_ids: self.lease_ids,
            subject: self.subject.unwrap_or_default(),
            target: self.target.unwrap_or_default(),
            job_id: self.job_id.unwrap_or_default(),
            job_name: self.job_name.unwrap_or_default(),
        }
    }
}

impl State {
    fn message(self) -> proto::LeaseState {
        match self {
            Self::Active => proto::LeaseState::Active,
            Self::Closed => proto::LeaseState::Closed,
            Self::Expired => proto::LeaseState::Expired,
            Self::Revoked => proto::LeaseState::Revoked,
        }
    }
}

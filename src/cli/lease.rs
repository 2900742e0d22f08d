//! `carnet lease`: a job's right to fresh credentials, for those who run jobs; and all leases, for operators.

mod operators;
mod retry;
mod show;
mod watch;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tonic::transport::Channel;

use self::show::Output;
use super::broker::{Broker, SubjectToken, answer, call, token, usage};
use super::credentials;
use super::private_file::PrivateFile;
use super::request::{Request, duration, span};
use super::{print, print_json};
use crate::proto;
use crate::proto::leases_client::LeasesClient;
use crate::target::Span;

/// Credentials for as long as a job runs, longer than its Entra token lives
///
/// `open` shows an Entra token and gets a lease token, with which the job gets fresh
/// credentials until the lease ends: when the job closes it, when no heartbeat arrives
/// in time, at its `not_after`, or when an operator revokes it.
///
/// The lease token is taken from --lease-token-file (or CARNET_LEASE_TOKEN_FILE), else
/// from CARNET_LEASE_TOKEN, and is never an argument.
#[derive(Debug, Subcommand)]
#[command(verbatim_doc_comment, after_help = LIFE)]
pub(super) enum Lease {
    /// Show a subject token, get a lease for the job and its first credentials
    ///
    /// The lease token is written to --lease-token-file, which only its owner can read;
    /// without a file it stands in --output json.
    #[command(verbatim_doc_comment)]
    Open(Box<Open>),
    /// Beat once, or with --keep until the lease ends; with --extend move its end
    ///
    /// A beat leaves the end of the lease where it is: only a fresh subject token moves
    /// it. With --keep, exit code 0 says that the lease was closed or a signal came; the
    /// broker may be away for a while.
    #[command(verbatim_doc_comment)]
    Renew(Renew),
    /// Print the lease's credentials: those handed out before while they are good, else new ones
    ///
    /// The rules are asked again at each call.
    Credentials(Credentials),
    /// Print the credentials now and every replacement before the last one expires; beats by itself
    ///
    /// One line of JSON for each update, the last of which says how the lease ended. Exit
    /// code 0 when it was closed, 1 when it expired or was revoked. While the broker is
    /// away, the watch goes on trying.
    #[command(verbatim_doc_comment)]
    Watch(watch::Watch),
    /// End the lease: its job is done
    ///
    /// A lease that has ended stays as it ended, which is no error.
    Close(Close),
    /// For operators: list leases, newest first
    ///
    /// Those that are open, unless --state or --all says otherwise. Needs the permission
    /// leases.read.
    #[command(verbatim_doc_comment)]
    List(operators::List),
    /// For operators: end every lease that matches, now
    ///
    /// `carnet lease list` with the same filter shows what would end. Needs the permission
    /// leases.revoke.
    #[command(verbatim_doc_comment)]
    Revoke(operators::Revoke),
}

const LIFE: &str = "\
The life of a job:
  export CARNET_LEASE_TOKEN_FILE=/run/user/1000/job.lease
  carnet lease open --target vertex-training --job-name vision --job-id run-7 --duration 9h
  carnet lease renew --keep &                       # beats until the lease ends
  eval \"$(carnet lease credentials --output env)\"  # whenever credentials are needed
  carnet lease renew --extend --duration 12h        # with a fresh subject token
  carnet lease close

Instead of `renew --keep`, `carnet lease watch` beats too, and prints credentials as they change.
`list` and `revoke` show an operator's own Entra token, from the same places as any subject token.";

#[derive(Debug, Args)]
pub(super) struct Open {
    #[command(flatten)]
    request: Request,
    /// How long the lease is to last; default: as long as the job is expected to run, with headroom
    #[arg(long, value_name = "DURATION", value_parser = span)]
    lease_duration: Option<Span>,
    /// File to write the lease token to
    #[arg(long, value_name = "FILE", env = "CARNET_LEASE_TOKEN_FILE")]
    lease_token_file: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    subject_token: SubjectToken,
}

/// Which lease, and the right to it.
#[derive(Debug, Args)]
struct Holder {
    /// File with the lease token; `-` is standard input
    #[arg(long, value_name = "FILE", env = "CARNET_LEASE_TOKEN_FILE")]
    lease_token_file: Option<PathBuf>,
    #[command(flatten)]
    broker: Broker,
}

#[derive(Debug, Args)]
pub(super) struct Renew {
    #[command(flatten)]
    holder: Holder,
    /// Beat at a third of the time that the lease would live without, until it ends or a signal comes
    #[arg(long)]
    keep: bool,
    /// Show a fresh subject token, of the same identity, and so move the end of the lease
    #[arg(long, conflicts_with = "keep")]
    extend: bool,
    /// With --extend: how long from now; default: as long as the job is expected to run, and never less than it has
    #[arg(long, value_name = "DURATION", value_parser = span, requires = "extend")]
    duration: Option<Span>,
    #[command(flatten)]
    subject_token: SubjectToken,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct Credentials {
    #[command(flatten)]
    holder: Holder,
    /// Only this target of the lease; several times for several
    #[arg(long = "target", value_name = "TARGET")]
    targets: Vec<String>,
    #[arg(long, value_enum, default_value_t = credentials::Output::Json)]
    output: credentials::Output,
}

#[derive(Debug, Args)]
pub(super) struct Close {
    #[command(flatten)]
    holder: Holder,
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

impl Lease {
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Open(open) => open.run().await,
            Self::Renew(renew) => renew.run().await,
            Self::Credentials(credentials) => credentials.run().await,
            Self::Watch(watch) => watch.run().await,
            Self::Close(close) => close.run().await,
            Self::List(list) => list.run().await,
            Self::Revoke(revoke) => revoke.run().await,
        }
    }
}

impl Open {
    async fn run(self) -> anyhow::Result<()> {
        if !self.request.has_one_target() && self.request.has_scopes() {
            return Err(usage("--scope goes with one --target"));
        }
        // Before there is a lease: one whose token is lost would be nobody's.
        let file = match (&self.lease_token_file, self.output) {
            (Some(path), _) if path.as_os_str() == "-" => {
                return Err(usage("--lease-token-file names a file to write: use --output json for standard output"));
            }
            (Some(path), _) => {
                let prepared = PrivateFile::prepare(path);
                Some((prepared.with_context(|| unwritable(path))?, path))
            }
            (None, Output::Json) => None,
            (None, Output::Table) => {
                return Err(usage(
                    "where should the lease token go? Give --lease-token-file or set CARNET_LEASE_TOKEN_FILE, or take it \
                     from --output json",
                ));
            }
        };
        let request = proto::OpenLeaseRequest {
            subject_token: self.subject_token.token(&self.broker).await?,
            subject_token_type: String::new(),
            targets: self.request.targets(),
            job: Some(self.request.job()),
            duration: duration(self.lease_duration),
        };
        let mut client = LeasesClient::new(self.broker.connect().await?);
        let opened = answer(client.open_lease(call(request)).await)?;
        let in_file = file.is_some();
        if let Some((file, path)) = file
            && let Err(error) = file.write(&opened.lease_token)
        {
            let closing = proto::CloseLeaseRequest { lease_token: opened.lease_token };
            // If this fails too, the lease ends for want of a heartbeat.
            let _ = client.close_lease(call(closing)).await;
            return Err(error).with_context(|| unwritable(path));
        }
        match self.output {
            Output::Table => print(show::opened(&opened)),
            Output::Json => print_json(&opened_json(&opened, in_file))?,
        }
        Ok(())
    }
}

fn unwritable(path: &Path) -> String {
    format!("the lease token file {} cannot be written", path.display())
}

fn opened_json(opened: &proto::OpenLeaseResponse, in_file: bool) -> Value {
    let mut json = json!({
        "lease": show::json(opened.lease.as_ref()),
        "exchange_id": opened.exchange_id,
        "credentials": opened.credentials.iter().map(credentials::json).collect::<Vec<_>>(),
    });
    if !in_file && let Some(fields) = json.as_object_mut() {
        fields.insert("lease_token".to_owned(), opened.lease_token.as_str().into());
    }
    json
}

impl Holder {
    fn lease_token(&self) -> anyhow::Result<String> {
        token("lease token", self.lease_token_file.as_deref(), "CARNET_LEASE_TOKEN")
    }

    async fn connect(&self) -> anyhow::Result<LeasesClient<Channel>> {
        Ok(LeasesClient::new(self.broker.connect().await?))
    }
}

impl Renew {
    async fn run(self) -> anyhow::Result<()> {
        let mut request = proto::RenewLeaseRequest {
            lease_token: self.holder.lease_token()?,
            duration: duration(self.duration),
            ..Default::default()
        };
        if self.extend {
            request.subject_token = self.subject_token.token(&self.holder.broker).await?;
        }
        let mut client = self.holder.connect().await?;
        if self.keep {
            return retry::keep(client, request, |lease| self.output.lease(lease)).await;
        }
        let renewed = answer(client.renew_lease(call(request)).await)?;
        self.output.lease(renewed.lease.as_ref())
    }
}

impl Credentials {
    async fn run(self) -> anyhow::Result<()> {
        let request = proto::GetCredentialsRequest { lease_token: self.holder.lease_token()?, targets: self.targets };
        let mut client = self.holder.connect().await?;
        let answer = answer(client.get_credentials(call(request)).await)?;
        match self.output {
            credentials::Output::Json => {
                let json = show::update(answer.lease.as_ref(), &answer.exchange_id, &answer.credentials);
                print_json(&json)?;
            }
            credentials::Output::Token => match answer.credentials.as_slice() {
                [credential] => print(&credential.token),
                _ => return Err(usage(ONE_TARGET)),
            },
            credentials::Output::Env => {
                answer.credentials.iter().for_each(|credential| print(credentials::variables(credential)));
            }
        }
        Ok(())
    }
}

const ONE_TARGET: &str = "--output token is for one credential, and the lease has several: name one with --target";

impl Close {
    async fn run(self) -> anyhow::Result<()> {
        let request = proto::CloseLeaseRequest { lease_token: self.holder.lease_token()? };
        let mut client = self.holder.connect().await?;
        let closed = answer(client.close_lease(call(request)).await)?;
        self.output.lease(closed.lease.as_ref())
    }
}

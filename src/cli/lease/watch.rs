//! `carnet lease watch`: credentials as they change, for as long as the lease lives.

use std::collections::HashMap;
use std::io::Write as _;

use anyhow::{Context as _, bail};
use clap::Args;
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::retry::{heard, wait};
use super::{Holder, ONE_TARGET, show};
use crate::cli::broker::usage;
use crate::cli::credentials::{Output, variables};
use crate::grpc::Patience;
use crate::proto;
use crate::proto::leases_client::LeasesClient;

#[derive(Debug, Args)]
pub(in crate::cli) struct Watch {
    #[command(flatten)]
    holder: Holder,
    /// Only this target of the lease; several times for several
    #[arg(long = "target", value_name = "TARGET")]
    targets: Vec<String>,
    #[arg(long, value_enum, default_value_t = Output::Json)]
    output: Output,
}

/// Why the updates stopped coming.
enum Stop {
    /// As the last update says.
    Ended(proto::LeaseState),
    Broken(Status),
}

impl Watch {
    /// A watch beats for its lease, so it must not outlive whoever it prints for.
    pub async fn run(self) -> anyhow::Result<()> {
        tokio::select! {
            () = unread() => bail!(UNREAD),
            ended = self.updates() => ended,
        }
    }

    async fn updates(self) -> anyhow::Result<()> {
        let request =
            proto::WatchCredentialsRequest { lease_token: self.holder.lease_token()?, targets: self.targets.clone() };
        let mut client = self.holder.connect().await?;
        let (mut patience, mut printed) = (Patience::default(), Printed::default());
        loop {
            match self.follow(&mut client, request.clone(), &mut patience, &mut printed).await? {
                Stop::Ended(proto::LeaseState::Closed) => return Ok(()),
                Stop::Ended(state) => bail!("the lease has ended: it is {}", show::state(state)),
                Stop::Broken(status) => match wait(&mut patience, &status)? {
                    Some(wait) => sleep(wait).await,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn follow(
        &self,
        client: &mut LeasesClient<Channel>,
        request: proto::WatchCredentialsRequest,
        patience: &mut Patience,
        printed: &mut Printed,
    ) -> anyhow::Result<Stop> {
        // No deadline: it goes on for as long as the lease does.
        let answer = match client.watch_credentials(Request::new(request)).await {
            Ok(answer) => answer,
            Err(status) => return Ok(Stop::Broken(status)),
        };
        let (head, mut updates, _extensions) = answer.into_parts();
        patience.answered(&head);
        loop {
            let update = match updates.message().await {
                Ok(Some(update)) => update,
                Ok(None) => return Ok(Stop::Broken(Status::unavailable("the broker ended the watch"))),
                Err(status) => return Ok(Stop::Broken(status)),
            };
            heard(patience, update.lease.as_ref());
            let state = update.lease.as_ref().map_or(proto::LeaseState::Unspecified, proto::Lease::state);
            self.print(update, printed)?;
            if state != proto::LeaseState::Active {
                return Ok(Stop::Ended(state));
            }
        }
    }

    /// Without what was printed before: a watch that begins anew is sent the current credentials again.
    fn print(&self, mut update: proto::WatchCredentialsResponse, printed: &mut Printed) -> anyhow::Result<()> {
        let lease = update.lease.clone().unwrap_or_default();
        let active = lease.state() == proto::LeaseState::Active;
        let wanted = |target: &&String| self.targets.is_empty() || self.targets.contains(target);
        if self.output == Output::Token && lease.targets.iter().filter(wanted).count() != 1 {
            return Err(usage(ONE_TARGET));
        }
        update.credentials.retain(|credential| printed.is_new(credential));
        let text = match self.output {
            Output::Json if active && update.credentials.is_empty() => return Ok(()),
            Output::Json => {
                show::update(update.lease.as_ref(), &update.exchange_id, &update.credentials).to_string() + "\n"
            }
            Output::Token => update.credentials.iter().map(|credential| format!("{}\n", credential.token)).collect(),
            Output::Env => update.credentials.iter().map(|credential| variables(credential) + "\n").collect(),
        };
        let mut out = std::io::stdout().lock();
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.context(UNREAD)
    }
}

/// Returns when the other end of a pipe at standard output is closed; never where it is no pipe.
async fn unread() {
    match pipe::OpenOptions::new().open_sender("/dev/stdout") {
        Ok(out) => drop(out.ready(Interest::ERROR).await),
        // What is written next finds out.
        Err(_no_pipe) => std::future::pending().await,
    }
}

const UNREAD: &str = "nobody reads the standard output any more";

/// The newest token of each kind that was printed.
#[derive(Default)]
struct Printed(HashMap<(String, String), String>);

impl Printed {
    fn is_new(&mut self, credential: &proto::Credential) -> bool {
        let kind = (credential.target.clone(), credential.issued_token_type.clone());
        self.0.insert(kind, credential.token.clone()).as_ref() != Some(&credential.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_begins_anew_prints_only_what_is_new() {
        let of = |target: &str, token: &str| proto::Credential {
            target: target.to_owned(),
            token: token.to_owned(),
            ..Default::default()
        };
        let mut printed = Printed::default();
        let sent = [of("a", "1"), of("b", "1"), of("a", "1"), of("a", "2"), of("b", "1"), of("a", "2")];
        assert_eq!(sent.map(|credential| printed.is_new(&credential)), [true, true, false, true, false, false]);
    }
}

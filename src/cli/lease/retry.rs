//! What runs for as long as a lease: heartbeats, and patience while the broker is away.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tonic::Status;
use tonic::transport::Channel;

use crate::cli::broker::{call, refusal};
use crate::cli::{Ended, Exit, remark};
use crate::grpc::{Again, Patience};
use crate::proto;
use crate::proto::leases_client::LeasesClient;

/// Beats until the lease ends or a signal comes. `begun` is told of the lease after the first beat.
pub(super) async fn keep(
    mut client: LeasesClient<Channel>,
    request: proto::RenewLeaseRequest,
    begun: impl FnOnce(Option<&proto::Lease>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut begun = Some(begun);
    let mut patience = Patience::default();
    loop {
        let wait = tokio::select! {
            renewed = client.renew_lease(call(request.clone())) => match renewed {
                Ok(renewed) => {
                    patience.answered(renewed.metadata());
                    heard(&mut patience, renewed.get_ref().lease.as_ref());
                    if let Some(begun) = begun.take() {
                        begun(renewed.get_ref().lease.as_ref())?;
                    }
                    patience.next_beat()
                }
                Err(status) => match wait(&mut patience, &status)? {
                    Some(wait) => wait.min(patience.next_beat()),
                    None => return Ok(()),
                },
            },
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        tokio::select! {
            () = sleep(wait) => {}
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

pub(super) fn heard(patience: &mut Patience, lease: Option<&proto::Lease>) {
    if patience.heard(lease) {
        remark("the broker answers again");
    }
}

/// How long to wait before asking again; `None` where the lease was closed meanwhile.
///
/// # Errors
/// The refusal, where asking again cannot help.
pub(super) fn wait(patience: &mut Patience, status: &Status) -> anyhow::Result<Option<Duration>> {
    match patience.again(status) {
        Again::In(wait) => Ok(Some(wait)),
        Again::Away(wait) => {
            remark(format_args!("the broker is away, and is asked again until it is back: {}", status.message()));
            Ok(Some(wait))
        }
        Again::Closed => Ok(None),
        Again::Refused => Err(refusal(status)),
        Again::TooLate => {
            let message = format!("the lease's end has come, and the broker is away: {}", status.message());
            Err(Ended { exit: Exit::Unavailable, message }.into())
        }
    }
}

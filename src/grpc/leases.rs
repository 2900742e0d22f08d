//! `Leases`: the contract's messages in, the leases, the contract's messages out.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use super::message::{self, Durations};
use super::service::caller;
use super::{Farewell, status};
use crate::clock::Clock;
use crate::exchange::ExchangeError;
use crate::lease::{Failed, Leases, OpenRequest, Opened, SubjectProof, Update};
use crate::proto;
use crate::secret::Secret;

#[derive(Debug)]
pub(super) struct LeasesService {
    leases: Arc<Leases>,
    clock: Arc<dyn Clock>,
}

impl LeasesService {
    pub fn new(leases: Arc<Leases>, clock: Arc<dyn Clock>) -> Self {
        Self { leases, clock }
    }
}

#[tonic::async_trait]
impl proto::leases_server::Leases for LeasesService {
    async fn open_lease(
        &self,
        request: Request<proto::OpenLeaseRequest>,
    ) -> Result<Response<proto::OpenLeaseResponse>, Status> {
        let (caller, message) = (caller(&request), request.into_inner());
        let mut durations = Durations::default();
        let request = OpenRequest {
            targets: message::targets(message.targets, &mut durations),
            job: message::job(message.job, &mut durations),
            duration: durations.read("duration", message.duration),
            proof: proof(message.subject_token, message.subject_token_type),
            complaint: durations.complaint,
            caller,
        };
        let opened = self.leases.open(request).await.map_err(refusal)?;
        let Opened { lease, lease_token, exchange_id, credentials } = opened;
        Ok(Response::new(proto::OpenLeaseResponse {
            lease: Some(message::lease_at(lease, self.clock.now())),
            lease_token: lease_token.expose().to_owned(),
            exchange_id: exchange_id.to_string(),
            credentials: credentials.into_iter().map(message::credential).collect(),
        }))
    }

    async fn renew_lease(
        &self,
        request: Request<proto::RenewLeaseRequest>,
    ) -> Result<Response<proto::RenewLeaseResponse>, Status> {
        let (caller, message) = (caller(&request), request.into_inner());
        let lease_token = Secret::new(message.lease_token);
        let mut durations = Durations::default();
        let duration = durations.read("duration", message.duration);
        let renewed = match durations.complaint {
            Some(error) => Err(Failed::new(error)),
            None if !message.subject_token.is_empty() => {
                let proof = proof(message.subject_token, message.subject_token_type);
                self.leases.extend(lease_token, proof, duration, caller).await
            }
            None if duration.is_some() => {
                let message = "a heartbeat does not change the lease's end: show a fresh subject token too".to_owned();
                Err(Failed::new(ExchangeError::Request { field: "duration".to_owned(), message }))
            }
            None => self.leases.beat(&lease_token, &caller.peer).await,
        };
        let lease = message::lease_at(renewed.map_err(refusal)?, self.clock.now());
        Ok(Response::new(proto::RenewLeaseResponse { lease: Some(lease) }))
    }

    async fn get_credentials(
        &self,
        request: Request<proto::GetCredentialsRequest>,
    ) -> Result<Response<proto::GetCredentialsResponse>, Status> {
        let (caller, message) = (caller(&request), request.into_inner());
        let lease_token = Secret::new(message.lease_token);
        let asked = self.leases.credentials(&lease_token, &message.targets, caller);
        let Update { lease, exchange_id, credentials } = asked.await.map_err(refusal)?;
        Ok(Response::new(proto::GetCredentialsResponse {
            lease: Some(message::lease_at(lease, self.clock.now())),
            exchange_id: exchange_id.to_string(),
            credentials: credentials.into_iter().map(message::credential).collect(),
        }))
    }

    type WatchCredentialsStream = Pin<Box<dyn Stream<Item = Result<proto::WatchCredentialsResponse, Status>> + Send>>;

    async fn watch_credentials(
        &self,
        request: Request<proto::WatchCredentialsRequest>,
    ) -> Result<Response<Self::WatchCredentialsStream>, Status> {
        let farewell = request.extensions().get::<Farewell>().cloned().unwrap_or_default();
        let (caller, message) = (caller(&request), request.into_inner());
        let lease_token = Secret::new(message.lease_token);
        let watch = self.leases.watch(&lease_token, &message.targets, caller).await.map_err(refusal)?;
        let clock = self.clock.clone();
        let updates = stream::unfold(Some(watch), move |watch| {
            let (farewell, clock) = (farewell.clone(), clock.clone());
            async move {
                let mut watch = watch?;
                tokio::select! {
                    // Soon the connection is cut; a watch that ends by itself can be begun anew elsewhere.
                    () = farewell.0.cancelled() => Some((Err(refusal(Failed::new(ExchangeError::ShuttingDown))), None)),
                    update = watch.next() => match update? {
                        Ok(update) => Some((Ok(updated(update, clock.as_ref())), Some(watch))),
                        Err(failed) => Some((Err(refusal(failed)), None)),
                    },
                }
            }
        });
        Ok(Response::new(Box::pin(updates)))
    }

    async fn close_lease(
        &self,
        request: Request<proto::CloseLeaseRequest>,
    ) -> Result<Response<proto::CloseLeaseResponse>, Status> {
        let (caller, message) = (caller(&request), request.into_inner());
        let lease_token = Secret::new(message.lease_token);
        let lease = self.leases.close(&lease_token, &caller.peer).await.map_err(refusal)?;
        Ok(Response::new(proto::CloseLeaseResponse { lease: Some(message::lease_at(lease, self.clock.now())) }))
    }
}

fn updated(update: Update, clock: &dyn Clock) -> proto::WatchCredentialsResponse {
    proto::WatchCredentialsResponse {
        lease: Some(message::lease_at(update.lease, clock.now())),
        exchange_id: update.exchange_id.to_string(),
        credentials: update.credentials.into_iter().map(message::credential).collect(),
    }
}

fn proof(token: String, token_type: String) -> SubjectProof {
    SubjectProof { token: Secret::new(token), token_type }
}

pub(super) fn refusal(failed: Failed) -> Status {
    status::of(&failed.error, failed.exchange_id)
}

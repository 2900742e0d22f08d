//! What a job does with its lease, and an operator with everybody's, through the gRPC door.

use carnet::proto::leases_client::LeasesClient;
use carnet::proto::operator_client::OperatorClient;
use carnet::proto::{
    CloseLeaseRequest, Credential, GetCredentialsRequest, GetCredentialsResponse, Job, Lease, LeaseFilter,
    ListLeasesRequest, ListLeasesResponse, OpenLeaseRequest, OpenLeaseResponse, RenewLeaseRequest, RevokeLeasesRequest,
    TargetRequest, WatchCredentialsRequest, WatchCredentialsResponse,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::support::{Broker, TENANT};

/// Leases for the runner, an operator for all of them, and two targets that no lease is given for.
pub const LEASING: &str = "  own:
    google:
      audience: //iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/entra
      subject_token: entra
rules:
  - name: training
    targets: [vertex, azure-ml, own]
    subject: { roles: [Training.Submit] }
    max_lifetime: 1h
    lease: { max_duration: 72h, heartbeat: 5m }
  - name: single
    targets: [direct]
    subject: { roles: [Training.Submit] }
operators:
  - permissions: [leases.read, leases.revoke]
    subject: { roles: [Carnet.Operator] }
  - permissions: [leases.read]
    subject: { roles: [Carnet.Reader] }
  - permissions: [audit.read]
    subject: { roles: [Carnet.Auditor] }
";

pub const OPERATOR: &str = "88888888-8888-8888-8888-888888888888";

pub async fn channel(broker: &Broker) -> Channel {
    let endpoint = Endpoint::from_shared(broker.grpc_address().to_owned()).expect("a URI");
    endpoint.connect().await.expect("a connection")
}

pub async fn leases(broker: &Broker) -> LeasesClient<Channel> {
    LeasesClient::new(channel(broker).await)
}

/// Of the runner, for a job that says that it takes nine hours.
pub fn opening(broker: &Broker, targets: &[&str]) -> OpenLeaseRequest {
    let target = |target: &&str| TargetRequest { target: (*target).to_owned(), ..TargetRequest::default() };
    OpenLeaseRequest {
        subject_token: broker.signed(&broker.runner()),
        targets: targets.iter().map(target).collect(),
        job: Some(Job { expected_duration: Some(seconds(9 * 3600)), ..job("run-1") }),
        ..OpenLeaseRequest::default()
    }
}

pub fn job(id: &str) -> Job {
    Job { id: id.to_owned(), name: "vision".to_owned(), ..Job::default() }
}

pub fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

pub async fn open(broker: &Broker, targets: &[&str]) -> OpenLeaseResponse {
    try_open(broker, opening(broker, targets)).await.expect("a lease")
}

/// What the answer holds that is secret must never show.
pub async fn try_open(broker: &Broker, request: OpenLeaseRequest) -> Result<OpenLeaseResponse, Status> {
    let opened = leases(broker).await.open_lease(request).await?.into_inner();
    broker.is_secret(&opened.lease_token);
    are_secret(broker, &opened.credentials);
    Ok(opened)
}

pub async fn renew(broker: &Broker, request: RenewLeaseRequest) -> Result<Lease, Status> {
    Ok(leases(broker).await.renew_lease(request).await?.into_inner().lease.expect("a lease"))
}

pub async fn beat(broker: &Broker, lease_token: &str) -> Result<Lease, Status> {
    renew(broker, RenewLeaseRequest { lease_token: lease_token.to_owned(), ..RenewLeaseRequest::default() }).await
}

pub async fn credentials(
    broker: &Broker,
    lease_token: &str,
    targets: &[&str],
) -> Result<GetCredentialsResponse, Status> {
    let targets = targets.iter().map(|target| (*target).to_owned()).collect();
    let request = GetCredentialsRequest { lease_token: lease_token.to_owned(), targets };
    let answer = leases(broker).await.get_credentials(request).await?.into_inner();
    are_secret(broker, &answer.credentials);
    Ok(answer)
}

pub async fn close(broker: &Broker, lease_token: &str) -> Result<Lease, Status> {
    let request = CloseLeaseRequest { lease_token: lease_token.to_owned() };
    Ok(leases(broker).await.close_lease(request).await?.into_inner().lease.expect("a lease"))
}

/// An open stream of credentials.
pub struct Watch<'a> {
    broker: &'a Broker,
    messages: Streaming<WatchCredentialsResponse>,
}

pub async fn watch<'a>(broker: &'a Broker, lease_token: &str) -> Result<Watch<'a>, Status> {
    let request = WatchCredentialsRequest { lease_token: lease_token.to_owned(), ..WatchCredentialsRequest::default() };
    let messages = leases(broker).await.watch_credentials(request).await?.into_inner();
    Ok(Watch { broker, messages })
}

impl Watch<'_> {
    /// `None` after the stream's good end.
    pub async fn next(&mut self) -> Result<Option<WatchCredentialsResponse>, Status> {
        let message = self.messages.message().await?;
        if let Some(message) = &message {
            are_secret(self.broker, &message.credentials);
        }
        Ok(message)
    }
}

fn are_secret(broker: &Broker, credentials: &[Credential]) {
    credentials.iter().for_each(|credential| broker.is_secret(&credential.token));
}

/// `message` with a token of somebody who has `role`.
pub fn bearing<T>(broker: &Broker, role: &str, message: T) -> Request<T> {
    let token = broker.signed(&broker.entra.app_token(TENANT, OPERATOR).roles([role]));
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    request
}

pub async fn operator(broker: &Broker) -> OperatorClient<Channel> {
    OperatorClient::new(channel(broker).await)
}

pub async fn list(broker: &Broker, role: &str, request: ListLeasesRequest) -> Result<ListLeasesResponse, Status> {
    Ok(operator(broker).await.list_leases(bearing(broker, role, request)).await?.into_inner())
}

pub async fn revoke(broker: &Broker, role: &str, filter: LeaseFilter) -> Result<i32, Status> {
    let request = RevokeLeasesRequest { filter: Some(filter), reason: "it leaked".to_owned() };
    Ok(operator(broker).await.revoke_leases(bearing(broker, role, request)).await?.into_inner().revoked)
}

pub fn by_id(lease_id: &str) -> LeaseFilter {
    LeaseFilter { lease_ids: vec![lease_id.to_owned()], ..LeaseFilter::default() }
}

/// All that a refusal tells, but for its id.
pub fn bytes(status: &Status) -> (Code, String, String) {
    let info = status.get_error_details().error_info().cloned().expect("an ErrorInfo");
    let details = status.details().iter().map(|byte| char::from(*byte)).collect::<String>();
    (status.code(), status.message().to_owned(), details.replace(&info.metadata["exchange_id"], "-"))
}

//! `carnet exec` with a broker whose answers it cannot read, as a much newer one's may be.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use carnet::proto;
use carnet::proto::leases_server::{Leases, LeasesServer};
use futures_util::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::command_line::{carnet, run, text};

/// Opens leases whose credential is of no cloud that anybody knows, and counts those that are closed.
#[derive(Clone, Default)]
struct StrangeBroker {
    closed: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl Leases for StrangeBroker {
    async fn open_lease(
        &self,
        _request: Request<proto::OpenLeaseRequest>,
    ) -> Result<Response<proto::OpenLeaseResponse>, Status> {
        let credential = proto::Credential { target: "vertex".to_owned(), ..Default::default() };
        let credentials = vec![credential];
        Ok(Response::new(proto::OpenLeaseResponse {
            lease_token: "lease".to_owned(),
            credentials,
            ..Default::default()
        }))
    }

    async fn close_lease(
        &self,
        request: Request<proto::CloseLeaseRequest>,
    ) -> Result<Response<proto::CloseLeaseResponse>, Status> {
        assert_eq!(request.get_ref().lease_token, "lease");
        self.closed.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(proto::CloseLeaseResponse::default()))
    }

    async fn renew_lease(
        &self,
        _request: Request<proto::RenewLeaseRequest>,
    ) -> Result<Response<proto::RenewLeaseResponse>, Status> {
        Err(Status::unimplemented("nobody renews here"))
    }

    async fn get_credentials(
        &self,
        _request: Request<proto::GetCredentialsRequest>,
    ) -> Result<Response<proto::GetCredentialsResponse>, Status> {
        Err(Status::unimplemented("nobody asks here"))
    }

    type WatchCredentialsStream = Pin<Box<dyn Stream<Item = Result<proto::WatchCredentialsResponse, Status>> + Send>>;

    async fn watch_credentials(
        &self,
        _request: Request<proto::WatchCredentialsRequest>,
    ) -> Result<Response<Self::WatchCredentialsStream>, Status> {
        Err(Status::unimplemented("nobody watches here"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_whose_credentials_cannot_be_read_is_closed_and_the_command_does_not_begin() {
    let broker = StrangeBroker::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let service = LeasesServer::new(broker.clone());
    let serving =
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    let mut command = carnet(&["exec", "--target", "vertex", "--address", &address, "--", "echo", "begun"]);
    command.env("CARNET_SUBJECT_TOKEN", "of.no.interest");
    let output = run(command).await;
    let said = text(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{said}");
    assert!(said.contains("does not say which cloud the credential is for"), "{said}");
    assert_eq!(broker.closed.load(Ordering::Relaxed), 1, "the lease is nobody's");
    serving.abort();
}

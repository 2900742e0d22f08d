//! Connections from inside the process to what the gRPC listener serves: the same protocol and routes, without a network.

use std::io;

use http::{Request, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tonic::transport::{Channel, Endpoint};
use tower::Service as _;

use crate::grpc;
use crate::limit::Peer;
use crate::prober::{AGENT, PEER};

/// Connects when it is first used; the other end goes when this one does.
pub(super) fn channel(routes: grpc::Routes) -> Channel {
    let connector = tower::service_fn(move |_uri: Uri| {
        let (near, far) = tokio::io::duplex(BUFFER);
        tokio::spawn(serve(routes.clone(), far));
        async move { Ok::<_, io::Error>(TokioIo::new(near)) }
    });
    let endpoint = Endpoint::from_static("http://inside");
    endpoint.clone().user_agent(AGENT).unwrap_or(endpoint).connect_with_connector_lazy(connector)
}

async fn serve(routes: grpc::Routes, stream: tokio::io::DuplexStream) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer::inside(PEER));
        let mut routes = routes.clone();
        async move { routes.call(request).await }
    });
    // It ends when its other end is dropped.
    let _ = auto::Builder::new(TokioExecutor::new()).http2_only().serve_connection(TokioIo::new(stream), service).await;
}

const BUFFER: usize = 64 * 1024;

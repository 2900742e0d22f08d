//! The gRPC door: `carnet.v1.TokenExchange`, with health and reflection.

mod client;
mod service;
mod status;

pub use client::{Address, ConnectError, token_exchange};

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use tonic::Status;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::exchange::Exchange;
use crate::proto;
use crate::proto::token_exchange_server::TokenExchangeServer;

/// Everything that the gRPC listener serves, and the switch of its health.
#[derive(Debug)]
pub struct Services {
    pub routes: Router,
    pub health: Health,
}

/// Tells health checks whether to send calls here.
#[derive(Debug, Clone)]
pub struct Health(HealthReporter);

impl Health {
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", SERVICE] {
            self.0.set_service_status(service, status).await;
        }
    }
}

const SERVICE: &str = "carnet.v1.TokenExchange";

/// # Errors
/// Only where the descriptors that were compiled in are broken.
pub async fn services(exchange: Arc<Exchange>) -> Result<Services, tonic_reflection::server::Error> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = Health(reporter);
    health.set_serving(false).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(SERVICE)
            .with_service_name("grpc.health.v1.Health")
    };
    let exchange = TokenExchangeServer::new(service::TokenExchangeService::new(exchange))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(ANSWER_MAX_BYTES);
    // Both versions: Python's own client knows v1alpha only.
    // The whole call, its body included: tonic reads the message before the service sees it.
    let routes = Routes::new(exchange)
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .into_axum_router()
        .layer(from_fn(within_deadline));
    Ok(Services { routes, health })
}

/// Until the answer's head; a stream goes on after it.
async fn within_deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(LONGEST_CALL, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => Status::deadline_exceeded("the call was not complete in time").into_http(),
    }
}

/// No exchange takes longer: its upstream calls end before.
const LONGEST_CALL: Duration = Duration::from_secs(30);

/// A subject token has at most 64 KiB; the rest of a request is small.
const MESSAGE_MAX_BYTES: usize = 160 * 1024;

/// Sixteen credentials of 12 KiB and what belongs to them.
const ANSWER_MAX_BYTES: usize = 512 * 1024;

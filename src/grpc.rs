//! The gRPC door: `carnet.v1.TokenExchange`, with health and reflection.

mod client;
mod routes;
mod service;
mod status;

pub use client::{Address, ConnectError, token_exchange};
pub use routes::Routes;

use std::sync::Arc;

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::exchange::Exchange;
use crate::proto;
use crate::proto::token_exchange_server::TokenExchangeServer;

/// Everything that the gRPC listener serves, and the switch of its health.
#[derive(Debug)]
pub struct Services {
    pub routes: Routes,
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
    let others = tonic::service::Routes::new(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .into_axum_router();
    Ok(Services { routes: Routes { exchange, others }, health })
}

/// A subject token has at most 64 KiB; the rest of a request is small.
const MESSAGE_MAX_BYTES: usize = 160 * 1024;

/// Sixteen credentials of 12 KiB and what belongs to them.
const ANSWER_MAX_BYTES: usize = 512 * 1024;

//! The gRPC door: `carnet.v1.TokenExchange`, `Leases` and `Operator`, with health and reflection.

mod client;
mod leases;
mod message;
mod operator;
mod patience;
mod routes;
mod service;
mod status;

pub use client::{Address, ConnectError, call, connect, connect_lazily};
pub use operator::{explain_request, step};
pub use patience::{Again, BrokerClock, Patience, passes, retry_delay};
pub use routes::Routes;
pub use status::{busy, crowded};

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::clock::Clock;
use crate::exchange::Exchange;
use crate::lease::Leases;
use crate::operator::Operator;
use crate::proto;
use crate::proto::leases_server::LeasesServer;
use crate::proto::operator_server::OperatorServer;
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
        for service in [""].into_iter().chain(SERVICES) {
            self.0.set_service_status(service, status).await;
        }
    }
}

const SERVICES: [&str; 3] = ["carnet.v1.TokenExchange", "carnet.v1.Leases", "carnet.v1.Operator"];

/// The connection is about to end: an extension of every request, for answers that would go on.
#[derive(Debug, Clone, Default)]
pub struct Farewell(pub Arc<CancellationToken>);

/// What is served.
#[derive(Debug)]
pub struct Doors {
    pub exchange: Arc<Exchange>,
    pub leases: Arc<Leases>,
    pub operator: Arc<Operator>,
    pub clock: Arc<dyn Clock>,
}

/// # Errors
/// Only where the descriptors that were compiled in are broken.
pub async fn services(doors: Doors) -> Result<Services, tonic_reflection::server::Error> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = Health(reporter);
    health.set_serving(false).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health")
    };
    let reflection = || SERVICES.into_iter().fold(reflection(), |builder, service| builder.with_service_name(service));
    let Doors { exchange, leases, operator, clock } = doors;
    let exchange = TokenExchangeServer::new(service::TokenExchangeService::new(exchange))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(ANSWER_MAX_BYTES);
    let leases = LeasesServer::new(leases::LeasesService::new(leases, clock))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(ANSWER_MAX_BYTES);
    let operator = OperatorServer::new(operator::OperatorService::new(operator))
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(LISTING_MAX_BYTES);
    let others = tonic::service::Routes::new(health_service.max_decoding_message_size(NAME_MAX_BYTES))
        .add_service(leases)
        .add_service(operator)
        // Both versions: Python's own client knows v1alpha only.
        .add_service(reflection().build_v1()?.max_decoding_message_size(NAME_MAX_BYTES))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(NAME_MAX_BYTES))
        .into_axum_router();
    Ok(Services { routes: Routes { exchange, others }, health })
}

/// Health and reflection are asked by anybody, about names.
const NAME_MAX_BYTES: usize = 4 * 1024;

/// A subject token has at most 64 KiB; the rest of a request is small.
const MESSAGE_MAX_BYTES: usize = 160 * 1024;

/// Sixteen credentials of 12 KiB and what belongs to them.
const ANSWER_MAX_BYTES: usize = 512 * 1024;

/// A thousand leases with their jobs.
const LISTING_MAX_BYTES: usize = 32 * 1024 * 1024;

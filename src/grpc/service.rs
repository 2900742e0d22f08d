//! `TokenExchange`: the contract's messages in, the exchange, the contract's messages out.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::message::{self, Durations};
use super::{LONGEST_CALL, status};
use crate::exchange::{Caller, Door, Exchange, ExchangeError, ExchangeRequest, Exchanged, Peer, Proof};
use crate::policy::{ExcessScopes, Tenure};
use crate::proto;
use crate::proto::token_exchange_server::TokenExchange;
use crate::secret::Secret;

#[derive(Debug)]
pub(super) struct TokenExchangeService {
    exchange: Arc<Exchange>,
}

impl TokenExchangeService {
    pub fn new(exchange: Arc<Exchange>) -> Self {
        Self { exchange }
    }
}

#[tonic::async_trait]
impl TokenExchange for TokenExchangeService {
    async fn exchange(
        &self,
        request: Request<proto::ExchangeRequest>,
    ) -> Result<Response<proto::ExchangeResponse>, Status> {
        let deadline = deadline(request.metadata());
        let caller = caller(&request);
        let exchanged = match exchange_request(request.into_inner(), caller) {
            Ok(request) => within(deadline, self.exchange.run(request)).await?,
            Err(refused) => within(deadline, self.exchange.refuse(refused.request, refused.error)).await?,
        };
        let Exchanged { exchange_id, result } = exchanged;
        let credentials = result.map_err(|error| status::of(&error, exchange_id))?;
        let credentials = credentials.into_iter().map(message::credential).collect();
        Ok(Response::new(proto::ExchangeResponse { exchange_id: exchange_id.to_string(), credentials }))
    }
}

/// The caller's own deadline. The exchange goes on without it, because it runs in a task of its own.
pub(super) async fn within<T>(deadline: Duration, exchange: impl Future<Output = T>) -> Result<T, Status> {
    let late = |_elapsed| Status::new(Code::DeadlineExceeded, "the call's deadline passed before the exchange ended");
    tokio::time::timeout(deadline, exchange).await.map_err(late)
}

/// `grpc-timeout` (gRPC over HTTP/2): at most eight digits and a unit.
pub(super) fn deadline(metadata: &MetadataMap) -> Duration {
    let parse = |text: &str| {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let number: u64 = number.parse().ok().filter(|_number| number.len() <= 8)?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    };
    let asked = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse);
    asked.unwrap_or(LONGEST_CALL).min(LONGEST_CALL)
}

pub(super) fn caller<T>(request: &Request<T>) -> Caller {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.clone());
    let address = peer.or_else(|| request.remote_addr().as_ref().map(SocketAddr::to_string)).unwrap_or_default();
    let user_agent = request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    Caller::new(Door::Grpc, address, user_agent)
}

/// A message that is no request: what could be read of it, for the record.
struct Refused {
    request: ExchangeRequest,
    error: ExchangeError,
}

fn exchange_request(message: proto::ExchangeRequest, caller: Caller) -> Result<ExchangeRequest, Box<Refused>> {
    let mut durations = Durations::default();
    let request = ExchangeRequest {
        proof: Proof::SubjectToken {
            token: Secret::new(message.subject_token),
            token_type: message.subject_token_type,
        },
        tenure: Tenure::Once,
        lease_id: None,
        targets: message::targets(message.targets, &mut durations),
        job: message::job(message.job, &mut durations),
        excess: ExcessScopes::Refuse,
        caller,
    };
    match durations.complaint {
        None => Ok(request),
        Some(error) => Err(Box::new(Refused { request, error })),
    }
}

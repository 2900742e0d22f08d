//! `TokenExchange`: the contract's messages in, the exchange, the contract's messages out.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::message::{self, Durations};
use super::status;
use crate::exchange::{Caller, Door, Exchange, ExchangeError, ExchangeRequest, Exchanged, Proof};
use crate::limit::Peer;
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
        let caller = caller(&request);
        let exchanged = match exchange_request(request.into_inner(), caller) {
            Ok(request) => self.exchange.run(request).await,
            Err(refused) => self.exchange.refuse(refused.request, refused.error).await,
        };
        let Exchanged { exchange_id, result } = exchanged;
        let credentials = result.map_err(|error| status::of(&error, exchange_id))?;
        let credentials = credentials.into_iter().map(message::credential).collect();
        Ok(Response::new(proto::ExchangeResponse { exchange_id: exchange_id.to_string(), credentials }))
    }
}

pub(super) fn caller<T>(request: &Request<T>) -> Caller {
    let peer = request.extensions().get::<Peer>().cloned();
    let peer =
        peer.unwrap_or_else(|| request.remote_addr().map(|address| address.to_string()).unwrap_or_default().into());
    let user_agent = request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    Caller::new(Door::Grpc, peer, user_agent)
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

//! `TokenExchange`: the contract's messages in, the exchange, the contract's messages out.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::status;
use crate::credential::CloudIdentity;
use crate::exchange::{
    Caller, Door, Exchange, ExchangeError, ExchangeRequest, Exchanged, IssuedCredential, Peer, TargetRequest,
};
use crate::policy::{Bound, ExcessScopes};
use crate::proto;
use crate::proto::token_exchange_server::TokenExchange;
use crate::secret::Secret;
use crate::target::{Job, Scope};

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
        let credentials = credentials.into_iter().map(credential).collect();
        Ok(Response::new(proto::ExchangeResponse { exchange_id: exchange_id.to_string(), credentials }))
    }
}

fn caller<T>(request: &Request<T>) -> Caller {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.clone());
    let address = peer.or_else(|| Some(request.remote_addr()?.to_string().into())).unwrap_or_default();
    let user_agent = request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    Caller::new(Door::Grpc, address, user_agent)
}

/// A message that is no request: what could be read of it, for the record.
struct Refused {
    request: ExchangeRequest,
    error: ExchangeError,
}

fn exchange_request(message: proto::ExchangeRequest, caller: Caller) -> Result<ExchangeRequest, Box<Refused>> {
    let mut error = None;
    let mut duration = |field: &dyn Fn() -> String, duration: Option<prost_types::Duration>| {
        duration.and_then(|duration| match Duration::try_from(duration) {
            Ok(duration) => Some(duration),
            Err(_negative) => {
                error =
                    Some(ExchangeError::Request { field: field(), message: "a duration is not negative".to_owned() });
                None
            }
        })
    };
    let targets = message.targets.into_iter().enumerate().map(|(position, target)| TargetRequest {
        target: target.target,
        scopes: target.scopes,
        requested_token_type: target.requested_token_type,
        audience: target.audience,
        lifetime: duration(&|| format!("targets[{position}].lifetime"), target.lifetime),
    });
    let targets = targets.collect();
    let job = message.job.unwrap_or_default();
    let some = |text: String| (!text.is_empty()).then_some(text);
    let job = Job {
        id: some(job.id),
        name: some(job.name),
        expected_duration: duration(&|| "job.expected_duration".to_owned(), job.expected_duration),
        labels: job.labels.into_iter().collect(),
        datasets: job.datasets,
    };
    let request = ExchangeRequest {
        subject_token: Secret::new(message.subject_token),
        subject_token_type: message.subject_token_type,
        targets,
        job,
        excess: ExcessScopes::Refuse,
        caller,
    };
    match error {
        None => Ok(request),
        Some(error) => Err(Box::new(Refused { request, error })),
    }
}

fn credential(issued: IssuedCredential) -> proto::Credential {
    let identity = match issued.identity() {
        CloudIdentity::Google { principal, service_account } => {
            proto::credential::Identity::Google(proto::GoogleIdentity {
                principal: principal.clone(),
                service_account: service_account.clone().unwrap_or_default(),
            })
        }
        CloudIdentity::Azure { tenant, client_id } => proto::credential::Identity::Azure(proto::AzureIdentity {
            tenant_id: tenant.to_string(),
            client_id: client_id.to_string(),
        }),
    };
    proto::Credential {
        target: issued.target().to_owned(),
        token: issued.token().to_owned(),
        issued_token_type: issued.token_type().urn().to_owned(),
        token_type: "Bearer".to_owned(),
        scopes: issued.scopes().iter().map(Scope::to_string).collect(),
        expires_at: Some(issued.expires_at().into()),
        refresh_after: Some(issued.refresh_after.into()),
        lifetime: Some(proto::LifetimeDecision {
            requested: issued.requested().and_then(|requested| requested.try_into().ok()),
            granted: issued.granted.try_into().ok(),
            bound: bound(issued.bound).into(),
        }),
        cached: issued.cached,
        identity: Some(identity),
    }
}

fn bound(bound: Bound) -> proto::LifetimeBound {
    match bound {
        Bound::Requested => proto::LifetimeBound::Requested,
        Bound::Rule => proto::LifetimeBound::Rule,
        Bound::Target => proto::LifetimeBound::Target,
        Bound::Cloud => proto::LifetimeBound::Cloud,
        Bound::SubjectToken => proto::LifetimeBound::SubjectToken,
        Bound::Lease => proto::LifetimeBound::Lease,
    }
}

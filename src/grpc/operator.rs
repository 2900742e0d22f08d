//! `Operator`: why, the leases of everybody and the audit log, for those who may ask, see and end them.

mod explain;

pub use explain::{request as explain_request, step_of as step};

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::{Stream, stream};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::Farewell;
use super::leases::refusal;
use super::message::{self, some};
use super::service::caller;
use crate::audit::Filter;
use crate::exchange::ExchangeError;
use crate::lease::{EndKind, Failed, LeaseFilter, LeaseQuery};
use crate::operator::{AuditQuery, Follow, Operator, ShowFacts};
use crate::proto;
use crate::secret::Secret;

#[derive(Debug)]
pub(super) struct OperatorService {
    operator: Arc<Operator>,
}

impl OperatorService {
    pub fn new(operator: Arc<Operator>) -> Self {
        Self { operator }
    }
}

#[tonic::async_trait]
impl proto::operator_server::Operator for OperatorService {
    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::ExplainResponse>, Status> {
        let (token, caller) = (bearer(request.metadata()), caller(&request));
        let request = explain::request(request.into_inner());
        let explained = self.operator.explain(token, request, &caller).await.map_err(refusal)?;
        Ok(Response::new(explain::response(explained)))
    }

    async fn list_leases(
        &self,
        request: Request<proto::ListLeasesRequest>,
    ) -> Result<Response<proto::ListLeasesResponse>, Status> {
        let (token, caller) = (bearer(request.metadata()), caller(&request));
        let message = request.into_inner();
        let query = query(message).map_err(refusal)?;
        let leases = self.operator.list_leases(token, &query, &caller).await.map_err(refusal)?;
        // A full page may be followed by another.
        let last = leases.last().filter(|_last| leases.len() == query.most).map(|(lease, _end)| lease.id.to_string());
        let leases = leases.into_iter().map(|(lease, end)| message::lease(lease, end)).collect();
        Ok(Response::new(proto::ListLeasesResponse { leases, next_page_token: last.unwrap_or_default() }))
    }

    async fn revoke_leases(
        &self,
        request: Request<proto::RevokeLeasesRequest>,
    ) -> Result<Response<proto::RevokeLeasesResponse>, Status> {
        let (token, caller) = (bearer(request.metadata()), caller(&request));
        let proto::RevokeLeasesRequest { filter: wanted, reason } = request.into_inner();
        let filter = filter(wanted.unwrap_or_default()).map_err(refusal)?;
        let revoked = self.operator.revoke_leases(token, filter, &reason, &caller).await.map_err(refusal)?;
        Ok(Response::new(proto::RevokeLeasesResponse { revoked: i32::try_from(revoked).unwrap_or(i32::MAX) }))
    }

    type SearchAuditStream = Pin<Box<dyn Stream<Item = Result<proto::AuditRecord, Status>> + Send>>;

    async fn search_audit(
        &self,
        request: Request<proto::SearchAuditRequest>,
    ) -> Result<Response<Self::SearchAuditStream>, Status> {
        let farewell = request.extensions().get::<Farewell>().cloned().unwrap_or_default();
        let (token, caller) = (bearer(request.metadata()), caller(&request));
        let query = audit_query(request.into_inner()).map_err(refusal)?;
        let records = self.operator.search_audit(token, query, &caller).await.map_err(refusal)?.deliver();
        let stream = stream::unfold(Some(records), move |records| {
            let farewell = farewell.clone();
            async move {
                let mut records = records?;
                tokio::select! {
                    // Soon the connection is cut; what follows can be followed elsewhere.
                    () = farewell.0.cancelled() => Some((Err(refusal(Failed::new(ExchangeError::ShuttingDown))), None)),
                    record = records.next() => match record? {
                        Ok(record) => Some((Ok(record), Some(records))),
                        Err(failed) => Some((Err(refusal(failed)), None)),
                    },
                }
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// RFC 6750 section 2.1; where it is missing, an empty token is what is refused.
fn bearer(metadata: &MetadataMap) -> Secret {
    let header = metadata.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (scheme, token) = header.split_once(' ').unwrap_or_default();
    Secret::new(if scheme.eq_ignore_ascii_case("bearer") { token.trim() } else { "" })
}

fn query(message: proto::ListLeasesRequest) -> Result<LeaseQuery, Failed> {
    let states = message.states().map(state).collect::<Result<_, _>>()?;
    let before = some(message.page_token.clone()).map(|token| lease_id("page_token", &token)).transpose()?;
    let most = match usize::try_from(message.page_size) {
        Ok(0) => PAGE,
        Ok(size) => size.min(PAGE_MOST),
        Err(_negative) => return Err(invalid("page_size", "is not negative")),
    };
    Ok(LeaseQuery { filter: filter(message.filter.unwrap_or_default())?, states, before, most })
}

fn state(state: proto::LeaseState) -> Result<Option<EndKind>, Failed> {
    match state {
        proto::LeaseState::Active => Ok(None),
        proto::LeaseState::Closed => Ok(Some(EndKind::Closed)),
        proto::LeaseState::Expired => Ok(Some(EndKind::Expired)),
        proto::LeaseState::Revoked => Ok(Some(EndKind::Revoked)),
        proto::LeaseState::Unspecified => Err(invalid("states", "names no state")),
    }
}

fn filter(message: proto::LeaseFilter) -> Result<LeaseFilter, Failed> {
    Ok(LeaseFilter {
        ids: message.lease_ids.iter().map(|id| lease_id("filter.lease_ids", id)).collect::<Result<_, _>>()?,
        subject: some(message.subject),
        target: some(message.target),
        job_id: some(message.job_id),
        job_name: some(message.job_name),
    })
}

fn audit_query(message: proto::SearchAuditRequest) -> Result<AuditQuery, Failed> {
    let time = |field: &str, time: Option<prost_types::Timestamp>| {
        time.map(SystemTime::try_from).transpose().map_err(|_before_time| invalid(field, "is no time"))
    };
    let exchange_id = some(message.exchange_id).map(|id| id.parse());
    let filter = Filter {
        after: time("after", message.after)?,
        before: time("before", message.before)?,
        exchange_id: exchange_id
            .transpose()
            .map_err(|_not_a_uuid| invalid("exchange_id", "is not the id of an exchange"))?,
        lease_id: some(message.lease_id).map(|id| lease_id("lease_id", &id)).transpose()?,
        subject: some(message.subject),
        target: some(message.target),
        job_id: some(message.job_id),
        outcome: some(message.outcome),
        action: some(message.action),
        reason: some(message.reason),
    };
    let (follow, limit) = if message.follow { (Follow::Yes, FOLLOWED_MOST) } else { (Follow::No, RECORDS_MOST) };
    if follow == Follow::Yes && filter.before.is_some() {
        return Err(invalid("before", "ends a search; what follows has no end"));
    }
    let most = match usize::try_from(message.limit) {
        Ok(0) => RECORDS,
        Ok(most) if most <= limit => most,
        Ok(_) => return Err(invalid("limit", &format!("is at most {limit}: narrow the time with after and before"))),
        Err(_negative) => return Err(invalid("limit", "is not negative")),
    };
    let facts = if message.facts { ShowFacts::Yes } else { ShowFacts::No };
    Ok(AuditQuery { filter, most, follow, facts })
}

fn lease_id(field: &str, text: &str) -> Result<Uuid, Failed> {
    text.parse().map_err(|_not_a_uuid| invalid(field, "is not the id of a lease"))
}

fn invalid(field: &str, message: &str) -> Failed {
    Failed::new(ExchangeError::Request { field: field.to_owned(), message: message.to_owned() })
}

const PAGE: usize = 100;
const PAGE_MOST: usize = 1000;

/// Records of a search that does not say how many.
const RECORDS: usize = 100;
const RECORDS_MOST: usize = 1_000_000;
/// They are held until the oldest is found.
const FOLLOWED_MOST: usize = 1000;

//! The contract's messages as the broker's own types, and back.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::credential::CloudIdentity;
use crate::exchange::{ExchangeError, IssuedCredential, TargetRequest};
use crate::lease::{End, EndKind, Lease};
use crate::policy::Bound;
use crate::proto;
use crate::target::{Job, Scope, TokenType};

/// Reads durations; the first negative one is the complaint.
#[derive(Debug, Default)]
pub(super) struct Durations {
    pub complaint: Option<ExchangeError>,
}

impl Durations {
    pub fn read(&mut self, field: &str, duration: Option<prost_types::Duration>) -> Option<Duration> {
        let read = Duration::try_from(duration?);
        if read.is_err() && self.complaint.is_none() {
            let message = "a duration is not negative".to_owned();
            self.complaint = Some(ExchangeError::Request { field: field.to_owned(), message });
        }
        read.ok()
    }
}

pub(super) fn targets(messages: Vec<proto::TargetRequest>, durations: &mut Durations) -> Vec<TargetRequest> {
    let target = |(position, message): (usize, proto::TargetRequest)| TargetRequest {
        target: message.target,
        scopes: message.scopes,
        requested_token_type: message.requested_token_type,
        audience: message.audience,
        lifetime: message
            .lifetime
            .and_then(|lifetime| durations.read(&format!("targets[{position}].lifetime"), Some(lifetime))),
        beyond: None,
    };
    messages.into_iter().enumerate().map(target).collect()
}

pub(super) fn job(message: Option<proto::Job>, durations: &mut Durations) -> Arc<Job> {
    let message = message.unwrap_or_default();
    Arc::new(Job {
        id: some(message.id),
        name: some(message.name),
        expected_duration: durations.read("job.expected_duration", message.expected_duration),
        labels: message.labels.into_iter().collect(),
        datasets: message.datasets,
    })
}

/// An empty text is an absent one.
pub(super) fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// `end`: the one that the lease has now, written down or not.
pub(super) fn lease(lease: Lease, end: Option<End>) -> proto::Lease {
    let job = Job::clone(&lease.job);
    proto::Lease {
        lease_id: lease.id.to_string(),
        state: state(end.as_ref().map(|end| end.kind)).into(),
        subject: lease.subject,
        job: Some(proto::Job {
            id: job.id.unwrap_or_default(),
            name: job.name.unwrap_or_default(),
            expected_duration: job.expected_duration.and_then(|duration| duration.try_into().ok()),
            labels: job.labels,
            datasets: job.datasets,
        }),
        targets: lease.targets.iter().map(|target| target.target.clone()).collect(),
        opened_at: Some(lease.opened_at.into()),
        not_after: Some(lease.not_after.into()),
        heartbeat_before: Some(lease.heartbeat_before.into()),
        ended_at: end.map(|end| end.at.into()),
    }
}

/// As [`lease`], of a lease as it was at `now`.
pub(super) fn lease_at(it: Lease, now: SystemTime) -> proto::Lease {
    let end = it.end_at(now);
    lease(it, end)
}

pub(super) fn state(end: Option<EndKind>) -> proto::LeaseState {
    match end {
        None => proto::LeaseState::Active,
        Some(EndKind::Closed) => proto::LeaseState::Closed,
        Some(EndKind::Expired) => proto::LeaseState::Expired,
        Some(EndKind::Revoked) => proto::LeaseState::Revoked,
    }
}

pub(super) fn credential(issued: IssuedCredential) -> proto::Credential {
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
        token_type: match issued.token_type() {
            TokenType::AccessToken | TokenType::IdToken => "Bearer".to_owned(),
            TokenType::Jwt => "N_A".to_owned(),
        },
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
        Bound::Learned => proto::LifetimeBound::Learned,
    }
}

//! A lease as columns: what both stores keep of it, in the same forms.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::clock::{from_unix_milliseconds, unix_milliseconds};
use crate::exchange::TargetRequest;
use crate::lease::{End, EndKind, Lease};
use crate::proto;
use crate::secret::{FieldDigest, SealError, SealingKeys};
use crate::target::Job;

/// The narrow row, which every heartbeat writes anew. Times are milliseconds since 1970.
pub(super) struct LeaseRow {
    pub id: Uuid,
    pub token_sha256: Vec<u8>,
    pub subject: String,
    pub opened_ms: i64,
    pub proved_ms: i64,
    pub not_after_ms: i64,
    pub heartbeat_ms: i64,
    pub heartbeat_before_ms: i64,
    pub end_kind: Option<String>,
    pub ended_ms: Option<i64>,
    pub end_reason: Option<String>,
    /// Targets and job, which never change: an `OpenLeaseRequest` without its token.
    pub details: Vec<u8>,
}

/// Why a row is no lease.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaseRowError {
    #[error("the lease's targets and job cannot be read")]
    Details(#[from] prost::DecodeError),
    #[error("the digest of a lease token has 32 bytes")]
    Digest,
    #[error("a lease has ended in an unknown way")]
    EndKind,
    #[error("who opened lease {id}")]
    Identity { id: Uuid, source: SealError },
}

impl LeaseRow {
    pub fn of(lease: &Lease) -> Self {
        let milliseconds = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        Self {
            id: lease.id,
            token_sha256: lease.token_sha256.to_vec(),
            subject: lease.subject.clone(),
            opened_ms: unix_milliseconds(lease.opened_at),
            proved_ms: unix_milliseconds(lease.proved_at),
            not_after_ms: unix_milliseconds(lease.not_after),
            heartbeat_ms: milliseconds(lease.heartbeat),
            heartbeat_before_ms: unix_milliseconds(lease.heartbeat_before),
            end_kind: lease.end.as_ref().map(|end| end.kind.as_str().to_owned()),
            ended_ms: lease.end.as_ref().map(|end| unix_milliseconds(end.at)),
            end_reason: lease.end.as_ref().map(|end| end.reason.clone()),
            details: details(lease).encode_to_vec(),
        }
    }

    pub fn lease(self) -> Result<Lease, LeaseRowError> {
        let details = proto::OpenLeaseRequest::decode(self.details.as_slice())?;
        let job = details.job.unwrap_or_default();
        let some = |text: String| (!text.is_empty()).then_some(text);
        let job = Job {
            id: some(job.id),
            name: some(job.name),
            expected_duration: job.expected_duration.and_then(|duration| duration.try_into().ok()),
            labels: job.labels,
            datasets: job.datasets,
        };
        let end = match (self.end_kind, self.ended_ms) {
            (Some(kind), Some(ended)) => {
                let kind =
                    EndKind::ALL.into_iter().find(|known| known.as_str() == kind).ok_or(LeaseRowError::EndKind)?;
                Some(End { kind, at: from_unix_milliseconds(ended), reason: self.end_reason.unwrap_or_default() })
            }
            _ => None,
        };
        Ok(Lease {
            id: self.id,
            token_sha256: self.token_sha256.try_into().map_err(|_other_length| LeaseRowError::Digest)?,
            subject: self.subject,
            job: Arc::new(job),
            targets: details.targets.into_iter().map(target).collect(),
            opened_at: from_unix_milliseconds(self.opened_ms),
            proved_at: from_unix_milliseconds(self.proved_ms),
            not_after: from_unix_milliseconds(self.not_after_ms),
            heartbeat: Duration::from_millis(self.heartbeat_ms.unsigned_abs()),
            heartbeat_before: from_unix_milliseconds(self.heartbeat_before_ms),
            end,
        })
    }
}

fn details(lease: &Lease) -> proto::OpenLeaseRequest {
    let target = |target: &TargetRequest| proto::TargetRequest {
        target: target.target.clone(),
        scopes: target.scopes.clone(),
        requested_token_type: target.requested_token_type.clone(),
        audience: target.audience.clone(),
        lifetime: target.lifetime.and_then(|lifetime| lifetime.try_into().ok()),
    };
    let job = Job::clone(&lease.job);
    let job = proto::Job {
        id: job.id.unwrap_or_default(),
        name: job.name.unwrap_or_default(),
        expected_duration: job.expected_duration.and_then(|duration| duration.try_into().ok()),
        labels: job.labels,
        datasets: job.datasets,
    };
    proto::OpenLeaseRequest {
        targets: lease.targets.iter().map(target).collect(),
        job: Some(job),
        ..proto::OpenLeaseRequest::default()
    }
}

fn target(message: proto::TargetRequest) -> TargetRequest {
    TargetRequest {
        target: message.target,
        scopes: message.scopes,
        requested_token_type: message.requested_token_type,
        audience: message.audience,
        lifetime: message.lifetime.and_then(|lifetime| lifetime.try_into().ok()),
        beyond: None,
    }
}

/// Who opened the lease, sealed for it as it is: whoever can write the database, and has no key, cannot give it another
/// token, other targets or a later end.
pub(super) fn seal(key: &SealingKeys, lease: &Lease, identity: &[u8]) -> Result<Vec<u8>, LeaseRowError> {
    key.seal(identity, &place(lease)).map_err(|source| LeaseRowError::Identity { id: lease.id, source })
}

pub(super) fn unseal(key: &SealingKeys, lease: &Lease, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, LeaseRowError> {
    key.open(sealed, &place(lease)).map_err(|source| LeaseRowError::Identity { id: lease.id, source })
}

/// What takes the place of `sealed`, where an older key had sealed it.
pub(super) fn renewed(key: &SealingKeys, lease: &Lease, sealed: &[u8]) -> Option<Vec<u8>> {
    key.renewed(sealed, &place(lease)).ok().flatten()
}

fn place(lease: &Lease) -> String {
    let mut digest = FieldDigest::new("lease 1");
    digest.field(&lease.token_sha256).field(lease.subject.as_bytes()).field(&details(lease).encode_to_vec());
    for time in [lease.opened_at, lease.proved_at, lease.not_after] {
        digest.field(&unix_milliseconds(time).to_le_bytes());
    }
    format!("lease/{}/{}", lease.id, hex::encode(digest.finish()))
}

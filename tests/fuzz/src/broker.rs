//! An exchange as the broker has it, with a cloud that issues one token and a log that keeps nothing.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use carnet::audit::{Audit, AuditError, AuditLog, Checkpoint, Expired, Group, HandOut, Head, Issued, Kept};
use carnet::credential::{Call, CloudIdentity, Credential, CredentialProvider, Credentials, IssueError};
use carnet::exchange::{Exchange, FakeRunHistory, History, PLACES};
use carnet::limit::{Limits, Settings};
use carnet::secret::Secret;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::world::{CONFIGURED, block_on, clock, configured, now, verifier};

/// Every credential.
pub const ISSUED: &str = "the-token-of-a-cloud";

/// Whether a request has the token's text in it, as libFuzzer finds out in time: what a caller says is on record.
pub fn names_issued(request: &[u8]) -> bool {
    url::form_urlencoded::parse(request).any(|(name, value)| name.contains(ISSUED) || value.contains(ISSUED))
}

pub fn exchange() -> Arc<Exchange> {
    let (audit, _writer) = block_on(async { Audit::start(Arc::new(Forgetful), clock()) });
    let policy = configured(CONFIGURED).policy;
    Arc::new(Exchange {
        verifier: Arc::new(verifier()),
        policy: Arc::new(ArcSwap::from_pointee(policy)),
        credentials: Credentials::new(Arc::new(Cloud), clock()),
        history: History::new(Arc::new(FakeRunHistory::default())),
        audit,
        clock: clock(),
        places: Arc::new(Semaphore::new(PLACES)),
        limits: Limits::new(Settings::WIDE),
    })
}

#[derive(Debug)]
struct Cloud;

#[async_trait::async_trait]
impl CredentialProvider for Cloud {
    async fn issue(&self, call: &Call) -> Result<Credential, IssueError> {
        let asked = call.grant.plan().lifetime;
        assert!(asked <= Duration::from_secs(12 * 3600), "more than any rule allows: {asked:?}");
        let identity = CloudIdentity::Azure { tenant: Uuid::nil(), client_id: Uuid::nil() };
        Ok(Credential::new(Secret::new(ISSUED), now(), now() + asked, asked, identity))
    }
}

/// A log of which nothing is read but one hand-out, and which must not grow.
#[derive(Debug)]
struct Forgetful;

#[async_trait::async_trait]
impl AuditLog for Forgetful {
    async fn append(&self, group: Group) -> Result<(), AuditError> {
        for record in &group.sealed {
            let shown = format!("{record:?}");
            assert!(!shown.contains(ISSUED), "a token in the log");
        }
        Ok(())
    }

    async fn heads(&self, _most: u32) -> Result<Vec<Head>, AuditError> {
        Ok(Vec::new())
    }

    async fn find_issued(&self, token_sha256: &[u8; 32]) -> Result<Option<HandOut>, AuditError> {
        Ok((*token_sha256 == Secret::new(ISSUED).sha256()).then(|| HandOut {
            exchange_id: Uuid::from_u128(1),
            subject: "entra:1:2".to_owned(),
            target: "google-direct".to_owned(),
            issued: Issued {
                token_sha256: *token_sha256,
                first: true,
                scopes: String::new(),
                acts_as: String::new(),
                issued_at: now(),
                expires_at: now() + Duration::from_secs(600),
            },
        }))
    }

    async fn checkpoint(&self, _checkpoint: Checkpoint) -> Result<Kept, AuditError> {
        Ok(Kept::Yes)
    }

    async fn prune(&self, _expired: &Expired) -> Result<u64, AuditError> {
        Ok(0)
    }

    async fn unchained(&self) -> Result<u64, AuditError> {
        Ok(0)
    }

    async fn probe(&self) -> Result<(), AuditError> {
        Ok(())
    }
}

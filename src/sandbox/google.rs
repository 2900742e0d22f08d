//! Google: workload identity pools, the Security Token Service, IAM Credentials and Cloud Storage on one listener.

mod cel;
mod iam_credentials;
mod project;
mod provider;
mod status;
mod storage;
mod sts;
mod subject;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};

use crate::clock::Clock;
use crate::sandbox::calls::Calls;
use crate::sandbox::faults::Faults;
use crate::sandbox::server::{Bound, Server};

use project::Project;
pub use project::{ExpiresIn, TokenInfo, TokenKind};
pub use provider::{PoolProvider, ProviderError};

/// A running Google. Principals are written as in IAM policies: `principal://iam.googleapis.com/projects/N/locations/
/// global/workloadIdentityPools/P/subject/S`, `principalSet://…/attribute.NAME/VALUE`, `…/group/G`, `…/*`.
pub struct Google {
    project: Arc<Project>,
    server: Server,
}

impl Google {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub async fn start(clock: Arc<dyn Clock>) -> io::Result<Self> {
        Self::start_on(0, clock).await
    }

    /// As [`start`](Self::start) on a given port.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub async fn start_on(port: u16, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let bound = Bound::to(port).await?;
        let project = Arc::new(Project::new(clock)?);
        let server = bound.serve(routes(Arc::clone(&project)));
        Ok(Self { project, server })
    }

    /// What stands for `https://sts.googleapis.com`.
    pub fn sts_endpoint(&self) -> &str {
        &self.server.url
    }

    /// What stands for `https://iamcredentials.googleapis.com`.
    pub fn iam_credentials_endpoint(&self) -> &str {
        &self.server.url
    }

    /// What stands for `https://storage.googleapis.com`, as far as listing a bucket's objects goes.
    pub fn storage_endpoint(&self) -> &str {
        &self.server.url
    }

    /// The requests it saw.
    pub fn calls(&self) -> &Calls {
        &self.server.calls
    }

    /// How to make it misbehave.
    pub fn faults(&self) -> &Faults {
        &self.server.faults
    }
}

/// Who is trusted with what.
impl Google {
    /// Creates the provider, or replaces the one of the same name.
    ///
    /// # Errors
    /// The limits of the IAM API.
    pub fn register_provider(&self, provider: PoolProvider) -> Result<(), ProviderError> {
        self.project.register_provider(provider)
    }

    /// Creates the account; without a binding nobody can impersonate it.
    pub fn add_service_account(&self, email: &str) {
        self.project.add_service_account(email);
    }

    /// The account is gone: its name answers 404 from now on, and its tokens are no longer good.
    pub fn delete_service_account(&self, email: &str) {
        self.project.delete_service_account(email);
    }

    /// Puts the account on the organization policy's list: lifetimes up to 43,200 s.
    pub fn extend_lifetime(&self, email: &str) {
        self.project.extend_lifetime(email);
    }

    /// Grants `roles/iam.workloadIdentityUser` on the account to a principal or a set of them; for a member
    /// `serviceAccount:EMAIL` it is `roles/iam.serviceAccountTokenCreator`. An unknown account is created.
    pub fn bind(&self, email: &str, member: &str) {
        self.project.bind(email, member);
    }

    /// Takes the grant back; tokens already issued keep working.
    pub fn unbind(&self, email: &str, member: &str) {
        self.project.unbind(email, member);
    }

    /// Puts an object into a bucket; a bucket exists from its first object or grant on.
    pub fn add_object(&self, bucket: &str, object: &str) {
        self.project.add_object(bucket, object);
    }

    /// Grants `roles/storage.objectViewer` on the bucket to `serviceAccount:EMAIL`, a principal or a set of them.
    pub fn let_read(&self, bucket: &str, member: &str) {
        self.project.let_read(bucket, member);
    }

    /// What an access token of this Google is, while it lives: for tests, and for stand-ins of Google's other APIs.
    pub fn check(&self, access_token: &str) -> Option<TokenInfo> {
        self.project.check(access_token)
    }

    /// How many access tokens were issued so far, of either kind.
    pub fn issued(&self) -> usize {
        self.project.issued_count()
    }
}

/// How it behaves.
impl Google {
    /// How STS states the life of its tokens from now on.
    pub fn state_expires_in(&self, how: ExpiresIn) {
        self.project.set_expires_in(how);
    }

    /// The next `count` exchanges get STS's quota error, 429.
    pub fn throttle_sts(&self, count: usize) {
        self.faults().times("/v1/token", count, status::sts_throttled());
    }

    /// The next `count` calls of each IAM Credentials method get its quota error, 429.
    pub fn throttle_iam_credentials(&self, count: usize) {
        for method in [":generateAccessToken", ":generateIdToken"] {
            self.faults().times(method, count, status::iam_throttled());
        }
    }

    /// How long an issuer's fetched keys are kept; 1 h unless set.
    pub fn keep_issuer_keys_for(&self, life: Duration) {
        self.project.issuer_keys().set_life(life);
    }

    /// Forgets every issuer's fetched keys.
    pub fn forget_issuer_keys(&self) {
        self.project.issuer_keys().forget();
    }
}

impl fmt::Debug for Google {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Google").field("endpoint", &self.server.url).finish_non_exhaustive()
    }
}

fn routes(project: Arc<Project>) -> Router {
    Router::new()
        .route("/v1/token", post(sts::token))
        .route("/v1/introspect", post(sts::introspect))
        .route("/v1/projects/{project}/serviceAccounts/{call}", post(iam_credentials::generate))
        .route("/storage/v1/b/{bucket}/o", get(storage::list))
        // Where the real ones are on www.googleapis.com: the keys of ID tokens.
        .route("/oauth2/v3/certs", get(iam_credentials::certificates))
        .with_state(project)
}

#[cfg(test)]
mod tests;

//! The managed identity endpoints of a virtual machine (IMDS) and of App Service; their tokens are Entra's.

mod host;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, StatusCode};
use serde_json::json;

use crate::sandbox::calls::Calls;
use crate::sandbox::entra::Entra;
use crate::sandbox::faults::{Fault, Faults};
use crate::sandbox::server::{Bound, Server};

use host::{APP_SERVICE, Host, MACHINE_LEARNING, dispatch};

/// A running host with managed identities. Both protocols are on one port.
pub struct ManagedIdentity {
    host: Arc<Host>,
    server: Server,
}

/// A user-assigned managed identity of the host.
#[derive(Clone, Debug)]
pub struct AssignedIdentity {
    /// Its client id, a GUID.
    pub client_id: String,
    /// Its principal id: `oid` and `sub` of its tokens.
    pub object_id: String,
    /// `/subscriptions/…/userAssignedIdentities/NAME`; compared without regard to case.
    pub resource_id: String,
}

impl ManagedIdentity {
    /// Starts on a free port of 127.0.0.1; identities are of this tenant, and tokens are signed by this Entra.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub async fn start(entra: &Entra, tenant: &str) -> io::Result<Self> {
        Self::start_on(0, entra, tenant).await
    }

    /// As [`start`](Self::start) on a given port.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub async fn start_on(port: u16, entra: &Entra, tenant: &str) -> io::Result<Self> {
        let bound = Bound::to(port).await?;
        let host = Arc::new(Host::new(entra.directory(), tenant));
        let routes = Router::new().fallback(dispatch).with_state(Arc::clone(&host));
        let server = bound.serve(routes);
        Ok(Self { host, server })
    }

    /// Assigns one more identity to the host.
    pub fn assign(&self, identity: AssignedIdentity) {
        self.host.assign(identity);
    }

    /// What stands for `http://169.254.169.254`.
    pub fn imds_endpoint(&self) -> &str {
        &self.server.url
    }

    /// The value of `IDENTITY_ENDPOINT`.
    pub fn identity_endpoint(&self) -> String {
        format!("{}{APP_SERVICE}", self.server.url)
    }

    /// The value of `MSI_ENDPOINT` on computes of Azure Machine Learning; `MSI_SECRET` is
    /// [`identity_header`](Self::identity_header).
    pub fn msi_endpoint(&self) -> String {
        format!("{}{MACHINE_LEARNING}", self.server.url)
    }

    /// The value of `IDENTITY_HEADER`: a secret.
    pub fn identity_header(&self) -> &str {
        self.host.identity_header()
    }

    /// The requests it saw.
    pub fn calls(&self) -> &Calls {
        &self.server.calls
    }

    /// How to make it misbehave.
    pub fn faults(&self) -> &Faults {
        &self.server.faults
    }

    /// The next `count` calls are answered with 429 and, if given, `Retry-After` in whole seconds.
    pub fn throttle(&self, count: usize, retry_after: Option<Duration>) {
        let text = "Too many requests.";
        self.fail(count, StatusCode::TOO_MANY_REQUESTS, text, retry_after);
    }

    /// The next `count` calls are answered with 410: IMDS is being updated, for 70 s at most in reality.
    pub fn update(&self, count: usize) {
        self.fail(count, StatusCode::GONE, "The endpoint is being updated.", None);
    }

    /// The next `count` calls fail with a status of the 5xx kind.
    pub fn break_down(&self, count: usize, status: StatusCode) {
        self.fail(count, status, "Internal error.", None);
    }

    fn fail(&self, count: usize, status: StatusCode, text: &str, retry_after: Option<Duration>) {
        let body = json!({"error": status.as_u16().to_string(), "error_description": text});
        let mut answer = http::Response::new(body.to_string());
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        if let Some(wait) = retry_after {
            headers.insert("retry-after", HeaderValue::from(wait.as_secs()));
        }
        self.faults().times("", count, Fault::Answer(Box::new(answer)));
    }
}

impl fmt::Debug for ManagedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagedIdentity").field("endpoint", &self.server.url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

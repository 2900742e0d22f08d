//! Entra: tenants with keys and discovery documents, tokens for tests, and a token endpoint as strict as the real one.

mod assertion;
mod directory;
mod discovery;
mod people;
mod refusal;
mod registry;
mod resource;
mod sign_in;
mod token;
mod token_endpoint;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::{get, post};
use serde_json::Value;

use crate::clock::Clock;
use crate::sandbox::calls::Calls;
use crate::sandbox::faults::Faults;
use crate::sandbox::keys::SigningKey;
use crate::sandbox::server::{Bound, Server};

pub(super) use directory::Directory;
pub use people::Person;
pub use refusal::Throttle;
pub use registry::{FederatedCredential, FederatedCredentialError, Identity, IdentityKind, Resource, TokenVersion};
pub(super) use resource::InvalidToken;
pub use token::EntraToken;

/// A running Entra. A tenant that is named in a call to it exists from then on; a request over HTTP makes none.
pub struct Entra {
    directory: Arc<Directory>,
    server: Server,
}

impl Entra {
    /// Starts on a free port of 127.0.0.1 with these tenants (GUIDs).
    ///
    /// # Errors
    /// The port cannot be bound.
    pub async fn start<T: AsRef<str>>(clock: Arc<dyn Clock>, tenants: impl IntoIterator<Item = T>) -> io::Result<Self> {
        Self::start_on(0, clock, tenants).await
    }

    /// As [`start`](Self::start) on a given port.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub async fn start_on<T: AsRef<str>>(
        port: u16,
        clock: Arc<dyn Clock>,
        tenants: impl IntoIterator<Item = T>,
    ) -> io::Result<Self> {
        let bound = Bound::to(port).await?;
        let directory = Arc::new(Directory::new(bound.url(), clock)?);
        for tenant in tenants {
            directory.add_tenant(tenant.as_ref());
        }
        let server = bound.serve(routes(Arc::clone(&directory)));
        Ok(Self { directory, server })
    }

    /// `http://127.0.0.1:PORT`: what stands for `https://login.microsoftonline.com`.
    pub fn authority(&self) -> &str {
        &self.server.url
    }

    /// The `iss` of a tenant's tokens: `{authority}/{tid}/v2.0`, or `https://sts.windows.net/{tid}/` in version 1.
    pub fn issuer(&self, tenant: &str, version: TokenVersion) -> String {
        self.directory.issuer(tenant, version)
    }

    /// The requests it saw.
    pub fn calls(&self) -> &Calls {
        &self.server.calls
    }

    /// How to make it misbehave.
    pub fn faults(&self) -> &Faults {
        &self.server.faults
    }

    pub(super) fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory)
    }
}

/// Tokens for tests, without a request.
impl Entra {
    /// A token of the service principal `object`.
    pub fn app_token(&self, tenant: &str, object: &str) -> EntraToken {
        EntraToken::for_app(self.directory(), tenant, object)
    }

    /// A delegated token of the user `object`.
    pub fn user_token(&self, tenant: &str, object: &str) -> EntraToken {
        EntraToken::for_user(self.directory(), tenant, object)
    }

    /// A token of the managed identity with principal id `object`.
    pub fn managed_identity_token(&self, tenant: &str, object: &str) -> EntraToken {
        EntraToken::for_managed_identity(self.directory(), tenant, object)
    }

    /// The `aud` of tokens that are not told otherwise: the client id of the broker's app registration. Its scopes
    /// `{guid}/.default` and `api://{guid}/.default` are known to the token endpoint.
    pub fn set_default_audience(&self, client_id: &str) {
        self.directory.set_default_audience(client_id);
    }

    /// What [`set_default_audience`](Self::set_default_audience) set last; a fixed GUID before.
    pub fn default_audience(&self) -> String {
        self.directory.default_audience()
    }
}

/// Signing keys.
impl Entra {
    /// Publishes a new key that signs from now on and returns its `kid`; the old ones stay published.
    pub fn rotate(&self, tenant: &str) -> String {
        self.directory.rotate(tenant)
    }

    /// The key that signs the tenant's tokens now.
    pub fn signing_key(&self, tenant: &str) -> Arc<SigningKey> {
        self.directory.signing_key(tenant)
    }

    /// The tenant's keys that can sign, oldest first, published or withdrawn.
    pub fn kids(&self, tenant: &str) -> Vec<String> {
        self.directory.kids(tenant)
    }

    /// Adds a JWK of any kind to the tenant's key documents, as it is.
    pub fn publish(&self, tenant: &str, jwk: Value) {
        self.directory.publish(tenant, jwk);
    }

    /// Takes a key out of the tenant's documents; it can still sign.
    pub fn withdraw(&self, tenant: &str, kid: &str) {
        self.directory.withdraw(tenant, kid);
    }

    /// Serves these bytes as the tenant's key documents.
    pub fn replace_keys_document(&self, tenant: &str, body: impl Into<Bytes>) {
        self.directory.replace_keys_document(tenant, Some(body.into()));
    }

    /// Serves the real key documents again.
    pub fn restore_keys_document(&self, tenant: &str) {
        self.directory.replace_keys_document(tenant, None);
    }
}

/// What the token endpoint knows and how it behaves.
impl Entra {
    /// Registers an app or a user-assigned managed identity; one with the same client id is replaced.
    pub fn register(&self, identity: Identity) {
        self.directory.register(identity);
    }

    /// Adds a federated identity credential to a registered identity.
    ///
    /// # Errors
    /// Entra's own limits, and an unknown client id.
    pub fn trust(&self, client_id: &str, credential: FederatedCredential) -> Result<(), FederatedCredentialError> {
        self.directory.trust(client_id, credential)
    }

    /// Removes the credential with this issuer and subject.
    pub fn distrust(&self, client_id: &str, issuer: &str, subject: &str) {
        self.directory.distrust(client_id, issuer, subject);
    }

    /// Makes a resource known, so that tokens for it can be asked for.
    pub fn register_resource(&self, resource: Resource) {
        self.directory.register_resource(resource);
    }

    /// On-behalf-of requests for this user (object id) fail with AADSTS50076 and a claims challenge.
    pub fn require_interaction(&self, user: &str) {
        self.directory.require_interaction(user);
    }

    /// Credentials added from now on are seen only after this delay; until then: AADSTS70021.
    pub fn propagate_after(&self, delay: Duration) {
        self.directory.propagate_after(delay);
    }

    /// The next `count` token requests are throttled, with this `Retry-After` (whole seconds).
    pub fn throttle(&self, count: usize, how: Throttle, retry_after: Duration) {
        let fault = refusal::throttled(&self.directory, how, retry_after);
        self.faults().times("/oauth2/v2.0/token", count, fault);
    }

    /// How long an external issuer's keys are kept after a fetch; 1 h unless set.
    pub fn keep_issuer_keys_for(&self, life: Duration) {
        self.directory.issuer_keys().set_life(life);
    }

    /// Forgets every external issuer's keys.
    pub fn forget_issuer_keys(&self) {
        self.directory.issuer_keys().forget();
    }
}

/// People who sign in.
impl Entra {
    pub fn add_person(&self, person: Person) {
        self.directory.add_tenant(&person.tenant);
        self.directory.people().add(person);
    }

    /// The person `object` types this code; `false` where the code or the person is unknown or the code has ended.
    pub fn approve_device(&self, user_code: &str, object: &str) -> bool {
        self.directory.people().decide(user_code, Some(object), true, self.directory.now())
    }

    /// Somebody types this code and says no.
    pub fn decline_device(&self, user_code: &str) -> bool {
        self.directory.people().decide(user_code, None, false, self.directory.now())
    }

    /// How long clients are told to wait between two polls; 5 s unless set, whole seconds.
    pub fn poll_devices_every(&self, interval: Duration) {
        self.directory.people().set_interval(interval);
    }

    /// Ends all refresh tokens of a person.
    pub fn revoke_sessions(&self, object: &str) {
        self.directory.people().revoke(object);
    }
}

impl fmt::Debug for Entra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entra").field("authority", &self.authority()).finish_non_exhaustive()
    }
}

fn routes(directory: Arc<Directory>) -> Router {
    let configuration = "/.well-known/openid-configuration";
    Router::new()
        .route("/common/discovery/instance", get(discovery::instance))
        .route(&format!("/{{tenant}}/v2.0{configuration}"), get(discovery::v2))
        .route(&format!("/{{tenant}}{configuration}"), get(discovery::v1))
        .route("/{tenant}/discovery/v2.0/keys", get(discovery::v2_keys))
        .route("/{tenant}/discovery/keys", get(discovery::v1_keys))
        .route("/{tenant}/oauth2/v2.0/token", post(token_endpoint::token))
        .route("/{tenant}/oauth2/v2.0/devicecode", post(sign_in::devicecode))
        .route("/devicelogin", get(sign_in::page).post(sign_in::decide))
        .with_state(directory)
}

#[cfg(test)]
mod tests;

//! Everything an Entra knows: tenants and their keys, identities, resources, and the knobs set by tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use serde_json::Value;

use super::people::People;
use super::registry::{
    FederatedCredential, FederatedCredentialError, Identity, Resource, TokenVersion, Trusted, well_known_resources,
};
use crate::clock::Clock;
use crate::sandbox::issuer_keys::IssuerKeys;
use crate::sandbox::keys::SigningKey;
use crate::sandbox::locked::locked;

pub(in crate::sandbox) struct Directory {
    authority: String,
    clock: Arc<dyn Clock>,
    issuer_keys: IssuerKeys,
    people: People,
    state: Mutex<State>,
}

struct State {
    tenants: BTreeMap<String, Tenant>,
    identities: BTreeMap<String, Identity>,
    resources: Vec<Resource>,
    default_audience: String,
    interaction_required: BTreeSet<String>,
    propagation: Duration,
}

/// The keys of one tenant; the last one signs.
#[derive(Clone, Default)]
pub(super) struct Tenant {
    keys: Vec<Arc<SigningKey>>,
    pub(super) published: Vec<Published>,
    pub(super) keys_document: Option<Bytes>,
}

#[derive(Clone)]
pub(super) enum Published {
    /// One of the tenant's own keys.
    Own(Arc<SigningKey>),
    /// Any JWK, served as it is.
    Foreign(Value),
}

impl Directory {
    pub(super) fn new(authority: String, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let directory = Self {
            authority,
            issuer_keys: IssuerKeys::new(Arc::clone(&clock))?,
            clock,
            people: People::new(),
            state: Mutex::new(State {
                tenants: BTreeMap::new(),
                identities: BTreeMap::new(),
                resources: well_known_resources(),
                default_audience: String::new(),
                interaction_required: BTreeSet::new(),
                propagation: Duration::ZERO,
            }),
        };
        directory.set_default_audience(DEFAULT_AUDIENCE);
        Ok(directory)
    }

    pub(in crate::sandbox) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    pub(in crate::sandbox) fn authority(&self) -> &str {
        &self.authority
    }

    pub(super) fn issuer_keys(&self) -> &IssuerKeys {
        &self.issuer_keys
    }

    pub(super) fn people(&self) -> &People {
        &self.people
    }

    pub(super) fn issuer(&self, tenant: &str, version: TokenVersion) -> String {
        match version {
            TokenVersion::V1 => format!("https://sts.windows.net/{tenant}/"),
            TokenVersion::V2 => format!("{}/{tenant}/v2.0", self.authority),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

/// Tenants and keys.
impl Directory {
    pub(super) fn add_tenant(&self, tenant: &str) {
        if self.tenant(tenant).is_some() {
            return;
        }
        // Entra always publishes more than one key.
        let keys = [SigningKey::rsa(), SigningKey::rsa()].map(Arc::new);
        let new = Tenant {
            published: keys.iter().cloned().map(Published::Own).collect(),
            keys: keys.to_vec(),
            keys_document: None,
        };
        let id = tenant.to_ascii_lowercase();
        self.state().tenants.entry(id).or_insert(new);
    }

    pub(super) fn tenant(&self, tenant: &str) -> Option<Tenant> {
        let id = tenant.to_ascii_lowercase();
        self.state().tenants.get(&id).cloned()
    }

    pub(super) fn tenants(&self) -> Vec<Tenant> {
        self.state().tenants.values().cloned().collect()
    }

    pub(super) fn rotate(&self, tenant: &str) -> String {
        let key = Arc::new(SigningKey::rsa());
        let kid = key.kid().to_owned();
        self.change(tenant, |tenant| {
            tenant.published.push(Published::Own(Arc::clone(&key)));
            tenant.keys.push(key);
        });
        kid
    }

    #[expect(clippy::expect_used, reason = "add_tenant gives two keys and none is ever removed")]
    pub(super) fn signing_key(&self, tenant: &str) -> Arc<SigningKey> {
        let key = self.change(tenant, |tenant| tenant.keys.last().cloned());
        key.expect("a tenant has keys")
    }

    pub(super) fn key(&self, tenant: &str, kid: &str) -> Option<Arc<SigningKey>> {
        let has_kid = |key: &&Arc<SigningKey>| key.kid() == kid;
        self.change(tenant, |tenant| tenant.keys.iter().find(has_kid).cloned())
    }

    pub(super) fn kids(&self, tenant: &str) -> Vec<String> {
        self.change(tenant, |tenant| tenant.keys.iter().map(|key| key.kid().to_owned()).collect())
    }

    pub(super) fn publish(&self, tenant: &str, jwk: Value) {
        self.change(tenant, |tenant| tenant.published.push(Published::Foreign(jwk)));
    }

    pub(super) fn withdraw(&self, tenant: &str, kid: &str) {
        self.change(tenant, |tenant| {
            tenant.published.retain(|key| match key {
                Published::Own(key) => key.kid() != kid,
                Published::Foreign(jwk) => jwk.get("kid").and_then(Value::as_str) != Some(kid),
            });
        });
    }

    pub(super) fn replace_keys_document(&self, tenant: &str, body: Option<Bytes>) {
        self.change(tenant, |tenant| tenant.keys_document = body);
    }

    fn change<T>(&self, tenant: &str, how: impl FnOnce(&mut Tenant) -> T) -> T {
        self.add_tenant(tenant);
        let id = tenant.to_ascii_lowercase();
        how(self.state().tenants.entry(id).or_default())
    }
}

/// Identities, resources, knobs.
impl Directory {
    pub(super) fn register(&self, identity: Identity) {
        self.add_tenant(&identity.tenant);
        let id = identity.client_id.clone();
        self.state().identities.insert(id, identity);
    }

    pub(super) fn identity(&self, tenant: &str, client_id: &str) -> Option<Identity> {
        let id = client_id.to_ascii_lowercase();
        let identity = self.state().identities.get(&id).cloned()?;
        identity.tenant.eq_ignore_ascii_case(tenant).then_some(identity)
    }

    pub(super) fn identity_of_principal(&self, tenant: &str, object: &str) -> Option<Identity> {
        let state = self.state();
        let is_it = |identity: &&Identity| identity.object_id == object && identity.tenant.eq_ignore_ascii_case(tenant);
        state.identities.values().find(is_it).cloned()
    }

    pub(super) fn trust(
        &self,
        client_id: &str,
        credential: FederatedCredential,
    ) -> Result<(), FederatedCredentialError> {
        let mut state = self.state();
        let visible_from = self.clock.now() + state.propagation;
        let id = client_id.to_ascii_lowercase();
        let identity = state.identities.get_mut(&id);
        let identity = identity.ok_or(FederatedCredentialError::UnknownIdentity)?;
        identity.add(Trusted { credential, visible_from })
    }

    pub(super) fn distrust(&self, client_id: &str, issuer: &str, subject: &str) {
        let id = client_id.to_ascii_lowercase();
        if let Some(identity) = self.state().identities.get_mut(&id) {
            identity
                .credentials
                .retain(|Trusted { credential, .. }| credential.issuer != issuer || credential.subject != subject);
        }
    }

    pub(super) fn register_resource(&self, resource: Resource) {
        self.state().resources.push(resource);
    }

    /// The resource that this identifier names; a slash at its end does not count.
    pub(super) fn resource(&self, identifier: &str) -> Option<Resource> {
        let identifier = identifier.trim_end_matches('/');
        let state = self.state();
        let is_it = |resource: &&Resource| resource.identifiers.iter().any(|id| id == identifier);
        // The latest registration wins.
        state.resources.iter().rev().find(is_it).cloned()
    }

    pub(super) fn set_default_audience(&self, client_id: &str) {
        let mut state = self.state();
        client_id.clone_into(&mut state.default_audience);
        state.resources.push(Resource {
            identifiers: vec![client_id.to_owned(), format!("api://{client_id}")],
            client_id: client_id.to_owned(),
            version: TokenVersion::V2,
        });
    }

    pub(super) fn default_audience(&self) -> String {
        self.state().default_audience.clone()
    }

    pub(super) fn require_interaction(&self, user: &str) {
        self.state().interaction_required.insert(user.to_owned());
    }

    pub(super) fn requires_interaction(&self, user: &str) -> bool {
        self.state().interaction_required.contains(user)
    }

    pub(super) fn propagate_after(&self, delay: Duration) {
        self.state().propagation = delay;
    }
}

/// The client id of the broker's app registration, unless set.
const DEFAULT_AUDIENCE: &str = "22222222-2222-2222-2222-222222222222";

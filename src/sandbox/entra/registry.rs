//! What is registered in a tenant: identities, their federated credentials, resources.

use std::time::SystemTime;

/// An app registration or a user-assigned managed identity, with its service principal.
#[derive(Clone)]
pub struct Identity {
    pub(super) tenant: String,
    pub(super) client_id: String,
    pub(super) object_id: String,
    pub(super) kind: IdentityKind,
    pub(super) secret: Option<String>,
    pub(super) roles: Vec<String>,
    pub(super) groups: Vec<String>,
    pub(super) is_public: bool,
    pub(super) may_call: Vec<String>,
    pub(super) credentials: Vec<Trusted>,
}

/// What decides how long tokens live: 24 h for a managed identity, 60 to 90 minutes at random for an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityKind {
    /// An app registration; it may have a secret.
    App,
    /// A user-assigned managed identity; it has federated credentials only.
    ManagedIdentity,
}

/// A credential and when the token endpoint starts to see it.
#[derive(Clone)]
pub(super) struct Trusted {
    pub(super) credential: FederatedCredential,
    pub(super) visible_from: SystemTime,
}

impl Identity {
    /// An app registration: `tenant`, `client_id` and the `object_id` of its service principal are GUIDs.
    pub fn app(tenant: &str, client_id: &str, object_id: &str) -> Self {
        Self {
            tenant: tenant.to_ascii_lowercase(),
            client_id: client_id.to_ascii_lowercase(),
            object_id: object_id.to_owned(),
            kind: IdentityKind::App,
            secret: None,
            roles: Vec::new(),
            groups: Vec::new(),
            is_public: false,
            may_call: Vec::new(),
            credentials: Vec::new(),
        }
    }

    /// A user-assigned managed identity; `object_id` is its principal id.
    pub fn managed_identity(tenant: &str, client_id: &str, object_id: &str) -> Self {
        Self { kind: IdentityKind::ManagedIdentity, ..Self::app(tenant, client_id, object_id) }
    }

    /// A client secret. A managed identity has none, so it has no effect there.
    #[must_use]
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        if self.kind == IdentityKind::App {
            self.secret = Some(secret.into());
        }
        self
    }

    /// Allows public client flows: people sign in to it without a secret of its own.
    #[must_use]
    pub fn public_client(mut self) -> Self {
        self.is_public = true;
        self
    }

    /// People have consented that it calls this resource (client id) for them.
    #[must_use]
    pub fn may_call(mut self, resource: impl Into<String>) -> Self {
        self.may_call.push(resource.into());
        self
    }

    /// The app roles it has on the default audience.
    #[must_use]
    pub fn roles<R: Into<String>>(mut self, roles: impl IntoIterator<Item = R>) -> Self {
        self.roles = roles.into_iter().map(Into::into).collect();
        self
    }

    /// The groups (object ids) it is a member of.
    #[must_use]
    pub fn groups<G: Into<String>>(mut self, groups: impl IntoIterator<Item = G>) -> Self {
        self.groups = groups.into_iter().map(Into::into).collect();
        self
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("kind", &self.kind).field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

/// A federated identity credential: compared byte for byte, with exactly one audience.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederatedCredential {
    /// `iss`, with or without a slash at the end exactly as the assertion has it.
    pub issuer: String,
    /// `sub`, case-sensitive.
    pub subject: String,
    /// The one `aud`.
    pub audience: String,
}

impl FederatedCredential {
    /// With the audience of the global cloud, `api://AzureADTokenExchange`.
    pub fn new(issuer: impl Into<String>, subject: impl Into<String>) -> Self {
        Self { issuer: issuer.into(), subject: subject.into(), audience: TOKEN_EXCHANGE.to_owned() }
    }
}

/// Why Entra does not accept a federated identity credential.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FederatedCredentialError {
    #[error("no identity has this client id")]
    UnknownIdentity,
    #[error("an identity has at most {MAX_CREDENTIALS} federated credentials")]
    TooMany,
    #[error("issuer and subject must be unique within an identity")]
    Duplicate,
    #[error("issuer, subject and audience have 1 to {MAX_LENGTH} characters each")]
    Length,
    #[error("whitespace around the issuer")]
    Whitespace,
}

impl Identity {
    pub(super) fn add(&mut self, new: Trusted) -> Result<(), FederatedCredentialError> {
        let FederatedCredential { issuer, subject, audience } = &new.credential;
        let is_length = |text: &String| (1..=MAX_LENGTH).contains(&text.chars().count());
        if ![issuer, subject, audience].into_iter().all(is_length) {
            return Err(FederatedCredentialError::Length);
        }
        if issuer.trim() != issuer {
            return Err(FederatedCredentialError::Whitespace);
        }
        let is_same = |old: &Trusted| old.credential.issuer == *issuer && old.credential.subject == *subject;
        if self.credentials.iter().any(is_same) {
            return Err(FederatedCredentialError::Duplicate);
        }
        if self.credentials.len() == MAX_CREDENTIALS {
            return Err(FederatedCredentialError::TooMany);
        }
        self.credentials.push(new);
        Ok(())
    }
}

/// An API that tokens can be asked for.
#[derive(Clone, Debug)]
pub struct Resource {
    /// What may stand before `/.default` in a scope, without a slash at the end.
    pub identifiers: Vec<String>,
    /// `aud` in version 2 tokens. In version 1 it is the identifier as the scope had it.
    pub client_id: String,
    /// The resource decides the version of its tokens (`accessTokenAcceptedVersion`), not the client.
    pub version: TokenVersion,
}

/// The two claim sets of access tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenVersion {
    /// `ver` `1.0`, issuer `https://sts.windows.net/{tid}/`.
    V1,
    /// `ver` `2.0`, issuer `{authority}/{tid}/v2.0`.
    V2,
}

/// Microsoft's own resources that the broker's targets name. Their tokens are version 1.
pub(super) fn well_known_resources() -> Vec<Resource> {
    let first_party = [
        ("https://management.azure.com", "797f4846-ba00-4fd7-ba43-dac1f8f63013"),
        ("https://management.core.windows.net", "797f4846-ba00-4fd7-ba43-dac1f8f63013"),
        ("https://storage.azure.com", "e406a681-f3d4-42a8-90b6-c2b029497af1"),
        ("https://vault.azure.net", "cfa8b339-82a2-471a-a3c9-0fc0be7a4093"),
        ("https://ml.azure.com", "18a66f5f-dbdf-4c17-9dd7-1634712a9cbe"),
        ("https://graph.microsoft.com", "00000003-0000-0000-c000-000000000000"),
        ("https://containerregistry.azure.net", "a6943a7f-5ba0-4a34-bf91-ab439efdda3f"),
        // The server application of AKS clusters, and Azure DevOps: known by their client IDs.
        ("6dae42f8-4368-4678-94ff-3960e28e3630", "6dae42f8-4368-4678-94ff-3960e28e3630"),
        ("499b84ac-1321-427f-aa17-267ca6975798", "499b84ac-1321-427f-aa17-267ca6975798"),
        ("https://cognitiveservices.azure.com", "7d312290-28c8-473c-a0ed-8e53749b6d6d"),
    ];
    let mut resources: Vec<Resource> = first_party
        .into_iter()
        .map(|(identifier, client_id)| Resource {
            identifiers: vec![identifier.to_owned(), client_id.to_owned()],
            client_id: client_id.to_owned(),
            version: TokenVersion::V1,
        })
        .collect();
    // Seen in a thread: a token for this resource is version 2 and its `aud` is this GUID.
    resources.push(Resource {
        identifiers: vec![TOKEN_EXCHANGE.to_owned(), TOKEN_EXCHANGE_ID.to_owned()],
        client_id: TOKEN_EXCHANGE_ID.to_owned(),
        version: TokenVersion::V2,
    });
    resources
}

pub(super) const TOKEN_EXCHANGE: &str = "api://AzureADTokenExchange";
pub(super) const TOKEN_EXCHANGE_ID: &str = "fb60f99c-7a34-4190-8149-302f77469936";

const MAX_CREDENTIALS: usize = 20;
const MAX_LENGTH: usize = 600;

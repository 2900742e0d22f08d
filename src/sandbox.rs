//! The clouds on loopback: stand-ins for Entra, Google and Azure managed identity that refuse what the real ones refuse.
//!
//! `carnet sandbox` runs them for people, the integration tests run the same ones. Each stand-in listens on 127.0.0.1,
//! stops when its handle is dropped, reads the time from the clock it is given, keeps the requests it saw in [`Calls`]
//! and misbehaves on demand through [`Faults`]. Rules and texts come from the vendors' documentation and from public
//! threads; where the real cloud's behaviour is not known, the stricter reading is taken.
//!
//! ```text
//! Entra            tenants with keys, discovery documents, a token builder, the token endpoint (secret, FIC, OBO, people)
//! Google           workload identity pool providers, STS, introspection, IAM Credentials, a bucket's objects
//! ManagedIdentity  IMDS and App Service endpoints; its tokens are Entra's
//! AzureStorage     a storage account: the blobs of a container, for Entra's tokens
//! OidcIssuer       any other issuer (a Kubernetes cluster, say): discovery, keys, signed tokens
//! ```

mod locked;
mod calls;
mod faults;
mod server;
mod keys;
mod wire;
mod issuer_keys;
mod oidc_issuer;
mod entra;
mod google;
mod azure;
mod azure_storage;
#[cfg(test)]
mod test_client;

pub use azure::{AssignedIdentity, ManagedIdentity};
pub use azure_storage::AzureStorage;
pub use calls::{Call, Calls};
pub use entra::{
    Entra, EntraToken, FederatedCredential, FederatedCredentialError, Identity, IdentityKind, Person, Resource,
    Throttle, TokenVersion,
};
pub use faults::{Fault, Faults};
pub use google::{ExpiresIn, Google, PoolProvider, ProviderError, TokenInfo, TokenKind};
pub use keys::SigningKey;
pub use oidc_issuer::OidcIssuer;

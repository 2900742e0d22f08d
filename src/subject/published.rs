//! What a tenant publishes, looked at once and kept nowhere: for those who look after the broker.

use uuid::Uuid;

use super::FetchError;
use super::jwks::{EntraMetadata, KeySource as _, Version};
use crate::http::{Client, Endpoint};

/// The metadata of one version of a tenant's tokens.
#[derive(Debug)]
pub struct Published {
    /// `v1.0` or `v2.0`
    pub version: &'static str,
    /// The discovery document's issuer and how many keys can verify a signature.
    pub found: Result<(String, usize), FetchError>,
}

/// Fetches discovery and keys of both versions.
pub async fn published(http: &Client, authority: &Endpoint, tenant: Uuid) -> [Published; 2] {
    let source = EntraMetadata { http: http.clone(), authority: authority.clone() };
    let of = async |version, name| {
        let found = source.fetch(tenant, version).await.map(|set| (set.issuer, set.keys.len()));
        Published { version: name, found }
    };
    let (v1, v2) = tokio::join!(of(Version::V1, "v1.0"), of(Version::V2, "v2.0"));
    [v1, v2]
}

//! The endpoints that give a machine the tokens of its managed identity: how they are asked, and what they answer.

use std::time::SystemTime;

use http::{HeaderName, StatusCode};
use serde::Deserialize;

use crate::answer::{self, Verdict, by_form};
use crate::clock::from_unix_seconds;
use crate::http::{Endpoint, HttpError, Request, Response};
use crate::secret::Secret;

/// Where the machine's identity is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Identity<'a> {
    /// `/metadata/identity/oauth2/token` below this address (how-to-use-vm-token).
    Imds(&'a Endpoint),
    /// `IDENTITY_ENDPOINT` with `IDENTITY_HEADER` (overview-managed-identity of App Service).
    AppService { endpoint: &'a Endpoint, header: &'a Secret },
    /// `MSI_ENDPOINT` with `MSI_SECRET`, on Azure Machine Learning's computes.
    MachineLearning { endpoint: &'a Endpoint, secret: &'a Secret },
}

/// For one resource, as the identity with this client id.
///
/// # Errors
/// The endpoint's secret cannot stand in a header.
pub fn request(identity: Identity<'_>, resource: &str, client_id: Option<&str>) -> Result<Request, HttpError> {
    let (base, version, client, name, value) = match identity {
        Identity::Imds(endpoint) => (endpoint.join(IMDS_PATH), IMDS_VERSION, "client_id", METADATA, "true"),
        Identity::AppService { endpoint, header } => {
            (endpoint.as_str().to_owned(), "2019-08-01", "client_id", IDENTITY_HEADER, header.expose())
        }
        Identity::MachineLearning { endpoint, secret } => {
            (endpoint.as_str().to_owned(), "2017-09-01", "clientid", SECRET, secret.expose())
        }
    };
    let query = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs([("api-version", version), ("resource", resource)])
        .extend_pairs(client_id.map(|id| (client, id)))
        .finish();
    Request::get(format!("{base}?{query}")).header(name, value)
}

/// Answered with 400 by the metadata service alone, at once, because the `Metadata` header is missing.
pub fn probe(endpoint: &Endpoint) -> Request {
    Request::get(format!("{}?api-version={IMDS_VERSION}", endpoint.join(IMDS_PATH)))
}

/// All endpoints' success.
#[derive(Debug, Deserialize)]
pub struct ManagedIdentityAnswer {
    #[serde(deserialize_with = "answer::token")]
    pub access_token: Secret,
    #[serde(rename = "token_type", deserialize_with = "answer::bearer")]
    _bearer: (),
    #[serde(deserialize_with = "answer::seconds")]
    expires_on: u64,
}

impl ManagedIdentityAnswer {
    /// `None` where the platform cannot represent it.
    pub fn expires_at(&self) -> Option<SystemTime> {
        from_unix_seconds(self.expires_on)
    }
}

/// Microsoft (how-to-use-vm-token): 404, 410, 429 and 5xx are retried.
pub fn judge(response: &Response) -> Verdict {
    match response.status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Verdict::Transient("it is being updated".to_owned()),
        _ => by_form(response),
    }
}

const IMDS_PATH: &str = "metadata/identity/oauth2/token";
const IMDS_VERSION: &str = "2018-02-01";
const METADATA: HeaderName = HeaderName::from_static("metadata");
const IDENTITY_HEADER: HeaderName = HeaderName::from_static("x-identity-header");
const SECRET: HeaderName = HeaderName::from_static("secret");

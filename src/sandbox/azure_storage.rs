//! A storage account: lists a container's blobs for whoever holds an Entra token that is meant for it and a grant.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use crate::sandbox::calls::Calls;
use crate::sandbox::entra::{Directory, Entra, InvalidToken};
use crate::sandbox::faults::Faults;
use crate::sandbox::locked::locked;
use crate::sandbox::server::{Bound, Server};
use crate::sandbox::wire::{random_guid, timestamp};

/// A running storage account.
pub struct AzureStorage {
    account: Arc<Account>,
    server: Server,
}

impl AzureStorage {
    /// Starts on a free port of 127.0.0.1; it takes this Entra's tokens.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub async fn start(entra: &Entra, account: &str) -> io::Result<Self> {
        let bound = Bound::to(0).await?;
        let account =
            Arc::new(Account { directory: entra.directory(), name: account.to_owned(), containers: Mutex::default() });
        let routes = Router::new().route("/{account}/{container}", get(list)).with_state(Arc::clone(&account));
        let server = bound.serve(routes);
        Ok(Self { account, server })
    }

    /// `http://127.0.0.1:PORT/ACCOUNT`: what stands for `https://ACCOUNT.blob.core.windows.net`.
    pub fn endpoint(&self) -> String {
        format!("{}/{}", self.server.url, self.account.name)
    }

    /// Puts a blob into a container; a container exists from its first blob or grant on.
    pub fn add_blob(&self, container: &str, blob: &str) {
        let mut containers = locked(&self.account.containers);
        containers.entry(container.to_owned()).or_default().blobs.insert(blob.to_owned());
    }

    /// Assigns the role Storage Blob Data Reader on the container to a principal, by its object id.
    pub fn let_read(&self, container: &str, object_id: &str) {
        let mut containers = locked(&self.account.containers);
        containers.entry(container.to_owned()).or_default().readers.insert(object_id.to_owned());
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

impl fmt::Debug for AzureStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AzureStorage").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}

struct Account {
    directory: Arc<Directory>,
    name: String,
    containers: Mutex<BTreeMap<String, Container>>,
}

#[derive(Clone, Default)]
struct Container {
    blobs: BTreeSet<String>,
    readers: BTreeSet<String>,
}

/// Without pages: all blobs are on the first.
#[derive(Deserialize)]
struct Listing {
    restype: Option<String>,
    comp: Option<String>,
    #[serde(default)]
    prefix: String,
}

async fn list(
    State(account): State<Arc<Account>>,
    Path((name, container)): Path<(String, String)>,
    Query(listing): Query<Listing>,
    headers: HeaderMap,
) -> Response {
    let answer = account.blobs(&name, &container, &listing, &headers).map(IntoResponse::into_response);
    let mut answer = answer.unwrap_or_else(|refusal| refusal.into_response(&account));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    if let Ok(id) = HeaderValue::from_str(&random_guid()) {
        headers.insert("x-ms-request-id", id);
    }
    answer
}

impl Account {
    fn blobs(&self, account: &str, container: &str, listing: &Listing, headers: &HeaderMap) -> Result<String, Refusal> {
        let caller = self.caller(headers)?;
        let found = locked(&self.containers).get(container).cloned();
        let (Some(found), true) = (found, account == self.name) else {
            return Err(Refusal::of(
                StatusCode::NOT_FOUND,
                "ContainerNotFound",
                "The specified container does not exist.",
            ));
        };
        if !found.readers.contains(&caller) {
            let text = "This request is not authorized to perform this operation using this permission.";
            return Err(Refusal::of(StatusCode::FORBIDDEN, "AuthorizationPermissionMismatch", text));
        }
        if (listing.restype.as_deref(), listing.comp.as_deref()) != (Some("container"), Some("list")) {
            let text = "Value for one of the query parameters specified in the request URI is invalid.";
            return Err(Refusal::of(StatusCode::BAD_REQUEST, "InvalidQueryParameterValue", text));
        }
        let modified = timestamp(self.directory.now(), "%a, %d %b %Y %H:%M:%S GMT");
        let blobs = found.blobs.iter().filter(|blob| blob.starts_with(&listing.prefix));
        let mut text = format!("{XML}<EnumerationResults ContainerName=\"{}\"><Blobs>", escaped(container));
        for blob in blobs {
            let _infallible = write!(
                text,
                "<Blob><Name>{}</Name><Properties><Last-Modified>{modified}</Last-Modified><Etag>0x1</Etag>\
                 <Content-Length>0</Content-Length><Content-Type>application/octet-stream</Content-Type>\
                 <BlobType>BlockBlob</BlobType></Properties></Blob>",
                escaped(blob)
            );
        }
        text.push_str("</Blobs><NextMarker /></EnumerationResults>");
        Ok(text)
    }

    /// The object id of whoever sent the request.
    fn caller(&self, headers: &HeaderMap) -> Result<String, Refusal> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let Some(authorization) = text(AUTHORIZATION.as_str()) else {
            return Err(Refusal::of(
                StatusCode::UNAUTHORIZED,
                "NoAuthenticationInformation",
                "Server failed to authenticate the request. Please refer to the information in the www-authenticate \
                 header.",
            ));
        };
        // Entra's tokens are taken from this version of the protocol on; dates compare as text.
        if text("x-ms-version").is_none_or(|version| version < FIRST_VERSION) {
            let text = "The version given by x-ms-version does not support authorization with Microsoft Entra ID.";
            return Err(Refusal::of(StatusCode::BAD_REQUEST, "InvalidHeaderValue", text));
        }
        let Some(token) = authorization.strip_prefix("Bearer ") else {
            return Err(Refusal::invalid_token("the stand-in takes Bearer tokens only."));
        };
        let own = format!("https://{}.blob.core.windows.net", self.name);
        let claims = self.directory.access_token(token, &[RESOURCE, &own]).map_err(|why| {
            Refusal::invalid_token(match why {
                InvalidToken::Malformed => "The token is malformed.",
                InvalidToken::Issuer => "Issuer validation failed. Issuer did not match.",
                InvalidToken::Signature => "Signature validation failed. The key of the signature was not found.",
                InvalidToken::Lifetime => "Lifetime validation failed. The token is expired.",
                InvalidToken::Audience => "Audience validation failed. Audience did not match.",
            })
        })?;
        Ok(claims.get("oid").and_then(|oid| oid.as_str()).unwrap_or_default().to_owned())
    }
}

struct Refusal {
    status: StatusCode,
    code: &'static str,
    text: &'static str,
    detail: Option<&'static str>,
}

impl Refusal {
    fn of(status: StatusCode, code: &'static str, text: &'static str) -> Self {
        Self { status, code, text, detail: None }
    }

    fn invalid_token(detail: &'static str) -> Self {
        let text = "Server failed to authenticate the request. Please refer to the information in the www-authenticate \
                    header.";
        Self { detail: Some(detail), ..Self::of(StatusCode::UNAUTHORIZED, "InvalidAuthenticationInfo", text) }
    }

    fn into_response(self, account: &Account) -> Response {
        let detail = self.detail.map(|text| format!("<AuthenticationErrorDetail>{text}</AuthenticationErrorDetail>"));
        let body = format!(
            "{XML}<Error><Code>{}</Code><Message>{}</Message>{}</Error>",
            self.code,
            self.text,
            detail.unwrap_or_default()
        );
        let mut answer = (self.status, [("x-ms-error-code", self.code)], body).into_response();
        // Where a client without a token may get one.
        let challenge = format!(
            "Bearer authorization_uri={}/common/oauth2/authorize resource_id={RESOURCE}",
            account.directory.authority()
        );
        if let (StatusCode::UNAUTHORIZED, Ok(challenge)) = (self.status, HeaderValue::from_str(&challenge)) {
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        answer
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const XML: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?>";
const RESOURCE: &str = "https://storage.azure.com";
const FIRST_VERSION: &str = "2017-11-09";

#[cfg(test)]
mod tests;

//! Answers both managed identity protocols: picks the identity, takes its token from the cache or from Entra.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::AssignedIdentity;
use crate::clock::unix_seconds;
use crate::sandbox::calls::fields;
use crate::sandbox::entra::{Directory, EntraToken};
use crate::sandbox::locked::locked;
use crate::sandbox::wire::{random_guid, random_text};

pub(super) struct Host {
    directory: Arc<Directory>,
    tenant: String,
    identity_header: String,
    identities: Mutex<Vec<AssignedIdentity>>,
    /// By client id and resource; bounded by what tests ask for.
    cache: Mutex<BTreeMap<(String, String), Cached>>,
}

#[derive(Clone)]
struct Cached {
    token: String,
    fetched_at: SystemTime,
    expires_at: SystemTime,
}

/// Clients write the IMDS path with a slash at the end (msal-node) or two at the start (msal4j).
pub(super) async fn dispatch(State(host): State<Arc<Host>>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let segments: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let path = format!("/{}", segments.join("/").to_ascii_lowercase());
    let query = Query(fields(uri.query().unwrap_or_default().as_bytes()));
    match (path.as_str(), method) {
        (IMDS | APP_SERVICE | MACHINE_LEARNING, method) if method != Method::GET => {
            StatusCode::METHOD_NOT_ALLOWED.into_response()
        }
        (IMDS, _) => host.imds(&headers, &query).unwrap_or_else(Refusal::into_imds),
        (APP_SERVICE, _) => {
            let answer = host.app_service(&headers, &query);
            answer.unwrap_or_else(Refusal::into_app_service)
        }
        (MACHINE_LEARNING, _) => {
            let answer = host.machine_learning(&headers, &query);
            answer.unwrap_or_else(Refusal::into_app_service)
        }
        // MSAL.NET takes a 400 at its newer paths for "available": 404, at once.
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

struct Query(Vec<(String, String)>);

impl Query {
    fn text(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// A refusal before it is known how it is written.
struct Refusal {
    status: StatusCode,
    error: &'static str,
    text: String,
}

impl Refusal {
    fn bad(error: &'static str, text: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error, text: text.into() }
    }

    fn into_imds(self) -> Response {
        let body = json!({"error": self.error, "error_description": self.text});
        (self.status, Json(body)).into_response()
    }

    fn into_app_service(self) -> Response {
        let status = self.status.as_u16();
        let correlation = random_guid();
        let body = json!({"statusCode": status, "message": self.text, "correlationId": correlation});
        (self.status, Json(body)).into_response()
    }
}

impl Host {
    pub(super) fn new(directory: Arc<Directory>, tenant: &str) -> Self {
        Self {
            directory,
            tenant: tenant.to_owned(),
            identity_header: random_text(32),
            identities: Mutex::default(),
            cache: Mutex::default(),
        }
    }

    pub(super) fn assign(&self, identity: AssignedIdentity) {
        locked(&self.identities).push(identity);
    }

    pub(super) fn identity_header(&self) -> &str {
        &self.identity_header
    }

    fn imds(&self, headers: &HeaderMap, query: &Query) -> Result<Response, Refusal> {
        let metadata = headers.get("metadata").and_then(|value| value.to_str().ok());
        if !metadata.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            let text = "Required metadata header not specified";
            return Err(Refusal::bad("bad_request_102", text));
        }
        // IMDS refuses what was forwarded, so that nobody can be made to fetch a token for somebody else.
        if headers.contains_key("x-forwarded-for") {
            let text = "X-Forwarded-For must not be set";
            return Err(Refusal::bad("invalid_request", text));
        }
        let is_served = |version: &str| version >= IMDS_VERSION && is_date(version);
        api_version(query, is_served)?;
        let resource = resource(query)?;
        let identity = self.select(query, &["object_id"], &["msi_res_id", "mi_res_id"])?;
        let cached = self.token(&identity, resource, query, |cached, now| {
            // Asked an hour after the last fetch, IMDS fetches anew (seen in a thread).
            now < cached.fetched_at + IMDS_CACHE
        })?;
        let expires_in = unix_seconds(cached.expires_at) - unix_seconds(self.directory.now());
        Ok(json_body(&json!({
            "access_token": cached.token,
            "client_id": identity.client_id,
            "expires_in": expires_in.to_string(),
            "expires_on": unix_seconds(cached.expires_at).to_string(),
            "ext_expires_in": expires_in.to_string(),
            "not_before": unix_seconds(cached.fetched_at).to_string(),
            "refresh_token": "",
            "resource": resource,
            "token_type": "Bearer",
        })))
    }

    /// Azure Machine Learning's, by the protocol that App Service once had.
    fn machine_learning(&self, headers: &HeaderMap, query: &Query) -> Result<Response, Refusal> {
        self.authenticate(headers, "secret")?;
        api_version(query, |version| version == MACHINE_LEARNING_VERSION)?;
        let resource = resource(query)?;
        let client_id = query.text("clientid").map(|id| ("client_id".to_owned(), id.to_owned()));
        let identity = self.select(&Query(client_id.into_iter().collect()), &[], &[])?;
        let cached = self.token(&identity, resource, query, |cached, now| now + LAST_MINUTES < cached.expires_at)?;
        Ok(json_body(&json!({
            "access_token": cached.token,
            "expires_on": unix_seconds(cached.expires_at),
            "resource": resource,
            "token_type": "Bearer",
        })))
    }

    fn authenticate(&self, headers: &HeaderMap, name: &str) -> Result<(), Refusal> {
        let header = headers.get(name).map(HeaderValue::as_bytes);
        if header == Some(self.identity_header.as_bytes()) {
            return Ok(());
        }
        Err(Refusal {
            status: StatusCode::UNAUTHORIZED,
            error: "unauthorized",
            text: format!("The {name} header is missing or wrong."),
        })
    }

    fn app_service(&self, headers: &HeaderMap, query: &Query) -> Result<Response, Refusal> {
        self.authenticate(headers, "x-identity-header")?;
        api_version(query, |version| version == APP_SERVICE_VERSION)?;
        let resource = resource(query)?;
        let identity = self
            .select(query, &["principal_id", "object_id"], &["mi_res_id"])
            .map_err(|refusal| Refusal { text: "Unable to load the proper Managed Identity.".to_owned(), ..refusal })?;
        let cached = self.token(&identity, resource, query, |cached, now| now + LAST_MINUTES < cached.expires_at)?;
        Ok(json_body(&json!({
            "access_token": cached.token,
            "client_id": identity.client_id,
            "expires_on": unix_seconds(cached.expires_at).to_string(),
            "resource": resource,
            "token_type": "Bearer",
        })))
    }

    /// The identity that the query names, by one name at most; without a name there must be exactly one.
    fn select(&self, query: &Query, object: &[&str], resource: &[&str]) -> Result<AssignedIdentity, Refusal> {
        let any = |names: &[&str]| names.iter().find_map(|name| query.text(name));
        let named = [any(&["client_id"]), any(object), any(resource)];
        let identities = locked(&self.identities);
        if named.iter().flatten().count() > 1 {
            let text = "Only one of client_id, object_id and msi_res_id may be given";
            return Err(Refusal::bad("invalid_request", text));
        }
        let is_named = |identity: &&AssignedIdentity| {
            let own = [&identity.client_id, &identity.object_id, &identity.resource_id];
            let mut pairs = named.iter().zip(own);
            pairs.all(|(name, own)| name.is_none_or(|name| name.eq_ignore_ascii_case(own)))
        };
        let mut found = identities.iter().filter(is_named);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.clone()),
            (Some(_), Some(_)) => Err(Refusal::bad(
                "invalid_request",
                "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in \
                 the token request",
            )),
            (None, _) => Err(Refusal::bad("invalid_request", "Identity not found")),
        }
    }

    /// From the cache while `is_fresh` says so; a client that reports its token as bad gets a new one.
    fn token(
        &self,
        identity: &AssignedIdentity,
        resource: &str,
        query: &Query,
        is_fresh: impl Fn(&Cached, SystemTime) -> bool,
    ) -> Result<Cached, Refusal> {
        let now = self.directory.now();
        let key = (identity.client_id.clone(), resource.to_owned());
        let mut cache = locked(&self.cache);
        if let Some(cached) = cache.get(&key)
            && is_fresh(cached, now)
            && query.text("token_sha256_to_refresh").is_none()
        {
            return Ok(cached.clone());
        }
        let directory = Arc::clone(&self.directory);
        let (tenant, object) = (&self.tenant, &identity.object_id);
        let token = EntraToken::for_managed_identity(directory, tenant, object)
            .client(&identity.client_id)
            .claim("xms_mirid", identity.resource_id.clone())
            .lifetime(TOKEN_LIFE)
            .for_resource(resource)
            .ok_or_else(|| {
                Refusal::bad(
                    "invalid_resource",
                    format!(
                        "AADSTS500011: The resource principal named {resource} was not found in the tenant named \
                         {tenant}."
                    ),
                )
            })?;
        let new = Cached { token: token.sign(), fetched_at: now, expires_at: now + TOKEN_LIFE };
        cache.insert(key, new.clone());
        Ok(new)
    }
}

fn api_version(query: &Query, is_served: impl Fn(&str) -> bool) -> Result<(), Refusal> {
    let Some(version) = query.text("api-version") else {
        let text = "api-version was not specified in the request";
        return Err(Refusal::bad("Bad request", text));
    };
    if is_served(version) {
        return Ok(());
    }
    let text = format!("api-version {version} is not supported");
    Err(Refusal::bad("Bad request", text))
}

fn resource(query: &Query) -> Result<&str, Refusal> {
    let missing = || Refusal::bad("invalid_request", "Required query variable 'resource' is missing");
    query.text("resource").ok_or_else(missing)
}

/// `YYYY-MM-DD`.
fn is_date(text: &str) -> bool {
    let is_in_place = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    };
    text.len() == 10 && text.bytes().enumerate().all(is_in_place)
}

fn json_body(body: &Value) -> Response {
    let mut answer = Response::new(Body::from(body.to_string()));
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    answer.headers_mut().insert("content-type", json);
    answer
}

const IMDS: &str = "/metadata/identity/oauth2/token";
pub(super) const APP_SERVICE: &str = "/msi/token";
/// The path on a compute instance: seen in a thread.
pub(super) const MACHINE_LEARNING: &str = "/msi/auth";
const MACHINE_LEARNING_VERSION: &str = "2017-09-01";
const IMDS_VERSION: &str = "2018-02-01";
const APP_SERVICE_VERSION: &str = "2019-08-01";
/// 24 h 5 min: seen in a thread.
const TOKEN_LIFE: Duration = Duration::from_secs(86_700);
const IMDS_CACHE: Duration = Duration::from_secs(3600);
/// App Service renews a cached token in its last minutes; when exactly is not known.
const LAST_MINUTES: Duration = Duration::from_secs(300);

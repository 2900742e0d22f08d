//! Entra's metadata: OpenID configurations, key documents, instance discovery.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::directory::{Directory, Published};
use super::refusal::Refusal;
use super::registry::TokenVersion;
use crate::sandbox::calls::fields;

pub(super) async fn v2(directory: State<Arc<Directory>>, tenant: Path<String>, query: RawQuery) -> Response {
    configuration(directory, tenant, query, TokenVersion::V2)
}

pub(super) async fn v1(directory: State<Arc<Directory>>, tenant: Path<String>, query: RawQuery) -> Response {
    configuration(directory, tenant, query, TokenVersion::V1)
}

fn configuration(
    State(directory): State<Arc<Directory>>,
    Path(tenant): Path<String>,
    RawQuery(query): RawQuery,
    version: TokenVersion,
) -> Response {
    if !is_shared(&tenant) && directory.tenant(&tenant).is_none() {
        let refusal = Refusal::unknown_tenant(&tenant);
        return refusal.into_response(&directory, &HeaderMap::new());
    }
    // Real Entra writes the tenant's id in lower case, and the template where the tenant is not known yet.
    let tenant_in_issuer = if is_shared(&tenant) { "{tenantid}".to_owned() } else { tenant.to_ascii_lowercase() };
    let base = format!("{}/{tenant}", directory.authority());
    let issuer = directory.issuer(&tenant_in_issuer, version);
    // Apps with signing keys of their own ask with their id and get it back in jwks_uri.
    let appid = fields(query.unwrap_or_default().as_bytes())
        .into_iter()
        .find(|(name, _)| name == "appid")
        .map_or_else(String::new, |(_, id)| format!("?appid={id}"));
    let (path, keys) = match version {
        TokenVersion::V1 => ("oauth2", "discovery/keys"),
        TokenVersion::V2 => ("oauth2/v2.0", "discovery/v2.0/keys"),
    };
    Json(json!({
        "token_endpoint": format!("{base}/{path}/token"),
        "token_endpoint_auth_methods_supported":
            ["client_secret_post", "private_key_jwt", "client_secret_basic"],
        "jwks_uri": format!("{base}/{keys}{appid}"),
        "response_modes_supported": ["query", "fragment", "form_post"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "response_types_supported": ["code", "id_token", "code id_token", "id_token token"],
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "issuer": issuer,
        "request_uri_parameter_supported": false,
        "userinfo_endpoint": "https://graph.microsoft.com/oidc/userinfo",
        "authorization_endpoint": format!("{base}/{path}/authorize"),
        "device_authorization_endpoint": format!("{base}/{path}/devicecode"),
        "end_session_endpoint": format!("{base}/{path}/logout"),
        "http_logout_supported": true,
        "frontchannel_logout_supported": true,
        "claims_supported": ["sub", "iss", "aud", "exp", "iat", "acr", "nonce", "name", "tid", "ver"],
        "tenant_region_scope": null,
        "cloud_instance_name": "microsoftonline.com",
        "cloud_graph_host_name": "graph.windows.net",
        "msgraph_host": "graph.microsoft.com",
    }))
    .into_response()
}

pub(super) async fn v2_keys(directory: State<Arc<Directory>>, tenant: Path<String>) -> Response {
    keys(directory, tenant, TokenVersion::V2)
}

pub(super) async fn v1_keys(directory: State<Arc<Directory>>, tenant: Path<String>) -> Response {
    keys(directory, tenant, TokenVersion::V1)
}

fn keys(State(directory): State<Arc<Directory>>, Path(tenant): Path<String>, version: TokenVersion) -> Response {
    if is_shared(&tenant) {
        let tenants = directory.tenants();
        let all = tenants.iter().flat_map(|tenant| &tenant.published);
        let template = directory.issuer("{tenantid}", TokenVersion::V2);
        let keys: Vec<Value> = all.map(|key| jwk(key, &template, version)).collect();
        return Json(json!({"keys": keys})).into_response();
    }
    let Some(found) = directory.tenant(&tenant) else {
        let refusal = Refusal::unknown_tenant(&tenant);
        return refusal.into_response(&directory, &HeaderMap::new());
    };
    if let Some(body) = found.keys_document {
        return ([(CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response();
    }
    let published = found.published.iter().enumerate();
    let keys: Vec<Value> = published
        .map(|(at, key)| {
            // Both forms of `issuer` occur in the real documents.
            let tenant = tenant.to_ascii_lowercase();
            let named = if at % 2 == 0 { "{tenantid}" } else { &tenant };
            jwk(key, &directory.issuer(named, TokenVersion::V2), version)
        })
        .collect();
    Json(json!({"keys": keys})).into_response()
}

/// A key as the documents show it: without `alg`, with `x5t`, and with `issuer` in version 2 only.
fn jwk(key: &Published, issuer: &str, version: TokenVersion) -> Value {
    let key = match key {
        Published::Foreign(jwk) => return jwk.clone(),
        Published::Own(key) => key,
    };
    let mut jwk = key.jwk();
    if let Value::Object(members) = &mut jwk {
        members.remove("alg");
        members.insert("x5t".to_owned(), json!(key.kid()));
        if version == TokenVersion::V2 {
            members.insert("issuer".to_owned(), json!(issuer));
        }
    }
    jwk
}

pub(super) async fn instance(State(directory): State<Arc<Directory>>) -> Json<Value> {
    let authority = directory.authority();
    let host = authority.trim_start_matches("http://");
    Json(json!({
        "tenant_discovery_endpoint":
            format!("{authority}/common/v2.0/.well-known/openid-configuration"),
        "api-version": "1.1",
        "metadata": [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}],
    }))
}

/// The paths that stand for no tenant in particular.
fn is_shared(tenant: &str) -> bool {
    matches!(tenant, "common" | "organizations")
}

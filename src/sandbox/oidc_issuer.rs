//! Any issuer that the clouds may be told to trust (a Kubernetes cluster, say): discovery, keys, signed tokens.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::sandbox::calls::Calls;
use crate::sandbox::faults::Faults;
use crate::sandbox::keys::SigningKey;
use crate::sandbox::locked::locked;
use crate::sandbox::server::{Bound, Server};

/// A running issuer with one RSA and one P-256 key. Its URL is its `iss`.
pub struct OidcIssuer {
    rsa: SigningKey,
    p256: SigningKey,
    published: Arc<Published>,
    server: Server,
}

struct Published {
    url: String,
    keys: Mutex<Vec<Value>>,
}

impl OidcIssuer {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub async fn start() -> io::Result<Self> {
        let bound = Bound::to(0).await?;
        let (rsa, p256) = (SigningKey::rsa(), SigningKey::p256());
        let published = Arc::new(Published { url: bound.url(), keys: Mutex::new(vec![rsa.jwk(), p256.jwk()]) });
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(configuration))
            .route("/keys", get(keys))
            .with_state(Arc::clone(&published));
        Ok(Self { rsa, p256, published, server: bound.serve(routes) })
    }

    /// The `iss` of its tokens, without a slash at the end.
    pub fn issuer(&self) -> &str {
        &self.published.url
    }

    /// An RS256 token with exactly these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.rsa.sign(claims)
    }

    /// An ES256 token with exactly these claims.
    pub fn sign_es256(&self, claims: &Value) -> String {
        self.p256.sign(claims)
    }

    /// The key behind [`sign`](Self::sign).
    pub fn rsa_key(&self) -> &SigningKey {
        &self.rsa
    }

    /// The published key set, in the form that can be uploaded to Google.
    pub fn jwks(&self) -> String {
        json!({"keys": locked(&self.published.keys).clone()}).to_string()
    }

    /// Replaces the published keys.
    pub fn publish(&self, keys: Vec<Value>) {
        *locked(&self.published.keys) = keys;
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

impl fmt::Debug for OidcIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OidcIssuer").field("issuer", &self.published.url).finish_non_exhaustive()
    }
}

async fn configuration(State(published): State<Arc<Published>>) -> Json<Value> {
    let url = &published.url;
    Json(json!({
        "issuer": url,
        "jwks_uri": format!("{url}/keys"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256", "ES256"],
    }))
}

async fn keys(State(published): State<Arc<Published>>) -> Json<Value> {
    Json(json!({"keys": locked(&published.keys).clone()}))
}

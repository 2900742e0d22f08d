//! One Google with a provider that trusts the broker's uploaded key; each test changes one thing.

mod sts;
mod iam_credentials;
mod storage;

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::{Google, PoolProvider};
use crate::clock::ManualClock;
use crate::sandbox::keys::SigningKey;
use crate::sandbox::test_client::{client, send};

const ISSUER: &str = "https://carnet.example.com";
const PROVIDER: &str =
    "//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/carnet";
const PRINCIPAL: &str =
    "principal://iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/subject/job-1";
const POOL_SET: &str =
    "principalSet://iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool";
const ACCOUNT: &str = "trainer@ml-prod.iam.gserviceaccount.com";
const CLOUD: &str = "https://www.googleapis.com/auth/cloud-platform";
/// `ManualClock::start`.
const NOW: u64 = 1_767_225_600;

struct World {
    clock: ManualClock,
    google: Google,
    key: SigningKey,
    http: reqwest::Client,
}

async fn world() -> World {
    let key = SigningKey::rsa();
    let jwks = json!({"keys": [key.jwk()]}).to_string();
    let provider = PoolProvider::new(PROVIDER, ISSUER).keys(jwks);
    world_with(key, provider).await
}

async fn world_with(key: SigningKey, provider: PoolProvider) -> World {
    let clock = ManualClock::start();
    let google = Google::start(Arc::new(clock.clone())).await.unwrap();
    google.register_provider(provider).unwrap();
    let http = client();
    World { clock, google, key, http }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": PROVIDER, "sub": "job-1", "iat": NOW, "exp": NOW + 600})
}

/// The claims of a good assertion, but one.
fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn form(subject_token: &str) -> Vec<(&'static str, String)> {
    [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("audience", PROVIDER),
        ("scope", CLOUD),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("subject_token", subject_token),
        ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec()
}

impl World {
    async fn exchange(&self, form: &[(&str, String)]) -> (StatusCode, Value) {
        let url = format!("{}/v1/token", self.google.sts_endpoint());
        send(self.http.post(url).form(form)).await
    }

    /// Exchanges an assertion with these claims.
    async fn exchange_claims(&self, claims: &Value) -> (StatusCode, Value) {
        self.exchange(&form(&self.key.sign(claims))).await
    }

    /// The error and description for a good request in which one parameter is another.
    async fn refused_with(&self, name: &str, value: &str) -> (String, String) {
        let mut form = form(&self.key.sign(&claims()));
        let parameter = form.iter_mut().find(|(key, _)| *key == name);
        value.clone_into(&mut parameter.unwrap().1);
        refusal(self.exchange(&form).await)
    }

    async fn refused_claims(&self, claims: &Value) -> (String, String) {
        refusal(self.exchange_claims(claims).await)
    }

    async fn federated(&self) -> String {
        let (status, body) = self.exchange_claims(&claims()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body["access_token"].as_str().unwrap().to_owned()
    }

    async fn generate(&self, method: &str, bearer: &str, body: &Value) -> (StatusCode, Value) {
        let path = format!("/v1/projects/-/serviceAccounts/{ACCOUNT}:{method}");
        let url = format!("{}{path}", self.google.iam_credentials_endpoint());
        send(self.http.post(url).bearer_auth(bearer).json(body)).await
    }

    async fn access_token(&self, bearer: &str, lifetime: &str) -> (StatusCode, Value) {
        let body = json!({"scope": [CLOUD], "lifetime": lifetime});
        self.generate("generateAccessToken", bearer, &body).await
    }
}

fn refusal((status, body): (StatusCode, Value)) -> (String, String) {
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    let text = |name: &str| body[name].as_str().unwrap().to_owned();
    (text("error"), text("error_description"))
}

#[track_caller]
fn assert_grant_refused(refusal: &(String, String), text: &str) {
    assert_eq!(refusal.0, "invalid_grant");
    assert!(refusal.1.contains(text), "{}", refusal.1);
}

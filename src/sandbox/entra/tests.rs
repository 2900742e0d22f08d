//! One Entra with an app, a managed identity and an issuer that both trust; each test changes one thing.

mod metadata;
mod tokens;
mod client_secret;
mod federation;
mod on_behalf_of;
mod sign_in;

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::{Entra, FederatedCredential, Identity};
use crate::clock::ManualClock;
use crate::sandbox::keys::UnverifiedJwt;
use crate::sandbox::oidc_issuer::OidcIssuer;
use crate::sandbox::test_client::{client, send};

const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const OTHER: &str = "99999999-9999-9999-9999-999999999999";
const APP: &str = "33333333-3333-3333-3333-333333333333";
const UAMI: &str = "44444444-4444-4444-4444-444444444444";
const OBJECT: &str = "66666666-6666-6666-6666-666666666666";
const USER: &str = "77777777-7777-7777-7777-777777777777";
const SUBJECT: &str = "carnet:azure-ml";
const SCOPE: &str = "https://ml.azure.com/.default";
const EXCHANGE: &str = "api://AzureADTokenExchange";
/// `ManualClock::start`.
const NOW: u64 = 1_767_225_600;

struct World {
    clock: ManualClock,
    entra: Entra,
    issuer: OidcIssuer,
    http: reqwest::Client,
}

/// An app with a secret and a managed identity; both trust the issuer's `SUBJECT`.
async fn world() -> World {
    let clock = ManualClock::start();
    let entra = Entra::start(Arc::new(clock.clone()), [TENANT]).await.unwrap();
    let issuer = OidcIssuer::start().await.unwrap();
    entra.register(Identity::app(TENANT, APP, OBJECT).secret("s3cret").roles(["Jobs.Submit"]));
    entra.register(Identity::managed_identity(TENANT, UAMI, "uami-object"));
    for client_id in [APP, UAMI] {
        let trusted = FederatedCredential::new(issuer.issuer(), SUBJECT);
        entra.trust(client_id, trusted).unwrap();
    }
    let http = client();
    World { clock, entra, issuer, http }
}

impl World {
    fn claims(&self) -> Value {
        json!({
            "iss": self.issuer.issuer(), "sub": SUBJECT, "aud": EXCHANGE,
            "iat": NOW, "nbf": NOW, "exp": NOW + 600, "jti": "1",
        })
    }

    /// The claims of a good assertion, but one.
    fn claims_with(&self, name: &str, value: Value) -> Value {
        let mut claims = self.claims();
        claims[name] = value;
        claims
    }

    async fn document(&self, path: &str) -> (StatusCode, Value) {
        send(self.http.get(format!("{}{path}", self.entra.authority()))).await
    }

    async fn token(&self, form: &[(&str, String)]) -> (StatusCode, Value) {
        let url = format!("{}/{TENANT}/oauth2/v2.0/token", self.entra.authority());
        send(self.http.post(url).form(form)).await
    }

    async fn with_assertion(&self, client_id: &str, assertion: &str) -> (StatusCode, Value) {
        self.token(&assertion_form(client_id, assertion)).await
    }

    /// The AADSTS code for an assertion with these claims.
    async fn refused_claims(&self, claims: &Value) -> u64 {
        code(&self.with_assertion(UAMI, &self.issuer.sign(claims)).await)
    }

    /// The AADSTS code for a good request in which one parameter is another (or missing).
    async fn refused_with(&self, name: &str, value: &str) -> u64 {
        let mut form = secret_form();
        let parameter = form.iter_mut().find(|(key, _)| *key == name);
        value.clone_into(&mut parameter.unwrap().1);
        code(&self.token(&form).await)
    }

    async fn on_behalf_of(&self, user_token: &str) -> (StatusCode, Value) {
        self.token(&[
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer".to_owned()),
            ("client_id", APP.to_owned()),
            ("client_secret", "s3cret".to_owned()),
            ("assertion", user_token.to_owned()),
            ("requested_token_use", "on_behalf_of".to_owned()),
            ("scope", "https://ml.azure.com/user_impersonation openid".to_owned()),
        ])
        .await
    }
}

fn secret_form() -> Vec<(&'static str, String)> {
    [("grant_type", "client_credentials"), ("client_id", APP), ("client_secret", "s3cret"), ("scope", SCOPE)]
        .map(|(name, value)| (name, value.to_owned()))
        .to_vec()
}

fn assertion_form(client_id: &str, assertion: &str) -> Vec<(&'static str, String)> {
    let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    [
        ("grant_type", "client_credentials"),
        ("client_id", client_id),
        ("client_assertion_type", kind),
        ("client_assertion", assertion),
        ("scope", SCOPE),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec()
}

fn code((status, body): &(StatusCode, Value)) -> u64 {
    assert!(status.is_client_error(), "{body}");
    body["error_codes"][0].as_u64().unwrap()
}

fn parse(body: &Value) -> UnverifiedJwt<'_> {
    UnverifiedJwt::parse(body["access_token"].as_str().unwrap()).unwrap()
}

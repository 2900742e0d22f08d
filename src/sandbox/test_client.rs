//! How the stand-ins' own tests talk to them: plain loopback HTTP, answers as JSON.

use http::StatusCode;
use serde_json::Value;

pub(super) fn client() -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    let builder = builder.redirect(reqwest::redirect::Policy::none());
    builder.build().unwrap()
}

/// Status and body; a body that is no JSON reads as null.
pub(super) async fn send(request: reqwest::RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let body = answer.bytes().await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

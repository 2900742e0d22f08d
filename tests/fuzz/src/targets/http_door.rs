//! A request to the HTTP door: its path, its content type, and after an empty line its body. `{token}` stands for a good
//! subject token.

use std::cell::LazyCell;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use carnet::oauth::{self, Http, Metrics, Ready};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;

use crate::broker::{ISSUED, exchange, names_issued};
use crate::world::{ISSUER, TOKEN, assert_silent, block_on, clock, show};

thread_local! {
    static DOOR: LazyCell<Router> = LazyCell::new(|| {
        oauth::router(Http {
            exchange: exchange(),
            issuer: Some(ISSUER.clone()),
            keys_max_age: Duration::from_secs(60),
            ready: Ready::default(),
            metrics: Metrics::default(),
            clock: clock(),
        })
    });
}

pub fn run(data: &[u8]) {
    if names_issued(data) {
        return;
    }
    let text = String::from_utf8_lossy(data);
    let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    let (path, content_type) = head.split_once('\n').unwrap_or((head, ""));
    let with_token = body.contains("{token}");
    let body = body.replace("{token}", &TOKEN);
    let method = if path.starts_with("/v1/") { Method::POST } else { Method::GET };
    let request = Request::builder().method(method).uri(path).header("content-type", content_type);
    let Ok(request) = request.body(Body::from(body)) else { return };
    let door = DOOR.with(|door| (**door).clone());
    let (status, answer) = block_on(async {
        // What was counted against the caller is forgotten.
        tokio::time::sleep(A_WHILE).await;
        let answer = door.oneshot(request).await.expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.into_body().collect().await.expect("a body").to_bytes())
    });
    let answer = String::from_utf8_lossy(&answer);
    show(|| format!("{status}: {answer}"));
    assert_silent(&answer, TOKEN.as_str());
    assert!(!answer.contains(ISSUED) || (with_token && status == 200), "a token for nobody: {answer}");
    assert!([200, 400, 404, 405, 413, 415, 429, 503].contains(&status), "{status}: {answer}");
    if path.starts_with("/v1/token") && status == 400 {
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert!(answer.get("error").is_some_and(Value::is_string), "{answer}");
    }
}

const A_WHILE: Duration = Duration::from_secs(60);

//! The HTTP door: RFC 8693 token endpoint, introspection, discovery, keys, health and metrics.

mod answer;
mod form;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, body};
use futures_util::stream;
use hyper::body::Body as _;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use self::answer::{introspection, issued, refused};
use self::form::Fields;
use crate::clock::Clock;
use crate::exchange::{Caller, Door, Exchange, ExchangeError, Exchanged};
use crate::issuer::Issuer;
use crate::limit::{Crowded, Peer};
use crate::secret::Secret;
use crate::telemetry;

/// What the HTTP listener serves.
#[derive(Debug, Clone)]
pub struct Http {
    pub exchange: Arc<Exchange>,
    /// Absent where the configuration has none: there are no keys and no discovery then.
    pub issuer: Option<Arc<Issuer>>,
    /// How long relying parties may keep the keys, if less than other documents.
    pub keys_max_age: Duration,
    pub ready: Ready,
    pub metrics: Metrics,
    pub clock: Arc<dyn Clock>,
}

/// Whether calls should be sent here: store open, keys loaded, Entra's keys fetched once, not draining.
#[derive(Debug, Clone, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
        metrics::gauge!("carnet_ready").set(if ready { 1.0 } else { 0.0 });
    }

    pub fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Every path. A request has [`DEADLINE`] from its head to its answer, and at most [`BODY_MAX_BYTES`].
pub fn router(http: Http) -> Router {
    Router::new()
        .route("/v1/token", post(token))
        .route("/v1/introspect", post(introspect))
        .route("/.well-known/openid-configuration", get(openid_configuration))
        .route("/.well-known/oauth-authorization-server", get(authorization_server))
        .route("/keys", get(keys))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .layer(from_fn(within_limits))
        .with_state(http)
}

/// The answer to a request for which there is no place.
pub fn busy() -> Response {
    refused(Uuid::now_v7(), &ExchangeError::Overloaded)
}

/// A slow sender must not hold a connection for longer than an exchange takes, and one that says that it will send too much
/// need not.
async fn within_limits(mut request: Request, next: Next) -> Response {
    let declared = usize::try_from(request.body().size_hint().lower());
    if !declared.is_ok_and(|bytes| bytes <= BODY_MAX_BYTES) {
        // Whoever reads it is told at once, as after the last byte that it may have.
        let unread = stream::once(async { Err::<body::Bytes, _>("not read") });
        *request.body_mut() = body::Body::from_stream(unread);
    }
    match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => (StatusCode::REQUEST_TIMEOUT, "the request was not complete in time\n").into_response(),
    }
}

async fn token(
    State(http): State<Http>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    body: Result<body::Bytes, BytesRejection>,
) -> Response {
    let (fields, unreadable) = match read(&headers, body) {
        Some(Ok(fields)) => (fields, None),
        Some(Err(message)) => (Fields::default(), Some(ExchangeError::Request { field: "body".to_owned(), message })),
        None => return busy(),
    };
    let (request, error) = fields.exchange_request(caller(peer, &headers));
    let Exchanged { exchange_id, result } = match unreadable.or(error) {
        None => http.exchange.run(request).await,
        Some(error) => http.exchange.refuse(request, error).await,
    };
    match result {
        Ok(credentials) => issued(exchange_id, credentials),
        Err(error) => refused(exchange_id, &error),
    }
}

/// RFC 7662, for the tokens that this broker handed out. Who holds a token may ask about it: the token is the proof.
///
/// A question is a look into the store: from an address that asks about tokens nobody handed out, it is not taken for ever.
async fn introspect(
    State(http): State<Http>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    body: Result<body::Bytes, BytesRejection>,
) -> Response {
    let peer = peer.map_or_else(|| "".into(), |Extension(peer)| peer);
    let fields = match read(&headers, body) {
        Some(Ok(fields)) => fields,
        Some(Err(message)) => return answer::malformed(&message),
        None => return busy(),
    };
    let Some(token) = fields.text("token") else { return answer::malformed("token is missing") };
    let turn = match http.exchange.limits.question(&peer).await {
        Ok(turn) => turn,
        Err(wait) => {
            metrics::counter!("carnet_limited_total", "limit" => "introspections").increment(1);
            return answer::too_many(wait);
        }
    };
    let token_sha256 = Secret::new(token).sha256();
    // To its end, although the caller may leave: the look is counted all the same.
    let look = tokio::spawn(async move {
        let _turn = turn;
        let found = http.exchange.audit.find_issued(&token_sha256).await;
        if matches!(found, Ok(None)) {
            http.exchange.limits.asked_in_vain(&peer);
        }
        found.map(|found| introspection(found, http.clock.now()))
    });
    match look.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => answer::unavailable(),
    }
}

/// The fields of a body, or what is wrong with it; `None` where there was no room for it.
fn read(headers: &HeaderMap, body: Result<body::Bytes, BytesRejection>) -> Option<Result<Fields, String>> {
    match body {
        Ok(body) => Some(Fields::parse(headers, &body)),
        Err(rejected) if is_crowded(&rejected) => None,
        Err(_too_large) => Some(Err(format!("the body is larger than {BODY_MAX_BYTES} bytes, or was cut off"))),
    }
}

/// Whether a body was not read for want of room.
fn is_crowded(rejected: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(rejected), |error| error.source()).any(|error| error.is::<Crowded>())
}

fn caller(peer: Option<Extension<Peer>>, headers: &HeaderMap) -> Caller {
    let peer = peer.map_or_else(|| "".into(), |Extension(peer)| peer);
    let user_agent =
        headers.get(axum::http::header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    Caller::new(Door::Http, peer, user_agent)
}

async fn openid_configuration(State(http): State<Http>) -> Response {
    document(http.issuer.map(|issuer| issuer.discovery()), DOCUMENT_MAX_AGE)
}

async fn authorization_server(State(http): State<Http>) -> Response {
    document(http.issuer.map(|issuer| issuer.authorization_server()), DOCUMENT_MAX_AGE)
}

async fn keys(State(http): State<Http>) -> Response {
    document(http.issuer.map(|issuer| issuer.jwks()), http.keys_max_age.min(DOCUMENT_MAX_AGE))
}

fn document(document: Option<Value>, max_age: Duration) -> Response {
    let caching = format!("public, max-age={}", max_age.as_secs());
    match document {
        Some(document) => ([(CACHE_CONTROL, caching)], Json(document)).into_response(),
        None => (StatusCode::NOT_FOUND, Json(json!({"error": "the configuration has no `issuer`"}))).into_response(),
    }
}

async fn readyz(State(http): State<Http>) -> Response {
    if http.ready.is() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting, waiting for Entra's keys, or draining\n")
            .into_response()
    }
}

async fn metrics(State(http): State<Http>) -> ([(HeaderName, &'static str); 1], body::Bytes) {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], http.metrics.text())
}

/// The metrics, made at most a few times a second and shared by all who ask: anybody may, and they are large.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<Option<(Instant, body::Bytes)>>>);

impl Metrics {
    fn text(&self) -> body::Bytes {
        let mut rendered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*rendered {
            Some((at, text)) if at.elapsed() < RENDERED_FOR => text.clone(),
            Some(_) | None => {
                let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
                metrics::gauge!("carnet_tasks").set(tasks as f64);
                let text = body::Bytes::from(telemetry::metrics().render());
                *rendered = Some((Instant::now(), text.clone()));
                text
            }
        }
    }
}

/// A subject token has at most 64 KiB, and percent-encoding may add to it.
const BODY_MAX_BYTES: usize = 256 * 1024;

/// Scrapers ask every few seconds.
const RENDERED_FOR: Duration = Duration::from_millis(200);

const DEADLINE: Duration = Duration::from_secs(30);

/// Short, so that a key that had to be withdrawn at once is soon forgotten.
const DOCUMENT_MAX_AGE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::routing::MethodRouter;
    use tower::ServiceExt as _;

    use super::*;

    /// How a handler that reads the whole body answers, and after what time.
    async fn answered(body: body::Body) -> (StatusCode, Duration) {
        let reads = async |body: Result<body::Bytes, BytesRejection>| match body {
            Ok(_body) => StatusCode::OK,
            Err(_rejected) => StatusCode::BAD_REQUEST,
        };
        let limited: MethodRouter<(), Infallible> = post(reads).layer(from_fn(within_limits));
        let began = Instant::now();
        let request = http::Request::post("/").body(body).expect("a request");
        let answer = limited.oneshot(request).await.expect("an answer");
        (answer.status(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_end_has_its_answer_after_half_a_minute_and_one_that_is_too_large_at_once() {
        let endless = body::Body::from_stream(stream::pending::<Result<body::Bytes, Infallible>>());
        assert_eq!(answered(endless).await, (StatusCode::REQUEST_TIMEOUT, Duration::from_secs(30)));
        assert_eq!(answered(vec![0; BODY_MAX_BYTES].into()).await, (StatusCode::OK, Duration::ZERO));
        assert_eq!(answered(vec![0; BODY_MAX_BYTES + 1].into()).await, (StatusCode::BAD_REQUEST, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_for_the_metrics_within_a_fifth_of_a_second_gets_the_same_text() {
        let metrics = Metrics::default();
        let first = metrics.text();
        for _ in 0..1000 {
            assert_eq!(metrics.text().as_ptr(), first.as_ptr());
        }
        tokio::time::advance(RENDERED_FOR).await;
        assert_ne!(metrics.text().as_ptr(), first.as_ptr());
    }
}

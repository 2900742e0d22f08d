//! The loopback listener under every stand-in: records each call, applies its fault, stops when dropped.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderValue, StatusCode};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::sandbox::calls::{Call, Calls};
use crate::sandbox::faults::{Fault, Faults};

/// A bound port: known before the routes are built, because the documents served name it.
pub(super) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    /// Binds 127.0.0.1; port 0 lets the system choose.
    pub(super) async fn to(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn serve(self, router: Router) -> Server {
        let (calls, faults) = (Calls::default(), Faults::default());
        let observed = (calls.clone(), faults.clone());
        let router = router.layer(from_fn_with_state(observed, observe));
        Server { url: self.url(), calls, faults, task: tokio::spawn(accept(self.listener, router)) }
    }
}

/// A running stand-in's listener; dropping it closes the port and every connection.
pub(super) struct Server {
    pub(super) url: String,
    pub(super) calls: Calls,
    pub(super) faults: Faults,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, router: Router) {
    // Dropped with this task, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { connections.spawn(connection(stream, router.clone())); }
                // Out of file descriptors, most likely: wait for some to be returned.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// How a fault ends the connection that it came by.
#[derive(Clone, Default)]
struct Cut {
    ended: CancellationToken,
    reset: CancellationToken,
}

async fn connection(stream: TcpStream, router: Router) {
    let cut = Cut::default();
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(cut.clone());
        let answer = router.clone().oneshot(request);
        async move { answer.await.map_err(|never: Infallible| never) }
    });
    let mut serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let reset = tokio::select! {
        // A client that hangs up is no error of ours.
        _ = &mut serving => false,
        () = cut.ended.cancelled() => false,
        () = cut.reset.cancelled() => true,
    };
    if reset {
        // Where it does not succeed, the connection ends properly: a fault all the same.
        let _ = serving.into_parts().io.into_inner().set_zero_linger();
    }
}

async fn observe(State((calls, faults)): State<(Calls, Faults)>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_REQUEST).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    calls.record(Call::new(&parts, body.clone()));
    let fault = faults.take(parts.uri.path());
    let request = Request::from_parts(parts, Body::from(body));
    match fault {
        None => next.run(request).await,
        Some(fault) => misbehave(fault, request, next).await,
    }
}

async fn misbehave(fault: Fault, request: Request, next: Next) -> Response {
    match fault {
        Fault::Delay(by) => {
            tokio::time::sleep(by).await;
            next.run(request).await
        }
        Fault::Jitter(most) => {
            tokio::time::sleep(most.mul_f64(rand::random())).await;
            next.run(request).await
        }
        Fault::Silence => std::future::pending().await,
        Fault::Answer(answer) => answer.map(Body::from),
        Fault::Drop => cut_connection(request.extensions().get::<Cut>().map(|cut| cut.ended.clone())).await,
        Fault::Reset => cut_connection(request.extensions().get::<Cut>().map(|cut| cut.reset.clone())).await,
        Fault::Redirect(location) => (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, location)]).into_response(),
        Fault::ContentType(other) => {
            let answer = next.run(request).await;
            ([(CONTENT_TYPE, other)], answer).into_response()
        }
        Fault::Truncate => {
            let (parts, whole) = read(next.run(request).await).await;
            let half = whole.slice(..whole.len() / 2);
            let cut = async {
                // Gives the half a turn to be sent; otherwise the cut takes it along.
                tokio::task::yield_now().await;
                Err(io::Error::other("the connection is cut here"))
            };
            let body = stream::iter([Ok(half)]).chain(stream::once(cut));
            let mut answer = Response::from_parts(parts, Body::from_stream(body));
            let announced = HeaderValue::from(whole.len());
            answer.headers_mut().insert(CONTENT_LENGTH, announced);
            answer
        }
        Fault::Halve => {
            let (parts, whole) = read(next.run(request).await).await;
            Response::from_parts(parts, Body::from(whole.slice(..whole.len() / 2)))
        }
        Fault::SlowBody(pause) => {
            let (parts, whole) = read(next.run(request).await).await;
            let bytes = stream::iter(whole).then(move |byte| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, Infallible>(Bytes::from(vec![byte]))
            });
            Response::from_parts(parts, Body::from_stream(bytes))
        }
        Fault::EndlessBody => {
            let blanks = Bytes::from(vec![b' '; ENDLESS_CHUNK]);
            let endless = stream::repeat_with(move || Ok::<_, Infallible>(blanks.clone()));
            let json = [(CONTENT_TYPE, "application/json")];
            (json, Body::from_stream(endless)).into_response()
        }
    }
}

/// Never returns to a live client: the connection's task ends first.
async fn cut_connection(cut: Option<CancellationToken>) -> Response {
    if let Some(cut) = cut {
        cut.cancel();
        std::future::pending::<()>().await;
    }
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

/// Takes an answer of our own apart; the length goes, because the body is sent anew.
async fn read(answer: Response) -> (http::response::Parts, Bytes) {
    let (mut parts, body) = answer.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    let whole = to_bytes(body, usize::MAX).await.unwrap_or_default();
    (parts, whole)
}

/// Above what any client of these endpoints has reason to send (Entra's own limit for a token is 256,000 bytes).
const MAX_REQUEST: usize = 1024 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const ENDLESS_CHUNK: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const BODY: &str = "0123456789";

    async fn server() -> Server {
        let routes = Router::new().route("/text", get(|| async { BODY })).route("/form", post(|| async { "" }));
        Bound::to(0).await.unwrap().serve(routes)
    }

    async fn text(server: &Server) -> reqwest::Result<reqwest::Response> {
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
        client?.get(format!("{}/text", server.url)).send().await
    }

    #[tokio::test]
    async fn calls_are_recorded_with_query_headers_and_form() {
        let server = server().await;
        let url = format!("{}/form?a=1", server.url);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(url).header("x-one", "1").form(&[("b", "2 3")]);
        request.send().await.unwrap();
        let calls = server.calls.to("/form");
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0].query("a"), Some("1"));
        assert_eq!(calls[0].form("b"), Some("2 3"));
        assert_eq!(calls[0].header("x-one"), Some("1"));
        assert_eq!(server.calls.count("/text"), 0);
    }

    #[tokio::test]
    async fn faults_are_used_up_in_order_before_the_permanent_one() {
        let server = server().await;
        server.faults.always("", Fault::status(StatusCode::BAD_GATEWAY));
        let retry = [("retry-after", "3")];
        let busy = Fault::answer(StatusCode::SERVICE_UNAVAILABLE, &retry, "busy").unwrap();
        server.faults.once("/text", busy);
        let first = text(&server).await.unwrap();
        assert_eq!(first.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(first.headers()["retry-after"], "3");
        assert_eq!(first.text().await.unwrap(), "busy");
        assert_eq!(text(&server).await.unwrap().status(), StatusCode::BAD_GATEWAY);
        server.faults.clear("");
        assert_eq!(text(&server).await.unwrap().text().await.unwrap(), BODY);
    }

    #[tokio::test]
    async fn a_dropped_connection_gives_no_answer() {
        let server = server().await;
        server.faults.once("/text", Fault::Drop);
        assert!(text(&server).await.is_err());
    }

    #[tokio::test]
    async fn a_reset_connection_says_so() {
        let server = server().await;
        server.faults.once("/text", Fault::Reset);
        let mut peer = TcpStream::connect(server.url.trim_start_matches("http://")).await.unwrap();
        peer.write_all(b"GET /text HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let error = peer.read(&mut [0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_takes_the_request_and_never_answers() {
        let server = server().await;
        server.faults.once("/text", Fault::Silence);
        assert!(tokio::time::timeout(Duration::from_secs(3600), text(&server)).await.is_err());
        assert_eq!(server.calls.count("/text"), 1);
    }

    #[tokio::test]
    async fn half_a_body_passes_for_a_whole_one_and_jitter_for_nothing() {
        let server = server().await;
        server.faults.once("/text", Fault::Halve);
        server.faults.once("/text", Fault::Jitter(Duration::from_millis(1)));
        assert_eq!(text(&server).await.unwrap().text().await.unwrap(), "01234");
        assert_eq!(text(&server).await.unwrap().text().await.unwrap(), BODY);
    }

    #[tokio::test]
    async fn a_truncated_body_announces_more_than_it_sends() {
        let server = server().await;
        server.faults.once("/text", Fault::Truncate);
        let mut answer = text(&server).await.unwrap();
        assert_eq!(answer.content_length(), Some(10));
        assert_eq!(answer.chunk().await.unwrap().unwrap(), "01234");
        assert!(answer.chunk().await.is_err());
    }

    #[tokio::test]
    async fn a_slow_body_comes_in_single_bytes() {
        let server = server().await;
        server.faults.once("/text", Fault::SlowBody(Duration::from_millis(1)));
        let mut answer = text(&server).await.unwrap();
        assert_eq!(answer.chunk().await.unwrap().unwrap(), "0");
        assert_eq!(answer.text().await.unwrap(), "123456789");
    }

    #[tokio::test]
    async fn an_endless_body_goes_on() {
        let server = server().await;
        server.faults.once("/text", Fault::EndlessBody);
        let mut answer = text(&server).await.unwrap();
        let mut read = 0;
        while read < 1024 * 1024 {
            read += answer.chunk().await.unwrap().unwrap().len();
        }
    }

    #[tokio::test]
    async fn redirects_content_types_and_delays_are_as_asked() {
        let server = server().await;
        server.faults.once("/text", Fault::Redirect("http://127.0.0.1:1/".to_owned()));
        let redirect = text(&server).await.unwrap();
        assert_eq!(redirect.status(), StatusCode::TEMPORARY_REDIRECT);
        assert_eq!(redirect.headers()["location"], "http://127.0.0.1:1/");
        server.faults.once("/text", Fault::ContentType("text/html".to_owned()));
        let html = text(&server).await.unwrap();
        assert_eq!(html.headers().get_all("content-type").iter().count(), 1);
        assert_eq!(html.headers()["content-type"], "text/html");
        let before = tokio::time::Instant::now();
        server.faults.once("/text", Fault::Delay(Duration::from_millis(30)));
        assert_eq!(text(&server).await.unwrap().status(), StatusCode::OK);
        assert!(before.elapsed() >= Duration::from_millis(30));
    }

    #[tokio::test]
    async fn dropping_the_server_closes_the_port() {
        let server = server().await;
        text(&server).await.unwrap();
        let address = server.url.trim_start_matches("http://").to_owned();
        drop(server);
        // The task ends at its next turn.
        while TcpStream::connect(&address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}

//! A listener: accepts, shakes hands and serves, each within a deadline, and drains without waiting for silent peers.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, interval_at, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tower::Service as _;

use super::places::{Measured, Place, Places, UnderWay};
use super::tls::Tls;
use super::watched::Watched;
use crate::grpc::{self, Farewell};
use crate::limit::Peer;
use crate::oauth;
use crate::socket::Socket;

/// One bound address and what is served there.
pub(super) struct Listener {
    pub name: &'static str,
    pub socket: Socket,
    pub tls: Option<Arc<Tls>>,
    pub serves: Serves,
    /// Connections at once.
    pub most: usize,
    /// Stops accepting and asks connections to end.
    pub draining: CancellationToken,
    /// Ends what did not end by itself.
    pub aborting: CancellationToken,
    pub connections: TaskTracker,
}

#[derive(Clone)]
pub(super) enum Serves {
    /// HTTP/2 only.
    Grpc(grpc::Routes),
    /// HTTP/1.1 and HTTP/2.
    Http(Router),
}

impl Serves {
    /// `asked`: none where too many requests are under way; a probe is answered all the same.
    async fn answer(&mut self, request: http::Request<Measured>, asked: Option<Asking>) -> http::Response<Taken> {
        let path = request.uri().path();
        let lasts = match path {
            path if HELD_STREAMS.contains(&path) => Lasts::Held,
            path if OPEN_STREAMS.iter().any(|method| path.starts_with(method)) => Lasts::Open,
            _ => Lasts::No,
        };
        if asked.is_none() && !PROBES.contains(&path) {
            metrics::counter!("carnet_limited_total", "limit" => "requests").increment(1);
            let busy = match self {
                Self::Grpc(_) => grpc::busy(),
                Self::Http(_) => oauth::busy().map(Body::new),
            };
            return busy.map(|body| Taken { body, _asked: None });
        }
        let answered = match self {
            Self::Grpc(routes) => routes.call(request).await,
            Self::Http(router) => router.call(request).await.map(|response| response.map(Body::new)),
        };
        let answered: http::Response<Body> = answered.unwrap_or_else(|never| match never {});
        let is_over = lasts == Lasts::Held || answered.body().is_end_stream();
        let asked = asked.filter(|_| !is_over);
        let asked = asked.map(|Asking { place, begun }| Asking { place, begun: begun.filter(|_| lasts == Lasts::No) });
        answered.map(|body| Taken { body, _asked: asked })
    }
}

/// An answer, and what its request has until the peer has taken the last of it.
struct Taken {
    body: Body,
    _asked: Option<Asking>,
}

impl hyper::body::Body for Taken {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether an answer goes on for as long as its caller listens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasts {
    No,
    /// Anybody gets one: it counts among the requests until it ends.
    Open,
    /// Those who hold a lease, or are operators: leases, and searches, have bounds of their own.
    Held,
}

/// What a request has until its answer is taken.
struct Asking {
    place: UnderWay,
    begun: Option<Begun>,
}

/// The requests of a connection whose answers are not taken yet, by the time at which they began.
#[derive(Debug, Default)]
struct Asked {
    begun: [AtomicUsize; 3],
    turn: AtomicUsize,
}

/// A request, until its answer is taken.
struct Begun {
    asked: Arc<Asked>,
    turn: usize,
}

impl Asked {
    fn begin(self: &Arc<Self>) -> Begun {
        let turn = self.turn.load(Ordering::Relaxed);
        self.begun_in(turn).fetch_add(1, Ordering::Relaxed);
        Begun { asked: self.clone(), turn }
    }

    /// Whether a request of the turn before this one is not taken yet.
    fn turn(&self) -> bool {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) + 1;
        self.begun_in(turn + 1).load(Ordering::Relaxed) > 0
    }

    fn begun_in(&self, turn: usize) -> &AtomicUsize {
        let [first, second, third] = &self.begun;
        match turn % 3 {
            0 => first,
            1 => second,
            _ => third,
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.asked.begun_in(self.turn).fetch_sub(1, Ordering::Relaxed);
    }
}

struct Accepted {
    stream: Box<dyn Stream>,
    peer: String,
    /// None for a Unix socket.
    ip: Option<IpAddr>,
}

async fn accept(socket: &Socket) -> io::Result<Accepted> {
    match socket {
        Socket::Tcp(listener) => {
            let (stream, peer) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Accepted { stream: Box::new(stream), peer: peer.to_string(), ip: Some(peer.ip()) })
        }
        Socket::Unix(listener, _own) => {
            let (stream, _peer) = listener.accept().await?;
            Ok(Accepted { stream: Box::new(stream), peer: "unix".to_owned(), ip: None })
        }
    }
}

/// How many connections each of so many listeners takes: callers must not use up what this process may open, or there is
/// nothing left for clouds, store and files.
pub(super) fn most_connections(listeners: usize) -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let most = (files.saturating_sub(KEPT_FILES) / listeners.max(1)).clamp(FEWEST_CONNECTIONS, MAX_CONNECTIONS);
    if most < MAX_CONNECTIONS {
        tracing::warn!(
            files,
            most,
            "this process may open {files} files, so each listener takes {most} connections at most, not {MAX_CONNECTIONS}: \
             raise the limit (LimitNOFILE, ulimit -Hn)"
        );
    }
    most
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    /// Accepts until it drains. A connection beyond the limit is closed at once rather than kept waiting.
    pub async fn serve(self) {
        let places = Places::new(self.most, LOOPBACK_RESERVE, MAX_REQUESTS, MAX_LARGE_BYTES);
        let this = Arc::new(self);
        loop {
            let accepted = tokio::select! {
                () = this.draining.cancelled() => return,
                accepted = accept(&this.socket) => accepted,
            };
            let Accepted { stream, peer, ip } = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the peer left: neither goes away by asking again at once.
                    tracing::warn!(%error, "{} cannot accept a connection", this.name);
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(place) = places.take(ip) else {
                this.refused("limit");
                continue;
            };
            let connection = this.clone();
            this.connections.spawn(async move {
                tokio::select! {
                    () = connection.aborting.cancelled() => {}
                    () = connection.shake_hands(stream, peer, place) => {}
                }
            });
        }
    }

    async fn shake_hands(&self, stream: Box<dyn Stream>, peer: String, place: Place) {
        let _counted = Counted::new(self.name);
        match &self.tls {
            None => self.connection(stream, peer, place).await,
            Some(tls) => {
                let handshake = timeout(HANDSHAKE_DEADLINE, TlsAcceptor::from(tls.current()).accept(stream));
                // Who has not shaken hands when the broker drains has no call under way.
                match self.draining.run_until_cancelled(handshake).await {
                    Some(Ok(Ok(stream))) => self.connection(stream, peer, place).await,
                    Some(Ok(Err(error))) => {
                        tracing::debug!(%error, peer.address = peer, "TLS handshake failed");
                        self.refused("tls");
                    }
                    Some(Err(_elapsed)) => self.refused("handshake_deadline"),
                    None => {}
                }
            }
        }
    }

    async fn connection<S: Stream + 'static>(&self, stream: S, peer: String, place: Place) {
        let heard = Arc::new(AtomicUsize::new(0));
        let io = TokioIo::new(Watched::new(stream, heard.clone(), self.name));
        let (serves, peer, farewell) = (self.serves.clone(), Peer::from(peer), Farewell::default());
        let farewell_said = farewell.0.clone();
        let asked = Arc::<Asked>::default();
        let unread = asked.clone();
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(farewell.clone());
            let mut serves = serves.clone();
            let asked = place.request().map(|place| Asking { place, begun: Some(asked.begin()) });
            let request = request.map(|body| place.measured(body));
            async move { Ok::<_, Infallible>(serves.answer(request, asked).await) }
        });
        let builder = self.protocol();
        let mut serving = pin!(builder.serve_connection(io, service));
        let began = || heard.load(Ordering::Relaxed) >= PREFACE_BYTES;
        let mut silence = pin!(sleep(HANDSHAKE_DEADLINE));
        let mut age = pin!(sleep(MAX_AGE.mul_f64(rand::random_range(0.9..=1.0))));
        let mut look = interval_at(Instant::now() + LOOK_FOR_UNREAD, LOOK_FOR_UNREAD);
        let (mut asked_to_end, mut checked) = (false, false);
        loop {
            tokio::select! {
                _ended = serving.as_mut() => return,
                () = self.draining.cancelled(), if !asked_to_end => {
                    asked_to_end = true;
                    farewell_said.cancel();
                    // Whoever has just connected may have a call on its way.
                    let last = Instant::now() + FIRST_WORDS;
                    while !began() && Instant::now() < last {
                        tokio::select! {
                            _ended = serving.as_mut() => return,
                            () = sleep(LISTEN_EVERY) => {}
                        }
                    }
                    if !began() {
                        return;
                    }
                    serving.as_mut().graceful_shutdown();
                }
                () = age.as_mut() => {
                    if asked_to_end {
                        return self.refused("overstayed");
                    }
                    asked_to_end = true;
                    farewell_said.cancel();
                    serving.as_mut().graceful_shutdown();
                    age.as_mut().reset(Instant::now() + FAREWELL);
                }
                _ = look.tick() => if unread.turn() {
                    return self.refused("unread");
                },
                () = silence.as_mut(), if !checked => {
                    checked = true;
                    if !began() {
                        return self.refused("silent");
                    }
                }
            }
        }
    }

    fn protocol(&self) -> auto::Builder<TokioExecutor> {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_DEADLINE);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HANDSHAKE_DEADLINE)
            .max_buf_size(MAX_HEADER_BYTES as usize);
        match self.serves {
            Serves::Grpc(_) => builder.http2_only(),
            Serves::Http(_) => builder,
        }
    }

    fn refused(&self, reason: &'static str) {
        metrics::counter!("carnet_connections_refused_total", "listener" => self.name, "reason" => reason).increment(1);
    }
}

/// An open connection in the metrics, however it ends.
struct Counted(&'static str);

impl Counted {
    fn new(listener: &'static str) -> Self {
        metrics::gauge!("carnet_connections", "listener" => listener).increment(1.0);
        Self(listener)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("carnet_connections", "listener" => self.0).decrement(1.0);
    }
}

/// Each costs some 40 KB with its buffers.
const MAX_CONNECTIONS: usize = 8192;

/// Ten thousand workers and more at once; one that is sent slowly, or whose answer is, holds its place meanwhile.
const MAX_REQUESTS: usize = 32_768;

/// What is held of requests that are larger than most and not complete.
const MAX_LARGE_BYTES: usize = 128 * 1024 * 1024;

const HELD_STREAMS: [&str; 2] = ["/carnet.v1.Leases/WatchCredentials", "/carnet.v1.Operator/SearchAudit"];
const OPEN_STREAMS: [&str; 2] = ["/grpc.health.v1.Health/Watch", "/grpc.reflection."];

/// A broker that is full is well.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/grpc.health.v1.Health/Check"];

/// Looked at so often: an answer that was begun one look before the last and is not taken yet ends its connection. A request
/// has 30 s, so there are 10 s at least to take what is answered.
const LOOK_FOR_UNREAD: Duration = Duration::from_secs(40);

/// A request at once, nearly: they have 160 KiB at most.
const STREAM_WINDOW: u32 = 128 * 1024;

/// What a connection may send before it is read.
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// For calls of clouds, of which so many may be under way, and for everything that is a file.
const KEPT_FILES: usize = 192;

const FEWEST_CONNECTIONS: usize = 16;

/// Beyond the limit, for probes.
const LOOPBACK_RESERVE: usize = 16;

/// Calls at once on one connection; 4,000 open streams would cost 32 MB (measured).
const MAX_STREAMS: u32 = 256;

const MAX_HEADER_BYTES: u32 = 16 * 1024;

/// For TLS, for the first byte after it, and for the head of an HTTP/1.1 request.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// For a call that was sent when the drain began: longer than it takes to arrive.
const FIRST_WORDS: Duration = Duration::from_secs(1);
const LISTEN_EVERY: Duration = Duration::from_millis(20);

const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEP_ALIVE_DEADLINE: Duration = Duration::from_secs(10);

/// A connection made under an old certificate or client authority ends within the hour, at a quiet moment.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// For calls under way on a connection that has reached its age.
const FAREWELL: Duration = Duration::from_secs(60);

/// The preface of HTTP/2 (RFC 9113 section 3.4); no request of HTTP/1.1 is shorter. Until it is there, no other deadline
/// of the connection has begun.
const PREFACE_BYTES: usize = 24;

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests;

//! A listener: accepts, shakes hands and serves, each within a deadline, and drains without waiting for silent peers.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use bytes::{Buf as _, BytesMut};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::Service as _;

use super::tls::Tls;
use crate::exchange::Peer;
use crate::grpc::{self, Farewell};
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
    async fn answer(&mut self, request: http::Request<Incoming>) -> http::Response<Body> {
        let answered = match self {
            Self::Grpc(routes) => routes.call(request).await,
            Self::Http(router) => router.call(request).await.map(|response| response.map(Body::new)),
        };
        answered.unwrap_or_else(|never| match never {})
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

/// How many may be connected, and a few more from the broker's own host: a broker that is full is well, and its probe
/// has to be able to see that.
struct Places {
    all: Arc<Semaphore>,
    loopback: Arc<Semaphore>,
}

impl Places {
    fn new(all: usize, loopback: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), loopback: Arc::new(Semaphore::new(loopback)) }
    }

    /// A place for this peer, until it is dropped; None where all are taken.
    fn take(&self, ip: Option<IpAddr>) -> Option<OwnedSemaphorePermit> {
        let place = self.all.clone().try_acquire_owned().ok();
        match ip {
            // A socket of both families shows callers of IPv4 as addresses of IPv6.
            Some(ip) if place.is_none() && ip.to_canonical().is_loopback() => {
                self.loopback.clone().try_acquire_owned().ok()
            }
            _ => place,
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
        let places = Places::new(self.most, LOOPBACK_RESERVE);
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

    async fn shake_hands(&self, stream: Box<dyn Stream>, peer: String, _place: OwnedSemaphorePermit) {
        let _counted = Counted::new(self.name);
        match &self.tls {
            None => self.connection(stream, peer).await,
            Some(tls) => {
                let handshake = timeout(HANDSHAKE_DEADLINE, TlsAcceptor::from(tls.current()).accept(stream));
                // Who has not shaken hands when the broker drains has no call under way.
                match self.draining.run_until_cancelled(handshake).await {
                    Some(Ok(Ok(stream))) => self.connection(stream, peer).await,
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

    async fn connection<S: Stream + 'static>(&self, stream: S, peer: String) {
        let heard = Arc::new(AtomicUsize::new(0));
        let io = TokioIo::new(Watched::new(stream, heard.clone()));
        let (serves, peer, farewell) = (self.serves.clone(), Peer(peer.into()), Farewell::default());
        let farewell_said = farewell.0.clone();
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request.extensions_mut().insert(farewell.clone());
            let mut serves = serves.clone();
            async move { Ok::<_, Infallible>(serves.answer(request).await) }
        });
        let builder = self.protocol();
        let mut serving = pin!(builder.serve_connection(io, service));
        let began = || heard.load(Ordering::Relaxed) >= PREFACE_BYTES;
        let mut silence = pin!(sleep(HANDSHAKE_DEADLINE));
        let mut age = pin!(sleep(MAX_AGE.mul_f64(rand::random_range(0.9..=1.0))));
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

/// Counts what the peer has said, and gathers what it is told: answers that become ready together, as those of one
/// group of audit records do, leave in one system call.
struct Watched<S> {
    inner: S,
    heard: Arc<AtomicUsize>,
    outgoing: BytesMut,
    /// The others that are ready had their turn since something was added.
    waited: bool,
}

impl<S> Watched<S> {
    fn new(inner: S, heard: Arc<AtomicUsize>) -> Self {
        Self { inner, heard, outgoing: BytesMut::new(), waited: false }
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    /// Writes all that was gathered.
    fn poll_outgoing(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_write(context, &self.outgoing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.outgoing.advance(written),
            }
        }
        self.waited = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.heard.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.outgoing.len() >= OUTGOING_BYTES {
            ready!(self.poll_outgoing(context))?;
        }
        let taken = bytes.get(..OUTGOING_BYTES).unwrap_or(bytes);
        self.outgoing.extend_from_slice(taken);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.outgoing.is_empty() && self.outgoing.len() < OUTGOING_BYTES && !self.waited {
            // To the end of the queue of tasks that are ready: with nobody there, back at once.
            self.waited = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_outgoing(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_outgoing(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// Each costs some 40 KB with its buffers.
const MAX_CONNECTIONS: usize = 8192;

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

/// Gathered at most before it is written.
const OUTGOING_BYTES: usize = 64 * 1024;

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::Places;

    #[test]
    fn a_full_listener_has_places_left_for_its_own_host_and_not_without_end() {
        let (places, ip) = (Places::new(1, 2), |text: &str| Some(text.parse().expect("an address")));
        let _caller = places.take(ip("192.0.2.1")).expect("the first");
        assert!(places.take(ip("192.0.2.1")).is_none());
        assert!(places.take(None).is_none(), "a Unix socket's callers are callers like others");
        let probe = places.take(ip("127.0.0.1"));
        let _mapped = places.take(ip("::ffff:127.0.0.1")).expect("the same host");
        assert!(places.take(ip("::1")).is_none());
        drop(probe);
        assert!(places.take(ip("192.0.2.1")).is_none(), "the reserve is nobody else's");
        assert!(places.take(ip("::1")).is_some());
    }
}

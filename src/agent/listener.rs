//! Where the agent listens: HTTP/1.1 on loopback or on a Unix socket, with limits and deadlines, and an orderly end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::host::wrong_host;
use super::peer::{Users, user_of};
use super::{Agent, Answer, text};
use crate::socket::{Address, Socket};

/// A bound address, and who may ask there.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    users: Users,
}

/// A connection, and who is at its other end.
struct Accepted {
    stream: Box<dyn Stream>,
    end: End,
}

enum End {
    Tcp { peer: SocketAddr, own: SocketAddr },
    Unix { user: Option<u32> },
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Listener {
    /// # Errors
    /// Where the system refuses the address, or it is not loopback.
    pub async fn bind(address: &Address, users: Users) -> io::Result<Self> {
        if matches!(address, Address::Tcp(address) if !address.ip().is_loopback()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the agent listens on loopback only"));
        }
        Ok(Self { socket: Socket::bind(address).await?, users })
    }

    /// `None` for a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        self.socket.local_address()
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let own = stream.local_addr()?;
                Ok(Accepted { stream: Box::new(stream), end: End::Tcp { peer, own } })
            }
            Socket::Unix(listener, _own) => {
                let (stream, _peer) = listener.accept().await?;
                let user = stream.peer_cred().ok().map(|peer| peer.uid());
                Ok(Accepted { stream: Box::new(stream), end: End::Unix { user } })
            }
        }
    }

    /// Answers until `draining`, and then ends what is under way.
    pub async fn serve(self, agent: Arc<Agent>, draining: CancellationToken) {
        let (places, connections) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), TaskTracker::new());
        let strangers_places = Arc::new(Semaphore::new(MAX_STRANGERS));
        loop {
            let accepted = tokio::select! {
                () = draining.cancelled() => break,
                accepted = self.accept() => accepted,
            };
            let Accepted { stream, end } = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the peer left: neither goes away by asking again at once.
                    tracing::warn!(%error, "the agent cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Beyond the limit it is closed at once rather than kept waiting.
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let (agent, draining, users) = (agent.clone(), draining.clone(), self.users.clone());
            let strangers_places = strangers_places.clone();
            connections.spawn(async move {
                let allowed = match end {
                    _ if users == Users::All => true,
                    End::Tcp { peer, own } => users.may(user_of(peer, own).await),
                    End::Unix { user } => users.may(user),
                };
                // Nothing but a program that means it dials a Unix socket.
                let any_host = matches!(end, End::Unix { .. });
                // Those who get nothing but a refusal take no place of the others'.
                let place = if allowed {
                    Ok(place)
                } else {
                    drop(place);
                    strangers_places.try_acquire_owned()
                };
                let Ok(_place) = place else { return };
                Door { agent, allowed, any_host }.serve(stream, draining).await;
            });
        }
        connections.close();
        let _ = timeout(FAREWELL, connections.wait()).await;
    }
}

#[cfg(any(test, feature = "testing"))]
impl Agent {
    /// Serves one connection of an allowed user's, for tests that write its bytes themselves.
    pub async fn serve_stream(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin) {
        Door { agent: self, allowed: true, any_host: false }.serve(stream, CancellationToken::new()).await;
    }
}

/// A connection's way in.
#[derive(Debug, Clone)]
struct Door {
    agent: Arc<Agent>,
    allowed: bool,
    any_host: bool,
}

impl Door {
    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin, draining: CancellationToken) {
        let allowed = self.allowed;
        let service = service_fn(move |request| {
            let door = self.clone();
            async move { Ok::<_, Infallible>(door.answer(request).await) }
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .keep_alive(allowed)
            .header_read_timeout(if allowed { IDLE } else { STRANGERS_IDLE })
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD_BYTES);
        let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            _ended = serving.as_mut() => return,
            () = draining.cancelled() => serving.as_mut().graceful_shutdown(),
        }
        let _ = serving.await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        // A few clients send what belongs to features that are not here; it is read so that the connection goes on.
        let read = timeout(BODY_DEADLINE, Limited::new(body, MAX_BODY_BYTES).collect()).await;
        let answer = match read {
            Ok(Ok(_ignored)) if !self.allowed => text(StatusCode::FORBIDDEN, "this endpoint serves another user"),
            Ok(Ok(_ignored)) => match wrong_host(&head) {
                Some(complaint) if !self.any_host => text(StatusCode::BAD_REQUEST, complaint),
                _ => self.agent.answer(&head).await,
            },
            Ok(Err(_too_large_or_broken)) => text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"),
            Err(_elapsed) => text(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
        };
        count(&answer);
        answer
    }
}

fn count(answer: &Response<impl Sized>) {
    let outcome = match answer.status().as_u16() {
        200..400 => "answered",
        400..500 => "refused",
        _ => "away",
    };
    metrics::counter!("carnet_agent_requests_total", "outcome" => outcome).increment(1);
}

/// For all programs of a node; each costs a few KB.
const MAX_CONNECTIONS: usize = 1024;

/// Of users that may not ask.
const MAX_STRANGERS: usize = 32;

const MAX_HEADERS: usize = 64;
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_BODY_BYTES: usize = 64 * 1024;
const BODY_DEADLINE: Duration = Duration::from_secs(5);

/// For a request's head, and between two requests of a connection.
const IDLE: Duration = Duration::from_secs(120);

const STRANGERS_IDLE: Duration = Duration::from_secs(5);

/// For requests under way when the agent ends.
const FAREWELL: Duration = Duration::from_secs(5);

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;
    use crate::agent::World;

    #[tokio::test(start_paused = true)]
    async fn a_stranger_keeps_a_connection_for_one_refusal_only() {
        let serve = |allowed| {
            let (mut client, server) = tokio::io::duplex(4096);
            let door = Door { agent: World::new().agent, allowed, any_host: true };
            tokio::spawn(door.serve(server, CancellationToken::new()));
            async move {
                let (began, mut answer) = (Instant::now(), String::new());
                client.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("written");
                client.read_to_string(&mut answer).await.expect("an end");
                (answer, began.elapsed())
            }
        };
        let (answer, kept) = serve(false).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert_eq!(kept, Duration::ZERO);
        let (answer, kept) = serve(true).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(kept >= IDLE, "it may ask again");
    }
}

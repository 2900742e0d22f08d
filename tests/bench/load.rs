//! The load: gRPC frames made beforehand, sent over HTTP/2 by a process of its own, and every answer looked at.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, yield_now};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::machine::{self, Core};

pub const ROLE: &str = "make-load";

pub const EXCHANGE: &str = "carnet.v1.TokenExchange/Exchange";

/// What one process of load is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub address: SocketAddr,
    /// The path of the method, such as [`EXCHANGE`].
    pub method: String,
    /// A file with requests as gRPC frames, which are sent in turn.
    pub request: PathBuf,
    /// Least and greatest length of a right answer: its times vary by some bytes.
    pub answer: (usize, usize),
    pub connections: usize,
    pub shape: Shape,
    /// A file with the certificate that the server has to show; absent: no TLS.
    pub certificate: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Shape {
    /// As many streams on each connection, each calling again as soon as it is answered.
    Closed { streams: usize, time: Duration },
    /// So many calls per second, whether earlier ones are answered or not.
    Open { rate: f64, time: Duration },
    /// As [`Closed`](Self::Closed), so many calls in all.
    Counted { streams: usize, calls: usize },
    /// As [`Closed`](Self::Closed), of calls that are refused.
    Refused { streams: usize, time: Duration },
    /// One call on each of so many streams per connection, all at once.
    Once { streams: usize },
}

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub answered: usize,
    /// With those that the first moments leave out.
    pub called: usize,
    pub seconds: f64,
    /// From when a call was due to its last byte, in microseconds; open load only.
    pub p50: f64,
    pub p99: f64,
    /// How late the load itself sent, p99 in microseconds: a round in which it was late says nothing of the server.
    pub late: f64,
}

impl Outcome {
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.seconds
    }
}

/// Runs `job` in a process of its own and waits for it.
pub async fn run(job: &Job) -> Result<Outcome> {
    let mut command = machine::role(Core::Load, ROLE)?;
    command.arg(serde_json::to_string(job)?);
    Ok(serde_json::from_slice(&machine::output(command).await?)?)
}

/// The process's own part.
#[expect(clippy::print_stdout, reason = "the result, for the process that started this one")]
pub fn child(job: &str) -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let job: Job = serde_json::from_str(job)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(Load::run(job))?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// Everything that a call needs, made once.
struct Load {
    head: Request<()>,
    frames: Vec<Bytes>,
    sent: AtomicUsize,
    answer: (usize, usize),
}

impl Load {
    async fn run(job: Job) -> Result<Outcome> {
        let frames = frames(Bytes::from(std::fs::read(&job.request)?))?;
        let head = Request::post(format!("http://{}/{}", job.address, job.method))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "carnet-bench")
            .body(())?;
        let load = Arc::new(Self { head, frames, sent: AtomicUsize::new(0), answer: job.answer });
        let mut connections = Vec::new();
        for _ in 0..job.connections {
            connections.push(connect(job.address, job.certificate.as_deref()).await?);
        }
        match job.shape {
            Shape::Closed { streams, time } => load.closed(&connections, streams, time, Right::Answers).await,
            Shape::Refused { streams, time } => load.closed(&connections, streams, time, Right::Refusals).await,
            Shape::Counted { streams, calls } => load.counted(&connections, streams, calls).await,
            Shape::Open { rate, time } => load.open(&connections, rate, time).await,
            Shape::Once { streams } => load.once(&connections, streams).await,
        }
    }

    async fn closed(
        self: &Arc<Self>,
        connections: &[SendRequest<Bytes>],
        streams: usize,
        time: Duration,
        right: Right,
    ) -> Result<Outcome> {
        let answered = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        // The first moments fill buffers and caches and are not counted.
        let (from, until) = (began + SETTLING, began + SETTLING + time);
        let mut callers = JoinSet::new();
        for connection in connections.iter().flat_map(|connection| std::iter::repeat_n(connection, streams)) {
            let (load, connection, answered) = (self.clone(), connection.clone(), answered.clone());
            callers.spawn(async move {
                loop {
                    match right {
                        Right::Answers => load.call(connection.clone()).await?,
                        Right::Refusals => load.refused(connection.clone()).await?,
                    }
                    let now = Instant::now();
                    if now >= until {
                        return Ok::<_, anyhow::Error>(());
                    }
                    if now >= from {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        finish(callers).await?;
        let (answered, called) = (answered.load(Ordering::Relaxed), self.sent.load(Ordering::Relaxed));
        Ok(Outcome { answered, called, seconds: time.as_secs_f64(), ..Outcome::default() })
    }

    async fn counted(
        self: &Arc<Self>,
        connections: &[SendRequest<Bytes>],
        streams: usize,
        calls: usize,
    ) -> Result<Outcome> {
        let (begun, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
        let mut callers = JoinSet::new();
        for connection in connections.iter().flat_map(|connection| std::iter::repeat_n(connection, streams)) {
            let (load, connection, begun) = (self.clone(), connection.clone(), begun.clone());
            callers.spawn(async move {
                while begun.fetch_add(1, Ordering::Relaxed) < calls {
                    load.call(connection.clone()).await?;
                }
                Ok::<_, anyhow::Error>(())
            });
        }
        finish(callers).await?;
        Ok(Outcome { answered: calls, called: calls, seconds: began.elapsed().as_secs_f64(), ..Outcome::default() })
    }

    async fn open(self: &Arc<Self>, connections: &[SendRequest<Bytes>], rate: f64, time: Duration) -> Result<Outcome> {
        let expected = (rate * time.as_secs_f64()) as usize;
        let (took, mut late) = (Arc::new(Mutex::new(Vec::with_capacity(expected))), Vec::with_capacity(expected));
        let began = Instant::now();
        let mut callers = JoinSet::new();
        for (number, connection) in (0..).zip(connections.iter().cycle()) {
            let due = began + Duration::from_secs_f64(f64::from(number) / rate);
            if due >= began + SETTLING + time {
                break;
            }
            // Timers are too coarse; this core has nothing else to do.
            while Instant::now() < due {
                yield_now().await;
            }
            late.push(due.elapsed());
            let (load, connection, took) = (self.clone(), connection.clone(), took.clone());
            callers.spawn(async move {
                load.call(connection).await?;
                if due >= began + SETTLING {
                    took.lock().unwrap_or_else(PoisonError::into_inner).push(due.elapsed());
                }
                Ok::<_, anyhow::Error>(())
            });
            while let Some(ended) = callers.try_join_next() {
                ended??;
            }
        }
        finish(callers).await?;
        let mut took = std::mem::take(&mut *took.lock().unwrap_or_else(PoisonError::into_inner));
        took.sort_unstable();
        late.sort_unstable();
        let (p50, p99) = (share(&took, 0.5), share(&took, 0.99));
        let called = self.sent.load(Ordering::Relaxed);
        Ok(Outcome { answered: took.len(), called, seconds: time.as_secs_f64(), p50, p99, late: share(&late, 0.99) })
    }

    async fn once(self: &Arc<Self>, connections: &[SendRequest<Bytes>], streams: usize) -> Result<Outcome> {
        let began = Instant::now();
        let mut callers = JoinSet::new();
        for connection in connections.iter().flat_map(|connection| std::iter::repeat_n(connection, streams)) {
            let (load, connection) = (self.clone(), connection.clone());
            callers.spawn(async move { load.call(connection).await });
        }
        // Here a wrong answer is one that is not counted.
        let answered = callers.join_all().await.iter().filter(|ended| ended.is_ok()).count();
        let called = self.sent.load(Ordering::Relaxed);
        Ok(Outcome { answered, called, seconds: began.elapsed().as_secs_f64(), ..Outcome::default() })
    }

    /// One call that has to be refused: at the latest with the trailers.
    async fn refused(&self, connection: SendRequest<Bytes>) -> Result<()> {
        let mut connection = connection.ready().await?;
        let (answer, mut request) = connection.send_request(self.head.clone(), false)?;
        let turn = self.sent.fetch_add(1, Ordering::Relaxed) % self.frames.len();
        request.send_data(self.frames.get(turn).cloned().unwrap_or_default(), true)?;
        // A stream that is refused is a refusal, too.
        let Ok(answer) = answer.await else {
            yield_now().await;
            return Ok(());
        };
        let status = answer.headers().get("grpc-status").context("no grpc-status")?;
        ensure!(status != "0", "a bad token was taken");
        Ok(())
    }

    /// One call; anything but a right answer is an error.
    async fn call(&self, connection: SendRequest<Bytes>) -> Result<()> {
        let mut connection = connection.ready().await?;
        let (answer, mut request) = connection.send_request(self.head.clone(), false)?;
        let turn = self.sent.fetch_add(1, Ordering::Relaxed) % self.frames.len();
        request.send_data(self.frames.get(turn).cloned().unwrap_or_default(), true)?;
        let answer = answer.await?;
        ensure!(answer.status() == http::StatusCode::OK, "HTTP status {}", answer.status());
        // An error without a message has its status here.
        check_status(answer.headers(), Missing::IsFine)?;
        let mut body = answer.into_body();
        let mut message = BytesMut::new();
        while let Some(part) = body.data().await {
            let part = part?;
            body.flow_control().release_capacity(part.len())?;
            message.extend_from_slice(&part);
        }
        let trailers = body.trailers().await?.context("no trailers")?;
        check_status(&trailers, Missing::IsAnError)?;
        let prefix = message.split_to(PREFIX.min(message.len()));
        let stated = prefix.get(1..PREFIX).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes);
        ensure!(stated.is_some_and(|stated| stated as usize == message.len()), "a message of another length");
        let (least, greatest) = self.answer;
        ensure!((least..=greatest).contains(&message.len()), "{} bytes, not {least} to {greatest}", message.len());
        Ok(())
    }
}

/// One after the other, each with its length before it.
fn frames(mut file: Bytes) -> Result<Vec<Bytes>> {
    let mut frames = Vec::new();
    while !file.is_empty() {
        let length = file.get(1..PREFIX).context("a frame's prefix")?.try_into().map(u32::from_be_bytes)?;
        let length = PREFIX + length as usize;
        ensure!(length <= file.len(), "a frame is cut off");
        frames.push(file.split_to(length));
    }
    ensure!(!frames.is_empty(), "no request");
    Ok(frames)
}

async fn connect(address: SocketAddr, certificate: Option<&Path>) -> Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let Some(certificate) = certificate else { return shake_hands(stream).await };
    let mut trusted = RootCertStore::empty();
    trusted.add(CertificateDer::from_pem_file(certificate)?)?;
    let mut tls = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("localhost")?, stream).await?;
    shake_hands(stream).await
}

async fn shake_hands<S>(stream: S) -> Result<SendRequest<Bytes>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (client, connection) = builder.handshake(stream).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// What a call has to come to.
#[derive(Clone, Copy)]
enum Right {
    Answers,
    Refusals,
}

#[derive(PartialEq, Eq)]
enum Missing {
    IsFine,
    IsAnError,
}

fn check_status(headers: &HeaderMap, missing: Missing) -> Result<()> {
    match headers.get("grpc-status") {
        Some(status) if status == "0" => Ok(()),
        Some(status) => anyhow::bail!("grpc-status {status:?}: {:?}", headers.get("grpc-message")),
        None if missing == Missing::IsFine => Ok(()),
        None => anyhow::bail!("no grpc-status"),
    }
}

/// In microseconds; `times` are sorted.
fn share(times: &[Duration], share: f64) -> f64 {
    times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default().as_secs_f64() * 1e6
}

/// The first that did not end well is the error.
async fn finish(mut callers: JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(())
}

/// A gRPC frame: compressed or not, length, message.
const PREFIX: usize = 5;

/// Answers never wait for the load.
const WINDOW: u32 = 16 * 1024 * 1024;

const SETTLING: Duration = Duration::from_millis(500);

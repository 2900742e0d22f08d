//! The bytes of a connection, looked at as they go by.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Frames;

/// Counts what the peer has said, and gathers what it is told: answers that become ready together, as those of one
/// group of audit records do, leave in one system call.
pub(super) struct Watched<S> {
    inner: S,
    heard: Arc<AtomicUsize>,
    frames: Frames,
    listener: &'static str,
    outgoing: BytesMut,
    /// The others that are ready had their turn since something was added.
    waited: bool,
}

impl<S> Watched<S> {
    pub fn new(inner: S, heard: Arc<AtomicUsize>, listener: &'static str) -> Self {
        Self { inner, heard, frames: Frames::new(), listener, outgoing: BytesMut::new(), waited: false }
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
        let listener = self.listener;
        if let Err(idle) = self.frames.read(buffer.filled().get(before..).unwrap_or_default()) {
            metrics::counter!("carnet_connections_refused_total", "listener" => listener, "reason" => "idle_frames")
                .increment(1);
            return Poll::Ready(Err(io::Error::other(idle)));
        }
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

/// Gathered at most before it is written.
const OUTGOING_BYTES: usize = 64 * 1024;

//! Log lines on their way to standard error: a thread of its own writes them, so that no exchange waits for a terminal.

use std::io::{self, Write as _};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Where lines are put. Bound: [`MAX_BYTES`]; what comes beyond is dropped rather than holding exchanges up.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    ended: bool,
}

/// Dropping it writes out what is still waiting.
#[derive(Debug)]
pub(super) struct Flush {
    lines: Lines,
    written: Receiver<()>,
}

impl Lines {
    /// # Errors
    /// Where the system has no thread for it.
    pub fn to_stderr() -> io::Result<(Self, Flush)> {
        let (lines, (ending, written)) = (Self::default(), channel());
        let writer = lines.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            writer.write_until_ended();
            drop(ending);
        })?;
        Ok((lines.clone(), Flush { lines, written }))
    }

    fn write_until_ended(&self) {
        let mut bytes = Vec::new();
        loop {
            let idle = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.ended;
            let woken = self.0.changed.wait_while(self.waiting(), idle).unwrap_or_else(PoisonError::into_inner);
            // The first line is seldom alone: one system call for all that come together.
            let ending = |waiting: &mut Waiting| !waiting.ended;
            let gathered = self.0.changed.wait_timeout_while(woken, GATHERING, ending);
            let (mut waiting, _timeout) = gathered.unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut bytes, &mut waiting.bytes);
            let ended = waiting.ended;
            drop(waiting);
            // Nobody is left to be told that standard error takes nothing.
            let _ = io::stderr().write_all(&bytes);
            bytes.clear();
            if ended {
                return;
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl io::Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.waiting();
        let first = waiting.bytes.is_empty();
        if waiting.bytes.len() + line.len() <= MAX_BYTES {
            waiting.bytes.extend_from_slice(line);
        }
        drop(waiting);
        if first {
            self.0.changed.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        self.lines.waiting().ended = true;
        self.lines.0.changed.notify_one();
        // A reader of standard error that hangs must not keep the process from ending.
        let _ = self.written.recv_timeout(FAREWELL);
    }
}

/// Some 50,000 lines.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// As long as a line waits for others.
const GATHERING: Duration = Duration::from_millis(5);

const FAREWELL: Duration = Duration::from_secs(1);

//! Standard output as a way out: one line of JSON for each record.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;

use super::Format;
use super::ocsf::event_id;
use super::sink::{SendError, Sink, Taken};
use crate::proto::AuditRecord;

/// Writes in a thread of its own, because a pipe that nobody reads takes as long as it likes: until a batch is through,
/// or has failed, no other is begun.
pub(super) struct Lines<W> {
    out: Arc<Mutex<Out<W>>>,
    format: Format,
    writing: Option<(Mark, JoinHandle<io::Result<()>>)>,
}

/// Tells two batches apart.
type Mark = (usize, Option<String>, Option<String>);

struct Out<W> {
    writer: W,
    /// The last batch may have ended within a line.
    cut: bool,
}

impl Lines<io::Stdout> {
    pub fn to_stdout(format: Format) -> Self {
        Self::to(io::stdout(), format)
    }
}

impl<W: Write + Send + 'static> Lines<W> {
    pub fn to(writer: W, format: Format) -> Self {
        Self { out: Arc::new(Mutex::new(Out { writer, cut: false })), format, writing: None }
    }
}

#[async_trait::async_trait]
impl<W: Write + Send + 'static> Sink for Lines<W> {
    /// A batch whose caller lost patience goes on being written; the next call waits for that one's end first.
    async fn send(&mut self, batch: &[AuditRecord]) -> Result<Taken, SendError> {
        let mark = (batch.len(), batch.first().map(event_id), batch.last().map(event_id));
        loop {
            let (begun, writing) = self.writing.get_or_insert_with(|| {
                let (out, format, batch) = (self.out.clone(), self.format, batch.to_vec());
                let write = move || out.lock().unwrap_or_else(PoisonError::into_inner).write(format, &batch);
                (mark.clone(), tokio::task::spawn_blocking(write))
            });
            let written = writing.await;
            let is_this = *begun == mark;
            self.writing = None;
            let failed = |cause: String| Err(SendError::Unavailable { cause, retry_after: None });
            match written {
                Ok(Ok(())) if is_this => return Ok(Taken::default()),
                // An earlier one, of which nobody wants to know any more.
                _ if !is_this => {}
                Ok(Ok(())) => {}
                Ok(Err(error)) => return failed(format!("standard output takes nothing: {error}")),
                Err(_panic) => return failed("standard output was not written".to_owned()),
            }
        }
    }
}

impl<W: Write> Out<W> {
    fn write(&mut self, format: Format, batch: &[AuditRecord]) -> io::Result<()> {
        let start = if std::mem::replace(&mut self.cut, true) { "\n" } else { "" };
        let lines: String = batch.iter().map(|record| format!("{}\n", format.of(record))).collect();
        self.writer.write_all(start.as_bytes())?;
        self.writer.write_all(lines.as_bytes())?;
        self.writer.flush()?;
        self.cut = false;
        Ok(())
    }
}

impl<W> fmt::Debug for Lines<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lines({})", self.format)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;
    use tokio::time::timeout;

    use super::*;
    use crate::export::tests::full_record;

    /// Takes bytes while it may; then fails once, or blocks until it is let go.
    #[derive(Clone, Default)]
    struct Pipe(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        bytes: Vec<u8>,
        /// How many bytes are taken before the next error.
        room: Option<usize>,
        blocked: bool,
    }

    impl Pipe {
        fn state(&self) -> std::sync::MutexGuard<'_, State> {
            self.0.lock().expect("no panic")
        }

        /// Those that are whole.
        fn lines(&self) -> Vec<Value> {
            let text = String::from_utf8(self.state().bytes.clone()).expect("text");
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            while self.state().blocked {
                std::thread::yield_now();
            }
            let mut state = self.state();
            match state.room {
                Some(0) => {
                    state.room = None;
                    Err(io::Error::from(io::ErrorKind::BrokenPipe))
                }
                Some(room) => {
                    let taken = bytes.len().min(room);
                    state.room = Some(room - taken);
                    state.bytes.extend_from_slice(&bytes[..taken]);
                    Ok(taken)
                }
                None => {
                    state.bytes.extend_from_slice(bytes);
                    Ok(bytes.len())
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn batch(count: u64) -> Vec<AuditRecord> {
        (1..=count).map(|sequence| AuditRecord { sequence, ..full_record() }).collect()
    }

    #[tokio::test]
    async fn every_record_is_one_line() {
        let pipe = Pipe::default();
        let mut lines = Lines::to(pipe.clone(), Format::Jsonl);
        assert!(lines.send(&batch(3)).await.is_ok_and(|taken| taken == Taken::default()));
        let sequences: Vec<u64> = pipe.lines().iter().filter_map(|line| line["sequence"].as_u64()).collect();
        assert_eq!(sequences, [1, 2, 3]);
        let mut lines = Lines::to(pipe.clone(), Format::Ocsf);
        assert!(lines.send(&batch(1)).await.is_ok());
        assert_eq!(pipe.lines()[3]["class_uid"], 3002);
    }

    #[tokio::test]
    async fn after_a_line_that_was_cut_the_batch_comes_again_on_lines_of_its_own() {
        let pipe = Pipe::default();
        pipe.state().room = Some(1500);
        let mut lines = Lines::to(pipe.clone(), Format::Jsonl);
        assert!(matches!(lines.send(&batch(3)).await, Err(SendError::Unavailable { .. })));
        let whole = pipe.lines().len();
        assert!(whole < 3, "{whole}");
        assert!(lines.send(&batch(3)).await.is_ok());
        let sequences: Vec<u64> =
            pipe.lines().iter().skip(whole).filter_map(|line| line["sequence"].as_u64()).collect();
        assert_eq!(sequences, [1, 2, 3]);
    }

    #[tokio::test]
    async fn a_pipe_that_nobody_reads_is_waited_for_and_written_once() {
        let pipe = Pipe::default();
        pipe.state().blocked = true;
        let mut lines = Lines::to(pipe.clone(), Format::Jsonl);
        for _impatient in 0..3 {
            assert!(timeout(Duration::from_millis(5), lines.send(&batch(2))).await.is_err());
        }
        pipe.state().blocked = false;
        assert!(lines.send(&batch(2)).await.is_ok());
        assert_eq!(pipe.lines().len(), 2);
    }

    #[tokio::test]
    async fn the_end_of_an_earlier_batch_is_not_taken_for_that_of_another() {
        let pipe = Pipe::default();
        pipe.state().blocked = true;
        let mut lines = Lines::to(pipe.clone(), Format::Jsonl);
        assert!(timeout(Duration::from_millis(5), lines.send(&batch(2))).await.is_err());
        pipe.state().blocked = false;
        assert!(lines.send(&batch(3)).await.is_ok());
        assert_eq!(pipe.lines().len(), 2 + 3);
    }
}

//! A connection with the thread that it works on.

use std::fmt;
use std::io;
use std::thread;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::JobError;

/// Takes jobs one after the other. Ends when it is dropped and everything queued is done.
pub(super) struct Worker {
    jobs: mpsc::Sender<Job>,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

impl Worker {
    /// `after` is called after each job, `at_end` after the last.
    pub fn start(
        name: &str,
        mut connection: Connection,
        mut after: impl FnMut(&Connection) + Send + 'static,
        at_end: impl FnOnce(&Connection) + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                job(&mut connection);
                after(&connection);
            }
            at_end(&connection);
        })?;
        Ok(Self { jobs })
    }

    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, JobError> + Send + 'static,
    ) -> Result<T, JobError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Whoever asked may have left; the job is done all the same.
            let _ = reply.send(job(connection));
        });
        self.jobs.send(job).await.map_err(|_closed| JobError::Closed)?;
        answer.await.map_err(|_closed| JobError::Closed)?
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Worker")
    }
}

const QUEUE: usize = 64;

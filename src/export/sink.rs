//! A way out, as whatever ships records to it sees it.

use std::fmt;
use std::time::Duration;

use crate::proto::AuditRecord;

/// Whoever receives records.
#[async_trait::async_trait]
pub(super) trait Sink: fmt::Debug + Send {
    /// Returns once the other side has `batch`. After an error the same batch comes again, or its beginning.
    async fn send(&mut self, batch: &[AuditRecord]) -> Result<Taken, SendError>;
}

/// What became of a batch that was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Records that the other side will never take: it has said so, and asking again is forbidden.
    pub rejected: usize,
    /// Its words, in one line.
    pub why: String,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// It may be taken later.
    #[error("{cause}")]
    Unavailable { cause: String, retry_after: Option<Duration> },
    /// This batch is not; a smaller one may be.
    #[error("{0}")]
    Refused(String),
}

/// Takes what it is given, and can be told to fail.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(super) struct FakeSink(std::sync::Arc<std::sync::Mutex<FakeState>>);

#[cfg(test)]
#[derive(Debug, Default)]
struct FakeState {
    /// By [`event_id`](super::ocsf::event_id).
    taken: Vec<String>,
    /// What becomes of the next batches, the first one first.
    plan: std::collections::VecDeque<Answer>,
    calls: usize,
    largest: usize,
}

#[cfg(test)]
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Unavailable,
    /// Takes the batch, and its answer is lost.
    TakesAndFails,
    Hangs,
    Rejects(usize),
    /// A batch with a record of this target in it.
    RefusesAlways(&'static str),
}

#[cfg(test)]
impl FakeSink {
    pub fn plan(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state().plan.extend(answers);
    }

    pub fn forgets_its_plan(&self) {
        self.state().plan.clear();
    }

    pub fn taken(&self) -> Vec<String> {
        self.state().taken.clone()
    }

    pub fn calls(&self) -> usize {
        self.state().calls
    }

    pub fn largest(&self) -> usize {
        self.state().largest
    }

    fn take(&self, batch: &[AuditRecord]) {
        self.state().taken.extend(batch.iter().map(super::ocsf::event_id));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, FakeState> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn next(&self, batch: &[AuditRecord]) -> Option<Answer> {
        let mut state = self.state();
        state.calls += 1;
        state.largest = state.largest.max(batch.len());
        match state.plan.front() {
            Some(Answer::RefusesAlways(target)) => {
                let has = batch.iter().any(|record| record.target == *target);
                has.then(|| state.plan.front().cloned()).flatten()
            }
            _ => state.plan.pop_front(),
        }
    }
}

#[cfg(test)]
#[async_trait::async_trait]
impl Sink for FakeSink {
    async fn send(&mut self, batch: &[AuditRecord]) -> Result<Taken, SendError> {
        let unavailable = || SendError::Unavailable { cause: "away".to_owned(), retry_after: None };
        let next = self.next(batch);
        match next {
            None => {
                self.take(batch);
                Ok(Taken::default())
            }
            Some(Answer::Unavailable) => Err(unavailable()),
            Some(Answer::TakesAndFails) => {
                self.take(batch);
                Err(unavailable())
            }
            Some(Answer::Hangs) => std::future::pending().await,
            Some(Answer::Rejects(rejected)) => {
                self.take(batch);
                Ok(Taken { rejected, why: "too old".to_owned() })
            }
            Some(Answer::RefusesAlways(_target)) => Err(SendError::Refused("malformed".to_owned())),
        }
    }
}

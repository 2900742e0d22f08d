//! What jobs of a name have taken, for those that do not say how long they take.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::subject::Identity;
use crate::target::Job;

/// Where finished runs are remembered. Declared by the exchange, fulfilled by a store.
#[async_trait::async_trait]
pub trait RunHistory: fmt::Debug + Send + Sync {
    /// How long the newest runs took that `subject` closed under this name, at most `most` of them.
    async fn runs(&self, subject: &str, job_name: &str, most: usize) -> Result<Vec<Duration>, HistoryError>;
}

#[derive(Debug, thiserror::Error)]
#[error("the durations of earlier runs cannot be read")]
pub struct HistoryError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Learned durations. Key: subject and job name, so nobody's runs change another's credentials. Life: a minute, or until
/// a run of that name closes here. On failure: nothing is learned, and nothing kept. Bound: [`NAMES`].
pub struct History {
    runs: Arc<dyn RunHistory>,
    known: moka::sync::Cache<(String, String), Option<Duration>>,
    /// Until when the store is not asked, because it did not answer.
    left_alone: Mutex<Option<Instant>>,
}

impl History {
    pub fn new(runs: Arc<dyn RunHistory>) -> Self {
        let known = moka::sync::Cache::builder().max_capacity(NAMES).time_to_live(KNOWN_FOR).build();
        Self { runs, known, left_alone: Mutex::default() }
    }

    /// What nine of ten runs of the job's name stayed within; `None` where the job says how long it takes, has no name,
    /// or where too few runs are known.
    pub async fn learned(&self, identity: &Identity, job: &Job) -> Option<Duration> {
        let (None, Some(name)) = (job.expected_duration, &job.name) else { return None };
        let key = (identity.subject().to_owned(), name.clone());
        if let Some(known) = self.known.get(&key) {
            return known;
        }
        if self.is_left_alone() {
            return None;
        }
        // A guess is not worth waiting for: without it the target's default holds.
        let Ok(Ok(runs)) = timeout(DEADLINE, self.runs.runs(&key.0, &key.1, RUNS)).await else {
            *self.left_alone.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + LEAVE_ALONE);
            return None;
        };
        let learned = usual(runs);
        self.known.insert(key, learned);
        learned
    }

    /// As [`learned`](Self::learned), for a question about somebody who may not exist: nothing of it is kept.
    pub async fn glimpse(&self, identity: &Identity, job: &Job) -> Option<Duration> {
        let (None, Some(name)) = (job.expected_duration, &job.name) else { return None };
        let runs = timeout(DEADLINE, self.runs.runs(identity.subject(), name, RUNS)).await;
        usual(runs.ok()?.ok()?)
    }

    fn is_left_alone(&self) -> bool {
        let left_alone = self.left_alone.lock().unwrap_or_else(PoisonError::into_inner);
        left_alone.is_some_and(|until| Instant::now() < until)
    }

    /// A run of this name has ended: the next one asks anew.
    pub fn changed(&self, subject: &str, job_name: &str) {
        self.known.invalidate(&(subject.to_owned(), job_name.to_owned()));
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "History({} names)", self.known.entry_count())
    }
}

/// The ninth decile, by nearest rank.
fn usual(mut runs: Vec<Duration>) -> Option<Duration> {
    if runs.len() < RUNS_AT_LEAST {
        return None;
    }
    runs.sort_unstable();
    runs.get((runs.len() * 9).div_ceil(10).saturating_sub(1)).copied()
}

/// One or two runs say little: the first are often trials.
const RUNS_AT_LEAST: usize = 3;

/// Older runs were of other data and other code.
const RUNS: usize = 50;

const NAMES: u64 = 100_000;

const KNOWN_FOR: Duration = Duration::from_secs(60);

const DEADLINE: Duration = Duration::from_millis(500);

const LEAVE_ALONE: Duration = Duration::from_secs(5);

/// Runs in memory.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Default)]
pub struct FakeRunHistory(pub std::sync::Mutex<Vec<Duration>>);

#[cfg(any(test, feature = "testing"))]
#[async_trait::async_trait]
impl RunHistory for FakeRunHistory {
    async fn runs(&self, _subject: &str, _job_name: &str, most: usize) -> Result<Vec<Duration>, HistoryError> {
        let runs = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(runs.iter().rev().take(most).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn hours(hours: &[u64]) -> Vec<Duration> {
        hours.iter().map(|hours| Duration::from_secs(hours * 3600)).collect()
    }

    fn named(name: &str) -> Job {
        Job { name: Some(name.to_owned()), ..Job::default() }
    }

    #[test]
    fn nine_of_ten_runs_stay_within_what_is_learned() {
        assert_eq!(usual(hours(&[1, 2])), None);
        assert_eq!(usual(hours(&[3, 1, 2])), Some(Duration::from_secs(3 * 3600)));
        assert_eq!(usual(hours(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 100])), Some(Duration::from_secs(9 * 3600)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_says_how_long_it_takes_or_has_no_name_learns_nothing() {
        let history = History::new(Arc::new(FakeRunHistory(hours(&[2, 2, 2]).into())));
        let identity = Identity::for_test(SystemTime::UNIX_EPOCH);
        let says = Job { expected_duration: Some(Duration::from_secs(1)), ..named("vision") };
        assert_eq!(history.learned(&identity, &says).await, None);
        assert_eq!(history.learned(&identity, &Job::default()).await, None);
        assert_eq!(history.learned(&identity, &named("vision")).await, Some(Duration::from_secs(7200)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_ends_changes_what_is_learned() {
        let runs = Arc::new(FakeRunHistory(hours(&[2, 2, 2]).into()));
        let history = History::new(runs.clone());
        let identity = Identity::for_test(SystemTime::UNIX_EPOCH);
        assert_eq!(history.learned(&identity, &named("vision")).await, Some(Duration::from_secs(7200)));
        runs.0.lock().expect("no panic").extend(hours(&[9]));
        assert_eq!(history.learned(&identity, &named("vision")).await, Some(Duration::from_secs(7200)));
        history.changed(identity.subject(), "vision");
        assert_eq!(history.learned(&identity, &named("vision")).await, Some(Duration::from_secs(9 * 3600)));
    }
}

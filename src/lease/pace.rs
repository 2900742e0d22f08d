//! The order in which watches get new credentials when many want one at once: the soonest to expire first, below the rate
//! that the clouds allow.

use std::cmp::{self, Reverse};
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// Gives turns, at most `per_second` of them in any second. Dropping it ends its task.
#[derive(Debug)]
pub(super) struct Pace {
    waiting: Arc<Waiting>,
    giving: AbortHandle,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: Mutex<BinaryHeap<Reverse<Place>>>,
    arrivals: AtomicU64,
    came: Notify,
}

/// Ordered by urgency, then by arrival.
#[derive(Debug)]
struct Place {
    urgency: SystemTime,
    number: u64,
    turn: oneshot::Sender<()>,
}

impl Pace {
    pub fn start(per_second: u32) -> Self {
        let waiting = Arc::new(Waiting::default());
        let giving = tokio::spawn(give(waiting.clone(), Duration::from_secs(1) / per_second.max(1))).abort_handle();
        Self { waiting, giving }
    }

    /// Returns when it is the caller's turn. `urgency`: when what it has expires.
    pub async fn turn(&self, urgency: SystemTime) {
        let (turn, come) = oneshot::channel();
        let number = self.waiting.arrivals.fetch_add(1, Ordering::Relaxed);
        self.waiting.queue().push(Reverse(Place { urgency, number, turn }));
        self.waiting.came.notify_one();
        // An end of the giving task is the end of the broker.
        let _ = come.await;
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.giving.abort();
    }
}

impl Waiting {
    fn queue(&self) -> MutexGuard<'_, BinaryHeap<Reverse<Place>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn give(waiting: Arc<Waiting>, every: Duration) {
    let mut next = Instant::now();
    loop {
        let place = waiting.queue().pop();
        match place {
            None => waiting.came.notified().await,
            // Whoever has left costs no turn.
            Some(Reverse(place)) => {
                if place.turn.send(()).is_ok() {
                    next = next.max(Instant::now()) + every;
                    sleep_until(next).await;
                }
            }
        }
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        (self.urgency, self.number).cmp(&(other.urgency, other.number))
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Place {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_soonest_to_expire_comes_first_and_no_second_has_more_turns_than_the_rate() {
        let pace = Pace::start(10);
        let began = Instant::now();
        let expiry = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let order = Mutex::new(Vec::new());
        let turns = (0..100u64).rev().map(|number| {
            let (pace, order) = (&pace, &order);
            async move {
                pace.turn(expiry(number)).await;
                order.lock().expect("no panic").push((number, began.elapsed()));
            }
        });
        futures_util::future::join_all(turns).await;
        let order = order.into_inner().expect("no panic");
        assert!(order.is_sorted_by_key(|(number, _at)| *number), "{order:?}");
        for second in 0..9 {
            let turns = order.iter().filter(|(_number, at)| at.as_secs() == second).count();
            assert!((9..=11).contains(&turns), "{turns} turns in second {second}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_alone_does_not_wait_and_who_leaves_costs_nothing() {
        let pace = Pace::start(1);
        let began = Instant::now();
        pace.turn(SystemTime::UNIX_EPOCH).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        let leaving = tokio::time::timeout(Duration::from_millis(1), pace.turn(SystemTime::UNIX_EPOCH)).await;
        assert!(leaving.is_err());
        pace.turn(SystemTime::UNIX_EPOCH).await;
        assert_eq!(began.elapsed().as_secs(), 1);
    }
}

//! The order in which watches get new credentials when many want one at once: the soonest to expire first, below the rate
//! that the clouds allow.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::credential::Key;

/// Gives turns, at most `per_second` of them in any second; all who want the same credential have one turn together.
/// Dropping it ends its task.
#[derive(Debug)]
pub(super) struct Pace {
    waiting: Arc<Waiting>,
    giving: AbortHandle,
}

#[derive(Debug, Default)]
struct Waiting {
    queue: Mutex<Queue>,
    came: Notify,
}

/// By urgency, then by arrival. Places of a turn that was given stay in the heap until they come up, and count no more.
#[derive(Debug, Default)]
struct Queue {
    arrivals: u64,
    places: BinaryHeap<Reverse<(SystemTime, u64, Key)>>,
    turns: HashMap<Key, Turn>,
}

/// All who wait for one key.
#[derive(Debug)]
struct Turn {
    /// The first of them.
    since: u64,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Queue {
    fn join(&mut self, urgency: SystemTime, key: Key, turn: oneshot::Sender<()>) {
        self.arrivals += 1;
        self.places.push(Reverse((urgency, self.arrivals, key)));
        let since = self.arrivals;
        self.turns.entry(key).or_insert_with(|| Turn { since, waiting: Vec::new() }).waiting.push(turn);
    }

    /// Those whose turn is next and who are still there.
    fn next(&mut self) -> Option<Vec<oneshot::Sender<()>>> {
        while let Some(Reverse((_urgency, arrival, key))) = self.places.pop() {
            if self.turns.get(&key).is_none_or(|turn| arrival < turn.since) {
                continue;
            }
            let mut waiting = self.turns.remove(&key).map(|turn| turn.waiting).unwrap_or_default();
            waiting.retain(|turn| !turn.is_closed());
            if !waiting.is_empty() {
                return Some(waiting);
            }
        }
        None
    }
}

impl Pace {
    pub fn start(per_second: NonZeroU32) -> Self {
        let waiting = Arc::new(Waiting::default());
        let giving = tokio::spawn(give(waiting.clone(), Duration::from_secs(1) / per_second.get())).abort_handle();
        Self { waiting, giving }
    }

    /// Returns when it is the turn of `key`. `urgency`: when what the caller has expires.
    pub async fn turn(&self, urgency: SystemTime, key: Key) {
        let (turn, come) = oneshot::channel();
        self.waiting.queue().join(urgency, key, turn);
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
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn give(waiting: Arc<Waiting>, every: Duration) {
    let mut next = Instant::now();
    loop {
        let turns = waiting.queue().next();
        let Some(turns) = turns else {
            waiting.came.notified().await;
            continue;
        };
        for turn in turns {
            // Whoever has left meanwhile needs none.
            let _ = turn.send(());
        }
        next = next.max(Instant::now()) + every;
        sleep_until(next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_soonest_to_expire_comes_first_and_no_second_has_more_turns_than_the_rate() {
        let pace = start(10);
        let began = Instant::now();
        let expiry = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let order = Mutex::new(Vec::new());
        let turns = (0..100u64).rev().map(|number| {
            let (pace, order) = (&pace, &order);
            async move {
                pace.turn(expiry(number), key(number)).await;
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
        let pace = start(1);
        let began = Instant::now();
        pace.turn(SystemTime::UNIX_EPOCH, key(1)).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        let leaving = pace.turn(SystemTime::UNIX_EPOCH, key(2));
        assert!(tokio::time::timeout(Duration::from_millis(1), leaving).await.is_err());
        pace.turn(SystemTime::UNIX_EPOCH, key(3)).await;
        assert_eq!(began.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_gang_that_wants_one_credential_has_one_turn() {
        let pace = start(1);
        let began = Instant::now();
        let gang = (0..1000).map(|_worker| pace.turn(SystemTime::UNIX_EPOCH, key(7)));
        futures_util::future::join_all(gang).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        pace.turn(SystemTime::UNIX_EPOCH, key(7)).await;
        assert_eq!(began.elapsed().as_secs(), 1, "whoever comes later has another");
    }

    fn start(per_second: u32) -> Pace {
        Pace::start(NonZeroU32::new(per_second).expect("some"))
    }

    fn key(number: u64) -> Key {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        key
    }
}

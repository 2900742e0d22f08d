//! Turns at something scarce, given to those who wait one caller after the other.

use std::collections::VecDeque;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// So many turns at once. Whoever waits with many calls waits behind whoever waits with one.
#[derive(Debug)]
pub struct FairQueue<K> {
    state: Arc<Mutex<State<K>>>,
}

#[derive(Debug)]
struct State<K> {
    free: usize,
    /// Callers with what they wait for; the next turn is the first one's, who then goes to the end.
    waiting: VecDeque<(K, VecDeque<oneshot::Sender<Turn<K>>>)>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub struct Turn<K> {
    state: Option<Arc<Mutex<State<K>>>>,
}

impl<K: Eq + Hash> FairQueue<K> {
    pub fn new(turns: usize) -> Self {
        Self { state: Arc::new(Mutex::new(State { free: turns, waiting: VecDeque::new() })) }
    }

    /// Waits for a turn; whoever gives up waiting is passed over.
    pub async fn turn(&self, caller: K) -> Turn<K> {
        let waiting = {
            let mut state = lock(&self.state);
            if state.free > 0 {
                state.free -= 1;
                return Turn { state: Some(self.state.clone()) };
            }
            let (sender, receiver) = oneshot::channel();
            match state.waiting.iter_mut().find(|(other, _calls)| *other == caller) {
                Some((_caller, calls)) => {
                    // Those that gave up do not pile up behind those that wait.
                    if calls.len() >= LOOK_THROUGH {
                        calls.retain(|call| !call.is_closed());
                    }
                    calls.push_back(sender);
                }
                None => state.waiting.push_back((caller, VecDeque::from([sender]))),
            }
            receiver
        };
        match waiting.await {
            Ok(turn) => turn,
            // Unreachable: senders are dropped with the queue, which whoever waits holds.
            Err(_dropped) => Turn { state: None },
        }
    }
}

impl<K> State<K> {
    /// Who is next.
    fn next(&mut self) -> Option<oneshot::Sender<Turn<K>>> {
        while let Some((caller, mut calls)) = self.waiting.pop_front() {
            let next = std::iter::from_fn(|| calls.pop_front()).find(|call| !call.is_closed());
            if !calls.is_empty() {
                self.waiting.push_back((caller, calls));
            }
            if next.is_some() {
                return next;
            }
        }
        None
    }
}

impl<K> Drop for Turn<K> {
    fn drop(&mut self) {
        let Some(queue) = self.state.take() else { return };
        loop {
            let next = {
                let mut state = lock(&queue);
                match state.next() {
                    Some(next) => next,
                    None => {
                        state.free += 1;
                        return;
                    }
                }
            };
            match next.send(Turn { state: Some(queue.clone()) }) {
                Ok(()) => return,
                // Gave up at this moment: the turn is still here.
                Err(mut turn) => turn.state = None,
            }
        }
    }
}

fn lock<K>(state: &Mutex<State<K>>) -> MutexGuard<'_, State<K>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

const LOOK_THROUGH: usize = 1024;

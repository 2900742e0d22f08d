//! Time that runs ahead: hours of it in a moment, and no deadline is met before its turn.

use std::thread;
use std::time::Duration;

use tokio::task::JoinHandle;

/// Lets tokio's time run ahead in steps of 50 ms while nothing happens. Paused time alone would jump to the next
/// deadline whenever loopback takes a moment; so it takes a stall of hundreds of milliseconds to run into one by
/// mistake. A blocking task holds the time.
pub struct Hurry(JoinHandle<()>);

impl Hurry {
    /// In a test with `start_paused`.
    pub fn start() -> Self {
        Self(tokio::spawn(async {
            loop {
                tokio::task::spawn_blocking(|| thread::sleep(Duration::from_millis(2))).await.expect("no panic");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }))
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.abort();
    }
}

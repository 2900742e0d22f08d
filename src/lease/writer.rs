//! Changes that come together are written together: one transaction, one disk flush.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::store::{Applied, Change, LeaseStore, LeaseStoreError};

/// Ends, with everything written, when it is dropped.
#[derive(Debug)]
pub(super) struct Writer(mpsc::Sender<Entry>);

#[derive(Debug)]
struct Entry {
    change: Change,
    applied: oneshot::Sender<Result<Applied, LeaseStoreError>>,
}

impl Writer {
    pub fn start(store: Arc<dyn LeaseStore>) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        tokio::spawn(write(entries, store));
        Self(queue)
    }

    /// Returns once `change` is durable.
    pub async fn apply(&self, change: Change) -> Result<Applied, LeaseStoreError> {
        let (applied, confirmed) = oneshot::channel();
        self.0.send(Entry { change, applied }).await.map_err(LeaseStoreError::written)?;
        confirmed.await.map_err(LeaseStoreError::written)?
    }
}

async fn write(mut entries: mpsc::Receiver<Entry>, store: Arc<dyn LeaseStore>) {
    let mut gathered = Vec::with_capacity(GROUP);
    // While one group is being written, the next gathers by itself.
    while entries.recv_many(&mut gathered, GROUP).await > 0 {
        let (changes, waiting): (Vec<Change>, Vec<_>) =
            gathered.drain(..).map(|entry| (entry.change, entry.applied)).unzip();
        match store.apply(changes).await {
            Ok(applied) => {
                for (applied, waiting) in applied.into_iter().zip(waiting) {
                    // Whoever asked may have left; the change is made all the same.
                    let _ = waiting.send(Ok(applied));
                }
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "changes of leases were not written");
                for waiting in waiting {
                    let _ = waiting.send(Err(error.clone()));
                }
            }
        }
    }
}

const QUEUE: usize = 16_384;

/// Changes of one transaction.
const GROUP: usize = 512;

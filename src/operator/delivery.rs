//! The way of records to a reader who may be slow: a little is read ahead, and whoever takes nothing for a while is left.

use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::exchange::ExchangeError;
use crate::lease::Failed;
use crate::proto::AuditRecord;

/// Records as they are read, in a task of their own.
#[derive(Debug)]
pub struct Delivery {
    records: mpsc::Receiver<Result<AuditRecord, Failed>>,
    /// How it ended, where that is worth a word.
    end: Option<tokio::task::JoinHandle<Option<Failed>>>,
}

impl Delivery {
    pub(super) fn of(records: impl Stream<Item = Result<AuditRecord, Failed>> + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel(AHEAD);
        Self { records: receiver, end: Some(tokio::spawn(send(records, sender))) }
    }

    /// `None` at the end; an error is the last that is heard.
    pub async fn next(&mut self) -> Option<Result<AuditRecord, Failed>> {
        if let Some(record) = self.records.recv().await {
            return Some(record);
        }
        match self.end.take()?.await {
            Ok(failed) => failed.map(Err),
            Err(_panic) => Some(Err(Failed::new(ExchangeError::Internal))),
        }
    }
}

/// Until the reader has left, or has taken nothing for too long.
async fn send(
    records: impl Stream<Item = Result<AuditRecord, Failed>>,
    sender: mpsc::Sender<Result<AuditRecord, Failed>>,
) -> Option<Failed> {
    let mut records = pin!(records);
    loop {
        let record = tokio::select! {
            () = sender.closed() => return None,
            record = records.next() => record?,
        };
        match timeout(PATIENCE, sender.send(record)).await {
            Ok(Ok(())) => {}
            Ok(Err(_left)) => return None,
            Err(_elapsed) => return Some(Failed::new(ExchangeError::LogReaders(SLOW))),
        }
    }
}

/// Some hundred kilobytes for a reader who takes nothing.
const AHEAD: usize = 64;

/// A reader who is alive takes something in this time, over any network.
const PATIENCE: Duration = Duration::from_secs(30);
const SLOW: &str = "no record of this search was taken for 30 s, and it has ended: ask again, from the last record on";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::stream;

    use super::*;

    /// Without end, each with its number; `held` for as long as it is read.
    fn endless(held: Arc<()>) -> impl Stream<Item = Result<AuditRecord, Failed>> + Send {
        stream::iter(0_u64..).map(move |sequence| {
            let _held = &held;
            Ok(AuditRecord { sequence, ..AuditRecord::default() })
        })
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_loses_the_place_and_is_told_behind_what_was_read_for_them() {
        let held = Arc::new(());
        let mut delivery = Delivery::of(endless(held.clone()));
        assert_eq!(delivery.next().await.and_then(Result::ok).map(|record| record.sequence), Some(0));
        tokio::time::sleep(PATIENCE - Duration::from_secs(1)).await;
        assert_eq!(Arc::strong_count(&held), 2);
        // One is taken in time: another 30 s.
        assert!(delivery.next().await.is_some_and(|record| record.is_ok()));
        tokio::time::sleep(PATIENCE - Duration::from_secs(1)).await;
        assert_eq!(Arc::strong_count(&held), 2);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(Arc::strong_count(&held), 1, "nobody reads for them any more");
        let mut left = 0;
        let end = loop {
            match delivery.next().await.expect("an end that is told") {
                Ok(_record) => left += 1,
                Err(failed) => break failed,
            }
        };
        assert_eq!(left, AHEAD);
        assert!(matches!(end.error, ExchangeError::LogReaders(SLOW)));
        assert!(delivery.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_ends_it_at_once_although_there_is_nothing_new() {
        let held = Arc::new(());
        let quiet = {
            let held = held.clone();
            stream::pending().inspect(move |_record| {
                let _held = &held;
            })
        };
        let delivery = Delivery::of(quiet);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(Arc::strong_count(&held), 2, "who waits is not slow");
        drop(delivery);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }
}

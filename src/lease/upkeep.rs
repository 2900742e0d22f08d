//! What leases need although nobody calls: lapses written down, ends made known, outages forgiven.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::ending::PIECE;
use super::{Failed, LeaseStoreError, Leases};

impl Leases {
    /// Before the first call is served: jobs that lived while no broker did keep their leases.
    pub async fn begin(&self) -> Result<(), LeaseStoreError> {
        if self.store.alive(self.clock.now(), OUTAGE).await? {
            tracing::warn!("no broker took heartbeats for a while: every lease of then has a whole heartbeat from now");
        }
        Ok(())
    }

    /// Runs for as long as the broker does. Ended leases are kept for `retention`.
    pub async fn keep(self: Arc<Self>, retention: Duration) {
        tokio::join!(self.sweep(retention), self.listen());
    }

    async fn sweep(&self, retention: Duration) {
        let (mut tick, mut well, mut pruned) = (interval(SWEEP_EVERY), true, Instant::now() - PRUNE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let swept = self.sweep_once().await;
            if let Err(failed) = &swept
                && well
            {
                tracing::error!(
                    error = &failed.error as &dyn std::error::Error,
                    "lapsed leases are not written down now"
                );
            }
            well = swept.is_ok();
            if pruned.elapsed() >= PRUNE_EVERY {
                pruned = Instant::now();
                if let Err(error) = self.store.prune(self.clock.now() - retention).await {
                    tracing::error!(error = &error as &dyn std::error::Error, "old leases were not dropped");
                }
            }
        }
    }

    /// One round: outages first, so that none of them ends a lease.
    pub async fn sweep_once(&self) -> Result<(), Failed> {
        loop {
            // In each turn: while many leases are written down, the broker lives.
            self.begin().await?;
            let now = self.clock.now();
            let lapsed = self.store.lapsed(now, PIECE).await?;
            let more = lapsed.len() == PIECE;
            self.end(lapsed.iter().filter_map(|lease| Some((lease.id, lease.end_at(now)?))).collect()).await?;
            if !more {
                break;
            }
        }
        // Whoever wrote these down has had time to record them, and did not.
        let unrecorded = self.store.unrecorded(RECORDED_WITHIN, PIECE).await?;
        self.record_ends(&unrecorded).await
    }

    /// Ends that other replicas wrote down.
    async fn listen(&self) {
        let (mut tick, mut heard) = (interval(LISTEN_EVERY), Instant::now());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if self.ends.is_empty() {
                heard = Instant::now();
                continue;
            }
            let asked = Instant::now();
            // Ends become visible a moment after their time.
            if let Ok(ended) = self.store.ended_within(heard.elapsed() + OVERLAP).await {
                heard = asked;
                self.heard_of_ends(ended.into_iter()).await;
            }
        }
    }
}

const SWEEP_EVERY: Duration = Duration::from_secs(3);

/// Two rounds that did not come. A job that beats at a third of its heartbeat, which is 15 s or more, outlives what is
/// shorter.
const OUTAGE: Duration = Duration::from_secs(7);

const RECORDED_WITHIN: Duration = Duration::from_secs(30);

/// A revocation reaches a watch at another replica within this and a round trip.
const LISTEN_EVERY: Duration = Duration::from_millis(500);
const OVERLAP: Duration = Duration::from_secs(3);

const PRUNE_EVERY: Duration = Duration::from_secs(3600);

//! A broker that comes back to a hundred thousand leases: it is there soon, and nobody pays for its absence.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carnet::clock::{Clock as _, ManualClock};
use carnet::http;
use carnet::lease::{Change, EndKind, Lease, LeaseQuery, LeaseStore};
use carnet::secret::{SealingKeys, Secret};
use carnet::store::{StoreSettings, open as open_store};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::time;
use crate::holder::{LEASING, beat, open};
use crate::support::{Broker, STORE_KEY, Setup, eventually};

/// Leases that are open when the broker goes away, and those that had lapsed by then.
const OPEN: usize = 100_000;
const LAPSED: usize = 1200;

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_every_lease_of_then_has_a_whole_heartbeat_and_what_had_lapsed_has_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, clock) = (folder.path().join("carnet.db"), ManualClock::start());
    let setup = || Setup {
        rules: Some(LEASING),
        clock: Some(clock.clone()),
        store: Some(format!("sqlite:{}", file.display())),
        ..Setup::default()
    };
    let mut first = Broker::start_for(setup()).await;
    let opened = open(&first, &["vertex"]).await;
    first.take_app().drain().await;
    fill(&file, clock.now()).await;

    clock.advance(Duration::from_secs(3600));
    let began = Instant::now();
    let mut second = Broker::start_for(Setup { replica_of: Some(first.original()), ..setup() }).await;
    let said = format!("ready within {} ms of its start on {OPEN} open leases\n", began.elapsed().as_millis());
    // Past the harness, which keeps what a test that succeeds prints to itself.
    std::io::stderr().write_all(said.as_bytes()).expect("said");
    let (now, store) = (clock.now(), leases(&file).await);
    let query = LeaseQuery { states: vec![None], most: 2 * OPEN, ..LeaseQuery::default() };
    let active = store.list(&query, now).await.expect("leases");
    assert_eq!(active.len(), OPEN + 1);
    assert!(active.iter().all(|lease| lease.heartbeat_before == now + lease.heartbeat));

    let beaten = beat(&second, &opened.lease_token).await.expect("a beat");
    assert_eq!(time(beaten.heartbeat_before), time(beaten.opened_at) + 3_600_000 + 300_000);
    eventually("the end of what had lapsed", async || store.lapsed(now, 1).await.is_ok_and(|lapsed| lapsed.is_empty()))
        .await;
    let ended = LeaseQuery { states: vec![Some(EndKind::Expired)], ..query };
    assert_eq!(store.list(&ended, now).await.expect("leases").len(), LAPSED);
    second.take_app().drain().await;
    second.no_secret_was_left_behind();
}

async fn leases(file: &Path) -> Arc<dyn LeaseStore> {
    let url = Secret::new(format!("sqlite:{}", file.display()));
    let settings = StoreSettings::parse(&url, &http::Settings::default()).expect("settings");
    let sealing = SealingKeys::from_base64(&[Secret::new(STORE_KEY)]).expect("keys");
    open_store(&settings, Arc::new(sealing)).await.expect("a store").leases
}

/// As brokers would have left it at `now`.
async fn fill(file: &Path, now: SystemTime) {
    let opening = |lease: Lease| Change::Open { lease: Box::new(lease), identity: Zeroizing::new(vec![0; 500]) };
    let lapsed = (0..LAPSED).map(|number| (number, now - Duration::from_secs(300)));
    let open = (LAPSED..LAPSED + OPEN).map(|number| (number, now - Duration::from_secs(299)));
    let changes = lapsed.chain(open).map(|(number, at)| {
        let number = u128::try_from(number).expect("small");
        opening(Lease::for_test(number + 1, at))
    });
    leases(file).await.apply(changes.collect()).await.expect("written");
}

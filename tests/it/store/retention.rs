//! How records leave a store when their time is over, and what stays in their place.

use std::sync::Arc;
use std::time::Duration;

use carnet::audit::{Audit, AuditRecord, Chain, Checkpoint, Extent, Filter, Kept, Reach, Records, is_own};
use carnet::clock::{ManualClock, unix_milliseconds};
use carnet::secret::sha256;
use carnet::store::Stores;
use carnet::subject::Facts;
use uuid::Uuid;

use super::{Place, at, issued, record};

const MINUTE: Duration = Duration::from_secs(60);

/// Another writer's chain: so many groups of two records, a second apart.
async fn write(store: &Stores, chain: &mut Chain, seconds: std::ops::Range<u64>) {
    for second in seconds {
        let records = [1, 2].map(|id| AuditRecord { time: at(second), ..record(id) });
        store.audit.append(chain.seal(records.into(), Vec::new())).await.expect("written");
    }
}

async fn checkpoint(store: &Stores, chain: &Chain, seconds: u64) {
    let reach = Reach { head: chain.head().expect("a head"), newest_ms: 0 };
    let checkpoint = Checkpoint::make(&reach, None, at(seconds)).expect("made");
    assert_eq!(store.audit.checkpoint(checkpoint).await.expect("kept"), Kept::Yes);
}

/// How many records of other writers a broker that starts now drops, because they are a minute old.
async fn prune(store: &Stores, now: u64) -> u64 {
    let kept = async || {
        let chains = store.records.chains().await.expect("read");
        let others = chains.iter().filter(|extent| extent.chain.as_u128() < 10);
        others.map(|extent| extent.last + 1 - extent.first).sum::<u64>()
    };
    let before = kept().await;
    let clock = Arc::new(ManualClock::at(at(now)));
    let (audit, writer) = Audit::start(store.audit.clone(), clock);
    let pruned = audit.upkeep(store.records.clone(), None).prune_once(&audit, MINUTE).await.expect("pruned");
    drop(audit);
    writer.await.expect("a clean end");
    let dropped = before - kept().await;
    assert!(pruned >= dropped, "{pruned} of all writers");
    dropped
}

async fn extent(store: &Stores, chain: u128) -> Option<Extent> {
    let chains = store.records.chains().await.expect("read");
    chains.into_iter().find(|extent| extent.chain == Uuid::from_u128(chain))
}

/// Position, and whether the chain begins there.
async fn checkpoints(store: &Stores, chain: u128) -> Vec<(u64, bool)> {
    let of_chain = store.records.checkpoints((Uuid::from_u128(chain), 0), 100).await.expect("read");
    let of_chain = of_chain.into_iter().take_while(|checkpoint| checkpoint.chain == Uuid::from_u128(chain));
    of_chain.map(|checkpoint| (checkpoint.position, checkpoint.anchor_ms.is_some())).collect()
}

pub(super) async fn records_past_their_retention_are_dropped_up_to_a_checkpoint_and_no_others(place: &Place) {
    let store = place.open().await;
    let mut chain = Chain::new(Uuid::from_u128(5));
    write(&store, &mut chain, 0..20).await;
    store.audit.append(chain.seal(vec![issued(9, [1; 32], true)], Vec::new())).await.expect("written");
    checkpoint(&store, &chain, 20).await;
    write(&store, &mut chain, 20..50).await;
    checkpoint(&store, &chain, 3_650).await;
    write(&store, &mut chain, 50..100).await;
    checkpoint(&store, &chain, 7_300).await;
    assert_eq!(checkpoints(&store, 5).await, [(41, false), (101, false), (201, false)]);

    // A second too early, and then in time.
    write(&store, &mut chain, 79..80).await;
    assert_eq!(prune(&store, 80).await, 0);
    assert_eq!(prune(&store, 1_000).await, 0, "the newest record of others says what time it is");
    write(&store, &mut chain, 81..82).await;
    assert_eq!(prune(&store, 1_000).await, 41);
    assert_eq!(checkpoints(&store, 5).await, [(41, true), (101, false), (201, false)]);
    let left = extent(&store, 5).await.expect("the rest");
    assert_eq!((left.first, left.last), (42, 205));
    assert_eq!(store.audit.find_issued(&[1; 32]).await.expect("read"), None);
    assert_eq!(prune(&store, 1_000).await, 0, "once");

    // It is on record, before it was done.
    let mut search = Records::new(store.records.clone())
        .search(Filter { action: Some("audit.prune".to_owned()), ..Filter::default() });
    let said = search.page().await.expect("read").expect("a record");
    assert_eq!(said.len(), 1);
    assert!(
        said[0].attributes["heads"].starts_with(&format!("{}:41:", Uuid::from_u128(5))),
        "{:?}",
        said[0].attributes
    );
    assert_eq!(said[0].attributes["retention"], "60");
    assert!(is_own(&said[0].action));

    // The next span: its checkpoint is an hour older than its records.
    write(&store, &mut chain, 3_700..3_701).await;
    assert_eq!(prune(&store, 4_000).await, 0);
    write(&store, &mut chain, 3_711..3_712).await;
    assert_eq!(prune(&store, 4_000).await, 60);
    assert_eq!(checkpoints(&store, 5).await, [(101, true), (201, false)]);
}

pub(super) async fn a_clock_that_has_jumped_ahead_empties_no_log(place: &Place) {
    let store = place.open().await;
    let mut chain = Chain::new(Uuid::from_u128(5));
    write(&store, &mut chain, 0..10).await;
    checkpoint(&store, &chain, 10).await;
    let year = 365 * 86_400;
    for _restart in 0..3 {
        assert_eq!(prune(&store, year).await, 0, "the broker's own start is no sign of time");
    }
    assert_eq!(extent(&store, 5).await.expect("all of it").first, 1);
}

pub(super) async fn what_is_left_of_a_killed_writer_goes_with_its_time_and_so_do_its_anchor_and_facts(place: &Place) {
    let store = place.open().await;
    let [old, used] = ["{}", "[]"].map(|json| Arc::new(Facts::stored(sha256(json.as_bytes()), json.to_owned())));
    let mut chain = Chain::new(Uuid::from_u128(5));
    let about = AuditRecord { identity: Some(old.clone()), ..record(1) };
    let mut facts = vec![old.clone(), used.clone()];
    facts.sort_by_key(|facts| facts.digest);
    store.audit.append(chain.seal(vec![about], facts)).await.expect("written");
    write(&store, &mut chain, 1..10).await;
    let mut living = Chain::new(Uuid::from_u128(6));
    write(&store, &mut living, 60..61).await;
    assert_eq!(prune(&store, 1_000).await, 0, "its last record is not old enough");
    write(&store, &mut living, 70..71).await;
    assert_eq!(prune(&store, 1_000).await, 19);
    assert_eq!((extent(&store, 5).await, checkpoints(&store, 5).await), (None, vec![(19, true)]));

    let day = 86_400;
    let again = vec![used.clone()];
    store.audit.append(living.seal(vec![AuditRecord { time: at(day), ..record(1) }], again)).await.expect("written");
    write(&store, &mut living, day..day + 1).await;
    prune(&store, 2 * day).await;
    assert_eq!(checkpoints(&store, 5).await, [], "nobody names the chain any more");
    assert!(store.records.facts(&old.digest).await.expect("read").is_some(), "some record may have named it today");
    write(&store, &mut living, day + 70..day + 71).await;
    prune(&store, 2 * day).await;
    assert_eq!(store.records.facts(&old.digest).await.expect("read"), None);
    assert_eq!(store.records.facts(&used.digest).await.expect("read").as_deref(), Some("[]"));
}

pub(super) async fn checkpoints_come_back_in_their_order_and_of_an_hour_only_the_last(place: &Place) {
    let store = place.open().await;
    let mut chains = [5, 6].map(|id| Chain::new(Uuid::from_u128(id)));
    for chain in &mut chains {
        for seconds in [3_600, 3_660, 7_199, 7_200, 7_201] {
            write(&store, chain, 0..1).await;
            checkpoint(&store, chain, seconds).await;
        }
    }
    let all = store.records.checkpoints((Uuid::nil(), 0), 10).await.expect("read");
    let places: Vec<_> = all.iter().map(|checkpoint| (checkpoint.chain.as_u128(), checkpoint.position)).collect();
    assert_eq!(places, [(5, 6), (5, 10), (6, 6), (6, 10)]);
    let (said, _statement) = all[1].statement().expect("a statement");
    assert_eq!((Some(said.head), said.at, all[1].at_ms), (chains[0].head(), at(7_201), unix_milliseconds(at(7_201))));
    let behind = store.records.checkpoints((Uuid::from_u128(5), 6), 2).await.expect("read");
    assert_eq!(behind, all[1..3]);
}

pub(super) async fn a_probe_leaves_nothing_behind(place: &Place) {
    let store = place.open().await;
    let mut chain = Chain::new(Uuid::from_u128(5));
    write(&store, &mut chain, 1_000..1_001).await;
    store.audit.probe().await.expect("writable");
    write(&store, &mut chain, 2_000..2_001).await;
    store.audit.probe().await.expect("writable");
    assert_eq!(extent(&store, 5).await.expect("a chain").last, 4);
    let (mut search, mut found) = (Records::new(store.records.clone()).search(Filter::default()), 0);
    while let Some(page) = search.page().await.expect("read") {
        found += page.len();
    }
    assert_eq!(found, 4);
    // A row of the probe's would be the last, and of 1970.
    let last = store.records.last_of_others().await.expect("read").expect("a group");
    assert_eq!((last.position, last.newest_ms), (3, unix_milliseconds(at(2_000))));
}

//! What a store gives back of its audit log, beside the one who writes it and without anybody.

use std::sync::Arc;
use std::time::Duration;

use carnet::audit::{AuditReader, AuditRecord, Chain, Cursors, Filter, Gaps, Group, READ_AT_ONCE, Records, chain_of};
use carnet::http;
use carnet::secret::Secret;
use carnet::store::{OpenError, StoreSettings, open_to_read};
use uuid::Uuid;

use super::{Place, alone, at, record};
use crate::postgres::with_database;

impl Place {
    async fn try_read(&self) -> Result<Arc<dyn AuditReader>, OpenError> {
        let settings =
            StoreSettings::parse(&Secret::new(self.0.as_str()), &http::Settings::default()).expect("settings");
        open_to_read(&settings).await
    }
}

/// `records` of them, at this second of 1970, the first with this id.
fn some(chain: &mut Chain, id: u128, seconds: u64, records: usize) -> Group {
    let record = |id| AuditRecord { time: at(seconds), ..record(id) };
    chain.seal((id..).take(records).map(record).collect(), Vec::new())
}

/// Ids as numbers, as the test gave them.
fn ids(records: &[carnet::proto::AuditRecord]) -> Vec<u128> {
    records.iter().map(|record| record.exchange_id.parse::<Uuid>().expect("a UUID").as_u128()).collect()
}

async fn all(records: &Records, filter: Filter) -> Vec<u128> {
    let (mut search, mut found) = (records.search(filter), Vec::new());
    while let Some(page) = search.page().await.expect("read") {
        assert!(!page.is_empty() && page.len() < 2 * usize::try_from(READ_AT_ONCE).expect("small"), "{}", page.len());
        found.extend(ids(&page));
    }
    found
}

pub(super) async fn the_newest_records_come_first_page_by_page_to_the_last(place: &Place) {
    let store = place.open().await;
    let mut chains = [1, 2].map(|id| Chain::new(Uuid::from_u128(id)));
    let mut written = 0;
    for group in 0..60 {
        let count = if group % 7 == 0 { 200 } else { 3 };
        // Two replicas, in the same millisecond and in turn.
        let group = some(
            &mut chains[group % 2],
            u128::try_from(written).expect("small"),
            u64::try_from(group / 4).expect("small"),
            count,
        );
        store.audit.append(group).await.expect("written");
        written += count;
    }
    let records = Records::new(store.records);
    let expected: Vec<u128> = (0..written).rev().map(|id| u128::try_from(id).expect("small")).collect();
    assert_eq!(all(&records, Filter::default()).await, expected);
    let late = Filter { after: Some(at(14)), ..Filter::default() };
    assert_eq!(all(&records, late).await, expected[..4 * 3 + 197]);
    let early = Filter { before: Some(at(1)), ..Filter::default() };
    assert_eq!(all(&records, early).await, expected[written - (200 + 3 * 3)..]);
    let one = Filter { exchange_id: Some(Uuid::from_u128(700)), ..Filter::default() };
    assert_eq!(all(&records, one).await, [700]);
    let none = Filter { exchange_id: Some(Uuid::now_v7()), ..Filter::default() };
    assert_eq!(all(&records, none).await, [0; 0]);
    // By its id, which says when it was, and by an id whose clock was wrong.
    let [id, other] = [0, 5_000_000].map(|seconds| Uuid::new_v7(uuid::Timestamp::from_unix_time(seconds, 0, 7, 12)));
    for id in [id, other] {
        store.audit.append(alone([AuditRecord { time: at(7), ..record(id.as_u128()) }])).await.expect("written");
        assert_eq!(all(&records, Filter { exchange_id: Some(id), ..Filter::default() }).await, [id.as_u128()]);
    }
}

pub(super) async fn a_reader_goes_on_where_it_left_off_and_leaves_no_gap_behind_that_may_close(place: &Place) {
    let store = place.open().await;
    let (records, now) = (Records::new(store.records), at(100_000));
    let mut chain = Chain::new(Uuid::from_u128(5));
    let mut cursors = Cursors::default();
    assert_eq!(ids(&records.read_on(&mut cursors, now).await.expect("read").records), [0; 0]);
    store.audit.append(some(&mut chain, 0, 99_000, 3)).await.expect("written");
    let first = records.read_on(&mut cursors, now).await.expect("read").records;
    assert_eq!(ids(&first), [0, 1, 2]);
    assert_eq!(first.iter().map(|record| record.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(first.iter().all(|record| chain_of(record) == Some(Uuid::from_u128(5))));
    assert_eq!(cursors.position(Uuid::from_u128(5)), 3);
    assert_eq!(records.end().await.expect("read").position(Uuid::from_u128(5)), 3);

    // From the middle of a group.
    let mut middle = Cursors::new([(Uuid::from_u128(5), 1)], Gaps::default());
    assert_eq!(ids(&records.read_on(&mut middle, now).await.expect("read").records), [1, 2]);

    // A group waits in a spool, and one behind it does not.
    let (spooled, later) = (some(&mut chain, 3, 99_900, 2), some(&mut chain, 5, 99_990, 1));
    store.audit.append(later).await.expect("written");
    let mut other = Chain::new(Uuid::from_u128(6));
    store.audit.append(some(&mut other, 50, 99_991, 1)).await.expect("written");
    assert_eq!(ids(&records.read_on(&mut cursors, now).await.expect("read").records), [50]);
    let mut patient = cursors.clone();
    store.audit.append(spooled).await.expect("written");
    assert_eq!(ids(&records.read_on(&mut cursors, now).await.expect("read").records), [3, 4, 5]);
    assert_eq!(ids(&records.read_on(&mut cursors, now).await.expect("read").records), [0; 0]);

    // What may be lost is not waited for without end.
    let (spooled, last) = (some(&mut chain, 6, 99_991, 1), some(&mut chain, 7, 99_992, 1));
    store.audit.append(last).await.expect("written");
    assert_eq!(ids(&records.read_on(&mut patient, at(99_900)).await.expect("read").records), [3, 4, 5]);
    assert_eq!(ids(&records.read_on(&mut patient, at(100_593)).await.expect("read").records), [7]);

    // More than is read at once, of several chains: each in its order, and nothing twice.
    let mut chains = [7, 8, 9].map(|id| Chain::new(Uuid::from_u128(id)));
    for number in 0..120 {
        let group = some(&mut chains[number % 3], 1000 + 20 * u128::try_from(number).expect("small"), 99_995, 20);
        store.audit.append(group).await.expect("written");
    }
    let mut seen = Vec::new();
    loop {
        let next = records.read_on(&mut cursors, at(200_000)).await.expect("read").records;
        if next.is_empty() {
            break;
        }
        assert!(next.len() < 2 * usize::try_from(READ_AT_ONCE).expect("small"));
        seen.extend(ids(&next));
    }
    assert_eq!(seen.remove(0), 7);
    for number in 0..3 {
        let of_chain: Vec<u128> = seen.iter().copied().filter(|id| (id - 1000) / 20 % 3 == number).collect();
        assert!(of_chain.is_sorted(), "chain {number}");
    }
    seen.sort_unstable();
    assert_eq!(seen, (1000..1000 + 2400).collect::<Vec<_>>());

    // And when it comes after all, it is read after all, once.
    assert_eq!(cursors.gaps().map(|gap| (gap.first, gap.last)).collect::<Vec<_>>(), [(7, 7)]);
    store.audit.append(spooled).await.expect("written");
    assert_eq!(ids(&records.read_on(&mut cursors, at(200_010)).await.expect("read").records), [6]);
    assert_eq!(ids(&records.read_on(&mut cursors, at(200_020)).await.expect("read").records), [0; 0]);
    assert_eq!(cursors.gaps().count(), 0);
}

pub(super) async fn a_store_is_read_where_no_broker_runs_and_nothing_of_it_changes(place: &Place) {
    let store = place.open().await;
    store.audit.append(alone([record(1)])).await.expect("written");
    let beside = place.try_read().await.expect("read beside a broker");
    drop(store);
    let records = Records::new(place.try_read().await.expect("read alone"));
    assert_eq!(all(&records, Filter::default()).await, [1]);
    let store = place.open().await;
    store.audit.append(alone([AuditRecord { time: at(1), ..record(2) }])).await.expect("written");
    for reader in [records, Records::new(beside)] {
        assert_eq!(all(&reader, Filter::default()).await, [2, 1]);
        assert_eq!(reader.facts(&[0; 32]).await.expect("read"), None);
    }
}

/// A long search holds the writer up nowhere.
pub(super) async fn records_are_written_while_others_are_read(place: &Place) {
    let store = place.open().await;
    let mut chain = Chain::new(Uuid::from_u128(1));
    for number in 0..20 {
        store.audit.append(some(&mut chain, 500 * number, 1, 500)).await.expect("written");
    }
    let records = Records::new(store.records.clone());
    let searching =
        (0..8).map(async |_| all(&records, Filter { subject: Some("nobody".to_owned()), ..Filter::default() }).await);
    let writing = async {
        for number in 0..100 {
            let group = some(&mut chain, 20_000 + number, 2, 1);
            tokio::time::timeout(Duration::from_secs(4), store.audit.append(group))
                .await
                .expect("in time")
                .expect("written");
        }
    };
    tokio::join!(futures_util::future::join_all(searching), writing);
    assert_eq!(records.end().await.expect("read").position(Uuid::from_u128(1)), 10_100);
}

#[tokio::test]
async fn what_is_no_store_of_this_version_is_not_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("carnet.db");
    let place = Place(format!("sqlite:{}", path.display()));
    let missing = place.try_read().await.expect_err("no file");
    assert!(missing.to_string().contains("carnet.db") && !path.exists(), "{missing}");
    std::fs::write(&path, "").expect("written");
    assert!(matches!(place.try_read().await, Err(OpenError::Older { found: 0, .. })));
    drop(place.open().await);
    place.try_read().await.expect("a store");
    let connection = rusqlite::Connection::open(&path).expect("open");
    for (version, newer) in [(99, true), (4, false)] {
        connection.pragma_update(None, "user_version", version).expect("changed");
        let refused = place.try_read().await.expect_err("another version");
        assert_eq!(matches!(refused, OpenError::Newer { .. }), newer, "{refused}");
        assert_eq!(matches!(refused, OpenError::Older { .. }), !newer, "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_no_store_is_not_read() {
    with_database(async |database| {
        let place = Place(database.url());
        assert!(matches!(place.try_read().await, Err(OpenError::Older { found: 0, .. })));
        drop(place.open().await);
        place.try_read().await.expect("a store");
        database.client().await.batch_execute("INSERT INTO carnet_schema VALUES (99)").await.expect("inserted");
        assert!(matches!(place.try_read().await, Err(OpenError::Newer { found: 99, .. })));
    })
    .await;
}

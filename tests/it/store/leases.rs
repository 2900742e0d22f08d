//! Leases in both stores: the fake beside the port is what the contract means.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use carnet::clock::{Clock as _, SystemClock};
use carnet::lease::{Applied, Change, End, EndKind, FakeLeaseStore, Lease, LeaseFilter, LeaseQuery, LeaseStore};
use carnet::target::Job;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Place, at};
use crate::postgres::with_database;

const SECOND: Duration = Duration::from_secs(1);

fn identity(text: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.as_bytes().to_vec())
}

fn opening(lease: &Lease) -> Change {
    Change::Open { lease: Box::new(lease.clone()), identity: identity("who opened it") }
}

fn end(kind: EndKind, at: SystemTime) -> End {
    End { kind, at, reason: format!("it was {}", kind.as_str()) }
}

/// The same at any store that it is asked for.
#[derive(Clone, Copy)]
enum Act {
    Beat,
    Extend(u64),
    End(EndKind),
    Recorded,
}

fn change(act: Act, id: Uuid, now: SystemTime) -> Change {
    match act {
        Act::Beat => Change::Beat { id, now },
        Act::Extend(seconds) => {
            let not_after = now + Duration::from_secs(seconds);
            Change::Extend { id, now, not_after, identity: identity("who extended it") }
        }
        Act::End(kind) => Change::End { id, end: end(kind, now) },
        Act::Recorded => Change::Recorded { id },
    }
}

/// Random changes around every boundary, in groups; whatever can be asked has the same answer.
pub async fn every_store_does_with_leases_what_the_contract_means(place: &Place) {
    let (store, fake) = (place.open().await.leases, FakeLeaseStore::default());
    let mut random = StdRng::seed_from_u64(7);
    let mut now = at(1_767_225_600);
    let mut leases: Vec<Lease> = Vec::new();
    for round in 0..150u32 {
        now += [SECOND, 10 * SECOND, 100 * SECOND, 299 * SECOND, 300 * SECOND][random.random_range(0..5)];
        let mut acts = Vec::new();
        for _ in 0..random.random_range(1..6) {
            let id = match leases.len() {
                0 => Uuid::nil(),
                some => leases[random.random_range(0..some)].id,
            };
            let act = match random.random_range(0..12) {
                0..7 => Act::Beat,
                7..9 => Act::Extend(random.random_range(0..2000)),
                9 => Act::End(EndKind::ALL[random.random_range(0..3)]),
                _ => Act::Recorded,
            };
            acts.push((act, id));
        }
        let new = Lease::for_test(u128::from(round) + 1, now);
        let group = || {
            let acts = acts.iter().map(|(act, id)| change(*act, *id, now));
            acts.chain([opening(&new), Change::Beat { id: new.id, now }]).collect::<Vec<_>>()
        };
        let (applied, meant) =
            (store.apply(group()).await.expect("applied"), fake.apply(group()).await.expect("applied"));
        assert_eq!(applied, meant, "round {round}");
        leases.push(new);
        if round % 10 == 0 {
            let outage = Duration::from_secs(400);
            assert_eq!(store.alive(now, outage).await.expect("said"), fake.alive(now, outage).await.expect("said"));
            same_answers(&*store, &fake, &leases, now).await;
        }
    }
    now += Duration::from_secs(3600);
    assert!(store.alive(now, SECOND).await.expect("said") && fake.alive(now, SECOND).await.expect("said"));
    same_answers(&*store, &fake, &leases, now).await;
    let before = now - Duration::from_secs(1000);
    let pruned = store.prune(before).await.expect("pruned");
    assert_eq!(pruned, fake.prune(before).await.expect("pruned"));
    assert!(pruned > 0);
    same_answers(&*store, &fake, &leases, now).await;
}

async fn same_answers(store: &dyn LeaseStore, fake: &FakeLeaseStore, leases: &[Lease], now: SystemTime) {
    for lease in leases {
        let found = store.find(&lease.token_sha256).await.expect("read");
        let meant = fake.find(&lease.token_sha256).await.expect("read");
        assert_eq!(found.is_some(), meant.is_some());
        if let (Some(found), Some(meant)) = (found, meant) {
            assert_eq!((found.lease, found.identity.ok()), (meant.lease, meant.identity.ok()));
        }
    }
    let mut lapsed = store.lapsed(now, 1000).await.expect("read");
    let mut meant = fake.lapsed(now, 1000).await.expect("read");
    lapsed.sort_by_key(|lease| lease.id);
    meant.sort_by_key(|lease| lease.id);
    assert_eq!(lapsed, meant);
    let queries = [
        LeaseQuery { most: 7, ..LeaseQuery::default() },
        LeaseQuery { most: 1000, states: vec![None], ..LeaseQuery::default() },
        LeaseQuery { most: 5, states: vec![Some(EndKind::Expired), Some(EndKind::Closed)], ..LeaseQuery::default() },
        LeaseQuery { most: 5, before: leases.get(leases.len() / 2).map(|lease| lease.id), ..LeaseQuery::default() },
        filtered(LeaseFilter { job_id: Some("run-3".to_owned()), ..LeaseFilter::default() }),
        filtered(LeaseFilter { subject: Some("\0".to_owned()), ..LeaseFilter::default() }),
        filtered(LeaseFilter { target: Some("nobody's".to_owned()), ..LeaseFilter::default() }),
        filtered(LeaseFilter {
            subject: Some("entra:1:2".to_owned()),
            ids: vec![leases[0].id],
            ..LeaseFilter::default()
        }),
    ];
    for query in &queries {
        assert_eq!(
            store.list(query, now).await.expect("read"),
            fake.list(query, now).await.expect("read"),
            "{query:?}"
        );
    }
}

fn filtered(filter: LeaseFilter) -> LeaseQuery {
    LeaseQuery { filter, most: 100, ..LeaseQuery::default() }
}

pub async fn leases_outlive_the_process_and_who_opened_them_is_sealed_and_goes_with_their_end(place: &Place) {
    let now = at(1_767_225_600);
    let lease = Lease::for_test(1, now);
    let store = place.open().await.leases;
    store.apply(vec![opening(&lease)]).await.expect("opened");
    drop(store);
    let store = place.open().await.leases;
    let found = store.find(&lease.token_sha256).await.expect("read").expect("a lease");
    assert_eq!((found.lease, found.identity.ok()), (lease.clone(), Some(Some(identity("who opened it")))));
    assert!(store.find(&[9; 32]).await.expect("read").is_none());
    let other = place.open_with(&[super::OTHER_STORE_KEY]).await.leases;
    let sealed = other.find(&lease.token_sha256).await.expect("read").expect("a lease");
    assert!(sealed.identity.is_err(), "another store key opens nothing");
    assert!(sealed.lease == lease, "and the lease can be kept and closed");

    let renewed = place.open_with(&[super::OTHER_STORE_KEY, super::STORE_KEY]).await.leases;
    drop(renewed);
    let renewed = place.open_with(&[super::OTHER_STORE_KEY]).await.leases;
    let found = renewed.find(&lease.token_sha256).await.expect("read").expect("a lease");
    assert_eq!(found.identity.ok(), Some(Some(identity("who opened it"))), "sealed anew with the key in front");

    let ending = Change::End { id: lease.id, end: end(EndKind::Closed, now + SECOND) };
    let applied = store.apply(vec![ending]).await.expect("ended");
    let ended = Lease { end: Some(end(EndKind::Closed, now + SECOND)), ..lease.clone() };
    assert_eq!(applied, [Applied { lease: Some(ended.clone()), changed: true }]);
    let found = store.find(&lease.token_sha256).await.expect("read").expect("a lease");
    assert_eq!((found.lease, found.identity.ok()), (ended, Some(None)));
    assert_eq!(store.ended_within(Duration::from_secs(60)).await.expect("read"), [lease.id]);
    assert_eq!(store.unrecorded(Duration::ZERO, 10).await.expect("read").len(), 1);
    assert!(store.unrecorded(Duration::from_secs(60), 10).await.expect("read").is_empty());
    store.apply(vec![Change::Recorded { id: lease.id }]).await.expect("recorded");
    assert!(store.unrecorded(Duration::ZERO, 10).await.expect("read").is_empty());
}

pub async fn changes_of_one_lease_at_two_replicas_at_once_are_made_one_after_the_other(place: &Place) {
    let now = at(1_767_225_600);
    let lease = Lease::for_test(1, now);
    let stores = [place.open().await.leases, place.open().await.leases];
    stores[0].apply(vec![opening(&lease)]).await.expect("opened");
    let ending = (0..20).map(|number| {
        let (store, id) = (stores[number % 2].clone(), lease.id);
        let changes = vec![
            Change::Beat { id, now: now + SECOND },
            Change::End { id, end: end(EndKind::Revoked, now + SECOND) },
            Change::Beat { id, now: now + 2 * SECOND },
        ];
        async move { store.apply(changes).await.expect("applied") }
    });
    let applied = futures_util::future::join_all(ending).await;
    assert_eq!(applied.iter().filter(|applied| applied[1].changed).count(), 1, "one of them ended it");
    assert!(applied.iter().all(|applied| !applied[2].changed), "nobody beats for it afterwards");
}

pub async fn what_runs_have_taken_is_known_by_subject_and_name(place: &Place) {
    let stores = place.open().await;
    let now = at(1_767_225_600);
    for (number, subject, name, kind) in [
        (1, "entra:1:2", "vision", EndKind::Closed),
        (2, "entra:1:2", "vision", EndKind::Closed),
        (3, "entra:1:2", "vision", EndKind::Expired),
        (4, "entra:1:2", "speech", EndKind::Closed),
        (5, "entra:1:3", "vision", EndKind::Closed),
    ] {
        let job = Job { name: Some(name.to_owned()), ..Job::default() };
        let lease = Lease { subject: subject.to_owned(), job: Arc::new(job), ..Lease::for_test(number, now) };
        let took = Duration::from_secs(u64::try_from(number).expect("small") * 3600);
        let ending = Change::End { id: lease.id, end: end(kind, now + took) };
        stores.leases.apply(vec![opening(&lease), ending]).await.expect("applied");
    }
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let runs = stores.history.runs("entra:1:2", "vision", 10).await.expect("read");
    assert_eq!(runs, [hours(2), hours(1)]);
    assert_eq!(stores.history.runs("entra:1:2", "vision", 1).await.expect("read"), [hours(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_clock_is_ahead_ends_no_lease_and_sees_no_outage() {
    with_database(async |database| {
        let (store, now) = (Place(database.url()).open().await.leases, SystemClock.now());
        let ahead = now + Duration::from_secs(86_400);
        store.apply(vec![opening(&Lease::for_test(1, now))]).await.expect("opened");
        for clock in [now, ahead, now] {
            assert!(!store.alive(clock, Duration::from_secs(3600)).await.expect("said"));
        }
        assert_eq!(store.lapsed(ahead, 10).await.expect("read"), []);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_cannot_be_read_does_not_keep_the_others_from_their_end() {
    with_database(async |database| {
        let (store, now) = (Place(database.url()).open().await.leases, at(1_767_225_600));
        let leases = [1, 2].map(|number| Lease::for_test(number, now));
        store.apply(leases.iter().map(opening).collect()).await.expect("opened");
        let sql = "UPDATE lease_detail SET details = '\\xff' WHERE id = $1";
        database.client().await.execute(sql, &[&leases[0].id.as_bytes().as_slice()]).await.expect("broken");
        let lapsed = store.lapsed(now + Duration::from_secs(86_400), 10).await.expect("read");
        assert_eq!(lapsed, [leases[1].clone()]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_forgiven_to_more_leases_than_one_statement_takes() {
    with_database(async |database| {
        let (store, now) = (Place(database.url()).open().await.leases, at(1_767_225_600));
        assert!(!store.alive(now, SECOND).await.expect("said"));
        let sql = "INSERT INTO lease (id, token_sha256, subject, opened_ms, proved_ms, not_after_ms, heartbeat_ms,
                                      heartbeat_before_ms)
                   SELECT sha256(int8send(n)), int8send(n), '', now, now, now + 86400000, 300000, now + 300000
                   FROM generate_series(1, 10001) AS n, (VALUES ($1::bigint)) AS clock (now)";
        let (client, now_ms) = (database.client().await, 1_767_225_600_000_i64);
        client.execute(sql, &[&now_ms]).await.expect("rows");
        assert!(store.alive(now + 3600 * SECOND, SECOND).await.expect("said"));
        let sql = "SELECT count(*) FROM lease WHERE heartbeat_before_ms = $1::bigint + 3900000";
        assert_eq!(client.query_one(sql, &[&now_ms]).await.expect("a row").get::<_, i64>(0), 10_001);
    })
    .await;
}

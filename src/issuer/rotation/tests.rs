use std::time::{Duration, SystemTime};

use super::*;
use crate::clock::ManualClock;
use crate::issuer::{FakeKeyStore, RETIRED_FOR};

const HOUR: Duration = Duration::from_secs(3600);
const SCHEDULE: Schedule = Schedule { rotate_every: Duration::from_secs(720 * 3600), publish_ahead: DAY };
const DAY: Duration = Duration::from_secs(24 * 3600);

fn replica(store: &FakeKeyStore, clock: &ManualClock) -> Rotation {
    Rotation::new(Arc::new(store.clone()), SCHEDULE, Arc::new(clock.clone()))
}

async fn phases(rotation: &Rotation, algorithm: Algorithm) -> Vec<(Phase, SystemTime)> {
    let status = rotation.status().await.expect("keys").into_iter();
    status.filter(|key| key.algorithm == algorithm).map(|key| (key.phase, key.signs_from.expect("a time"))).collect()
}

#[tokio::test]
async fn first_keys_are_made_once_and_sign_at_once() {
    let (store, clock) = (FakeKeyStore::default(), ManualClock::start());
    let (one, other) = (replica(&store, &clock), replica(&store, &clock));
    let (found, by_other) = tokio::join!(one.status(), other.status());
    assert_eq!(one.status().await.expect("keys"), other.status().await.expect("keys"));
    assert!(found.is_ok() && by_other.is_ok());
    for algorithm in Algorithm::ALL {
        assert_eq!(phases(&one, algorithm).await, [(Phase::Signing, clock.now())]);
    }
}

#[tokio::test]
async fn of_two_replicas_that_make_a_successor_at_the_same_time_one_succeeds() {
    let (store, clock) = (FakeKeyStore::default(), ManualClock::start());
    let (one, other) = (replica(&store, &clock), replica(&store, &clock));
    let started = clock.now();
    one.keys().await.expect("keys");
    clock.advance(29 * DAY);
    let (found, by_other) = tokio::join!(one.tend(), other.tend());
    assert!(found.is_ok() && by_other.is_ok());
    for algorithm in Algorithm::ALL {
        let expected = [(Phase::Signing, started), (Phase::Next, started + 30 * DAY)];
        assert_eq!(phases(&one, algorithm).await, expected);
    }
}

#[tokio::test]
async fn a_whole_rotation_makes_signs_retires_and_removes() {
    let (store, clock) = (FakeKeyStore::default(), ManualClock::start());
    let rotation = replica(&store, &clock);
    let started = clock.now();
    let count = async || rotation.tend().await.expect("keys").len();
    assert_eq!(count().await, 2);
    clock.advance(29 * DAY - HOUR);
    assert_eq!(count().await, 2, "not due");
    clock.advance(HOUR);
    assert_eq!(count().await, 4, "due");
    clock.advance(DAY);
    assert_eq!(count().await, 4);
    let expected = [(Phase::Retiring, started), (Phase::Signing, started + 30 * DAY)];
    assert_eq!(phases(&rotation, Algorithm::Es256).await, expected);
    clock.advance(RETIRED_FOR);
    assert_eq!(count().await, 2);
    assert_eq!(phases(&rotation, Algorithm::Rs256).await, [(Phase::Signing, started + 30 * DAY)]);
}

#[tokio::test]
async fn a_rotation_that_is_asked_for_waits_its_time_and_is_not_made_twice() {
    let (store, clock) = (FakeKeyStore::default(), ManualClock::start());
    let rotation = replica(&store, &clock);
    let started = clock.now();
    rotation.keys().await.expect("keys");
    clock.advance(HOUR);
    let made = rotation.rotate(Algorithm::Es256).await.expect("rotated");
    let Rotated::Made(next) = made else { panic!("{made:?}") };
    assert_eq!((next.phase, next.signs_from), (Phase::Next, Some(started + HOUR + DAY)));
    assert_eq!(rotation.rotate(Algorithm::Es256).await.expect("asked"), Rotated::Waiting(next));
    assert_eq!(phases(&rotation, Algorithm::Rs256).await, [(Phase::Signing, started)]);
}

#[tokio::test]
async fn a_leaked_key_is_replaced_at_once_and_so_is_the_one_that_waits() {
    let (store, clock) = (FakeKeyStore::default(), ManualClock::start());
    let rotation = replica(&store, &clock);
    rotation.rotate(Algorithm::Es256).await.expect("rotated");
    let before = rotation.status().await.expect("keys");
    clock.advance(HOUR);
    let key = rotation.replace(Algorithm::Es256).await.expect("replaced");
    assert_eq!((key.phase, key.signs_from), (Phase::Signing, Some(clock.now())));
    assert!(before.iter().all(|old| old.kid != key.kid));
    assert_eq!(phases(&rotation, Algorithm::Es256).await, [(Phase::Signing, clock.now())]);
    assert_eq!(phases(&rotation, Algorithm::Rs256).await.len(), 1, "the other algorithm keeps its key");
}

#[tokio::test]
async fn a_store_that_is_away_is_an_error() {
    let (store, clock) = (FakeKeyStore::default(), ManualClock::start());
    let rotation = replica(&store, &clock);
    rotation.keys().await.expect("keys");
    store.set_away(true);
    assert!(matches!(rotation.tend().await, Err(RotationError::Store(_))));
    store.set_away(false);
    assert_eq!(rotation.tend().await.expect("keys").len(), 2);
}

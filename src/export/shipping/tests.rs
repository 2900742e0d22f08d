use std::sync::{Mutex, PoisonError};

use tokio::time::advance;

use super::*;
use crate::audit::{AuditReader, Chain, Checkpoint, FakeShipments, Group, Place, Window};
use crate::clock::ManualClock;
use crate::export::sink::{Answer, FakeSink};

/// A log in memory, which can be cut off at its old end, and stop answering.
#[derive(Debug, Default)]
struct FakeLog(Mutex<LogState>);

#[derive(Debug, Default)]
struct LogState {
    chains: Vec<Chain>,
    groups: Vec<Group>,
    away: bool,
}

impl FakeLog {
    fn state(&self) -> std::sync::MutexGuard<'_, LogState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In groups of ten, each record with its target's name.
    fn write(&self, chain: usize, records: usize) {
        let mut state = self.state();
        while state.chains.len() <= chain {
            let id = Uuid::from_u128(state.chains.len() as u128 + 1);
            state.chains.push(Chain::new(id));
        }
        let mut left = records;
        while left > 0 {
            let some = (0..left.min(10)).map(|_| crate::audit::AuditRecord::for_test(1)).collect();
            left -= left.min(10);
            let group = state.chains[chain].seal(some, Vec::new());
            state.groups.push(group);
        }
    }

    /// As retention does.
    fn drop_groups(&self, count: usize) {
        self.state().groups.drain(..count);
    }

    fn is_away(&self, away: bool) {
        self.state().away = away;
    }

    async fn answer<T>(&self, answer: impl FnOnce(&LogState) -> T) -> T {
        if self.state().away {
            std::future::pending::<()>().await;
        }
        answer(&self.state())
    }
}

#[async_trait::async_trait]
impl AuditReader for FakeLog {
    async fn checkpoints(&self, _behind: (Uuid, u64), _most: u32) -> Result<Vec<Checkpoint>, AuditError> {
        Ok(Vec::new())
    }

    async fn rows(&self, _chain: Uuid, _behind: (u64, i64), _most: u64) -> Result<Vec<(i64, Group)>, AuditError> {
        Ok(Vec::new())
    }

    async fn hashes(&self, _chain: Uuid, _position: u64) -> Result<Option<(u64, Vec<u8>)>, AuditError> {
        Ok(None)
    }

    async fn unchained(&self) -> Result<(u64, i64), AuditError> {
        Ok((0, 0))
    }

    async fn newest_first(
        &self,
        _window: Window,
        _behind: Option<Place>,
        _most: u64,
    ) -> Result<Vec<(Place, Group)>, AuditError> {
        Ok(Vec::new())
    }

    async fn onwards(&self, chain: Uuid, position: u64, most: u64) -> Result<Vec<Group>, AuditError> {
        let after = |group: &&Group| group.chain == Some(chain) && group.position + group.records > position + 1;
        let groups = self.answer(|state| state.groups.iter().filter(after).cloned().collect::<Vec<_>>()).await;
        let mut room = most;
        let fits = |group: &Group| {
            let had = room;
            room = room.saturating_sub(group.records);
            had > 0
        };
        Ok(groups.into_iter().take_while(fits).collect())
    }

    async fn chains(&self) -> Result<Vec<Extent>, AuditError> {
        let extents = |state: &LogState| {
            let mut extents: Vec<Extent> = Vec::new();
            for group in &state.groups {
                let chain = group.chain.unwrap_or_default();
                let last = group.position + group.records - 1;
                match extents.iter_mut().find(|extent| extent.chain == chain) {
                    Some(extent) => extent.last = last,
                    None => extents.push(Extent { chain, first: group.position, last, hash: None, newest_ms: 0 }),
                }
            }
            extents
        };
        Ok(self.answer(extents).await)
    }

    async fn facts(&self, _digest: &[u8; 32]) -> Result<Option<String>, AuditError> {
        Ok(None)
    }

    async fn fact_sets(&self, _behind: &[u8], _most: u32) -> Result<Vec<(Vec<u8>, String)>, AuditError> {
        Ok(Vec::new())
    }

    async fn has_token(&self, _token_sha256: &[u8; 32]) -> Result<bool, AuditError> {
        Ok(false)
    }

    async fn found_by_tokens(&self, _behind: i64, _most: u32) -> Result<Option<(i64, u64)>, AuditError> {
        Ok(None)
    }

    async fn last_of_others(&self) -> Result<Option<Group>, AuditError> {
        Ok(None)
    }
}

/// What several brokers share.
#[derive(Clone)]
struct World {
    log: Arc<FakeLog>,
    shipments: Arc<FakeShipments>,
    sink: FakeSink,
    clock: ManualClock,
}

impl World {
    fn new() -> Self {
        // Much later than any record: no gap of the log is waited for.
        let clock = ManualClock::start();
        Self { log: Arc::default(), shipments: Arc::default(), sink: FakeSink::default(), clock }
    }

    /// Of one broker.
    fn shipper(&self) -> Shipper {
        let records = Records::new(self.log.clone());
        let clock = Arc::new(self.clock.clone());
        let log = Log { records, shipments: self.shipments.clone(), clock };
        Shipper::new("test", Box::new(self.sink.clone()), log)
    }

    fn expected(&self, chain: u128, positions: std::ops::RangeInclusive<u64>) -> Vec<String> {
        positions.map(|position| format!("{}:{position}", Uuid::from_u128(chain))).collect()
    }

    async fn noted(&self) -> Vec<(Uuid, u64)> {
        self.shipments.delivered("test").await.expect("an answer")
    }
}

/// Rounds until there is nothing more to do, or something fails.
async fn rounds(shipper: &mut Shipper) -> Round {
    loop {
        match shipper.round().await {
            Round::Shipped => {}
            round => return round,
        }
    }
}

fn failed(round: &Round) -> bool {
    matches!(round, Round::Failed(_))
}

#[tokio::test(start_paused = true)]
async fn every_record_leaves_once_in_the_order_of_its_chain_and_what_comes_later_follows() {
    let world = World::new();
    world.log.write(0, 1500);
    world.log.write(1, 30);
    let mut shipper = world.shipper();
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    let all = [world.expected(1, 1..=1500), world.expected(2, 1..=30)].concat();
    let of_chain = |chain: u128| {
        let prefix = Uuid::from_u128(chain).to_string();
        world.sink.taken().into_iter().filter(move |id| id.starts_with(&prefix)).collect::<Vec<_>>()
    };
    assert_eq!([of_chain(1), of_chain(2)].concat(), all);
    assert!(world.sink.largest() <= BATCH, "{}", world.sink.largest());
    world.log.write(1, 1);
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    assert_eq!(world.sink.taken().len(), all.len() + 1);
}

#[tokio::test(start_paused = true)]
async fn a_position_moves_only_after_the_other_side_took_the_records() {
    let world = World::new();
    world.log.write(0, 20);
    let mut shipper = world.shipper();
    world.sink.plan([Answer::Unavailable, Answer::Hangs, Answer::TakesAndFails]);
    for _failing in 0..3 {
        assert!(failed(&rounds(&mut shipper).await));
        advance(NOTE_EVERY).await;
        assert_eq!(world.noted().await, []);
    }
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    // Twice what was taken when the answer was lost, and nothing left out.
    let once = world.expected(1, 1..=20);
    assert_eq!(world.sink.taken(), [once.clone(), once].concat());
    advance(NOTE_EVERY).await;
    shipper.round().await;
    assert_eq!(world.noted().await, [(Uuid::from_u128(1), 20)]);
}

#[tokio::test(start_paused = true)]
async fn a_way_out_that_is_away_is_left_alone_for_longer_and_longer_and_holds_one_reading() {
    let world = World::new();
    world.log.write(0, 5000);
    let mut shipper = world.shipper();
    world.sink.plan(vec![Answer::Unavailable; 9]);
    let mut waits = Vec::new();
    for _failing in 0..9 {
        let Round::Failed(wait) = rounds(&mut shipper).await else { panic!("it is away") };
        waits.push(wait);
        let waiting = shipper.claim.as_ref().map(|claim| claim.waiting.len());
        assert!(waiting.is_some_and(|waiting| waiting < 2048), "{waiting:?}");
    }
    // How far it is behind is told all the while.
    world.log.write(0, 100);
    advance(MEASURE_EVERY).await;
    shipper.read().await.expect("read");
    assert_eq!(shipper.claim.as_ref().map(|claim| claim.measured_at.elapsed()), Some(Duration::ZERO));
    assert_eq!(shipper.claim.as_ref().map(|claim| claim.seen.values().sum()), Some(5000u64));
    let there = world.log.chains().await.expect("an answer");
    assert_eq!(shipper.claim.as_ref().map(|claim| claim.behind(&there)), Some(5100));
    assert!(waits[0] <= BACKOFF_FIRST && waits[3] > BACKOFF_FIRST * 4, "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= BACKOFF_LONGEST) && waits[8] > BACKOFF_LONGEST / 2, "{waits:?}");
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    assert_eq!(world.sink.taken(), world.expected(1, 1..=5100));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_killed_repeats_what_it_had_not_noted_and_one_that_ends_repeats_nothing() {
    let world = World::new();
    world.log.write(0, 40);
    let mut killed = world.shipper();
    assert_eq!(rounds(&mut killed).await, Round::Idle);
    drop(killed);
    advance(HOLD + Duration::from_secs(1)).await;
    let stopping = CancellationToken::new();
    let running = tokio::spawn(world.shipper().run(stopping.clone()));
    tokio::time::sleep(LOOK_EVERY * 3).await;
    world.log.write(0, 5);
    stopping.cancel();
    running.await.expect("an end");
    assert_eq!(world.sink.taken(), [world.expected(1, 1..=40), world.expected(1, 1..=45)].concat());
    assert_eq!(world.noted().await, [(Uuid::from_u128(1), 45)]);
    // At once: it gave its claim back.
    let mut next = world.shipper();
    assert_eq!(rounds(&mut next).await, Round::Idle);
    assert_eq!(world.sink.taken().len(), 40 + 45);
}

#[tokio::test(start_paused = true)]
async fn of_several_replicas_one_ships_and_another_follows_when_it_dies() {
    let world = World::new();
    world.log.write(0, 10);
    let (mut one, mut two) = (world.shipper(), world.shipper());
    assert_eq!(rounds(&mut one).await, Round::Idle);
    assert_eq!(rounds(&mut two).await, Round::Theirs);
    // Whoever ships keeps its claim for as long as it lives.
    for _minute in 0..3 {
        advance(Duration::from_secs(20)).await;
        assert_eq!((rounds(&mut one).await, rounds(&mut two).await), (Round::Idle, Round::Theirs));
    }
    world.log.write(1, 10);
    advance(HOLD + Duration::from_secs(1)).await;
    let slow = one.claim.take();
    assert_eq!(rounds(&mut two).await, Round::Idle);
    assert_eq!(world.sink.taken(), [world.expected(1, 1..=10), world.expected(2, 1..=10)].concat());
    // The first was only slow: it finds that it has no claim, and delivers nothing.
    assert_eq!(rounds(&mut one).await, Round::Theirs);
    assert_eq!(world.sink.taken().len(), 20);
    // And when it has it again, it goes on where the other one stopped.
    two.note().await.expect("noted");
    world.shipments.release("test", two.owner).await.expect("released");
    one.claim = slow;
    world.log.write(1, 1);
    assert_eq!(rounds(&mut one).await, Round::Idle);
    assert_eq!(world.sink.taken().split_off(20), world.expected(2, 11..=11));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_never_taken_is_left_out_alone() {
    let world = World::new();
    world.log.write(0, 300);
    {
        let mut state = world.log.state();
        let mut poisoned = crate::audit::AuditRecord::for_test(2);
        poisoned.target = "poison".to_owned();
        let group = state.chains[0].seal(vec![poisoned], Vec::new());
        state.groups.push(group);
    }
    world.log.write(0, 300);
    world.sink.plan([Answer::RefusesAlways("poison")]);
    let mut shipper = world.shipper();
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    let expected = [world.expected(1, 1..=300), world.expected(1, 302..=601)].concat();
    assert_eq!(world.sink.taken(), expected);
    assert_eq!(shipper.claim.as_ref().and_then(|claim| claim.delivered.get(&Uuid::from_u128(1))), Some(&601));
}

#[tokio::test(start_paused = true)]
async fn a_way_out_that_refuses_whatever_it_is_sent_loses_three_records_at_most() {
    let world = World::new();
    world.log.write(0, 20);
    world.sink.plan([Answer::RefusesAlways("t")]);
    let mut shipper = world.shipper();
    assert!(failed(&rounds(&mut shipper).await));
    world.sink.forgets_its_plan();
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    assert_eq!(world.sink.taken(), world.expected(1, 1..=20));

    world.log.write(0, 20);
    world.sink.plan([Answer::RefusesAlways("t")]);
    assert!(failed(&rounds(&mut shipper).await));
    world.sink.forgets_its_plan();
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    assert_eq!(world.sink.taken().split_off(20), world.expected(1, 24..=40));
}

#[tokio::test(start_paused = true)]
async fn what_is_rejected_for_good_is_not_sent_again() {
    let world = World::new();
    world.log.write(0, 10);
    world.sink.plan([Answer::Rejects(4)]);
    let mut shipper = world.shipper();
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    assert_eq!(world.sink.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_retention_drops_before_it_was_shipped_is_counted_as_lost() {
    let world = World::new();
    world.log.write(0, 20);
    let mut shipper = world.shipper();
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    world.log.write(0, 60);
    world.log.drop_groups(5);
    let there = world.log.chains().await.expect("an answer");
    let mut read = shipper.claim.as_ref().map(|claim| claim.read.clone()).expect("a claim");
    let onwards = shipper.log.records.read_on(&mut read, shipper.log.clock.now()).await.expect("read");
    assert_eq!((onwards.lost, onwards.opened.len()), (30, 0));
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    assert_eq!(world.sink.taken(), [world.expected(1, 1..=20), world.expected(1, 51..=80)].concat());

    // A chain that goes altogether.
    world.log.write(0, 10);
    let seen = world.log.chains().await.expect("an answer");
    if let Some(claim) = &mut shipper.claim {
        claim.seen = seen.iter().map(|extent| (extent.chain, extent.last)).collect();
    }
    assert_eq!(shipper.claim.as_ref().map(|claim| claim.gone(&[])), Some(vec![(there[0].chain, 10)]));
    advance(NOTE_EVERY).await;
    shipper.note().await.expect("noted");
    let groups = world.log.state().groups.len();
    world.log.drop_groups(groups);
    world.log.write(1, 1);
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    assert_eq!(world.sink.taken().last(), world.expected(2, 1..=1).first());
    assert_eq!(world.noted().await, []);
}

/// Groups that were on a broker's own disk while later ones came.
#[tokio::test(start_paused = true)]
async fn what_a_spool_brings_after_all_is_shipped_by_whoever_ships_then_and_nothing_else_twice() {
    let world = World::new();
    world.log.write(0, 60);
    let spooled: Vec<Group> = world.log.state().groups.drain(2..4).collect();
    let mut shipper = world.shipper();
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    assert_eq!(world.sink.taken(), [world.expected(1, 1..=20), world.expected(1, 41..=60)].concat());
    let missing = |shipper: &Shipper| shipper.claim.as_ref().map(|claim| claim.gaps.records());
    assert_eq!(missing(&shipper), Some(20));
    advance(NOTE_EVERY).await;
    shipper.round().await;
    drop(shipper);

    // Another replica ships; a part of what was missed comes, between restarts.
    advance(HOLD + Duration::from_secs(1)).await;
    world.log.state().groups.insert(2, spooled[1].clone());
    world.log.write(0, 10);
    let mut other = world.shipper();
    assert_eq!(rounds(&mut other).await, Round::Idle);
    let come = |from: usize| world.sink.taken().split_off(from);
    assert_eq!(come(40), [world.expected(1, 31..=40), world.expected(1, 61..=70)].concat());
    assert_eq!(missing(&other), Some(10));

    // The rest comes while it ships.
    world.log.state().groups.insert(2, spooled[0].clone());
    world.clock.advance(Duration::from_secs(5));
    assert_eq!(rounds(&mut other).await, Round::Idle);
    assert_eq!((come(60), missing(&other)), (world.expected(1, 21..=30), Some(0)));
    advance(NOTE_EVERY).await;
    other.round().await;
    assert_eq!(world.noted().await, [(Uuid::from_u128(1), 70)]);
    assert_eq!(world.shipments.gaps("test").await.expect("an answer"), []);
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_retention_has_passed_is_lost_and_counted_once() {
    let world = World::new();
    world.log.write(0, 60);
    let _lost_disk: Vec<Group> = world.log.state().groups.drain(2..4).collect();
    let mut shipper = world.shipper();
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    let mut read = shipper.claim.as_ref().map(|claim| claim.read.clone()).expect("a claim");
    world.log.drop_groups(2);
    let onwards = shipper.log.records.read_on(&mut read, shipper.log.clock.now()).await.expect("read");
    assert_eq!((onwards.lost, onwards.records.len(), read.gaps().count()), (20, 0, 0));
    let onwards = shipper.log.records.read_on(&mut read, shipper.log.clock.now()).await.expect("read");
    assert_eq!(onwards.lost, 0);
    world.log.write(0, 1);
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    assert_eq!(shipper.claim.as_ref().map(|claim| claim.gaps.iter().count()), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_or_hangs_stops_nothing_for_good() {
    let world = World::new();
    world.log.write(0, 10);
    let mut shipper = world.shipper();
    world.shipments.fails(true);
    assert!(failed(&rounds(&mut shipper).await));
    world.shipments.fails(false);
    world.log.is_away(true);
    assert!(failed(&rounds(&mut shipper).await));
    world.log.is_away(false);
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    world.shipments.fails(true);
    advance(NOTE_EVERY).await;
    assert!(failed(&rounds(&mut shipper).await));
    world.shipments.fails(false);
    advance(NOTE_EVERY).await;
    assert_eq!(rounds(&mut shipper).await, Round::Idle);
    assert_eq!(world.noted().await, [(Uuid::from_u128(1), 10)]);
    assert_eq!(world.sink.taken(), world.expected(1, 1..=10));
}

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
/// How old a replica's view may be.
const RELOAD: Duration = Duration::from_secs(30);

fn at(minutes: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + minutes * MINUTE
}

fn line(keys: &[(u32, SystemTime)]) -> Line<u32> {
    Line::new(keys.iter().map(|(key, signs_from)| Turn { key: *key, signs_from: *signs_from }).collect())
}

#[test]
fn a_key_is_next_then_signs_then_retires_then_is_withdrawn() {
    let keys = line(&[(0, at(0)), (1, at(100)), (2, at(400))]);
    let phases = |minutes| keys.phases(at(minutes)).map(|(_turn, phase, _after)| phase).collect::<Vec<_>>();
    assert_eq!(phases(99), [Phase::Signing, Phase::Next, Phase::Next]);
    assert_eq!(phases(100), [Phase::Retiring, Phase::Signing, Phase::Next]);
    assert_eq!(phases(239), [Phase::Retiring, Phase::Signing, Phase::Next]);
    assert_eq!(phases(240), [Phase::Withdrawn, Phase::Signing, Phase::Next]);
    assert_eq!(phases(400), [Phase::Withdrawn, Phase::Retiring, Phase::Signing]);
    assert_eq!(phases(9_999), [Phase::Withdrawn, Phase::Withdrawn, Phase::Signing]);
    let after: Vec<_> = keys.phases(at(0)).map(|(_turn, _phase, after)| after).collect();
    assert_eq!(after, [Some(at(240)), Some(at(540)), None]);
}

#[test]
fn the_first_key_signs_where_a_clock_is_behind_all_of_them() {
    let keys = line(&[(0, at(5)), (1, at(100))]);
    assert_eq!(keys.signing(at(0)).map(|turn| turn.key), Some(0));
    assert_eq!(keys.published(at(0)).collect::<Vec<_>>(), [&0, &1]);
}

#[test]
fn a_successor_is_due_one_lead_before_its_turn_and_never_signs_unannounced() {
    let schedule = Schedule { rotate_every: 100 * MINUTE, publish_ahead: 20 * MINUTE };
    let keys = line(&[(0, at(0))]);
    assert!(!keys.is_due(schedule, at(79)) && keys.is_due(schedule, at(80)));
    assert_eq!(keys.successor_signs_from(schedule, at(80)), at(100));
    // Nobody was there when it was due.
    assert_eq!(keys.successor_signs_from(schedule, at(500)), at(520));
    let waiting = line(&[(0, at(0)), (1, at(100))]);
    assert!(!waiting.is_due(schedule, at(99)), "one successor waits at a time");
}

/// What a replica knows, and how far its clock is ahead.
struct Replica {
    view: Vec<(u32, SystemTime)>,
    read_at: SystemTime,
    ahead: Duration,
    /// When it last published anything.
    published_at: SystemTime,
    /// When it last published a set without the key, for each key that it has published since.
    without: BTreeMap<u32, SystemTime>,
}

/// Several replicas with clocks of their own on one store, which takes a key only behind the last one it has.
struct World {
    schedule: Schedule,
    store: Vec<(u32, SystemTime)>,
    replicas: Vec<Replica>,
    made: u32,
    /// Until when some assertion of the key is valid.
    valid_until: BTreeMap<u32, SystemTime>,
}

impl World {
    fn add(&mut self, after: Option<u32>, signs_from: SystemTime) {
        if line(&self.store).last().copied() == after {
            self.made += 1;
            self.store.push((self.made, signs_from));
        }
    }

    /// What a replica does twice a minute, by what it has read. It may be slow to act on that.
    fn tend(&mut self, replica: usize, now: SystemTime, slow: bool) {
        let (local, view) = (now + self.replicas[replica].ahead, self.replicas[replica].view.clone());
        let known = line(if slow { &view } else { &self.store });
        if known.is_due(self.schedule, local) {
            self.add(known.last().copied(), known.successor_signs_from(self.schedule, local));
        }
        for gone in known.withdrawn(local) {
            self.store.retain(|(key, _signs_from)| key != gone);
        }
        self.replicas[replica].view = self.store.clone();
        self.replicas[replica].read_at = now;
    }

    /// Somebody asks for a rotation.
    fn rotate(&mut self, now: SystemTime) {
        let known = line(&self.store);
        let waiting = known.phases(now).any(|(_turn, phase, _after)| phase == Phase::Next);
        if !waiting {
            self.add(known.last().copied(), now + self.schedule.publish_ahead);
        }
    }

    /// No replica was there for a while; each begins with what the store holds.
    fn restart(&mut self, now: SystemTime) {
        for replica in &mut self.replicas {
            (replica.view, replica.read_at) = (self.store.clone(), now);
        }
    }

    fn sign(&mut self, replica: usize, now: SystemTime) -> Result<(), TestCaseError> {
        let Replica { view, ahead, .. } = &self.replicas[replica];
        let key = line(view).signing(now + *ahead).expect("a key").key;
        let until = now + *ahead + ASSERTION_LIFETIME + CLOUD_SKEW;
        self.valid_until.entry(key).and_modify(|old| *old = (*old).max(until)).or_insert(until);
        let known_for = self.schedule.publish_ahead - RELOAD - LARGEST_AHEAD;
        for other in self.replicas.iter().filter(|_other| key != 0) {
            // A cloud may have this set still.
            let without = *other.without.get(&key).unwrap_or(&other.published_at);
            prop_assert!(without + known_for <= now, "key {key} signs unannounced");
        }
        Ok(())
    }

    fn publish(&mut self, now: SystemTime) -> Result<(), TestCaseError> {
        for replica in &mut self.replicas {
            let known = line(&replica.view);
            let published: Vec<u32> = known.published(now + replica.ahead).copied().collect();
            for key in &published {
                replica.without.entry(*key).or_insert(replica.published_at);
            }
            replica.published_at = now;
            for (key, _until) in self.valid_until.iter().filter(|(_key, until)| **until > now) {
                prop_assert!(published.contains(key), "key {key} is not published everywhere, but its assertions live");
            }
        }
        Ok(())
    }
}

const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const LARGEST_AHEAD: Duration = Duration::from_secs(10);
/// What a cloud adds to the life of an assertion.
const CLOUD_SKEW: Duration = Duration::from_secs(300);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_valid_assertion_is_of_a_key_that_all_replicas_publish_and_that_was_announced(
        publish_ahead in 60u64..900,
        longer in 0u64..1_500,
        aheads in prop::collection::vec(0..=LARGEST_AHEAD.as_secs(), 1..4),
        // Three to four hours: seconds to the next moment, and what is decided then.
        moments in prop::collection::vec((1..=LONGEST_PAUSE.as_secs(), any::<u8>()), 2_400),
    ) {
        let seconds = Duration::from_secs;
        let schedule =
            Schedule { rotate_every: seconds(publish_ahead + longer), publish_ahead: seconds(publish_ahead) };
        let mut now = at(0);
        let store = vec![(0, now)];
        let replica = |ahead: &u64| Replica {
            view: store.clone(),
            read_at: now,
            ahead: seconds(*ahead),
            published_at: now,
            without: BTreeMap::new(),
        };
        let replicas: Vec<Replica> = aheads.iter().map(replica).collect();
        let mut world = World { schedule, store, replicas, made: 0, valid_until: BTreeMap::new() };
        let mut first_is_gone = false;
        for (pause, decisions) in moments {
            now += seconds(pause);
            if decisions == 0 {
                world.rotate(now);
            }
            if decisions == 1 {
                now += schedule.rotate_every;
                world.restart(now);
            }
            for replica in 0..world.replicas.len() {
                let overdue = world.replicas[replica].read_at + RELOAD <= now + LONGEST_PAUSE;
                if overdue || decisions >> replica & 1 == 1 {
                    // A view that is older than the rest of this moment.
                    world.tend(replica, now, decisions >> (replica + 4) & 1 == 1);
                }
            }
            world.publish(now)?;
            for replica in 0..world.replicas.len() {
                world.sign(replica, now)?;
            }
            first_is_gone |= world.store.iter().all(|(key, _signs_from)| *key != 0);
        }
        prop_assert!(world.made >= 2 && first_is_gone, "{} keys were made", world.made);
    }
}

//! Random acts around every boundary, against a model of a few words.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Act {
    Beat,
    Credentials,
    Extend(u64),
    Close,
    Revoke,
    /// The rules allow leases of so many seconds; nothing at all at 0.
    Rules(u64),
    /// The broker is killed, and started so many seconds later.
    Restart(u64),
}

/// When an act comes: so long after, before or at the next boundary.
#[derive(Debug, Clone, Copy)]
enum When {
    Soon(u64),
    Heartbeat(i64),
    NotAfter(i64),
}

fn acts() -> impl Strategy<Value = Vec<(When, Act)>> {
    let when = prop_oneof![
        4 => (1u64..200).prop_map(When::Soon),
        2 => (-1i64..=1).prop_map(When::Heartbeat),
        1 => (-1i64..=1).prop_map(When::NotAfter),
    ];
    let act = prop_oneof![
        6 => Just(Act::Beat),
        6 => Just(Act::Credentials),
        3 => (1u64..4000).prop_map(Act::Extend),
        1 => Just(Act::Close),
        1 => Just(Act::Revoke),
        2 => prop_oneof![Just(0u64), Just(86_400), 400u64..2000].prop_map(Act::Rules),
        2 => prop_oneof![1u64..8, 8u64..1000].prop_map(Act::Restart),
    ];
    proptest::collection::vec((when, act), 1..25)
}

/// What a lease should be, in as few words as possible.
struct Model {
    not_after: SystemTime,
    proved_at: SystemTime,
    heartbeat_before: SystemTime,
    ended: bool,
    /// Seconds; 0: no rule.
    rules: u64,
}

impl Model {
    fn active(&self, now: SystemTime) -> bool {
        !self.ended && now < self.heartbeat_before && now < self.not_after
    }

    fn beat(&mut self, now: SystemTime) {
        self.heartbeat_before = (now + HEARTBEAT).min(self.not_after);
    }

    /// Until when the rules of now allow the lease's credentials.
    fn allowed_until(&self) -> SystemTime {
        self.not_after.min(self.proved_at + Duration::from_secs(self.rules))
    }
}

async fn play(duration: u64, acts: Vec<(When, Act)>) -> Result<(), TestCaseError> {
    let mut world = World::new().await;
    let opened = world.open(Some(Duration::from_secs(duration))).await;
    let (token, start) = (opened.lease_token, world.clock.now());
    let mut model = Model {
        not_after: start + Duration::from_secs(duration),
        proved_at: start,
        heartbeat_before: start + HEARTBEAT.min(Duration::from_secs(duration)),
        ended: false,
        rules: 86_400,
    };
    for (when, act) in acts {
        let until = |boundary: SystemTime, offset: i64| {
            let at = boundary + Duration::from_secs(10) - Duration::from_secs(10u64.saturating_add_signed(-offset));
            at.duration_since(world.clock.now()).unwrap_or_default()
        };
        world
            .pass(match when {
                When::Soon(seconds) => Duration::from_secs(seconds),
                When::Heartbeat(offset) => until(model.heartbeat_before, offset),
                When::NotAfter(offset) => until(model.not_after, offset),
            })
            .await;
        let now = world.clock.now();
        let active = model.active(now);
        let permitted = model.rules > 0 && now < model.allowed_until();
        match act {
            Act::Beat => {
                prop_assert_eq!(
                    world.leases.beat(&token, &caller().peer).await.is_ok(),
                    active,
                    "{:?} {:?}",
                    when,
                    act
                );
                if active {
                    model.beat(now);
                }
            }
            Act::Credentials => {
                let given = world.leases.credentials(&token, &[], caller()).await;
                // Never past an end; never refused to a job that lives.
                prop_assert_eq!(given.is_ok(), active && permitted, "{:?} {:?} {:?}", when, act, given);
                for credential in given.iter().flat_map(|update| &update.credentials) {
                    prop_assert!(credential.expires_at() > now);
                    prop_assert!(credential.expires_at() <= model.allowed_until().max(now + FLOOR));
                }
            }
            Act::Extend(seconds) => {
                let length = Duration::from_secs(seconds);
                let extended = world.leases.extend(token.clone(), proof("good"), Some(length), caller()).await;
                prop_assert_eq!(extended.is_ok(), active && model.rules > 0, "{:?} {:?}", act, extended);
                if extended.is_ok() {
                    (model.proved_at, model.not_after) = (now, now + length.min(Duration::from_secs(model.rules)));
                    model.beat(now);
                }
            }
            Act::Close => {
                let closed = world.leases.close(&token, &caller().peer).await.expect("closing always works");
                prop_assert!(closed.end.is_some());
                model.ended = true;
            }
            Act::Revoke => {
                let filter = LeaseFilter { ids: vec![opened.lease.id], ..LeaseFilter::default() };
                let revoked = world.leases.revoke(filter, "test".to_owned()).await.expect("revoking always works");
                prop_assert_eq!(revoked, usize::from(active));
                model.ended = true;
            }
            Act::Rules(seconds) => {
                model.rules = seconds;
                let rules = if seconds == 0 { compile(json!([])) } else { policy(&format!("{seconds}s")) };
                world.policy.store(Arc::new(rules));
            }
            Act::Restart(down) => {
                let died = world.clock.now();
                world.clock.advance(Duration::from_secs(down));
                world.restart().await;
                // Seven seconds are no outage; after a longer one, whoever lived then has a whole heartbeat.
                if down > 7 && model.active(died) {
                    model.beat(died + Duration::from_secs(down));
                }
            }
        }
    }
    let ends = world
        .log
        .records()
        .iter()
        .filter(|record| record.action != "lease.open" && record.outcome == Outcome::Done)
        .filter(|record| record.action != "lease.extend")
        .count();
    world.pass(SECOND).await;
    prop_assert!(ends <= 1, "{} ends of one lease", ends);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn i26_no_credential_past_an_end_none_longer_than_its_lease_and_no_live_job_starved(
        duration in 1u64..5000, acts in acts(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(play(duration, acts))?;
    }
}

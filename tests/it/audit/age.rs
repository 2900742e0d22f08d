//! What makes a record too old to be kept: what a signature or its own hash covers, and nothing that the store says.

use std::sync::Arc;

use carnet::audit::{AuditRecord, Chain, Checkpoint, FaultKind, Found, Group, Head, Reach};
use carnet::clock::{Clock as _, ManualClock, unix_milliseconds};
use carnet::issuer::{Algorithm, Issuer, Keyring, SigningKey};
use uuid::Uuid;

use super::verify::{DAY, RETENTION, World, found, hex, with_both};
use crate::support::captured_logs;

/// In the life of a broker that records an exchange.
async fn prune(world: &World<'_>) -> u64 {
    let mut pruned = 0;
    world
        .live_and(1, async |upkeep, audit| {
            upkeep.checkpoint().await;
            pruned = upkeep.prune_once(audit, RETENTION).await.expect("pruned");
            upkeep.checkpoint().await;
        })
        .await;
    pruned
}

fn head(chain: Uuid, groups: &[Group]) -> Head {
    let last = groups.last().expect("a group");
    let hash = last.hashes.last_chunk().copied().expect("a hash");
    Head { chain, position: last.position + last.records - 1, hash }
}

/// What somebody writes who may write the store, and wants young records to be dropped.
#[derive(Debug, Clone, Copy)]
enum Attack {
    CheckpointTimes,
    GroupTimes,
    NobodysCheckpoint,
    AStrangersCheckpoint,
}

/// Somebody who calls himself by the issuer's name.
fn stranger(clock: &ManualClock) -> Issuer {
    let keys = Algorithm::ALL.map(|algorithm| SigningKey::generate(algorithm, clock.now()).expect("a key"));
    let ring = Keyring::stored(&keys, None).expect("keys");
    Issuer::new("https://carnet.example.com".to_owned(), ring, Arc::new(clock.clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_write_the_store_cannot_make_a_broker_drop_young_records() {
    use Attack::{AStrangersCheckpoint, CheckpointTimes, GroupTimes, NobodysCheckpoint};
    for attack in [CheckpointTimes, GroupTimes, NobodysCheckpoint, AStrangersCheckpoint] {
        with_both(async |world| {
            world.live(5).await;
            world.clock.advance(DAY);
            world.live(1).await;
            let first = world.chains().await[0];
            let head = head(first, &world.groups(first).await);
            let long_ago = ManualClock::at(world.clock.now() - 10 * RETENTION);
            let claim = |issuer: Option<&Issuer>| {
                let reach = Reach { head, newest_ms: 0 };
                let statement = Checkpoint::make(&reach, issuer, long_ago.now()).expect("made").statement;
                let position = head.position;
                format!("UPDATE audit_checkpoint SET at_ms = 0, statement = '{statement}' WHERE position = {position}")
            };
            let sql = match attack {
                CheckpointTimes => "UPDATE audit_checkpoint SET at_ms = 0".to_owned(),
                GroupTimes => "UPDATE audit SET newest_ms = 0; DELETE FROM audit_checkpoint".to_owned(),
                NobodysCheckpoint => claim(None),
                AStrangersCheckpoint => claim(Some(&stranger(&long_ago))),
            };
            world.manipulate(&sql).await;
            assert_eq!(prune(world).await, 0, "{attack:?}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_records_go_although_the_store_calls_them_young() {
    for sql in [
        "UPDATE audit_checkpoint SET at_ms = 9000000000000; UPDATE audit SET newest_ms = 9000000000000",
        "UPDATE audit SET newest_ms = 0, own = (1 = 1)",
        // Then all of it is what a killed broker left.
        "DELETE FROM audit_checkpoint",
    ] {
        with_both(async |world| {
            world.live(5).await;
            world.clock.advance(RETENTION + DAY);
            // The types differ; what is true is 1.
            let sql = if world.database.is_some() { sql.to_owned() } else { sql.replace("(1 = 1)", "1") };
            world.manipulate(&sql).await;
            assert_eq!(prune(world).await, 11, "{sql}");
            assert_eq!(world.verify().await.faults, []);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_records_that_were_changed_stay_and_that_is_told() {
    with_both(async |world| {
        world.live(5).await;
        let first = world.chains().await[0];
        world.clock.advance(RETENTION + DAY);
        let broken = format!("UPDATE audit SET hashes = {} WHERE position = 10", hex(&[0; 64]));
        world.manipulate(&broken).await;
        assert_eq!(prune(world).await, 0);
        let told = captured_logs().text();
        let told = told.lines().find(|line| line.contains(&first.to_string()) && line.contains("past their retention"));
        assert!(told.is_some_and(|line| line.contains("record at 11 is not the one that the checkpoint")), "{told:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_was_made_old_before_it_was_dropped_is_told_by_who_saw_it() {
    with_both(async |world| {
        world.live(5).await;
        world.clock.advance(DAY);
        world.live(1).await;
        let chains = world.chains().await;
        let first = chains[0];
        let mut forged = Chain::new(first);
        let time = world.clock.now() - 2 * RETENTION;
        let mut sql = format!("DELETE FROM audit_checkpoint WHERE chain = {};", hex(first.as_bytes()));
        for group in world.groups(first).await {
            let record = |id| AuditRecord { time, ..world.record(id) };
            let records = (0..group.records).map(|id| record(id.into())).collect();
            let other = forged.seal(records, Vec::new());
            sql += &format!(
                "UPDATE audit SET bytes = {}, hashes = {}, newest_ms = {}, own = (1 = 0) WHERE chain = {} AND position = {};",
                hex(&other.bytes),
                hex(&other.hashes),
                unix_milliseconds(time),
                hex(first.as_bytes()),
                group.position
            );
        }
        world.manipulate(&if world.database.is_some() { sql } else { sql.replace("(1 = 0)", "0") }).await;
        assert_eq!(found(&world.verify().await, &chains), [(FaultKind::CheckpointContradicts, 0, 11)]);
        assert_eq!(prune(world).await, 11, "it seems to be old, and hangs together");
        assert_eq!(found(&world.verify().await, &chains), [(FaultKind::CheckpointContradicts, 0, 11)]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_the_store_makes_up_for_what_is_new_holds_nothing_up() {
    with_both(async |world| {
        world.live(5).await;
        world.clock.advance(RETENTION + DAY);
        // From now on, the last group of others is of 1970.
        world
            .manipulate(match world.database {
                Some(_database) => {
                    "INSERT INTO audit AS made_up (sequence, records, newest_ms, bytes)
                     OVERRIDING SYSTEM VALUE VALUES (1000000000, 0, 0, '')"
                }
                None => {
                    "CREATE TRIGGER made_up AFTER INSERT ON audit WHEN NEW.own = 0 BEGIN
                         UPDATE audit SET bytes = x'', newest_ms = 0 WHERE sequence = NEW.sequence;
                     END"
                }
            })
            .await;
        assert_eq!(prune(world).await, 11);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_finds_that_the_end_of_its_own_log_was_cut_off_while_it_runs() {
    with_both(async |world| {
        world
            .live_and(5, async |upkeep, _audit| {
                assert_eq!(upkeep.found().await.expect("read"), None);
                upkeep.checkpoint().await;
                assert_eq!(upkeep.found().await.expect("read"), Some(Found::AsWritten));
                world.manipulate("DELETE FROM audit WHERE position >= 8; DELETE FROM audit_checkpoint").await;
                assert_eq!(upkeep.found().await.expect("read"), Some(Found::Otherwise));
            })
            .await;
    })
    .await;
}

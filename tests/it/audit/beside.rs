//! `carnet audit verify` on what stands beside the chains, on what it is told of the time, and on brokers' own logs.

use std::sync::Arc;
use std::time::Duration;

use carnet::app::rfc3339;
use carnet::audit::{AuditRecord, FaultKind, Head, Issued, Outcome, Scope, Verification};
use carnet::clock::Clock as _;
use carnet::secret::sha256;
use carnet::store::open_to_read;
use carnet::subject::Facts;
use uuid::Uuid;

use super::verify::{DAY, RETENTION, World, found, hex, with_both};

const TOKEN: [u8; 32] = [7; 32];

/// A broker's life in which it hands a token out, twice.
async fn hand_out(world: &World<'_>, facts: &Arc<Facts>) {
    let record = |first: bool| AuditRecord {
        outcome: Outcome::Issued,
        cached: !first,
        identity: Some(facts.clone()),
        issued: Some(Issued {
            token_sha256: TOKEN,
            first,
            scopes: "a".to_owned(),
            acts_as: "sa".to_owned(),
            issued_at: world.clock.now(),
            expires_at: world.clock.now(),
        }),
        ..world.record(7)
    };
    world
        .live_and(1, async |upkeep, audit| {
            audit.record(vec![record(true)]).await.expect("written");
            audit.record(vec![record(false)]).await.expect("written");
            upkeep.checkpoint().await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_decisions_were_made_of_and_where_tokens_lead_is_what_the_records_say() {
    use FaultKind::{FactsContradict, FactsMissing, TokenContradicts, TokenMissing};
    with_both(async |world| {
        let json = r#"{"roles":["Reader"]}"#;
        let facts = Arc::new(Facts::stored(sha256(json.as_bytes()), json.to_owned()));
        hand_out(world, &facts).await;
        let chain = world.chains().await[0];
        let report = world.verify().await;
        assert_eq!((&report.faults[..], report.facts, report.signed), (&[][..], 1, 5));
        let first = Some((chain, 4));
        for (what, sql, expected) in [
            (
                "facts changed",
                "UPDATE audit_identity SET facts = '{\"roles\":[\"Admin\"]}'".to_owned(),
                vec![(FactsContradict, first)],
            ),
            ("facts deleted", "DELETE FROM audit_identity".to_owned(), vec![(FactsMissing, first)]),
            (
                "facts that nothing names",
                format!("INSERT INTO audit_identity (digest, seen_ms, facts) VALUES ({}, 0, '{{}}')", hex(&[1; 32])),
                vec![(FactsContradict, None)],
            ),
            (
                "another token leads to a record",
                format!(
                    "INSERT INTO audit_token (token_sha256, sequence) SELECT {}, sequence FROM audit_token",
                    hex(&[8; 32])
                ),
                vec![(TokenContradicts, first)],
            ),
            (
                "a token leads to another record",
                "UPDATE audit_token SET sequence = (SELECT min(sequence) FROM audit)".to_owned(),
                vec![(TokenContradicts, Some((chain, 1)))],
            ),
            (
                "a token leads nowhere",
                "UPDATE audit_token SET sequence = 1000000".to_owned(),
                vec![(TokenContradicts, None)],
            ),
            ("a token is forgotten", "DELETE FROM audit_token".to_owned(), vec![(TokenMissing, first)]),
        ] {
            let backup = world.backup().await;
            world.manipulate(&sql).await;
            let report = world.verify().await;
            let place = |chain: Option<Uuid>, position| chain.map(|chain| (chain, position));
            let faults: Vec<_> =
                report.faults.iter().map(|fault| (fault.kind, place(fault.chain, fault.position))).collect();
            assert_eq!(faults, expected, "{what}: {:?}", report.faults);
            assert_eq!(report.signed, 5, "the chain is whole: {what}");
            world.restore(backup).await;
        }
        // Facts go with the time of the records, a little earlier than they do.
        world.manipulate("DELETE FROM audit_identity").await;
        let scope = Scope { now: world.clock.now() + RETENTION + DAY, ..world.scope() };
        assert_eq!(world.verify_in(scope).await.faults, []);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn since_believes_the_times_of_signed_checkpoints_and_none_of_the_stores() {
    with_both(async |world| {
        world.live(5).await;
        world.clock.advance(DAY);
        world.live(1).await;
        let chains = world.chains().await;
        let since = || Scope { since: Some(world.clock.now() - DAY / 2), ..world.scope() };
        assert_eq!(world.verify_in(since()).await.chains, 1);
        let first = hex(chains[0].as_bytes());
        let edit = format!(
            "UPDATE audit SET hashes = {} WHERE chain = {first} AND position = 4;
             UPDATE audit SET newest_ms = 0 WHERE chain = {first} AND position = 10;",
            hex(&[0; 64])
        );
        for (what, sql, expected) in [
            ("without a checkpoint", format!("DELETE FROM audit_checkpoint WHERE chain = {first};"), FaultKind::Edited),
            (
                "with another end than the checkpoint's",
                format!("UPDATE audit SET hashes = {} WHERE chain = {first} AND position = 10;", hex(&[0; 64])),
                FaultKind::CheckpointContradicts,
            ),
        ] {
            let backup = world.backup().await;
            world.manipulate(&(edit.clone() + &sql)).await;
            let report = world.verify_in(since()).await;
            assert_eq!(found(&report, &chains).first().map(|found| (found.0, found.1)), Some((expected, 0)), "{what}");
            world.restore(backup).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brokers_log_shows_that_the_end_of_its_chain_was_cut_off() {
    with_both(async |world| {
        world.live(5).await;
        let chain = world.chains().await[0];
        let last = world.groups(chain).await.pop().expect("a group");
        let hash = last.hashes.last_chunk().copied().expect("a hash");
        let time = rfc3339(world.clock.now());
        let line = |hash| {
            let head = Head { chain, position: 11, hash };
            format!(
                r#"{{"timestamp":"{time}","level":"INFO","message":"checkpoint of the audit log","audit.head":"{head}"}}"#
            )
        };
        let against = async |log: &str| {
            let store = open_to_read(&world.settings).await.expect("a store");
            let mut verification = Verification::new(store, world.scope());
            verification.chains().await.expect("read");
            verification.against(log.as_bytes()).await.map_err(|error| error.to_string())?;
            let report = verification.into_report();
            let faults: Vec<_> = report.faults.iter().map(|fault| (fault.kind, fault.position)).collect();
            Ok::<_, String>((faults, report.heads, report.exported_before))
        };
        let log = format!("{{\"timestamp\":\"{time}\",\"message\":\"ready\"}}\n{}\n", line(hash));
        assert_eq!(against(&log).await, Ok((vec![], 1, 0)));
        assert_eq!(against(&line([1; 32])).await, Ok((vec![(FaultKind::ExportContradicts, 11)], 1, 0)));
        let none = r#"{"audit.head":"x"}"#;
        assert_eq!(against(none).await, Err("line 1 has an audit.head that is none".to_owned()));

        world.manipulate("DELETE FROM audit WHERE position = 10; DELETE FROM audit_checkpoint").await;
        assert_eq!(world.verify().await.faults, [], "the store alone does not tell");
        assert_eq!(against(&log).await, Ok((vec![(FaultKind::ExportContradicts, 11)], 1, 0)));
        world.clock.advance(RETENTION + Duration::from_secs(1));
        assert_eq!(against(&log).await, Ok((vec![], 1, 1)), "its time is over");
    })
    .await;
}

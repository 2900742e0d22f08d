//! `carnet audit verify` on what stands beside the chains, on what it is told of the time, and on brokers' own logs.

use std::sync::Arc;
use std::time::Duration;

use carnet::app::rfc3339;
use carnet::audit::{AuditRecord, FaultKind, Head, Issued, Outcome, Scope, Verification};
use carnet::clock::Clock as _;
use carnet::secret::sha256;
use carnet::store::open_to_read;
use carnet::subject::Facts;

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

/// Where a fault is found: at the record of the hand-out, at the chain's first, at none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    HandOut,
    First,
    None,
}

#[tokio::test(flavor = "multi_thread")]
async fn what_decisions_were_made_of_and_where_tokens_lead_is_what_the_records_say() {
    use FaultKind::{FactsContradict, FactsMissing, TokenContradicts, TokenMissing};
    let other = hex(&[8; 32]);
    for (sql, kind, at) in [
        ("UPDATE audit_identity SET facts = '[]'".to_owned(), FactsContradict, At::HandOut),
        ("DELETE FROM audit_identity".to_owned(), FactsMissing, At::HandOut),
        (
            format!("INSERT INTO audit_identity (digest, seen_ms, facts) VALUES ({other}, 0, '{{}}')"),
            FactsContradict,
            At::None,
        ),
        (
            format!("INSERT INTO audit_token (token_sha256, sequence) SELECT {other}, sequence FROM audit_token"),
            TokenContradicts,
            At::HandOut,
        ),
        ("UPDATE audit_token SET sequence = (SELECT min(sequence) FROM audit)".to_owned(), TokenContradicts, At::First),
        ("UPDATE audit_token SET sequence = 1000000".to_owned(), TokenContradicts, At::None),
        ("DELETE FROM audit_token".to_owned(), TokenMissing, At::HandOut),
    ] {
        with_both(async |world| {
            let json = r#"{"roles":["Reader"]}"#;
            let facts = Arc::new(Facts::stored(sha256(json.as_bytes()), json.to_owned()));
            hand_out(world, &facts).await;
            let chain = world.chains().await[0];
            let report = world.verify().await;
            assert_eq!((&report.faults[..], report.facts, report.signed), (&[][..], 1, 5));
            world.manipulate(&sql).await;
            let report = world.verify().await;
            let place = match at {
                At::HandOut => (Some(chain), 4),
                At::First => (Some(chain), 1),
                At::None => (None, 0),
            };
            let faults: Vec<_> =
                report.faults.iter().map(|fault| (fault.kind, (fault.chain, fault.position))).collect();
            assert_eq!(faults, [(kind, place)], "{sql}: {:?}", report.faults);
            assert_eq!(report.signed, 5, "the chain is whole: {sql}");
            if kind == FactsMissing {
                // They go with the time of the records, a little earlier than those do.
                let scope = Scope { now: world.clock.now() + RETENTION + DAY, ..world.scope() };
                assert_eq!(world.verify_in(scope).await.faults, []);
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn since_believes_the_times_of_signed_checkpoints_and_none_of_the_stores() {
    for (expected, sql) in [
        (FaultKind::Edited, "DELETE FROM audit_checkpoint WHERE chain = FIRST"),
        (FaultKind::CheckpointContradicts, "UPDATE audit SET hashes = ZEROS WHERE chain = FIRST AND position = 10"),
    ] {
        with_both(async |world| {
            world.live(5).await;
            world.clock.advance(DAY);
            world.live(1).await;
            let chains = world.chains().await;
            let since = || Scope { since: Some(world.clock.now() - DAY / 2), ..world.scope() };
            assert_eq!(world.verify_in(since()).await.chains, 1);
            let edited = "UPDATE audit SET hashes = ZEROS WHERE chain = FIRST AND position = 4;
                          UPDATE audit SET newest_ms = 0 WHERE chain = FIRST AND position = 10;";
            let sql = format!("{edited} {sql}").replace("FIRST", &hex(chains[0].as_bytes()));
            world.manipulate(&sql.replace("ZEROS", &hex(&[0; 64]))).await;
            let report = world.verify_in(since()).await;
            let first = found(&report, &chains).first().map(|(kind, chain, _position)| (*kind, *chain));
            assert_eq!(first, Some((expected, 0)));
        })
        .await;
    }
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

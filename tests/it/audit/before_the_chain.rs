//! A store of before the chain: it is brought up to date, what it has stays, and is named as what nothing can be said of.

use carnet::audit::FaultKind;
use carnet::proto::{self, AuditRecord};
use carnet::store::open_to_read;
use prost::Message as _;
use uuid::Uuid;

use super::verify::{DAY, hex, with_both};

const TOKEN: [u8; 32] = [7; 32];

/// One group as it was written then.
fn group() -> Vec<u8> {
    let record = |target: &str| AuditRecord {
        exchange_id: Uuid::from_u128(1).to_string(),
        time: Some(prost_types::Timestamp { seconds: 1_767_000_000, nanos: 0 }),
        action: "exchange".to_owned(),
        outcome: "issued".to_owned(),
        subject: "entra:a:b".to_owned(),
        target: target.to_owned(),
        job: Some(proto::Job::default()),
        ..AuditRecord::default()
    };
    let issued = [("scopes", "a"), ("acts_as", "sa"), ("issued_at", "1767000000"), ("expires_at", "1767003600")];
    let first = AuditRecord {
        token_sha256: "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc".to_owned(),
        attributes: issued.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..record("vertex")
    };
    [first.encode_length_delimited_to_vec(), record("azure-ml").encode_length_delimited_to_vec()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_before_the_chain_is_taken_over_and_its_records_are_named() {
    with_both(async |world| {
        let schema = match world.database {
            Some(_database) => include_str!("before_the_chain.postgres.sql"),
            None => include_str!("before_the_chain.sqlite.sql"),
        };
        world.manipulate(schema).await;
        let rows = format!(
            "INSERT INTO audit (sequence, records, newest_ms, bytes) VALUES (1, 2, 1767000000000, {});
             INSERT INTO audit_token (token_sha256, sequence) VALUES ({}, 1);
             INSERT INTO lease (id, token_sha256, subject, opened_ms, proved_ms, not_after_ms, heartbeat_ms,
                                heartbeat_before_ms, end_kind, ended_ms, end_reason)
             VALUES ({}, {}, 'entra:a:b', 1, 1, 2, 1, 2, 'closed', 2, 'its job closed it');",
            hex(&group()),
            hex(&TOKEN),
            hex(&[1; 16]),
            hex(&[2; 32]),
        );
        // Numbers are the database's own there.
        let rows = if world.database.is_some() { rows.replacen("VALUES (1, 2", "VALUES (2", 1) } else { rows };
        world.manipulate(&rows).await;
        let refused = open_to_read(&world.settings).await.expect_err("it is older").to_string();
        assert!(refused.contains("brings it up to date"), "{refused}");

        world.live(5).await;
        let report = world.verify().await;
        assert_eq!((&report.faults[..], report.unchained, report.chains, report.signed), (&[][..], 2, 1, 11));
        let stores = world.stores().await;
        let found = stores.audit.find_issued(&TOKEN).await.expect("read").expect("the hand-out of then");
        assert_eq!((found.subject.as_str(), found.issued.acts_as.as_str()), ("entra:a:b", "sa"));
        let group = stores.records.last_of_others().await.expect("read").expect("a group");
        assert!(group.chain.is_some(), "what is new stands behind what is old");
        world.clock.advance(DAY);
        world.live(1).await;
        assert_eq!(world.verify().await.faults, []);

        // One more of them, as old as the others.
        let more = "INSERT INTO audit (sequence, records, newest_ms, bytes) VALUES (-9, 1, 1767000000000, x'00')";
        let more = if world.database.is_some() { more.replacen("-9, ", "", 1) } else { more.to_owned() };
        world.manipulate(&more).await;
        let report = world.verify().await;
        let faults: Vec<_> = report.faults.iter().map(|fault| (fault.kind, fault.chain)).collect();
        assert_eq!(faults, [(FaultKind::Inserted, None)]);
        assert!(report.faults[0].detail.ends_with("found 2"), "{:?}", report.faults);
    })
    .await;
}

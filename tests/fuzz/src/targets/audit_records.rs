//! What `carnet audit verify` is given: after its first line, which says what it is, an export, a checkpoint of a good log,
//! or the bytes of a group in a store. `{chain}` and `{hash}` stand for those of the good log.

use std::sync::{Arc, LazyLock};

use carnet::audit::{
    AuditRecord, Chain, Checkpoint, Group, Head, Outcome, Reach, Records, Report, Scope, Signatures, Verification,
};
use carnet::export::{json, ocsf};
use carnet::issuer::StatementKeys;
use carnet::proto;
use carnet::target::Job;
use prost::Message as _;
use uuid::Uuid;

use crate::store::{Chest, RETENTION};
use crate::world::{ISSUER, block_on, now, show};

const CHAIN: Uuid = Uuid::from_u128(0x7777_7777);

/// Three records, and the issuer's word for them.
static LOG: LazyLock<(Group, Checkpoint, Head)> = LazyLock::new(|| {
    let mut chain = Chain::new(CHAIN);
    let group = chain.seal((1..=3).map(record).collect(), Vec::new());
    let head = chain.head().expect("a record");
    let reach = Reach { head, newest_ms: group.newest_ms };
    (group, Checkpoint::make(&reach, Some(&**ISSUER), now()).expect("a signature"), head)
});

pub fn run(data: &[u8]) {
    let Some(at) = data.iter().position(|byte| *byte == b'\n') else { return };
    let (kind, rest) = (&data[..at], &data[at + 1..]);
    let (group, checkpoint, head) = &*LOG;
    let filled = || {
        let hash = head.to_string().rsplit(':').next().unwrap_or_default().to_owned();
        String::from_utf8_lossy(rest).replace("{chain}", &CHAIN.to_string()).replace("{hash}", &hash)
    };
    match kind {
        b"export" => {
            let text = filled();
            let report = verified(Some(group.clone()), vec![checkpoint.clone()], Some(text.as_bytes()));
            // Whoever changes an export cannot make a record of the store another one.
            assert!(report.signed == 3 && report.exported_before <= report.exported);
        }
        b"checkpoint" => {
            let statement = filled().replace("{statement}", &checkpoint.statement);
            let is_ours = statement == checkpoint.statement;
            let other = Checkpoint { statement, ..checkpoint.clone() };
            let report = verified(Some(group.clone()), vec![other], None);
            assert!(report.signed == 0 || is_ours, "a checkpoint that nobody signed covers records");
        }
        b"keys" => drop(StatementKeys::from_jwks(&filled())),
        b"group" => {
            let records = u64::from(rest.first().copied().unwrap_or_default());
            let bytes = rest.get(1..).unwrap_or_default().to_vec();
            let is_ours = bytes == group.bytes;
            let other = Group { bytes, records, ..group.clone() };
            shown(&other);
            let report = verified(Some(other), vec![checkpoint.clone()], None);
            assert!(!report.faults.is_empty() || (is_ours && records == 3), "a log that was changed is whole");
        }
        _ => {}
    }
}

fn verified(group: Option<Group>, checkpoints: Vec<Checkpoint>, export: Option<&[u8]>) -> Report {
    let reader = Arc::new(Chest { group, checkpoints });
    let scope = Scope {
        keys: StatementKeys::of(&ISSUER.keys()),
        signatures: Signatures::Expected,
        retention: RETENTION,
        since: None,
        now: now(),
    };
    let mut verification = Verification::new(reader, scope);
    block_on(async {
        verification.chains().await.expect("a store that answers");
        if let Some(export) = export
            && let Err(error) = verification.against(export).await
        {
            let _ = format!("{error} {error:?}");
        }
    });
    let report = verification.into_report();
    show(|| format!("{report:?}"));
    for fault in &report.faults {
        let _ = format!("{fault} {fault:?}");
    }
    report
}

/// What those who search the log see of it.
fn shown(group: &Group) {
    let records = Records::new(Arc::new(Chest { group: Some(group.clone()), checkpoints: Vec::new() }));
    let mut cursors = Default::default();
    for record in block_on(records.read_on(&mut cursors, now())).expect("a store that answers").records {
        let line = json(&record).to_string();
        assert!(!line.contains('\n'), "a record of two lines");
        let _ = ocsf(&record);
        assert!(proto::AuditRecord::decode(record.encode_to_vec().as_slice()).is_ok_and(|again| again == record));
    }
}

fn record(number: u128) -> AuditRecord {
    AuditRecord {
        exchange_id: Uuid::from_u128(number),
        time: now(),
        action: "exchange",
        lease_id: None,
        outcome: Outcome::Issued,
        reason: None,
        subject: "entra:1:2".to_owned(),
        entra_token_id: "uti".to_owned(),
        client_id: "client".to_owned(),
        target: "google-direct".to_owned(),
        rule: "everything".to_owned(),
        job: Arc::new(Job::default()),
        lifetime: None,
        cached: false,
        issued: None,
        identity: None,
        attributes: Vec::new(),
    }
}

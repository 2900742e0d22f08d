use serde_json::{Value, json};

use super::*;

const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const OBJECT: &str = "66666666-6666-6666-6666-666666666666";

const RULES: &str = "
  - { name: training, targets: [vertex, azure-ml], subject: { roles: [Training.Submit] }, max_lifetime: 30m }
  - { name: claims, targets: [private], subject: { roles: [Training.Submit] }, when: 'subject.claims.ctry == \"DE\"' }
";

/// Rules about three targets.
fn replay(rules: &str) -> Replay {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("carnet.yaml");
    let google = "{ audience: //iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/carnet, service_account: a@b.iam.gserviceaccount.com }";
    let azure =
        format!("{{ tenant: {TENANT}, client_id: {OBJECT}, source: issuer, scopes: [https://ml.azure.com/.default] }}");
    let text = format!(
        "entra: {{ tenants: [{TENANT}], audiences: [api://carnet] }}\nissuer: {{ url: https://carnet.example.com }}\n\
         targets:\n  vertex: {{ google: {google} }}\n  private: {{ google: {google} }}\n  azure-ml: {{ azure: {azure} }}\n\
         rules:{rules}"
    );
    std::fs::write(&path, text).expect("written");
    Replay::of(PolicyFile::load(&path, None).unwrap_or_else(|error| panic!("{error}"))).expect("rules")
}

/// Of somebody with the role, under rule `training` where none is given.
fn record(exchange: &str, target: &str, change: impl FnOnce(&mut AuditRecord)) -> AuditRecord {
    let facts = json!({"tid": TENANT, "oid": OBJECT, "azp": OBJECT, "ver": "2.0", "roles": ["Training.Submit"]});
    let mut record = AuditRecord {
        exchange_id: exchange.to_owned(),
        time: Some(prost_types::Timestamp { seconds: 1_767_225_600, nanos: 0 }),
        action: "exchange".to_owned(),
        outcome: "issued".to_owned(),
        subject: format!("entra:{TENANT}:{OBJECT}"),
        target: target.to_owned(),
        rule: "training".to_owned(),
        attributes: [(IDENTITY_FACTS.to_owned(), facts.to_string())].into(),
        ..AuditRecord::default()
    };
    change(&mut record);
    record
}

fn denied(record: &mut AuditRecord) {
    record.rule.clear();
    (record.outcome, record.reason) = ("denied".to_owned(), "DENIED".to_owned());
    record.attributes.insert("denial".to_owned(), "no rule allows it".to_owned());
}

/// What comes of them, as `change target: then, now`, and what could not be asked again.
fn asked_again(rules: &str, records: Vec<AuditRecord>) -> (Vec<String>, Value) {
    let mut replay = replay(rules);
    records.into_iter().for_each(|record| replay.take(record));
    let json = replay.end().json();
    let text = |row: &Value, name: &str| row[name].as_str().expect("a text").to_owned();
    let shown = |row: &Value| {
        format!("{} {}: {}, {}", text(row, "change"), text(row, "target"), text(row, "then"), text(row, "now"))
    };
    let rows = json["changes"].as_array().expect("rows").iter().map(shown).collect();
    (rows, json["not_asked_again"].clone())
}

fn changes(rules: &str, records: Vec<AuditRecord>) -> Vec<String> {
    asked_again(rules, records).0
}

#[test]
fn a_decision_is_asked_again_as_it_was_asked_then() {
    assert_eq!(changes(RULES, vec![record("1", "vertex", |_same| {})]), Vec::<String>::new());
    assert_eq!(
        changes(" []", vec![record("1", "vertex", |_same| {})]),
        ["would_deny vertex: rule training, no rule allows it"]
    );
    assert_eq!(
        changes(RULES, vec![record("1", "vertex", denied)]),
        ["would_allow vertex: no rule allows it, rule training"]
    );
    assert_eq!(changes(" []", vec![record("1", "vertex", denied)]), Vec::<String>::new());
    let renamed = RULES.replace("name: training", "name: other");
    assert_eq!(
        changes(&renamed, vec![record("1", "vertex", |_same| {})]),
        ["other_rule vertex: rule training, rule other"]
    );
    let failed = |record: &mut AuditRecord| {
        (record.outcome, record.reason) = ("failed".to_owned(), "CLOUD_REFUSED".to_owned());
    };
    assert_eq!(
        changes(" []", vec![record("1", "vertex", failed)]),
        ["would_deny vertex: rule training, no rule allows it"],
        "the rules had allowed it"
    );
}

#[test]
fn the_targets_of_one_request_are_allowed_together_or_not_at_all() {
    let both = || vec![record("1", "vertex", denied), record("1", "private", denied)];
    assert_eq!(changes(&RULES.replace(", when: 'subject.claims.ctry == \"DE\"'", ""), both()).len(), 2);
    let without = "\n  - { name: training, targets: [vertex], subject: { roles: [Training.Submit] } }";
    assert_eq!(changes(without, both()), Vec::<String>::new(), "one of both is denied still");
    let apart = vec![record("1", "vertex", denied), record("2", "private", denied)];
    assert_eq!(changes(without, apart), ["would_allow vertex: no rule allows it, rule training"]);
}

#[test]
fn leases_are_asked_for_as_leases() {
    let lease = RULES.replace("max_lifetime: 30m", "lease: { max_duration: 9h, heartbeat: 5m }");
    for action in ["lease.open", "lease.credentials"] {
        let of_lease = || vec![record("1", "vertex", |record| record.action = action.to_owned())];
        assert_eq!(changes(&lease, of_lease()), Vec::<String>::new(), "{action}");
        let refused = changes(RULES, of_lease());
        assert!(refused[0].starts_with("would_deny vertex: rule training, no rule allows leases"), "{refused:?}");
    }
}

#[test]
fn lifetimes_are_compared_where_the_record_tells_what_was_planned() {
    let lived = |seconds: i64, cached: bool, bound: &str, target: &str| {
        let lived = record("1", target, |record| {
            record.lifetime = Some(prost_types::Duration { seconds, nanos: 0 });
            record.cached = cached;
            record.attributes.insert("lifetime_bound".to_owned(), bound.to_owned());
        });
        changes(RULES, vec![lived])
    };
    let shorter = ["other_lifetime vertex: rule training, 30m instead of 1h"];
    assert_eq!(lived(3598, false, "rule", "vertex"), shorter);
    assert_eq!(lived(3598, true, "rule", "vertex"), shorter);
    assert_eq!(lived(1500, true, "rule", "vertex"), Vec::<String>::new());
    assert_eq!(lived(3598, false, "learned", "vertex"), Vec::<String>::new());
    assert_eq!(lived(3598, false, "rule", "azure-ml"), Vec::<String>::new());
}

#[test]
fn what_cannot_be_asked_again_is_counted_by_why() {
    let missed = |record: AuditRecord| asked_again(RULES, vec![record]);
    let only = |name: &str| {
        let mut all = json!({"without_facts": 0, "claims_not_kept": 0, "not_by_rules": 0});
        all[name] = 1.into();
        (Vec::<String>::new(), all)
    };
    assert_eq!(missed(record("1", "vertex", |record| record.attributes.clear())), only("without_facts"));
    assert_eq!(missed(record("1", "private", |_same| {})), only("claims_not_kept"));
    let expired = |record: &mut AuditRecord| {
        record.rule.clear();
        record.reason = "SUBJECT_TOKEN_EXPIRED".to_owned();
    };
    assert_eq!(missed(record("1", "vertex", expired)), only("not_by_rules"));
    let over = |record: &mut AuditRecord| {
        denied(record);
        let denial = "rule training allows leases of 60s since the last subject token";
        record.attributes.insert("denial".to_owned(), denial.to_owned());
    };
    assert_eq!(missed(record("1", "vertex", over)), only("not_by_rules"));
    let nothing = json!({"without_facts": 0, "claims_not_kept": 0, "not_by_rules": 0});
    let revoked = record("1", "vertex", |record| record.action = "lease.revoke".to_owned());
    assert_eq!(missed(revoked), (Vec::new(), nothing));
}

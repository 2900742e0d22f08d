//! What the configuration grants and nobody used: rules, targets, and the subjects that rules name.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::proto::AuditRecord;

/// One rule, as far as records tell whether it was used.
#[derive(Debug, Clone, Default)]
pub(super) struct Granted {
    pub rule: String,
    pub targets: Vec<String>,
    /// Object ids of people, service principals and managed identities.
    pub objects: Vec<String>,
    /// Client ids of the applications through which they ask.
    pub clients: Vec<String>,
    pub tenants: Vec<String>,
}

/// Gathers records in any order; remembers no more than the configuration has names.
#[derive(Debug)]
pub(super) struct Unused {
    granted: Vec<Granted>,
    used: BTreeSet<Item>,
}

/// Something that is granted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Rule(String),
    Target(String),
    /// Of a rule, which stands first.
    TargetOfRule(String, String),
    Object(String, String),
    Client(String, String),
    Tenant(String, String),
}

impl Item {
    fn parts(&self) -> (&'static str, &str, &str) {
        match self {
            Self::Rule(name) => ("rule", name, ""),
            Self::Target(name) => ("target", name, ""),
            Self::TargetOfRule(rule, name) => ("target", name, rule),
            Self::Object(rule, id) => ("object", id, rule),
            Self::Client(rule, id) => ("client", id, rule),
            Self::Tenant(rule, id) => ("tenant", id, rule),
        }
    }
}

impl Unused {
    pub fn of(granted: Vec<Granted>) -> Self {
        Self { granted, used: BTreeSet::new() }
    }

    /// A denied or failed exchange uses nothing.
    pub fn add(&mut self, record: &AuditRecord) {
        let Some(granted) = self.granted.iter().find(|granted| granted.rule == record.rule) else { return };
        if record.outcome != "issued" {
            return;
        }
        let rule = || record.rule.clone();
        let (tenant, object) =
            record.subject.strip_prefix("entra:").and_then(|subject| subject.split_once(':')).unwrap_or_default();
        let named = |names: &[String], name: &str| names.iter().any(|named| named.eq_ignore_ascii_case(name));
        let mut used = vec![Item::Rule(rule())];
        if named(&granted.targets, &record.target) {
            used.push(Item::Target(record.target.clone()));
            used.push(Item::TargetOfRule(rule(), record.target.clone()));
        }
        if named(&granted.objects, object) {
            used.push(Item::Object(rule(), object.to_ascii_lowercase()));
        }
        if named(&granted.clients, &record.client_id) {
            used.push(Item::Client(rule(), record.client_id.to_ascii_lowercase()));
        }
        if named(&granted.tenants, tenant) {
            used.push(Item::Tenant(rule(), tenant.to_ascii_lowercase()));
        }
        self.used.extend(used);
    }

    /// The largest first: of a rule that nobody used, its parts are not named again.
    fn items(&self) -> Vec<Item> {
        let unused = |item: &Item| !self.used.contains(item);
        let mut items: Vec<Item> =
            self.granted.iter().map(|granted| Item::Rule(granted.rule.clone())).filter(unused).collect();
        let targets: BTreeSet<&String> = self.granted.iter().flat_map(|granted| &granted.targets).collect();
        items.extend(targets.into_iter().map(|target| Item::Target(target.clone())).filter(unused));
        for granted in &self.granted {
            if unused(&Item::Rule(granted.rule.clone())) {
                continue;
            }
            let rule = || granted.rule.clone();
            let id = |id: &String| id.to_ascii_lowercase();
            let targets = granted.targets.iter().filter(|target| !unused(&Item::Target((*target).clone())));
            let parts = targets.map(|target| Item::TargetOfRule(rule(), target.clone()));
            let parts = parts.chain(granted.objects.iter().map(|object| Item::Object(rule(), id(object))));
            let parts = parts.chain(granted.clients.iter().map(|client| Item::Client(rule(), id(client))));
            let parts = parts.chain(granted.tenants.iter().map(|tenant| Item::Tenant(rule(), id(tenant))));
            items.extend(parts.filter(unused));
        }
        items
    }

    /// For a table and for CSV.
    pub fn rows(&self) -> Vec<[String; 3]> {
        let mut rows = vec![["UNUSED", "NAME", "OF RULE"].map(str::to_owned)];
        rows.extend(self.items().iter().map(|item| {
            let (kind, name, rule) = item.parts();
            [kind, name, rule].map(str::to_owned)
        }));
        rows
    }

    pub fn json(&self) -> Vec<Value> {
        let row = |item: &Item| {
            let (kind, name, rule) = item.parts();
            json!({"kind": kind, "name": name, "of_rule": (!rule.is_empty()).then_some(rule)})
        };
        self.items().iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn granted() -> Vec<Granted> {
        let training = Granted {
            rule: "training".to_owned(),
            targets: names(&["vertex", "azure-ml", "archive"]),
            objects: names(&["AAAA", "bbbb"]),
            clients: names(&["cccc"]),
            tenants: names(&["tttt"]),
        };
        let serving = Granted { rule: "serving".to_owned(), targets: names(&["vertex"]), ..Granted::default() };
        let batch = Granted { rule: "batch".to_owned(), targets: names(&["azure-ml"]), ..Granted::default() };
        vec![training, serving, batch]
    }

    fn record(rule: &str, target: &str, outcome: &str) -> AuditRecord {
        AuditRecord {
            rule: rule.to_owned(),
            target: target.to_owned(),
            outcome: outcome.to_owned(),
            subject: "entra:tttt:aaaa".to_owned(),
            client_id: "CCCC".to_owned(),
            ..Default::default()
        }
    }

    fn unused(records: &[AuditRecord]) -> Vec<[String; 3]> {
        let mut unused = Unused::of(granted());
        records.iter().for_each(|record| unused.add(record));
        unused.rows().split_off(1)
    }

    #[test]
    fn what_was_handed_out_is_used_and_the_rest_is_named_once() {
        let records = [
            record("training", "vertex", "issued"),
            record("batch", "azure-ml", "issued"),
            record("serving", "vertex", "denied"),
            record("forgotten", "archive", "issued"),
        ];
        let expected = [
            ["rule", "serving", ""],
            ["target", "archive", ""],
            ["target", "azure-ml", "training"],
            ["object", "bbbb", "training"],
        ];
        assert_eq!(unused(&records), expected.map(|row| row.map(str::to_owned)));
    }

    #[test]
    fn without_records_every_rule_and_target_is_unused() {
        let kinds: Vec<String> = unused(&[]).into_iter().map(|[kind, ..]| kind).collect();
        assert_eq!(kinds, ["rule", "rule", "rule", "target", "target", "target"]);
    }
}

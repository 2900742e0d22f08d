//! Subjects by themselves: whom they can match, and whether that is anybody.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Code, Draft, Finding, Rule, When, listed};
use crate::policy::document::{KindDocument, SubjectDocument};
use crate::subject::Kind;
use crate::target::{AzureSource, Guid, Platform, Target};

impl Draft<'_> {
    /// Entries that nobody can match, and lists of nothing else.
    pub(super) fn subject(&self, subject: &SubjectDocument, at: &str, findings: &mut Vec<Finding>) {
        let foreign = "is none of entra.tenants, so no token of it is taken";
        let tenants = subject.tenants.iter().flatten().map(|tenant| {
            let accepted = self.tenants.is_empty() || self.tenants.contains(&tenant.0);
            (tenant.0.to_string(), (!accepted).then(|| foreign.to_owned()))
        });
        let tenants: Vec<_> = tenants.collect();
        let unfit = |kind: KindDocument| {
            let reason = match (&subject.scopes, &subject.auth_contexts) {
                (Some(_), _) => "`scopes`: only users' tokens have any",
                (None, Some(_)) => "`auth_contexts`: only users satisfy one",
                (None, None) => return None,
            };
            (kind != KindDocument::User).then(|| format!("cannot go with {reason}"))
        };
        let kinds: Vec<_> =
            subject.kinds.iter().flatten().map(|kind| (kind_name(*kind).to_owned(), unfit(*kind))).collect();
        let texts = |list: &Option<Vec<String>>, wrong: fn(&str) -> Option<&'static str>| -> Vec<_> {
            let entry = |text: &String| (text.clone(), wrong(text).map(str::to_owned));
            list.iter().flatten().map(entry).collect()
        };
        for (field, entries) in [
            ("tenants", tenants),
            ("kinds", kinds),
            ("roles", texts(&subject.roles, wrong_role)),
            ("scopes", texts(&subject.scopes, wrong_scope)),
            ("auth_contexts", texts(&subject.auth_contexts, wrong_context)),
        ] {
            dead_entries(&format!("{at}.{field}"), &entries, findings);
        }
        for (field, list) in [("roles", &subject.roles), ("scopes", &subject.scopes)] {
            for (index, text) in list.iter().flatten().enumerate().filter(|(_index, text)| is_address(text)) {
                findings.push(Finding {
                    code: Code::NameAsIdentity,
                    at: format!("{at}.{field}[{index}]"),
                    message: format!("{text} is an e-mail address, and addresses are given to somebody else later"),
                    change: "Name people by `objects` (their object ids), or better by an app role of the broker's \
                             application."
                        .to_owned(),
                });
            }
        }
        if subject.groups.is_some() {
            findings.push(Finding {
                code: Code::Groups,
                at: format!("{at}.groups"),
                message:
                    "Entra leaves the groups out of the tokens of whoever has more than 200, and they are refused \
                          with GROUPS_OVERAGE"
                        .to_owned(),
                change: "Prefer an app role that is given to the group, or have the application emit assigned groups \
                         only."
                    .to_owned(),
            });
        }
    }

    /// Allow rules whose subject anybody has.
    pub(super) fn breadth(&self, rule: &Rule<'_>, findings: &mut Vec<Finding>) {
        let subject = &rule.document.subject;
        let kinds = kinds(subject);
        let behalf = rule.targets.iter().filter(|target| acts_on_behalf(target));
        let behalf: Vec<&str> = behalf.map(|target| target.name.as_str()).collect();
        if !rule.document.deny && !behalf.is_empty() && !kinds.is_empty() && !kinds.contains(&KindDocument::User) {
            let code = if behalf.len() == rule.targets.len() { Code::Nobody } else { Code::NoEffect };
            findings.push(Finding {
                code,
                at: format!("{}.subject.kinds", rule.at),
                message: format!(
                    "rule {} admits no users, and {} acts on behalf of users only",
                    rule.name(),
                    listed(&behalf)
                ),
                change: "Add `user` to the kinds, or take the target out of the rule.".to_owned(),
            });
        }
        if rule.document.deny || rule_is_narrow(rule, &kinds) || matches!(rule.when, When::Broken) {
            return;
        }
        let callers_word = rule.reading().is_some_and(|reading| {
            reading.always.is_none() && reading.reads.iter().any(|read| is_said_by_the_caller(read))
        });
        if callers_word {
            findings.push(Finding {
                code: Code::CallersWord,
                at: format!("{}.when", rule.at),
                message: format!(
                    "rule {} allows {} whose request says the right thing: job and request are the caller's own words",
                    rule.name(),
                    anybody(subject, &kinds)
                ),
                change: "Say in `subject` who it is: `roles`, `groups` or `objects`, for applications `clients`."
                    .to_owned(),
            });
            return;
        }
        // Whoever is empty is a mistake of its own, unless a condition stands beside it.
        if *subject == SubjectDocument::default() && matches!(rule.when, When::Absent) {
            return;
        }
        findings.push(Finding {
            code: Code::TooWide,
            at: if *subject == SubjectDocument::default() { format!("{}.when", rule.at) } else { subject_at(rule) },
            message: format!("rule {} allows {}", rule.name(), anybody(subject, &kinds)),
            change: TOO_WIDE.to_owned(),
        });
    }

    /// Ids of one thing in the place of another's.
    pub(super) fn mixed_up_ids(&self, findings: &mut Vec<Finding>) {
        let mut known: HashMap<Uuid, (&'static str, String)> = HashMap::new();
        let tenants = self.tenants.iter().enumerate();
        known.extend(tenants.map(|(index, tenant)| (*tenant, ("tenant", format!("entra.tenants[{index}]")))));
        let mut kinds: HashMap<Uuid, (Vec<KindDocument>, String)> = HashMap::new();
        let rules = self.rules.iter().enumerate().map(|(place, rule)| (format!("rules[{place}]"), &rule.subject));
        let operators =
            self.operators.iter().enumerate().map(|(place, who)| (format!("operators[{place}]"), &who.subject));
        for (at, subject) in rules.chain(operators) {
            for (field, what, list) in [
                ("tenants", "tenant", &subject.tenants),
                ("groups", "group", &subject.groups),
                ("clients", "client", &subject.clients),
                ("objects", "object", &subject.objects),
            ] {
                for (index, id) in list.iter().flatten().enumerate() {
                    let here = format!("{at}.subject.{field}[{index}]");
                    match known.get(&id.0) {
                        Some((other, there)) if *other != what => {
                            findings.push(mixed_up(here, id.0, what, other, there))
                        }
                        Some(_) => {}
                        None => {
                            known.insert(id.0, (what, here));
                        }
                    }
                }
            }
            let here = self::kinds(subject);
            for (index, object) in subject.objects.iter().flatten().enumerate().filter(|_any| subject.kinds.is_some()) {
                match kinds.get(&object.0) {
                    Some((others, there)) if !others.iter().any(|kind| here.contains(kind)) => findings.push(Finding {
                        code: Code::IdMixedUp,
                        at: format!("{at}.subject.objects[{index}]"),
                        message: format!(
                            "object {} is a {} here and a {} in {there}, and an object is one of them",
                            object.0,
                            listed(here.iter().copied().map(kind_name)),
                            listed(others.iter().copied().map(kind_name))
                        ),
                        change: "Correct `kinds` where they are wrong: that rule matches nobody.".to_owned(),
                    }),
                    Some(_) => {}
                    None => {
                        kinds.insert(object.0, (here.clone(), at.clone()));
                    }
                }
            }
        }
    }
}

fn mixed_up(at: String, id: Uuid, what: &str, other: &str, there: &str) -> Finding {
    let change = match (what, other) {
        ("client" | "object", "client" | "object") => {
            "`clients` takes application (client) ids, `objects` the object ids of service principals (Entra: enterprise \
             applications) and users: they are different."
        }
        _ => "Look the id up in Entra, and correct the one that is wrong.",
    };
    Finding {
        code: Code::IdMixedUp,
        at,
        message: format!("{id} is a {what} here and a {other} in {there}"),
        change: change.to_owned(),
    }
}

/// `entries`: each with what is wrong with it.
fn dead_entries(at: &str, entries: &[(String, Option<String>)], findings: &mut Vec<Finding>) {
    let dead = || entries.iter().enumerate().filter_map(|(index, (entry, why))| Some((index, entry, why.as_ref()?)));
    match dead().next() {
        Some((_index, entry, why)) if dead().count() == entries.len() => findings.push(Finding {
            code: Code::Nobody,
            at: at.to_owned(),
            message: format!("nobody can match: {entry} {why}"),
            change: "Correct the list, or take it out.".to_owned(),
        }),
        _ => findings.extend(dead().map(|(index, entry, why)| Finding {
            code: Code::DeadEntry,
            at: format!("{at}[{index}]"),
            message: format!("{entry} {why}"),
            change: "Correct the entry, or take it out.".to_owned(),
        })),
    }
}

/// Entra (app roles, `value`): no blanks.
fn wrong_role(role: &str) -> Option<&'static str> {
    let blank = role.trim().is_empty() || role.contains(char::is_whitespace);
    blank.then_some("has blanks, which no role's value has: this may be its display name")
}

/// `scp` holds the short names, blanks between them.
fn wrong_scope(scope: &str) -> Option<&'static str> {
    if scope.trim().is_empty() || scope.contains(char::is_whitespace) {
        Some("has blanks: each scope is an entry of its own")
    } else if scope.contains("://") {
        Some("is written as clients ask for it: tokens carry the name behind the last `/` alone")
    } else if scope.ends_with(".default") {
        Some("is in no token: clients ask with it for all that they may have")
    } else {
        None
    }
}

/// Entra (authentication contexts): c1 to c99.
fn wrong_context(context: &str) -> Option<&'static str> {
    let number = context.strip_prefix('c').and_then(|number| number.parse::<u8>().ok());
    let right = number.is_some_and(|number| (1..=99).contains(&number) && context == format!("c{number}"));
    (!right).then_some("is no authentication context: their ids are c1 to c99")
}

/// Something before an `@` or nothing, and a domain behind it.
pub(super) fn is_address(text: &str) -> bool {
    let Some((name, domain)) = text.rsplit_once('@') else { return false };
    let plain = |part: &str| !part.contains(|c: char| c.is_whitespace() || "/:'\"".contains(c));
    plain(name) && plain(domain) && domain.split('.').count() > 1 && domain.split('.').all(|label| !label.is_empty())
}

/// Those that a subject lets in: what only users have goes without the others.
pub(super) fn kinds(subject: &SubjectDocument) -> Vec<KindDocument> {
    let users_only = subject.scopes.is_some() || subject.auth_contexts.is_some();
    let named = subject.kinds.clone().unwrap_or_else(|| ALL_KINDS.to_vec());
    named.into_iter().filter(|kind| !users_only || *kind == KindDocument::User).collect()
}

pub(super) fn kind_name(kind: KindDocument) -> &'static str {
    Kind::from(kind).as_str()
}

/// Whether what a subject asks for is given to some by somebody.
pub(super) fn is_narrow(subject: &SubjectDocument, kinds: &[KindDocument]) -> bool {
    // A client says through which application users came; of an application, who it is.
    let own_client = subject.clients.is_some() && !kinds.contains(&KindDocument::User);
    subject.roles.is_some() || subject.groups.is_some() || subject.objects.is_some() || own_client
}

fn rule_is_narrow(rule: &Rule<'_>, kinds: &[KindDocument]) -> bool {
    let by_condition = rule.reading().is_some_and(|reading| reading.reads.iter().any(|read| identifies(read)));
    kinds.is_empty() || by_condition || is_narrow(&rule.document.subject, kinds)
}

/// What of the subject more than a tenant and a kind of caller.
fn identifies(read: &str) -> bool {
    let wide = ["subject.tenant", "subject.kind", "subject.scopes", "subject.auth_contexts"];
    is_of_the_subject(read) && !wide.contains(&read)
}

pub(super) fn is_of_the_subject(read: &str) -> bool {
    read == "subject" || read.starts_with("subject.")
}

/// Nobody verifies it.
fn is_said_by_the_caller(read: &str) -> bool {
    ["job", "request"].contains(&read) || read.starts_with("job.") || read.starts_with("request.")
}

/// In words.
pub(super) fn anybody(subject: &SubjectDocument, kinds: &[KindDocument]) -> String {
    let users = kinds.contains(&KindDocument::User);
    let who = match (users, kinds.iter().any(|kind| *kind != KindDocument::User)) {
        (true, true) => "every user and every application",
        (true, false) => "every user, guests too,",
        (false, _) => "every application",
    };
    let through = if subject.clients.is_some() { " that comes through these clients" } else { "" };
    let tenant = match subject.tenants.as_deref() {
        Some([one]) => format!("of tenant {}", one.0),
        Some(_) => "of its tenants".to_owned(),
        None => "of the accepted tenants".to_owned(),
    };
    format!("{who} {tenant}{through}")
}

pub(super) const TOO_WIDE: &str = "Ask for `roles`, `groups` or `objects`, for applications `clients`. Without \
    \"assignment required\" at Entra, any application of the tenant gets a token for the broker.";

fn subject_at(rule: &Rule<'_>) -> String {
    format!("{}.subject", rule.at)
}

fn acts_on_behalf(target: &Target) -> bool {
    matches!(&target.platform, Platform::Azure(azure) if matches!(azure.source, AzureSource::OnBehalfOf { .. }))
}

pub(super) fn ids(list: &Option<Vec<Guid>>) -> Option<Vec<Uuid>> {
    list.as_ref().map(|list| list.iter().map(|id| id.0).collect())
}

const ALL_KINDS: [KindDocument; 3] =
    [KindDocument::User, KindDocument::ServicePrincipal, KindDocument::ManagedIdentity];

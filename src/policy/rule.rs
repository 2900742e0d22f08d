//! One rule, compiled: cheap comparisons first, its expression last.

mod examined;

pub(super) use self::examined::{Field, Missing, Obstacle};

use std::time::Duration;

use cel::Value;
use uuid::Uuid;

use super::admission::Admission;
use super::condition::{Condition, Facts};
use super::document::{KindDocument, LeaseDocument, RuleDocument, SubjectDocument};
use super::tenure::LeaseLimits;
use super::{FLOOR, Mistake};
use crate::secret::FieldDigest;
use crate::subject::{Groups, Identity, Kind};
use crate::target::{Guid, Name};

pub(super) struct Rule {
    pub name: Name,
    /// Changes with every word of the rule.
    pub revision: [u8; 32],
    pub effect: Effect,
    pub max_lifetime: Option<Duration>,
    pub lease: Option<LeaseLimits>,
    subject: Subject,
    when: Option<Condition>,
    attributes: Vec<(String, Condition)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    Allow,
    Deny,
}

/// Whether a rule's conditions hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    Yes,
    No,
    /// An expression failed, or the token does not tell the groups.
    Unknown,
}

impl Rule {
    /// `at`: where the rule stands in the file.
    pub fn compile(document: &RuleDocument, at: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let before = mistakes.len();
        let mut mistake =
            |field: &str, message: String| mistakes.push(Mistake { at: format!("{at}.{field}"), message });
        let mut compile =
            |field: &str, source: &String| Condition::compile(source).map_err(|message| mistake(field, message)).ok();
        let when = document.when.as_ref().and_then(|source| compile("when", source));
        let attributes = document.attributes.iter();
        let attributes: Vec<_> = attributes
            .filter_map(|(name, source)| Some((name.clone(), compile(&format!("attributes.{name}"), source)?)))
            .collect();
        for (name, _condition) in &attributes {
            if let Err(message) = check_attribute_name(name) {
                mistake(&format!("attributes.{name}"), message);
            }
        }
        if document.max_lifetime.is_some_and(|span| span.0 < FLOOR) {
            mistake(
                "max_lifetime",
                format!("must be at least {}s: clients throw away what lives shorter", FLOOR.as_secs()),
            );
        }
        if document.targets.is_empty() {
            mistake("targets", "names no target".to_owned());
        }
        let effect = if document.deny { Effect::Deny } else { Effect::Allow };
        let lease = document.lease.map(|lease| lease_limits(lease, &mut mistake));
        let subject = Subject::compile(&document.subject, &format!("{at}.subject"), mistakes);
        if effect == Effect::Allow && document.when.is_none() && subject == Subject::default() {
            mistakes.push(Mistake {
                at: at.to_owned(),
                message: "allows everybody: say whom in `subject`, or under which condition in `when`".to_owned(),
            });
        }
        let mut revision = FieldDigest::new("rule");
        revision.field(format!("{document:?}").as_bytes());
        (mistakes.len() == before).then(|| Self {
            name: document.name.clone(),
            revision: revision.finish(),
            effect,
            max_lifetime: document.max_lifetime.map(|span| span.0),
            lease,
            subject,
            when,
            attributes,
        })
    }

    pub fn matches(&self, facts: &Facts<'_>) -> Match {
        match (self.subject.matches(facts.subject), &self.when) {
            (Match::No, _) => Match::No,
            (subject, None) => subject,
            (subject, Some(condition)) => match condition.holds(facts) {
                Some(true) => subject,
                Some(false) => Match::No,
                None => Match::Unknown,
            },
        }
    }

    pub fn admission(&self) -> Admission<'_> {
        let Subject { tenants, kinds, groups, roles, scopes, clients, objects, auth_contexts } = &self.subject;
        Admission {
            rule: &self.name,
            max_lifetime: self.max_lifetime,
            tenants: tenants.as_deref(),
            kinds: kinds.as_deref(),
            groups: groups.as_deref(),
            roles: roles.as_deref(),
            scopes: scopes.as_deref(),
            clients: clients.as_deref(),
            objects: objects.as_deref(),
            auth_contexts: auth_contexts.as_deref(),
            has_condition: self.when.is_some(),
            attributes: self.attributes.iter().map(|(name, _expression)| name.as_str()).collect(),
        }
    }

    /// The attributes whose expressions have a value here. One that fails is left out: in Google's pool an absent
    /// attribute belongs to no principal set.
    pub fn attributes(&self, facts: &Facts<'_>) -> Vec<(String, serde_json::Value)> {
        let values = self.attributes.iter();
        values.filter_map(|(name, condition)| Some((name.clone(), scalar(condition.evaluate(facts)?)?))).collect()
    }
}

fn lease_limits(document: LeaseDocument, mistake: &mut impl FnMut(&str, String)) -> LeaseLimits {
    let LeaseDocument { max_duration, heartbeat, token_lifetime } = document;
    if heartbeat.0 < SHORTEST_HEARTBEAT || heartbeat > max_duration {
        let message =
            "is at least 15s, so that a broker that restarts ends no live job's lease, and at most max_duration";
        mistake("lease.heartbeat", message.to_owned());
    }
    let token_lifetime = token_lifetime.map_or(TOKEN_UNDER_LEASE, |span| span.0);
    if token_lifetime < FLOOR {
        mistake(
            "lease.token_lifetime",
            format!("must be at least {}s: clients throw away what lives shorter", FLOOR.as_secs()),
        );
    }
    LeaseLimits { max_duration: max_duration.0, heartbeat: heartbeat.0, token_lifetime }
}

const SHORTEST_HEARTBEAT: Duration = Duration::from_secs(15);

/// Short enough that an ended lease's last token soon ends too; long enough that 100,000 leases stay below the rate at
/// which Google exchanges tokens for one project.
const TOKEN_UNDER_LEASE: Duration = Duration::from_secs(30 * 60);

/// The `subject` part of a rule. `None` admits everybody.
#[derive(Default, PartialEq)]
pub(super) struct Subject {
    tenants: Option<Vec<Uuid>>,
    kinds: Option<Vec<Kind>>,
    groups: Option<Vec<Uuid>>,
    roles: Option<Vec<String>>,
    scopes: Option<Vec<String>>,
    clients: Option<Vec<Uuid>>,
    objects: Option<Vec<Uuid>>,
    auth_contexts: Option<Vec<String>>,
}

impl Subject {
    pub fn compile(document: &SubjectDocument, at: &str, mistakes: &mut Vec<Mistake>) -> Self {
        let mut check = |field: &str, length: Option<usize>| {
            if length == Some(0) {
                let message = "an empty list admits nobody: name someone or leave it out".to_owned();
                mistakes.push(Mistake { at: format!("{at}.{field}"), message });
            }
        };
        check("tenants", document.tenants.as_ref().map(Vec::len));
        check("kinds", document.kinds.as_ref().map(Vec::len));
        check("groups", document.groups.as_ref().map(Vec::len));
        check("roles", document.roles.as_ref().map(Vec::len));
        check("scopes", document.scopes.as_ref().map(Vec::len));
        check("clients", document.clients.as_ref().map(Vec::len));
        check("objects", document.objects.as_ref().map(Vec::len));
        check("auth_contexts", document.auth_contexts.as_ref().map(Vec::len));
        let guids = |list: &Option<Vec<Guid>>| list.as_ref().map(|list| list.iter().map(|guid| guid.0).collect());
        Self {
            tenants: guids(&document.tenants),
            kinds: document.kinds.as_ref().map(|kinds| kinds.iter().copied().map(Kind::from).collect()),
            groups: guids(&document.groups),
            roles: document.roles.clone(),
            scopes: document.scopes.clone(),
            clients: guids(&document.clients),
            objects: guids(&document.objects),
            auth_contexts: document.auth_contexts.clone(),
        }
    }

    pub fn matches(&self, who: &Identity) -> Match {
        fn admits<T: PartialEq>(list: &Option<Vec<T>>, have: &[T]) -> bool {
            list.as_ref().is_none_or(|list| list.iter().any(|item| have.contains(item)))
        }
        let certain = admits(&self.tenants, &[who.tenant()])
            && admits(&self.kinds, &[who.kind()])
            && admits(&self.clients, &[who.client()])
            && admits(&self.objects, &[who.object()])
            && admits(&self.roles, who.roles())
            && admits(&self.scopes, who.scopes())
            && admits(&self.auth_contexts, who.auth_contexts());
        match (certain, &self.groups, who.groups()) {
            (false, _, _) => Match::No,
            (true, None, _) => Match::Yes,
            (true, Some(_), Groups::Overage) => Match::Unknown,
            (true, Some(wanted), Groups::Known(groups)) => {
                if wanted.iter().any(|group| groups.binary_search(group).is_ok()) { Match::Yes } else { Match::No }
            }
        }
    }
}

impl From<KindDocument> for Kind {
    fn from(kind: KindDocument) -> Self {
        match kind {
            KindDocument::User => Self::User,
            KindDocument::ServicePrincipal => Self::ServicePrincipal,
            KindDocument::ManagedIdentity => Self::ManagedIdentity,
        }
    }
}

/// Google (attribute mapping): keys of `[a-z0-9_]`, at most 100 characters.
fn check_attribute_name(name: &str) -> Result<(), String> {
    let plain = (1..=100).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if !plain {
        return Err("an attribute's name has 1 to 100 characters of a-z, 0-9 and `_`".to_owned());
    }
    if RESERVED_CLAIMS.contains(&name) {
        return Err(format!("`{name}` is a claim of the broker's own"));
    }
    Ok(())
}

const RESERVED_CLAIMS: [&str; 13] =
    ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "tid", "oid", "azp", "rule", "job_id", "job_name"];

/// What an attribute can carry: a text, a number, a truth value or a list of texts.
fn scalar(value: Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::String(text) if text.len() <= ATTRIBUTE_MAX_BYTES => text.as_str().into(),
        Value::Int(number) => number.into(),
        Value::UInt(number) => number.into(),
        Value::Bool(truth) => truth.into(),
        Value::List(items) if items.len() <= 32 => items
            .iter()
            .map(|item| matches!(item, Value::String(_)).then(|| scalar(item.clone())).flatten())
            .collect::<Option<Vec<_>>>()?
            .into(),
        _ => return None,
    })
}

/// Google maps at most 8 KB in all.
const ATTRIBUTE_MAX_BYTES: usize = 1024;

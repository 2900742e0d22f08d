//! A rule that was looked at closely: which of its conditions does not hold, and what was seen instead.

use std::fmt;

use super::{Match, Rule, Subject};
use crate::policy::condition::{Facts, Unmet};
use crate::policy::shown::list;
use crate::subject::{Groups, Identity, Kind};

/// What keeps a rule from matching.
#[derive(Debug, Clone)]
pub(in crate::policy) enum Obstacle {
    Subject(Missing),
    /// The rule asks for groups, and the token does not tell them.
    GroupsUntold,
    When(Unmet),
}

/// A field of a rule's `subject` that names nothing of what the token has.
#[derive(Debug, Clone)]
pub(in crate::policy) struct Missing {
    pub field: Field,
    pub wants: Vec<String>,
    pub has: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::policy) enum Field {
    Tenants,
    Kinds,
    Clients,
    Objects,
    Roles,
    Scopes,
    AuthContexts,
    Groups,
}

impl Field {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tenants => "tenants",
            Self::Kinds => "kinds",
            Self::Clients => "clients",
            Self::Objects => "objects",
            Self::Roles => "roles",
            Self::Scopes => "scopes",
            Self::AuthContexts => "auth_contexts",
            Self::Groups => "groups",
        }
    }
}

impl Rule {
    /// What keeps the rule from matching, in the order in which it is asked; empty where it matches.
    pub fn obstacles(&self, facts: &Facts<'_>) -> Vec<Obstacle> {
        let mut obstacles: Vec<Obstacle> = self.subject.missing(facts.subject).map(Obstacle::Subject).collect();
        // Where something else keeps it from matching for certain, the groups do not count.
        if self.subject.matches(facts.subject) == Match::Unknown && self.matches(facts) == Match::Unknown {
            obstacles.push(Obstacle::GroupsUntold);
        }
        obstacles.extend(self.when.as_ref().and_then(|when| when.unmet(facts)).map(Obstacle::When));
        obstacles
    }

    /// What of the rule matches: `subject.roles has Training.Submit`.
    pub fn matching(&self, facts: &Facts<'_>) -> String {
        let fields = self.subject.fields(facts.subject).filter_map(|(field, wants, has)| {
            let common = wants.into_iter().find(|item| has.contains(item))?;
            Some(format!("subject.{} has {common}", field.as_str()))
        });
        let when = self.when.as_ref().map(|_when| "`when` holds".to_owned());
        fields.chain(when).collect::<Vec<_>>().join(", ")
    }
}

impl Subject {
    fn missing(&self, who: &Identity) -> impl Iterator<Item = Missing> {
        let untold = *who.groups() == Groups::Overage;
        self.fields(who).filter_map(move |(field, wants, has)| {
            let admits = wants.iter().any(|item| has.contains(item)) || (field == Field::Groups && untold);
            (!admits).then_some(Missing { field, wants, has })
        })
    }

    /// Each field that the rule gives: what it wants, and what the token has.
    fn fields(&self, who: &Identity) -> impl Iterator<Item = (Field, Vec<String>, Vec<String>)> {
        fn texts<T: ToString>(list: &Option<Vec<T>>) -> Option<Vec<String>> {
            list.as_ref().map(|list| list.iter().map(ToString::to_string).collect())
        }
        let kinds = |kinds: &Option<Vec<Kind>>| {
            kinds.as_ref().map(|kinds| kinds.iter().map(|kind| kind.as_str().to_owned()).collect())
        };
        let groups = match who.groups() {
            Groups::Known(groups) => groups.iter().map(ToString::to_string).collect(),
            Groups::Overage => Vec::new(),
        };
        [
            (Field::Tenants, texts(&self.tenants), vec![who.tenant().to_string()]),
            (Field::Kinds, kinds(&self.kinds), vec![who.kind().as_str().to_owned()]),
            (Field::Clients, texts(&self.clients), vec![who.client().to_string()]),
            (Field::Objects, texts(&self.objects), vec![who.object().to_string()]),
            (Field::Roles, texts(&self.roles), who.roles().to_vec()),
            (Field::Scopes, texts(&self.scopes), who.scopes().to_vec()),
            (Field::AuthContexts, texts(&self.auth_contexts), who.auth_contexts().to_vec()),
            (Field::Groups, texts(&self.groups), groups),
        ]
        .into_iter()
        .filter_map(|(field, wants, has)| Some((field, wants?, has)))
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(Missing { field, wants, has }) => {
                write!(f, "subject.{}: wants one of {}; ", field.as_str(), list(wants.iter()))?;
                if has.is_empty() {
                    f.write_str("the token has none")
                } else {
                    write!(f, "the token has {}", list(has.iter()))
                }
            }
            Self::GroupsUntold => f.write_str("subject.groups: the token does not tell its groups"),
            Self::When(unmet) => unmet.fmt(f),
        }
    }
}

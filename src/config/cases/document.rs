//! The form of a file of cases, before anything is checked against anything else.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_json::{Map, Value};

use crate::policy::{Bound, ExpectedLease, KindDocument};
use crate::target::{Guid, Name, Scope, Span};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// Of cases that have none of their own.
    pub now: Option<jiff::Timestamp>,
    /// Those whom several cases are about.
    #[serde(default)]
    pub subjects: BTreeMap<String, SubjectDocument>,
    pub cases: Vec<CaseDocument>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CaseDocument {
    pub name: String,
    pub subject: NameOr<SubjectDocument>,
    #[serde(default)]
    pub job: JobDocument,
    pub target: Option<String>,
    #[serde(default)]
    pub targets: Vec<String>,
    pub lifetime: Option<Span>,
    #[serde(default)]
    pub scopes: Vec<Scope>,
    #[serde(default)]
    pub token_type: TokenTypeDocument,
    /// Of an ID token.
    pub audience: Option<String>,
    /// Of the lease that is asked for where one is expected.
    pub lease_duration: Option<Span>,
    pub now: Option<jiff::Timestamp>,
    pub expect: NameOr<ExpectDocument>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubjectDocument {
    pub kind: KindDocument,
    pub tenant: Option<Guid>,
    pub object: Option<Guid>,
    pub client: Option<Guid>,
    #[serde(default)]
    pub roles: Vec<String>,
    #[serde(default)]
    pub groups: GroupsDocument,
    #[serde(default)]
    pub scopes: Vec<String>,
    #[serde(default)]
    pub auth_contexts: Vec<String>,
    /// More claims of the token.
    #[serde(default)]
    pub claims: Map<String, Value>,
    /// What is left of the token; default: an hour.
    pub token_lifetime: Option<Span>,
}

#[derive(Debug, Clone)]
pub(super) enum GroupsDocument {
    Known(Vec<Guid>),
    /// Entra left them out.
    Overage,
}

impl<'de> Deserialize<'de> for GroupsDocument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Groups;

        impl<'de> Visitor<'de> for Groups {
            type Value = GroupsDocument;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of groups, or the word overage")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<GroupsDocument, E> {
                match text {
                    "overage" => Ok(GroupsDocument::Overage),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<GroupsDocument, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(GroupsDocument::Known)
            }
        }

        deserializer.deserialize_any(Groups)
    }
}

impl Default for GroupsDocument {
    fn default() -> Self {
        Self::Known(Vec::new())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobDocument {
    pub id: Option<String>,
    pub name: Option<String>,
    pub duration: Option<Span>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub datasets: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TokenTypeDocument {
    #[default]
    AccessToken,
    IdToken,
    Jwt,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpectDocument {
    pub decision: DecisionDocument,
    pub rule: Option<Name>,
    pub lifetime: Option<Span>,
    pub bound: Option<Bound>,
    pub lease: Option<LeaseWord>,
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DecisionDocument {
    Allowed,
    Denied,
}

/// A text, or a whole section.
#[derive(Debug)]
pub(super) enum NameOr<T> {
    Name(String),
    Written(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for NameOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = NameOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a section")
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(NameOr::Name(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(NameOr::Written)
            }
        }

        deserializer.deserialize_any(Either(std::marker::PhantomData))
    }
}

/// `true`, `false`, `yes`, `no` or a length.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeaseWord(pub ExpectedLease);

impl<'de> Deserialize<'de> for LeaseWord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Word;

        impl Visitor<'_> for Word {
            type Value = LeaseWord;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("yes, no or a duration such as 72h")
            }

            fn visit_bool<E>(self, truth: bool) -> Result<LeaseWord, E> {
                Ok(LeaseWord(if truth { ExpectedLease::OfAnyLength } else { ExpectedLease::None }))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<LeaseWord, E> {
                match text {
                    "yes" => self.visit_bool(true),
                    "no" => self.visit_bool(false),
                    _ => text.parse().map(|Span(length)| LeaseWord(ExpectedLease::Of(length))).map_err(E::custom),
                }
            }
        }

        deserializer.deserialize_any(Word)
    }
}

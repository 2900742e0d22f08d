//! Whom a rule admits and what it asserts of them, for those who set up trust for it at a cloud.

use std::time::Duration;

use uuid::Uuid;

use crate::subject::Kind;
use crate::target::Name;

/// The fixed part of a rule; what its expression asks besides stands nowhere in it. `None` is about everybody.
#[derive(Debug, Clone)]
pub struct Admission<'a> {
    pub rule: &'a Name,
    pub max_lifetime: Option<Duration>,
    pub tenants: Option<&'a [Uuid]>,
    pub kinds: Option<&'a [Kind]>,
    pub groups: Option<&'a [Uuid]>,
    pub roles: Option<&'a [String]>,
    pub scopes: Option<&'a [String]>,
    pub clients: Option<&'a [Uuid]>,
    pub objects: Option<&'a [Uuid]>,
    pub auth_contexts: Option<&'a [String]>,
    /// Whether the rule has an expression, which only the broker evaluates.
    pub has_condition: bool,
    /// Names of the claims that the rule adds to the broker's assertion.
    pub attributes: Vec<&'a str>,
}

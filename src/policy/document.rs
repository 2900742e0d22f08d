//! The rules as a configuration file writes them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::target::{Guid, Name, Span};

/// Allows its subjects its targets, or refuses them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleDocument {
    pub name: Name,
    pub targets: Vec<Name>,
    /// All that are given must hold; a list means "any of".
    #[serde(default)]
    pub subject: SubjectDocument,
    /// CEL over subject, job, target, request and now.
    pub when: Option<String>,
    pub max_lifetime: Option<Span>,
    /// Absent: no leases.
    pub lease: Option<LeaseDocument>,
    /// CEL, by claim: carried in the broker's assertion for attribute mapping in Google's pool.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// true: a match refuses, whatever else allows.
    #[serde(default)]
    pub deny: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubjectDocument {
    pub tenants: Option<Vec<Guid>>,
    pub kinds: Option<Vec<KindDocument>>,
    pub groups: Option<Vec<Guid>>,
    pub roles: Option<Vec<String>>,
    pub scopes: Option<Vec<String>>,
    pub clients: Option<Vec<Guid>>,
    pub objects: Option<Vec<Guid>>,
    pub auth_contexts: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KindDocument {
    User,
    ServicePrincipal,
    ManagedIdentity,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseDocument {
    /// Counted from the subject token that opened or extended the lease.
    pub max_duration: Span,
    /// Without a heartbeat for this long, the lease lapses.
    pub heartbeat: Span,
    /// Of the tokens under a lease, where the cloud takes a wish; default: 30m.
    pub token_lifetime: Option<Span>,
}

/// Who may use the `Operator` service, and for what.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperatorDocument {
    pub permissions: Vec<PermissionDocument>,
    #[serde(default)]
    pub subject: SubjectDocument,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum PermissionDocument {
    #[serde(rename = "explain")]
    Explain,
    #[serde(rename = "audit.read")]
    AuditRead,
    #[serde(rename = "leases.read")]
    LeasesRead,
    #[serde(rename = "leases.revoke")]
    LeasesRevoke,
}

impl PermissionDocument {
    pub const ALL: [Self; 4] = [Self::Explain, Self::AuditRead, Self::LeasesRead, Self::LeasesRevoke];

    /// As the file writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Explain => "explain",
            Self::AuditRead => "audit.read",
            Self::LeasesRead => "leases.read",
            Self::LeasesRevoke => "leases.revoke",
        }
    }
}

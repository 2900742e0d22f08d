//! How rules decide otherwise than was decided.

use std::fmt;

use crate::target::Name;

/// What other rules would have made of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    Same,
    /// By this rule.
    WouldAllow(Name),
    /// For what the record of a denial says.
    WouldDeny(String),
    OtherRule(Name),
    /// In words.
    OtherLifetime(String),
    /// A fault of ours in the other rules.
    Failed,
}

impl Change {
    /// The metric's label.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::WouldAllow(_) => "would_allow",
            Self::WouldDeny(_) => "would_deny",
            Self::OtherRule(_) => "other_rule",
            Self::OtherLifetime(_) => "other_lifetime",
            Self::Failed => "failed",
        }
    }

    /// What is said besides the kind.
    pub fn detail(&self) -> String {
        match self {
            Self::Same | Self::Failed => String::new(),
            Self::WouldAllow(rule) | Self::OtherRule(rule) => format!("rule {rule}"),
            Self::WouldDeny(text) | Self::OtherLifetime(text) => text.clone(),
        }
    }
}

/// As the record has it.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = self.detail();
        f.write_str(self.kind())?;
        if detail.is_empty() { Ok(()) } else { write!(f, ": {detail}") }
    }
}

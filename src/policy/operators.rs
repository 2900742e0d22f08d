//! Who may use the `Operator` service, and for what.

use super::Mistake;
use super::document::{OperatorDocument, PermissionDocument};
use super::rule::{Match, Subject};
use crate::subject::VerifiedIdentity;

/// The configuration's `operators`, compiled. Empty: nobody.
#[derive(Default)]
pub struct Operators(Vec<(Vec<Permission>, Subject)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    Explain,
    AuditRead,
    LeasesRead,
    LeasesRevoke,
}

impl Operators {
    /// Mistakes are added to `mistakes`; what has one is left out.
    pub fn compile(documents: &[OperatorDocument], mistakes: &mut Vec<Mistake>) -> Self {
        let mut operators = Vec::new();
        for (position, document) in documents.iter().enumerate() {
            let at = format!("operators[{position}]");
            let subject = Subject::compile(&document.subject, &format!("{at}.subject"), mistakes);
            if subject == Subject::default() {
                let message = "names nobody: say in `subject` who the operators are".to_owned();
                mistakes.push(Mistake { at, message });
            } else if document.permissions.is_empty() {
                let message = "names no permission".to_owned();
                mistakes.push(Mistake { at: format!("{at}.permissions"), message });
            } else {
                operators.push((document.permissions.iter().copied().map(Permission::from).collect(), subject));
            }
        }
        Self(operators)
    }

    /// Where the token does not tell the groups, they count as none.
    pub fn permit(&self, identity: &VerifiedIdentity, permission: Permission) -> bool {
        let mut operators = self.0.iter();
        operators
            .any(|(permissions, subject)| permissions.contains(&permission) && subject.matches(identity) == Match::Yes)
    }
}

impl std::fmt::Debug for Operators {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Operators({})", self.0.len())
    }
}

impl From<PermissionDocument> for Permission {
    fn from(permission: PermissionDocument) -> Self {
        match permission {
            PermissionDocument::Explain => Self::Explain,
            PermissionDocument::AuditRead => Self::AuditRead,
            PermissionDocument::LeasesRead => Self::LeasesRead,
            PermissionDocument::LeasesRevoke => Self::LeasesRevoke,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use serde_json::json;

    use super::*;
    use crate::subject::Groups;

    fn operators(document: serde_json::Value) -> (Operators, Vec<Mistake>) {
        let documents: Vec<OperatorDocument> = serde_json::from_value(document).expect("operators");
        let mut mistakes = Vec::new();
        (Operators::compile(&documents, &mut mistakes), mistakes)
    }

    #[test]
    fn a_permission_is_had_by_those_whom_the_configuration_gives_it_and_by_nobody_else() {
        let (operators, mistakes) = operators(json!([
            {"permissions": ["leases.read"], "subject": {"roles": ["Reader"]}},
            {"permissions": ["leases.revoke"], "subject": {"groups": ["44444444-4444-4444-4444-444444444444"]}},
        ]));
        assert!(mistakes.is_empty());
        let who = || VerifiedIdentity::for_test(SystemTime::UNIX_EPOCH);
        let reader = who().with_roles(&["Reader"]);
        let allowed = [Permission::LeasesRead, Permission::LeasesRevoke].map(|asked| operators.permit(&reader, asked));
        assert_eq!(allowed, [true, false]);
        assert!(!operators.permit(&who(), Permission::LeasesRead));
        assert!(!operators.permit(&who().with_groups(Groups::Overage), Permission::LeasesRevoke));
    }

    #[test]
    fn operators_without_subject_or_permission_are_mistakes() {
        let (_operators, mistakes) = operators(json!([
            {"permissions": ["explain"]}, {"permissions": [], "subject": {"roles": ["Reader"]}},
        ]));
        let at: Vec<&str> = mistakes.iter().map(|mistake| mistake.at.as_str()).collect();
        assert_eq!(at, ["operators[0]", "operators[1].permissions"]);
    }
}

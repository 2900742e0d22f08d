//! Those who may use the operators' service.

use super::subjects::{TOO_WIDE, anybody, is_narrow, kinds};
use super::{Code, Draft, Finding, listed};
use crate::policy::document::{PermissionDocument, SubjectDocument};

impl Draft<'_> {
    pub(super) fn check_operators(&self, findings: &mut Vec<Finding>) {
        for (place, document) in self.operators.iter().enumerate() {
            let at = format!("operators[{place}].subject");
            let subject = &document.subject;
            self.subject(subject, &at, findings);
            let who = kinds(subject);
            if *subject != SubjectDocument::default() && !who.is_empty() && !is_narrow(subject, &who) {
                findings.push(Finding {
                    code: Code::OperatorsTooWide,
                    at: at.clone(),
                    message: format!(
                        "{} has the permissions {}",
                        anybody(subject, &who),
                        listed(document.permissions.iter().map(|permission| permission.as_str()))
                    ),
                    change: TOO_WIDE.to_owned(),
                });
            }
            let all = PermissionDocument::ALL.iter().all(|permission| document.permissions.contains(permission));
            let named = subject.roles.is_some() || subject.objects.is_some();
            if all && subject.groups.is_some() && !named {
                findings.push(Finding {
                    code: Code::AllPermissions,
                    at: format!("operators[{place}].permissions"),
                    message: "every member of a group may read all records and end all leases".to_owned(),
                    change: "Let most read (explain, audit.read, leases.read), and few revoke.".to_owned(),
                });
            }
        }
    }
}

//! Rules beside each other: those that others leave nothing to decide, and those that others let slip through.

use uuid::Uuid;

use super::subjects::{ids, is_narrow, kind_name, kinds};
use super::{Code, Draft, Finding, Rule, When, listed};
use crate::policy::condition::Always;
use crate::policy::document::{KindDocument, SubjectDocument};
use crate::target::Name;

impl Draft<'_> {
    pub(super) fn overlaps(&self, rules: &[Rule<'_>], findings: &mut Vec<Finding>) {
        for (place, rule) in rules.iter().enumerate() {
            let earlier = rules.iter().take(place);
            match rule.document.deny {
                true => findings.extend(self.decided_before(rule, earlier.filter(|other| other.document.deny))),
                false => {
                    let denying = rules.iter().filter(|other| other.document.deny);
                    let denied = self.denied(rule, denying.clone());
                    // Whoever is refused wholly is not reached either: one of both is enough.
                    if denied.is_empty() {
                        findings.extend(self.decided_before(rule, earlier.filter(|other| !other.document.deny)));
                    }
                    findings.extend(denied);
                    findings.extend(denying.filter_map(|deny| self.slips_through(rule, deny)));
                }
            }
        }
    }

    /// Where earlier rules of the same effect cover `rule` on all of its targets.
    fn decided_before<'a>(&self, rule: &Rule<'_>, earlier: impl Iterator<Item = &'a Rule<'a>>) -> Option<Finding> {
        // Under a lease, rules that allow leases come first.
        let serves =
            |other: &Rule<'_>| rule.document.deny || other.document.lease.is_some() || rule.document.lease.is_none();
        let covering: Vec<&Rule<'_>> = earlier.filter(|other| serves(other) && self.covers(other, rule)).collect();
        let decided = |target: &Name| covering.iter().find(|other| other.document.targets.contains(target));
        let by = rule.document.targets.iter().map(decided).collect::<Option<Vec<_>>>()?;
        let mut names: Vec<&str> = by.iter().map(|other| other.name().as_str()).collect();
        names.dedup();
        let first = by.first()?;
        let change = match rule.document.deny {
            true => "Take it out.".to_owned(),
            false => format!("Put it before rule {}, or take it out.", first.name()),
        };
        Some(Finding {
            code: Code::NeverReached,
            at: rule.at.clone(),
            message: format!(
                "rule {} decides nothing: whoever it names, {} has decided on before",
                rule.name(),
                listed(names)
            ),
            change,
        })
    }

    fn denied<'a>(&self, rule: &Rule<'_>, denying: impl Iterator<Item = &'a Rule<'a>>) -> Vec<Finding> {
        let covering: Vec<&Rule<'_>> = denying.filter(|deny| self.covers(deny, rule)).collect();
        let denies = |target: &&Name| covering.iter().any(|deny| deny.document.targets.contains(target));
        let denied: Vec<&Name> = rule.document.targets.iter().filter(denies).collect();
        if denied.is_empty() {
            return Vec::new();
        }
        let names = listed(covering.iter().map(|deny| deny.name()));
        let what = if denied.len() == rule.document.targets.len() {
            "whatever".to_owned()
        } else {
            format!("{}, which", listed(denied))
        };
        vec![Finding {
            code: Code::DeniedWholly,
            at: rule.at.clone(),
            message: format!("{names} refuses {what} rule {} allows: deny rules win wherever they stand", rule.name()),
            change: "Narrow the deny rule, or take the target or the whole rule out.".to_owned(),
        }]
    }

    /// Whether `wide` matches all that `narrow` does.
    fn covers(&self, wide: &Rule<'_>, narrow: &Rule<'_>) -> bool {
        let condition = match (&wide.when, &narrow.when) {
            (When::Absent, _) => true,
            (When::Read(wide_when), narrow_when) => {
                let holds = wide_when.always == Some(Always::True)
                    || (wide.document.deny && wide_when.always == Some(Always::Fails));
                holds || matches!(narrow_when, When::Read(narrow) if wide_when.means_the_same(narrow))
            }
            (When::Broken, _) => false,
        };
        condition && self.subject_covers(&wide.document.subject, &narrow.document.subject)
    }

    fn subject_covers(&self, wide: &SubjectDocument, narrow: &SubjectDocument) -> bool {
        fn covers<T: PartialEq>(wide: Option<&[T]>, narrow: Option<&[T]>) -> bool {
            match (wide, narrow) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(wide), Some(narrow)) => narrow.iter().all(|item| wide.contains(item)),
            }
        }
        let accepted = || (!self.tenants.is_empty()).then(|| self.tenants.to_vec());
        let tenants: Option<Vec<Uuid>> = ids(&narrow.tenants).or_else(accepted);
        covers(ids(&wide.tenants).as_deref(), tenants.as_deref())
            && covers(wide.kinds.as_deref(), Some(&kinds(narrow)))
            && covers(wide.groups.as_deref(), narrow.groups.as_deref())
            && covers(wide.roles.as_deref(), narrow.roles.as_deref())
            && covers(wide.scopes.as_deref(), narrow.scopes.as_deref())
            && covers(wide.clients.as_deref(), narrow.clients.as_deref())
            && covers(wide.objects.as_deref(), narrow.objects.as_deref())
            && covers(wide.auth_contexts.as_deref(), narrow.auth_contexts.as_deref())
    }

    /// Applications that `allow` lets in and whose tokens never show what `deny` looks for.
    fn slips_through(&self, allow: &Rule<'_>, deny: &Rule<'_>) -> Option<Finding> {
        let common: Vec<&Name> =
            allow.document.targets.iter().filter(|target| deny.document.targets.contains(target)).collect();
        let (wide, looked_for) = (&allow.document.subject, &deny.document.subject);
        let applications: Vec<KindDocument> =
            kinds(wide).into_iter().filter(|kind| *kind != KindDocument::User).collect();
        // Who says for which kinds a deny rule is has thought of the others.
        if common.is_empty() || applications.is_empty() || looked_for.kinds.is_some() || disjoint(wide, looked_for) {
            return None;
        }
        let (what, why) = match looked_for {
            SubjectDocument { scopes: Some(_), .. } => ("scopes", "never has scopes"),
            SubjectDocument { auth_contexts: Some(_), .. } => {
                ("auth_contexts", "never satisfies an authentication context")
            }
            SubjectDocument { groups: Some(_), .. } if wide.groups.is_none() => {
                ("groups", "has groups only where the application's manifest emits them and it is a member")
            }
            _ => return None,
        };
        let but = if is_narrow(looked_for, &[]) && what != "groups" { " whatever else the rule names" } else { "" };
        Some(Finding {
            code: Code::DenyTooNarrow,
            at: format!("{}.subject.{what}", deny.at),
            message: format!(
                "rule {} lets in {} to {}, and deny rule {} does not see them{but}: such a token {why}",
                allow.name(),
                listed(applications.iter().copied().map(kind_name)),
                listed(common),
                deny.name()
            ),
            change: format!(
                "Deny applications by `objects` or `roles`, or say `kinds: [user]` in {} or {} if users alone are meant.",
                deny.name(),
                allow.name()
            ),
        })
    }
}

/// Nobody can be both.
fn disjoint(one: &SubjectDocument, other: &SubjectDocument) -> bool {
    fn apart<T: PartialEq>(one: Option<&[T]>, other: Option<&[T]>) -> bool {
        one.zip(other).is_some_and(|(one, other)| !one.iter().any(|item| other.contains(item)))
    }
    apart(one.tenants.as_deref(), other.tenants.as_deref())
        || apart(one.clients.as_deref(), other.clients.as_deref())
        || apart(one.objects.as_deref(), other.objects.as_deref())
}

//! What is wrong with rules before anybody is denied or let in by them: findings, each with its code and what to change.

mod expressions;
mod lifetimes;
mod operators;
mod overlap;
mod subjects;

use std::fmt;

use uuid::Uuid;

use super::condition::Reading;
use super::document::{OperatorDocument, RuleDocument};
use super::explain::is_near;
use super::{Operators, Policy};
use crate::target::{Name, Target};

/// Rules as they are written, and what they are about.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    pub rules: &'a [RuleDocument],
    pub operators: &'a [OperatorDocument],
    pub targets: &'a [Target],
    /// Whose tokens are taken; empty where that is not known.
    pub tenants: &'a [Uuid],
}

/// One thing that is wrong, or probably not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub code: Code,
    /// Where in the file: `rules[0].when`.
    pub at: String,
    /// What.
    pub message: String,
    /// What to change.
    pub change: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The rules cannot be used, or a part of them can never do what it says.
    Error,
    /// Probably not what was meant.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

macro_rules! codes {
    ($($variant:ident = $word:literal $severity:ident $meaning:literal,)+) => {
        /// The closed list of what is looked for. A code keeps its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $meaning] $variant,)+ }

        impl Code {
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)+ }
            }

            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }
            }
        }
    };
}

codes! {
    Unusable = "P000" Error "a mistake because of which no broker would load the rules",
    UnknownTarget = "P001" Error "a rule names a target that there is not",
    NameAsIdentity = "P002" Error "an e-mail address or another name that can be given away stands for an identity",
    Nobody = "P003" Error "a subject that nobody can have",
    NeverHolds = "P004" Error "a condition that never holds",
    OperatorsTooWide = "P005" Error "anybody of a tenant could be an operator",
    NeverReached = "P006" Warning "an earlier rule decides whatever this one could",
    DeniedWholly = "P007" Warning "a deny rule refuses whatever this rule allows",
    DeadEntry = "P008" Warning "an entry of a list that nobody can match",
    TooWide = "P009" Warning "a subject that any application or any user of a tenant has",
    CallersWord = "P010" Warning "nothing but what the caller says of itself allows",
    DenyTooNarrow = "P011" Warning "an allow rule admits callers whom the deny rule beside it cannot see",
    EvadedDeny = "P012" Warning "a deny rule that callers evade by what they say of their job",
    NobodyAllowed = "P013" Warning "a target that no rule allows anybody",
    DenyFails = "P014" Warning "a deny rule refuses all who leave something out, because its condition fails for them",
    AlwaysHolds = "P015" Warning "a condition that always holds",
    NoEffect = "P016" Warning "a part of a rule that does nothing",
    SharedNames = "P017" Warning "attributes of one caller in the assertion of a target that callers share",
    IdMixedUp = "P018" Warning "one id stands for two different things",
    UnclearClaim = "P019" Warning "a claim that may be somebody else's tomorrow, or that the condition does not name",
    FailsSilently = "P020" Note "a condition fails, and so does not hold, for all who leave something out",
    JobsWord = "P021" Note "what a caller says of its job tells callers of one rule apart",
    NotGiven = "P022" Note "a lifetime that the target or its cloud does not give",
    LongLease = "P023" Note "leases far longer than the jobs that the condition lets in",
    Groups = "P024" Note "groups, which Entra leaves out of the tokens of whoever has more than 200",
    AllPermissions = "P025" Note "a group has every permission of the operators' service",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Draft<'_> {
    /// In the order of the file's parts: rules, targets, operators.
    pub fn check(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let rules: Vec<Rule<'_>> = self.rules.iter().enumerate().map(|(place, rule)| self.rule(place, rule)).collect();
        for rule in &rules {
            self.unknown_targets(rule, &mut findings);
            self.subject(&rule.document.subject, &format!("{}.subject", rule.at), &mut findings);
            self.breadth(rule, &mut findings);
            self.expression(rule, &mut findings);
            self.lifetimes(rule, &mut findings);
        }
        self.overlaps(&rules, &mut findings);
        self.mixed_up_ids(&mut findings);
        self.targets_alone(&rules, &mut findings);
        self.check_operators(&mut findings);
        let unusable = self.unusable(&findings);
        findings.extend(unusable);
        findings
    }

    fn rule<'a>(&'a self, place: usize, document: &'a RuleDocument) -> Rule<'a> {
        let when = match &document.when {
            None => When::Absent,
            Some(source) => Reading::of(source).map_or(When::Broken, |reading| When::Read(Box::new(reading))),
        };
        let targets = self.targets.iter().filter(|target| document.targets.contains(&target.name)).collect();
        Rule { at: format!("rules[{place}]"), document, when, targets }
    }

    fn unknown_targets(&self, rule: &Rule<'_>, findings: &mut Vec<Finding>) {
        for (index, name) in rule.document.targets.iter().enumerate() {
            if self.targets.iter().any(|target| target.name == *name) {
                continue;
            }
            let near = |target: &&Target| is_near(name.as_str(), target.name.as_str());
            let change = match self.targets.iter().find(near).map(|target| &target.name) {
                Some(near) => format!("Did you mean {near}? Otherwise add the target, or take the name out."),
                None => "Add the target, or take the name out.".to_owned(),
            };
            findings.push(Finding {
                code: Code::UnknownTarget,
                at: format!("{}.targets[{index}]", rule.at),
                message: format!("rule {} names target {name}, which there is not", rule.name()),
                change,
            });
        }
    }

    /// Mistakes for which no finding stands at the same place.
    fn unusable(&self, findings: &[Finding]) -> Vec<Finding> {
        let mut mistakes = Policy::compile(self.rules, Vec::new()).err().unwrap_or_default();
        mistakes.retain(|mistake| !mistake.at.contains(".targets["));
        Operators::compile(self.operators, &mut mistakes);
        let known =
            |at: &str| findings.iter().any(|finding| finding.at == at && finding.code.severity() == Severity::Error);
        let unknown = mistakes.into_iter().filter(|mistake| !known(&mistake.at));
        let finding = |mistake: super::Mistake| Finding {
            code: Code::Unusable,
            at: mistake.at,
            message: mistake.message,
            change: "Mend it: until then a broker keeps its old rules, and none starts.".to_owned(),
        };
        unknown.map(finding).collect()
    }
}

/// One rule, with what was read of it.
struct Rule<'a> {
    at: String,
    document: &'a RuleDocument,
    when: When,
    /// Those of its targets that there are.
    targets: Vec<&'a Target>,
}

/// A rule's condition.
enum When {
    Absent,
    /// A mistake of its own.
    Broken,
    Read(Box<Reading>),
}

impl Rule<'_> {
    fn name(&self) -> &Name {
        &self.document.name
    }

    fn reading(&self) -> Option<&Reading> {
        match &self.when {
            When::Read(reading) => Some(reading),
            When::Absent | When::Broken => None,
        }
    }
}

/// For a sentence.
fn listed<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;

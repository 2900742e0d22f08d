//! Stage 2: who may have which target, under which rule, for how long. What no rule allows is denied.

mod admission;
mod case;
mod change;
mod check;
mod condition;
mod document;
mod explain;
mod lifetime;
mod operators;
mod replay;
mod rule;
mod shadow;
mod shown;
mod tenure;

pub use admission::Admission;
pub use case::{Case, Decision, Difference, Expected, ExpectedLease, Tried};
pub use change::Change;
pub use check::{Code, Draft, Finding, Severity};
pub use document::{KindDocument, LeaseDocument, OperatorDocument, PermissionDocument, RuleDocument, SubjectDocument};
pub use explain::Explanation;
pub use lifetime::{Bound, CloudLimit, FLOOR, Given, Plan, TooShort, Wanted, refresh_in, with_headroom};
pub use operators::{Operators, Permission};
pub use replay::{Then, ThenAllowed, ThenLifetime, claims_read, hangs_on_age};
pub use tenure::{LeaseTerms, Tenure};

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use condition::Facts;
use rule::{Effect, Match, Rule};
use tenure::lease_terms;

use crate::reason::Reason;
use crate::subject::{Groups, Identity, Kind, VerifiedIdentity};
use crate::target::{
    AzureSource, GoogleSubjectToken, IdTokenAudience, Job, Name, Platform, Scope, Scopes, Target, TokenType,
};

/// All targets and rules of one configuration, compiled. Replaced as a whole.
pub struct Policy {
    targets: HashMap<Name, (Arc<Target>, Vec<Arc<Rule>>)>,
    /// Asked beside these, to compare.
    shadow: Option<Box<Self>>,
}

/// What is wrong with a configuration, and where: `rules[0].when`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub at: String,
    pub message: String,
}

/// One target as a request asks for it, its form checked.
#[derive(Debug, Clone)]
pub struct Ask {
    /// As it was written: a name that cannot exist is denied like one that does not.
    pub target: String,
    /// Empty: all of the target's.
    pub scopes: Scopes,
    pub excess: ExcessScopes,
    pub token_type: TokenType,
    /// Of an ID token.
    pub audience: Option<IdTokenAudience>,
    pub lifetime: Option<Duration>,
    /// A credential that ends at this time or before will not do, where a longer one can be had.
    pub beyond: Option<SystemTime>,
}

/// What becomes of scopes that the target does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExcessScopes {
    Refuse,
    /// RFC 6749 section 3.3: the answer says what was granted.
    Drop,
}

/// What all that is asked for at once has in common.
#[derive(Debug, Clone, Copy)]
pub struct Inquiry<'a> {
    pub identity: &'a Arc<VerifiedIdentity>,
    pub job: &'a Arc<Job>,
    /// What runs of the job's name have taken, for a job that does not say how long it takes.
    pub learned: Option<Duration>,
    pub tenure: Tenure,
    pub now: SystemTime,
}

impl<'a> Inquiry<'a> {
    /// For credentials that are used now, outside of leases.
    pub fn once(identity: &'a Arc<VerifiedIdentity>, job: &'a Arc<Job>, now: SystemTime) -> Self {
        Self { identity, job, learned: None, tenure: Tenure::Once, now }
    }

    fn question(self) -> Question<'a> {
        let Self { identity, job, learned, tenure, now } = self;
        Question { identity, job, learned, tenure, now }
    }
}

/// As an [`Inquiry`], about somebody whom nobody need have verified: what the rules say, and nothing to have from it.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub identity: &'a Identity,
    pub job: &'a Job,
    pub learned: Option<Duration>,
    pub tenure: Tenure,
    pub now: SystemTime,
}

impl<'a> Question<'a> {
    /// For credentials that are used at once, outside of leases.
    pub fn once(identity: &'a Identity, job: &'a Job, now: SystemTime) -> Self {
        Self { identity, job, learned: None, tenure: Tenure::Once, now }
    }
}

/// What the rules allow, to whoever it may be. It moves nobody: a [`Grant`] is one about somebody who was verified.
#[derive(Clone)]
pub struct Verdict {
    target: Arc<Target>,
    rule: Arc<Rule>,
    scopes: Scopes,
    plan: Plan,
    lease: Option<LeaseTerms>,
}

impl Verdict {
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// The rule that allows it.
    pub fn rule(&self) -> &Name {
        &self.rule.name
    }

    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Where it is about a lease.
    pub fn lease(&self) -> Option<&LeaseTerms> {
        self.lease.as_ref()
    }
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verdict({} under {})", self.target.name, self.rule.name)
    }
}

/// A rule's permission for one identity to have one credential. Only [`Policy::decide`] makes it, and only for somebody
/// who was verified: of a mere [`Identity`] comes a [`Verdict`], which no later stage takes.
#[derive(Clone)]
pub struct Grant {
    identity: Arc<VerifiedIdentity>,
    target: Arc<Target>,
    rule: Arc<Rule>,
    scopes: Scopes,
    token_type: TokenType,
    audience: Option<IdTokenAudience>,
    plan: Plan,
    attributes: Vec<(String, serde_json::Value)>,
    job: Arc<Job>,
    lease: Option<LeaseTerms>,
}

impl Grant {
    pub fn identity(&self) -> &Arc<VerifiedIdentity> {
        &self.identity
    }

    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// The rule that allowed this; the audit record and the log line quote it.
    pub fn rule(&self) -> &Name {
        &self.rule.name
    }

    pub fn rule_revision(&self) -> &[u8; 32] {
        &self.rule.revision
    }

    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    pub fn token_type(&self) -> TokenType {
        self.token_type
    }

    pub fn audience(&self) -> Option<&IdTokenAudience> {
        self.audience.as_ref()
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The rule's attributes, with their values for this identity and job.
    pub fn attributes(&self) -> &[(String, serde_json::Value)] {
        &self.attributes
    }

    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Where the credential is one of a lease.
    pub fn lease(&self) -> Option<&LeaseTerms> {
        self.lease.as_ref()
    }
}

#[cfg(test)]
impl Grant {
    /// All of them: the test of cache keys says of each what becomes of it there.
    pub fn field_names(&self) -> [&'static str; 10] {
        macro_rules! names {
            ($($field:ident),+) => {{
                // Without `..`, so that a new field has to be named.
                let Self { $($field: _),+ } = self;
                [$(stringify!($field)),+]
            }};
        }
        names!(identity, target, rule, scopes, token_type, audience, plan, attributes, job, lease)
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grant({} to {} under {})", self.target.name, self.identity.subject(), self.rule.name)
    }
}

/// Why there is no grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The details are for the record; the caller is told nothing but this.
    #[error("denied")]
    Denied(Denial),
    #[error(
        "Entra left the groups out of the subject token because there are too many: have the application emit app roles, \
         or only the groups assigned to it"
    )]
    GroupsOverage,
    /// Said only to those whom a rule allows the target.
    #[error("{0}")]
    Request(String),
    /// None of the scopes asked for is the target's (RFC 6749 section 5.2 `invalid_scope`).
    #[error("none of the scopes asked for is among the target's")]
    NoScope,
    #[error("the subject token ends too soon for a credential that lasts {}s: get a fresh one", FLOOR.as_secs())]
    SubjectTokenEndsSoon,
}

impl Refusal {
    pub fn reason(&self) -> Reason {
        match self {
            Self::Denied(_) => Reason::Denied,
            Self::GroupsOverage => Reason::GroupsOverage,
            Self::Request(_) | Self::NoScope => Reason::InvalidRequest,
            Self::SubjectTokenEndsSoon => Reason::SubjectTokenExpired,
        }
    }

    /// In one line, for those who may see more than the caller.
    pub fn detail(&self) -> String {
        match self {
            Self::Denied(denial) => denial.to_string(),
            Self::GroupsOverage | Self::Request(_) | Self::NoScope | Self::SubjectTokenEndsSoon => self.to_string(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    NoSuchTarget,
    NoRule,
    Rule(Name),
    /// The rule allows leases of this length since their subject token was shown, which was longer ago.
    LeaseOver(Name, Duration),
}

const SINCE_LAST_TOKEN: &str = " since the last subject token";

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchTarget => f.write_str("no such target"),
            Self::NoRule => f.write_str("no rule allows it"),
            Self::Rule(name) => write!(f, "rule {name} denies it"),
            Self::LeaseOver(name, most) => {
                write!(f, "rule {name} allows leases of {}s{SINCE_LAST_TOKEN}", most.as_secs())
            }
        }
    }
}

impl Policy {
    /// # Errors
    /// Every mistake, so that one look at the file mends them all.
    pub fn compile(rules: &[RuleDocument], targets: Vec<Target>) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut policy = Self {
            targets: targets.into_iter().map(|target| (target.name.clone(), (Arc::new(target), Vec::new()))).collect(),
            shadow: None,
        };
        let mut names = HashSet::new();
        for (position, document) in rules.iter().enumerate() {
            let at = format!("rules[{position}]");
            if !names.insert(&document.name) {
                let message = format!("another rule is named {} too", document.name);
                mistakes.push(Mistake { at: format!("{at}.name"), message });
            }
            let rule = Rule::compile(document, &at, &mut mistakes).map(Arc::new);
            for (index, target) in document.targets.iter().enumerate() {
                match (policy.targets.get_mut(target), &rule) {
                    (Some((_target, rules)), Some(rule)) => rules.push(rule.clone()),
                    (Some(_), None) => {}
                    (None, _) => {
                        let message = format!("there is no target {target}");
                        mistakes.push(Mistake { at: format!("{at}.targets[{index}]"), message });
                    }
                }
            }
        }
        if mistakes.is_empty() { Ok(policy) } else { Err(mistakes) }
    }

    /// Targets, for start-up checks.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.targets.values().map(|(target, _rules)| target)
    }

    /// The rules that allow the target, in the order of the file.
    pub fn admissions(&self, target: &Name) -> impl Iterator<Item = Admission<'_>> {
        self.rules_of(target, Effect::Allow)
    }

    /// The rules that deny the target: whom they are about has it under no other rule.
    pub fn denials(&self, target: &Name) -> impl Iterator<Item = Admission<'_>> {
        self.rules_of(target, Effect::Deny)
    }

    fn rules_of(&self, target: &Name, effect: Effect) -> impl Iterator<Item = Admission<'_>> {
        let rules = self.targets.get(target).map(|(_target, rules)| rules.as_slice()).unwrap_or_default();
        rules.iter().filter(move |rule| rule.effect == effect).map(|rule| rule.admission())
    }

    /// All that is asked for, or nothing.
    pub fn decide_all(&self, inquiry: Inquiry<'_>, asks: &[Ask]) -> Result<Vec<Arc<Grant>>, Refusal> {
        let tenure = self.settled(inquiry.question(), asks)?;
        let inquiry = Inquiry { tenure, ..inquiry };
        asks.iter().map(|ask| self.decide(inquiry, ask).map(Arc::new)).collect()
    }

    /// What [`decide_all`](Self::decide_all) would say to the identity, were it verified.
    pub fn judge_all(&self, question: Question<'_>, asks: &[Ask]) -> Result<Vec<Verdict>, Refusal> {
        let question = Question { tenure: self.settled(question, asks)?, ..question };
        asks.iter().map(|ask| self.judge(question, ask)).collect()
    }

    fn settled(&self, question: Question<'_>, asks: &[Ask]) -> Result<Tenure, Refusal> {
        match question.tenure {
            Tenure::Opening(wanted) => self.opening(question, wanted, asks),
            open @ (Tenure::Once | Tenure::Lease { .. }) => Ok(open),
        }
    }

    pub fn decide(&self, inquiry: Inquiry<'_>, ask: &Ask) -> Result<Grant, Refusal> {
        let Inquiry { identity, job, now, .. } = inquiry;
        let Verdict { target, rule, scopes, plan, lease } = self.judge(inquiry.question(), ask)?;
        let attributes = match &target.platform {
            Platform::Google(google) if google.subject_token == GoogleSubjectToken::Issuer => {
                rule.attributes(&Facts { subject: identity, job, target: &target, ask, now })
            }
            Platform::Google(_) | Platform::Azure(_) => Vec::new(),
        };
        Ok(Grant {
            identity: identity.clone(),
            target,
            rule,
            scopes,
            token_type: ask.token_type,
            audience: ask.audience.clone(),
            plan,
            attributes,
            job: job.clone(),
            lease,
        })
    }

    /// A deny rule that matches, or cannot be ruled out, refuses. Otherwise the first rule of the file that matches
    /// allows; under a lease, the first that allows leases.
    pub fn judge(&self, question: Question<'_>, ask: &Ask) -> Result<Verdict, Refusal> {
        let (target, rule) = self.allowed(question, ask)?;
        let scopes = scopes(target, ask)?;
        check_request(question, target, ask)?;
        let lease = lease_terms(question, target, &rule)?;
        let plan = plan(question, target, &rule, lease.as_ref(), ask)?;
        Ok(Verdict { target: target.clone(), rule, scopes, plan, lease })
    }

    fn allowed(&self, question: Question<'_>, ask: &Ask) -> Result<(&Arc<Target>, Arc<Rule>), Refusal> {
        self.rule_for(question, ask).map_err(|denial| match question.identity.groups() {
            // For every denial alike: whether a rule asks for groups stays untold.
            Groups::Overage => Refusal::GroupsOverage,
            Groups::Known(_) => Refusal::Denied(denial),
        })
    }

    fn rule_for(&self, question: Question<'_>, ask: &Ask) -> Result<(&Arc<Target>, Arc<Rule>), Denial> {
        let Question { identity, job, now, .. } = question;
        let (target, rules) = self.targets.get(ask.target.as_str()).ok_or(Denial::NoSuchTarget)?;
        let facts = Facts { subject: identity, job, target, ask, now };
        let mut denying = rules.iter().filter(|rule| rule.effect == Effect::Deny);
        if let Some(rule) = denying.find(|rule| rule.matches(&facts) != Match::No) {
            return Err(Denial::Rule(rule.name.clone()));
        }
        let mut allowing =
            rules.iter().filter(|rule| rule.effect == Effect::Allow && rule.matches(&facts) == Match::Yes);
        let first = allowing.next().ok_or(Denial::NoRule)?;
        let rule = match question.tenure {
            Tenure::Once => first,
            // Where no rule allows leases, the first says so.
            Tenure::Opening(_) | Tenure::Lease { .. } => {
                [first].into_iter().chain(allowing).find(|rule| rule.lease.is_some()).unwrap_or(first)
            }
        };
        Ok((target, rule.clone()))
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.targets.keys()).finish()
    }
}

fn scopes(target: &Target, ask: &Ask) -> Result<Scopes, Refusal> {
    if ask.token_type == TokenType::Jwt {
        // Google is told the scopes by whoever redeems it.
        return match (ask.excess, ask.scopes.is_empty()) {
            (ExcessScopes::Refuse, false) => Err(Refusal::Request("an assertion has no scopes: leave them out".into())),
            (ExcessScopes::Refuse | ExcessScopes::Drop, _) => Ok(Scopes::default()),
        };
    }
    if ask.scopes.is_empty() {
        return Ok(target.scopes.clone());
    }
    let known = |scope: &&Scope| target.scopes.contains(scope);
    let granted: Scopes = ask.scopes.iter().filter(known).cloned().collect();
    match ask.excess {
        ExcessScopes::Refuse => match ask.scopes.iter().find(|scope| !known(scope)) {
            Some(scope) => Err(Refusal::Request(format!("scope {scope} is not among the target's"))),
            None => Ok(granted),
        },
        ExcessScopes::Drop if granted.is_empty() => Err(Refusal::NoScope),
        ExcessScopes::Drop => Ok(granted),
    }
}

fn check_request(question: Question<'_>, target: &Target, ask: &Ask) -> Result<(), Refusal> {
    let refuse = |text: &str| Err(Refusal::Request(text.to_owned()));
    match (&target.platform, ask.token_type) {
        (Platform::Google(google), TokenType::IdToken) if google.service_account.is_none() => {
            refuse("the target has no service account, so there are no ID tokens of it")
        }
        (Platform::Azure(_), TokenType::IdToken) => refuse("an Azure target has no ID tokens"),
        (Platform::Google(google), TokenType::Jwt) if google.hand_out_assertion => match question.tenure {
            Tenure::Once => Ok(()),
            Tenure::Opening(_) | Tenure::Lease { .. } => refuse(
                "what an assertion is redeemed for at Google outlives a lease and its revocation: ask for single ones",
            ),
        },
        (Platform::Google(_) | Platform::Azure(_), TokenType::Jwt) => {
            refuse("the target does not hand out its assertion: ask for an access token")
        }
        (Platform::Azure(azure), TokenType::AccessToken)
            if matches!(azure.source, AzureSource::OnBehalfOf { .. }) && question.identity.kind() != Kind::User =>
        {
            refuse("the target acts on behalf of users, and the subject token is an application's")
        }
        _ => Ok(()),
    }
}

fn plan(
    question: Question<'_>,
    target: &Target,
    rule: &Rule,
    lease: Option<&LeaseTerms>,
    ask: &Ask,
) -> Result<Plan, Refusal> {
    caps(question, target, rule, lease, ask).plan(ask)
}

/// What a lifetime is made of.
struct Caps {
    wanted: Wanted,
    cloud: CloudLimit,
    bounds: Vec<(Bound, Duration)>,
    /// What is left of the lease, where there is one.
    of_lease: Option<Duration>,
    now: SystemTime,
}

fn caps(question: Question<'_>, target: &Target, rule: &Rule, lease: Option<&LeaseTerms>, ask: &Ask) -> Caps {
    let wanted = match (ask.lifetime, question.job.expected_duration, question.learned) {
        (Some(lifetime), _, _) => Wanted::Exactly(lifetime),
        (None, Some(duration), _) => Wanted::ForJob(duration),
        (None, None, Some(duration)) => Wanted::Learned(duration),
        (None, None, None) => Wanted::Default(target.default_lifetime),
    };
    let (cloud, tied) = match &target.platform {
        Platform::Azure(_) => (CloudLimit::Fixed, false),
        Platform::Google(_) if ask.token_type == TokenType::IdToken => (CloudLimit::Fixed, false),
        Platform::Google(_) if ask.token_type == TokenType::Jwt => (CloudLimit::UpTo(ASSERTION_LIFETIME), false),
        Platform::Google(google) => match (&google.service_account, google.subject_token) {
            (Some(_), _) => (CloudLimit::UpTo(GOOGLE_EXTENDED), false),
            (None, GoogleSubjectToken::Issuer) => (CloudLimit::UpTo(ASSERTION_LIFETIME), false),
            (None, GoogleSubjectToken::Entra) => (CloudLimit::UpTo(GOOGLE_USUAL), true),
        },
    };
    let until = |end: SystemTime| end.duration_since(question.now).unwrap_or_default();
    let under_lease = |terms: &LeaseTerms| lifetime::under_lease(terms.token_lifetime, until(terms.ends_at));
    let bounds = [
        rule.max_lifetime.map(|length| (Bound::Rule, length)),
        Some((Bound::Target, target.max_lifetime)),
        tied.then(|| (Bound::SubjectToken, until(question.identity.expires_at()))),
        lease.map(|terms| (Bound::Lease, under_lease(terms))),
    ];
    let bounds = bounds.into_iter().flatten().collect();
    Caps { wanted, cloud, bounds, of_lease: lease.map(|terms| until(terms.ends_at)), now: question.now }
}

impl Caps {
    fn plan(&self, ask: &Ask) -> Result<Plan, Refusal> {
        // The configuration refuses rules and targets below the floor, so only the token can be too short.
        let plan = Plan::new(self.wanted, self.cloud, &self.bounds);
        let plan = plan.map_err(|TooShort(_bound)| Refusal::SubjectTokenEndsSoon)?;
        let plan = match self.of_lease {
            Some(remaining) => plan.until_end_of_lease(remaining),
            None => plan,
        };
        Ok(match ask.beyond {
            Some(time) => plan.outlasting(time.duration_since(self.now).unwrap_or_default()),
            None => plan,
        })
    }
}

/// Life of the broker's own assertions. A federated token of Google lives no longer than the assertion it was
/// exchanged for (Google: workload identity federation; seen with short GitHub tokens).
pub const ASSERTION_LIFETIME: Duration = Duration::from_secs(600);

/// Google (IAM Credentials `generateAccessToken`): the usual limit of a service account's access token.
pub const GOOGLE_USUAL: Duration = Duration::from_secs(3600);

/// The limit where `constraints/iam.allowServiceAccountCredentialLifetimeExtension` lists the service account.
pub const GOOGLE_EXTENDED: Duration = Duration::from_secs(43_200);

#[cfg(test)]
mod tests;

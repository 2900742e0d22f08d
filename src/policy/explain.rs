//! The decision step by step, for those who may see it: each rule with the condition that failed, each cap, each remedy.

mod remedy;

pub(super) use remedy::is_near;

use std::sync::Arc;
use std::time::Duration;

use super::condition::Facts;
use super::lifetime::{Bound, CloudLimit, Given, Wanted, with_headroom};
use super::rule::{Effect, Match, Obstacle, Rule};
use super::shown::{length, list};
use super::tenure::{LeaseTerms, Tenure, lease_terms, limits};
use super::{Ask, Caps, Denial, FLOOR, Policy, Question, Refusal, Verdict, caps, check_request, scopes};
use crate::step::Step;
use crate::subject::Groups;
use crate::target::{AzureSource, GoogleSubjectToken, Name, Platform, Sharing, Target, TokenType};

/// What the rules say to a question, step by step.
#[derive(Debug)]
pub struct Explanation {
    /// In the order in which the decision takes them, target by target. One of them failed, or the answer is yes.
    pub steps: Vec<Step>,
    /// What [`Policy::judge_all`] says.
    pub result: Result<Vec<Verdict>, Refusal>,
}

impl Policy {
    /// The answer to a question with all that led to it. It takes its time: nothing that serves exchanges asks it.
    pub fn explain(&self, question: Question<'_>, asks: &[Ask]) -> Explanation {
        let settled = self.settled(question, asks);
        let steps = asks.iter().flat_map(|ask| match &settled {
            Ok(tenure) => self.steps(Question { tenure: *tenure, ..question }, ask),
            // Some target has no leases, or is denied; where it is not this one, this one waits for it.
            Err(_refusal) => self.steps(question, ask),
        });
        Explanation { steps: steps.collect(), result: self.judge_all(question, asks) }
    }

    fn steps(&self, question: Question<'_>, ask: &Ask) -> Vec<Step> {
        let name = format!("target:{}", ask.target);
        let decided = self.rule_for(question, ask);
        let groups = groups(question, decided.is_ok());
        let Some((target, rules)) = self.targets.get(ask.target.as_str()) else {
            let names = self.targets.keys().map(Name::as_str);
            let unknown =
                Step::failed(name, "the configuration has no such target", remedy::target(&ask.target, names));
            let mut steps = vec![unknown, groups];
            steps.extend(LATER.map(|later| Step::skipped(later, NOT_REACHED)));
            return steps;
        };
        let mut steps = vec![Step::passed(name, described(target)), groups];
        let facts = Facts { subject: question.identity, job: question.job, target, ask, now: question.now };
        steps.extend(rule_steps(rules, &facts, &decided));
        let rule = decided.ok().map(|(_target, rule)| rule);
        steps.extend(later_steps(question, target, rule, ask));
        steps
    }
}

/// What comes after the rules.
const LATER: [&str; 4] = ["scopes", "request", "lease", "lifetime"];

const NOT_REACHED: &str = "not reached";

fn groups(question: Question<'_>, allowed: bool) -> Step {
    match (question.identity.groups(), allowed) {
        (Groups::Known(groups), _) if groups.is_empty() => Step::passed("groups", "the token tells of no groups"),
        (Groups::Known(groups), _) => Step::passed("groups", format!("the token has {}", list(groups.iter()))),
        (Groups::Overage, true) => Step::passed(
            "groups",
            "Entra left them out of the token, being too many; no rule that counts asks for them",
        ),
        (Groups::Overage, false) => Step::failed(
            "groups",
            "Entra left them out of the token, being too many: the answer to every denial is GROUPS_OVERAGE",
            remedy::OVERAGE,
        ),
    }
}

/// Every rule of the target, in the order in which they decide: those that deny first.
fn rule_steps(
    rules: &[Arc<Rule>],
    facts: &Facts<'_>,
    decided: &Result<(&Arc<Target>, Arc<Rule>), Denial>,
) -> Vec<Step> {
    if rules.is_empty() {
        return vec![Step::failed("rules", "no rule names the target", remedy::no_rule(facts))];
    }
    let denying = rules.iter().filter(|rule| rule.effect == Effect::Deny).map(|rule| deny_step(rule, facts));
    let allowing = rules.iter().filter(|rule| rule.effect == Effect::Allow);
    let any_matches = allowing.clone().any(|rule| rule.matches(facts) == Match::Yes);
    let allowing = allowing.map(|rule| {
        let decides = decided.as_ref().is_ok_and(|(_target, deciding)| Arc::ptr_eq(deciding, rule));
        allow_step(
            rule,
            facts,
            if decides {
                Place::Decides
            } else if any_matches {
                Place::NotNeeded
            } else {
                Place::Wanted
            },
        )
    });
    let mut steps: Vec<Step> = denying.chain(allowing).collect();
    if !rules.iter().any(|rule| rule.effect == Effect::Allow) {
        steps.push(Step::failed("rules", "no rule allows the target to anybody", remedy::no_rule(facts)));
    }
    steps
}

/// What an allowing rule is to the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Decides,
    /// Another one matches.
    NotNeeded,
    /// None matches.
    Wanted,
}

fn deny_step(rule: &Rule, facts: &Facts<'_>) -> Step {
    let name = format!("rule:{}", rule.name);
    let obstacles = rule.obstacles(facts);
    match rule.matches(facts) {
        Match::No => Step::passed(name, format!("denies, but does not match: {}", first(&obstacles))),
        Match::Yes => {
            let matching = rule.matching(facts);
            Step::failed(name, format!("denies: {}", or_everybody(&matching)), remedy::denied(rule, facts))
        }
        Match::Unknown => Step::failed(
            name,
            format!("denies, because it cannot be ruled out: {}", first(&obstacles)),
            remedy::not_ruled_out(rule, obstacles.first()),
        ),
    }
}

fn allow_step(rule: &Rule, facts: &Facts<'_>, place: Place) -> Step {
    let name = format!("rule:{}", rule.name);
    let obstacles = rule.obstacles(facts);
    match (rule.matches(facts), place) {
        (Match::Yes, Place::Decides) => Step::passed(name, format!("allows: {}", rule.matching(facts))),
        (Match::Yes, Place::NotNeeded | Place::Wanted) => {
            Step::skipped(name, format!("would allow too: {}", rule.matching(facts)))
        }
        (Match::No | Match::Unknown, Place::Wanted | Place::Decides) => Step::failed(
            name,
            format!("does not match: {}", first(&obstacles)),
            obstacles.first().map(|obstacle| remedy::obstacle(rule, obstacle, facts)).unwrap_or_default(),
        ),
        (Match::No | Match::Unknown, Place::NotNeeded) => {
            Step::skipped(name, format!("does not match: {}", first(&obstacles)))
        }
    }
}

/// The one that failed first, and how many more there are.
fn first(obstacles: &[Obstacle]) -> String {
    match obstacles {
        [] => String::new(),
        [one] => one.to_string(),
        [one, more @ ..] => format!("{one} (and {} more)", more.len()),
    }
}

fn or_everybody(matching: &str) -> &str {
    if matching.is_empty() { "it is about everybody" } else { matching }
}

/// What is asked once a rule allows: each step is reached only where the one before it passed.
fn later_steps(question: Question<'_>, target: &Arc<Target>, rule: Option<Arc<Rule>>, ask: &Ask) -> Vec<Step> {
    let Some(rule) = rule else { return LATER.map(|later| Step::skipped(later, NOT_REACHED)).to_vec() };
    let mut steps = vec![scope_step(target, ask)];
    let reached = |steps: &[Step]| !steps.iter().any(Step::has_failed);
    steps.push(match reached(&steps) {
        true => request_step(question, target, ask),
        false => Step::skipped("request", NOT_REACHED),
    });
    if !reached(&steps) {
        steps.extend(["lease", "lifetime"].map(|later| Step::skipped(later, NOT_REACHED)));
        return steps;
    }
    let (lease, terms) = lease_step(question, target, &rule);
    let settled = !matches!(question.tenure, Tenure::Opening(_));
    steps.push(lease);
    steps.push(match reached(&steps) && settled {
        true => lifetime_step(&caps(question, target, &rule, terms.as_ref(), ask), target, &rule, ask),
        false => Step::skipped("lifetime", NOT_REACHED),
    });
    steps
}

fn scope_step(target: &Target, ask: &Ask) -> Step {
    match scopes(target, ask) {
        Ok(granted) if ask.token_type == TokenType::Jwt => {
            Step::passed("scopes", format!("an assertion has none{}", granted.joined()))
        }
        Ok(granted) if ask.scopes.is_empty() => {
            Step::passed("scopes", format!("all of the target's: {}", list(granted.iter())))
        }
        Ok(granted) => Step::passed("scopes", format!("granted: {}", list(granted.iter()))),
        Err(refusal) => Step::failed(
            "scopes",
            format!("{refusal}; asked for {}, the target has {}", list(ask.scopes.iter()), list(target.scopes.iter())),
            remedy::scopes(target, ask),
        ),
    }
}

fn request_step(question: Question<'_>, target: &Target, ask: &Ask) -> Step {
    match check_request(question, target, ask) {
        Ok(()) => Step::passed("request", format!("the target gives {}", token_kind(ask.token_type))),
        Err(refusal) => Step::failed("request", refusal.to_string(), remedy::request(question, target, ask)),
    }
}

fn token_kind(kind: TokenType) -> &'static str {
    match kind {
        TokenType::AccessToken => "access tokens",
        TokenType::IdToken => "ID tokens",
        TokenType::Jwt => "its assertion",
    }
}

fn lease_step(question: Question<'_>, target: &Target, rule: &Arc<Rule>) -> (Step, Option<LeaseTerms>) {
    let failed = |refusal: Refusal| {
        let detail = match &refusal {
            Refusal::Denied(denial) => denial.to_string(),
            Refusal::GroupsOverage | Refusal::Request(_) | Refusal::NoScope | Refusal::SubjectTokenEndsSoon => {
                refusal.to_string()
            }
        };
        (Step::failed("lease", detail, remedy::lease(target, rule)), None)
    };
    let most = match (question.tenure, limits(target, rule)) {
        (Tenure::Once, _) => return (Step::skipped("lease", "none is asked for"), None),
        (_, Err(refusal)) => return failed(refusal),
        (Tenure::Opening(_), Ok(limits)) => {
            let detail =
                format!("rule {} allows up to {}; another target refuses", rule.name, length(limits.max_duration));
            return (Step::passed("lease", detail), None);
        }
        (Tenure::Lease { .. }, Ok(limits)) => limits.max_duration,
    };
    match lease_terms(question, target, rule) {
        Ok(terms) => {
            let left = terms.and_then(|terms| terms.ends_at.duration_since(question.now).ok()).unwrap_or_default();
            let heartbeat = terms.map_or(Duration::ZERO, |terms| terms.heartbeat);
            let detail = format!(
                "ends in {}, rule {} allows up to {}; a heartbeat is due every {}",
                length(left),
                rule.name,
                length(most),
                length(heartbeat)
            );
            (Step::passed("lease", detail), terms)
        }
        Err(refusal) => failed(refusal),
    }
}

fn lifetime_step(caps: &Caps, target: &Target, rule: &Rule, ask: &Ask) -> Step {
    let mut shown: Vec<String> =
        caps.bounds.iter().map(|(bound, most)| format!("{} {}", cap(*bound, rule), length(*most))).collect();
    match caps.cloud {
        CloudLimit::UpTo(most) => shown.push(format!("cloud {}", length(most))),
        CloudLimit::Fixed => {
            shown.push("the cloud takes no wish and may give more, to managed identities some 24h".to_owned())
        }
    }
    let (wanted, shown) = (wanted(caps.wanted), shown.join(", "));
    match caps.plan(ask) {
        Ok(plan) => {
            let bound = plan.bound(plan.lifetime, Given::AsAsked);
            Step::passed(
                "lifetime",
                format!(
                    "{}, {}; {wanted}; caps: {shown}; a cached credential will do while it has {} left, {}",
                    length(plan.lifetime),
                    bound_by(bound, rule),
                    length(plan.least),
                    shared(target)
                ),
            )
        }
        Err(refusal) => Step::failed(
            "lifetime",
            format!("{refusal}; {wanted}; caps: {shown}; the least is {}", length(FLOOR)),
            remedy::LIFETIME,
        ),
    }
}

fn cap(bound: Bound, rule: &Rule) -> String {
    match bound {
        Bound::Rule => format!("rule {}", rule.name),
        Bound::Target => "target".to_owned(),
        Bound::Cloud => "cloud".to_owned(),
        Bound::SubjectToken => "subject token".to_owned(),
        Bound::Lease => "lease".to_owned(),
        Bound::Requested => "request".to_owned(),
        Bound::Learned => "earlier runs".to_owned(),
    }
}

fn bound_by(bound: Bound, rule: &Rule) -> String {
    match bound {
        Bound::Requested => "as long as was asked for".to_owned(),
        Bound::Learned => "as long as earlier runs took".to_owned(),
        Bound::Rule => format!("bound by rule {}", rule.name),
        Bound::Target => "bound by the target".to_owned(),
        Bound::Cloud => "bound by the cloud".to_owned(),
        Bound::SubjectToken => "bound by the subject token's end".to_owned(),
        Bound::Lease => "bound by the lease".to_owned(),
    }
}

fn wanted(wanted: Wanted) -> String {
    match wanted {
        Wanted::Exactly(lifetime) => format!("the request asks for {}", length(lifetime)),
        Wanted::ForJob(duration) => {
            format!("the job takes {}, with headroom {}", length(duration), length(with_headroom(duration)))
        }
        Wanted::Learned(duration) => {
            format!("earlier runs took {}, with headroom {}", length(duration), length(with_headroom(duration)))
        }
        Wanted::Default(lifetime) => format!("nobody says how long, so the target's default {}", length(lifetime)),
    }
}

fn shared(target: &Target) -> &'static str {
    match target.sharing {
        Sharing::Subject => "of the same identity only",
        Sharing::Target => "of anybody whom the same rule allows the target",
    }
}

fn described(target: &Target) -> String {
    match &target.platform {
        Platform::Google(google) => {
            let name = &google.provider;
            let through = format!("provider {} of pool {} in project {}", name.provider(), name.pool(), name.project());
            let shown = match google.subject_token {
                GoogleSubjectToken::Issuer => "the broker's assertion",
                GoogleSubjectToken::Entra => "the caller's Entra token",
            };
            match &google.service_account {
                Some(account) => format!("Google, as {account}, with {shown} through {through}"),
                None => format!("Google, as the pool's own principal, with {shown} through {through}"),
            }
        }
        Platform::Azure(azure) => {
            let shown = match &azure.source {
                AzureSource::Issuer { subject, .. } => format!("the broker's assertion, subject {subject}"),
                AzureSource::TokenFile(path) => format!("the token in {}", path.display()),
                AzureSource::ManagedIdentity(_) => "the machine's managed identity".to_owned(),
                AzureSource::OnBehalfOf { .. } => "the user's own token, on behalf of the user".to_owned(),
            };
            format!("Azure, as client {} of tenant {}, with {shown}", azure.client_id, azure.tenant)
        }
    }
}

#[cfg(test)]
mod tests;

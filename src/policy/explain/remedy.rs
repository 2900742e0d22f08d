//! What would make a step pass: the change to the rules, to the request or to the token.

use crate::policy::condition::{Facts, How, Unmet};
use crate::policy::rule::{Field, Missing, Obstacle, Rule};
use crate::policy::shown::list;
use crate::policy::{Ask, Question};
use crate::subject::Kind;
use crate::target::{AzureSource, Platform, Target, TokenType};

pub(super) const OVERAGE: &str = "\
In Entra, let the broker's application emit only the groups that are assigned to it (groupMembershipClaims:
ApplicationGroup), or let the rules ask for app roles (subject.roles) instead of groups. Then get a new token.";

pub(super) const LIFETIME: &str = "\
Get a fresh subject token: the target ties the credential's life to it. A Google target with a service account, or with
subject_token: issuer, does not.";

/// `name` is nobody's, `known` are there.
pub(super) fn target<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    let near = known.iter().find(|known| is_near(name, known));
    let near = near.map(|near| format!("Is {near} meant? Names count by letter and case.\n")).unwrap_or_default();
    format!("{near}Ask for one of {}, or add it to `targets` of the configuration.", list(known.iter()))
}

/// Equal but for case, or for one letter that is missing, too many or another.
pub(in crate::policy) fn is_near(one: &str, other: &str) -> bool {
    let (one, other): (Vec<char>, Vec<char>) =
        (one.to_lowercase().chars().collect(), other.to_lowercase().chars().collect());
    let same = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
    let rest = |text: &[char], from: usize| text.iter().skip(from).copied().collect::<String>();
    one == other
        || rest(&one, same + 1) == rest(&other, same + 1)
        || rest(&one, same + 1) == rest(&other, same)
        || rest(&one, same) == rest(&other, same + 1)
}

/// A rule for just this caller.
pub(super) fn no_rule(facts: &Facts<'_>) -> String {
    format!(
        "If the caller may have it, let a rule say so, for example:\n\
         rules:\n  - name: {target}-for-one\n    targets: [{target}]\n    subject: {{ tenants: [{}], objects: [{}] }}",
        facts.subject.tenant(),
        facts.subject.object(),
        target = facts.target.name,
    )
}

pub(super) fn denied(rule: &Rule, facts: &Facts<'_>) -> String {
    format!(
        "While rule {} matches, nothing else allows. If the caller may have the target, except it in the rule:\n\
         - name: {0}\n  when: subject.object != '{1}'   # && what is there already",
        rule.name,
        facts.subject.object(),
    )
}

/// A rule that denies because nobody can tell whether it matches.
pub(super) fn not_ruled_out(rule: &Rule, obstacle: Option<&Obstacle>) -> String {
    match obstacle {
        Some(Obstacle::When(unmet)) => {
            format!("An expression that fails denies in a deny rule. In rule {}: {}", rule.name, guard(unmet))
        }
        Some(Obstacle::GroupsUntold) => OVERAGE.to_owned(),
        Some(Obstacle::Subject(_)) | None => format!("Change rule {}.", rule.name),
    }
}

/// What would let an allowing rule match.
pub(super) fn obstacle(rule: &Rule, obstacle: &Obstacle, facts: &Facts<'_>) -> String {
    match obstacle {
        Obstacle::Subject(missing) => subject(rule, missing, facts),
        Obstacle::GroupsUntold => OVERAGE.to_owned(),
        Obstacle::When(unmet) => match (&unmet.how, request_remedy(unmet)) {
            (How::False | How::NoAlternative, Some(request)) => {
                format!("{request}\nOr change `when` of rule {}.", rule.name)
            }
            (How::False | How::NoAlternative, None) => format!("Change `when` of rule {}.", rule.name),
            (How::Fails(_), Some(request)) => format!("{request}\nOr in rule {}: {}", rule.name, guard(unmet)),
            (How::Fails(_), None) => format!("In rule {}: {}", rule.name, guard(unmet)),
            (How::NoTruth, _) => {
                format!("In rule {}, compare it with something: an expression is true or false.", rule.name)
            }
        },
    }
}

fn subject(rule: &Rule, missing: &Missing, facts: &Facts<'_>) -> String {
    let Missing { field, wants, has } = missing;
    let who = format!("{} {}", kind(facts.subject.kind()), facts.subject.object());
    let wanted = list(wants.iter());
    let at_entra = match field {
        Field::Roles => format!(
            "In Entra, assign an app role of {wanted} of the broker's application to {who} (Enterprise applications, \
             Users and groups), and get a new token."
        ),
        Field::Groups => format!(
            "In Entra, make {who} a member of one of {wanted}, and get a new token. The broker's application must emit \
             groups (groupMembershipClaims)."
        ),
        Field::Scopes if facts.subject.kind() == Kind::User => {
            format!("Request the token with one of the scopes {wanted} of the broker's application.")
        }
        Field::Scopes => {
            "Only users' tokens have scopes: ask for app roles (subject.roles) of applications.".to_owned()
        }
        Field::AuthContexts if facts.subject.kind() == Kind::User => format!(
            "Request the token with the claims {{\"access_token\":{{\"acrs\":{{\"essential\":true,\"value\":\"{}\"}}}}}}, \
             so that Conditional Access asks the user for it.",
            wants.first().map_or("c1", String::as_str)
        ),
        Field::AuthContexts => "Only users' tokens have authentication contexts.".to_owned(),
        Field::Tenants => "Ask with a token of one of these tenants.".to_owned(),
        Field::Kinds => format!("Ask with a token of one of the kinds {wanted}."),
        Field::Clients => format!("Request the token with one of the applications {wanted}."),
        Field::Objects => format!("Ask as one of {wanted}."),
    };
    // All of what the rule has: a list that was cut would shut others out.
    let whole = wants.len() < 8;
    match has.first() {
        Some(own) if whole && *field != Field::Groups => {
            let widened = list(wants.iter().chain([own]).collect::<Vec<_>>().into_iter());
            format!(
                "{at_entra}\nOr, if the caller may have the target, widen the rule:\n\
                 - name: {}\n  subject: {{ {}: {widened} }}",
                rule.name,
                field.as_str()
            )
        }
        Some(_) => format!(
            "{at_entra}\nOr, if the caller may have the target, add what the token has to subject.{} of rule {}.",
            field.as_str(),
            rule.name
        ),
        None => at_entra,
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::User => "user",
        Kind::ServicePrincipal => "service principal",
        Kind::ManagedIdentity => "managed identity",
    }
}

/// How the caller could ask so that the condition holds; `None` where it reads nothing that a caller says.
fn request_remedy(unmet: &Unmet) -> Option<String> {
    let mut said: Vec<&str> = Vec::new();
    for (path, _value) in &unmet.reads {
        let known = ARGUMENTS.iter().find(|(variable, _arguments)| path.starts_with(variable));
        said.extend(known.map(|(_variable, argument)| *argument).filter(|argument| !said.contains(argument)));
    }
    (!said.is_empty()).then(|| format!("Ask with another value: {} of `carnet exchange`.", said.join(", ")))
}

const ARGUMENTS: [(&str, &str); 8] = [
    ("job.id", "--job-id"),
    ("job.name", "--job-name"),
    ("job.expected_duration", "--duration"),
    ("job.labels", "--label KEY=VALUE"),
    ("job.datasets", "--dataset"),
    ("request.lifetime", "--lifetime"),
    ("request.scopes", "--scope"),
    ("target", "--target"),
];

/// An expression that says itself what holds where a value is not there.
fn guard(unmet: &Unmet) -> String {
    let absent = unmet.reads.iter().find(|(path, value)| value.is_none() && path.contains('.'));
    match absent {
        Some((path, _none)) => {
            let path = path
                .strip_suffix("\"]")
                .and_then(|path| path.split_once("[\""))
                .map_or_else(|| format!("has({path})"), |(map, key)| format!("'{key}' in {map}"));
            format!("say what holds without it, as in `{path} && ({})`.", unmet.part)
        }
        None => format!("mend `{}`.", unmet.part),
    }
}

pub(super) fn scopes(target: &Target, ask: &Ask) -> String {
    if ask.token_type == TokenType::Jwt {
        return "Leave the scopes out.".to_owned();
    }
    format!(
        "Ask for none, which gives all of the target's, or for some of {}; or add them to `scopes` of target {}.",
        list(target.scopes.iter()),
        target.name
    )
}

pub(super) fn request(question: Question<'_>, target: &Target, ask: &Ask) -> String {
    match (&target.platform, ask.token_type) {
        (Platform::Google(_), TokenType::IdToken) => {
            format!("Ask for an access token, or give target {} a `service_account`.", target.name)
        }
        (Platform::Google(google), TokenType::Jwt) if google.hand_out_assertion => {
            "Ask for it outside of a lease (`carnet exchange`), or for an access token under it.".to_owned()
        }
        (Platform::Google(_), TokenType::Jwt) => {
            format!("Ask for an access token, or set `hand_out_assertion: true` at target {}.", target.name)
        }
        (Platform::Azure(_), TokenType::IdToken | TokenType::Jwt) => "Ask for an access token.".to_owned(),
        (Platform::Azure(azure), TokenType::AccessToken) if matches!(azure.source, AzureSource::OnBehalfOf { .. }) => {
            let who = kind(question.identity.kind());
            format!("Ask with a user's token: there is nobody behind a {who}. Or use a target with `source: issuer`.")
        }
        (Platform::Google(_) | Platform::Azure(_), TokenType::AccessToken) => String::new(),
    }
}

pub(super) fn lease(target: &Target, rule: &Rule) -> String {
    if target.redeems_subject_token() {
        return "Ask for single credentials (`carnet exchange`), or use a target that shows the cloud the broker's own \
                assertion."
            .to_owned();
    }
    match &rule.lease {
        Some(_) => {
            "Show a fresh subject token when the lease is renewed, or open another; or raise `lease.max_duration` \
                    of the rule."
                .to_owned()
        }
        None => format!(
            "Ask for single credentials (`carnet exchange`), or let the rule allow leases:\n\
             - name: {}\n  lease: {{ max_duration: 72h, heartbeat: 5m }}",
            rule.name
        ),
    }
}

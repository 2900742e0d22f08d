//! Google's side of the trust: which assertions a provider takes, whom they become, and the commands that say so.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::Trust;
use super::shell::Command;
use crate::policy::Admission;
use crate::subject::Kind;
use crate::target::{GoogleSubjectToken, GoogleTarget, Platform, Sharing, Target};

/// One Google target with everything that its provider must know, other targets of the same provider included.
pub(super) struct Google<'a> {
    pub trust: &'a Trust<'a>,
    pub google: &'a GoogleTarget,
    /// All targets that are reached through the provider, with their rules.
    served: Vec<(&'a Target, Vec<Admission<'a>>)>,
}

impl<'a> Google<'a> {
    /// `None` for a target of another cloud.
    pub fn of(trust: &'a Trust<'a>) -> Option<Self> {
        let Platform::Google(google) = &trust.target.platform else { return None };
        let same = |target: &&'a Target| {
            matches!(&target.platform, Platform::Google(other)
                if other.provider == google.provider && other.subject_token == google.subject_token)
        };
        let mut served: Vec<_> = trust.policy.targets().map(AsRef::as_ref).filter(same).collect();
        served.sort_by_key(|target| &target.name);
        let served = served.into_iter().map(|target| (target, trust.policy.admissions(&target.name).collect()));
        Some(Self { trust, google, served: served.collect() })
    }

    /// Names of the targets that are reached through the provider.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.served.iter().map(|(target, _rules)| target.name.as_str())
    }

    /// `iss` of what is presented.
    pub fn issuer(&self) -> String {
        match self.google.subject_token {
            GoogleSubjectToken::Issuer => self.trust.issuer.unwrap_or_default().to_owned(),
            GoogleSubjectToken::Entra => self.trust.entra_issuer(self.tenant()),
        }
    }

    /// What `aud` may be.
    pub fn audiences(&self) -> Vec<&str> {
        match self.google.subject_token {
            GoogleSubjectToken::Issuer => vec![self.google.provider.as_str()],
            // Google takes ten.
            GoogleSubjectToken::Entra => self.trust.entra.audiences.iter().map(String::as_str).take(10).collect(),
        }
    }

    /// The one tenant whose tokens a provider of Entra's takes: its issuer names it.
    pub fn tenant(&self) -> Uuid {
        let rules = self.served.iter().flat_map(|(_target, rules)| rules);
        let mut named = rules.filter_map(|rule| rule.tenants?.first()).filter(|one| self.trust.accepts(**one));
        named.next().or(self.trust.entra.tenants.first()).copied().unwrap_or_default()
    }

    /// `google.subject`, and an attribute for whatever bindings are made by.
    pub fn mapping(&self) -> Vec<(String, String)> {
        let pair = |key: &str, expression: &str| (key.to_owned(), expression.to_owned());
        let mut mapping = vec![pair("google.subject", "assertion.sub")];
        match self.google.subject_token {
            GoogleSubjectToken::Issuer => {
                mapping.push(pair("attribute.rule", "assertion.rule"));
                // A credential that several share names no tenant.
                let named = self.served.iter().all(|(target, _rules)| target.sharing == Sharing::Subject);
                let tid = if named { "assertion.tid".to_owned() } else { if_there("tid", NOTHING) };
                mapping.push(("attribute.tid".to_owned(), tid));
                let rules = self.served.iter().flat_map(|(_target, rules)| rules);
                let attributes: BTreeSet<&str> = rules.flat_map(|rule| rule.attributes.iter().copied()).collect();
                let attribute = |name: &str| (format!("attribute.{name}"), if_there(name, NOTHING));
                mapping.extend(attributes.into_iter().map(attribute));
            }
            GoogleSubjectToken::Entra => {
                mapping.push(pair("attribute.tid", "assertion.tid"));
                mapping.push(pair("attribute.oid", "assertion.oid"));
                mapping.push(pair("attribute.azp", "assertion.azp"));
                let mut rules = self.served.iter().flat_map(|(_target, rules)| rules);
                if rules.any(|rule| rule.groups.is_some()) {
                    mapping.push(("google.groups".to_owned(), if_there("groups", "[]")));
                }
            }
        }
        mapping
    }

    /// What the provider demands of every token: never true of one that no rule here would have led to.
    pub fn condition(&self) -> String {
        match self.google.subject_token {
            GoogleSubjectToken::Issuer => self.condition_on_assertions(),
            GoogleSubjectToken::Entra => self.condition_on_entra_tokens(),
        }
    }

    fn condition_on_assertions(&self) -> String {
        let (mut tenants, mut rules) = (BTreeSet::new(), BTreeSet::new());
        let mut alternatives = Vec::new();
        for (target, admissions) in &self.served {
            let names = admissions.iter().map(|rule| rule.rule.as_str());
            match target.sharing {
                Sharing::Subject => {
                    rules.extend(names);
                    let accepted = admissions.iter().flat_map(|rule| self.tenants(rule));
                    tenants.extend(accepted.map(|tenant| tenant.to_string()));
                }
                Sharing::Target => alternatives.push(format!(
                    "{} && {}",
                    one_of("assertion.sub", [format!("carnet:{}", target.name)]),
                    one_of("assertion.rule", names)
                )),
            }
        }
        if !rules.is_empty() {
            let subjects = [one_of("assertion.tid", tenants), one_of("assertion.rule", rules)].join(" && ");
            let guard = if alternatives.is_empty() { "" } else { "has(assertion.tid) && " };
            alternatives.insert(0, format!("{guard}{subjects}"));
        }
        any(alternatives)
    }

    fn condition_on_entra_tokens(&self) -> String {
        let tenant = one_of("assertion.tid", [self.tenant().to_string()]);
        let rules = self.served.iter().flat_map(|(_target, rules)| rules);
        let mut alternatives: Vec<String> = rules.map(demands).collect();
        alternatives.sort();
        alternatives.dedup();
        // No rule, nobody; a rule that asks nothing that a token tells admits the whole tenant.
        match alternatives.is_empty() {
            true => "false".to_owned(),
            false if alternatives.iter().any(String::is_empty) => tenant,
            false if alternatives.len() == 1 => format!("{tenant} && {}", any(alternatives)),
            false => format!("{tenant} && ({})", any(alternatives)),
        }
    }

    /// The tenants of a rule that the broker accepts.
    fn tenants(&self, rule: &Admission<'_>) -> Vec<Uuid> {
        match rule.tenants {
            Some(tenants) => tenants.iter().copied().filter(|tenant| self.trust.accepts(*tenant)).collect(),
            None => self.trust.entra.tenants.clone(),
        }
    }

    /// Whom a binding of this rule names, as IAM policies write it.
    pub fn members(&self, rule: &Admission<'_>) -> Vec<String> {
        let provider = &self.google.provider;
        let set = |attribute: &str, ids: &[Uuid]| -> Vec<String> {
            ids.iter().map(|id| provider.principal_set(attribute, &id.to_string())).collect()
        };
        match (self.google.subject_token, rule.objects, rule.clients, rule.groups) {
            (GoogleSubjectToken::Issuer, ..) => vec![provider.principal_set("rule", rule.rule.as_str())],
            (GoogleSubjectToken::Entra, Some(objects), ..) => set("oid", objects),
            (GoogleSubjectToken::Entra, None, Some(clients), _) => set("azp", clients),
            (GoogleSubjectToken::Entra, None, None, Some(groups)) => {
                groups.iter().map(|group| provider.group(&group.to_string())).collect()
            }
            (GoogleSubjectToken::Entra, None, None, None) => set("tid", &[self.tenant()]),
        }
    }

    /// All members of the trust's own target, or of one rule where `rule` names it.
    pub fn members_of(&self, rule: Option<&str>) -> Vec<String> {
        let rules = self.trust.policy.admissions(&self.trust.target.name);
        let wanted = rules.filter(|one| rule.is_none_or(|rule| one.rule.as_str() == rule));
        let members: BTreeSet<String> = wanted.flat_map(|rule| self.members(&rule)).collect();
        members.into_iter().collect()
    }

    /// `gcloud iam workload-identity-pools providers ACTION PROVIDER`, by its full name: gcloud's `--project` takes no
    /// numbers here.
    pub fn provider(&self, action: &str) -> Command {
        let name = self.google.provider.as_str().trim_start_matches("//iam.googleapis.com/");
        Command::new(&format!("gcloud iam workload-identity-pools providers {action}")).word(name)
    }

    pub fn pool(&self, action: &str) -> Command {
        let name = self.google.provider.as_str().trim_start_matches("//iam.googleapis.com/");
        let name = name.split("/providers/").next().unwrap_or(name);
        Command::new(&format!("gcloud iam workload-identity-pools {action}")).word(name)
    }

    pub fn mapping_flag(&self, command: Command) -> Command {
        let mapping: Vec<String> =
            self.mapping().into_iter().map(|(key, expression)| format!("{key}={expression}")).collect();
        command.flag("attribute-mapping", &mapping.join(","))
    }

    /// `gcloud iam service-accounts ACTION ACCOUNT`; `None` for a target without one.
    pub fn service_account(&self, action: &str) -> Option<Command> {
        let account = self.google.service_account.as_ref()?;
        let command = Command::new(&format!("gcloud iam service-accounts {action}")).word(account.as_str());
        Some(match account.project() {
            Some(project) => command.flag("project", &project),
            None => command,
        })
    }

    /// The bindings that let the rule's callers, or all of the target's, act as its service account.
    pub fn impersonation(&self, rule: Option<&str>) -> Vec<Command> {
        let members = self.members_of(rule).into_iter();
        let binding = |member: String| {
            let command = self.service_account("add-iam-policy-binding")?;
            let command = command.flag("role", "roles/iam.workloadIdentityUser").flag("member", &member);
            // Without it gcloud asks where the policy has conditions already.
            Some(command.flag("condition", "None"))
        };
        members.filter_map(binding).collect()
    }

    /// The APIs that credentials come from, in the project of the pool and in that of the account.
    pub fn apis(&self) -> Vec<Command> {
        let enable = |apis: &str, project: &str| {
            Command::new(&format!("gcloud services enable {apis}")).flag("project", project)
        };
        let of_pool = enable(
            "iam.googleapis.com sts.googleapis.com iamcredentials.googleapis.com",
            self.google.provider.project(),
        );
        let account = self.google.service_account.as_ref().and_then(|account| account.project());
        let of_account = account.map(|project| enable("iamcredentials.googleapis.com", &project));
        std::iter::once(of_pool).chain(of_account).collect()
    }
}

/// An empty text of CEL.
const NOTHING: &str = "\"\"";

/// A claim that not every token has.
fn if_there(claim: &str, otherwise: &str) -> String {
    format!("has(assertion.{claim}) ? assertion.{claim} : {otherwise}")
}

/// What a rule asks of an Entra token, in CEL; empty where it asks nothing that a token tells.
fn demands(rule: &Admission<'_>) -> String {
    let mut all = Vec::new();
    let ids = |ids: &[Uuid]| ids.iter().map(Uuid::to_string).collect::<Vec<_>>();
    all.extend(rule.clients.map(|clients| one_of("assertion.azp", ids(clients))));
    all.extend(rule.objects.map(|objects| one_of("assertion.oid", ids(objects))));
    let holds = |claim: &str, values: Vec<String>| {
        let values = values.iter().map(|value| format!("{} in assertion.{claim}", text(value))).collect();
        format!("has(assertion.{claim}) && ({})", any(values))
    };
    all.extend(rule.roles.map(|roles| holds("roles", roles.to_vec())));
    all.extend(rule.groups.map(|groups| holds("groups", ids(groups))));
    if let Some(kinds) = rule.kinds {
        let users = kinds.contains(&Kind::User);
        let machines = kinds.iter().any(|kind| *kind != Kind::User);
        match (users, machines) {
            (true, false) => all.push("has(assertion.scp)".to_owned()),
            (false, true) => all.push("!has(assertion.scp)".to_owned()),
            (true, true) | (false, false) => {}
        }
    }
    all.join(" && ")
}

fn any(mut alternatives: Vec<String>) -> String {
    match alternatives.len() {
        0 => "false".to_owned(),
        1 => alternatives.remove(0),
        _ => {
            let compound = |one: &String| one.contains(" && ");
            let bracketed = |one: String| if compound(&one) { format!("({one})") } else { one };
            alternatives.into_iter().map(bracketed).collect::<Vec<_>>().join(" || ")
        }
    }
}

fn one_of<V: AsRef<str>>(name: &str, values: impl IntoIterator<Item = V>) -> String {
    let values: Vec<String> = values.into_iter().map(|value| text(value.as_ref())).collect();
    match values.as_slice() {
        [one] => format!("{name} == {one}"),
        _ => format!("{name} in [{}]", values.join(", ")),
    }
}

/// A text of CEL, whose escapes are those of JSON.
fn text(value: &str) -> String {
    serde_json::Value::from(value).to_string()
}

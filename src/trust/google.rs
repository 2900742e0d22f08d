//! Google's side of the trust: which assertions a provider takes, whom they become, and the commands that say so.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::Trust;
use super::shell::Command;
use crate::policy::Admission;
use crate::secret::sha256;
use crate::subject::Kind;
use crate::target::{GoogleSubjectToken, GoogleTarget, Name, Platform, Sharing, Target};

/// One Google target with everything that its provider must know, other targets of the same provider included.
pub(super) struct Google<'a> {
    pub trust: &'a Trust<'a>,
    pub google: &'a GoogleTarget,
    /// All targets that are reached through the provider.
    served: Vec<Served<'a>>,
}

struct Served<'a> {
    target: &'a Target,
    allowed: Vec<Admission<'a>>,
    denied: Vec<Admission<'a>>,
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
        let served = served.into_iter().map(|target| Served {
            target,
            allowed: trust.policy.admissions(&target.name).collect(),
            denied: trust.policy.denials(&target.name).collect(),
        });
        Some(Self { trust, google, served: served.collect() })
    }

    fn allowed(&self) -> impl Iterator<Item = &Admission<'a>> {
        self.served.iter().flat_map(|served| &served.allowed)
    }

    /// Names of the targets that are reached through the provider.
    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.served.iter().map(|served| served.target.name.as_str())
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
        let mut named = self.allowed().filter_map(|rule| rule.tenants?.first()).filter(|one| self.trust.accepts(**one));
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
                let named = self.served.iter().all(|served| served.target.sharing == Sharing::Subject);
                let tid = if named { "assertion.tid".to_owned() } else { if_there("tid", NOTHING) };
                mapping.push(("attribute.tid".to_owned(), tid));
                let attributes: BTreeSet<&str> =
                    self.allowed().flat_map(|rule| rule.attributes.iter().copied()).collect();
                let attribute = |name: &str| (format!("attribute.{name}"), if_there(name, NOTHING));
                mapping.extend(attributes.into_iter().map(attribute));
            }
            GoogleSubjectToken::Entra => {
                mapping.push(pair("attribute.tid", "assertion.tid"));
                for served in &self.served {
                    // A rule of one target is a way to no other, so each has an attribute of its own.
                    for rule in self.in_tenant(&served.allowed) {
                        let key = format!("attribute.{}", rule_attribute(&served.target.name, rule.rule));
                        let admitted = self.admitted(&served.denied, std::slice::from_ref(rule));
                        mapping.push((key, format!("({admitted}) ? \"{ADMITTED}\" : \"n\"")));
                    }
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
        for Served { target, allowed, .. } in &self.served {
            let names = allowed.iter().map(|rule| rule.rule.as_str());
            match target.sharing {
                Sharing::Subject => {
                    rules.extend(names);
                    let accepted = allowed.iter().flat_map(|rule| self.tenants(rule));
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
        let admitted = |served: &Served<'_>| {
            let rules: Vec<Admission<'_>> = self.in_tenant(&served.allowed).cloned().collect();
            self.admitted(&served.denied, &rules)
        };
        let mut alternatives: Vec<String> = self.served.iter().map(admitted).filter(|one| one != NOBODY).collect();
        alternatives.sort();
        alternatives.dedup();
        let tenant = one_of("assertion.tid", [self.tenant().to_string()]);
        match alternatives.is_empty() {
            true => NOBODY.to_owned(),
            false if alternatives.iter().any(|one| one == EVERYBODY) => all(vec![tenant, ACCESS_TOKEN.to_owned()]),
            false => all(vec![tenant, ACCESS_TOKEN.to_owned(), any(alternatives)]),
        }
    }

    /// Rules that can be about somebody of the provider's tenant.
    fn in_tenant<'r>(&self, rules: &'r [Admission<'a>]) -> impl Iterator<Item = &'r Admission<'a>> {
        let tenant = self.tenant();
        rules.iter().filter(move |rule| rule.tenants.is_none_or(|tenants| tenants.contains(&tenant)))
    }

    /// Whom one of `rules` admits and none of `denied` denies, as far as the tokens tell, in CEL. No claim that may be
    /// absent is read unasked: a mapping that fails lets nobody pass.
    fn admitted(&self, denied: &[Admission<'a>], rules: &[Admission<'_>]) -> String {
        let mut alternatives: Vec<String> = rules.iter().map(|rule| all(demands(rule, Overage::IsNoMember))).collect();
        alternatives.sort();
        alternatives.dedup();
        let admitted =
            if alternatives.iter().any(|one| one == EVERYBODY) { Vec::new() } else { vec![any(alternatives)] };
        // A deny rule with an expression denies some of those whom it is about, and Google cannot tell which.
        let denied = self.in_tenant(denied).filter(|rule| !rule.has_condition);
        let denied = denied.map(|rule| all(demands(rule, Overage::MayBeMember)));
        let denied: Vec<String> = denied.map(|one| format!("!({one})")).collect();
        if denied.iter().any(|one| one == "!(true)") || admitted.iter().any(|one| one == NOBODY) {
            return NOBODY.to_owned();
        }
        all(admitted.into_iter().chain(denied).collect())
    }

    /// What the broker enforces of the target's rules and Google, shown the same tokens without the broker, does not.
    pub fn warnings(&self) -> Vec<String> {
        if self.google.subject_token == GoogleSubjectToken::Issuer {
            return Vec::new();
        }
        let name = &self.trust.target.name;
        let conditional = |rules: &[Admission<'a>]| -> Vec<String> {
            self.in_tenant(rules).filter(|rule| rule.has_condition).map(|rule| rule.rule.to_string()).collect()
        };
        let own = self.served.iter().filter(|served| served.target.name == *name);
        let mut warnings = Vec::new();
        for Served { allowed, denied, .. } in own {
            for rule in conditional(allowed) {
                warnings.push(format!(
                    "Google does not evaluate `when` of rule {rule}: whoever its `subject` admits can show their \
                     Entra token to Google without the broker and gets what target {name} gives. Use `subject_token: \
                     issuer` where that must not be."
                ));
            }
            for rule in conditional(denied) {
                warnings.push(format!(
                    "Google does not enforce deny rule {rule}, which has a `when`: whom it denies can show their \
                     Entra token to Google without the broker and gets what target {name} gives. Use `subject_token: \
                     issuer`, or deny by `subject` alone."
                ));
            }
        }
        warnings
    }

    /// The tenants of a rule that the broker accepts.
    fn tenants(&self, rule: &Admission<'_>) -> Vec<Uuid> {
        match rule.tenants {
            Some(tenants) => tenants.iter().copied().filter(|tenant| self.trust.accepts(*tenant)).collect(),
            None => self.trust.entra.tenants.clone(),
        }
    }

    /// Whom a binding of this rule of the trust's own target names, as IAM policies write it.
    fn member(&self, rule: &Admission<'_>) -> String {
        let provider = &self.google.provider;
        match self.google.subject_token {
            GoogleSubjectToken::Issuer => provider.principal_set("rule", rule.rule.as_str()),
            GoogleSubjectToken::Entra => {
                provider.principal_set(&rule_attribute(&self.trust.target.name, rule.rule), ADMITTED)
            }
        }
    }

    /// All members of the trust's own target, or of one rule where `rule` names it.
    pub fn members_of(&self, rule: Option<&str>) -> Vec<String> {
        let rules: Vec<Admission<'_>> = self.trust.policy.admissions(&self.trust.target.name).collect();
        let wanted = |one: &&Admission<'_>| rule.is_none_or(|rule| one.rule.as_str() == rule);
        let members: BTreeSet<String> = match self.google.subject_token {
            GoogleSubjectToken::Issuer => rules.iter().filter(wanted).map(|rule| self.member(rule)).collect(),
            GoogleSubjectToken::Entra => {
                let own = self.served.iter().filter(|served| served.target.name == self.trust.target.name);
                let rules = own.flat_map(|served| self.in_tenant(&served.allowed));
                rules.filter(wanted).map(|rule| self.member(rule)).collect()
            }
        };
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
        let contains = |separator: &str| mapping.iter().any(|pair| pair.contains(separator));
        // gcloud splits at commas, or at what stands between carets (gcloud topic escaping).
        let mapping = match [";", "~", "@", "#", "%"].into_iter().find(|separator| !contains(separator)) {
            Some(separator) if contains(",") => format!("^{separator}^{}", mapping.join(separator)),
            Some(_) => mapping.join(","),
            None => format!("^;;~~;;^{}", mapping.join(";;~~;;")),
        };
        command.flag("attribute-mapping", &mapping)
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
    pub fn apis(&self) -> Vec<String> {
        // `--project` takes no numbers everywhere.
        let describe = Command::new("gcloud projects describe").word(self.google.provider.project());
        let project = format!("PROJECT=$({})", describe.flag("format", "value(projectId)"));
        let of_pool =
            Command::new("gcloud services enable iam.googleapis.com sts.googleapis.com iamcredentials.googleapis.com");
        let of_pool = of_pool.raw("--project=\"$PROJECT\"").to_string();
        let account = self.google.service_account.as_ref().and_then(|account| account.project());
        let of_account = account.map(|project| {
            let enable = Command::new("gcloud services enable iamcredentials.googleapis.com");
            enable.flag("project", &project).to_string()
        });
        [project, of_pool].into_iter().chain(of_account).collect()
    }
}

/// What an Entra provider's attribute of a rule says of those whom the rule admits.
const ADMITTED: &str = "y";

/// The key of a rule's attribute: no two rules, and no rule of two targets, have the same. Google (attribute mapping):
/// `[a-z0-9_]`, at most 100 characters with its prefix.
fn rule_attribute(target: &Name, rule: &Name) -> String {
    let (target, rule) = (target.as_str(), rule.as_str());
    let plain = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let shown = |name: &str| -> String {
        let character = |one: char| if one.is_ascii_alphanumeric() { one.to_ascii_lowercase() } else { '_' };
        name.chars().map(character).take(LONGEST_PART).collect()
    };
    let key = format!("r_{}_{}", shown(target), shown(rule));
    if plain(target) && plain(rule) && target.len() <= LONGEST_PART && rule.len() <= LONGEST_PART {
        return key;
    }
    let digest = sha256(format!("{target}/{rule}").as_bytes());
    format!("{key}_{}", hex::encode(digest.first_chunk::<6>().unwrap_or(&[0; 6])))
}

const LONGEST_PART: usize = 30;

/// Of the tokens that Entra issues for an audience, those that the broker takes: access tokens, of users (`scp`) or of
/// applications (`sub` is `oid`), and no ID tokens.
const ACCESS_TOKEN: &str =
    "has(assertion.azp) && has(assertion.oid) && (has(assertion.scp) || assertion.sub == assertion.oid)";

const NOBODY: &str = "false";
const EVERYBODY: &str = "true";

/// An empty text of CEL.
const NOTHING: &str = "\"\"";

/// A claim that not every token has.
fn if_there(claim: &str, otherwise: &str) -> String {
    format!("has(assertion.{claim}) ? assertion.{claim} : {otherwise}")
}

/// What a token that leaves the groups out, because there are too many, is taken for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Overage {
    IsNoMember,
    MayBeMember,
}

/// What a rule asks of a v2.0 token of Entra's, each in CEL; all of it must hold.
fn demands(rule: &Admission<'_>, overage: Overage) -> Vec<String> {
    // What stands elsewhere: a rule of another tenant is none of the provider's, and `when` is the broker's alone.
    let Admission {
        rule: _, max_lifetime: _, tenants: _, has_condition: _, attributes: _, kinds, groups, roles, ..
    } = rule;
    let Admission { scopes, clients, objects, auth_contexts, .. } = rule;
    let ids = |ids: &[Uuid]| ids.iter().map(Uuid::to_string).collect::<Vec<_>>();
    let there = |claim: &str, test: String| all(vec![format!("has(assertion.{claim})"), test]);
    let is = |claim: &str, list: &[Uuid]| there(claim, one_of(&format!("assertion.{claim}"), ids(list)));
    let holds = |claim: &str, values: &[String]| {
        let values = values.iter().map(|value| format!("{} in assertion.{claim}", text(value)));
        there(claim, any(values.collect()))
    };
    let mut demands = Vec::new();
    demands.extend(clients.map(|clients| is("azp", clients)));
    demands.extend(objects.map(|objects| is("oid", objects)));
    demands.extend(roles.map(|roles| holds("roles", roles)));
    demands.extend(auth_contexts.map(|contexts| holds("acrs", contexts)));
    demands.extend(scopes.map(|scopes| {
        // One text with a space between each two; `split` is not everywhere in CEL.
        let is_one =
            |scope: &String| format!("(\" \" + assertion.scp + \" \").contains({})", text(&format!(" {scope} ")));
        there("scp", any(scopes.iter().map(is_one).collect()))
    }));
    demands.extend(groups.map(|groups| {
        let member = holds("groups", &ids(groups));
        match overage {
            Overage::IsNoMember => member,
            Overage::MayBeMember => {
                let left_out = "has(assertion._claim_names)".to_owned();
                any(vec![member, left_out, "has(assertion.hasgroups) && !has(assertion.groups)".to_owned()])
            }
        }
    }));
    demands.extend(kinds.map(|kinds| {
        let kind = |kind: &Kind| match kind {
            Kind::User => "has(assertion.scp)",
            Kind::ServicePrincipal => "!has(assertion.scp) && !has(assertion.xms_mirid)",
            Kind::ManagedIdentity => "!has(assertion.scp) && has(assertion.xms_mirid)",
        };
        any(kinds.iter().map(|one| kind(one).to_owned()).collect())
    }));
    demands
}

/// Every part; without any, everything.
fn all(mut parts: Vec<String>) -> String {
    match parts.len() {
        0 => EVERYBODY.to_owned(),
        1 => parts.remove(0),
        _ => {
            let bracketed = |part: String| if joins(&part, " || ") { format!("({part})") } else { part };
            parts.into_iter().map(bracketed).collect::<Vec<_>>().join(" && ")
        }
    }
}

fn any(mut alternatives: Vec<String>) -> String {
    match alternatives.len() {
        0 => NOBODY.to_owned(),
        1 => alternatives.remove(0),
        _ => {
            let bracketed = |one: String| if joins(&one, " && ") { format!("({one})") } else { one };
            alternatives.into_iter().map(bracketed).collect::<Vec<_>>().join(" || ")
        }
    }
}

/// Whether the operator stands outside of all brackets. One in a text counts: brackets too many change nothing.
fn joins(expression: &str, operator: &str) -> bool {
    let mut depth = 0_u32;
    expression.char_indices().any(|(at, character)| {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && expression.get(at..).is_some_and(|rest| rest.starts_with(operator))
    })
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

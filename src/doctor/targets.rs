//! Each target asked for a credential as somebody whom its rules admit, and as somebody whom they do not.

use std::time::Duration;

use uuid::Uuid;

use super::{Examination, Finding, Severity};
use crate::credential::{IssueError, Probe, Probed, Reach, SetUpFault};
use crate::issuer::ProbeSubject;
use crate::policy::{Admission, FLOOR, GOOGLE_USUAL};
use crate::target::{AzureSource, GoogleSubjectToken, GoogleTarget, Platform, Sharing, Target};
use crate::trust::{Asked, CloudError};

pub(super) async fn examine(examination: &Examination<'_>, target: &Target) -> Vec<Finding> {
    let rules: Vec<Admission<'_>> = examination.config.policy.admissions(&target.name).collect();
    if rules.is_empty() {
        let seen = "no rule allows it";
        let finding = Finding::new(Severity::Note, "no_rule", about(target), seen);
        return vec![finding.repair("nobody gets a credential of it: write a rule, or take the target out", &[])];
    }
    let asking = Asking { examination, target };
    match &target.platform {
        Platform::Google(google) => match google.subject_token {
            GoogleSubjectToken::Issuer => asking.google(google, &rules).await,
            GoogleSubjectToken::Entra => {
                let mut findings = asking.without_a_token(&rules).await;
                let unenforced = examination.trust(target).unenforced().into_iter();
                findings.extend(unenforced.map(|text| Finding::new(Severity::Note, "unenforced", about(target), text)));
                findings
            }
        },
        Platform::Azure(azure) => match azure.source {
            AzureSource::OnBehalfOf { .. } => asking.without_a_user(&rules).await,
            AzureSource::Issuer { .. } | AzureSource::TokenFile(_) | AzureSource::ManagedIdentity(_) => {
                // The same for every rule: Entra sees none of them.
                let probed = asking.ask(asking.subject(rules.first()), Reach::Credential, FLOOR).await;
                vec![asking.judge(probed, None)]
            }
        },
    }
}

struct Asking<'a> {
    examination: &'a Examination<'a>,
    target: &'a Target,
}

/// A rule that was tried, and the subject it was tried with.
struct Tried {
    rule: String,
    subject: String,
    /// What the subject was made up for, which conditions and bindings may go by: options that would tell.
    invented: Vec<String>,
}

impl Asking<'_> {
    async fn ask(&self, subject: ProbeSubject, reach: Reach, lifetime: Duration) -> Result<Probed, IssueError> {
        let probe = Probe { target: self.target, subject: &subject, reach, lifetime };
        self.examination.clouds.probe(&probe).await
    }

    /// Somebody whom the rule admits, as far as it says; nobody's ids where it does not.
    fn subject(&self, rule: Option<&Admission<'_>>) -> ProbeSubject {
        let entra = &self.examination.config.entra;
        let options = self.examination.options;
        let accepted = |tenants: &[Uuid]| tenants.iter().copied().find(|tenant| entra.tenants.contains(tenant));
        let tenant = rule.and_then(|rule| accepted(rule.tenants?)).or(entra.tenants.first().copied());
        let first = |ids: Option<&[Uuid]>| ids.and_then(|ids| ids.first().copied());
        let names = rule.map(|rule| rule.attributes.clone()).unwrap_or_default();
        let given = |name: &str| options.attributes.iter().find(|(given, _value)| given == name);
        let value = |name: &str| given(name).map_or_else(|| "carnet-doctor".to_owned(), |(_name, value)| value.clone());
        ProbeSubject {
            tenant: tenant.unwrap_or_default(),
            object: options.object.or(rule.and_then(|rule| first(rule.objects))).unwrap_or_default(),
            client: rule.and_then(|rule| first(rule.clients)).unwrap_or_default(),
            rule: rule.map(|rule| rule.rule.to_string()).unwrap_or_default(),
            attributes: names.into_iter().map(|name| (name.to_owned(), value(name))).collect(),
        }
    }

    async fn google(&self, google: &GoogleTarget, rules: &[Admission<'_>]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for rule in rules.iter().take(MOST_RULES) {
            let subject = self.subject(Some(rule));
            let tried = self.tried(&subject);
            let probed = self.ask(subject, Reach::Credential, FLOOR).await;
            let failed = probed.is_err();
            let finding = self.judge(probed, Some(&tried));
            // What no rule is to blame for is said once.
            let known = findings
                .iter()
                .any(|other: &Finding| (&other.code, &other.commands) == (&finding.code, &finding.commands));
            if !known || !failed {
                findings.push(finding);
            }
        }
        let (sound, faults): (Vec<Finding>, Vec<Finding>) =
            findings.into_iter().partition(|finding| finding.severity == Severity::Ok);
        let any_sound = !sound.is_empty();
        let mut findings = faults;
        findings.extend(sound.into_iter().next().filter(|_sound| findings.is_empty()));
        if rules.len() > MOST_RULES {
            let seen = format!("{} of its {} rules were tried", MOST_RULES, rules.len());
            findings.push(Finding::new(Severity::Note, "rules", about(self.target), seen));
        }
        let to_credential = findings.iter().any(|finding| finding.code == SetUpFault::GoogleImpersonation.as_str());
        if any_sound || to_credential {
            findings.extend(self.open_pool(rules).await);
        }
        if any_sound && google.service_account.is_some() && self.target.max_lifetime > GOOGLE_USUAL {
            findings.extend(self.longest(rules).await);
        }
        findings
    }

    /// I19: a provider without a condition takes whatever its issuer signs, for any tenant and rule. Each is tried by
    /// itself: a condition on one of them does not stand for the other.
    async fn open_pool(&self, rules: &[Admission<'_>]) -> Vec<Finding> {
        let usual = self.subject(rules.first());
        let of_tenant = ProbeSubject {
            tenant: uuid::Builder::from_custom_bytes(*b"carnet-doctor--8").into_uuid(),
            ..usual.clone()
        };
        let of_rule = ProbeSubject { rule: "carnet-doctor-no-such-rule".to_owned(), ..usual };
        let mut findings = Vec::new();
        // What is shared names no tenant.
        if self.target.sharing == Sharing::Subject {
            findings.extend(self.foreign(of_tenant, "tenant", rules).await);
        }
        findings.extend(self.foreign(of_rule, "rule", rules).await);
        findings
    }

    /// Whether an assertion whose `what` is nobody's is taken.
    async fn foreign(&self, subject: ProbeSubject, what: &str, rules: &[Admission<'_>]) -> Option<Finding> {
        match self.ask(subject, Reach::Provider, FLOOR).await {
            Ok(_taken) => {
                let fault = CloudError {
                    hop: crate::credential::Hop::GoogleSts,
                    code: None,
                    fault: Some(SetUpFault::GoogleCondition),
                };
                let asked = Asked { rule: rules.first().map(|rule| rule.rule.as_str()), subject: None };
                let remedy = self.examination.trust(self.target).remedy(fault, asked);
                let seen = format!("an assertion of another {what} was taken");
                let finding = Finding::new(Severity::Error, "pool_open", about(self.target), seen);
                let meaning = "the provider's attribute condition is missing or too wide".to_owned();
                Some(finding.remedied(crate::trust::Remedy { meaning, ..remedy }))
            }
            Err(error) if error.fault() == Some(SetUpFault::GoogleCondition) => None,
            Err(error) => {
                let seen = format!(
                    "whether an assertion of another {what} is taken was not decided: {} said something else{}",
                    error.hop(),
                    error.code().map(|code| format!(" ({code})")).unwrap_or_default()
                );
                let finding = Finding::new(Severity::Note, "pool_undecided", about(self.target), seen);
                Some(finding.repair("ask again later", &[]))
            }
        }
    }

    /// As long as the target allows: only an organization policy makes Google give more than an hour.
    async fn longest(&self, rules: &[Admission<'_>]) -> Option<Finding> {
        let subject = self.subject(rules.first());
        let tried = self.tried(&subject);
        let refused = self.ask(subject, Reach::Credential, self.target.max_lifetime).await.err()?;
        (refused.fault() == Some(SetUpFault::GoogleLifetime)).then(|| {
            let finding = self.judge(Err(refused), Some(&tried));
            let wanted = self.target.max_lifetime.as_secs();
            let seen =
                format!("max_lifetime is {wanted}s and Google gives 3600s at most: callers get less than they could");
            Finding { severity: Severity::Warning, seen, ..finding }
        })
    }

    /// Google's token service cannot be shown a token of Entra's here: as much is told as it tells without one.
    async fn without_a_token(&self, rules: &[Admission<'_>]) -> Vec<Finding> {
        let probed = self.ask(self.subject(rules.first()), Reach::Credential, FLOOR).await;
        match probed {
            // What is said of the token itself tells nothing: it is none.
            Err(error) if error.fault() == Some(SetUpFault::GoogleToken) => {
                let seen = "the provider is there; the rest, and whether its condition holds anybody back, needs a \
                            caller's token";
                let finding = Finding::new(Severity::Note, "needs_token", about(self.target), seen);
                vec![finding.repair("give one with --subject-token-file", &[])]
            }
            probed @ (Ok(_) | Err(_)) => vec![self.judge(probed, None)],
        }
    }

    /// Entra looks at the client's own credential first: that can be tried, a user's consent cannot.
    async fn without_a_user(&self, rules: &[Admission<'_>]) -> Vec<Finding> {
        let probed = self.ask(self.subject(rules.first()), Reach::Credential, FLOOR).await;
        let client_passed = match &probed {
            Ok(_issued) => true,
            Err(error) => error.code().is_some_and(|code| AFTER_CLIENT.contains(&code)),
        };
        if !client_passed {
            return vec![self.judge(probed, None)];
        }
        let seen = "Entra knows the client's credential; consent needs a user's token";
        let finding = Finding::new(Severity::Note, "needs_token", about(self.target), seen);
        vec![finding.repair("give one with --subject-token-file", &[])]
    }

    fn tried(&self, subject: &ProbeSubject) -> Tried {
        let of = match self.target.sharing {
            Sharing::Subject => format!("entra:{}:{}", subject.tenant, subject.object),
            Sharing::Target => format!("carnet:{}", self.target.name),
        };
        let given = &self.examination.options.attributes;
        let unknown = subject.attributes.iter().filter(|(name, _value)| given.iter().all(|(given, _)| given != name));
        let mut invented: Vec<String> = unknown.map(|(name, _value)| format!("--attribute {name}=VALUE")).collect();
        if self.target.sharing == Sharing::Subject && subject.object.is_nil() {
            invented.insert(0, "--as OBJECT_ID".to_owned());
        }
        Tried { rule: subject.rule.clone(), subject: of, invented }
    }

    fn judge(&self, probed: Result<Probed, IssueError>, tried: Option<&Tried>) -> Finding {
        let of_rule = tried.map(|tried| format!(", for rule {}", tried.rule)).unwrap_or_default();
        let error = match probed {
            Ok(Probed { life }) => {
                let seen = format!("a credential of {}s would be issued{of_rule}", life.as_secs());
                return Finding::new(Severity::Ok, "target", about(self.target), seen);
            }
            Err(error) => error,
        };
        let asked =
            Asked { rule: tried.map(|tried| tried.rule.as_str()), subject: tried.map(|tried| tried.subject.as_str()) };
        let finding = refused(self.examination, self.target, &error, asked, &of_rule);
        let by_whom = matches!(error.fault(), Some(SetUpFault::GoogleImpersonation | SetUpFault::GoogleCondition));
        let invented = tried.map(|tried| tried.invented.join(" ")).unwrap_or_default();
        if !by_whom || invented.is_empty() {
            return finding;
        }
        // Real callers may pass, and what would let this one pass could let in others who must not.
        let seen = format!("{}; not decided: it was asked for nobody real", finding.seen);
        let advice = format!("give {invented} of a caller whom the rule admits");
        Finding { severity: Severity::Warning, seen, advice, commands: Vec::new(), ..finding }
    }
}

/// A cloud's refusal as a finding, with what repairs it.
pub(super) fn refused(
    examination: &Examination<'_>,
    target: &Target,
    error: &IssueError,
    asked: Asked<'_>,
    of_rule: &str,
) -> Finding {
    let cloud = CloudError::from(error);
    let code = match (cloud.fault, cloud.code) {
        (Some(fault), _) => fault.as_str().to_owned(),
        (None, Some(code)) => code.to_owned(),
        (None, None) => format!("{}_unavailable", cloud.hop.as_str()),
    };
    let severity = match error {
        IssueError::Throttled { .. } => Severity::Warning,
        IssueError::Refused { .. }
        | IssueError::SubjectToken { .. }
        | IssueError::InsufficientClaims { .. }
        | IssueError::Unavailable { .. } => Severity::Error,
    };
    let what = match (cloud.code, error) {
        (_, IssueError::Unavailable { cause, .. }) => format!("{} is not available ({cause})", cloud.hop),
        (Some(code), _) => format!("{} refuses ({code})", cloud.hop),
        (None, _) => format!("{} refuses", cloud.hop),
    };
    let finding = Finding::new(severity, &code, about(target), format!("{what}{of_rule}"));
    finding.remedied(examination.trust(target).remedy(cloud, asked))
}

fn about(target: &Target) -> String {
    format!("target {}", target.name)
}

/// What Entra says only of a client whose credential it has taken: consent and assignments are missing.
const AFTER_CLIENT: [&str; 3] = ["AADSTS65001", "AADSTS50105", "AADSTS501051"];

/// Each costs a call or two of the project's quota.
const MOST_RULES: usize = 16;

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
            GoogleSubjectToken::Entra => asking.without_a_token(&rules).await,
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

    /// I19: a provider without a condition takes whatever its issuer signs, for any tenant and rule.
    async fn open_pool(&self, rules: &[Admission<'_>]) -> Option<Finding> {
        let foreign = ProbeSubject {
            tenant: uuid::Builder::from_custom_bytes(*b"carnet-doctor--8").into_uuid(),
            rule: "carnet-doctor-no-such-rule".to_owned(),
            ..self.subject(rules.first())
        };
        let asked = Asked { rule: rules.first().map(|rule| rule.rule.as_str()), subject: None };
        match self.ask(foreign, Reach::Provider, FLOOR).await {
            Ok(_taken) => {
                let fault = CloudError {
                    hop: crate::credential::Hop::GoogleSts,
                    code: None,
                    fault: Some(SetUpFault::GoogleCondition),
                };
                let remedy = self.examination.trust(self.target).remedy(fault, asked);
                let finding = Finding::new(
                    Severity::Error,
                    "pool_open",
                    about(self.target),
                    "an assertion of another tenant and rule was taken",
                );
                let meaning = "the provider's attribute condition is missing or too wide".to_owned();
                Some(finding.remedied(crate::trust::Remedy { meaning, ..remedy }))
            }
            // Whatever it was refused for, it was.
            Err(_refused) => None,
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
        // What is said of the token itself tells nothing: it is none.
        let telling = [SetUpFault::GoogleProvider, SetUpFault::GoogleApi];
        let told =
            |error: &IssueError| error.is_transient() || error.fault().is_some_and(|fault| telling.contains(&fault));
        match probed {
            Err(error) if told(&error) => vec![self.judge(Err(error), None)],
            _ => {
                let seen = "the provider is there; the rest needs a caller's token";
                let finding = Finding::new(Severity::Note, "needs_token", about(self.target), seen);
                vec![finding.repair("give one with --subject-token-file", &[])]
            }
        }
    }

    /// Entra looks at the client's own credential first: that can be tried, a user's consent cannot.
    async fn without_a_user(&self, rules: &[Admission<'_>]) -> Vec<Finding> {
        let probed = self.ask(self.subject(rules.first()), Reach::Credential, FLOOR).await;
        let of_client =
            |error: &IssueError| error.is_transient() || error.code().is_some_and(|code| OF_CLIENT.contains(&code));
        match probed {
            Err(error) if of_client(&error) => vec![self.judge(Err(error), None)],
            _ => {
                let seen = "Entra knows the client's credential; consent needs a user's token";
                let finding = Finding::new(Severity::Note, "needs_token", about(self.target), seen);
                vec![finding.repair("give one with --subject-token-file", &[])]
            }
        }
    }

    fn tried(&self, subject: &ProbeSubject) -> Tried {
        let of = match self.target.sharing {
            Sharing::Subject => format!("entra:{}:{}", subject.tenant, subject.object),
            Sharing::Target => format!("carnet:{}", self.target.name),
        };
        Tried { rule: subject.rule.clone(), subject: of }
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
        let mut finding = refused(self.examination, self.target, &error, asked, &of_rule);
        if error.fault() == Some(SetUpFault::GoogleImpersonation) && self.examination.options.object.is_none() {
            finding.advice.push_str("; bindings that name single people are tried with --as OBJECT_ID");
        }
        finding
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

/// What Entra says of a client before it looks at a user.
const OF_CLIENT: [&str; 14] = [
    "AADSTS70021",
    "AADSTS700211",
    "AADSTS700212",
    "AADSTS700213",
    "AADSTS7002138",
    "AADSTS700222",
    "AADSTS70023",
    "AADSTS700024",
    "AADSTS700027",
    "AADSTS7000272",
    "AADSTS700016",
    "AADSTS700011",
    "AADSTS90002",
    "AADSTS700025",
];

/// Each costs a call or two of the project's quota.
const MOST_RULES: usize = 16;

//! Why: a caller's request step by step, from the token to the lifetime, and what the broker holds for it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::Operator;
use crate::clock::Clock;
use crate::credential::{CloudIdentity, Held, Service};
use crate::exchange::{Caller, Exchange, ExchangeError, TargetRequest, asks, one_line};
use crate::issuer::{Algorithm, Issuer};
use crate::lease::Failed;
use crate::policy::{Ask, ExcessScopes, Explanation, Grant, Inquiry, Permission, Policy, Question, Refusal, Verdict};
use crate::secret::Secret;
use crate::step::Step;
use crate::subject::{self, Examination, Identity, SubjectToken, VerifiedIdentity, Verifier};
use crate::target::{AzureSource, GoogleSubjectToken, Job, Platform, Sharing, Target};
use crate::trust::{Asked as AskedOf, CloudError, Remedy, Trust};

/// What is to be explained.
#[derive(Debug)]
pub struct ExplainRequest {
    pub subject: ExplainSubject,
    /// None: the subject alone is looked at.
    pub targets: Vec<TargetRequest>,
    pub job: Arc<Job>,
    /// What the door could not read.
    pub complaint: Option<ExchangeError>,
}

/// Whose request it is.
pub enum ExplainSubject {
    /// Verified as for an exchange.
    Token(Secret),
    /// Taken as verified: "what if".
    Claims(Map<String, Value>),
}

/// The answer, and all that led to it.
#[derive(Debug)]
pub struct Explained {
    /// The token would be taken, and the rules allow all that is asked for. A cloud may still refuse.
    pub allowed: bool,
    pub steps: Vec<Step>,
    /// Whom it is about, as far as that is known.
    subject: String,
}

/// Answers from the rules, from what verifies tokens, and from what a running broker holds.
pub struct Explainer {
    pub verifier: Arc<dyn Verifier>,
    pub policy: Arc<Policy>,
    /// What the clouds' trust depends on, for what repairs it.
    pub entra: subject::Settings,
    /// `issuer.url`
    pub issuer: Option<String>,
    pub clock: Arc<dyn Clock>,
    /// `None` where there is a configuration and no broker.
    pub running: Option<Running>,
}

/// What a broker has that runs.
pub struct Running {
    pub exchange: Arc<Exchange>,
    pub issuer: Option<Arc<Issuer>>,
}

impl Operator {
    /// What an exchange would decide. It mints nothing, and leaves nothing behind that an exchange would use.
    pub async fn explain(&self, token: Secret, request: ExplainRequest, caller: &Caller) -> Result<Explained, Failed> {
        let admission = self.admission(token, Permission::Explain, caller).await;
        let names: Vec<&str> = request.targets.iter().map(|target| target.target.as_str()).collect();
        let mut details = vec![
            ("explained_by", request.subject.word().to_owned()),
            ("explained_targets", one_line(&names.join(","), NAMES_CHARACTERS)),
        ];
        let explained = match &admission.allowed {
            Ok(_operator) => self.explainer().explain(request).await,
            // What is told is why the operator is none.
            Err(_refused) => Err(ExchangeError::Internal),
        };
        details.extend(explained.iter().map(|explained| ("explained_subject", explained.subject.clone())));
        let exchange_id = admission.record.exchange_id;
        self.recorded(admission, details).await?;
        explained.map_err(|error| Failed { exchange_id, error })
    }

    fn explainer(&self) -> Explainer {
        Explainer {
            verifier: self.verifier.clone(),
            policy: self.exchange.policy.load_full(),
            entra: self.entra.clone(),
            issuer: self.issuer.as_ref().map(|issuer| issuer.url().to_owned()),
            clock: self.clock.clone(),
            running: Some(Running { exchange: self.exchange.clone(), issuer: self.issuer.clone() }),
        }
    }
}

impl Explainer {
    /// # Errors
    /// What is wrong with the question itself.
    pub async fn explain(&self, request: ExplainRequest) -> Result<Explained, ExchangeError> {
        let ExplainRequest { subject, targets, job, complaint } = request;
        if let Some(error) = complaint {
            return Err(error);
        }
        let asks = match targets.is_empty() {
            true => Vec::new(),
            false => asks(&targets, &job, ExcessScopes::Refuse)?,
        };
        let asked = Asked { asks, job };
        match subject {
            ExplainSubject::Token(token) => self.of_token(token, asked).await,
            ExplainSubject::Claims(claims) => self.of_claims(claims, asked).await,
        }
    }

    async fn of_token(&self, token: Secret, asked: Asked) -> Result<Explained, ExchangeError> {
        let Examination { mut steps, result } = match SubjectToken::new(token) {
            Ok(token) => self.verifier.explain(&token).await,
            Err(error) => {
                let remedy = "Show one Entra access token, as it was issued.";
                Examination {
                    steps: vec![Step::failed("subject_token", error.to_string(), remedy)],
                    result: Err(error),
                }
            }
        };
        let Ok(identity) = result else {
            let targets = asked.asks.iter().map(|ask| format!("target:{}", ask.target));
            steps.extend(targets.map(|target| Step::skipped(target, "not reached: the token is refused")));
            return Ok(Explained { allowed: false, steps, subject: String::new() });
        };
        let explanation = self.rules(Whom::Verified(identity.clone()), asked.clone()).await?;
        let allowed = explanation.result.is_ok();
        steps.extend(explanation.steps);
        steps.extend(self.seen_as(&identity, &explanation.result));
        if let Some(running) = &self.running {
            steps.extend(self.clouds(running, &asked));
            steps.extend(self.held(running, &identity, &asked));
        }
        Ok(Explained { allowed, steps, subject: identity.subject().to_owned() })
    }

    async fn of_claims(&self, claims: Map<String, Value>, asked: Asked) -> Result<Explained, ExchangeError> {
        let identity = Identity::from_claims(claims, self.clock.now() + UNSAID_LIFE)
            .map_err(|error| ExchangeError::Request { field: "claims".to_owned(), message: error.to_string() })?;
        let mut steps = self.verifier.explain_claims(&identity);
        let accepted = !steps.iter().any(Step::has_failed);
        let subject = identity.subject().to_owned();
        let identity = Arc::new(identity);
        let explanation = self.rules(Whom::Unverified(identity.clone()), asked.clone()).await?;
        let allowed = accepted && explanation.result.is_ok();
        steps.extend(explanation.steps);
        steps.extend(self.seen_as(&identity, &explanation.result));
        steps.extend(self.running.iter().flat_map(|running| self.clouds(running, &asked)));
        Ok(Explained { allowed, steps, subject })
    }

    /// On a thread of its own: expressions are taken apart anew, which exchanges need not wait for.
    async fn rules(&self, whom: Whom, asked: Asked) -> Result<Explanation, ExchangeError> {
        let (policy, now) = (self.policy.clone(), self.clock.now());
        let learned = match &self.running {
            Some(running) => running.exchange.history.learned(whom.identity(), &asked.job).await,
            None => None,
        };
        let explain = move || {
            let question = Question { learned, ..Question::once(whom.identity(), &asked.job, now) };
            policy.explain(question, &asked.asks)
        };
        tokio::task::spawn_blocking(explain).await.map_err(|_panic| ExchangeError::Internal)
    }

    /// What the broker has for somebody who was verified and whom the rules allow what is asked for.
    fn held(&self, running: &Running, identity: &Arc<VerifiedIdentity>, asked: &Asked) -> Vec<Step> {
        let inquiry = Inquiry::once(identity, &asked.job, self.clock.now());
        let grants = self.policy.decide_all(inquiry, &asked.asks).unwrap_or_default();
        grants.iter().map(|grant| self.credential(running, grant)).collect()
    }

    fn credential(&self, running: &Running, grant: &Grant) -> Step {
        let name = format!("credential:{}", grant.target().name);
        match running.exchange.credentials.held(grant) {
            Held::Nothing => Step::skipped(name, "this broker has none; the next exchange asks the cloud for one"),
            Held::Credential(credential) => {
                let left = credential.expires_at.duration_since(self.clock.now()).unwrap_or_default();
                let enough = if left < grant.plan().least { "too short for this request" } else { "will do" };
                let acts_as = acts_as(&credential.identity);
                Step::passed(name, format!("cached, as {acts_as}, {}s left: {enough}", left.as_secs()))
            }
            Held::Failure { error, left } => {
                let subject = presented(grant.target(), grant.identity());
                let asked = AskedOf { rule: Some(grant.rule().as_str()), subject: subject.as_deref() };
                let remedy = self.trust(grant.target()).remedy(CloudError::from(&error), asked);
                let detail = format!("the last call failed: {error}; remembered for {}s more", left.as_secs());
                Step::failed(name, detail, told(&remedy))
            }
        }
    }

    /// As whom the clouds see somebody whom the rules allow the targets.
    fn seen_as(&self, identity: &Identity, allowed: &Result<Vec<Verdict>, Refusal>) -> Vec<Step> {
        let seen = |verdict: &Verdict| {
            let target = verdict.target();
            let subject = presented(target, identity);
            let audience = |audience: &str| {
                let issuer = self.issuer.as_deref().unwrap_or("no issuer");
                format!("issuer {issuer}, subject {}, audience {audience}", subject.as_deref().unwrap_or_default())
            };
            let seen = match &target.platform {
                Platform::Google(google) => {
                    let principal = google.provider.principal(subject.as_deref().unwrap_or_default());
                    match &google.service_account {
                        Some(account) => format!("{principal}, which impersonates {account}"),
                        None => principal,
                    }
                }
                Platform::Azure(azure) => match &azure.source {
                    AzureSource::Issuer { audience: to, .. } | AzureSource::OnBehalfOf { audience: to, .. } => {
                        format!("client {}, by the federated identity credential for {}", azure.client_id, audience(to))
                    }
                    AzureSource::TokenFile(_) | AzureSource::ManagedIdentity(_) => {
                        format!("client {}", azure.client_id)
                    }
                },
            };
            Step::passed(format!("identity:{}", target.name), seen)
        };
        allowed.iter().flatten().map(seen).collect()
    }

    fn trust<'a>(&'a self, target: &'a Target) -> Trust<'a> {
        Trust { target, issuer: self.issuer.as_deref(), entra: &self.entra, policy: &self.policy }
    }

    /// The state of the services and of the broker's own keys, target by target.
    fn clouds(&self, running: &Running, asked: &Asked) -> Vec<Step> {
        let target = |ask: &Ask| self.policy.targets().find(|target| target.name.as_str() == ask.target);
        let targets = asked.asks.iter().filter_map(target);
        let steps =
            targets.flat_map(|target| [Some(running.cloud(target)), running.issuer_keys(target, self.clock.now())]);
        steps.flatten().collect()
    }
}

impl Running {
    fn cloud(&self, target: &Target) -> Step {
        let name = format!("cloud:{}", target.name);
        let services = self.exchange.credentials.services(target);
        let away = services.iter().find_map(|service| Some((service, service.left_alone_for?)));
        match away {
            Some((service, left)) => Step::failed(
                name,
                format!(
                    "{} failed {} times in a row and is left alone for {}s more",
                    service.hop,
                    service.failures_in_a_row,
                    left.as_secs()
                ),
                "Wait, and look whether the broker reaches it: `carnet doctor`, and carnet_upstream_requests_total by hop.",
            ),
            None => Step::passed(name, services.iter().map(described).collect::<Vec<_>>().join("; ")),
        }
    }

    fn issuer_keys(&self, target: &Target, now: SystemTime) -> Option<Step> {
        if !target.needs_issuer() {
            return None;
        }
        let name = format!("issuer_keys:{}", target.name);
        let algorithm = match &target.platform {
            Platform::Google(_) => Algorithm::Es256,
            Platform::Azure(_) => Algorithm::Rs256,
        };
        let keys = self.issuer.as_ref().map(|issuer| (issuer.url(), issuer.keys()));
        let signing = keys.as_ref().and_then(|(url, keys)| Some((url, keys.signing(algorithm, now)?.kid().to_owned())));
        Some(match signing {
            Some((url, kid)) => Step::passed(name, format!("{url} signs {} with key {kid}", algorithm.as_str())),
            None => Step::failed(
                name,
                format!("no key signs {}", algorithm.as_str()),
                "Give the configuration an `issuer`, or its key_files a key of this kind; `carnet issuer keys` lists them.",
            ),
        })
    }
}

impl ExplainSubject {
    const fn word(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::Claims(_) => "claims",
        }
    }
}

impl fmt::Debug for Explainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Explainer").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl fmt::Debug for ExplainSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExplainSubject({})", self.word())
    }
}

/// What is asked for, its form checked.
#[derive(Clone)]
struct Asked {
    asks: Vec<Ask>,
    job: Arc<Job>,
}

/// About whom the rules are asked.
enum Whom {
    Verified(Arc<VerifiedIdentity>),
    Unverified(Arc<Identity>),
}

impl Whom {
    fn identity(&self) -> &Identity {
        match self {
            Self::Verified(identity) => identity,
            Self::Unverified(identity) => identity,
        }
    }
}

/// `sub` of what the target's cloud is shown of `identity`, where the broker knows it.
fn presented(target: &Target, identity: &Identity) -> Option<String> {
    match &target.platform {
        Platform::Google(google) => match google.subject_token {
            GoogleSubjectToken::Issuer => Some(match target.sharing {
                Sharing::Subject => identity.subject().to_owned(),
                Sharing::Target => format!("carnet:{}", target.name),
            }),
            // The usual mapping (google.subject=assertion.sub); the pool may map otherwise.
            GoogleSubjectToken::Entra => identity.claims().get("sub").and_then(Value::as_str).map(str::to_owned),
        },
        Platform::Azure(azure) => match &azure.source {
            AzureSource::Issuer { subject, .. } | AzureSource::OnBehalfOf { subject, .. } => Some(subject.clone()),
            AzureSource::TokenFile(_) | AzureSource::ManagedIdentity(_) => None,
        },
    }
}

/// Who acts, how, and the commands.
fn told(remedy: &Remedy) -> String {
    let Remedy { meaning, who, advice, commands } = remedy;
    let advice = if advice.is_empty() { String::new() } else { format!(": {advice}") };
    let mut lines = vec![format!("For {}: {meaning}{advice}.", who.as_str())];
    lines.extend(commands.iter().cloned());
    lines.join("\n")
}

fn described(service: &Service) -> String {
    match service.failures_in_a_row {
        0 => format!("{}: nothing against it", service.hop),
        failures => format!("{}: the last {failures} calls failed", service.hop),
    }
}

fn acts_as(identity: &CloudIdentity) -> String {
    match identity {
        CloudIdentity::Google { principal, service_account } => service_account.as_ref().unwrap_or(principal).clone(),
        CloudIdentity::Azure { client_id, .. } => client_id.to_string(),
    }
}

/// For claims that do not say when they expire.
const UNSAID_LIFE: Duration = Duration::from_secs(3600);

/// Sixteen targets' names.
const NAMES_CHARACTERS: usize = 1100;

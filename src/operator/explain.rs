//! Why: a caller's request step by step, from the token to the lifetime, and what the broker holds for it.

mod clouds;
mod recorded;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::Operator;
use crate::audit::Records;
use crate::clock::Clock;
use crate::exchange::{Caller, Exchange, ExchangeError, TargetRequest, asks};
use crate::issuer::Issuer;
use crate::lease::{Failed, Leases, detached};
use crate::line::one_line;
use crate::policy::{Ask, ExcessScopes, Explanation, Permission, Policy, Question, Tenure};
use crate::secret::Secret;
use crate::step::Step;
use crate::subject::{self, Examination, Identity, SubjectToken, VerifiedIdentity, Verifier};
use crate::target::Job;

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
    /// Whoever asked for what is on record under this id: by what the record keeps of them.
    Recorded(Uuid),
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
    /// Absent where nothing is asked of them.
    pub records: Option<Records>,
    /// `None` where there is a configuration and no broker.
    pub running: Option<Running>,
}

/// What a broker has that runs.
pub struct Running {
    pub exchange: Arc<Exchange>,
    pub leases: Arc<Leases>,
    pub issuer: Option<Arc<Issuer>>,
}

impl Operator {
    /// What an exchange would decide. It mints nothing, and leaves nothing behind that an exchange would use. That it was
    /// asked for is on record, although the caller may leave.
    pub async fn explain(
        self: &Arc<Self>,
        token: Secret,
        request: ExplainRequest,
        caller: &Caller,
    ) -> Result<Explained, Failed> {
        let (this, caller) = (self.clone(), caller.clone());
        detached(async move { this.explain_to_its_end(token, request, &caller).await }).await
    }

    async fn explain_to_its_end(
        &self,
        token: Secret,
        request: ExplainRequest,
        caller: &Caller,
    ) -> Result<Explained, Failed> {
        let admission = self.admission(token, Permission::Explain, caller).await;
        let names: Vec<&str> = request.targets.iter().map(|target| target.target.as_str()).collect();
        let mut details = vec![
            ("explained_by", request.subject.word().to_owned()),
            ("explained_targets", one_line(&names.join(","), NAMES_CHARACTERS)),
        ];
        if let ExplainSubject::Recorded(id) = &request.subject {
            details.push(("explained_exchange", id.to_string()));
        }
        // Whoever looks for a record that is not there has the whole log read.
        let searched = matches!(request.subject, ExplainSubject::Recorded(_));
        let place = admission.allowed.as_ref().map(|operator| match searched {
            true => self.searches.place(operator.subject()).map(Some),
            false => Ok(None),
        });
        let explained = match place {
            Ok(Ok(_place)) => self.explainer().explain(request).await,
            Ok(Err(full)) => Err(full),
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
            records: Some(self.records.clone()),
            running: Some(Running {
                exchange: self.exchange.clone(),
                leases: self.leases.clone(),
                issuer: self.issuer.clone(),
            }),
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
        let asked = Asked { asks, job, tenure: Tenure::Once };
        match subject {
            ExplainSubject::Token(token) => self.of_token(token, asked).await,
            ExplainSubject::Claims(claims) => self.of_claims(claims, asked).await,
            ExplainSubject::Recorded(id) => self.of_record(id).await,
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
            Some(running) => running.exchange.history.glimpse(whom.identity(), &asked.job).await,
            None => None,
        };
        let explain = move || {
            let once = Question::once(whom.identity(), &asked.job, now);
            let question = Question { learned, tenure: asked.tenure, ..once };
            policy.explain(question, &asked.asks)
        };
        tokio::task::spawn_blocking(explain).await.map_err(|_panic| ExchangeError::Internal)
    }
}

impl ExplainSubject {
    const fn word(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::Claims(_) => "claims",
            Self::Recorded(_) => "record",
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
    tenure: Tenure,
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

/// For claims that do not say when they expire.
const UNSAID_LIFE: Duration = Duration::from_secs(3600);

/// Sixteen targets' names.
const NAMES_CHARACTERS: usize = 1100;

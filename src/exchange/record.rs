//! What an exchange leaves behind: its audit records, its log line and its metrics.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use metrics::{Counter, Histogram};
use uuid::Uuid;

use super::{Answer, Caller, Door, ExchangeError, ExchangeRequest, IssuedCredential, Proof};
use crate::audit::{AuditRecord, Issued, Outcome};
use crate::credential::{CloudIdentity, GOOGLE_PRINCIPAL, STS_EXCHANGE_ID, UPSTREAM_EXCHANGE_ID};
use crate::limit::{Peer, Share};
use crate::line::one_line;
use crate::policy::{Change, Grant, Tenure};
use crate::subject::{SubjectToken, VerifiedIdentity};
use crate::target::{Job, TokenType};

/// What is known of an exchange so far: each stage adds its part, and whatever the outcome, it is recorded.
pub(super) struct Record {
    pub exchange_id: Uuid,
    began: SystemTime,
    caller: Caller,
    action: &'static str,
    lease_id: Option<Uuid>,
    targets: Vec<String>,
    /// What the request says of each target besides its name; empty where it says nothing of any.
    wishes: Vec<Vec<(&'static str, String)>>,
    job: Arc<Job>,
    /// A token that was refused: the record keeps what it says of itself.
    refused_token: Option<SubjectToken>,
    identity: Option<Arc<VerifiedIdentity>>,
    grants: Vec<Arc<Grant>>,
    /// What the shadow would have decided, by target; none where there is no shadow.
    shadow: Vec<Change>,
    /// Of the exchanges under way, until it is recorded.
    place: Option<Share>,
}

impl Record {
    pub fn about(request: &ExchangeRequest, exchange_id: Uuid, began: SystemTime) -> Self {
        // A hostile request may name anything any number of times, line ends and all.
        let targets = request.targets.iter().take(16).map(|target| one_line(&target.target, 63)).collect();
        let caller = request.caller.clone();
        let action = match request.tenure {
            Tenure::Once => "exchange",
            Tenure::Opening(_) => "lease.open",
            Tenure::Lease { .. } => "lease.credentials",
        };
        let (identity, job) = match &request.proof {
            Proof::SubjectToken { .. } => (None, Arc::default()),
            Proof::Lease(identity) => (Some(identity.clone()), request.job.clone()),
        };
        Self {
            exchange_id,
            began,
            caller,
            action,
            lease_id: request.lease_id,
            targets,
            wishes: wishes(request),
            job,
            refused_token: None,
            identity,
            grants: Vec::new(),
            shadow: Vec::new(),
            place: None,
        }
    }

    pub fn refused_token(&mut self, token: &SubjectToken) {
        self.refused_token = Some(token.clone());
    }

    /// Who asks is known; what a stranger says of a job is not worth keeping.
    pub fn verified(&mut self, identity: &Arc<VerifiedIdentity>, job: &Arc<Job>) {
        self.identity = Some(identity.clone());
        self.job = job.clone();
    }

    /// The caller has one more exchange under way for as long as this one is not recorded.
    pub fn placed(&mut self, place: Share) {
        self.place = Some(place);
    }

    /// Of whom, if they were verified.
    pub fn subject(&self) -> Option<&str> {
        self.identity.as_ref().map(|identity| identity.subject())
    }

    pub fn peer(&self) -> &Peer {
        &self.caller.peer
    }

    pub fn granted(&mut self, grants: &[Arc<Grant>]) {
        self.grants = grants.to_vec();
    }

    pub fn shadowed(&mut self, shadow: Vec<Change>) {
        self.shadow = shadow;
    }

    /// The first difference of the shadow, for what has one record in all.
    pub fn shadow_difference(&self) -> Option<String> {
        self.shadow.iter().find(|shadow| **shadow != Change::Same).map(ToString::to_string)
    }

    pub fn count_shadow(&self) {
        for shadow in &self.shadow {
            metrics::counter!("carnet_shadow_decisions_total", "difference" => shadow.kind()).increment(1);
        }
    }

    /// One record per target; a stranger's request has one in all, whatever it names.
    pub fn of(&self, result: &Answer) -> Vec<AuditRecord> {
        let mut records: Vec<AuditRecord> = match result {
            Ok(credentials) => {
                let issued = credentials.iter().enumerate();
                issued.map(|(position, credential)| self.of_issued(position, credential)).collect()
            }
            Err(error) if self.targets.is_empty() || self.identity.is_none() => {
                vec![self.of_refusal(None, &self.targets.join(","), error)]
            }
            Err(error) => {
                let targets = self.targets.iter().enumerate();
                targets.map(|(position, target)| self.of_refusal(Some(position), target, error)).collect()
            }
        };
        for (record, shadow) in records.iter_mut().zip(&self.shadow) {
            if *shadow != Change::Same {
                record.attributes.push(("shadow", shadow.to_string()));
            }
        }
        records
    }

    fn of_issued(&self, position: usize, issued: &IssuedCredential) -> AuditRecord {
        let credential = &issued.credential;
        let acts_as = match &credential.identity {
            CloudIdentity::Google { principal, service_account } => {
                service_account.as_ref().unwrap_or(principal).clone()
            }
            CloudIdentity::Azure { client_id, .. } => client_id.to_string(),
        };
        let mut record = self.base(Some(position), issued.target(), Some(&issued.grant), Outcome::Issued);
        record.lifetime = Some(issued.granted);
        record.cached = issued.cached;
        record.attributes.push(("lifetime_bound", issued.bound.as_str().to_owned()));
        if issued.token_type() != TokenType::AccessToken {
            record.attributes.push(("issued_token_type", issued.token_type().urn().to_owned()));
        }
        if let CloudIdentity::Google { principal, service_account: Some(_) } = &credential.identity {
            record.attributes.push((GOOGLE_PRINCIPAL, principal.clone()));
        }
        record.attributes.extend(credential.upstream.iter().cloned());
        if credential.minted_by != self.exchange_id {
            record.attributes.push((UPSTREAM_EXCHANGE_ID, credential.minted_by.to_string()));
        }
        record.issued = Some(Issued {
            token_sha256: credential.token_sha256,
            first: !credential.was_handed_out(),
            scopes: issued.scopes().joined(),
            acts_as,
            issued_at: credential.issued_at,
            expires_at: credential.expires_at,
        });
        record
    }

    fn of_refusal(&self, position: Option<usize>, target: &str, error: &ExchangeError) -> AuditRecord {
        let grant = position.and_then(|position| self.grants.get(position)).map(Arc::as_ref);
        let mut record = self.base(position, target, grant, error.outcome());
        record.reason = Some(error.reason());
        let own = self.exchange_id.to_string();
        let foreign =
            |(name, id): &(&str, String)| ![UPSTREAM_EXCHANGE_ID, STS_EXCHANGE_ID].contains(name) || *id != own;
        record.attributes.extend(error.details().into_iter().filter(foreign));
        record.attributes.extend(self.refused_token.iter().flat_map(SubjectToken::unverified_trace));
        record
    }

    /// `position`: of the target in the request.
    fn base(&self, position: Option<usize>, target: &str, grant: Option<&Grant>, outcome: Outcome) -> AuditRecord {
        let identity = self.identity.as_ref();
        let mut attributes = Vec::with_capacity(ATTRIBUTES);
        attributes.extend([
            ("door", self.caller.door.as_str().to_owned()),
            ("peer", self.caller.peer.address.to_string()),
            ("user_agent", self.caller.user_agent.to_string()),
        ]);
        attributes.extend(position.and_then(|position| self.wishes.get(position)).into_iter().flatten().cloned());
        AuditRecord {
            exchange_id: self.exchange_id,
            time: self.began,
            action: self.action,
            lease_id: self.lease_id,
            outcome,
            reason: None,
            subject: identity.map(|identity| identity.subject()).unwrap_or_default().to_owned(),
            entra_token_id: identity.and_then(|identity| identity.token_id()).unwrap_or_default().to_owned(),
            client_id: identity.map(|identity| identity.client().to_string()).unwrap_or_default(),
            target: target.to_owned(),
            rule: grant.map(|grant| grant.rule().to_string()).unwrap_or_default(),
            job: self.job.clone(),
            lifetime: None,
            cached: false,
            issued: None,
            identity: identity.map(|identity| identity.facts().clone()),
            attributes,
        }
    }

    fn count(&self, outcome: Outcome, reason: &'static str, took: Duration) {
        let door = self.caller.door;
        match ISSUES.iter().find(|issues| issues.door == door && outcome == Outcome::Issued) {
            Some(issues) => {
                issues.exchanges.increment(1);
                issues.seconds.record(took);
            }
            None => {
                let labels = [("door", door.as_str()), ("outcome", outcome.as_str()), ("reason", reason)];
                metrics::counter!("carnet_exchanges_total", &labels).increment(1);
                metrics::histogram!("carnet_exchange_seconds", "outcome" => outcome.as_str()).record(took);
            }
        }
    }

    /// The metrics of an exchange that has neither a record nor a line of its own.
    pub fn count_only(&self, error: &ExchangeError, now: SystemTime) {
        self.count(error.outcome(), error.reason().as_str(), now.duration_since(self.began).unwrap_or_default());
    }

    /// The one line of this exchange, and its metrics.
    pub fn log(&self, result: &Answer, now: SystemTime) {
        let took = now.duration_since(self.began).unwrap_or_default();
        let (outcome, reason) = match result {
            Ok(_) => (Outcome::Issued, ""),
            Err(error) => (error.outcome(), error.reason().as_str()),
        };
        self.count(outcome, reason, took);
        self.count_shadow();
        let detail = result.as_ref().err().map(ExchangeError::detail).unwrap_or_default();
        let subject = self.identity.as_ref().map(|identity| identity.subject()).unwrap_or_default();
        let targets = listed(self.targets.iter().map(String::as_str));
        let rules = listed(self.grants.iter().map(|grant| grant.rule().as_str()));
        let mut exchange_id = Uuid::encode_buffer();
        let cached = result.as_ref().is_ok_and(|credentials| credentials.iter().all(|credential| credential.cached));
        tracing::info!(
            exchange.id = &*self.exchange_id.hyphenated().encode_lower(&mut exchange_id),
            exchange.outcome = outcome.as_str(),
            exchange.reason = reason,
            exchange.detail = detail,
            subject.id = subject,
            grant.rule = &*rules,
            target.names = &*targets,
            job.id = self.job.id.as_deref(),
            cache.hit = cached,
            peer.address = &*self.caller.peer.address,
            duration_us = took.as_micros() as u64,
            "{} {} for `{subject}`",
            outcome.as_str(),
            targets
        );
    }
}

/// What a request says of each of its targets, so that the rules can be asked the same question again.
fn wishes(request: &ExchangeRequest) -> Vec<Vec<(&'static str, String)>> {
    let duration = match request.tenure {
        Tenure::Opening(duration) => duration,
        Tenure::Once | Tenure::Lease { .. } => None,
    };
    let wishes = request.targets.iter().take(16).map(|target| {
        let seconds = |duration: Option<Duration>| duration.map(|duration| duration.as_secs().to_string());
        let text = |text: &str, most| (!text.is_empty()).then(|| one_line(text, most));
        let named = [
            ("requested_scopes", text(&target.scopes.join(" "), 2000)),
            ("requested_lifetime", seconds(target.lifetime)),
            ("requested_token_type", text(&target.requested_token_type, 100)),
            ("requested_audience", text(&target.audience, 1000)),
            ("requested_duration", seconds(duration)),
        ];
        named.into_iter().filter_map(|(name, wish)| Some((name, wish?))).collect::<Vec<_>>()
    });
    let wishes: Vec<_> = wishes.collect();
    if wishes.iter().all(Vec::is_empty) { Vec::new() } else { wishes }
}

/// Of an ordinary record.
const ATTRIBUTES: usize = 16;

/// By door.
static ISSUES: LazyLock<[Issues; 2]> = LazyLock::new(|| [Door::Grpc, Door::Http].map(Issues::through));

/// What is counted of exchanges through one door that end well, as nearly all do: looked up in the registry once.
struct Issues {
    door: Door,
    exchanges: Counter,
    seconds: Histogram,
}

impl Issues {
    fn through(door: Door) -> Self {
        let labels = [("door", door.as_str()), ("outcome", Outcome::Issued.as_str()), ("reason", "")];
        Self {
            door,
            exchanges: metrics::counter!("carnet_exchanges_total", &labels),
            seconds: metrics::histogram!("carnet_exchange_seconds", "outcome" => Outcome::Issued.as_str()),
        }
    }
}

/// With commas between them; most often there is one.
fn listed<'a>(mut texts: impl Iterator<Item = &'a str>) -> Cow<'a, str> {
    let first = Cow::Borrowed(texts.next().unwrap_or_default());
    texts.fold(first, |listed, text| listed + "," + text)
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({})", self.exchange_id)
    }
}

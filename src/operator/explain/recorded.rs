//! A decision that is on record: why it came out so, and whether it would again.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, SecondsFormat};
use uuid::Uuid;

use super::clouds::{presented, told};
use super::{Asked, Explained, Explainer, UNSAID_LIFE, Whom};
use crate::audit::{Filter, Records};
use crate::exchange::ExchangeError;
use crate::lease::{LeaseFilter, LeaseQuery};
use crate::policy::{Ask, ExcessScopes, Tenure};
use crate::proto;
use crate::reason::Reason;
use crate::step::Step;
use crate::subject::Identity;
use crate::target::{Job, TokenType};
use crate::trust::{self, CloudError};

impl Explainer {
    /// The recorded reason, then the same question asked of the rules that hold now.
    pub(super) async fn of_record(&self, id: Uuid) -> Result<Explained, ExchangeError> {
        let log = self.records.as_ref().ok_or_else(unknown)?;
        let records = found(log, id).await?;
        let Some(first) = records.first() else { return Err(unknown()) };
        // What operators did and what the log says of itself is for those who may read it all.
        let refused_operator = first.action.starts_with("operator.") && !first.reason.is_empty();
        if !refused_operator && ["operator.", "broker.", "audit."].iter().any(|own| first.action.starts_with(own)) {
            return Err(unknown());
        }
        let identity = self.recorded_identity(log, first).await?;
        let mut steps = vec![Step::passed("record", summary(first, &records))];
        let reason = Reason::ALL.iter().copied().find(|reason| reason.as_str() == first.reason);
        steps.extend(reason.and_then(|reason| self.why(first, reason, identity.as_deref())));
        let subject = first.subject.clone();
        let asks: Vec<Ask> = records.iter().filter_map(ask).collect();
        let Some(identity) = identity.filter(|_known| !asks.is_empty()) else {
            steps.push(Step::skipped("rules", unasked(first)));
            return Ok(Explained { allowed: false, steps, subject });
        };
        let asked = Asked { asks, job: job(first), tenure: self.tenure(first).await? };
        let accepted = self.verifier.explain_claims(&identity);
        let refused = accepted.iter().any(Step::has_failed);
        steps.extend(accepted.into_iter().filter(|step| ["tenant", "audience", "kind"].contains(&step.name.as_str())));
        let explanation = self.rules(Whom::Unverified(identity.clone()), asked.clone()).await?;
        let allowed = !refused && explanation.result.is_ok();
        let reads_claims = explanation.steps.iter().any(|step| step.detail.contains("subject.claims"));
        steps.extend(explanation.steps);
        steps.extend(self.seen_as(&identity, &explanation.result));
        steps.extend(self.running.iter().flat_map(|running| self.clouds(running, &asked)));
        steps.push(compared(
            first,
            allowed,
            if reads_claims { "; a rule reads claims that records may not keep" } else { "" },
        ));
        Ok(Explained { allowed, steps, subject })
    }

    /// By the facts that the record names; `None` where it names none, or where they are no longer kept.
    async fn recorded_identity(
        &self,
        log: &Records,
        record: &proto::AuditRecord,
    ) -> Result<Option<Arc<Identity>>, ExchangeError> {
        let digest = record.attributes.get("identity").and_then(|digest| BASE64_URL_SAFE_NO_PAD.decode(digest).ok());
        let Some(digest) = digest.and_then(|digest| <[u8; 32]>::try_from(digest).ok()) else { return Ok(None) };
        let facts = log.facts(&digest).await.map_err(ExchangeError::Audit)?;
        let expires_at = self.clock.now() + UNSAID_LIFE;
        Ok(facts.and_then(|facts| Identity::from_facts(&facts, expires_at).ok()).map(Arc::new))
    }

    async fn tenure(&self, record: &proto::AuditRecord) -> Result<Tenure, ExchangeError> {
        if record.action == "lease.open" {
            return Ok(Tenure::Opening(seconds(record, "requested_duration")));
        }
        let (Some(running), Ok(id)) = (&self.running, record.lease_id.parse::<Uuid>()) else { return Ok(Tenure::Once) };
        let filter = LeaseFilter { ids: vec![id], ..LeaseFilter::default() };
        let query = LeaseQuery { filter, states: Vec::new(), before: None, most: 1 };
        let leases = running.leases.list(&query).await.map_err(|failed| failed.error)?;
        let lease = leases.into_iter().next().map(|(lease, _end)| lease);
        Ok(lease.map_or(Tenure::Once, |lease| Tenure::Lease { proved_at: lease.proved_at, not_after: lease.not_after }))
    }

    /// What the record says of it, where the rules do not say it again.
    fn why(&self, record: &proto::AuditRecord, reason: Reason, identity: Option<&Identity>) -> Option<Step> {
        let said = |name: &str| record.attributes.get(name).map(String::as_str);
        let error = said("error").or(said("denial")).unwrap_or_default();
        if let Some(cloud) = CloudError::recorded(said) {
            return Some(self.refused_by_cloud(record, cloud, identity));
        }
        if record.action.starts_with("operator.") {
            return Some(operator(record, reason));
        }
        match reason {
            // The rules are asked again below.
            Reason::Denied | Reason::GroupsOverage => None,
            Reason::InvalidRequest | Reason::SubjectTokenExpired if identity.is_some() => None,
            Reason::InvalidRequest => Some(Step::failed("request", error, "Change the request as it says.")),
            Reason::SubjectTokenMalformed
            | Reason::SubjectTokenSignature
            | Reason::SubjectTokenExpired
            | Reason::SubjectTokenNotYetValid
            | Reason::SubjectTokenIssuer
            | Reason::SubjectTokenAudience
            | Reason::SubjectTokenTenant
            | Reason::SubjectTokenNotForUs
            | Reason::KeysUnavailable => Some(
                self.verifier
                    .explain_refusal(reason, error, &|name| said(&format!("unverified_{name}")).map(str::to_owned)),
            ),
            Reason::LeaseNotFound => Some(Step::failed("lease", "no open lease has the token that was shown", LEASE)),
            Reason::LeaseEnded => Some(Step::failed("lease", error, LEASE)),
            Reason::CloudRefused
            | Reason::CloudUnavailable
            | Reason::InsufficientClaims
            | Reason::RateLimited
            | Reason::StoreUnavailable
            | Reason::ShuttingDown
            | Reason::Internal => Some(Step::failed(
                "broker",
                format!("{reason} {error}").trim_end(),
                "Look for the exchange's id in the broker's log, and run `carnet doctor`. It may have passed since.",
            )),
        }
    }

    fn refused_by_cloud(
        &self,
        record: &proto::AuditRecord,
        error: CloudError<'_>,
        identity: Option<&Identity>,
    ) -> Step {
        let said = |name: &str| record.attributes.get(name).map(String::as_str);
        let name = said("failed_target").unwrap_or(&record.target);
        let target = self.policy.targets().find(|target| target.name.as_str() == name);
        let of_token = identity.and_then(|identity| identity.claims().get("sub")?.as_str());
        let subject = target.and_then(|target| presented(target, &record.subject, of_token));
        let rule = Some(record.rule.as_str()).filter(|rule| !rule.is_empty());
        let asked = trust::Asked { rule, subject: subject.as_deref() };
        let remedy = match target {
            Some(target) => told(&self.trust(target).remedy(error, asked)),
            None => format!("The configuration has no target {name} any more."),
        };
        let ids: Vec<String> = record
            .attributes
            .iter()
            .filter(|(name, _id)| name.ends_with("_request_id") || name.ends_with("_correlation_id"))
            .map(|(name, id)| format!("{name} {id}"))
            .collect();
        let shown = subject.map(|subject| format!("; the cloud was shown {subject}")).unwrap_or_default();
        let ids = if ids.is_empty() { String::new() } else { format!("; {}", ids.join(", ")) };
        Step::failed(format!("refused:{name}"), format!("{}{shown}{ids}", said("error").unwrap_or_default()), remedy)
    }
}

/// Those of one exchange, in the order of its targets.
async fn found(log: &Records, id: Uuid) -> Result<Vec<proto::AuditRecord>, ExchangeError> {
    let mut search = log.search(Filter { exchange_id: Some(id), ..Filter::default() });
    let mut records = Vec::new();
    while let Some(page) = search.page().await.map_err(ExchangeError::Audit)? {
        records.extend(page);
        if records.len() >= MOST_RECORDS {
            break;
        }
    }
    records.reverse();
    Ok(records)
}

fn unknown() -> ExchangeError {
    let message = "no decision is on record under this id: is it of this broker, complete, and not older than \
                   audit.retention?";
    ExchangeError::Request { field: "exchange_id".to_owned(), message: message.to_owned() }
}

/// When, what, of whom, and how it came out.
fn summary(first: &proto::AuditRecord, records: &[proto::AuditRecord]) -> String {
    let time = first.time.and_then(|time| DateTime::from_timestamp(time.seconds, time.nanos.unsigned_abs()));
    let time = time.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)).unwrap_or_default();
    let targets: Vec<&str> = records.iter().map(|record| record.target.as_str()).collect();
    let whom = if first.subject.is_empty() { "somebody who was not verified" } else { &first.subject };
    let said = |name: &str| first.attributes.get(name).map(|value| format!(", {value}")).unwrap_or_default();
    let rule = if first.rule.is_empty() { String::new() } else { format!(" under rule {}", first.rule) };
    let reason = if first.reason.is_empty() { String::new() } else { format!(" {}", first.reason) };
    format!(
        "{time}: {} of {} for {whom}: {}{reason}{rule}{}",
        first.action,
        targets.join(","),
        first.outcome,
        said("denial")
    )
}

/// Why the rules cannot be asked about it again.
fn unasked(record: &proto::AuditRecord) -> &'static str {
    match (record.action.as_str(), record.subject.is_empty()) {
        (action, _) if !DECISIONS.contains(&action) => "nothing was asked of them",
        (_, true) => {
            "not reached: the token was refused, and tokens are not on record; show it with --subject-token-file"
        }
        (_, false) => "the record does not keep who it was, by what the rules ask: show the token or its claims",
    }
}

/// Whether the answer would be another one now.
fn compared(record: &proto::AuditRecord, allowed: bool, reserve: &str) -> Step {
    let then = record.outcome == "issued" || !record.rule.is_empty();
    let shown = |allowed| if allowed { "allowed" } else { "denied" };
    let detail = match then == allowed {
        true => format!("by the rules {} then and now", shown(allowed)),
        false => {
            format!("by the rules {} then and {} now: they, or the targets, have changed", shown(then), shown(allowed))
        }
    };
    Step::passed("now", format!("{detail}{reserve}"))
}

/// What was asked for; `None` for records of anything but a decision about a target.
fn ask(record: &proto::AuditRecord) -> Option<Ask> {
    if !DECISIONS.contains(&record.action.as_str()) || record.target.is_empty() {
        return None;
    }
    let said = |name: &str| record.attributes.get(name).map(String::as_str);
    let scopes = said("requested_scopes").unwrap_or_default().split_ascii_whitespace();
    Some(Ask {
        target: record.target.clone(),
        scopes: scopes.filter_map(|scope| scope.parse().ok()).collect(),
        excess: if said("door") == Some("http") { ExcessScopes::Drop } else { ExcessScopes::Refuse },
        token_type: said("requested_token_type").and_then(|urn| urn.parse().ok()).unwrap_or(TokenType::AccessToken),
        audience: said("requested_audience").and_then(|audience| audience.parse().ok()),
        lifetime: seconds(record, "requested_lifetime"),
        beyond: None,
    })
}

fn seconds(record: &proto::AuditRecord, name: &str) -> Option<Duration> {
    record.attributes.get(name).and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs)
}

fn job(record: &proto::AuditRecord) -> Arc<Job> {
    let job = record.job.clone().unwrap_or_default();
    let some = |text: String| (!text.is_empty()).then_some(text);
    Arc::new(Job {
        id: some(job.id),
        name: some(job.name),
        expected_duration: job.expected_duration.and_then(|duration| duration.try_into().ok()),
        labels: job.labels.into_iter().collect(),
        datasets: job.datasets,
    })
}

fn operator(record: &proto::AuditRecord, reason: Reason) -> Step {
    let permission = PERMISSIONS.iter().find(|(action, _permission)| *action == record.action);
    let permission = permission.map_or("the permission", |(_action, permission)| permission);
    let object = record.subject.rsplit(':').next().unwrap_or_default();
    Step::failed(
        "operator",
        format!("{reason}: {} was called by {}", record.action, record.subject),
        format!(
            "If they may, let the configuration say so:\noperators:\n  - permissions: [{permission}]\n    subject: {{ \
             objects: [{object}] }}"
        ),
    )
}

/// Actions that ask the rules for targets.
const DECISIONS: [&str; 3] = ["exchange", "lease.open", "lease.credentials"];

/// What each of the operators' calls needs.
const PERMISSIONS: [(&str, &str); 4] = [
    ("operator.explain", "explain"),
    ("operator.audit", "audit.read"),
    ("operator.leases.read", "leases.read"),
    ("operator.leases.revoke", "leases.revoke"),
];

const LEASE: &str = "Open another lease (`carnet lease open`): a lease ends when it is closed, revoked, at its end, or without a heartbeat.";

/// One for each target, and as many as one search of an operator's can be on record for.
const MOST_RECORDS: usize = 64;

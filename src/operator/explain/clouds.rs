//! What lies behind the rules: as whom the clouds see the caller, what the broker holds for a target, and what repairs it.

use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use super::{Asked, Explainer, Running};
use crate::credential::{CloudIdentity, Held, Service};
use crate::issuer::Algorithm;
use crate::policy::{Ask, Grant, Inquiry, Refusal, Verdict};
use crate::step::Step;
use crate::subject::{Identity, VerifiedIdentity};
use crate::target::{AzureSource, GoogleSubjectToken, Platform, Sharing, Target};
use crate::trust::{self, CloudError, Remedy, Trust};

impl Explainer {
    /// What the broker has for somebody who was verified and whom the rules allow what is asked for.
    pub(super) fn held(&self, running: &Running, identity: &Arc<VerifiedIdentity>, asked: &Asked) -> Vec<Step> {
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
                let subject = shown_to(grant.target(), grant.identity());
                let asked = trust::Asked { rule: Some(grant.rule().as_str()), subject: subject.as_deref() };
                let remedy = self.trust(grant.target()).remedy(CloudError::from(&error), asked);
                let detail = format!("the last call failed: {error}; remembered for {}s more", left.as_secs());
                Step::failed(name, detail, told(&remedy))
            }
        }
    }

    /// As whom the clouds see somebody whom the rules allow the targets.
    pub(super) fn seen_as(&self, identity: &Identity, allowed: &Result<Vec<Verdict>, Refusal>) -> Vec<Step> {
        let seen = |verdict: &Verdict| {
            let target = verdict.target();
            let subject = shown_to(target, identity);
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

    pub(super) fn trust<'a>(&'a self, target: &'a Target) -> Trust<'a> {
        Trust { target, issuer: self.issuer.as_deref(), entra: &self.entra, policy: &self.policy }
    }

    /// The state of the services and of the broker's own keys, target by target.
    pub(super) fn clouds(&self, running: &Running, asked: &Asked) -> Vec<Step> {
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

fn shown_to(target: &Target, identity: &Identity) -> Option<String> {
    presented(target, identity.subject(), identity.claims().get("sub").and_then(Value::as_str))
}

/// `sub` of what the target's cloud is shown of the caller, where the broker knows it. `subject`: the caller's name in
/// records; `of_token`: `sub` of their own token.
pub(super) fn presented(target: &Target, subject: &str, of_token: Option<&str>) -> Option<String> {
    match &target.platform {
        Platform::Google(google) => match google.subject_token {
            GoogleSubjectToken::Issuer => Some(match target.sharing {
                Sharing::Subject => subject.to_owned(),
                Sharing::Target => format!("carnet:{}", target.name),
            }),
            // The usual mapping (google.subject=assertion.sub); the pool may map otherwise.
            GoogleSubjectToken::Entra => of_token.map(str::to_owned),
        },
        Platform::Azure(azure) => match &azure.source {
            AzureSource::Issuer { subject, .. } | AzureSource::OnBehalfOf { subject, .. } => Some(subject.clone()),
            AzureSource::TokenFile(_) | AzureSource::ManagedIdentity(_) => None,
        },
    }
}

/// Who acts, how, and the commands.
pub(super) fn told(remedy: &Remedy) -> String {
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

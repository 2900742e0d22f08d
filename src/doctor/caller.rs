//! The whole chain for one caller, whose token was given: verified, decided, and redeemed; what comes of it is dropped.

use std::sync::Arc;

use uuid::Uuid;

use super::targets::refused;
use super::{Examination, Finding, Severity};
use crate::credential::{Call, CredentialProvider as _, Purpose};
use crate::policy::{Ask, ExcessScopes, FLOOR, Inquiry, Question};
use crate::secret::Secret;
use crate::subject::{EntraVerifier, Groups, SubjectError, SubjectToken, VerifiedIdentity, Verifier as _};
use crate::target::{Job, Scopes, Target, TokenType};
use crate::trust::Asked;

pub(super) async fn examine(examination: &Examination<'_>, token: Secret) -> Vec<Finding> {
    let http = examination.network.http().clone();
    let verifier = EntraVerifier::new(examination.config.entra.clone(), http, examination.clock.clone());
    let token = match SubjectToken::new(token) {
        Ok(token) => token,
        Err(error) => return vec![refusal(examination, &error)],
    };
    let identity = match verifier.verify(&token).await {
        Ok(identity) => identity,
        Err(error) => return vec![refusal(examination, &error)],
    };
    let seen = format!("{} ({}), by {}", identity.subject(), identity.kind().as_str(), identity.client());
    let mut findings = vec![Finding::new(Severity::Ok, "subject_token", "caller", seen)];
    if matches!(identity.groups(), Groups::Overage) {
        let seen = "Entra left the groups out of the token, being too many: rules by group admit this caller nowhere";
        let advice = "have the application emit app roles, or only the groups that are assigned to it \
                      (groupMembershipClaims: ApplicationGroup)";
        let command = "az ad app update --id \"$BROKER_APPLICATION\" --set groupMembershipClaims=ApplicationGroup";
        findings.push(Finding::new(Severity::Warning, "GROUPS_OVERAGE", "caller", seen).repair(advice, &[command]));
    }
    for target in examination.targets() {
        findings.push(try_target(examination, target, &identity, &token).await);
    }
    findings
}

/// What the broker would answer, and the cloud after it.
async fn try_target(
    examination: &Examination<'_>,
    target: &Target,
    identity: &Arc<VerifiedIdentity>,
    token: &SubjectToken,
) -> Finding {
    let about = format!("caller, target {}", target.name);
    let ask = Ask {
        target: target.name.to_string(),
        scopes: Scopes::default(),
        excess: ExcessScopes::Refuse,
        token_type: TokenType::AccessToken,
        audience: None,
        // As short as it can be had: nobody uses it.
        lifetime: Some(FLOOR),
        beyond: None,
    };
    let (job, now) = (Arc::new(Job::default()), examination.clock.now());
    let policy = &examination.config.policy;
    let grant = match policy.decide(Inquiry::once(identity, &job, now), &ask) {
        Ok(grant) => Arc::new(grant),
        Err(refusal) => {
            let explanation = policy.explain(Question::once(identity, &job, now), &[ask]);
            let failed: Vec<_> = explanation.steps.iter().filter(|step| step.has_failed()).collect();
            let steps: Vec<String> = failed.iter().map(|step| format!("{}: {}", step.name, step.detail)).collect();
            let seen = format!("{refusal}: {}", steps.join("; "));
            let remedies: Vec<&str> = failed.iter().map(|step| step.remedy.as_str()).collect();
            // With a job of its own it may be another answer, and others may be allowed.
            return Finding::new(Severity::Note, "denied", about, seen).repair(remedies.join("; "), &[]);
        }
    };
    let call = Call {
        grant: grant.clone(),
        subject_token: Some(token.clone()),
        exchange_id: Uuid::now_v7(),
        purpose: Purpose::Probe,
    };
    match examination.clouds.issue(&call).await {
        Ok(credential) => {
            let life = credential.expires_at.duration_since(credential.issued_at).unwrap_or_default();
            let seen = format!("a credential of {}s would be issued, under rule {}", life.as_secs(), grant.rule());
            Finding::new(Severity::Ok, "caller", about, seen)
        }
        Err(error) => {
            let asked = Asked { rule: Some(grant.rule().as_str()), subject: Some(identity.subject()) };
            Finding { about, ..refused(examination, target, &error, asked, "") }
        }
    }
}

/// Why the token is refused, and what its owner or the application's can do.
fn refusal(examination: &Examination<'_>, error: &SubjectError) -> Finding {
    let entra = &examination.config.entra;
    let audience = entra.audiences.first().map(String::as_str).unwrap_or_default();
    let ask = format!("az account get-access-token --scope '{audience}/.default'");
    let finding = Finding::new(Severity::Error, error.reason().as_str(), "caller", error.to_string());
    match error {
        SubjectError::Audience | SubjectError::NotForUs(_) => {
            let advice = format!("the audiences that are taken: {}", entra.audiences.join(", "));
            finding.repair(advice, &[&ask])
        }
        SubjectError::Tenant => {
            let tenants: Vec<String> = entra.tenants.iter().map(Uuid::to_string).collect();
            let advice = format!(
                "the tenants that are taken: {}; add the caller's to entra.tenants if it is one of yours",
                tenants.join(", ")
            );
            finding.repair(advice, &[])
        }
        SubjectError::Issuer => {
            let advice = "a token's version is its application's (requestedAccessTokenVersion), and v1.0 and v2.0 tokens have \
                          other issuers and keys: see that nothing between Entra and here changed it";
            finding.repair(
                advice,
                &["az ad app show --id \"$BROKER_APPLICATION\" --query api.requestedAccessTokenVersion"],
            )
        }
        SubjectError::Expired(_) | SubjectError::NotYetValid(_) => {
            finding.repair("get a fresh token, and compare the clocks", &[&ask, "timedatectl timesync-status"])
        }
        SubjectError::Malformed(_) | SubjectError::Signature(_) | SubjectError::KeysUnavailable { .. } => {
            finding.repair("", &[&ask])
        }
    }
}

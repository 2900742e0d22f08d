//! A tenant's metadata, as the broker verifies tokens by it.

use std::time::Duration;

use uuid::Uuid;

use super::network::unreachable;
use super::{Examination, Finding, Severity};
use crate::subject::{FetchError, Published, published};

pub(super) async fn examine(examination: &Examination<'_>, tenant: Uuid) -> Vec<Finding> {
    let authority = &examination.config.entra.authority;
    let found = tokio::time::timeout(DEADLINE, published(examination.network.http(), authority, tenant)).await;
    let about = format!("tenant {tenant}");
    let Ok(found) = found else {
        let seen = format!("{authority} does not answer within {}s", DEADLINE.as_secs());
        return vec![Finding::new(Severity::Error, "unreachable", about, seen)];
    };
    let mut findings: Vec<Finding> = Vec::new();
    for Published { version, found } in found {
        let finding = judge(examination, tenant, version, found);
        // What is wrong with both is said once.
        if findings.iter().all(|other| (&other.code, &other.advice) != (&finding.code, &finding.advice)) {
            findings.push(finding);
        }
    }
    let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok);
    findings.retain(|finding| worst == Severity::Ok || finding.severity != Severity::Ok);
    findings.truncate(if worst == Severity::Ok { 1 } else { findings.len() });
    findings
}

fn judge(
    examination: &Examination<'_>,
    tenant: Uuid,
    version: &str,
    found: Result<(String, usize), FetchError>,
) -> Finding {
    let (about, authority) = (format!("tenant {tenant}"), &examination.config.entra.authority);
    let error = |code, seen: String| Finding::new(Severity::Error, code, about.clone(), seen);
    let base = format!("{authority}/{tenant}");
    let base = if version == "v2.0" { format!("{base}/v2.0") } else { base };
    let document = format!("{base}/.well-known/openid-configuration");
    let look = format!("curl -sS {document}");
    match found {
        Ok((issuer, keys)) => {
            let expected = format!("{authority}/{tenant}/v2.0");
            if version == "v2.0" && issuer != expected {
                let advice = "entra.authority is not the cloud's own host: tokens carry the issuer of their cloud";
                return error("entra_issuer", format!("its issuer is {issuer}, not {expected}"))
                    .repair(advice, &[&look]);
            }
            Finding::new(Severity::Ok, "tenant", about, format!("known, with {keys} signing keys"))
        }
        Err(FetchError::Status { status: 400 | 404, .. }) => {
            let advice = format!(
                "entra.tenants names a tenant that {authority} does not have: correct the id, or entra.authority for another \
                 cloud"
            );
            error("entra_tenant", format!("{authority} knows no such tenant")).repair(advice, &[&look])
        }
        Err(FetchError::Http { source, .. }) => unreachable(&about, &document, &source),
        Err(FetchError::ForeignIssuer(issuer)) => {
            let advice = "entra.authority leads to somebody else's metadata";
            error("entra_issuer", format!("its {version} metadata has the issuer {issuer}")).repair(advice, &[&look])
        }
        Err(other) => {
            error("entra_metadata", format!("its {version} metadata cannot be used: {other}")).repair("", &[&look])
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(25);

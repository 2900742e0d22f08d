//! Google's Cloud Audit Logs: the exchange at the Security Token Service, the impersonation, and the credential's use.

use super::quote::{logging, shell};
use super::{Facts, Language, Query, Window, attribute};
use crate::credential::{GOOGLE_PRINCIPAL, Hop};
use crate::proto::AuditRecord;
use crate::target::TokenType;

pub(super) fn queries(record: &AuditRecord, facts: &Facts) -> Vec<Query> {
    let acts_as = attribute(record, "acts_as");
    let account = acts_as.filter(|name| name.contains('@') && !name.starts_with("principal:"));
    let principal = attribute(record, GOOGLE_PRINCIPAL).or(acts_as.filter(|name| name.starts_with("principal:")));
    let of_type = |token_type: TokenType| attribute(record, "issued_token_type") == Some(token_type.urn());
    let refused_by = attribute(record, "cloud_hop");
    let mut queries = Vec::new();
    if of_type(TokenType::Jwt) {
        // The caller redeems it: Google's log shows the caller's user agent, not the broker's.
        queries.extend(principal.map(|principal| redeemed(principal, facts)));
    } else {
        queries.push(exchanged(principal, facts));
        if account.is_some() || refused_by == Some(Hop::GoogleIam.as_str()) {
            let method = if of_type(TokenType::IdToken) { "GenerateIdToken" } else { "GenerateAccessToken" };
            queries.push(impersonated(method, account, principal, facts));
        }
    }
    if record.outcome == "issued" && !of_type(TokenType::IdToken) {
        queries.extend(used(account, principal, facts));
    }
    queries
}

/// Google keeps the user agent of both calls; the reason of the second for certain.
fn exchanged(principal: Option<&str>, facts: &Facts) -> Query {
    let filter = all([
        field("protoPayload.serviceName", "sts.googleapis.com"),
        field("protoPayload.methodName", "google.identity.sts.v1.SecurityTokenService.ExchangeToken"),
        marked(&facts.sts),
        within(&facts.call()),
    ]);
    Query {
        finds: "the exchange at Google's Security Token Service",
        needs: STS_LOGS,
        language: Language::Gcloud,
        text: read(&filter, principal.and_then(project_of_pool)),
    }
}

fn redeemed(principal: &str, facts: &Facts) -> Query {
    // In this log the principal is the assertion's own subject.
    let subject = principal.split_once("/subject/").map_or(principal, |(_pool, subject)| subject);
    let filter = all([
        field("protoPayload.methodName", "google.identity.sts.v1.SecurityTokenService.ExchangeToken"),
        field("protoPayload.authenticationInfo.principalSubject", subject),
        within(&facts.life()),
    ]);
    Query {
        finds: "exchanges of the assertion that was handed out, at Google's Security Token Service",
        needs: STS_LOGS,
        language: Language::Gcloud,
        text: read(&filter, project_of_pool(principal)),
    }
}

fn impersonated(method: &str, account: Option<&str>, principal: Option<&str>, facts: &Facts) -> Query {
    let mut conditions = vec![
        field("protoPayload.serviceName", "iamcredentials.googleapis.com"),
        format!("protoPayload.methodName:{}", logging(method)),
        marked(&facts.upstream),
    ];
    conditions.extend(principal.map(|principal| field("protoPayload.authenticationInfo.principalSubject", principal)));
    conditions.push(within(&facts.call()));
    Query {
        finds: "the impersonation of the service account",
        needs: "Data Access audit logs (Admin Read) of the Identity and Access Management (IAM) API in the service \
                account's project",
        language: Language::Gcloud,
        text: read(&all(conditions), account.and_then(project_of_account)),
    }
}

/// Who stands behind a service account is written in one of three forms: by `principalSubject`, within
/// `firstPartyPrincipal`, or as an entry without any name.
fn used(account: Option<&str>, principal: Option<&str>, facts: &Facts) -> Option<Query> {
    let info = "protoPayload.authenticationInfo";
    let (who, project) = match (account, principal) {
        (None, None) => return None,
        (None, Some(principal)) => (field(&format!("{info}.principalSubject"), principal), project_of_pool(principal)),
        (Some(account), principal) => {
            let delegation = format!("{info}.serviceAccountDelegationInfo");
            let first_party = format!("{delegation}.firstPartyPrincipal");
            let named = principal.map(|principal| {
                any([
                    field(&format!("{delegation}.principalSubject"), principal),
                    field(&format!("{first_party}.principalSubject"), principal),
                    field(&format!("{first_party}.principalEmail"), principal),
                    format!("(NOT {delegation}.principalSubject:* AND NOT {first_party}:*)"),
                ])
            });
            let email = field(&format!("{info}.principalEmail"), account);
            (all([email].into_iter().chain(named)), project_of_account(account))
        }
    };
    let filter = all([format!("logName:{}", logging("cloudaudit.googleapis.com")), who, within(&facts.life())]);
    Some(Query {
        finds: "what was done with it; take the project of what it was used on, where that is another",
        needs: "Data Access audit logs (Data Read, Data Write) of the services that were used, such as Cloud Storage and \
                Vertex AI",
        language: Language::Gcloud,
        text: read(&filter, project),
    })
}

fn read(filter: &str, project: Option<&str>) -> String {
    let project = project.map_or_else(|| "PROJECT_ID".to_owned(), shell);
    format!("gcloud logging read {} --project={project} --format=json", shell(filter))
}

fn field(name: &str, value: &str) -> String {
    format!("{name}={}", logging(value))
}

/// Which exchange a call was made for.
fn marked(exchange_id: &str) -> String {
    let mark = logging(&format!("exchange={exchange_id}"));
    let metadata = "protoPayload.requestMetadata";
    format!("({metadata}.callerSuppliedUserAgent:{mark} OR {metadata}.requestAttributes.reason:{mark})")
}

fn within(window: &Window) -> String {
    let time = |time: jiff::Timestamp| logging(&time.to_string());
    format!("timestamp>={} AND timestamp<={}", time(window.from), time(window.to))
}

fn all(conditions: impl IntoIterator<Item = String>) -> String {
    conditions.into_iter().collect::<Vec<_>>().join(" AND ")
}

fn any(conditions: impl IntoIterator<Item = String>) -> String {
    format!("({})", conditions.into_iter().collect::<Vec<_>>().join(" OR "))
}

/// The number in `principal://iam.googleapis.com/projects/{number}/...`.
fn project_of_pool(principal: &str) -> Option<&str> {
    let number = principal.split_once("/projects/")?.1.split('/').next()?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(number)
}

/// Of `{name}@{project}.iam.gserviceaccount.com`; Google's own default accounts name a number instead.
fn project_of_account(account: &str) -> Option<&str> {
    let (name, domain) = account.split_once('@')?;
    match domain.strip_suffix(".iam.gserviceaccount.com") {
        Some(project) if !project.contains('.') => Some(project),
        _ => name.strip_suffix("-compute").filter(|_name| domain == "developer.gserviceaccount.com"),
    }
}

const STS_LOGS: &str = "Data Access audit logs (Admin Read) of the Security Token Service API in the project of the workload identity pool";

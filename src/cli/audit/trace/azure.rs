//! Entra's sign-in logs and Azure's own: the sign-in behind the subject token, the broker's call, and the token's use.

use jiff::SignedDuration;

use super::quote::kql;
use super::{Facts, Language, Query, Window, attribute};
use crate::credential::{AZURE_OBJECT_ID, AZURE_TOKEN_ID, ENTRA_CORRELATION_ID};
use crate::proto::AuditRecord;

/// The sign-in from which the caller has the token that it showed.
pub(super) fn subject_token_sign_in(record: &AuditRecord, facts: &Facts) -> Option<Query> {
    let uti = Some(record.entra_token_id.as_str()).filter(|uti| !uti.is_empty())?;
    let shown = record.time.and_then(|time| jiff::Timestamp::new(time.seconds, time.nanos).ok());
    let shown = shown.unwrap_or(facts.asked_at);
    let window = Window::stretched(shown, shown, LONGEST_TOKEN);
    Some(Query {
        finds: "the caller's sign-in at Entra, by the id of the token that it showed",
        needs: SIGN_IN_LOGS,
        language: Language::Kql,
        text: format!(
            "union isfuzzy=true withsource=LogTable SigninLogs, AADNonInteractiveUserSignInLogs, \
             AADServicePrincipalSignInLogs, AADManagedIdentitySignInLogs\n| where {}\n| where UniqueTokenIdentifier == {}",
            between(&window),
            kql(uti)
        ),
    })
}

pub(super) fn queries(record: &AuditRecord, facts: &Facts) -> Vec<Query> {
    let uti = attribute(record, AZURE_TOKEN_ID);
    [Some(sign_in(record, uti, facts)), used(record, uti, facts)].into_iter().flatten().collect()
}

/// Entra writes several sign-ins of one identity into one row, so the token's own id may be missing.
fn sign_in(record: &AuditRecord, uti: Option<&str>, facts: &Facts) -> Query {
    let correlation = attribute(record, ENTRA_CORRELATION_ID).unwrap_or(&facts.upstream);
    let by_token = uti.map(|uti| format!(" or UniqueTokenIdentifier == {}", kql(uti))).unwrap_or_default();
    Query {
        finds: "the broker's own sign-in at Entra, as the target's identity",
        needs: SIGN_IN_LOGS,
        language: Language::Kql,
        text: format!(
            "union isfuzzy=true withsource=LogTable AADManagedIdentitySignInLogs, AADServicePrincipalSignInLogs, \
             AADNonInteractiveUserSignInLogs\n| where {}\n| where CorrelationId == {}{by_token}",
            between(&facts.call()),
            kql(correlation)
        ),
    }
}

fn used(record: &AuditRecord, uti: Option<&str>, facts: &Facts) -> Option<Query> {
    let object = attribute(record, AZURE_OBJECT_ID);
    let by_token = uti.map(|uti| {
        let uti = kql(uti);
        format!(
            "tostring(parse_json(tostring(column_ifexists(\"Claims\", \"\"))).uti) == {uti} or \
                 column_ifexists(\"SignInActivityId\", \"\") == {uti}"
        )
    });
    let by_object = object.map(|object| format!("column_ifexists(\"RequesterObjectId\", \"\") == {}", kql(object)));
    let conditions: Vec<String> = by_token.into_iter().chain(by_object).collect();
    (!conditions.is_empty() && record.outcome == "issued").then(|| Query {
        finds: "what was done with it: Azure Resource Manager and Microsoft Graph by the token's id, storage by the \
                identity's object id",
        needs: "diagnostic settings that send the subscription's activity log, Microsoft Graph's activity logs and the \
                resources' own logs to the Log Analytics workspace",
        language: Language::Kql,
        text: format!(
            "union isfuzzy=true withsource=LogTable AzureActivity, MicrosoftGraphActivityLogs, StorageBlobLogs, \
             StorageFileLogs, StorageQueueLogs, StorageTableLogs\n| where {}\n| where {}",
            between(&facts.life()),
            conditions.join(" or ")
        ),
    })
}

fn between(window: &Window) -> String {
    format!("TimeGenerated between (datetime({}) .. datetime({}))", window.from, window.to)
}

const SIGN_IN_LOGS: &str = "a diagnostic setting of Microsoft Entra ID that sends SignInLogs, NonInteractiveUserSignInLogs, \
                            ServicePrincipalSignInLogs and ManagedIdentitySignInLogs to a Log Analytics workspace \
                            (Entra ID P1 or P2)";

/// Entra's longest tokens live 28 h, and may be shown in their last minute.
const LONGEST_TOKEN: SignedDuration = SignedDuration::from_hours(29);

//! Credentials for people, programs or a shell.

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::proto::Credential;
use crate::proto::credential::Identity;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Everything, as one JSON object
    Json,
    /// The token alone; with one target only
    Token,
    /// Lines for `eval` in a shell: the variables that the clouds' tools read
    Env,
}

pub(super) fn json(credential: &Credential) -> Value {
    let lifetime = credential.lifetime.unwrap_or_default();
    json!({
        "target": credential.target,
        "token": credential.token,
        "issued_token_type": credential.issued_token_type,
        "token_type": credential.token_type,
        "scopes": credential.scopes,
        "expires_at": rfc3339(credential.expires_at),
        "refresh_after": rfc3339(credential.refresh_after),
        "lifetime": {
            "requested_seconds": seconds(lifetime.requested),
            "granted_seconds": seconds(lifetime.granted),
            "bound": bound(credential),
        },
        "cached": credential.cached,
        "identity": match &credential.identity {
            Some(Identity::Google(google)) => json!({"google": {"principal": google.principal, "service_account": google.service_account}}),
            Some(Identity::Azure(azure)) => json!({"azure": {"tenant_id": azure.tenant_id, "client_id": azure.client_id}}),
            None => Value::Null,
        },
    })
}

/// gcloud and Terraform read Google's; Azure's tools read none, so its name is ours.
pub(super) fn variables(credential: &Credential) -> String {
    let names: &[&str] = match &credential.identity {
        Some(Identity::Google(_)) => &["CLOUDSDK_AUTH_ACCESS_TOKEN", "GOOGLE_OAUTH_ACCESS_TOKEN"],
        Some(Identity::Azure(_)) | None => &["AZURE_ACCESS_TOKEN"],
    };
    let token = credential.token.replace('\'', r"'\''");
    names.iter().map(|name| format!("export {name}='{token}'")).collect::<Vec<_>>().join("\n")
}

/// The bound as the contract names it, without its prefix.
pub(super) fn bound(credential: &Credential) -> String {
    let bound = credential.lifetime.unwrap_or_default().bound();
    bound.as_str_name().trim_start_matches("LIFETIME_BOUND_").to_ascii_lowercase()
}

pub(super) fn seconds(duration: Option<prost_types::Duration>) -> Option<i64> {
    duration.map(|duration| duration.seconds)
}

pub(super) fn rfc3339(time: Option<prost_types::Timestamp>) -> Option<String> {
    let time = time?;
    jiff::Timestamp::from_second(time.seconds).ok().map(|time| time.to_string())
}

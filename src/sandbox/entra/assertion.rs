//! Checks a federated client assertion as Entra does: whom it names, whether that is trusted, then its signature and times.

use serde_json::Value;

use super::directory::{Directory, Published};
use super::refusal::Refusal;
use super::registry::{
    FederatedCredential, Identity, IdentityKind, TOKEN_EXCHANGE, TOKEN_EXCHANGE_ID, TokenVersion, Trusted,
};
use crate::clock::unix_seconds;
use crate::sandbox::issuer_keys::IssuerUnreachable;
use crate::sandbox::keys::UnverifiedJwt;
use crate::sandbox::wire::timestamp;

pub(super) async fn check(directory: &Directory, identity: &Identity, assertion: &str) -> Result<(), Refusal> {
    let malformed = || Refusal::new(50027, "JWT token is invalid or malformed.");
    let assertion = UnverifiedJwt::parse(assertion).ok_or_else(malformed)?;
    let issuer = assertion.claim("iss").ok_or_else(malformed)?;
    let keys = if is_entra(directory, issuer) {
        refuse_entra_issued(directory, identity, &assertion, issuer)?;
        matching(directory, identity, &assertion, issuer)?;
        own_keys(directory, identity)
    } else {
        matching(directory, identity, &assertion, issuer)?;
        let keys = directory.issuer_keys().of(issuer).await;
        keys.map_err(|unreachable| match unreachable {
            IssuerUnreachable::Discovery => Refusal::new(90061, EXTERNAL_FAILED),
            IssuerUnreachable::Keys => Refusal::new(50166, EXTERNAL_FAILED),
        })?
    };
    signature(&assertion, issuer, &keys)?;
    lifetime(&assertion)?;
    validity(directory, &assertion)
}

/// Issuer, then subject, then audience; the first that no credential has is named. Byte for byte, no wildcards.
fn matching(
    directory: &Directory,
    identity: &Identity,
    assertion: &UnverifiedJwt<'_>,
    issuer: &str,
) -> Result<(), Refusal> {
    let subject = assertion.claim("sub").unwrap_or_default();
    let audiences = exchange_audiences(directory, assertion, issuer);
    let now = directory.now();
    let is_visible = |trusted: &&Trusted| trusted.visible_from <= now;
    let fits = |trusted: &Trusted| fits(&trusted.credential, issuer, subject, &audiences);
    let (visible, pending): (Vec<&Trusted>, Vec<&Trusted>) = identity.credentials.iter().partition(is_visible);
    if visible.iter().any(|trusted| fits(trusted)) {
        return Ok(());
    }
    if pending.iter().any(|trusted| fits(trusted)) {
        return Err(Refusal::new(
            70021,
            format!(
                "No matching federated identity record found for presented assertion. Assertion Issuer: '{issuer}'. \
                 Assertion Subject: '{subject}'. Assertion Audience: '{}'. {LEARN_MORE}",
                audiences.join(" ")
            ),
        ));
    }
    let same_issuer = |trusted: &&&Trusted| trusted.credential.issuer == issuer;
    let of_issuer: Vec<_> = visible.iter().filter(same_issuer).collect();
    if of_issuer.is_empty() {
        return Err(no_match(700_211, "issuer", issuer));
    }
    let same_subject = |trusted: &&&Trusted| trusted.credential.subject == subject;
    if !of_issuer.into_iter().any(|trusted| same_subject(&trusted)) {
        return Err(no_match(700_213, "subject", subject));
    }
    Err(no_match(700_212, "audience", &audiences.join(" ")))
}

fn fits(trusted: &FederatedCredential, issuer: &str, subject: &str, audiences: &[&str]) -> bool {
    trusted.issuer == issuer && trusted.subject == subject && audiences.contains(&trusted.audience.as_str())
}

fn no_match(code: u32, what: &str, value: &str) -> Refusal {
    Refusal::new(
        code,
        format!(
            "No matching federated identity record found for presented assertion {what} '{value}'. Check your \
             federated identity credential Subject, Audience and Issuer against the presented assertion. {LEARN_MORE}"
        ),
    )
}

fn signature(assertion: &UnverifiedJwt<'_>, issuer: &str, keys: &[Value]) -> Result<(), Refusal> {
    // Entra keeps the first hundred keys of an issuer.
    let keys = keys.get(..MAX_KEYS).unwrap_or(keys);
    let invalid = |reason: &str| {
        let text = format!("Client assertion failed signature validation. [Reason - {reason}]");
        Err(Refusal::new(700_027, text))
    };
    if assertion.header("alg") != Some("RS256") {
        return invalid("The algorithm is not RS256.");
    }
    let Some(kid) = assertion.header("kid") else {
        return invalid("The key was not found.");
    };
    let Some(key) = assertion.key_in(keys) else {
        return Err(Refusal::new(
            7_000_272,
            format!(
                "The certificate with identifier {kid} used to sign the federated credential could not be found in \
                 the metadata of identity provider {issuer}. Please validate that your Identity Provider's metadata \
                 exposes the key used to sign the incoming token."
            ),
        ));
    };
    if !assertion.is_signed_by(key) {
        return invalid("The provided signature value did not match the expected signature value.");
    }
    Ok(())
}

/// A missing `iat` counts as 0, which makes the life too long: seen in a thread (azure-docs#86915).
fn lifetime(assertion: &UnverifiedJwt<'_>) -> Result<(), Refusal> {
    let issued = assertion.seconds("iat").unwrap_or_default();
    let expires = assertion.seconds("exp").unwrap_or_default();
    if expires.saturating_sub(issued) > MAX_LIFETIME {
        return Err(Refusal::new(
            70023,
            format!(
                "External OIDC Provider token must have a lifetime of less than or equal to 1.01:00:00. Token issued \
                 at {issued}. Token expires on {expires}."
            ),
        ));
    }
    Ok(())
}

fn validity(directory: &Directory, assertion: &UnverifiedJwt<'_>) -> Result<(), Refusal> {
    let now = unix_seconds(directory.now());
    let from = assertion.seconds("nbf").or(assertion.seconds("iat"));
    let (from, until) = (from.unwrap_or_default(), assertion.seconds("exp").unwrap_or_default());
    if (from..until).contains(&now) {
        return Ok(());
    }
    let show = |seconds| {
        let time = crate::clock::from_unix_seconds(seconds);
        timestamp(time.unwrap_or(std::time::UNIX_EPOCH), "%Y-%m-%dT%H:%M:%S.0000000Z")
    };
    Err(Refusal::new(
        700_024,
        format!(
            "Client assertion is not within its valid time range. Current time: {}, assertion valid from {}, expiry \
             time of assertion {}. Review the documentation at \
             https://learn.microsoft.com/entra/identity-platform/certificate-credentials .",
            show(now),
            show(from),
            show(until)
        ),
    ))
}

/// Entra's own tokens are no federated assertions, but for one case: a user-assigned managed identity that stands in
/// for an app registration of its own tenant.
fn refuse_entra_issued(
    directory: &Directory,
    identity: &Identity,
    assertion: &UnverifiedJwt<'_>,
    issuer: &str,
) -> Result<(), Refusal> {
    let subject = assertion.claim("sub").unwrap_or_default();
    let principal = directory.identity_of_principal(&identity.tenant, subject);
    let is_managed = principal.is_some_and(|found| found.kind == IdentityKind::ManagedIdentity);
    let is_same_tenant = issuer == directory.issuer(&identity.tenant, TokenVersion::V2);
    if identity.kind == IdentityKind::App && is_managed && is_same_tenant {
        return Ok(());
    }
    Err(Refusal::new(700_222, "AAD-issued tokens may not be used for federated identity flows."))
}

fn is_entra(directory: &Directory, issuer: &str) -> bool {
    if issuer.starts_with(&format!("{}/", directory.authority())) {
        return true;
    }
    let host = url::Url::parse(issuer).ok();
    let host = host.as_ref().and_then(url::Url::host_str).unwrap_or_default();
    let is_under = |domain: &str| {
        let rest = host.strip_suffix(domain);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    ENTRA_DOMAINS.into_iter().any(is_under)
}

/// The audience of a token for the exchange resource is a GUID, while credentials name the resource by its URI.
fn exchange_audiences<'a>(directory: &Directory, assertion: &'a UnverifiedJwt<'_>, issuer: &str) -> Vec<&'a str> {
    let mut audiences = assertion.audiences();
    if is_entra(directory, issuer) && audiences.contains(&TOKEN_EXCHANGE_ID) {
        audiences.push(TOKEN_EXCHANGE);
    }
    audiences
}

fn own_keys(directory: &Directory, identity: &Identity) -> Vec<Value> {
    let tenant = directory.tenant(&identity.tenant).unwrap_or_default();
    let own = tenant.published.iter().filter_map(|key| match key {
        Published::Own(key) => Some(key.jwk()),
        Published::Foreign(_) => None,
    });
    own.collect()
}

const EXTERNAL_FAILED: &str = "Request to External OIDC endpoint failed.";
const LEARN_MORE: &str = "https://learn.microsoft.com/entra/workload-id/workload-identity-federation";
const ENTRA_DOMAINS: [&str; 4] =
    ["login.microsoftonline.com", "login.windows.net", "login.microsoft.com", "sts.windows.net"];
const MAX_KEYS: usize = 100;
const MAX_LIFETIME: u64 = 25 * 3600;

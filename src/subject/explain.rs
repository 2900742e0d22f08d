//! A token's verification step by step, for those who may see it: what was seen, what is wanted, what to change.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::entra::{EntraVerifier, MICROSOFT_AUDIENCES, check_issuer, same_audience};
use super::jwks::{KeyError, VerificationKey, Version};
use super::token::{Claims, UnverifiedToken};
use super::{Groups, Identity, SubjectError, SubjectToken, VerifiedIdentity};
use crate::clock::from_unix_seconds;
use crate::step::Step;
use crate::target;

/// What became of a token at each check that an exchange makes of it.
#[derive(Debug)]
pub struct Examination {
    pub steps: Vec<Step>,
    /// As [`verify`](super::Verifier::verify) says it.
    pub result: Result<Arc<VerifiedIdentity>, SubjectError>,
}

/// In the order in which a token is checked.
const CHECKS: [&str; 7] = ["subject_token", "tenant", "signature", "issuer", "time", "audience", "kind"];

impl EntraVerifier {
    /// The checks of [`verify`](super::Verifier::verify), each by the same function, and nothing of it remembered.
    /// Keys are fetched as for an exchange: for tenants that are configured, and no oftener.
    pub(super) async fn examination(&self, token: &SubjectToken) -> Examination {
        let mut steps = Vec::new();
        // The walk only tells: who somebody is comes from the one place that decides it.
        let _told = self.walk(token, &mut steps).await;
        let result = self.examine(token).await.map(|verdict| verdict.identity);
        let said = unverified(token);
        for check in CHECKS.into_iter().skip(steps.len()) {
            steps.push(Step::skipped(check, said_of(check, &said)));
        }
        Examination { steps, result }
    }

    async fn walk(&self, token: &SubjectToken, steps: &mut Vec<Step>) -> Result<(), SubjectError> {
        let parsed = UnverifiedToken::parse(token.text.expose())
            .and_then(|unverified| Ok((unverified.unverified_claims()?, unverified)));
        let (claimed, unverified) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                steps.push(Step::failed("subject_token", error.to_string(), self.form_remedy(&error)));
                return Err(error);
            }
        };
        let version = Version::of_issuer(&claimed.iss);
        steps.push(Step::passed(
            "subject_token",
            format!("a {} token, signed RS256 by key {}", named(version), unverified.kid),
        ));

        let tenant = target::guid(&claimed.tid).ok().filter(|tenant| self.rules.settings.tenants.contains(tenant));
        let Some(tenant) = tenant else {
            steps.push(self.tenant_step(&claimed.tid));
            return Err(SubjectError::Tenant);
        };
        steps.push(self.tenant_step(&tenant));

        let (key, set_issuer) = match self.keys.key(tenant, version, &unverified.kid).await {
            Ok(found) => found,
            Err(error) => {
                steps.push(self.key_step(&error, tenant, version, &unverified.kid));
                return Err(error.into());
            }
        };
        let state = self.key_state(tenant, version);
        if !key.verifies(unverified.signed, unverified.signature) {
            let detail = format!("it does not match key {}; {state}", unverified.kid);
            steps.push(Step::failed("signature", detail, CHANGED));
            return Err(SubjectError::Signature("it does not match the tenant's key"));
        }
        let claims = match unverified.claims() {
            Ok(claims) => claims,
            Err(error) => {
                steps.push(Step::failed("signature", error.to_string(), CHANGED));
                return Err(error);
            }
        };
        steps.push(Step::passed("signature", format!("made with key {}; {state}", unverified.kid)));
        self.claims_steps(claims, version, (key, set_issuer), steps)
    }

    /// What follows is signed: each check is made, whatever becomes of the others. The first that fails is the answer.
    fn claims_steps(
        &self,
        claims: Claims,
        version: Version,
        (key, set_issuer): (Arc<VerificationKey>, String),
        steps: &mut Vec<Step>,
    ) -> Result<(), SubjectError> {
        let tenant =
            target::guid(claims.text("tid", "`tid` is not one text")?).map_err(|_not_a_guid| SubjectError::Tenant)?;
        let seen = |name: &str| claims.0.get(name).map_or_else(|| "none".to_owned(), Value::to_string);
        let key_issuer = key.issuer.as_deref().unwrap_or(&set_issuer);
        let issuer = check_issuer(&claims, tenant, version, key_issuer);
        let detail =
            format!("iss {}, ver {}, tid {}; the key's issuer is {key_issuer}", seen("iss"), seen("ver"), seen("tid"));
        steps.push(outcome("issuer", &issuer, &detail, || ISSUER.to_owned()));

        let times = self.rules.check_times(&claims);
        let detail = self.times(&claims);
        steps.push(outcome("time", &times, &detail, || time_remedy(times.as_ref().err())));

        let audience = self.rules.check_audience(&claims);
        let detail = format!("aud {}; accepted are {}", seen("aud"), listed(&self.rules.settings.audiences));
        steps.push(outcome("audience", &audience, &detail, || self.audience_remedy(&claims, version)));

        let (azp, idtyp) = (if version == Version::V1 { "appid" } else { "azp" }, seen("idtyp"));
        let detail = format!(
            "idtyp {idtyp}, scp {}, sub {}, oid {}, {azp} {}",
            seen("scp"),
            seen("sub"),
            seen("oid"),
            seen(azp)
        );
        let expires_at = times.as_ref().copied().unwrap_or(self.rules.clock.now());
        let identity = Identity::read(claims, tenant, version, expires_at);
        let detail = identity.as_ref().map_or(detail, summary);
        steps.push(outcome("kind", &identity, &detail, || KIND.to_owned()));

        Ok(())
    }

    /// The checks that claims can go through which nobody signed.
    pub(super) fn claims_examination(&self, identity: &Identity) -> Vec<Step> {
        let claims = identity.claims();
        let audience = match claims.get("aud") {
            None => Step::skipped("audience", "the claims name none; taken as the broker's"),
            Some(_) => {
                let claims = Claims(claims.clone());
                let version =
                    claims.0.get("ver").and_then(Value::as_str).and_then(Version::named).unwrap_or(Version::V2);
                let seen = claims.0.get("aud").map(Value::to_string).unwrap_or_default();
                let detail = format!("aud {seen}; accepted are {}", listed(&self.rules.settings.audiences));
                outcome("audience", &self.rules.check_audience(&claims), &detail, || {
                    self.audience_remedy(&claims, version)
                })
            }
        };
        let taken = "the claims are taken as verified";
        vec![
            Step::skipped("subject_token", format!("there is none: {taken}")),
            self.tenant_step(&identity.tenant()),
            Step::skipped("signature", taken),
            Step::skipped("issuer", taken),
            Step::skipped("time", taken),
            audience,
            Step::passed("kind", summary(identity)),
        ]
    }

    fn tenant_step(&self, tenant: &dyn Display) -> Step {
        let tenants = &self.rules.settings.tenants;
        let accepted = tenants.iter().any(|accepted| accepted.to_string() == tenant.to_string());
        let detail = format!("tid {tenant}; accepted are {}", listed(tenants));
        match accepted {
            true => Step::passed("tenant", detail),
            false => Step::failed(
                "tenant",
                detail,
                format!(
                    "Request the token of one of the accepted tenants (az login --tenant ...), or, if people and workloads of \
                 {tenant} may use the broker, add it to entra.tenants and restart the broker."
                ),
            ),
        }
    }

    fn key_state(&self, tenant: uuid::Uuid, version: Version) -> String {
        let published = self.keys.published(tenant, version);
        let age = published.age.map_or_else(
            || "none were fetched so far".to_owned(),
            |age| format!("{} fetched {} ago", listed(&published.kids), ago(age)),
        );
        let failure = published.last_error.map(|error| format!("; the last fetch failed: {error}")).unwrap_or_default();
        format!("{} keys of the tenant: {age}{failure}", named(version))
    }

    fn key_step(&self, error: &KeyError, tenant: uuid::Uuid, version: Version, kid: &str) -> Step {
        let state = self.key_state(tenant, version);
        match error {
            KeyError::Unknown => Step::failed(
                "signature",
                format!("the tenant publishes no key {kid}; {state}"),
                format!(
                    "Get a fresh token. If it names the same key: is {} the cloud that issued it, and has the broker's application no \
                 signing keys of its own (custom claims mapping), which Entra publishes elsewhere?",
                    self.rules.settings.authority
                ),
            ),
            KeyError::Unavailable { .. } => Step::failed(
                "signature",
                format!("there are no keys to check with; {state}"),
                format!(
                    "Let the broker reach {} over HTTPS (proxy, firewall, outbound.ca_file); `carnet doctor` tries it.",
                    self.rules.settings.authority
                ),
            ),
        }
    }

    fn form_remedy(&self, error: &SubjectError) -> String {
        match error {
            SubjectError::NotForUs(_) => self.request_ours(),
            SubjectError::Malformed(_)
            | SubjectError::Signature(_)
            | SubjectError::Expired(_)
            | SubjectError::NotYetValid(_)
            | SubjectError::Issuer
            | SubjectError::Audience
            | SubjectError::Tenant
            | SubjectError::KeysUnavailable { .. } => {
                format!("Show an Entra access token as it was issued, nothing else. {}", self.request_ours())
            }
        }
    }

    fn request_ours(&self) -> String {
        let audience = self.rules.settings.audiences.first().map(String::as_str).unwrap_or_default();
        format!("Request one for the broker's application:\naz account get-access-token --scope {audience}/.default")
    }

    /// v1.0 tokens name their audience as the client asked for it, v2.0 tokens by the client id alone
    /// (Microsoft: access-token-claims-reference, `aud`).
    fn audience_remedy(&self, claims: &Claims, version: Version) -> String {
        let seen = claims.0.get("aud").and_then(Value::as_str).unwrap_or_default();
        if MICROSOFT_AUDIENCES.iter().any(|(theirs, _name)| same_audience(theirs, seen)) {
            return self.request_ours();
        }
        let known = self.rules.settings.audiences.iter();
        let by_id = known.clone().any(|audience| target::guid(audience).is_ok());
        let by_uri = known.clone().any(|audience| target::guid(audience).is_err());
        let other_form = match (version, target::guid(seen).is_ok()) {
            (Version::V2, true) if !by_id => Some(format!(
                "It is a v2.0 token, which names the broker's application by its client id. If that is {seen}, add it to \
                 entra.audiences and restart the broker."
            )),
            (Version::V1, false) if !by_uri => Some(format!(
                "It is a v1.0 token, which names the broker's application by its URI. If that is {seen}, set \
                 \"requestedAccessTokenVersion\": 2 in the manifest of the broker's application and get a new token, or add \
                 {seen} to entra.audiences and restart the broker."
            )),
            (Version::V1 | Version::V2, _) => None,
        };
        other_form
            .map_or_else(|| self.request_ours(), |other_form| format!("{other_form}\nElse: {}", self.request_ours()))
    }

    fn times(&self, claims: &Claims) -> String {
        let now = self.rules.clock.now();
        let shown = |name: &str| {
            let time = claims.0.get(name).and_then(Value::as_u64).and_then(from_unix_seconds);
            match (time, claims.0.get(name)) {
                (Some(time), _) => match now.duration_since(time) {
                    Ok(past) => format!("{name} {} ago", ago(past)),
                    Err(ahead) => format!("{name} in {}", ago(ahead.duration())),
                },
                (None, Some(other)) => format!("{name} {other}"),
                (None, None) => format!("no {name}"),
            }
        };
        let skew = ago(self.rules.settings.clock_skew);
        format!("{}, {}, {}; clocks may differ by {skew}", shown("iat"), shown("nbf"), shown("exp"))
    }
}

fn outcome<T>(name: &str, result: &Result<T, SubjectError>, seen: &str, remedy: impl FnOnce() -> String) -> Step {
    match result {
        Ok(_) => Step::passed(name, seen),
        Err(error) => Step::failed(name, format!("{error}; {seen}"), remedy()),
    }
}

fn time_remedy(error: Option<&SubjectError>) -> String {
    match error {
        Some(SubjectError::NotYetValid(_)) => {
            "Set the broker's clock by NTP: Entra's is right. `carnet doctor` measures the difference.".to_owned()
        }
        Some(_) | None => {
            "Get a fresh token. If this one is fresh, the broker's clock is ahead: set it by NTP.".to_owned()
        }
    }
}

const CHANGED: &str = "Show the token as Entra issued it: a part of it was changed or cut off on the way.";

const ISSUER: &str = "\
Get a token from the tenant's own authority. `iss`, `ver` and `tid` of a token agree, unless it was made by somebody else or
for another cloud than entra.authority.";

const KIND: &str = "\
Let the broker's application ask for the optional claim `idtyp` with the property include_user_token (manifest,
optionalClaims.accessToken), and get a new token: users' tokens have `scp`, applications' have `sub` equal to `oid`.";

fn named(version: Version) -> &'static str {
    match version {
        Version::V1 => "v1.0",
        Version::V2 => "v2.0",
    }
}

/// Who it is, in the words of the rules.
fn summary(identity: &Identity) -> String {
    let groups = match identity.groups() {
        Groups::Known(groups) => groups.len().to_string(),
        Groups::Overage => "too many".to_owned(),
    };
    format!(
        "{} {}, client {}, roles {}, scopes {}, groups: {groups}",
        identity.kind().as_str(),
        identity.object(),
        identity.client(),
        listed(identity.roles()),
        listed(identity.scopes()),
    )
}

/// What a refused token says of itself; nothing that could be a secret.
fn unverified(token: &SubjectToken) -> Vec<(&'static str, String)> {
    token.unverified_trace()
}

/// What a check that was not reached would have looked at.
fn said_of(check: &str, said: &[(&'static str, String)]) -> String {
    let names: &[&str] = match check {
        "tenant" => &["unverified_tid"],
        "signature" => &["unverified_kid"],
        "issuer" => &["unverified_iss", "unverified_ver"],
        "time" => &["unverified_iat", "unverified_exp"],
        "audience" => &["unverified_aud"],
        _ => &[],
    };
    let said: Vec<String> = said
        .iter()
        .filter(|(name, _value)| names.contains(name))
        .map(|(name, value)| format!("{} {value}", name.trim_start_matches("unverified_")))
        .collect();
    if said.is_empty() { "not reached".to_owned() } else { format!("not reached; the token says {}", said.join(", ")) }
}

fn listed<T: Display>(items: &[T]) -> String {
    let mut shown: Vec<String> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    if items.len() > SHOWN {
        shown.push(format!("... {} in all", items.len()));
    }
    format!("[{}]", shown.join(", "))
}

const SHOWN: usize = 8;

fn ago(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds < 120 => format!("{seconds}s"),
        seconds if seconds < 7200 => format!("{}m", seconds / 60),
        seconds if seconds < 172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

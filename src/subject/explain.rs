//! A token's verification step by step, for those who may see it: what was seen, what is wanted, what to change.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use super::entra::{EntraVerifier, MICROSOFT_AUDIENCES, check_issuer, same_audience};
use super::jwks::{KeyError, Version};
use super::token::{Claims, UnverifiedToken};
use super::{Groups, Identity, SubjectError, SubjectToken, VerifiedIdentity};
use crate::clock::from_unix_seconds;
use crate::reason::Reason;
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
        self.walk(token, &mut steps).await;
        let result = self.examine(token).await.map(|verdict| verdict.identity);
        let said = token.unverified_trace();
        for check in CHECKS.into_iter().skip(steps.len()) {
            steps.push(Step::skipped(check, said_of(check, &said)));
        }
        Examination { steps, result }
    }

    /// As far as one check lets the next be made.
    async fn walk(&self, token: &SubjectToken, steps: &mut Vec<Step>) {
        let parsed = UnverifiedToken::parse(token.text.expose())
            .and_then(|unverified| Ok((unverified.unverified_claims()?, unverified)));
        let (claimed, unverified) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                return steps.push(Step::failed("subject_token", error.to_string(), self.form_remedy(&error)));
            }
        };
        let (version, kid) = (Version::of_issuer(&claimed.iss), &unverified.kid);
        let form = format!("a {} token, signed RS256 by key {kid}", named(version));
        steps.push(Step::passed("subject_token", form));

        steps.push(self.tenant_step(&claimed.tid));
        let tenant = target::guid(&claimed.tid).ok().filter(|tenant| self.rules.settings.tenants.contains(tenant));
        let Some(tenant) = tenant else { return };

        let (key, set_issuer) = match self.keys.key(tenant, version, kid).await {
            Ok(found) => found,
            Err(error) => return steps.push(self.key_step(&error, tenant, version, kid)),
        };
        let state = self.key_state(tenant, version);
        if !key.verifies(unverified.signed.as_bytes(), unverified.signature) {
            let detail = format!("it does not match key {kid}; {state}");
            return steps.push(Step::failed("signature", detail, CHANGED));
        }
        let claims = match unverified.claims() {
            Ok(claims) => claims,
            Err(error) => return steps.push(Step::failed("signature", error.to_string(), CHANGED)),
        };
        steps.push(Step::passed("signature", format!("made with key {kid}; {state}")));
        let key_issuer = key.issuer.as_deref().unwrap_or(&set_issuer);
        steps.extend(self.claims_steps(claims, tenant, version, key_issuer));
    }

    /// What follows is signed: each check is made, whatever becomes of the others. The first that fails is the answer.
    fn claims_steps(&self, claims: Claims, tenant: Uuid, version: Version, key_issuer: &str) -> [Step; 4] {
        let seen = |name: &str| claims.0.get(name).map_or_else(|| "none".to_owned(), Value::to_string);
        let found = check_issuer(&claims, tenant, version, key_issuer);
        let detail =
            format!("iss {}, ver {}, tid {}; the key's issuer is {key_issuer}", seen("iss"), seen("ver"), seen("tid"));
        let issuer = outcome("issuer", &found, &detail, || ISSUER.to_owned());

        let found = self.rules.check_times(&claims);
        let expires_at = found.as_ref().copied().unwrap_or(self.rules.clock.now());
        let time = outcome("time", &found, &self.times(&claims), || time_remedy(found.as_ref().err()));

        let found = self.rules.check_audience(&claims);
        let detail = format!("aud {}; accepted are {}", seen("aud"), listed(&self.rules.settings.audiences));
        let audience = outcome("audience", &found, &detail, || self.audience_remedy(&claims, version));

        let client = if version == Version::V1 { "appid" } else { "azp" };
        let signs = ["idtyp", "scp", "sub", "oid", client].map(|name| format!("{name} {}", seen(name)));
        let found = Identity::read(claims, tenant, version, expires_at);
        let detail = found.as_ref().map_or(signs.join(", "), summary);
        [issuer, time, audience, outcome("kind", &found, &detail, || KIND.to_owned())]
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

    /// What the settings that hold now make of it: where they would take the token, the step says so.
    pub(super) fn refusal_step(&self, reason: Reason, error: &str, said: &dyn Fn(&str) -> Option<String>) -> Step {
        let shown = |names: &[&str]| {
            let shown = names.iter().filter_map(|name| Some(format!("{name} {}", said(name)?)));
            shown.collect::<Vec<_>>().join(", ")
        };
        let detail = |names: &[&str]| match shown(names) {
            said if said.is_empty() => error.to_owned(),
            said => format!("{error}; the token said {said}"),
        };
        match reason {
            Reason::SubjectTokenTenant => self.tenant_step(&said("tid").unwrap_or_else(|| "unknown".to_owned())),
            Reason::SubjectTokenAudience | Reason::SubjectTokenNotForUs => {
                let claims = said("aud").map(|audience| ("aud".to_owned(), Value::from(audience)));
                let claims = Claims(claims.into_iter().collect());
                let version = said("ver").and_then(|ver| Version::named(&ver)).unwrap_or(Version::V2);
                let detail = format!("{}; accepted are {}", detail(&["aud"]), listed(&self.rules.settings.audiences));
                match self.rules.check_audience(&claims) {
                    Ok(()) => Step::passed("audience", format!("{detail}: it would be taken now")),
                    Err(_refused) => Step::failed("audience", detail, self.audience_remedy(&claims, version)),
                }
            }
            Reason::SubjectTokenSignature | Reason::KeysUnavailable => {
                let tenant = said("tid").and_then(|tenant| target::guid(&tenant).ok());
                let version = said("iss").map_or(Version::V2, |issuer| Version::of_issuer(&issuer));
                let state = tenant.map(|tenant| format!("; {}", self.key_state(tenant, version))).unwrap_or_default();
                let seen = format!("{}{state}", detail(&["kid"]));
                let unavailable = || KeyError::Unavailable { retry_after: Duration::ZERO, source: None };
                let error = if reason == Reason::KeysUnavailable { unavailable() } else { KeyError::Unknown };
                Step::failed("signature", seen, self.key_remedy(&error))
            }
            Reason::SubjectTokenIssuer => Step::failed("issuer", detail(&["iss", "ver", "tid"]), ISSUER),
            Reason::SubjectTokenExpired => Step::failed("time", detail(&["iat", "exp"]), time_remedy(None)),
            Reason::SubjectTokenNotYetValid => {
                let early = SubjectError::NotYetValid(Duration::ZERO);
                Step::failed("time", detail(&["iat", "exp"]), time_remedy(Some(&early)))
            }
            // A token of a wrong form, and what is no fault of a token at all.
            Reason::SubjectTokenMalformed
            | Reason::InvalidRequest
            | Reason::GroupsOverage
            | Reason::InsufficientClaims
            | Reason::Denied
            | Reason::LeaseNotFound
            | Reason::LeaseEnded
            | Reason::RateLimited
            | Reason::CloudRefused
            | Reason::CloudUnavailable
            | Reason::StoreUnavailable
            | Reason::ShuttingDown
            | Reason::Internal => {
                Step::failed("subject_token", detail(&["ver", "aud"]), format!("{AS_ISSUED} {}", self.request_ours()))
            }
        }
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

    fn key_state(&self, tenant: Uuid, version: Version) -> String {
        let published = self.keys.published(tenant, version);
        let age = published.age.map_or_else(
            || "none were fetched so far".to_owned(),
            |age| format!("{} fetched {} ago", listed(&published.kids), ago(age)),
        );
        let failure = published.last_error.map(|error| format!("; the last fetch failed: {error}")).unwrap_or_default();
        format!("{} keys of the tenant: {age}{failure}", named(version))
    }

    fn key_step(&self, error: &KeyError, tenant: Uuid, version: Version, kid: &str) -> Step {
        let state = self.key_state(tenant, version);
        let detail = match error {
            KeyError::Unknown => format!("the tenant publishes no key {kid}; {state}"),
            KeyError::Unavailable { .. } => format!("there are no keys to check with; {state}"),
        };
        Step::failed("signature", detail, self.key_remedy(error))
    }

    fn key_remedy(&self, error: &KeyError) -> String {
        let authority = &self.rules.settings.authority;
        match error {
            KeyError::Unknown => format!(
                "Get a fresh token. If it names the same key: is {authority} the cloud that issued it, and has the broker's \
                 application no signing keys of its own (custom claims mapping), which Entra publishes elsewhere?"
            ),
            KeyError::Unavailable { .. } => format!(
                "Let the broker reach {authority} over HTTPS (proxy, firewall, outbound.ca_file); `carnet doctor` tries it."
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
                format!("{AS_ISSUED} {}", self.request_ours())
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

const AS_ISSUED: &str = "Show an Entra access token as it was issued, nothing else.";

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

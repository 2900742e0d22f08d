//! The broker as an OIDC issuer, seen as the clouds see it: the documents at its URL, and the keys in them.

use std::time::SystemTime;

use serde_json::Value;
use url::Url;

use super::certificate::Validity;
use super::network::{Fetched, addresses, is_private, is_success, unreachable};
use super::{Examination, Finding, Severity};
use crate::issuer::{Algorithm, Issuer};
use crate::target::{AzureSource, GoogleSubjectToken, Platform, Target};

pub(super) async fn examine(examination: &Examination<'_>) -> Vec<Finding> {
    let Some(settings) = &examination.config.issuer else { return Vec::new() };
    let Some(uses) = Uses::of(examination) else { return Vec::new() };
    let Ok(url) = Url::parse(&settings.url) else { return Vec::new() };
    let look = Look { examination, url: &settings.url, uses };
    let mut findings: Vec<Finding> = look.address(&url).await.into_iter().collect();
    match look.discovery().await {
        Ok((document, of_certificate)) => {
            findings.extend(of_certificate);
            findings.extend(look.algorithms(&document));
            findings.extend(look.keys(&document).await);
        }
        Err(found) => findings.push(found),
    }
    findings
}

/// What was seen of the issuer's place from here is no fault where a cloud has verified its signatures meanwhile: names
/// resolve otherwise inside, or the keys were uploaded.
pub(super) fn weigh(examination: &Examination<'_>, findings: &mut [Finding]) {
    let Some(uses) = Uses::of(examination) else { return };
    let verified = |target: &&Target| {
        let about = format!("target {}", target.name);
        // A client that redeems people's tokens shows its own assertion first.
        let passed = |finding: &Finding| match finding.code.as_str() {
            "target" => finding.severity == Severity::Ok,
            "needs_token" => matches!(&target.platform, Platform::Azure(_)),
            _ => false,
        };
        findings.iter().any(|finding| finding.about == about && passed(finding))
    };
    let targets = examination.targets();
    // Google may have uploaded keys, which says nothing of the way to the issuer that Entra needs.
    let verified = match uses.azure {
        true => targets.iter().filter(|target| by_azure(target)).any(&verified),
        false => targets.iter().filter(|target| by_google(target)).any(verified),
    };
    if !verified {
        return;
    }
    let of_place = |finding: &&mut Finding| {
        finding.about == "issuer" && ["issuer_private", "issuer_unreachable"].contains(&finding.code.as_str())
    };
    for finding in findings.iter_mut().filter(of_place) {
        finding.severity = Severity::Note;
        finding.seen.push_str(" from here, and a cloud verified its signature all the same");
    }
}

fn by_google(target: &Target) -> bool {
    matches!(&target.platform, Platform::Google(google) if google.subject_token == GoogleSubjectToken::Issuer)
}

fn by_azure(target: &Target) -> bool {
    matches!(&target.platform, Platform::Azure(azure)
        if matches!(azure.source, AzureSource::Issuer { .. } | AzureSource::OnBehalfOf { .. }))
}

/// Who has to read what the issuer publishes.
#[derive(Clone, Copy)]
struct Uses {
    google: bool,
    azure: bool,
}

impl Uses {
    /// `None` where nobody does.
    fn of(examination: &Examination<'_>) -> Option<Self> {
        let targets = examination.targets();
        let google = targets.iter().any(|target| by_google(target));
        let azure = targets.iter().any(|target| by_azure(target));
        (google || azure).then_some(Self { google, azure })
    }

    /// Google can do with uploaded keys, Entra cannot.
    fn severity(self) -> Severity {
        if self.azure { Severity::Error } else { Severity::Warning }
    }
}

struct Look<'a> {
    examination: &'a Examination<'a>,
    url: &'a str,
    uses: Uses,
}

impl Look<'_> {
    fn finding(&self, severity: Severity, code: &str, seen: String) -> Finding {
        Finding::new(severity, code, "issuer", seen)
    }

    async fn address(&self, url: &Url) -> Option<Finding> {
        let found = addresses(url).await;
        if url.scheme() != "https" {
            let seen = format!("{} is plain http on loopback: no real cloud takes it", self.url);
            return Some(self.finding(Severity::Note, "issuer_http", seen));
        }
        let private = found.iter().find(|address| is_private(**address))?;
        let seen = format!("{} is at {private}, which no cloud reaches", self.url);
        Some(self.not_for_clouds("issuer_private", seen))
    }

    fn not_for_clouds(&self, code: &str, seen: String) -> Finding {
        let advice = match (self.uses.google, self.uses.azure) {
            (true, false) => {
                "upload the keys to the provider, after which Google never asks: carnet trust google --jwks prints how"
            }
            _ => {
                "Entra fetches the keys from the internet and takes no uploaded ones: serve issuer.url there over https \
                 (two static files will do), or use `source: token_file` or `source: managed_identity`; for Google: carnet \
                 trust google --jwks"
            }
        };
        self.finding(self.uses.severity(), code, seen).repair(advice, &[])
    }

    /// The discovery document and what there is to say of the certificate it came with.
    async fn discovery(&self) -> Result<(Value, Option<Finding>), Finding> {
        let place = format!("{}/.well-known/openid-configuration", self.url);
        let look = format!("curl -sS {place}");
        let Fetched { response, .. } = self.examination.network.get(&place).await.map_err(|error| {
            let found = unreachable("issuer", &place, &error);
            Finding { severity: self.uses.severity(), code: "issuer_unreachable".to_owned(), ..found }
        })?;
        if !is_success(&response) {
            let seen = format!("{place} answers {}: clouds follow no redirection", response.status.as_u16());
            return Err(self.not_for_clouds("issuer_unreachable", seen));
        }
        let wrong = |seen: String| {
            let advice = "something else than this broker answers there";
            self.finding(Severity::Error, "issuer_discovery", seen).repair(advice, &[&look])
        };
        let document: Value = serde_json::from_slice(&response.body)
            .map_err(|_not_json| wrong(format!("{place} is no discovery document")))?;
        let issuer = document.get("issuer").and_then(Value::as_str).unwrap_or_default();
        if issuer != self.url {
            let shown: String = issuer.chars().take(200).collect();
            let seen = format!("{place} names the issuer {shown}, not {}", self.url);
            let advice = "clouds compare it to the letter, a slash at the end included: issuer.url, what is served there and \
                          what the clouds trust must be one text";
            return Err(self.finding(Severity::Error, "issuer_differs", seen).repair(advice, &[&look]));
        }
        let validity = response.peer_certificate.as_deref().and_then(Validity::of);
        let of_certificate = validity.map(|validity| validity.judge(self.examination.clock.now(), "issuer.url"));
        Ok((document, of_certificate))
    }

    fn algorithms(&self, document: &Value) -> Option<Finding> {
        let listed: Vec<&str> = document
            .get("id_token_signing_alg_values_supported")?
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let missing = self.wanted().into_iter().find(|algorithm| !listed.contains(&algorithm.as_str()))?;
        let seen = format!("its discovery document lists {}, not {}", listed.join(", "), missing.as_str());
        let advice = "Entra takes RS256 and nothing else, Google is shown ES256: serve what the broker itself serves";
        let look = format!("curl -sS {}/.well-known/openid-configuration", self.url);
        Some(self.finding(Severity::Error, "issuer_algorithm", seen).repair(advice, &[&look]))
    }

    fn wanted(&self) -> Vec<Algorithm> {
        let wanted = [(self.uses.google, Algorithm::Es256), (self.uses.azure, Algorithm::Rs256)];
        wanted.into_iter().filter(|(used, _algorithm)| *used).map(|(_used, algorithm)| algorithm).collect()
    }

    async fn keys(&self, document: &Value) -> Vec<Finding> {
        let Some(place) = document.get("jwks_uri").and_then(Value::as_str) else {
            let seen = "its discovery document has no jwks_uri".to_owned();
            return vec![self.finding(Severity::Error, "issuer_keys", seen)];
        };
        let look = format!("curl -sS '{}'", place.replace('\'', "%27"));
        // Of the document's own making: it is asked only where the issuer itself is.
        let same = |url: &Url| Url::parse(self.url).is_ok_and(|own| own.origin() == url.origin());
        if !Url::parse(place).is_ok_and(|url| same(&url)) {
            let seen = format!("its jwks_uri is {place}, on another host: that one was not asked");
            return vec![self.finding(Severity::Note, "issuer_keys", seen)];
        }
        let fetched = match self.examination.network.get(place).await {
            Ok(fetched) => fetched,
            Err(error) => {
                let found = unreachable("issuer", place, &error);
                return vec![Finding { severity: self.uses.severity(), code: "issuer_keys".to_owned(), ..found }];
            }
        };
        let keys: Option<Value> = serde_json::from_slice(&fetched.response.body).ok();
        let keys = keys.as_ref().and_then(|document| document.get("keys")?.as_array());
        let Some(keys) = keys.filter(|_keys| is_success(&fetched.response)) else {
            let seen = format!("{place} answers {} and no JWKS", fetched.response.status.as_u16());
            return vec![self.finding(self.uses.severity(), "issuer_keys", seen).repair("", &[&look])];
        };
        match &self.examination.issuer {
            Some(issuer) => self.published(issuer, keys, place),
            None => Vec::new(),
        }
    }

    /// Whether what signs now, and what will, is what anybody can fetch.
    fn published(&self, issuer: &Issuer, keys: &[Value], place: &str) -> Vec<Finding> {
        let now = self.examination.clock.now();
        let ring = issuer.keys();
        let look = format!("curl -sS {place}");
        let repair = [look.as_str(), "carnet issuer keys --config carnet.yaml"];
        let mut findings = Vec::new();
        for algorithm in self.wanted() {
            let Some(signing) = ring.signing(algorithm, now) else { continue };
            let found = keys.iter().find(|key| key.get("kid").and_then(Value::as_str) == Some(signing.kid()));
            let Some(found) = found else {
                let seen = format!("{place} lacks {}, the {} key that signs", signing.kid(), algorithm.as_str());
                let advice =
                    "an old replica, a copy or another store's broker answers there: clouds refuse what is signed now";
                findings.push(self.finding(Severity::Error, "issuer_key_unpublished", seen).repair(advice, &repair));
                continue;
            };
            let alg = found.get("alg").and_then(Value::as_str).unwrap_or("no algorithm");
            if alg != algorithm.as_str() {
                let seen = format!("{place} has {} for {alg}, and it signs {}", signing.kid(), algorithm.as_str());
                findings.push(self.finding(Severity::Error, "issuer_algorithm", seen).repair("", &repair));
            }
        }
        if findings.is_empty() {
            findings.extend(self.next(issuer, keys, now, &repair));
        }
        if findings.is_empty() {
            let seen = format!("{} publishes the keys that sign", self.url);
            findings.push(self.finding(Severity::Ok, "issuer", seen));
        }
        findings
    }

    fn next(&self, issuer: &Issuer, keys: &[Value], now: SystemTime, repair: &[&str]) -> Option<Finding> {
        let ring = issuer.keys();
        let there = |kid: &str| keys.iter().any(|key| key.get("kid").and_then(Value::as_str) == Some(kid));
        let waiting = ring.published(now).find(|key| !there(key.kid()))?;
        let seen = format!("{} is not published yet, which the brokers know", waiting.kid());
        let advice =
            "a replica that does not read its store, or a copy that grows old: a key must be known before it signs";
        Some(self.finding(Severity::Warning, "issuer_key_stale", seen).repair(advice, repair))
    }
}

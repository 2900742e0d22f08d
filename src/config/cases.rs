//! Tests of rules as a file writes them: a table of subjects and jobs with the decision that is expected.

mod document;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use uuid::Uuid;

use self::document::{
    CaseDocument, DecisionDocument, Document, ExpectDocument, GroupsDocument, JobDocument, NameOr, SubjectDocument,
    TokenTypeDocument,
};
use super::ConfigError;
use super::source::Source;
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::policy::{Ask, Case, Decision, ExcessScopes, Expected, KindDocument, Mistake};
use crate::reason::Reason;
use crate::secret::sha256;
use crate::subject::Identity;
use crate::target::{IdTokenAudience, Invalid, Job, TokenType};

/// A file of cases, each with its line.
#[derive(Debug)]
pub struct Cases {
    pub path: PathBuf,
    pub cases: Vec<(Option<u64>, Case)>,
}

impl Cases {
    /// The file beside `policy` that has its cases, where none is named.
    pub fn beside(policy: &Path) -> PathBuf {
        policy.with_file_name("policy.test.yaml")
    }

    /// `tenant`: of subjects that name none.
    ///
    /// # Errors
    /// Every mistake of the file.
    pub fn load(path: &Path, tenant: Option<Uuid>) -> Result<Self, ConfigError> {
        let failed = |faults| ConfigError { path: path.to_owned(), faults };
        let source = Source::read(path, &|name| std::env::var(name).ok()).map_err(failed)?;
        let mut typed = source.typed::<Document>();
        let mut mistakes = Vec::new();
        let cases = typed.value.take().map(|document| Reading { tenant, mistakes: &mut mistakes }.cases(document));
        mistakes.into_iter().for_each(|Mistake { at, message }| typed.add(&source, &at, message));
        let mut faults = typed.faults;
        faults.sort_by_key(|fault| fault.line);
        match cases {
            Some(cases) if faults.is_empty() => {
                let cases = cases.into_iter().enumerate();
                let cases = cases.map(|(place, case)| (source.line(&format!("cases[{place}]")), case)).collect();
                Ok(Self { path: path.to_owned(), cases })
            }
            _ => Err(failed(faults)),
        }
    }
}

struct Reading<'a> {
    tenant: Option<Uuid>,
    mistakes: &'a mut Vec<Mistake>,
}

impl Reading<'_> {
    fn mistake(&mut self, at: &str, message: impl fmt::Display) {
        self.mistakes.push(Mistake { at: at.to_owned(), message: message.to_string() });
    }

    fn cases(&mut self, document: Document) -> Vec<Case> {
        let Document { now, subjects, cases } = document;
        if cases.is_empty() {
            self.mistake("cases", "names no case");
        }
        let now = now.map_or_else(ordinary_time, SystemTime::from);
        for (name, subject) in &subjects {
            self.identity(&format!("subjects.{name}"), name, subject, now);
        }
        let mut names = BTreeSet::new();
        let mut read = Vec::new();
        for (place, case) in cases.into_iter().enumerate() {
            let at = format!("cases[{place}]");
            if !names.insert(case.name.clone()) {
                self.mistake(&format!("{at}.name"), "another case has this name too");
            }
            read.extend(self.case(&at, case, &subjects, now));
        }
        read
    }

    fn case(
        &mut self,
        at: &str,
        case: CaseDocument,
        subjects: &BTreeMap<String, SubjectDocument>,
        now: SystemTime,
    ) -> Option<Case> {
        let now = case.now.map_or(now, SystemTime::from);
        let asks = self.asks(at, &case);
        let identity = match &case.subject {
            NameOr::Written(subject) => self.identity(&format!("{at}.subject"), &case.name, subject, now),
            NameOr::Name(name) => match subjects.get(name) {
                // A mistake of its own stands at the subject.
                Some(subject) => self.made(name, subject, now).ok(),
                None => {
                    self.mistake(&format!("{at}.subject"), format_args!("there is no `{name}` among the subjects"));
                    None
                }
            },
        };
        let job = self.job(&format!("{at}.job"), case.job);
        let expected = self.expected(&format!("{at}.expect"), case.expect);
        Some(Case {
            name: case.name,
            identity: identity?,
            job: job?,
            asks: asks?,
            lease_duration: case.lease_duration.map(|span| span.0),
            now,
            expected: expected?,
        })
    }

    fn identity(&mut self, at: &str, name: &str, document: &SubjectDocument, now: SystemTime) -> Option<Identity> {
        self.made(name, document, now).map_err(|message| self.mistake(at, message)).ok()
    }

    /// The claims that Entra would put into such a token, read as they always are.
    fn made(&self, name: &str, document: &SubjectDocument, now: SystemTime) -> Result<Identity, String> {
        let made_up = |what: &str| {
            let digest = sha256(format!("{what} {name}").as_bytes());
            Uuid::from_u128(digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte)))
        };
        let tenant = document.tenant.map(|tenant| tenant.0).or(self.tenant);
        let tenant =
            tenant.ok_or("has no `tenant`, and the rules come without a configuration whose first it could be")?;
        let object = document.object.map_or_else(|| made_up("object"), |object| object.0).to_string();
        let client = document.client.map_or_else(|| made_up("client"), |client| client.0).to_string();
        let expires_at = now + document.token_lifetime.map_or(ORDINARY_LIFE, |span| span.0);
        let user = document.kind == KindDocument::User;
        let mut claims = Map::new();
        let mut claim = |name: &str, value: Value| {
            claims.insert(name.to_owned(), value);
        };
        claim("ver", "2.0".into());
        claim("tid", tenant.to_string().into());
        claim("iss", format!("https://login.microsoftonline.com/{tenant}/v2.0").into());
        claim("sub", if user { "pairwise".into() } else { object.as_str().into() });
        claim("oid", object.into());
        claim("azp", client.into());
        claim("azpacr", if user { "0".into() } else { "2".into() });
        claim("idtyp", if user { "user".into() } else { "app".into() });
        claim("exp", unix_seconds(expires_at).into());
        if user || !document.scopes.is_empty() {
            claim("scp", document.scopes.join(" ").into());
        }
        if document.kind == KindDocument::ManagedIdentity {
            claim("xms_mirid", MACHINE.into());
        }
        for (name, list) in [("roles", &document.roles), ("acrs", &document.auth_contexts)] {
            if !list.is_empty() {
                claim(name, list.as_slice().into());
            }
        }
        match &document.groups {
            GroupsDocument::Overage => claim("_claim_names", json!({"groups": "src1"})),
            GroupsDocument::Known(groups) if groups.is_empty() => {}
            GroupsDocument::Known(groups) => {
                claim("groups", groups.iter().map(|group| Value::from(group.0.to_string())).collect());
            }
        }
        for (name, value) in &document.claims {
            if let Some(taken) = claims.insert(name.clone(), value.clone())
                && taken != *value
                && !["iss", "azpacr", "xms_mirid", "sub"].contains(&name.as_str())
            {
                return Err(format!("says `{name}` by a field of its own: leave it out of `claims`"));
            }
        }
        Identity::from_claims(claims, expires_at).map_err(|error| error.to_string())
    }

    fn job(&mut self, at: &str, document: JobDocument) -> Option<Job> {
        let JobDocument { id, name, duration, labels, datasets } = document;
        let job = Job { id, name, expected_duration: duration.map(|span| span.0), labels, datasets };
        job.check().map_err(|complaint| self.mistake(at, complaint)).ok().map(|()| job)
    }

    fn asks(&mut self, at: &str, case: &CaseDocument) -> Option<Vec<Ask>> {
        let targets = match (&case.target, case.targets.as_slice()) {
            (Some(one), []) => std::slice::from_ref(one),
            (None, several @ [_, ..]) => several,
            (Some(_), [_, ..]) => {
                self.mistake(at, "has one of `target` and `targets`");
                return None;
            }
            (None, []) => {
                self.mistake(at, "names no target");
                return None;
            }
        };
        let token_type = match case.token_type {
            TokenTypeDocument::AccessToken => TokenType::AccessToken,
            TokenTypeDocument::IdToken => TokenType::IdToken,
            TokenTypeDocument::Jwt => TokenType::Jwt,
        };
        let audience: Option<Result<IdTokenAudience, Invalid>> = case.audience.as_deref().map(str::parse);
        let audience =
            audience.transpose().map_err(|complaint| self.mistake(&format!("{at}.audience"), complaint)).ok()?;
        if (token_type == TokenType::IdToken) != audience.is_some() {
            self.mistake(at, "has an `audience` with `token_type: id_token`, and with nothing else");
        }
        let ask = |target: &String| Ask {
            target: target.clone(),
            scopes: case.scopes.iter().cloned().collect(),
            excess: ExcessScopes::Refuse,
            token_type,
            audience: audience.clone(),
            lifetime: case.lifetime.map(|span| span.0),
            beyond: None,
        };
        Some(targets.iter().map(ask).collect())
    }

    fn expected(&mut self, at: &str, document: NameOr<ExpectDocument>) -> Option<Expected> {
        let document = match document {
            NameOr::Written(document) => document,
            NameOr::Name(word) => {
                let decision = match word.as_str() {
                    "allowed" => Decision::Allowed,
                    "denied" => Decision::Denied,
                    _ => {
                        self.mistake(at, "is `allowed`, `denied` or a section with a `decision`");
                        return None;
                    }
                };
                return Some(Expected { decision, rule: None, lifetime: None, bound: None, lease: None, reason: None });
            }
        };
        let ExpectDocument { decision, rule, lifetime, bound, lease, reason } = document;
        let decision = match decision {
            DecisionDocument::Allowed => Decision::Allowed,
            DecisionDocument::Denied => Decision::Denied,
        };
        let permission = lifetime.is_some() || bound.is_some();
        match decision {
            Decision::Denied if permission => self.mistake(at, "what is denied has no `lifetime` and no `bound`"),
            Decision::Allowed if reason.is_some() => self.mistake(at, "what is allowed has no `reason`"),
            Decision::Denied | Decision::Allowed => {}
        }
        let reason = match reason {
            None => None,
            Some(word) => {
                let known = REASONS.iter().find(|reason| reason.as_str() == word);
                if known.is_none() {
                    let words: Vec<&str> = REASONS.iter().map(|reason| reason.as_str()).collect();
                    self.mistake(&format!("{at}.reason"), format_args!("is one of {}", words.join(", ")));
                }
                known.copied()
            }
        };
        let (lifetime, lease) = (lifetime.map(|span| span.0), lease.map(|word| word.0));
        Some(Expected { decision, rule, lifetime, bound, lease, reason })
    }
}

/// Those that a policy can have.
const REASONS: [Reason; 4] =
    [Reason::Denied, Reason::GroupsOverage, Reason::InvalidRequest, Reason::SubjectTokenExpired];

/// A test gives the same result on any day: 2026-01-01, where the file names no time.
fn ordinary_time() -> SystemTime {
    from_unix_seconds(1_767_225_600).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Of Entra's tokens.
const ORDINARY_LIFE: Duration = Duration::from_secs(3600);

const MACHINE: &str = "/subscriptions/00000000-0000-0000-0000-000000000000/resourcegroups/test/providers/\
                       Microsoft.ManagedIdentity/userAssignedIdentities/test";

#[cfg(test)]
mod tests;

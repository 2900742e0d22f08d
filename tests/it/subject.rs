//! The real verifier against the strict Entra over loopback HTTP.

mod claims;
mod form;
mod keys;
mod kind;
mod memory;
mod names;
mod signature;
mod time;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use carnet::clock::ManualClock;
use carnet::http::{self, Client};
use carnet::reason::Reason;
use carnet::sandbox::{Entra, EntraToken};
use carnet::secret::Secret;
use carnet::step::Step;
use carnet::subject::{EntraVerifier, Settings, SubjectError, SubjectToken, VerifiedIdentity, Verifier as _};
use uuid::Uuid;

const TENANT: &str = "aaaaaaaa-1111-4111-8111-aaaaaaaaaaaa";
/// Accepted too.
const SECOND_TENANT: &str = "bbbbbbbb-2222-4222-8222-bbbbbbbbbbbb";
/// Known to Entra, not accepted.
const FOREIGN_TENANT: &str = "ffffffff-9999-4999-8999-ffffffffffff";
const OBJECT: &str = "cccccccc-3333-4333-8333-cccccccccccc";
const CLIENT: &str = "dddddddd-4444-4444-8444-dddddddddddd";
const AUDIENCE_URI: &str = "api://carnet";
const SKEW: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// A verifier for two tenants, the Entra that it trusts, and a host that nobody may contact.
struct Checkpoint {
    clock: ManualClock,
    entra: Entra,
    elsewhere: Entra,
    verifier: EntraVerifier,
}

impl Checkpoint {
    async fn open() -> Self {
        let clock = ManualClock::start();
        let entra = Entra::start(Arc::new(clock.clone()), [TENANT, SECOND_TENANT]).await.expect("a free port");
        let elsewhere = Entra::start(Arc::new(clock.clone()), [""; 0]).await.expect("a free port");
        let verifier = verifier_of(&entra, &clock, SKEW);
        Self { clock, entra, elsewhere, verifier }
    }

    /// A verifier that knows no key and remembers no token.
    fn fresh_verifier(&self) -> EntraVerifier {
        verifier_of(&self.entra, &self.clock, SKEW)
    }

    /// The good token from which every case starts.
    fn app(&self) -> EntraToken {
        self.entra.app_token(TENANT, OBJECT).client(CLIENT)
    }

    fn user(&self) -> EntraToken {
        self.entra.user_token(TENANT, OBJECT).client(CLIENT)
    }

    fn managed_identity(&self) -> EntraToken {
        self.entra.managed_identity_token(TENANT, OBJECT).client(CLIENT)
    }

    async fn verify(&self, text: &str) -> Result<Arc<VerifiedIdentity>, SubjectError> {
        verify(&self.verifier, text).await
    }

    async fn accept(&self, token: &EntraToken) -> Arc<VerifiedIdentity> {
        self.verify(&token.sign()).await.expect("a good token")
    }
}

fn verifier_of(entra: &Entra, clock: &ManualClock, clock_skew: Duration) -> EntraVerifier {
    let settings = Settings {
        authority: entra.authority().parse().expect("an endpoint"),
        tenants: [TENANT, SECOND_TENANT].map(|tenant| Uuid::parse_str(tenant).expect("a GUID")).to_vec(),
        audiences: vec![entra.default_audience(), AUDIENCE_URI.to_owned()],
        clock_skew,
    };
    let client = Client::new(&http::Settings::default()).expect("a client");
    EntraVerifier::new(settings, client, Arc::new(clock.clone()))
}

async fn verify(verifier: &EntraVerifier, text: &str) -> Result<Arc<VerifiedIdentity>, SubjectError> {
    let token = SubjectToken::new(Secret::new(text))?;
    assert_silent(&format!("{token:?}"), text);
    let verdict = verifier.verify(&token).await;
    explains(verifier, &token, text, &verdict).await;
    match &verdict {
        Ok(identity) => assert_silent(&format!("{identity:?} {verifier:?}"), text),
        Err(error) => assert_silent(&everything_said(error), text),
    }
    verdict
}

/// An explanation comes to the same end: the first check that failed is the one that refused.
async fn explains(
    verifier: &EntraVerifier,
    token: &SubjectToken,
    text: &str,
    verdict: &Result<Arc<VerifiedIdentity>, SubjectError>,
) {
    if matches!(verdict, Err(SubjectError::KeysUnavailable { .. })) {
        // It would wait for another fetch, and tests count them.
        return;
    }
    let explained = verifier.explain(token).await;
    assert_silent(&format!("{explained:?}"), text);
    let reason =
        |verdict: &Result<Arc<VerifiedIdentity>, SubjectError>| verdict.as_ref().err().map(SubjectError::reason);
    assert_eq!(reason(&explained.result), reason(verdict), "{explained:?}");
    let names: Vec<&str> = explained.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["subject_token", "tenant", "signature", "issuer", "time", "audience", "kind"]);
    let failed: Vec<&Step> = explained.steps.iter().filter(|step| step.has_failed()).collect();
    assert_eq!(failed.is_empty(), verdict.is_ok(), "{explained:?}");
    assert!(failed.iter().all(|step| !step.remedy.is_empty()), "{explained:?}");
    let said = verdict.as_ref().err().map(ToString::to_string);
    let told = |said: &String| failed.first().is_some_and(|step| step.detail.starts_with(said.as_str()));
    let own_words = ["tenant", "signature"];
    assert!(
        said.is_none_or(
            |said| told(&said) || failed.first().is_some_and(|step| own_words.contains(&step.name.as_str()))
        ),
        "{explained:?}"
    );
}

async fn refusal(verifier: &EntraVerifier, text: &str) -> Option<Reason> {
    verify(verifier, text).await.err().map(|error| error.reason())
}

fn everything_said(error: &SubjectError) -> String {
    let mut said = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        said.push_str(&format!(" {error} {error:?}"));
        cause = error.source();
    }
    said
}

/// No part of a token stands in what is shown of it.
fn assert_silent(shown: &str, token: &str) {
    let leaked = token.split('.').map(str::trim).find(|part| part.len() > 16 && shown.contains(part));
    assert_eq!(leaked, None, "{shown}");
}

/// What is changed, how, and the reason that must be given.
type Case = (&'static str, fn(&Checkpoint) -> String, Reason);

/// Every case is refused for its reason, without a call to any host but Entra and for any tenant but the accepted.
async fn assert_refused(cases: &[Case]) {
    let checkpoint = Checkpoint::open().await;
    checkpoint.accept(&checkpoint.app()).await;
    let mut wrong = Vec::new();
    for (name, change, expected) in cases {
        let found = refusal(&checkpoint.verifier, &change(&checkpoint)).await;
        if found != Some(*expected) {
            wrong.push(format!("{name}: {found:?}, expected {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_no_stray_call(&checkpoint);
}

fn assert_no_stray_call(checkpoint: &Checkpoint) {
    assert!(checkpoint.elsewhere.calls().all().is_empty(), "{:?}", checkpoint.elsewhere.calls().all());
    for call in checkpoint.entra.calls().all() {
        let first_segment = call.path.split('/').nth(1).unwrap_or_default();
        assert!([TENANT, SECOND_TENANT].contains(&first_segment), "{call:?}");
    }
}

/// The three parts of a token, one of them changed.
fn with_part(token: &str, part: usize, change: impl FnOnce(&str) -> String) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts[part] = change(&parts[part]);
    parts.join(".")
}

const HEADER: usize = 0;
const PAYLOAD: usize = 1;
const SIGNATURE: usize = 2;

//! The agent: Google's metadata server and Azure's managed identity endpoints on this machine, for unmodified SDKs.
//!
//! ```text
//!  request ─▶ listener   on loopback or a Unix socket, of an allowed user, for a host that is ours
//!          ─▶ protocol   Google's or Azure's, told apart by path and guarded by their headers
//!          ─▶ target     by service account, or by identity and resource
//!          ─▶ held       the credential that is good now, else one call of the broker for all who wait
//!          ─▶ answer     in the protocol's own words, refusals in a form that its SDKs understand
//! ```
//!
//! It learns what its targets are from their first credentials.

mod azure;
mod google;
mod held;
mod host;
mod lease;
mod listener;
mod peer;
mod source;

pub use lease::{Lease, News};
pub use listener::Listener;
pub use peer::Users;
pub use source::{Cloud, Credential, Credentials, Exchanges, Kind, Refusal, Wanted};

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::request::Parts;
use http::{Response, StatusCode};
use http_body_util::Full;

use self::held::Held;
use crate::clock::Clock;
use crate::secret::Secret;
use crate::telemetry;

/// What is served.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The order decides which one is the default.
    pub targets: Vec<TargetSettings>,
    /// The value of `IDENTITY_HEADER`. Absent: Azure's endpoint is that of the instance metadata service only.
    pub identity_header: Option<Secret>,
}

/// A target of the broker, and what its credentials do not say of it.
#[derive(Debug, Clone, Default)]
pub struct TargetSettings {
    pub name: String,
    /// Google's `default` service account; otherwise the first Google target is.
    pub is_default: bool,
    pub project_id: Option<String>,
    pub project_number: Option<u64>,
    /// Object id and resource id of an Azure identity, by which SDKs may ask for it.
    pub object_id: Option<String>,
    pub resource_id: Option<String>,
    /// The settings say so; otherwise its first credential does.
    pub is_azure: bool,
}

/// What the listeners ask.
#[derive(Debug)]
pub struct Agent {
    targets: Vec<Target>,
    held: Arc<Held>,
    identity_header: Option<Secret>,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct Target {
    settings: TargetSettings,
    wanted: Wanted,
}

/// A target whose cloud is known, by the last credential that was got for it.
struct Known<'a> {
    target: &'a Target,
    last: Arc<Credential>,
}

type Answer = Response<Full<Bytes>>;

impl Agent {
    pub fn new(settings: Settings, source: Arc<dyn Credentials>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let target =
            |settings: TargetSettings| Target { wanted: Wanted::access_token(settings.name.clone()), settings };
        Arc::new(Self {
            targets: settings.targets.into_iter().map(target).collect(),
            held: Held::new(source, clock.clone()),
            identity_header: settings.identity_header,
            clock,
        })
    }

    /// Puts in a credential that came before anybody asked.
    pub fn put(&self, target: &str, credential: Credential) {
        self.held.put(Wanted::access_token(target), credential);
    }

    /// From now on every credential is refused: the lease has ended.
    pub fn end(&self, refusal: Refusal) {
        self.held.end(refusal);
    }

    /// Which clouds its targets are of, as far as they are known.
    pub fn clouds(&self) -> Vec<Cloud> {
        self.known().map(|known| known.last.cloud.clone()).collect()
    }

    /// The project of the default service account.
    pub fn google_project(&self) -> Option<String> {
        google::project(self)
    }

    /// Fetches a credential of every target, so that the first request finds it.
    pub async fn warm_up(&self) {
        join_all(self.targets.iter().map(|target| async {
            while self.held.get(&target.wanted, WARM_UP_HOLD).await.is_err() {
                tokio::time::sleep(WARM_UP_PAUSE).await;
            }
            tracing::info!(target.name = target.settings.name, "the first credential is here");
        }))
        .await;
    }

    /// Refreshes credentials before anybody has to ask for it. Never ends.
    pub async fn keep_fresh(&self) {
        self.held.keep_fresh().await;
    }

    async fn answer(&self, request: &Parts) -> Answer {
        let path = request.uri.path();
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let is = |segment: &str, word: &str| segment.eq_ignore_ascii_case(word);
        match segments.as_slice() {
            [] | ["computeMetadata", ..] => google::answer(self, request, &segments, path.ends_with('/')).await,
            [metadata, identity, oauth2, token]
                if is(metadata, "metadata")
                    && is(identity, "identity")
                    && is(oauth2, "oauth2")
                    && is(token, "token") =>
            {
                azure::instance_metadata(self, request).await
            }
            ["msi", "token"] => azure::app_service(self, request).await,
            ["healthz"] => text(StatusCode::OK, "alive"),
            ["readyz"] => self.readiness().await,
            ["metrics"] => text(StatusCode::OK, telemetry::metrics().render()),
            // Also what probes for version 2 of Azure's service: any other status would mean that it is here.
            _ => text(StatusCode::NOT_FOUND, "there is nothing here"),
        }
    }

    /// Ready is who has a good credential of every target.
    async fn readiness(&self) -> Answer {
        let asked = self.targets.iter().map(|target| async {
            let refusal = self.held.get(&target.wanted, READINESS_HOLD).await.err()?;
            Some(format!("{}: {refusal}", target.settings.name))
        });
        let missing: Vec<String> = join_all(asked).await.into_iter().flatten().collect();
        match missing.as_slice() {
            [] => text(StatusCode::OK, "ready"),
            _ => text(StatusCode::SERVICE_UNAVAILABLE, missing.join("\n")),
        }
    }

    fn known(&self) -> impl Iterator<Item = Known<'_>> {
        self.targets.iter().filter_map(|target| Some(Known { target, last: self.held.last(&target.wanted)? }))
    }

    /// Waits for the first credentials of those targets that are not known yet: at most `hold`, and hardly at all where
    /// there is somebody to answer with.
    ///
    /// # Errors
    /// What kept some of them unknown.
    async fn learn(&self, found: bool, hold: Duration) -> Result<(), Refusal> {
        let hold = if found { SHORT_HOLD } else { hold };
        let unknown = self.targets.iter().filter(|target| self.held.last(&target.wanted).is_none());
        let learned = join_all(unknown.map(|target| self.held.get(&target.wanted, hold))).await;
        // What time may mend counts for more.
        let refusals = learned.into_iter().filter_map(Result::err);
        let worst = refusals.min_by_key(|refusal| !matches!(refusal.kind, Kind::Away(_)));
        worst.map_or(Ok(()), Err)
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    answer
}

/// Whole seconds in which the credential is good.
fn expires_in(credential: &Credential, clock: &dyn Clock) -> u64 {
    credential.left(clock.now()).as_secs()
}

/// Of the query's parameters, those of this name.
fn parameters(request: &Parts, name: &str) -> Vec<String> {
    let query = request.uri.query().unwrap_or_default().as_bytes();
    let pairs = url::form_urlencoded::parse(query);
    pairs.filter(|(key, _value)| key == name).map(|(_key, value)| value.into_owned()).collect()
}

/// For clients that wait on: what they are told to wait.
const RETRY_AFTER: &str = "1";

const WARM_UP_HOLD: Duration = Duration::from_secs(30);
const WARM_UP_PAUSE: Duration = Duration::from_secs(1);

/// So that no second identity is overlooked when all of them come at once.
const SHORT_HOLD: Duration = Duration::from_millis(200);

/// Probes give up after a second or so.
const READINESS_HOLD: Duration = Duration::from_millis(500);

/// An agent of four targets, as their broker would describe them: two of Google, two of Azure.
#[cfg(test)]
struct World {
    source: Arc<source::FakeCredentials>,
    clock: crate::clock::ManualClock,
    agent: Arc<Agent>,
}

#[cfg(test)]
impl World {
    fn empty() -> Self {
        let (source, clock) = (Arc::new(source::FakeCredentials::default()), crate::clock::ManualClock::start());
        let target = |name: &str| TargetSettings { name: name.to_owned(), ..TargetSettings::default() };
        let azure = TargetSettings {
            object_id: Some("77777777-7777-7777-7777-777777777777".to_owned()),
            resource_id: Some("/subscriptions/s/resourcegroups/ml/providers/p/userAssignedIdentities/ML".to_owned()),
            ..target("azure-ml")
        };
        let settings = Settings {
            targets: vec![azure, target("azure-storage"), target("vertex"), target("bigquery")],
            identity_header: Some(Secret::new("of-this-run")),
        };
        let agent = Agent::new(settings, source.clone(), Arc::new(clock.clone()));
        Self { source, clock, agent }
    }

    fn new() -> Self {
        let world = Self::empty();
        world.live_anew();
        world
    }

    /// All targets give credentials of an hour from now on.
    fn live_anew(&self) {
        let now = self.clock.now();
        let google = |token: &str, account: &str| Credential::google_for_test(token, account, now);
        let azure = |token: &str, resource: &str| {
            Credential::azure_for_test(token, "33333333-3333-3333-3333-333333333333", resource, now)
        };
        self.gives("azure-ml", azure("ml-token", "https://ml.azure.com/.default"));
        self.gives("azure-storage", azure("storage-token", "https://storage.azure.com/.default"));
        self.gives("vertex", google("vertex-token", "trainer@ml.iam.gserviceaccount.com"));
        self.gives("bigquery", google("bigquery-token", "reader@data.iam.gserviceaccount.com"));
    }

    fn gives(&self, target: &str, credential: Credential) {
        self.source.set(Wanted::access_token(target), Ok(credential));
    }

    fn refuses(&self, target: &str, refusal: Refusal) {
        self.source.set(Wanted::access_token(target), Err(refusal));
    }

    /// A request's status, headers and body.
    async fn ask(&self, request: http::request::Builder) -> (u16, http::HeaderMap, String) {
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let (answer, body) = self.agent.answer(&head).await.into_parts();
        let body = http_body_util::BodyExt::collect(body).await.expect("a body").to_bytes();
        (answer.status.as_u16(), answer.headers, String::from_utf8(body.to_vec()).expect("text"))
    }
}

#[cfg(test)]
mod tests;

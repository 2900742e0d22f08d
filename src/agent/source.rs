//! Where the agent's credentials come from: the port, what comes through it, and the plain exchange behind it.

use std::fmt;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::clock::{Clock as _, SystemClock};
use crate::grpc::{BrokerClock, call, passes, retry_delay};
use crate::proto;
use crate::proto::credential::Identity;
use crate::proto::token_exchange_client::TokenExchangeClient;
use crate::secret::Secret;
use crate::subject_source::{Fault, SourceError, SubjectSource};
use crate::target::TokenType;
use crate::telemetry::Causes;

/// What is asked for: an access token of a target, or an ID token with an audience.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    pub target: String,
    pub id_token_audience: Option<String>,
}

/// What a target's credential is and whom it acts as.
#[derive(Debug, Clone)]
pub struct Credential {
    pub token: Secret,
    pub scopes: Vec<String>,
    pub expires_at: SystemTime,
    pub refresh_after: SystemTime,
    pub obtained_at: SystemTime,
    /// The same by the clock that nobody sets.
    pub obtained: Instant,
    pub cloud: Cloud,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cloud {
    Google {
        /// `principal://iam.googleapis.com/projects/NUMBER/...`
        principal: String,
        /// Empty for direct resource access.
        service_account: String,
    },
    Azure {
        client_id: String,
    },
}

/// Why there is no credential.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub kind: Kind,
    /// For whoever reads the client's error: reason and exchange id, never a token.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Access is denied or has ended: what is held must not be used any more.
    Denied,
    /// It cannot be had, and asking again does not change that; what is held stays good.
    Failed,
    /// Not now.
    Away(Duration),
}

/// Gives credentials. Declared by the agent, fulfilled by a lease or by plain exchanges.
#[async_trait::async_trait]
pub trait Credentials: fmt::Debug + Send + Sync {
    async fn credential(&self, wanted: &Wanted) -> Result<Credential, Refusal>;
}

impl Wanted {
    pub fn access_token(target: impl Into<String>) -> Self {
        Self { target: target.into(), id_token_audience: None }
    }

    fn request(&self) -> proto::TargetRequest {
        let id_token = self.id_token_audience.as_ref().map(|_audience| TokenType::IdToken.urn());
        proto::TargetRequest {
            target: self.target.clone(),
            requested_token_type: id_token.unwrap_or_default().to_owned(),
            audience: self.id_token_audience.clone().unwrap_or_default(),
            ..Default::default()
        }
    }
}

impl Refusal {
    pub fn denied(message: impl Into<String>) -> Self {
        Self { kind: Kind::Denied, message: message.into() }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, message: message.into() }
    }

    pub fn away(message: impl Into<String>) -> Self {
        Self { kind: Kind::Away(Duration::ZERO), message: message.into() }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let reason = info.map(|info| info.reason.as_str()).unwrap_or_default();
        let kind = match reason {
            "DENIED" | "GROUPS_OVERAGE" | "LEASE_NOT_FOUND" | "LEASE_ENDED" => Kind::Denied,
            _ if passes(&status) => Kind::Away(retry_delay(&status)),
            _ => Kind::Failed,
        };
        let id = info.and_then(|info| info.metadata.get("exchange_id"));
        let id = id.map(|id| format!(", exchange {id}")).unwrap_or_default();
        let reason = if reason.is_empty() { format!("{:?}", status.code()) } else { reason.to_owned() };
        Self { kind, message: format!("{} ({reason}{id})", status.message()) }
    }
}

impl From<SourceError> for Refusal {
    fn from(error: SourceError) -> Self {
        let message = Causes(&error).to_string();
        match error.fault() {
            Fault::Usage | Fault::Refused => Self::failed(message),
            // What the platform writes it has perhaps not written yet.
            Fault::Unavailable | Fault::Machine => Self::away(message),
        }
    }
}

impl Credential {
    /// `head` tells the broker's clock: the credential's times are put down by this machine's.
    ///
    /// # Errors
    /// Where the broker's answer lacks what belongs to a credential.
    pub fn read(answer: proto::Credential, head: &MetadataMap) -> Result<Self, Refusal> {
        let clock = BrokerClock::of(head);
        let time = |stamp: Option<prost_types::Timestamp>| {
            stamp.and_then(|stamp| SystemTime::try_from(stamp).ok()).map(|time| clock.here(time))
        };
        let cloud = match answer.identity {
            Some(Identity::Google(google)) => {
                Cloud::Google { principal: google.principal, service_account: google.service_account }
            }
            Some(Identity::Azure(azure)) => Cloud::Azure { client_id: azure.client_id },
            None => return Err(Refusal::failed("the broker's answer does not say which cloud the credential is for")),
        };
        let token = Secret::new(answer.token);
        let expires_at = time(answer.expires_at);
        let expires_at = expires_at.ok_or_else(|| Refusal::failed("the broker's answer does not say when it ends"))?;
        let refresh_after = time(answer.refresh_after).unwrap_or(expires_at);
        let (obtained_at, obtained) = (SystemClock.now(), Instant::now());
        Ok(Self { token, scopes: answer.scopes, expires_at, refresh_after, obtained_at, obtained, cloud })
    }

    /// As it comes to whoever holds it, and by the holder's clock.
    pub(super) fn arrived(self, now: SystemTime) -> Self {
        Self { obtained_at: now, obtained: Instant::now(), ..self }
    }

    /// How long it is still good, by whichever clock says less: the machine's may be set back, and the other one stands
    /// still while the machine sleeps.
    pub(super) fn left(&self, now: SystemTime) -> Duration {
        let by_life = self.life().saturating_sub(self.obtained.elapsed());
        self.expires_at.duration_since(now).unwrap_or_default().min(by_life)
    }

    /// Whether it is time for its successor.
    pub(super) fn is_due(&self, now: SystemTime) -> bool {
        now >= self.refresh_after || self.obtained.elapsed() >= self.after(self.refresh_after)
    }

    /// From its arrival on.
    pub(super) fn life(&self) -> Duration {
        self.after(self.expires_at)
    }

    fn after(&self, time: SystemTime) -> Duration {
        time.duration_since(self.obtained_at).unwrap_or_default()
    }
}

/// One exchange for each credential; the subject token is read anew for each.
pub struct Exchanges {
    client: TokenExchangeClient<Channel>,
    subject: SubjectSource,
    job: proto::Job,
}

impl Exchanges {
    pub fn new(channel: Channel, subject: SubjectSource, job: proto::Job) -> Self {
        Self { client: TokenExchangeClient::new(channel), subject, job }
    }
}

#[async_trait::async_trait]
impl Credentials for Exchanges {
    async fn credential(&self, wanted: &Wanted) -> Result<Credential, Refusal> {
        let token = self.subject.token().await?;
        let request = proto::ExchangeRequest {
            subject_token: token.expose().to_owned(),
            subject_token_type: String::new(),
            targets: vec![wanted.request()],
            job: Some(self.job.clone()),
        };
        let (head, answer, _extensions) = self.client.clone().exchange(call(request)).await?.into_parts();
        one(answer.credentials, &head)
    }
}

/// The one credential that was asked for.
pub(super) fn one(credentials: Vec<proto::Credential>, head: &MetadataMap) -> Result<Credential, Refusal> {
    let first = credentials.into_iter().next();
    first
        .ok_or_else(|| Refusal::failed("the broker's answer holds no credential"))
        .and_then(|first| Credential::read(first, head))
}

impl fmt::Debug for Exchanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exchanges")
    }
}

/// Gives what a test has put there, and counts the calls.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct FakeCredentials(std::sync::Mutex<Fake>);

#[cfg(test)]
#[derive(Debug, Default)]
struct Fake {
    answers: std::collections::HashMap<Wanted, Result<Credential, Refusal>>,
    takes: Duration,
    calls: usize,
}

#[cfg(test)]
impl FakeCredentials {
    pub fn set(&self, wanted: Wanted, answer: Result<Credential, Refusal>) {
        self.locked().answers.insert(wanted, answer);
    }

    /// Each call from now on.
    pub fn takes(&self, time: Duration) {
        self.locked().takes = time;
    }

    pub fn calls(&self) -> usize {
        self.locked().calls
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Fake> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
#[async_trait::async_trait]
impl Credentials for FakeCredentials {
    async fn credential(&self, wanted: &Wanted) -> Result<Credential, Refusal> {
        let takes = {
            let mut fake = self.locked();
            fake.calls += 1;
            fake.takes
        };
        tokio::time::sleep(takes).await;
        let answer = self.locked().answers.get(wanted).cloned();
        answer.unwrap_or_else(|| Err(Refusal::away("nothing is there yet")))
    }
}

#[cfg(test)]
impl Credential {
    /// Of an hour, to be refreshed after 45 minutes.
    pub(super) fn google_for_test(token: &str, service_account: &str, now: SystemTime) -> Self {
        let principal =
            "principal://iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml/subject/x";
        let cloud = Cloud::Google { principal: principal.to_owned(), service_account: service_account.to_owned() };
        Self::for_test(token, "https://www.googleapis.com/auth/cloud-platform", cloud, now)
    }

    pub(super) fn azure_for_test(token: &str, client_id: &str, scope: &str, now: SystemTime) -> Self {
        Self::for_test(token, scope, Cloud::Azure { client_id: client_id.to_owned() }, now)
    }

    fn for_test(token: &str, scope: &str, cloud: Cloud, now: SystemTime) -> Self {
        Self {
            token: Secret::new(token),
            scopes: vec![scope.to_owned()],
            expires_at: now + Duration::from_secs(3600),
            refresh_after: now + Duration::from_secs(2700),
            obtained_at: now,
            obtained: Instant::now(),
            cloud,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_times_are_put_down_by_this_machines_clock_where_it_is_wrong() {
        let stamp = |ahead: u64| Some((SystemClock.now() + Duration::from_secs(ahead)).into());
        let answer = |ahead: u64| proto::Credential {
            identity: Some(Identity::Azure(proto::AzureIdentity::default())),
            expires_at: stamp(ahead + 3600),
            refresh_after: stamp(ahead + 2700),
            ..Default::default()
        };
        let head = |ahead: i64| {
            let date =
                jiff::Timestamp::try_from(SystemClock.now()).expect("a time") + jiff::SignedDuration::from_secs(ahead);
            let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
            let mut head = MetadataMap::new();
            head.insert("date", date.parse().expect("a value"));
            head
        };
        // This machine's clock is two hours behind, then in time.
        for (broker, head) in [(7200, head(7200)), (0, head(0)), (0, MetadataMap::new())] {
            let read = Credential::read(answer(broker), &head).expect("a credential");
            let left = read.left(SystemClock.now()).as_secs();
            assert!((3595..=3600).contains(&left), "{left}");
            assert!(!read.is_due(SystemClock.now() + Duration::from_secs(2600)));
            assert!(read.is_due(SystemClock.now() + Duration::from_secs(2800)));
        }
    }
}

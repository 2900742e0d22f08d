//! Google: the Security Token Service, and a service account's tokens after it.

mod impersonation;
mod probe;
mod sts;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use self::impersonation::Impersonation;
use self::sts::Exchange;
use super::correlation::{Mark, STS_EXCHANGE_ID};
use super::upstream::{Upstreams, holder};
use super::{Cache, Call, CloudIdentity, Credential, Hit, Hop, IssueError, Key, Service, Signer, is_id_token};
use crate::clock::{Clock, from_unix_seconds, unix_seconds};
use crate::http::{Request, Response};
use crate::issuer::Assertion;
use crate::policy::GOOGLE_USUAL;
use crate::secret::{FieldDigest, Secret};
use crate::target::{GoogleSubjectToken, GoogleTarget, ServiceAccount, TokenType};

/// Exchanges subject tokens and impersonates.
#[derive(Debug)]
pub(super) struct Google {
    upstreams: Arc<Upstreams>,
    signer: Signer,
    clock: Arc<dyn Clock>,
    /// Federated tokens that impersonate: one serves all scopes and lifetimes of its principal, because the quota of
    /// impersonations is ten times that of exchanges. Key: provider and what was asserted.
    federated: Arc<Cache>,
    /// The longest life that Google grants each service account, where it refused a longer one. Bound: the
    /// configured accounts.
    limits: Mutex<HashMap<ServiceAccount, (Duration, SystemTime)>>,
}

impl Google {
    pub fn new(upstreams: Arc<Upstreams>, signer: Signer, clock: Arc<dyn Clock>) -> Self {
        let federated = Arc::new(Cache::new("google_federated", clock.clone()));
        Self { upstreams, signer, clock, federated, limits: Mutex::default() }
    }

    pub async fn issue(&self, target: &GoogleTarget, call: &Call) -> Result<Credential, IssueError> {
        if call.grant.token_type() == TokenType::Jwt {
            return self.assertion(target, call);
        }
        match &target.service_account {
            None => {
                let scope = call.grant.scopes().joined();
                self.exchange(target, call, scope, call.grant.plan().lifetime)?.run().await
            }
            Some(account) => match self.impersonate(target, account, call).await {
                // A federated token that Google no longer knows: a new one may do.
                Err(IssueError::Refused { code, .. }) if code == impersonation::UNAUTHENTICATED => {
                    self.federated.forget(&federated_key(target, call));
                    self.impersonate(target, account, call).await
                }
                result => result,
            },
        }
    }

    pub fn services(&self, target: &GoogleTarget) -> Vec<Service> {
        let mut services = vec![self.upstreams.service(Hop::GoogleSts, &quota(target))];
        if target.service_account.is_some() {
            services.push(self.upstreams.service(Hop::GoogleIam, target.iam_credentials_endpoint.as_str()));
        }
        services
    }

    /// The assertion itself. It acts as no service account: Google decides whom its holder may impersonate.
    fn assertion(&self, target: &GoogleTarget, call: &Call) -> Result<Credential, IssueError> {
        let lifetime = call.grant.plan().lifetime;
        // Before the signature and in the whole seconds of its `exp`, so that nothing is called good for longer than it is.
        let now = self.clock.now();
        let now = from_unix_seconds(unix_seconds(now)).unwrap_or(now);
        let token = self.signer.assertion_for(call, lifetime)?;
        let assertion = Assertion::for_grant(&call.grant);
        let subject = assertion.as_ref().map(Assertion::subject).unwrap_or_default();
        let identity = CloudIdentity::Google { principal: target.provider.principal(subject), service_account: None };
        Ok(Credential::new(token, now, now + lifetime, lifetime, identity))
    }

    /// A federated token for `scope`; nothing is sent before it is awaited.
    fn exchange(
        &self,
        target: &GoogleTarget,
        call: &Call,
        scope: String,
        asked: Duration,
    ) -> Result<Exchange, IssueError> {
        let (subject_token, subject) = match target.subject_token {
            GoogleSubjectToken::Issuer => {
                let subject = Assertion::for_grant(&call.grant).map(|assertion| assertion.subject().to_owned());
                (self.signer.assertion(call)?, subject.unwrap_or_default())
            }
            GoogleSubjectToken::Entra => {
                // The usual mapping (google.subject=assertion.sub); the pool may map otherwise.
                let subject = call.grant.identity().claims().get("sub").and_then(serde_json::Value::as_str);
                (call.subject_token(Hop::GoogleSts)?.secret().clone(), subject.unwrap_or_default().to_owned())
            }
        };
        Ok(Exchange {
            upstream: self.upstreams.of(Hop::GoogleSts, &quota(target), holder(call.grant.identity())),
            clock: self.clock.clone(),
            url: target.sts_endpoint.join("v1/token"),
            provider: target.provider.clone(),
            subject_token,
            presents: target.subject_token,
            scope,
            asked,
            principal: target.provider.principal(&subject),
            mark: Mark::of(call),
        })
    }

    async fn impersonate(
        &self,
        target: &GoogleTarget,
        account: &ServiceAccount,
        call: &Call,
    ) -> Result<Credential, IssueError> {
        let federated = self.federated(target, call).await?;
        let CloudIdentity::Google { principal, .. } = &federated.credential.identity else {
            return Err(IssueError::refused(Hop::Broker, "mixed_up", "a federated token of another cloud"));
        };
        let mut upstream_ids = federated.credential.upstream.clone();
        if federated.credential.minted_by != call.exchange_id {
            upstream_ids.push((STS_EXCHANGE_ID, federated.credential.minted_by.to_string()));
        }
        let impersonation = Impersonation {
            upstream: self.upstreams.of(
                Hop::GoogleIam,
                target.iam_credentials_endpoint.as_str(),
                holder(call.grant.identity()),
            ),
            clock: self.clock.clone(),
            endpoint: target.iam_credentials_endpoint.clone(),
            account: account.clone(),
            principal: principal.clone(),
            bearer: federated.credential.token.clone(),
            mark: Mark::of(call),
            federated: upstream_ids,
        };
        if is_id_token(&call.grant) {
            return impersonation.id_token(call.grant.audience(), call.grant.plan().lifetime).await;
        }
        let asked = call.grant.plan().lifetime;
        let first = asked.min(self.limit(account));
        let shorter = [GOOGLE_USUAL, SURELY_ACCEPTED].into_iter().filter(|lifetime| *lifetime < first);
        for lifetime in std::iter::once(first).chain(shorter) {
            match impersonation.access_token(call.grant.scopes(), lifetime, asked).await {
                Err(impersonation::AccessError::TooLong) => self.remember_refusal(account, lifetime),
                Err(impersonation::AccessError::Other(error)) => return Err(error),
                Ok(credential) => return Ok(credential),
            }
        }
        Err(impersonation::too_long())
    }

    async fn federated(&self, target: &GoogleTarget, call: &Call) -> Result<Hit, IssueError> {
        let mint = || {
            let exchange = self.exchange(target, call, IAM_SCOPE.to_owned(), FEDERATED_LEAST);
            async { exchange?.run().await }
        };
        self.federated.get(federated_key(target, call), FEDERATED_LEAST, mint).await
    }

    fn limit(&self, account: &ServiceAccount) -> Duration {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = limits.get(account).filter(|(_limit, until)| self.clock.now() < *until);
        remembered.map_or(Duration::MAX, |(limit, _until)| *limit)
    }

    /// Above an hour the organization policy is missing; at an hour sharp the clocks differ (Google's own
    /// troubleshooting page: ask for 3300).
    fn remember_refusal(&self, account: &ServiceAccount, lifetime: Duration) {
        let limit = if lifetime > GOOGLE_USUAL { GOOGLE_USUAL } else { SURELY_ACCEPTED };
        tracing::warn!(
            google.service_account = %account,
            "Google refuses {account} a lifetime of {}s; for the next hour {}s are asked for. For more, list it in \
             constraints/iam.allowServiceAccountCredentialLifetimeExtension",
            lifetime.as_secs(),
            limit.as_secs()
        );
        self.limits
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(account.clone(), (limit, self.clock.now() + REFUSAL_MEMORY));
    }
}

/// What was asserted, to which provider.
fn federated_key(target: &GoogleTarget, call: &Call) -> Key {
    let mut digest = FieldDigest::new("carnet federated 1");
    digest.field(target.sts_endpoint.as_str().as_bytes()).field(target.provider.as_str().as_bytes());
    match Assertion::for_grant(&call.grant) {
        Some(assertion) => assertion.digest_into(digest.field(b"assertion")),
        None => {
            digest.field(b"subject token").field(&call.grant.identity().token_sha256());
        }
    }
    digest.finish()
}

/// Google counts exchanges by project: the number in the provider's name.
fn quota(target: &GoogleTarget) -> String {
    let project = target.provider.as_str().split('/').nth(4).unwrap_or_default();
    format!("{} {project}", target.sts_endpoint)
}

/// `Bearer`, for the IAM Credentials API only: the exchange itself takes no `Authorization` (Google: STS reference).
fn bearing(request: Request, token: &Secret) -> Result<Request, IssueError> {
    let unsendable =
        |_cause| IssueError::refused(Hop::GoogleSts, "token", "a federated token that no header can carry");
    request.header(http::header::AUTHORIZATION, &format!("Bearer {}", token.expose())).map_err(unsendable)
}

/// `google.rpc.Status` in JSON: the IAM Credentials API's refusals, and those of Google's front end before either service.
#[derive(Deserialize, Default)]
struct Status {
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
}

impl Status {
    fn read(response: &Response) -> Self {
        #[derive(Deserialize, Default)]
        struct Failure {
            #[serde(default)]
            error: Status,
        }

        serde_json::from_slice::<Failure>(&response.body).unwrap_or_default().error
    }
}

/// The front end's words for an API that is not enabled in the project (`SERVICE_DISABLED` among the details).
const API_IS_OFF: &str = "has not been used in project";

/// Enough for `generateAccessToken` and `generateIdToken`, and for nothing else.
const IAM_SCOPE: &str = "https://www.googleapis.com/auth/iam";

/// An impersonation takes a second; this leaves room for its retries.
const FEDERATED_LEAST: Duration = Duration::from_secs(60);

/// Accepted even where the clocks differ.
const SURELY_ACCEPTED: Duration = Duration::from_secs(3300);

/// Then the longer life is tried again: somebody may have listed the account since.
const REFUSAL_MEMORY: Duration = Duration::from_secs(3600);

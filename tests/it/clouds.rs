//! Grants become credentials at the stand-ins of both clouds: what is sent, what comes back, what becomes of faults.
#![cfg(test)]

mod azure;
mod google;
mod upstream;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use carnet::clock::{Clock, ManualClock};
use carnet::credential::{Call, Clouds, Credential, CredentialProvider as _, Credentials, IssueError};
use carnet::http::{Client, Settings};
use carnet::issuer::{Algorithm, Issuer, Keyring, SigningKey, StoredKey};
use carnet::policy::{Ask, ExcessScopes, Inquiry, Policy, RuleDocument};
use carnet::reason::Reason;
use carnet::sandbox::{
    AssignedIdentity, Calls, Entra, EntraToken, Fault, FederatedCredential, Google, Identity, ManagedIdentity,
    OidcIssuer, PoolProvider,
};
use carnet::secret::Secret;
use carnet::subject::{self, EntraVerifier, SubjectToken, Verifier as _};
use carnet::target::{
    AzureSource, AzureTarget, GoogleSubjectToken, GoogleTarget, Job, Platform, Sharing, Target, TokenType,
};
use http::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::hurry::Hurry;

const TENANT: &str = "11111111-1111-4111-8111-111111111111";
const OTHER_TENANT: &str = "22222222-2222-4222-8222-222222222222";
/// The broker's own application: the audience of subject tokens.
const BROKER: &str = "33333333-3333-4333-8333-333333333333";
const OBJECT: &str = "44444444-4444-4444-8444-444444444444";
const OTHER_OBJECT: &str = "55555555-5555-4555-8555-555555555555";
const USER: &str = "66666666-6666-4666-8666-666666666666";
/// The managed identity that Azure targets act as.
const IDENTITY: &str = "77777777-7777-4777-8777-777777777777";
const PRINCIPAL_ID: &str = "88888888-8888-4888-8888-888888888888";

const POOL: &str = "//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool";
const ACCOUNT: &str = "trainer@ml-prod.iam.gserviceaccount.com";
const OTHER_ACCOUNT: &str = "reader@ml-prod.iam.gserviceaccount.com";
const CLOUD: &str = "https://www.googleapis.com/auth/cloud-platform";
const STORAGE: &str = "https://storage.azure.com/.default";
const CLUSTER_SUBJECT: &str = "system:serviceaccount:ml:carnet";
const TOKEN_EXCHANGE: &str = "api://AzureADTokenExchange";

const STS: &str = "/v1/token";
const ACCESS: &str = ":generateAccessToken";
const ID: &str = ":generateIdToken";
const ENTRA: &str = "/oauth2/v2.0/token";
const DISCOVERY: &str = "/.well-known/openid-configuration";
const IMDS: &str = "/metadata/identity/oauth2/token";

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Both clouds, Entra and the broker's issuer, set up so that everything works; a test changes one thing.
struct World {
    clock: ManualClock,
    entra: Entra,
    google: Google,
    machine: ManagedIdentity,
    /// Publishes the broker's keys under the broker's issuer URL.
    published: OidcIssuer,
    issuer: Arc<Issuer>,
    verifier: EntraVerifier,
    http: Client,
    clouds: Arc<Clouds>,
    /// Where a cluster would put the broker's service account token.
    file: tempfile::NamedTempFile,
    _hurry: Hurry,
}

impl World {
    async fn new() -> Self {
        let hurry = Hurry::start();
        let clock = ManualClock::start();
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let entra = Entra::start(shared.clone(), [TENANT]).await.unwrap();
        let google = Google::start(shared.clone()).await.unwrap();
        let machine = ManagedIdentity::start(&entra, TENANT).await.unwrap();
        let published = OidcIssuer::start().await.unwrap();
        let keys = Keyring::stored(&KEYS, None).unwrap();
        let issuer = Arc::new(Issuer::new(published.issuer().to_owned(), keys, shared.clone()));
        machine.assign(AssignedIdentity {
            client_id: IDENTITY.to_owned(),
            object_id: PRINCIPAL_ID.to_owned(),
            resource_id: "/subscriptions/s/userAssignedIdentities/trainer".to_owned(),
        });
        let http = Client::new(&Settings::default()).unwrap();
        let settings = subject::Settings {
            authority: entra.authority().parse().unwrap(),
            tenants: vec![TENANT.parse().unwrap()],
            audiences: vec![BROKER.to_owned()],
            clock_skew: Duration::from_secs(60),
        };
        let verifier = EntraVerifier::new(settings, http.clone(), shared.clone());
        let clouds = Arc::new(Clouds::new(http.clone(), Some(issuer.clone()), shared));
        let file = tempfile::NamedTempFile::new().unwrap();
        let world =
            Self { clock, entra, google, machine, published, issuer, verifier, http, clouds, file, _hurry: hurry };
        world.trust_google();
        world.trust_entra();
        world
    }

    fn trust_google(&self) {
        self.google.register_provider(self.provider().keys(self.issuer.jwks().to_string())).unwrap();
        for account in [ACCOUNT, OTHER_ACCOUNT] {
            self.google.bind(account, &format!("principalSet:{POOL}/*"));
        }
    }

    /// No fault is planned any more.
    fn recover(&self) {
        for faults in [self.google.faults(), self.entra.faults(), self.machine.faults(), self.published.faults()] {
            for endpoint in ["", STS, ACCESS, ID, ENTRA, IMDS, DISCOVERY, "/keys"] {
                faults.clear(endpoint);
            }
        }
    }

    fn trust_entra(&self) {
        self.entra.set_default_audience(BROKER);
        self.entra.register(Identity::managed_identity(TENANT, IDENTITY, PRINCIPAL_ID));
        self.entra.register(Identity::app(TENANT, BROKER, OTHER_OBJECT));
        for client in [IDENTITY, BROKER] {
            let credential = FederatedCredential::new(self.published.issuer(), "carnet:t");
            self.entra.trust(client, credential).unwrap();
        }
        let cluster = FederatedCredential::new(self.published.issuer(), CLUSTER_SUBJECT);
        self.entra.trust(IDENTITY, cluster).unwrap();
        let mut keys = self.issuer.jwks()["keys"].as_array().unwrap().clone();
        keys.push(self.published.rsa_key().jwk());
        self.published.publish(keys);
        self.entra.forget_issuer_keys();
    }

    /// The provider before its keys are uploaded.
    fn provider(&self) -> PoolProvider {
        PoolProvider::new(provider(), self.published.issuer())
    }

    fn google(&self) -> Target {
        Target {
            name: "t".parse().unwrap(),
            platform: Platform::Google(GoogleTarget {
                hand_out_assertion: false,
                provider: provider().parse().unwrap(),
                subject_token: GoogleSubjectToken::Issuer,
                service_account: Some(ACCOUNT.parse().unwrap()),
                sts_endpoint: self.google.sts_endpoint().parse().unwrap(),
                iam_credentials_endpoint: self.google.iam_credentials_endpoint().parse().unwrap(),
            }),
            scopes: [CLOUD.parse().unwrap()].into_iter().collect(),
            sharing: Sharing::Subject,
            max_lifetime: 12 * HOUR,
            default_lifetime: HOUR,
            revision: [0; 32],
        }
    }

    fn google_with(&self, change: impl FnOnce(&mut GoogleTarget)) -> Target {
        let mut target = self.google();
        if let Platform::Google(google) = &mut target.platform {
            change(google);
        }
        target
    }

    /// Without impersonation.
    fn direct(&self) -> Target {
        self.google_with(|google| google.service_account = None)
    }

    fn azure(&self, source: AzureSource) -> Target {
        let client = if matches!(source, AzureSource::OnBehalfOf { .. }) { BROKER } else { IDENTITY };
        Target {
            platform: Platform::Azure(AzureTarget {
                tenant: TENANT.parse().unwrap(),
                client_id: client.parse().unwrap(),
                authority: self.entra.authority().parse().unwrap(),
                source,
            }),
            scopes: [STORAGE.parse().unwrap()].into_iter().collect(),
            ..self.google()
        }
    }

    /// With the broker's own assertion.
    fn federated(&self) -> Target {
        self.azure(AzureSource::Issuer { subject: "carnet:t".to_owned(), audience: TOKEN_EXCHANGE.to_owned() })
    }

    fn on_behalf_of(&self) -> Target {
        self.azure(AzureSource::OnBehalfOf { subject: "carnet:t".to_owned(), audience: TOKEN_EXCHANGE.to_owned() })
    }

    fn azure_with(&self, change: impl FnOnce(&mut AzureTarget)) -> Target {
        let mut target = self.federated();
        if let Platform::Azure(azure) = &mut target.platform {
            change(azure);
        }
        target
    }

    /// With the cluster's token, which is `text` from now on.
    fn token_file(&self, text: &str) -> Target {
        std::fs::write(self.file.path(), text).unwrap();
        self.azure(AzureSource::TokenFile(self.file.path().to_owned()))
    }

    /// A service account token of the cluster.
    fn cluster_token(&self, change: impl FnOnce(&mut Value)) -> String {
        let now = carnet::clock::unix_seconds(self.clock.now());
        let mut claims = json!({
            "iss": self.published.issuer(), "sub": CLUSTER_SUBJECT, "aud": TOKEN_EXCHANGE, "iat": now, "exp": now + 3600,
        });
        change(&mut claims);
        self.published.sign(&claims)
    }

    fn token(&self) -> EntraToken {
        self.entra.app_token(TENANT, OBJECT)
    }

    /// A call with a grant of a policy that allows `target` to everybody.
    async fn call(&self, target: Target) -> Call {
        self.call_with(target, self.token(), |_ask| {}).await
    }

    async fn call_with(&self, target: Target, token: EntraToken, change: impl FnOnce(&mut Ask)) -> Call {
        self.granted(target, token, Job::default(), change).await
    }

    async fn granted(&self, target: Target, token: EntraToken, job: Job, change: impl FnOnce(&mut Ask)) -> Call {
        let rules: Vec<RuleDocument> =
            serde_json::from_value(json!([{"name": "all", "targets": [target.name.as_str()], "when": "true"}]))
                .unwrap();
        let mut ask = Ask {
            target: target.name.to_string(),
            scopes: std::iter::empty().collect(),
            excess: ExcessScopes::Refuse,
            token_type: TokenType::AccessToken,
            audience: None,
            lifetime: None,
            beyond: None,
        };
        change(&mut ask);
        let subject_token = SubjectToken::new(Secret::new(token.sign())).unwrap();
        let identity = self.verifier.verify(&subject_token).await.unwrap();
        let policy = Policy::compile(&rules, vec![target]).unwrap();
        let grant = policy.decide(Inquiry::once(&identity, &Arc::new(job), self.clock.now()), &ask).unwrap();
        Call {
            grant: Arc::new(grant),
            subject_token: Some(subject_token),
            exchange_id: Uuid::now_v7(),
            purpose: carnet::credential::Purpose::Exchange,
        }
    }

    async fn call_for_job(&self, target: Target, job: Job) -> Call {
        self.granted(target, self.token(), job, |_ask| {}).await
    }

    async fn issue(&self, call: &Call) -> Result<Credential, IssueError> {
        self.clouds.issue(call).await
    }

    async fn issue_for(&self, target: Target) -> Result<Credential, IssueError> {
        self.issue(&self.call(target).await).await
    }

    fn credentials(&self) -> Credentials {
        Credentials::new(self.clouds.clone(), Arc::new(self.clock.clone()))
    }

    /// The same, knowing nothing of earlier calls: no budget spent, nothing cached.
    fn fresh_clouds(&self) -> Clouds {
        Clouds::new(self.http.clone(), Some(self.issuer.clone()), Arc::new(self.clock.clone()))
    }

    /// What becomes of `call`, which must fail, and how often `endpoint` is called for it.
    async fn failure(&self, call: &Call, endpoint: &str) -> Failure {
        self.for_each_calls(Calls::clear);
        let error = self.fresh_clouds().issue(call).await.unwrap_err();
        let calls = self.count(endpoint);
        self.assert_tells_no_secret(&format!("{error} {error:?}"));
        let code = error.code().map(str::to_owned);
        Failure { reason: error.reason(), code, calls, error }
    }

    fn count(&self, endpoint: &str) -> usize {
        [self.google.calls(), self.entra.calls(), self.machine.calls()].map(|calls| calls.count(endpoint)).iter().sum()
    }

    /// Q01, I27: no token or assertion that was on the wire is in `text`, whole or its last part.
    fn assert_tells_no_secret(&self, text: &str) {
        for call in [self.google.calls(), self.entra.calls(), self.machine.calls()].iter().flat_map(|calls| calls.all())
        {
            let fields = ["subject_token", "client_assertion", "assertion"];
            let in_form = fields.iter().filter_map(|name| call.form(name));
            let in_headers = ["authorization", "x-identity-header"].iter().filter_map(|name| call.header(name));
            for secret in in_form.chain(in_headers) {
                let tail = secret.rsplit(['.', ' ']).next().unwrap();
                assert!(tail.is_empty() || !text.contains(tail), "a secret in: {text}");
            }
        }
    }

    fn for_each_calls(&self, act: impl Fn(&Calls)) {
        for calls in [self.google.calls(), self.entra.calls(), self.machine.calls()] {
            act(calls);
        }
    }
}

/// A failed call as the caller, the record and the upstream see it.
#[derive(Debug)]
struct Failure {
    reason: Reason,
    code: Option<String>,
    calls: usize,
    error: IssueError,
}

impl Failure {
    fn summary(&self) -> (Reason, Option<&str>, usize) {
        (self.reason, self.code.as_deref(), self.calls)
    }
}

fn provider() -> String {
    format!("{POOL}/providers/carnet")
}

fn principal(subject: &str) -> String {
    format!("principal:{POOL}/subject/{subject}")
}

fn answer(status: StatusCode, body: &Value) -> Fault {
    Fault::answer(status, &[("content-type", "application/json")], body.to_string()).unwrap()
}

/// `google.rpc.Status`, as IAM Credentials writes it.
fn iam_error(status: StatusCode, code: &str, message: &str) -> Fault {
    answer(status, &json!({"error": {"code": status.as_u16(), "message": message, "status": code}}))
}

fn sts_error(error: &str, description: &str) -> Fault {
    answer(StatusCode::BAD_REQUEST, &json!({"error": error, "error_description": description}))
}

/// Entra's error answer of section "errors" in its token endpoint reference.
fn entra_error(status: StatusCode, code: u64) -> Fault {
    answer(
        status,
        &json!({
            "error": "invalid_request",
            "error_description": format!("AADSTS{code}: text. Trace ID: t Correlation ID: c Timestamp: 2026-01-01 00:00:00Z"),
            "error_codes": [code],
            "trace_id": "0d7ff3a5-6d3b-4b4c-9a9e-1f2d3c4b5a69",
            "correlation_id": "5b1c3a5e-9f0d-4f8b-8a1e-2d3c4b5a6978",
        }),
    )
}

/// The claims of a JWT that was on the wire.
fn claims(token: &str) -> Value {
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice(&payload).unwrap()
}

fn assert_same_second(left: SystemTime, right: SystemTime) {
    let apart = left.duration_since(right).unwrap_or_else(|earlier| earlier.duration());
    assert!(apart <= SECOND, "{left:?} and {right:?}");
}

/// One set for all tests: an RSA key takes a moment to make.
static KEYS: LazyLock<Vec<StoredKey>> = LazyLock::new(|| {
    Algorithm::ALL.map(|algorithm| SigningKey::generate(algorithm, ManualClock::start().now()).unwrap()).into()
});

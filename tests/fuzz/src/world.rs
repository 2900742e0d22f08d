//! What the targets share: a clock that stands still, one signing key, an Entra that publishes it, and a broker's parts.

use std::cell::LazyCell;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use carnet::clock::{Clock as _, ManualClock, unix_seconds};
use carnet::config::Config;
use carnet::http::{Client, Request, Response, Settings};
use carnet::issuer::{Algorithm, Issuer, Keyring, SigningKey as IssuerKey};
use carnet::policy::Policy;
use carnet::sandbox::SigningKey;
use carnet::secret::Secret;
use carnet::subject::{self, EntraVerifier, SubjectToken, VerifiedIdentity, Verifier as _};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

pub const TENANT: &str = "11111111-1111-1111-1111-111111111111";
pub const OBJECT: &str = "66666666-6666-6666-6666-666666666666";
pub const AUDIENCE: &str = "22222222-2222-2222-2222-222222222222";
pub const AUTHORITY: &str = "https://login.microsoftonline.com";

pub static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::rsa().with_kid("key"));

/// Made once: reading the system's authorities takes long.
pub static CLIENT: LazyLock<Client> = LazyLock::new(|| Client::new(&Settings::default()).expect("a client"));

pub static ISSUER: LazyLock<Arc<Issuer>> = LazyLock::new(|| {
    let key = |algorithm| {
        let stored = IssuerKey::generate(algorithm, SystemTime::UNIX_EPOCH).expect("a key");
        IssuerKey::from_pkcs8(&stored.pkcs8).expect("a key")
    };
    let keys = Keyring::brought(Algorithm::ALL.map(key).into()).expect("one of each");
    Arc::new(Issuer::new("https://carnet.example.com".to_owned(), keys, clock()))
});

/// The configuration whose targets and rules are asked.
pub static CONFIG: LazyLock<Config> = LazyLock::new(|| configured(CONFIGURED));

pub fn configured(text: &str) -> Config {
    let path = scratch("configuration");
    std::fs::write(&path, text).expect("a scratch file");
    let app_service = |name: &str| match name {
        "IDENTITY_ENDPOINT" => Some("http://127.0.0.1:41000/msi/token".to_owned()),
        "IDENTITY_HEADER" => Some("the-header-of-app-service".to_owned()),
        _ => None,
    };
    Config::load_with(&path, &app_service).expect("a good configuration")
}

/// Of a service principal and of a user.
pub static IDENTITIES: LazyLock<[Arc<VerifiedIdentity>; 2]> = LazyLock::new(|| {
    [app_claims(), user_claims()].map(|claims| {
        let token = SubjectToken::new(Secret::new(KEY.sign(&claims))).expect("a token");
        block_on(verifier().verify(&token)).expect("a good token")
    })
});

thread_local! {
    static RUNTIME: LazyCell<Runtime> = LazyCell::new(|| {
        Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
    });
}

/// Waiting takes no time: the clock of the runtime jumps to whatever is waited for.
pub fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

pub fn clock() -> Arc<ManualClock> {
    static CLOCK: LazyLock<Arc<ManualClock>> = LazyLock::new(|| Arc::new(ManualClock::start()));
    CLOCK.clone()
}

pub fn now() -> SystemTime {
    clock().now()
}

/// A file of this process, in memory where there is such a place.
pub fn scratch(name: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let directory = if memory.is_dir() { memory } else { std::env::temp_dir() };
    directory.join(format!("carnet-fuzz-{}-{name}.yaml", std::process::id()))
}

pub fn policy() -> &'static Policy {
    &CONFIG.policy
}

pub fn settings() -> subject::Settings {
    CONFIG.entra.clone()
}

/// Trusts [`KEY`], as its tenant publishes it.
pub fn verifier() -> EntraVerifier {
    EntraVerifier::new(settings(), CLIENT.answered_by(entra), clock())
}

/// What Entra publishes.
fn entra(request: &Request) -> Response {
    let body = match request.url().ends_with("openid-configuration") {
        true => {
            let issuer = match request.url().contains("/v2.0/") {
                true => format!("{AUTHORITY}/{TENANT}/v2.0"),
                false => format!("https://sts.windows.net/{TENANT}/"),
            };
            json!({"issuer": issuer, "jwks_uri": format!("{AUTHORITY}/{TENANT}/keys")})
        }
        false => json!({"keys": [KEY.jwk()]}),
    };
    answer(200, HeaderMap::new(), body.to_string().into_bytes())
}

pub fn answer(status: u16, headers: HeaderMap, body: Vec<u8>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    Response { status, headers, body: body.into(), peer_certificate: None }
}

pub fn app_claims() -> Value {
    let iat = unix_seconds(now());
    json!({
        "aud": AUDIENCE, "iss": format!("{AUTHORITY}/{TENANT}/v2.0"), "tid": TENANT, "ver": "2.0",
        "iat": iat, "nbf": iat, "exp": iat + 3600,
        "oid": OBJECT, "sub": OBJECT, "azp": "55555555-5555-5555-5555-555555555555", "azpacr": "2", "idtyp": "app",
        "roles": ["Training.Submit"], "groups": ["44444444-4444-4444-4444-444444444444"], "uti": "uti",
    })
}

pub fn user_claims() -> Value {
    let mut claims = app_claims();
    for (name, value) in [("sub", "pairwise"), ("azpacr", "0"), ("idtyp", "user"), ("scp", "jobs.submit")] {
        claims[name] = json!(value);
    }
    claims
}

/// A good token, the same in every call.
pub static TOKEN: LazyLock<String> = LazyLock::new(|| KEY.sign(&app_claims()));

/// Says what came of an input, where `CARNET_FUZZ_SHOW` is set: whether a seed gets as far as it is meant to.
pub fn show(what: impl FnOnce() -> String) {
    static SHOWN: LazyLock<bool> = LazyLock::new(|| std::env::var_os("CARNET_FUZZ_SHOW").is_some());
    if *SHOWN {
        eprintln!("{}", what());
    }
}

/// No part of the token `secret` stands in `shown`: what is shorter than its claims or signature could be, an input has by
/// chance or from what it was told.
pub fn assert_silent(shown: &str, secret: &str) {
    let parts = secret.split('.').filter(|part| part.len() > 100);
    for part in parts {
        assert!(!shown.contains(part), "a part of a secret is shown: {shown}");
    }
}

/// Longer than anything that a cloud issues lives (Entra's tokens with continuous access evaluation).
pub const LONGEST: Duration = Duration::from_secs(28 * 3600);

pub const CONFIGURED: &str = r#"
server: { grpc: "off", http: "off" }
entra:
  tenants: ["11111111-1111-1111-1111-111111111111"]
  audiences: ["22222222-2222-2222-2222-222222222222", "api://carnet"]
issuer: { url: "https://carnet.example.com" }
store: "sqlite:carnet.db"
store_key: "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
targets:
  google-direct:
    google: { audience: //iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/carnet }
  google-entra:
    google: { audience: //iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/carnet, subject_token: entra }
  google-account:
    google: { audience: //iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/carnet, service_account: trainer@ml-prod.iam.gserviceaccount.com, max_lifetime: 12h }
  azure-issuer:
    azure: { tenant: 11111111-1111-1111-1111-111111111111, client_id: 33333333-3333-3333-3333-333333333333, scopes: ["https://ml.azure.com/.default"], source: issuer }
  azure-machine:
    azure: { tenant: 11111111-1111-1111-1111-111111111111, client_id: 33333333-3333-3333-3333-333333333333, scopes: ["https://ml.azure.com/.default"], source: managed_identity, endpoint: "http://169.254.169.254" }
  azure-app-service:
    azure: { tenant: 11111111-1111-1111-1111-111111111111, client_id: 33333333-3333-3333-3333-333333333333, scopes: ["https://ml.azure.com/.default"], source: managed_identity }
  azure-user:
    azure: { tenant: 11111111-1111-1111-1111-111111111111, client_id: 33333333-3333-3333-3333-333333333333, scopes: ["https://ml.azure.com/.default"], source: on_behalf_of }
rules:
  - name: everything
    targets: [google-direct, google-entra, google-account, azure-issuer, azure-machine, azure-app-service, azure-user]
    subject: { roles: [Training.Submit] }
    max_lifetime: 12h
    lease: { max_duration: 72h, heartbeat: 5m }
    attributes: { team: 'job.labels["team"]' }
operators:
  - permissions: [explain, audit.read, leases.read, leases.revoke]
    subject: { tenants: ["11111111-1111-1111-1111-111111111111"], roles: [Training.Submit] }
"#;

//! One good set-up of every kind of target, and the ways to spoil it.

use std::sync::Arc;
use std::time::SystemTime;

use carnet::clock::{Clock, ManualClock, SystemClock, unix_seconds};
use carnet::config::Config;
use carnet::doctor::{Finding, Options, examine};
use carnet::sandbox::{
    AssignedIdentity, FederatedCredential, Identity, ManagedIdentity, OidcIssuer, PoolProvider, TokenVersion,
};
use serde_json::{Value, json};

use crate::support::{AUDIENCE, Broker, ML, PERSON, PROVIDER, Setup, TENANT, TRAINER};

pub const APP: &str = "88888888-8888-8888-8888-888888888888";
pub const APP_OBJECT: &str = "89898989-8989-8989-8989-898989898989";
pub const ENTRA_PROVIDER: &str =
    "//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/entra/providers/entra";
pub const POOL: &str = "//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool";

const RULES: &str = "
rules:
  - name: training
    targets: [vertex, azure-ml]
    subject: { roles: [Training.Submit] }
    max_lifetime: 1h
";

pub struct World {
    pub broker: Broker,
    pub machine: ManagedIdentity,
    pub cluster: OidcIssuer,
    /// Stands where the issuer's documents are served from, for those that are not the broker's own.
    pub published: OidcIssuer,
    /// The configuration that is looked at.
    pub text: String,
    pub options: Options,
    clock: Arc<dyn Clock>,
}

impl World {
    pub async fn good() -> Self {
        let broker = Broker::start_for(Setup { rules: Some(RULES), ..Setup::default() }).await;
        let machine = ManagedIdentity::start(&broker.entra, TENANT).await.expect("a machine");
        machine.assign(AssignedIdentity {
            client_id: ML.to_owned(),
            object_id: PERSON.to_owned(),
            resource_id:
                "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/ml"
                    .to_owned(),
        });
        let cluster = OidcIssuer::start().await.expect("a cluster");
        let published = OidcIssuer::start().await.expect("another issuer");
        broker.entra.register(Identity::app(TENANT, APP, APP_OBJECT));
        let trust = |client, issuer: &str, subject| {
            broker.entra.trust(client, FederatedCredential::new(issuer, subject)).expect("a credential");
        };
        trust(ML, cluster.issuer(), "system:serviceaccount:ml:carnet");
        trust(APP, &broker.http, "carnet:for-people");
        let text = std::fs::read_to_string(broker.config_path()).expect("the file");
        let world = Self {
            text: String::new(),
            options: Options::default(),
            clock: Arc::new(SystemClock),
            broker,
            machine,
            cluster,
            published,
        };
        world.broker.google.register_provider(world.provider()).expect("a provider");
        let entra = PoolProvider::new(ENTRA_PROVIDER, world.broker.entra.issuer(TENANT, TokenVersion::V2));
        let entra = entra.allowed_audience(AUDIENCE).condition_in_cel(&format!("assertion.tid == \"{TENANT}\""));
        world.broker.google.register_provider(entra).expect("a provider");
        world.broker.google.unbind(TRAINER, &format!("principalSet:{POOL}/attribute.tid/{TENANT}"));
        world.broker.google.bind(TRAINER, &format!("principalSet:{POOL}/attribute.rule/training"));
        world.write_token(&world.cluster.sign(&world.claims()));
        let text = text.replace("targets:\n", &format!("targets:\n{}", world.targets()));
        let text = text.replace("rules:\n", "rules:\n  - { name: others, targets: [machine, in-file, for-people, through-entra], subject: { roles: [Training.Submit] } }\n");
        Self { text, ..world }
    }

    /// As `carnet trust google` would have it.
    pub fn provider(&self) -> PoolProvider {
        PoolProvider::new(PROVIDER, self.broker.http.clone())
            .map("attribute.tid", "assertion.tid")
            .map("attribute.rule", "assertion.rule")
            .condition_in_cel(&format!("assertion.tid == \"{TENANT}\" && assertion.rule in [\"training\"]"))
    }

    pub fn register(&self, provider: PoolProvider) {
        self.broker.google.register_provider(provider).expect("a provider");
    }

    /// What a cluster's projected token says.
    pub fn claims(&self) -> Value {
        let now = unix_seconds(SystemClock.now());
        json!({
            "iss": self.cluster.issuer(), "sub": "system:serviceaccount:ml:carnet", "aud": "api://AzureADTokenExchange",
            "iat": now, "nbf": now, "exp": now + 3600, "jti": "1",
        })
    }

    pub fn write_token(&self, token: &str) {
        std::fs::write(self.broker.folder.path().join("token"), token).expect("written");
    }

    fn targets(&self) -> String {
        let azure = format!("tenant: {TENANT}, client_id: {ML}");
        let (google, token) = (self.broker.google.sts_endpoint(), self.broker.folder.path().join("token"));
        format!(
            "  machine: {{ azure: {{ {azure}, source: managed_identity, endpoint: '{imds}', scopes: [https://ml.azure.com/.default] }} }}
  in-file: {{ azure: {{ {azure}, source: token_file, token_file: '{token}', scopes: [https://ml.azure.com/.default] }} }}
  for-people: {{ azure: {{ tenant: {TENANT}, client_id: {APP}, source: on_behalf_of, scopes: [https://ml.azure.com/user_impersonation] }} }}
  through-entra: {{ google: {{ audience: '{ENTRA_PROVIDER}', subject_token: entra, sts_endpoint: '{google}', iam_credentials_endpoint: '{google}' }} }}
",
            imds = self.machine.imds_endpoint(),
            token = token.display(),
        )
    }

    /// The machine's clock shows this time, at first.
    pub fn clock_is(&mut self, now: SystemTime) {
        self.clock = Arc::new(ManualClock::at(now));
    }

    pub fn replace(&mut self, old: &str, new: &str) {
        assert!(self.text.contains(old), "{old} is not in\n{}", self.text);
        self.text = self.text.replace(old, new);
    }

    /// Puts the documents of `published` in the place of the broker's own.
    pub fn published_elsewhere(&mut self) {
        let (old, new) = (format!("url: '{}'", self.broker.http), format!("url: '{}'", self.published.issuer()));
        self.replace(&old, &new);
    }

    /// What the file is refused for.
    pub fn refused(&self) -> String {
        self.load().expect_err("a mistake").to_string()
    }

    fn load(&self) -> Result<Config, carnet::config::ConfigError> {
        let path = self.broker.folder.path().join("doctor.yaml");
        std::fs::write(&path, &self.text).expect("written");
        Config::load(&path)
    }

    pub async fn examine(&self) -> Vec<Finding> {
        let config = self.load().unwrap_or_else(|error| panic!("{error}"));
        examine(&config, &self.options, self.clock.clone()).await.expect("a look")
    }

    pub async fn end(mut self) {
        self.broker.take_app().drain().await;
        self.broker.no_secret_was_left_behind();
    }
}

//! The bytes of a connection to the agent: requests as SDKs of Google and Azure write them to the metadata endpoints.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use carnet::agent::{Agent, Cloud, Credential, Credentials, Refusal, Settings, TargetSettings, Wanted};
use carnet::secret::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::world::{block_on, clock, now, show};

static AGENT: LazyLock<Arc<Agent>> = LazyLock::new(|| {
    let target = |name: &str| TargetSettings { name: name.to_owned(), ..TargetSettings::default() };
    let azure = TargetSettings {
        object_id: Some("77777777-7777-7777-7777-777777777777".to_owned()),
        resource_id: Some("/subscriptions/s/resourcegroups/ml/providers/p/userAssignedIdentities/ML".to_owned()),
        ..target("azure-ml")
    };
    let settings = Settings {
        targets: vec![target("vertex"), azure, target("bigquery"), target("away")],
        identity_header: Some(Secret::new(IDENTITY_HEADER)),
    };
    Agent::new(settings, Arc::new(Broker), clock())
});

pub fn run(data: &[u8]) {
    let answer = block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let serving = AGENT.clone().serve_stream(server);
        let asking = async move {
            let _ = client.write_all(data).await;
            let mut answer = Vec::new();
            // Longer than any answer takes; what is cut short is waited for in vain.
            let _ = tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer)).await;
            answer
        };
        tokio::join!(serving, asking).1
    });
    let answer = String::from_utf8_lossy(&answer);
    show(|| answer.clone().into_owned());
    if answer.contains(TOKEN) {
        let asked = String::from_utf8_lossy(data).to_lowercase();
        assert!(
            asked.contains("metadata-flavor:") || asked.contains("metadata:") || asked.contains(IDENTITY_HEADER),
            "a token without the header that a tricked program cannot set"
        );
        assert!(HOSTS.iter().any(|host| asked.contains(host)), "a token for a page in a browser");
    }
    assert!(!answer.contains(IDENTITY_HEADER), "the agent tells the value that is to be guessed");
}

/// What the agent asks for credentials; one target of its broker is away.
#[derive(Debug)]
struct Broker;

#[async_trait::async_trait]
impl Credentials for Broker {
    async fn credential(&self, wanted: &Wanted) -> Result<Credential, Refusal> {
        let (principal, service_account) =
            ("principal://iam.googleapis.com/projects/123/x", "a@p.iam.gserviceaccount.com");
        let google = |service_account: &str| Cloud::Google {
            principal: principal.to_owned(),
            service_account: service_account.to_owned(),
        };
        let (cloud, scope) = match wanted.target.as_str() {
            "vertex" => (google(service_account), "https://www.googleapis.com/auth/cloud-platform"),
            "bigquery" => (google(""), "https://www.googleapis.com/auth/bigquery"),
            "azure-ml" => (Cloud::Azure { client_id: CLIENT_ID.to_owned() }, "https://ml.azure.com/.default"),
            _ => return Err(Refusal::away("not there")),
        };
        Ok(Credential {
            token: Secret::new(TOKEN),
            scopes: vec![scope.to_owned()],
            expires_at: now() + Duration::from_secs(3600),
            refresh_after: now() + Duration::from_secs(2700),
            obtained_at: now(),
            obtained: Instant::now(),
            cloud,
        })
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN: &str = "the-token-of-a-target";
const IDENTITY_HEADER: &str = "value-of-identity-header";
const CLIENT_ID: &str = "33333333-3333-3333-3333-333333333333";
const HOSTS: [&str; 5] = ["127.", "localhost", "[", "169.254.169.254", "metadata.google.internal"];

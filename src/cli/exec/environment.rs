//! The command's environment: what points the clouds' SDKs at the agent, without what would outrank it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::process::Command;

use crate::agent::{Agent, Cloud};
use crate::secret::Secret;

/// What changes in the environment.
#[derive(Debug, Default)]
pub(super) struct Environment {
    set: BTreeMap<&'static str, OsString>,
    remove: Vec<&'static str>,
    warnings: Vec<String>,
}

impl Environment {
    /// Only what belongs to a cloud that the agent has a target of is touched.
    pub fn of(agent: &Agent, address: SocketAddr, identity_header: &Secret) -> Self {
        Self::from(agent, address, identity_header, &|name| std::env::var_os(name))
    }

    fn from(
        agent: &Agent,
        address: SocketAddr,
        identity_header: &Secret,
        outer: &dyn Fn(&str) -> Option<OsString>,
    ) -> Self {
        let mut this = Self { remove: CARNET.to_vec(), ..Self::default() };
        this.bypass_proxies(outer);
        let clouds = agent.clouds();
        if clouds.iter().any(|cloud| matches!(cloud, Cloud::Google { .. })) {
            this.google(agent, address, outer);
        }
        if clouds.iter().any(|cloud| matches!(cloud, Cloud::Azure { .. })) {
            this.azure(address, identity_header);
        }
        this
    }

    pub fn apply(&self, command: &mut Command) {
        self.remove.iter().for_each(|name| {
            command.env_remove(name);
        });
        command.envs(&self.set);
    }

    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        self.warnings.iter().map(String::as_str)
    }

    fn google(&mut self, agent: &Agent, address: SocketAddr, outer: &dyn Fn(&str) -> Option<OsString>) {
        for name in ["GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"] {
            self.set.insert(name, address.to_string().into());
        }
        self.set.insert("METADATA_SERVER_DETECTION", "assume-present".into());
        self.set.insert("GCE_METADATA_MTLS_MODE", "none".into());
        if let (None, Some(project)) = (outer("GOOGLE_CLOUD_PROJECT"), agent.google_project()) {
            self.set.insert("GOOGLE_CLOUD_PROJECT", project.into());
        }
        self.remove.extend(GOOGLE);
        let folder = outer("CLOUDSDK_CONFIG").map(PathBuf::from);
        let folder = folder.or_else(|| Some(PathBuf::from(outer("HOME")?).join(".config/gcloud")));
        let own = folder.map(|folder| folder.join("application_default_credentials.json")).filter(|path| path.exists());
        self.warnings.extend(own.map(|path| {
            format!("{} outranks the job's credentials: move it away, or set CLOUDSDK_CONFIG", path.display())
        }));
    }

    fn azure(&mut self, address: SocketAddr, identity_header: &Secret) {
        self.set.insert("IDENTITY_ENDPOINT", format!("http://{address}/msi/token").into());
        self.set.insert("IDENTITY_HEADER", identity_header.expose().into());
        self.set.insert("AZURE_POD_IDENTITY_AUTHORITY_HOST", format!("http://{address}").into());
        // Both it and `dev` are known to all versions that read the variable.
        self.set.insert("AZURE_TOKEN_CREDENTIALS", "prod".into());
        self.remove.extend(AZURE);
    }

    fn bypass_proxies(&mut self, outer: &dyn Fn(&str) -> Option<OsString>) {
        let given =
            |name: &str| outer(name).and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty());
        for (name, other) in [("NO_PROXY", "no_proxy"), ("no_proxy", "NO_PROXY")] {
            let mut hosts = given(name).or_else(|| given(other)).unwrap_or_default();
            for host in DIRECT {
                if !hosts.split(',').any(|listed| listed.trim() == host || listed.trim() == "*") {
                    let comma = if hosts.is_empty() { "" } else { "," };
                    hosts = format!("{hosts}{comma}{host}");
                }
            }
            self.set.insert(name, hosts.into());
        }
    }
}

const DIRECT: [&str; 4] = ["127.0.0.1", "localhost", "169.254.169.254", "metadata.google.internal"];

/// The job has its own way to credentials; the right to more of them stays here.
const CARNET: [&str; 4] =
    ["CARNET_SUBJECT_TOKEN", "CARNET_SUBJECT_TOKEN_FILE", "CARNET_LEASE_TOKEN", "CARNET_LEASE_TOKEN_FILE"];

/// What Google's libraries, gcloud and Terraform take before they ask the metadata server.
const GOOGLE: [&str; 15] = [
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CREDENTIALS",
    "GOOGLE_CLOUD_KEYFILE_JSON",
    "GCLOUD_KEYFILE_JSON",
    "GOOGLE_OAUTH_ACCESS_TOKEN",
    "GOOGLE_ACCESS_TOKEN",
    "GOOGLE_ACCESS_TOKEN_CREDENTIALS",
    "NO_GCE_CHECK",
    "CLOUDSDK_AUTH_ACCESS_TOKEN",
    "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
    "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE",
    "CLOUDSDK_AUTH_DISABLE_CREDENTIALS",
    "CLOUDSDK_AUTH_IMPERSONATE_SERVICE_ACCOUNT",
    "CLOUDSDK_CORE_ACCOUNT",
    "CLOUDSDK_CORE_CHECK_GCE_METADATA",
];

/// What Azure's libraries take before the managed identity, and what makes that one of another kind.
const AZURE: [&str; 17] = [
    "AZURE_CLIENT_ID",
    "AZURE_TENANT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_CLIENT_CERTIFICATE_PASSWORD",
    "AZURE_USERNAME",
    "AZURE_PASSWORD",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_AUTHORITY_HOST",
    "AZURE_KUBERNETES_TOKEN_PROXY",
    "AZURE_KUBERNETES_SNI_NAME",
    "AZURE_KUBERNETES_CA_FILE",
    "AZURE_KUBERNETES_CA_DATA",
    "MSI_ENDPOINT",
    "MSI_SECRET",
    "IDENTITY_SERVER_THUMBPRINT",
    "IMDS_ENDPOINT",
];

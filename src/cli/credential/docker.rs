//! `carnet credential docker`: the protocol of docker-credential-helpers, for Artifact Registry and Azure Container
//! Registry.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::hosts::{Host, Hosts};
use super::{access_token, input};
use crate::cli::broker::{Broker, SubjectToken};
use crate::cli::{Told, print};
use crate::http::{Client, Request, Settings};
use crate::proto::credential::Identity;
use crate::secret::Secret;

/// docker, podman and skopeo: a user name and password for a registry
///
/// For Artifact Registry, map its host to a Google target. For Azure Container Registry,
/// map it to an Azure target with the scope https://management.azure.com/.default or
/// https://containerregistry.azure.net/.default. In ~/.docker/config.json:
/// {"credHelpers": {"us-docker.pkg.dev": "carnet"}}, and a symbolic link named
/// docker-credential-carnet to this program.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Docker {
    #[arg(value_enum)]
    action: Action,
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    subject_token: SubjectToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    /// The credential of the registry that standard input names
    Get,
    /// Refused: nothing is kept
    Store,
    /// Refused: nothing is kept
    Erase,
    /// The hosts that are named in full, each with its target where other programs show a user name
    List,
    Version,
}

impl Docker {
    /// The protocol wants errors on standard output.
    pub async fn run(self) -> anyhow::Result<()> {
        let done = self.answer().await;
        match &done {
            Ok(answer) => print(answer),
            Err(error) => print(format_args!("{error:#}")),
        }
        done.map(drop).map_err(|_said| Told.into())
    }

    async fn answer(&self) -> anyhow::Result<String> {
        match self.action {
            Action::Get => self.get(input()?.trim()).await,
            Action::Store | Action::Erase => {
                input()?;
                bail!(
                    "carnet keeps no credentials: it gets a fresh one whenever docker asks, so there is nothing to log \
                     in to or out of. To stop that, take the registry out of credHelpers in docker's config.json"
                )
            }
            Action::List => {
                let hosts = self.hosts.in_full();
                let hosts: Map<String, Value> =
                    hosts.map(|(host, target)| (format!("https://{}", host.as_str()), json!(target))).collect();
                Ok(Value::Object(hosts).to_string())
            }
            Action::Version => Ok(format!("docker-credential-carnet {}", env!("CARGO_PKG_VERSION"))),
        }
    }

    async fn get(&self, server: &str) -> anyhow::Result<String> {
        let host = registry(server)?;
        let target = self.hosts.target(&host).ok_or_else(|| anyhow!(NOT_FOUND))?;
        let credential = access_token(&self.broker, &self.subject_token, target).await?;
        let (user, secret) = match &credential.identity {
            Some(Identity::Google(_)) => (GOOGLE_USER, Secret::new(credential.token)),
            Some(Identity::Azure(azure)) => {
                let http = Client::new(&Settings { ca_file: self.broker.ca().cloned() })?;
                (ACR_USER, refresh_token(&http, &host, &azure.tenant_id, &credential.token).await?)
            }
            None => bail!("the broker's answer does not tell which cloud target {target} is of"),
        };
        Ok(json!({"ServerURL": server, "Username": user, "Secret": secret.expose()}).to_string())
    }
}

/// docker names a registry by its host, or by an URL with a path.
pub(super) fn registry(server: &str) -> anyhow::Result<Host> {
    let (rest, plaintext) = match (server.strip_prefix("https://"), server.strip_prefix("http://")) {
        (Some(rest), _) => (rest, false),
        (None, Some(rest)) => (rest, true),
        (None, None) => (server, false),
    };
    let host = rest.split('/').next().unwrap_or_default();
    let host: Host = host.parse().map_err(|error| anyhow!("standard input {error}"))?;
    if plaintext && !host.is_loopback() {
        bail!("{} is asked for without TLS: credentials go over http:// on loopback only", host.as_str());
    }
    Ok(host)
}

#[derive(Deserialize)]
struct Exchanged {
    refresh_token: Secret,
}

/// Trades an Entra token for one of the registry's own (Azure Container Registry: `POST /oauth2/exchange`).
async fn refresh_token(http: &Client, registry: &Host, tenant: &str, access_token: &str) -> anyhow::Result<Secret> {
    let host = registry.as_str();
    let fields =
        [("grant_type", "access_token"), ("service", host), ("tenant", tenant), ("access_token", access_token)];
    let request = Request::post_form(registry.endpoint()?.join("oauth2/exchange"), &fields);
    let answer = http.send(request, ANSWER_MAX_BYTES, DEADLINE).await;
    let answer = answer.with_context(|| format!("the registry {host} did not answer"))?;
    if !answer.status.is_success() {
        bail!(
            "the registry {host} refuses the target's Entra token (HTTP {}): look at the target's scope, and whether \
             its identity may pull from or push to the registry (AcrPull, AcrPush)",
            answer.status.as_u16()
        );
    }
    let exchanged: Exchanged = serde_json::from_slice(&answer.body)
        .map_err(|_form| anyhow!("{host} answered without a refresh token: is it an Azure Container Registry?"))?;
    Ok(exchanged.refresh_token)
}

/// docker's clients compare it to the letter, and then go on without a credential.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Artifact Registry: the user whose password is an access token.
const GOOGLE_USER: &str = "oauth2accesstoken";

/// Azure Container Registry: the user whose password is a refresh token.
const ACR_USER: &str = "00000000-0000-0000-0000-000000000000";

const ANSWER_MAX_BYTES: usize = 64 * 1024;
const DEADLINE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_its_host_however_docker_writes_it() {
        for written in
            ["us-docker.pkg.dev", "https://us-docker.pkg.dev", "https://US-docker.pkg.dev/v1/", "us-docker.pkg.dev/p/r"]
        {
            assert_eq!(registry(written).expect("a host").as_str(), "us-docker.pkg.dev", "{written}");
        }
        assert_eq!(registry("http://localhost:5000").expect("a host").as_str(), "localhost:5000");
        for wrong in ["", "https://", "http://us-docker.pkg.dev", "https://user:word@us-docker.pkg.dev", "a b"] {
            assert!(registry(wrong).is_err(), "{wrong}");
        }
    }
}

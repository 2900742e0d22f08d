//! `carnet credential kubectl`: client-go's credential plugin protocol, client.authentication.k8s.io.

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::access_token;
use crate::cli::broker::{Broker, SubjectToken, usage};
use crate::cli::credentials::rfc3339;
use crate::cli::print;

/// kubectl and other Kubernetes clients: a bearer token for the cluster
///
/// GKE takes a Google access token: a Google target. AKS with Entra takes a token of its
/// server application: an Azure target with the scope
/// 6dae42f8-4368-4678-94ff-3960e28e3630/.default.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Kubectl {
    /// Whose access token the cluster is shown
    #[arg(long, value_name = "TARGET", env = "CARNET_TARGET")]
    target: String,
    /// Print a kubeconfig user of this name that runs this very command, instead of a token
    #[arg(long, value_name = "NAME")]
    kubeconfig_user: Option<String>,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    subject_token: SubjectToken,
}

/// What the client says of itself in `KUBERNETES_EXEC_INFO`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecInfo {
    api_version: String,
    kind: String,
}

impl Kubectl {
    pub async fn run(self) -> anyhow::Result<()> {
        if let Some(name) = &self.kubeconfig_user {
            print(self.kubeconfig(name)?);
            return Ok(());
        }
        let version = asked_version(std::env::var("KUBERNETES_EXEC_INFO").ok().as_deref())?;
        let credential = access_token(&self.broker, &self.subject_token, &self.target).await?;
        print(json!({
            "apiVersion": version,
            "kind": KIND,
            "status": {"token": credential.token, "expirationTimestamp": rfc3339(credential.expires_at)},
        }));
        Ok(())
    }

    /// JSON texts are YAML texts too.
    fn kubeconfig(&self, name: &str) -> anyhow::Result<String> {
        let program = std::env::current_exe().context("the path of this program is not known")?;
        let mut arguments = ["credential", "kubectl", "--target", &self.target].map(str::to_owned).to_vec();
        arguments.extend(self.broker.arguments()?);
        arguments.extend(self.subject_token.arguments()?);
        let arguments: String = arguments.iter().map(|argument| format!("        - {}\n", json!(argument))).collect();
        Ok(format!(
            "\
users:
  - name: {name}
    user:
      exec:
        apiVersion: {version}
        interactiveMode: Never
        command: {program}
        args:
{arguments}",
            name = json!(name),
            version = VERSIONS[0],
            program = json!(program),
        )
        .trim_end()
        .to_owned())
    }
}

/// The version of the answer: the client refuses another than its own.
pub(super) fn asked_version(exec_info: Option<&str>) -> anyhow::Result<&'static str> {
    let Some(text) = exec_info else {
        return Err(usage(
            "KUBERNETES_EXEC_INFO is not set: Kubernetes clients set it where a kubeconfig's user runs this command \
             (--kubeconfig-user prints one)",
        ));
    };
    let info: ExecInfo = serde_json::from_str(text).context("KUBERNETES_EXEC_INFO is not an ExecCredential in JSON")?;
    match VERSIONS.into_iter().find(|version| *version == info.api_version) {
        _ if info.kind != KIND => bail!("KUBERNETES_EXEC_INFO is not of kind {KIND}"),
        Some(version) => Ok(version),
        None => bail!("KUBERNETES_EXEC_INFO asks for another version: have the kubeconfig's user say {}", VERSIONS[0]),
    }
}

const KIND: &str = "ExecCredential";

const VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_of_the_version_that_was_asked_and_of_no_other() {
        let info = |version: &str, kind: &str| json!({"apiVersion": version, "kind": kind, "spec": {}}).to_string();
        for version in VERSIONS {
            assert_eq!(asked_version(Some(&info(version, KIND))).expect("a version"), version);
        }
        for (text, said) in [
            (None, "is not set"),
            (Some(String::new()), "is not an ExecCredential"),
            (Some("[]".to_owned()), "is not an ExecCredential"),
            (Some(info(VERSIONS[0], "Config")), "is not of kind"),
            (Some(info("client.authentication.k8s.io/v1alpha1", KIND)), "asks for another version"),
        ] {
            let error = asked_version(text.as_deref()).expect_err("a refusal").to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}

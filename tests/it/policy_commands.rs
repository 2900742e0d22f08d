//! `carnet policy`: rules as code, as people and pipelines call it.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::command_line::{carnet, run, text};

mod check;
mod replay;
mod test;

/// Files of a repository that keeps rules.
struct Repository(TempDir);

impl Repository {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, contents: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, contents).expect("written");
        path.to_str().expect("a path").to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

async fn policy(arguments: &[&str]) -> Output {
    let mut command = carnet(&["policy"]);
    command.args(arguments).env_remove("CARNET_STORE_KEY");
    run(command).await
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}{}", text(&output.stdout), text(&output.stderr)))
}

/// A configuration whose secrets a pipeline does not have.
const CONFIGURATION: &str = "
entra:
  tenants: [11111111-1111-1111-1111-111111111111]
  audiences: [api://carnet]
issuer: { url: 'https://carnet.example.com' }
store: postgres://carnet:${file:/nowhere/password}@db.example.com/carnet
store_key: ${env:CARNET_STORE_KEY}
targets:
  vertex:
    google:
      audience: //iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/carnet
      service_account: trainer@ml-prod.iam.gserviceaccount.com
  azure-ml:
    azure:
      tenant: 11111111-1111-1111-1111-111111111111
      client_id: 33333333-3333-3333-3333-333333333333
      source: issuer
      scopes: [https://ml.azure.com/.default]
";

fn deployed() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/carnet.yaml");
    path.to_str().expect("a path").to_owned()
}

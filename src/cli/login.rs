//! `carnet login` and `carnet logout`: a person signs in once, on any device with a browser.

use std::path::PathBuf;

use clap::Args;
use uuid::Uuid;

use super::broker::{no_subject_token, usage};
use super::{print, remark};
use crate::http::Endpoint;
use crate::subject_source::{Account, DevicePrompt, Environment, Keep, LoginError, LoginStore, SignIn, SourceError};

/// Sign in to Entra with a code, so that later commands ask with your identity
#[derive(Debug, Args)]
pub(super) struct Login {
    /// The tenant: its GUID or domain name
    #[arg(long, env = "CARNET_LOGIN_TENANT", required_unless_present = "status")]
    tenant: Option<String>,
    /// The client id of a public client's registration in that tenant
    #[arg(long, value_name = "GUID", env = "CARNET_LOGIN_CLIENT_ID", required_unless_present = "status")]
    client_id: Option<Uuid>,
    /// The broker's own audience: its application ID URI or client id
    #[arg(long, env = "CARNET_AUDIENCE", required_unless_present = "status")]
    audience: Option<String>,
    /// Entra; sovereign clouds have their own
    #[arg(
        long,
        value_name = "URL",
        env = "CARNET_LOGIN_AUTHORITY",
        default_value = "https://login.microsoftonline.com"
    )]
    authority: String,
    /// What keeps the refresh token: the keyring where one answers, else an encrypted file
    #[arg(long, value_enum, env = "CARNET_LOGIN_STORE")]
    store: Option<Keep>,
    /// PEM file with authorities to trust besides the system's
    #[arg(long, value_name = "FILE", env = "CARNET_CA_FILE")]
    ca: Option<PathBuf>,
    /// Show who is logged in, and change nothing
    #[arg(long)]
    status: bool,
}

/// Forget the login of `carnet login`
#[derive(Debug, Args)]
pub(super) struct Logout {}

impl Login {
    pub async fn run(self) -> anyhow::Result<()> {
        let store = store()?;
        if self.status {
            let (account, keep) =
                store.account().and_then(|found| found.ok_or(LoginError::NobodyIsLoggedIn)).map_err(failed)?;
            print(shown(&account, keep));
            return Ok(());
        }
        let (Some(tenant), Some(client_id), Some(audience)) = (self.tenant, self.client_id, self.audience) else {
            return Err(usage("--tenant, --client-id and --audience are needed"));
        };
        let authority = self.authority.parse::<Endpoint>();
        let authority = authority.map_err(|error| usage(format!("--authority {}: {error}", self.authority)))?;
        let sign_in = SignIn { authority, tenant, client_id, audience, ca_file: self.ca };
        let (account, keep) = sign_in.run(&store, self.store, ask).await.map_err(no_subject_token)?;
        remark(format_args!("logged in as {}", shown(&account, keep)));
        Ok(())
    }
}

impl Logout {
    pub async fn run(self) -> anyhow::Result<()> {
        let store = store()?;
        let locked = store.lock().await.map_err(failed)?;
        let was_there = locked.remove().await.map_err(failed)?;
        remark(if was_there {
            "logged out; Entra ends the refresh token only when the person's sessions are revoked there"
        } else {
            "nobody was logged in"
        });
        Ok(())
    }
}

fn ask(prompt: &DevicePrompt<'_>) {
    remark(format_args!(
        "to sign in, open {} in a browser and enter the code {} within {} minutes",
        prompt.verification_uri,
        prompt.user_code,
        prompt.expires_in.as_secs() / 60
    ));
}

fn shown(account: &Account, keep: Keep) -> String {
    let place = match keep {
        Keep::Keyring => "the keyring",
        Keep::File => "an encrypted file",
    };
    let Account { name, authority, tenant, client_id, audience } = account;
    format!("{name} for {audience} (tenant {tenant} at {authority}, client {client_id}, kept in {place})")
}

fn store() -> anyhow::Result<LoginStore> {
    LoginStore::of(&Environment::default()).map_err(failed)
}

fn failed(error: LoginError) -> anyhow::Error {
    no_subject_token(SourceError::from(error))
}

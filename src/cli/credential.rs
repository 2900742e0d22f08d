//! `carnet credential`: this program as what other tools run for a credential, each in the tool's own protocol.

mod docker;
mod git;
mod google_config;
mod google_executable;
mod hosts;
mod kubectl;
#[cfg(any(test, feature = "testing"))]
mod understood;

#[cfg(any(test, feature = "testing"))]
pub use understood::Understood;

use std::io::Read as _;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::broker::{Broker, SubjectToken};
use super::exchange::exchange;
use crate::proto;
use crate::target::TokenType;

/// Credentials for tools that run a program to get them
///
/// Every option can be set in the environment too, for tools that pass none on. `docker`,
/// `git` and `kubectl` are also what the program does where a symbolic link calls it
/// `docker-credential-carnet`, `git-credential-carnet` or `kubectl-carnet`.
#[derive(Debug, Subcommand)]
#[command(verbatim_doc_comment)]
pub(super) enum Credential {
    GoogleExecutable(google_executable::Executable),
    GoogleConfig(Box<google_config::Config>),
    Kubectl(kubectl::Kubectl),
    Docker(docker::Docker),
    Git(git::Git),
}

/// What docker, git and kubectl call their programs.
pub(super) const NAMES: [&str; 3] = ["docker-credential-carnet", "git-credential-carnet", "kubectl-carnet"];

impl Credential {
    /// This process's arguments, if `name` is one of [`NAMES`]. Wrong arguments end the process.
    pub fn under_name_of(name: &'static str) -> Option<Self> {
        match name {
            "docker-credential-carnet" => Some(Self::Docker(arguments(name))),
            "git-credential-carnet" => Some(Self::Git(arguments(name))),
            "kubectl-carnet" => Some(Self::Kubectl(arguments(name))),
            _ => None,
        }
    }

    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::GoogleExecutable(executable) => executable.run().await,
            Self::GoogleConfig(config) => config.run().await,
            Self::Kubectl(kubectl) => kubectl.run().await,
            Self::Docker(docker) => docker.run().await,
            Self::Git(git) => git.run().await,
        }
    }
}

fn arguments<A: Args>(name: &'static str) -> A {
    let command = A::augment_args(clap::Command::new(name).version(env!("CARGO_PKG_VERSION")));
    A::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

/// The access token of one target.
async fn access_token(
    broker: &Broker,
    subject_token: &SubjectToken,
    target: &str,
) -> anyhow::Result<proto::Credential> {
    let [credential] = credentials(broker, subject_token, target, [TokenType::AccessToken]).await?;
    Ok(credential)
}

/// Of one target, one of each type.
async fn credentials<const N: usize>(
    broker: &Broker,
    subject_token: &SubjectToken,
    target: &str,
    types: [TokenType; N],
) -> anyhow::Result<[proto::Credential; N]> {
    let asked = |token_type: TokenType| proto::TargetRequest {
        target: target.to_owned(),
        requested_token_type: token_type.urn().to_owned(),
        ..Default::default()
    };
    let request = proto::ExchangeRequest { targets: types.map(asked).into(), ..Default::default() };
    let answer = exchange(broker, subject_token, request).await?;
    let answered = <[proto::Credential; N]>::try_from(answer.credentials);
    answered.map_err(|_other| anyhow::anyhow!("the broker answered with another number of credentials"))
}

/// What the tool writes to this program.
fn input() -> anyhow::Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().take(INPUT_MAX_BYTES + 1).read_to_string(&mut text);
    let read = read.context("standard input cannot be read as text")?;
    match u64::try_from(read) {
        Ok(read) if read <= INPUT_MAX_BYTES => Ok(text),
        _ => bail!("standard input has more than {INPUT_MAX_BYTES} bytes"),
    }
}

/// Far more than any tool writes.
const INPUT_MAX_BYTES: u64 = 64 * 1024;

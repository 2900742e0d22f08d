//! `carnet credential git`: git's credential protocol (gitcredentials, git-credential).

use anyhow::{anyhow, bail};
use clap::Args;

use super::hosts::{Host, Hosts};
use super::{access_token, input};
use crate::cli::broker::{Broker, SubjectToken};
use crate::cli::{Ended, Exit, print, remark};
use crate::proto::Credential;
use crate::proto::credential::Identity;

/// git: a credential for a repository's host
///
/// For Azure DevOps (dev.azure.com, *.visualstudio.com), an Azure target with the scope
/// 499b84ac-1321-427f-aa17-267ca6975798/.default. For Google's repositories, a Google
/// target. Of other hosts nothing is said, and git asks its next helper. With a symbolic
/// link named git-credential-carnet to this program: git config credential.helper carnet
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(in crate::cli) struct Git {
    /// get, or capability; store, erase and what git may add to them do nothing
    action: String,
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    subject_token: SubjectToken,
}

/// What git says of the credential that it wants.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub protocol: String,
    pub host: String,
    /// git 2.46 and later take another scheme than Basic.
    pub authtype: bool,
}

impl Git {
    pub async fn run(self) -> anyhow::Result<()> {
        match self.action.as_str() {
            "get" => self.get(&wanted(&input()?)?).await,
            "capability" => {
                print("version 0\ncapability authtype");
                Ok(())
            }
            _ => input().map(drop),
        }
    }

    async fn get(&self, wanted: &Wanted) -> anyhow::Result<()> {
        let Ok(host) = wanted.host.parse::<Host>() else { return Ok(()) };
        let Some(target) = self.hosts.target(&host) else { return Ok(()) };
        match (wanted.protocol.as_str(), host.is_loopback()) {
            ("https", _) | ("http", true) => {}
            (protocol, _) => {
                remark(format_args!("no credential for {protocol}://{}: use https://", host.as_str()));
                return Ok(());
            }
        }
        match access_token(&self.broker, &self.subject_token, target).await {
            Ok(credential) => {
                print(answer(&credential, wanted.authtype)?);
                Ok(())
            }
            Err(error) => {
                if error.downcast_ref::<Ended>().is_some_and(|ended| ended.exit == Exit::Denied) {
                    // Nobody else has a better answer for a host that is given to a target: git is not to prompt.
                    print("quit=1");
                }
                Err(error)
            }
        }
    }
}

/// # Errors
/// Where git would not have written it so: what cannot be read for sure is not answered.
pub(super) fn wanted(text: &str) -> anyhow::Result<Wanted> {
    if text.contains(['\0', '\r']) {
        bail!("a value on standard input holds a control character");
    }
    let mut wanted = Wanted::default();
    for line in text.split('\n').take_while(|line| !line.is_empty()) {
        let (key, value) = line.split_once('=').ok_or_else(|| anyhow!("a line on standard input is not key=value"))?;
        match key {
            "protocol" => value.clone_into(&mut wanted.protocol),
            "host" => value.clone_into(&mut wanted.host),
            "capability[]" if value == "authtype" => wanted.authtype = true,
            _ => {}
        }
    }
    Ok(wanted)
}

fn answer(credential: &Credential, authtype: bool) -> anyhow::Result<String> {
    let token = &credential.token;
    if token.chars().any(char::is_control) {
        bail!("the target's token holds a control character, which git's protocol cannot carry");
    }
    let expiry = match credential.expires_at {
        Some(time) => format!("\npassword_expiry_utc={}", time.seconds),
        None => String::new(),
    };
    Ok(match credential.identity {
        // Azure DevOps: an Entra token is a bearer token; as a password it goes with any user name.
        Some(Identity::Azure(_)) if authtype => {
            format!("capability[]=authtype\nauthtype=Bearer\ncredential={token}\nephemeral=1{expiry}")
        }
        Some(Identity::Azure(_)) => format!("username=carnet\npassword={token}{expiry}"),
        Some(Identity::Google(_)) | None => format!("username=oauth2accesstoken\npassword={token}{expiry}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_wants_is_read_line_by_line_until_an_empty_one() {
        let text = "capability[]=state\ncapability[]=authtype\nprotocol=https\nhost=dev.azure.com\npath=a=b\n\
                    wwwauth[]=Basic realm=\"x\"\nwwwauth[]=Bearer\nnew=thing\n\nhost=evil.example\n";
        let (protocol, host) = ("https".to_owned(), "dev.azure.com".to_owned());
        assert_eq!(wanted(text).expect("good"), Wanted { protocol, host, authtype: true });
        assert_eq!(wanted("").expect("nothing"), Wanted::default());
        for wrong in ["host\n", "protocol=https\nhost=a\0b\n", "host=a\r\n"] {
            assert!(wanted(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_token_that_would_add_lines_is_not_written() {
        let credential = Credential { token: "a\nusername=b".to_owned(), ..Default::default() };
        assert!(answer(&credential, true).is_err());
    }
}

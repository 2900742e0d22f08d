//! One text as every tool's words to this program, for tests that write anything.

use super::hosts::Host;
use super::{docker, git, google_executable, kubectl};

/// What each protocol makes of a text; `None` where it is refused.
#[derive(Debug)]
pub struct Understood {
    /// The host that git asks a credential for.
    pub git_host: Option<String>,
    /// The registry that docker asks a credential for.
    pub registry: Option<String>,
    /// The version in which kubectl wants its answer.
    pub exec_version: Option<&'static str>,
    /// When a token ends, for Google's libraries.
    pub expires: Option<u64>,
    /// What a host is called in URLs.
    pub endpoint: Option<String>,
}

impl Understood {
    pub fn of(text: &str) -> Self {
        let git = git::wanted(text).ok().and_then(|wanted| wanted.host.parse::<Host>().ok());
        let endpoint = text.parse::<Host>().ok().and_then(|host| host.endpoint().ok());
        Self {
            git_host: git.map(|host| host.as_str().to_owned()),
            registry: docker::registry(text).ok().map(|host| host.as_str().to_owned()),
            exec_version: kubectl::asked_version(Some(text)).ok(),
            expires: google_executable::unverified_claims(text).exp,
            endpoint: endpoint.map(|endpoint| endpoint.as_str().to_owned()),
        }
    }
}

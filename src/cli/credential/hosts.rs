//! Which target a host's credentials come from: nothing goes to a host that nobody named.

use std::str::FromStr;

use clap::Args;
use url::Url;

use crate::http::Endpoint;

#[derive(Debug, Args)]
pub(super) struct Hosts {
    /// Credentials for HOST are those of TARGET; several times for several
    ///
    /// HOST is a name with its port if it has one, or `*.`, which stands for one name, and one
    /// of pkg.dev, gcr.io, azurecr.io, azurecr.cn, azurecr.us and visualstudio.com. In the
    /// environment, commas stand between:
    /// CARNET_HOSTS=us-docker.pkg.dev=artifacts,*.azurecr.io=registry
    #[arg(long = "host", value_name = "HOST=TARGET", env = "CARNET_HOSTS", value_delimiter = ',')]
    #[arg(verbatim_doc_comment)]
    named: Vec<Named>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    hosts: Pattern,
    target: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    /// An empty text: a variable that is set to nothing.
    None,
    One(Host),
    /// Every host that has one name before this suffix.
    Below(&'static str),
}

/// A host's name in lower case, with its port where it is not that of https.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host(String);

impl Hosts {
    pub fn target(&self, host: &Host) -> Option<&str> {
        let one = self.named.iter().find(|named| named.hosts == Pattern::One(host.clone()));
        let below =
            || self.named.iter().find(|named| matches!(named.hosts, Pattern::Below(suffix) if host.is_below(suffix)));
        one.or_else(below).map(|named| named.target.as_str())
    }

    /// The hosts that are named in full, each with its target.
    pub fn in_full(&self) -> impl Iterator<Item = (&Host, &str)> {
        self.named.iter().filter_map(|named| match &named.hosts {
            Pattern::One(host) => Some((host, named.target.as_str())),
            Pattern::None | Pattern::Below(_) => None,
        })
    }
}

impl Host {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_loopback(&self) -> bool {
        format!("http://{}", self.0).parse::<Endpoint>().is_ok()
    }

    /// With TLS, but on loopback.
    pub fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let scheme = if self.is_loopback() { "http" } else { "https" };
        Ok(format!("{scheme}://{}", self.0).parse()?)
    }

    fn is_below(&self, suffix: &str) -> bool {
        let name = self.0.strip_suffix(suffix).and_then(|rest| rest.strip_suffix('.'));
        name.is_some_and(|name| !name.is_empty() && !name.contains('.'))
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = Url::parse(&format!("https://{text}/")).map_err(|error| format!("is no host: {error}"))?;
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let anonymous = url.username().is_empty() && url.password().is_none() && !text.contains('@');
        let plain = |name: &&str| name.chars().all(|c| c.is_ascii_alphanumeric() || "-._[]:".contains(c));
        match (url.host_str().filter(plain), url.port()) {
            _ if !bare || !anonymous => Err("is no host: a name, and a port if it has one".to_owned()),
            (Some(name), Some(port)) => Ok(Self(format!("{name}:{port}"))),
            (Some(name), None) => Ok(Self(name.to_owned())),
            (None, _) => Err("is no host".to_owned()),
        }
    }
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self { hosts: Pattern::None, target: String::new() });
        }
        let (hosts, target) = text.trim().split_once('=').ok_or("expected HOST=TARGET")?;
        if target.is_empty() {
            return Err("names no target: expected HOST=TARGET".to_owned());
        }
        let hosts = match hosts.strip_prefix("*.") {
            Some(suffix) => {
                let known = WELL_KNOWN.into_iter().find(|known| *known == suffix.to_ascii_lowercase());
                Pattern::Below(known.ok_or_else(|| format!("`*.` goes with {}", WELL_KNOWN.join(", ")))?)
            }
            None => Pattern::One(hosts.parse()?),
        };
        Ok(Self { hosts, target: target.to_owned() })
    }
}

/// What is one name below them is run by Google or Microsoft, whoever's registry or organization it is. Further below,
/// strangers' programs answer: the forwarded ports of `*.app.online.visualstudio.com`, for one.
const WELL_KNOWN: [&str; 6] = ["pkg.dev", "gcr.io", "azurecr.io", "azurecr.cn", "azurecr.us", "visualstudio.com"];

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(named: &[&str]) -> Hosts {
        Hosts { named: named.iter().map(|text| text.parse().expect("a host and its target")).collect() }
    }

    #[test]
    fn only_hosts_that_somebody_named_have_a_target_and_the_full_name_counts_first() {
        let hosts = hosts(&[
            "*.visualstudio.com=code",
            "*.azurecr.io=any",
            "Ours.azurecr.io=ours",
            "localhost:5000=local",
            "*.pkg.dev=artifacts",
        ]);
        for (host, target) in [
            ("ours.azurecr.io", Some("ours")),
            ("OURS.AZURECR.IO:443", Some("ours")),
            ("theirs.azurecr.io", Some("any")),
            ("theirs.visualstudio.com", Some("code")),
            ("us-docker.pkg.dev", Some("artifacts")),
            ("localhost:5000", Some("local")),
            ("localhost:5001", None),
            ("localhost", None),
            ("azurecr.io", None),
            (".azurecr.io", None),
            ("azurecr.io.example.com", None),
            ("notazurecr.io", None),
            ("ours.azurecr.io:8443", None),
            ("pkg.dev", None),
            ("index.docker.io", None),
            ("anyone-8080.app.online.visualstudio.com", None),
            ("a.theirs.azurecr.io", None),
        ] {
            let found = host.parse::<Host>().ok().and_then(|host| hosts.target(&host).map(str::to_owned));
            assert_eq!(found.as_deref(), target, "{host}");
        }
    }

    #[test]
    fn what_is_no_host_or_too_wide_a_pattern_is_refused() {
        for wrong in
            ["host", "=target", "host=", "*=t", "*.=t", "*.io=t", "*.example.com=t", "a/b=t", "u@h=t", "h?q=t", "a b=t"]
        {
            assert!(wrong.parse::<Named>().is_err(), "{wrong}");
        }
        for wrong in ["", "a/b", "u:p@h", "@h", "h#f", "a\nb/c", "h:99999"] {
            assert!(wrong.parse::<Host>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_loopback_is_spoken_to_without_tls() {
        let endpoint = |host: &str| host.parse::<Host>().expect("a host").endpoint().expect("a URL").to_string();
        assert_eq!(endpoint("ours.azurecr.io"), "https://ours.azurecr.io");
        assert_eq!(endpoint("127.0.0.1:5000"), "http://127.0.0.1:5000");
        assert_eq!(endpoint("[::1]:5000"), "http://[::1]:5000");
        assert_eq!(endpoint("localhost.example.com:5000"), "https://localhost.example.com:5000");
    }
}

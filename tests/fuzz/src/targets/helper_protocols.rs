//! What git, docker, kubectl and Google's libraries write to the program, each text read by all of them.

use carnet::cli::Understood;
use carnet::http::Endpoint;
use carnet::socket::Address;
use carnet::target::{Guid, IdTokenAudience, Name, PoolProvider, Scope, ServiceAccount, Span};

use crate::world::show;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    show(|| format!("{:?}", Understood::of(text)));
    let Understood { git_host, registry, exec_version, expires: _, endpoint } = Understood::of(text);
    for host in [&git_host, &registry].into_iter().flatten() {
        // It is compared with the configured hosts, and becomes a part of a URL.
        assert!(!host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._[]:".contains(c)), "{host}");
        assert!(host.to_ascii_lowercase() == *host, "{host}");
    }
    if let (Some(registry), Some(_)) = (&registry, text.strip_prefix("http://")) {
        assert!(format!("http://{registry}").parse::<Endpoint>().is_ok(), "a secret without TLS to {registry}");
    }
    assert!(exec_version.is_none_or(|version| version.starts_with("client.authentication.k8s.io/")));
    if let Some(endpoint) = endpoint {
        assert!(endpoint.starts_with("https://") || endpoint.parse::<Endpoint>().is_ok(), "{endpoint}");
    }
    // Texts of requests, command lines and configurations: what is taken comes back as it was.
    let same = |shown: Option<String>| assert!(shown.is_none_or(|shown| shown == text), "{text:?}");
    same(text.parse::<Name>().ok().map(|name| name.to_string()));
    same(text.parse::<Scope>().ok().map(|scope| scope.to_string()));
    same(text.parse::<ServiceAccount>().ok().map(|account| account.to_string()));
    same(text.parse::<PoolProvider>().ok().map(|provider| provider.to_string()));
    same(text.parse::<IdTokenAudience>().ok().map(|audience| audience.to_string()));
    if let Ok(span) = text.parse::<Span>() {
        assert_eq!(span.to_string().parse::<Span>().ok(), Some(span));
    }
    let _ = text.parse::<Guid>();
    let _ = text.parse::<Address>();
    let _ = text.parse::<carnet::grpc::Address>();
    if let Ok(endpoint) = Endpoint::metadata(text) {
        assert!(!endpoint.as_str().contains(['?', '#']), "{endpoint}");
    }
}

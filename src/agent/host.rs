//! Whose name a request was sent to: a page in a browser that resolves its own name to this machine is turned away.

use std::net::IpAddr;

use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;

/// What is wrong with the request's `Host` (RFC 9112 section 3.2), if anything.
pub(super) fn wrong_host(request: &Parts) -> Option<&'static str> {
    let mut hosts = request.headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Some("there is not one Host header") };
    let named = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    // A request in the form for proxies names the host twice.
    let in_line = request.uri.authority();
    let ours = named.as_ref().is_some_and(is_ours) && in_line.is_none_or(is_ours);
    if ours { None } else { Some("this host is not served here") }
}

fn is_ours(authority: &Authority) -> bool {
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match address {
        Ok(address) => address.is_loopback() || address == METADATA_ADDRESS,
        Err(_name) => NAMES.iter().any(|name| host.eq_ignore_ascii_case(name)),
    }
}

const METADATA_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254));

const NAMES: [&str; 2] = ["localhost", "metadata.google.internal"];

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn is_wrong(uri: &str, hosts: &[&str]) -> bool {
        let request = hosts.iter().fold(Request::get(uri), |request, host| request.header(HOST, *host));
        wrong_host(&request.body(()).expect("a request").into_parts().0).is_some()
    }

    #[test]
    fn names_of_this_machine_and_of_the_metadata_service_are_served_and_others_are_not() {
        for host in [
            "127.0.0.1:8080",
            "127.0.0.1",
            "localhost:1",
            "LOCALHOST",
            "[::1]:8080",
            "169.254.169.254",
            "169.254.169.254:80",
            "metadata.google.internal",
            "Metadata.Google.Internal:80",
        ] {
            assert!(!is_wrong("/", &[host]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "169.254.169.253",
            "user@evil.example",
            "metadata.google.internal.evil.example",
        ] {
            assert!(is_wrong("/", &[host]), "{host}");
        }
        assert!(is_wrong("/", &[]));
        assert!(is_wrong("/", &["localhost", "localhost"]));
        assert!(is_wrong("http://evil.example/", &["localhost"]));
        assert!(!is_wrong("http://metadata.google.internal/", &["metadata.google.internal"]));
    }
}

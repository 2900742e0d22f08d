//! The certificate that the broker serves with.

use std::time::SystemTime;

use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use url::Url;

use super::certificate::Validity;
use super::{Finding, Severity};
use crate::app;
use crate::config::{Config, TlsSettings};
use crate::telemetry::Causes;

pub(super) fn examine(config: &Config, now: SystemTime) -> Vec<Finding> {
    let Some(tls) = &config.server.tls else { return Vec::new() };
    if let Err(error) = app::check_tls(tls) {
        let advice = "server.tls names a certificate and its own key, both in PEM, the certificate first in its file";
        let finding = Finding::new(Severity::Error, "tls", ABOUT, Causes(&error).to_string());
        return vec![finding.repair(advice, &[])];
    }
    let mut findings = Vec::new();
    let TlsSettings { certificate, client_ca, .. } = tls;
    let judged = |der: &CertificateDer<'_>, what: &str| Validity::of(der).map(|validity| validity.judge(now, what));
    for (place, der) in certificates(certificate).iter().enumerate() {
        if place == 0 {
            findings.extend(judged(der, ABOUT));
            findings.extend(names(config, der));
        } else {
            // Clients find their way with the authorities that they have.
            findings.extend(judged(der, &format!("{ABOUT}, authority {place}")).map(beside_others));
        }
    }
    let authorities = client_ca.iter().flat_map(|path| certificates(path));
    let authorities: Vec<Finding> = authorities.filter_map(|der| judged(&der, "server.tls.client_ca")).collect();
    let any_good = authorities.iter().any(|finding| !is_invalid(finding));
    findings.extend(authorities.into_iter().map(|finding| if any_good { beside_others(finding) } else { finding }));
    findings
}

fn is_invalid(finding: &Finding) -> bool {
    ["certificate_expired", "certificate_early"].contains(&finding.code.as_str())
}

/// One of several, of which another does: worth a warning.
fn beside_others(finding: Finding) -> Finding {
    Finding { severity: finding.severity.min(Severity::Warning), ..finding }
}

fn certificates(path: &std::path::Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path).into_iter().flatten().flatten().collect()
}

/// Whoever fetches the keys asks for the issuer's host; a proxy before the broker may have a certificate of its own.
fn names(config: &Config, leaf: &CertificateDer<'_>) -> Option<Finding> {
    let url = Url::parse(&config.issuer.as_ref()?.url).ok().filter(|url| url.scheme() == "https")?;
    let host = url.host_str()?;
    let name = ServerName::try_from(host).ok()?;
    let certificate = ParsedCertificate::try_from(leaf).ok()?;
    if verify_server_name(&certificate, &name).is_ok() {
        return None;
    }
    let seen = format!("it is not for {host}, the host of issuer.url");
    let advice = "fine where something in between serves issuer.url with a certificate of its own; otherwise the clouds \
                  cannot fetch the keys";
    Some(Finding::new(Severity::Note, "tls_names", ABOUT, seen).repair(advice, &[]))
}

const ABOUT: &str = "server.tls";

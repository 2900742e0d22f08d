//! Why a service could not be connected to, in words that callers and records may see.

use std::error::Error as _;
use std::fmt;
use std::io;

/// Why there is no connection: a closed list, because what a peer's certificate says of itself is nothing for callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreached {
    NoSuchName,
    Refused,
    Late,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateOfAnotherName,
    CertificateNotTrusted,
    NoHandshake,
    OutOfDescriptors,
    Other,
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSuchName => "the name is not resolved",
            Self::Refused => "refused",
            Self::Late => "no answer",
            Self::CertificateExpired => "its certificate has expired",
            Self::CertificateNotYetValid => "its certificate is not valid yet",
            Self::CertificateOfAnotherName => "its certificate has another name",
            Self::CertificateNotTrusted => "its certificate is not trusted",
            Self::NoHandshake => "no TLS handshake",
            Self::OutOfDescriptors => "this process has too many open files",
            Self::Other => "the network",
        })
    }
}

impl Unreached {
    pub(super) fn of(error: &reqwest::Error) -> Self {
        let causes = std::iter::successors(error.source(), |cause| (*cause).source());
        let found = causes.map(Self::named).find(|found| *found != Self::Other);
        found.unwrap_or(if error.is_timeout() { Self::Late } else { Self::Other })
    }

    fn named(cause: &(dyn std::error::Error + 'static)) -> Self {
        match cause.downcast_ref::<io::Error>() {
            Some(error) => Self::connecting(error),
            // The connector's error for it has no type that others can name.
            None if cause.to_string().contains("dns error") => Self::NoSuchName,
            None => Self::Other,
        }
    }

    fn connecting(error: &io::Error) -> Self {
        // An error inside of an `io::Error` is no source of it; several of them may be around one.
        if let Some(inner) = error.get_ref() {
            return match (inner.downcast_ref::<io::Error>(), inner.downcast_ref::<rustls::Error>()) {
                (Some(inner), _) => Self::connecting(inner),
                (None, Some(inner)) => Self::shaking_hands(inner),
                (None, None) => Self::Other,
            };
        }
        match (error.raw_os_error(), error.kind()) {
            (Some(PROCESS_FILES | SYSTEM_FILES), _) => Self::OutOfDescriptors,
            (_, io::ErrorKind::ConnectionRefused) => Self::Refused,
            (_, io::ErrorKind::TimedOut) => Self::Late,
            _ => Self::Other,
        }
    }

    fn shaking_hands(error: &rustls::Error) -> Self {
        use rustls::CertificateError::{
            Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        };

        match error {
            rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => Self::CertificateExpired,
            rustls::Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => Self::CertificateNotYetValid,
            rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
                Self::CertificateOfAnotherName
            }
            rustls::Error::InvalidCertificate(_) => Self::CertificateNotTrusted,
            _ => Self::NoHandshake,
        }
    }
}

/// EMFILE and ENFILE, the same numbers on every system that this runs on.
const PROCESS_FILES: i32 = 24;
const SYSTEM_FILES: i32 = 23;

//! A `postgres://` URL as settings: where to connect, as whom, and whose certificates are trusted.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use url::form_urlencoded;

use crate::http;
use crate::secret::Secret;

/// One database, or several hosts of which one is the primary.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    /// Its own `Debug` leaves the password out.
    pub(super) connection: Config,
    pub(super) transport: Transport,
}

#[derive(Debug, Clone)]
pub(super) enum Transport {
    /// Loopback and Unix sockets only.
    Plain,
    /// The server's certificate and name are verified, always.
    Tls(Authorities),
}

#[derive(Debug, Clone)]
pub(super) enum Authorities {
    /// The system's and `outbound.ca_file`.
    System(http::Settings),
    /// Those of `sslrootcert` and no others.
    File(PathBuf),
}

/// Why a text is no usable URL. Says nothing of the text: a password is in it.
#[derive(Debug, thiserror::Error)]
pub enum InvalidUrl {
    #[error(
        "is not postgres://USER[:PASSWORD]@HOST[:PORT]/DATABASE with options that are known: escape what is special in a password, as %40 for @"
    )]
    Syntax,
    #[error("names no host")]
    NoHost,
    #[error("sslmode is require or verify-full, which are the same here, or disable on loopback and Unix sockets")]
    Mode,
    #[error("sslmode is disable, but the host is not loopback: the password and all records would travel in clear")]
    Plaintext,
    #[error("target_session_attrs is read-write: the store is written to")]
    ReadOnly,
}

impl PostgresSettings {
    /// `sslmode` and `sslrootcert` mean what they mean to libpq, but that a certificate is never left unverified.
    pub fn parse(url: &Secret, outbound: &http::Settings) -> Result<Self, InvalidUrl> {
        let system = || Authorities::System(outbound.clone());
        let (address, query) = url.expose().split_once('?').unwrap_or((url.expose(), ""));
        let (mut mode, mut authorities, mut rest) = (None, None, Vec::new());
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("sslmode", value)) => mode = Some(value),
                Some(("sslrootcert", "system")) => authorities = Some(system()),
                Some(("sslrootcert", file)) => authorities = Some(Authorities::File(decoded(file))),
                _ => rest.push(option),
            }
        }
        let rest = Secret::new(format!("{address}?{}", rest.join("&")));
        let mut connection: Config = rest.expose().parse().map_err(|_its_text_may_be_secret| InvalidUrl::Syntax)?;
        if connection.get_hosts().is_empty() {
            return Err(InvalidUrl::NoHost);
        }
        let local = is_local(&connection);
        let transport = match mode {
            Some("disable") if !local => return Err(InvalidUrl::Plaintext),
            Some("disable") => Transport::Plain,
            None if local && authorities.is_none() => Transport::Plain,
            None | Some("require" | "verify-full") => Transport::Tls(authorities.unwrap_or_else(system)),
            Some(_) => return Err(InvalidUrl::Mode),
        };
        connection.ssl_mode(match transport {
            Transport::Plain => SslMode::Disable,
            Transport::Tls(_) => SslMode::Require,
        });
        // After a failover, the primary is whichever host takes writes.
        if connection.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
            return Err(InvalidUrl::ReadOnly);
        }
        connection.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if connection.get_connect_timeout().is_none() {
            connection.connect_timeout(CONNECT_TIMEOUT);
        }
        if connection.get_application_name().is_none() {
            connection.application_name("carnet");
        }
        connection.keepalives_idle(KEEPALIVE);
        Ok(Self { connection, transport })
    }
}

/// As it may be shown.
impl fmt::Display for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres://")?;
        if let Some(user) = self.connection.get_user() {
            write!(f, "{user}@")?;
        }
        let mut ports = self.connection.get_ports().iter();
        for (index, host) in self.connection.get_hosts().iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match host {
                Host::Tcp(name) => write!(f, "{comma}{name}")?,
                Host::Unix(path) => write!(f, "{comma}{}", path.display())?,
            }
            if let Some(port) = ports.next() {
                write!(f, ":{port}")?;
            }
        }
        write!(f, "/{}", self.connection.get_dbname().unwrap_or_default())
    }
}

/// By what is dialled: where `hostaddr` stands beside a name, it decides.
fn is_local(connection: &Config) -> bool {
    let local = |host: &Host| match host {
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
        Host::Unix(_) => true,
    };
    connection.get_hosts().iter().all(local) && connection.get_hostaddrs().iter().all(IpAddr::is_loopback)
}

/// Percent-encoding only: in a path, `+` is itself.
fn decoded(value: &str) -> PathBuf {
    let value = value.replace('+', "%2B");
    form_urlencoded::parse(value.as_bytes()).map(|(path, _no_value)| path.into_owned()).collect::<String>().into()
}

/// Below the deadline of a statement, so that the next of several hosts is tried in time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Shorter than the 4 minutes after which cloud load balancers drop silent connections.
const KEEPALIVE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<PostgresSettings, InvalidUrl> {
        PostgresSettings::parse(&Secret::new(url), &http::Settings::default())
    }

    #[test]
    fn connections_in_clear_stay_on_the_machine() {
        for plain in [
            "postgres://u@127.0.0.1/d",
            "postgres://u@localhost:5433/d?sslmode=disable",
            "postgresql://u@[::1]/d",
            "postgres:///d?host=/var/run/postgresql",
            "postgres://u@%2Fvar%2Frun%2Fpostgresql/d?sslmode=disable",
        ] {
            let settings = parse(plain).unwrap_or_else(|error| panic!("{plain}: {error}"));
            assert!(matches!(settings.transport, Transport::Plain), "{plain}");
        }
        for tls in [
            "postgres://u@db.example.com/d",
            "postgres://u@10.0.0.1/d?sslmode=require",
            "postgres://u@localhost/d?sslmode=verify-full",
            "postgres://u@localhost/d?sslrootcert=/etc/ca.pem",
            "postgres://u@localhost/d?sslrootcert=system",
            "postgres://u@localhost/d?hostaddr=10.0.0.1",
            "postgres://u@127.0.0.1,10.0.0.1/d",
        ] {
            let settings = parse(tls).unwrap_or_else(|error| panic!("{tls}: {error}"));
            assert!(matches!(settings.transport, Transport::Tls(_)), "{tls}");
            assert_eq!(settings.connection.get_ssl_mode(), SslMode::Require, "{tls}");
        }
        for refused in ["db.example.com/d?sslmode=disable", "localhost/d?hostaddr=10.0.0.1&sslmode=disable"] {
            assert!(matches!(parse(&format!("postgres://u@{refused}")), Err(InvalidUrl::Plaintext)), "{refused}");
        }
        for unverified in ["prefer", "allow", "verify-ca", "REQUIRE", ""] {
            let url = format!("postgres://u@db.example.com/d?sslmode={unverified}");
            assert!(matches!(parse(&url), Err(InvalidUrl::Mode)), "{unverified}");
        }
    }

    #[test]
    fn a_certificate_file_takes_the_place_of_the_systems_authorities() {
        let settings = parse("postgres://u@db/d?sslrootcert=%2Fetc/a+b%20c.pem&application_name=x").expect("settings");
        let Transport::Tls(Authorities::File(path)) = &settings.transport else { panic!("{settings:?}") };
        assert_eq!(path, &PathBuf::from("/etc/a+b c.pem"));
        assert_eq!(settings.connection.get_application_name(), Some("x"));
        let system = parse("postgres://u@db/d?sslrootcert=system").expect("settings");
        assert!(matches!(system.transport, Transport::Tls(Authorities::System(_))));
    }

    #[test]
    fn nothing_shows_the_password() {
        let settings = parse("postgres://user:hunt%40er2@db.example.com,other:5433/carnet").expect("settings");
        assert_eq!(settings.connection.get_password(), Some(&b"hunt@er2"[..]));
        assert_eq!(settings.to_string(), "postgres://user@db.example.com:5432,other:5433/carnet");
        assert!(!format!("{settings:?}").contains("er2"));
        for broken in ["postgres://u:hunter2?x", "postgres://u:p@db/d?hunter2=1", "postgres://u:hunter2@db:port/d"] {
            let error = parse(broken).expect_err(broken);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
        assert!(matches!(parse("postgres:///d"), Err(InvalidUrl::NoHost)));
        assert!(matches!(parse("postgres://db/d?target_session_attrs=read-only"), Err(InvalidUrl::ReadOnly)));
    }
}

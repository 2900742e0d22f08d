//! Names, scopes, identifiers and durations: texts with a form of their own, valid from the moment they exist.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de::Error as _};
use uuid::Uuid;

use crate::http::Endpoint;

/// A text does not have the form that its kind demands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub &'static str);

/// Reads a value from the text of a configuration file. The complaint never repeats the text: it could be a secret.
fn from_text<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// In the configuration's schema, the type is a text with a description.
macro_rules! described_as_text {
    ($name:ident, $description:expr) => {
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $description })
            }
        }
    };
}

/// Texts with a form of their own: parsed once at the border, compared and shown afterwards.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $check:expr, $complaint:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err(Invalid($complaint)) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                from_text(deserializer)
            }
        }

        described_as_text!($name, $complaint);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(
    /// Name of a target or a rule in the configuration.
    Name,
    |text| is_name(text),
    "a name has 1 to 63 characters of a-z, A-Z, 0-9, `-`, `_` and `.`, and starts with a letter or digit"
);

text!(
    /// One scope (RFC 6749 section 3.3), at most 512 bytes.
    Scope,
    |text| (1..=512).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)),
    "a scope has 1 to 512 printable ASCII characters without blanks, `\"` and `\\` (RFC 6749 section 3.3)"
);

text!(
    /// E-mail address or numeric id of a Google service account. It becomes part of a URL's path.
    ServiceAccount,
    |text| is_service_account(text),
    "a service account is NAME@PROJECT.iam.gserviceaccount.com or its numeric id"
);

text!(
    /// `//iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER`
    /// (Google: workload identity federation, principal identifiers).
    PoolProvider,
    |text| pool_provider(text).is_some(),
    "a provider is named //iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER, \
     with the project's number (not its id), and 4 to 32 characters of a-z, 0-9 and `-` for pool and provider"
);

text!(
    /// Audience of an ID token: 1 to 2048 printable characters.
    IdTokenAudience,
    |text| (1..=2048).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c.is_whitespace()),
    "an audience has 1 to 2048 printable characters without blanks"
);

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PoolProvider {
    /// The principal that the pool sees for an assertion with this `subject`
    /// (Google: principal identifiers, single identity).
    pub fn principal(&self, subject: &str) -> String {
        format!("principal:{}/subject/{subject}", self.pool_name())
    }

    /// Everybody with this value of an attribute (Google: principal identifiers).
    pub fn principal_set(&self, attribute: &str, value: &str) -> String {
        format!("principalSet:{}/attribute.{attribute}/{value}", self.pool_name())
    }

    /// The members of a group (Google: principal identifiers).
    pub fn group(&self, id: &str) -> String {
        format!("principalSet:{}/group/{id}", self.pool_name())
    }

    /// The number of the pool's project.
    pub fn project(&self) -> &str {
        self.parts().0
    }

    pub fn pool(&self) -> &str {
        self.parts().1
    }

    pub fn provider(&self) -> &str {
        self.parts().2
    }

    /// `//iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/POOL`
    fn pool_name(&self) -> &str {
        self.0.split("/providers/").next().unwrap_or_default()
    }

    fn parts(&self) -> (&str, &str, &str) {
        pool_provider(&self.0).unwrap_or_default()
    }
}

impl ServiceAccount {
    /// The id of its project, where the address names it: those of default accounts and numeric ids do not. An
    /// address has the two parts of a domain's project (`example.com:ml`) the other way round.
    pub fn project(&self) -> Option<String> {
        let project = self.0.split_once('@')?.1.strip_suffix(".iam.gserviceaccount.com")?;
        Some(match project.split_once('.') {
            Some((name, domain)) => format!("{domain}:{name}"),
            None => project.to_owned(),
        })
    }

    /// What stands before the `@`.
    pub fn short_name(&self) -> Option<&str> {
        Some(self.0.split_once('@')?.0)
    }
}

fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_service_account(text: &str) -> bool {
    let numeric = text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_digit());
    let label = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let email = text.split_once('@').is_some_and(|(name, domain)| {
        text.len() <= 256 && label(name) && domain.ends_with(".gserviceaccount.com") && domain.split('.').all(label)
    });
    !text.is_empty() && (numeric || email)
}

/// The parts of a provider's full name: project number, pool, provider.
fn pool_provider(text: &str) -> Option<(&str, &str, &str)> {
    let rest = text.strip_prefix("//iam.googleapis.com/projects/")?;
    let (project, rest) = rest.split_once("/locations/global/workloadIdentityPools/")?;
    let (pool, provider) = rest.split_once("/providers/")?;
    let number = (1..=20).contains(&project.len()) && project.bytes().all(|byte| byte.is_ascii_digit());
    let id = |part: &str| {
        (4..=32).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    (number && id(pool) && id(provider)).then_some((project, pool, provider))
}

/// Object identifiers of Entra: tenants, objects, clients and groups are GUIDs in the hyphenated form.
pub fn guid(text: &str) -> Result<Uuid, Invalid> {
    let hyphenated = text.len() == 36;
    Uuid::try_parse(text)
        .ok()
        .filter(|_| hyphenated)
        .ok_or(Invalid("expected a GUID such as 11111111-1111-1111-1111-111111111111"))
}

/// A GUID as a configuration file writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid(pub Uuid);

impl FromStr for Guid {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        guid(text).map(Self)
    }
}

/// A length of time as a configuration file or a command line writes it: `90s`, `15m`, `12h`, `3d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const FORM: Invalid = Invalid("a duration is a whole number with a unit: 90s, 15m, 12h or 3d");
        let unit = text.chars().next_back().ok_or(FORM)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(FORM),
        };
        let number = text.strip_suffix(unit).unwrap_or_default();
        let plain = number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = number.parse().ok().filter(|number| plain && *number <= 1_000_000).ok_or(FORM)?;
        Ok(Self(Duration::from_secs(number * seconds)))
    }
}

/// In the largest unit that it is a whole number of.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let units = [(86_400, 'd'), (3600, 'h'), (60, 'm')];
        match units.iter().find(|(unit, _name)| seconds >= *unit && seconds.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", seconds / unit),
            None => write!(f, "{seconds}s"),
        }
    }
}

impl<'de> Deserialize<'de> for Guid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer)
    }
}

described_as_text!(Guid, "a GUID in its hyphenated form");
described_as_text!(Span, "a duration: 90s, 15m, 12h, 3d");
described_as_text!(Endpoint, "an https:// URL; http:// on loopback only");

/// Scopes sorted and without repetition: two spellings of one set are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Scopes(Arc<[Scope]>);

impl Scopes {
    pub fn iter(&self) -> std::slice::Iter<'_, Scope> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, scope: &Scope) -> bool {
        self.0.binary_search(scope).is_ok()
    }

    /// Separated by blanks, as in RFC 6749 section 3.3.
    pub fn joined(&self) -> String {
        let texts: Vec<&str> = self.iter().map(Scope::as_str).collect();
        texts.join(" ")
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let mut scopes: Vec<Scope> = scopes.into_iter().collect();
        scopes.sort_unstable();
        scopes.dedup();
        Self(scopes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROVIDER: &str =
        "//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/carnet";

    #[test]
    fn a_provider_needs_the_project_number_and_its_full_name() {
        assert!(PROVIDER.parse::<PoolProvider>().is_ok());
        for broken in [
            PROVIDER.replace("123456789", "my-project"),
            PROVIDER.replace("//iam", "https://iam"),
            PROVIDER.replace("global", "europe-west1"),
            PROVIDER.replace("/providers/carnet", ""),
            PROVIDER.replace("ml-pool", "ml"),
            PROVIDER.replace("ml-pool", "../pool"),
            format!("{PROVIDER}/x"),
        ] {
            assert!(broken.parse::<PoolProvider>().is_err(), "{broken}");
        }
    }

    #[test]
    fn a_principal_belongs_to_the_pool() {
        let provider: PoolProvider = PROVIDER.parse().expect("a provider");
        assert_eq!(
            provider.principal("entra:t:o"),
            "principal://iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/subject/entra:t:o"
        );
    }

    #[test]
    fn i18_a_name_cannot_leave_its_path() {
        for broken in ["", "..", "../x", "a/b", "a b", ".hidden", "a\n", "ä", &"x".repeat(64)] {
            assert!(broken.parse::<Name>().is_err(), "{broken:?}");
        }
        for broken in [
            "sa@evil.example",
            "sa/../x@p.iam.gserviceaccount.com",
            "SA@p.iam.gserviceaccount.com",
            "@p.gserviceaccount.com",
            "a@b@p.iam.gserviceaccount.com",
            "",
        ] {
            assert!(broken.parse::<ServiceAccount>().is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_guid_has_the_hyphenated_form() {
        assert!(guid("11111111-1111-1111-1111-111111111111").is_ok());
        for broken in [
            "11111111111111111111111111111111",
            "{11111111-1111-1111-1111-111111111111}",
            "common",
            "",
            "urn:uuid:11111111-1111-1111-1111-111111111111",
        ] {
            assert!(guid(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_duration_has_one_whole_number_and_one_unit() {
        let seconds = |text: &str| text.parse::<Span>().map(|span| span.0.as_secs());
        assert_eq!(
            [seconds("90s"), seconds("15m"), seconds("12h"), seconds("3d")],
            [Ok(90), Ok(900), Ok(43_200), Ok(259_200)]
        );
        for broken in ["", "s", "90", "1.5h", "-1s", "+1s", "1h30m", "99999999d", "1 h", "١s"] {
            assert!(broken.parse::<Span>().is_err(), "{broken}");
        }
    }

    #[test]
    fn the_order_and_repetition_of_scopes_do_not_matter() {
        let scopes = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a scope")).collect::<Scopes>();
        assert_eq!(scopes(&["b", "a", "b"]), scopes(&["a", "b"]));
        assert_eq!(scopes(&["b", "a"]).joined(), "a b");
    }
}

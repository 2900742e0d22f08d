//! What may be asked for: targets, scopes, audiences and jobs, each valid from the moment it exists.

mod text;

pub use text::{Guid, IdTokenAudience, Invalid, Name, PoolProvider, Scope, Scopes, ServiceAccount, Span, guid};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use uuid::Uuid;

use crate::http::Endpoint;

/// One entry of the configuration's `targets`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub name: Name,
    pub platform: Platform,
    pub scopes: Scopes,
    pub sharing: Sharing,
    pub max_lifetime: Duration,
    /// Where neither the request nor its job says how long.
    pub default_lifetime: Duration,
    /// Changes with every setting of the target.
    pub revision: [u8; 32],
}

impl Target {
    /// Whether the cloud is shown the caller's own token.
    pub fn redeems_subject_token(&self) -> bool {
        match &self.platform {
            Platform::Google(google) => google.subject_token == GoogleSubjectToken::Entra,
            Platform::Azure(azure) => matches!(azure.source, AzureSource::OnBehalfOf { .. }),
        }
    }

    /// Whether the cloud is shown an assertion that the broker signs.
    pub fn needs_issuer(&self) -> bool {
        match &self.platform {
            Platform::Google(google) => google.subject_token == GoogleSubjectToken::Issuer,
            Platform::Azure(azure) => {
                matches!(azure.source, AzureSource::Issuer { .. } | AzureSource::OnBehalfOf { .. })
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Platform {
    Google(GoogleTarget),
    Azure(AzureTarget),
}

/// Who may be handed the same credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// One identity (`tid`, `oid`).
    Subject,
    /// Everybody whom the same rule allows the target: the assertion then names the target, not a person.
    Target,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoogleTarget {
    pub provider: PoolProvider,
    pub subject_token: GoogleSubjectToken,
    pub service_account: Option<ServiceAccount>,
    /// The assertion itself can be asked for: the caller then redeems it at Google, for whatever Google lets it.
    pub hand_out_assertion: bool,
    pub sts_endpoint: Endpoint,
    pub iam_credentials_endpoint: Endpoint,
}

/// What is presented to Google's Security Token Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoogleSubjectToken {
    /// An assertion that the broker signs.
    Issuer,
    /// The caller's Entra token.
    Entra,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzureTarget {
    pub tenant: Uuid,
    pub client_id: Uuid,
    pub authority: Endpoint,
    pub source: AzureSource,
}

/// How the broker proves to Entra that it may act as `client_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AzureSource {
    /// With an assertion of its own, for the federated identity credential (issuer, `subject`, `audience`).
    Issuer { subject: String, audience: String },
    /// With the token in this file, read anew at each use: the kubelet replaces it.
    TokenFile(PathBuf),
    /// Not at all: the machine's metadata service knows the identities of the machine.
    ManagedIdentity(ManagedIdentityEndpoint),
    /// As a client with an assertion of its own that redeems the user's token.
    OnBehalfOf { subject: String, audience: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagedIdentityEndpoint {
    /// `/metadata/identity/oauth2/token` below this address.
    Imds(Endpoint),
    /// `IDENTITY_ENDPOINT`, with the value of `IDENTITY_HEADER`.
    AppService { endpoint: Endpoint, header: AppServiceHeader },
}

/// The value of `IDENTITY_HEADER`: equal only to itself, so that settings can be compared.
#[derive(Debug, Clone)]
pub struct AppServiceHeader(pub crate::secret::Secret);

impl PartialEq for AppServiceHeader {
    fn eq(&self, other: &Self) -> bool {
        subtle::ConstantTimeEq::ct_eq(self.0.expose().as_bytes(), other.0.expose().as_bytes()).into()
    }
}

impl Eq for AppServiceHeader {}

/// RFC 8693 section 3 token types that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenType {
    AccessToken,
    IdToken,
    /// The assertion that the broker signs for the target.
    Jwt,
}

impl TokenType {
    pub const fn urn(self) -> &'static str {
        match self {
            Self::AccessToken => "urn:ietf:params:oauth:token-type:access_token",
            Self::IdToken => "urn:ietf:params:oauth:token-type:id_token",
            Self::Jwt => "urn:ietf:params:oauth:token-type:jwt",
        }
    }
}

impl FromStr for TokenType {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        [Self::AccessToken, Self::IdToken, Self::Jwt]
            .into_iter()
            .find(|kind| kind.urn() == text)
            .ok_or(Invalid("expected urn:ietf:params:oauth:token-type:access_token, ...:id_token or ...:jwt"))
    }
}

/// The machine-learning job that a credential is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    pub id: Option<String>,
    pub name: Option<String>,
    pub expected_duration: Option<Duration>,
    pub labels: BTreeMap<String, String>,
    pub datasets: Vec<String>,
}

impl Job {
    /// Refuses what would not fit into an assertion or a log: long texts, control characters, too many entries.
    pub fn check(&self) -> Result<(), Invalid> {
        let text = |text: &str, max: usize| (1..=max).contains(&text.len()) && !text.chars().any(char::is_control);
        let named = |name: &Option<String>| name.as_deref().is_none_or(|name| text(name, 128));
        if !named(&self.id) {
            return Err(Invalid("job.id has at most 128 bytes and no control characters"));
        }
        if !named(&self.name) {
            return Err(Invalid("job.name has at most 128 bytes and no control characters"));
        }
        let labelled = |(key, value): (&String, &String)| text(key, 63) && (value.is_empty() || text(value, 256));
        if self.labels.len() > 64 || !self.labels.iter().all(labelled) {
            return Err(Invalid(
                "job.labels has at most 64 entries, keys of at most 63 and values of at most 256 bytes",
            ));
        }
        if self.datasets.len() > 64 || !self.datasets.iter().all(|dataset| text(dataset, 256)) {
            return Err(Invalid("job.datasets has at most 64 names of at most 256 bytes"));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Target {
    /// A Google target with a service account, reached with the broker's own assertion.
    pub fn google_for_test(name: &str) -> Self {
        let provider = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/carnet";
        Self {
            name: name.parse().expect("a name"),
            platform: Platform::Google(GoogleTarget {
                provider: provider.parse().expect("a provider"),
                subject_token: GoogleSubjectToken::Issuer,
                service_account: Some("trainer@ml.iam.gserviceaccount.com".parse().expect("an account")),
                hand_out_assertion: false,
                sts_endpoint: "https://sts.googleapis.com".parse().expect("a URL"),
                iam_credentials_endpoint: "https://iamcredentials.googleapis.com".parse().expect("a URL"),
            }),
            scopes: ["scope-a", "scope-b"].iter().map(|scope| scope.parse().expect("a scope")).collect(),
            sharing: Sharing::Subject,
            max_lifetime: Duration::from_secs(3600),
            default_lifetime: Duration::from_secs(3600),
            revision: [1; 32],
        }
    }

    pub fn azure_for_test(name: &str, source: AzureSource) -> Self {
        Self {
            platform: Platform::Azure(AzureTarget {
                tenant: Uuid::from_u128(1),
                client_id: Uuid::from_u128(30),
                authority: "https://login.microsoftonline.com".parse().expect("a URL"),
                source,
            }),
            ..Self::google_for_test(name)
        }
    }

    pub fn with_google(mut self, change: impl FnOnce(&mut GoogleTarget)) -> Self {
        if let Platform::Google(google) = &mut self.platform {
            change(google);
        }
        self
    }
}

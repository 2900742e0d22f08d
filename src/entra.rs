//! Entra's own ways of answering: AADSTS codes and what helps against them, and the managed identity endpoints.

mod managed_identity;

pub use managed_identity::{
    Identity, ManagedIdentityAnswer, judge as judge_managed_identity, probe as probe_metadata_service,
    request as ask_managed_identity,
};

use http::HeaderName;
use serde::Deserialize;

use crate::answer::{Verdict, by_form, error_word};
use crate::http::{Endpoint, Response};

/// A refusal of the token endpoint. Microsoft (reference-error-codes): `error_codes` are numbers that may change; the
/// class of an unknown one follows from the HTTP status.
#[derive(Debug, Deserialize, Default)]
pub struct Failure {
    #[serde(default)]
    error_codes: Vec<u64>,
    #[serde(default)]
    pub error: String,
    /// A JSON text with what Conditional Access asks for.
    pub claims: Option<String>,
}

impl Failure {
    pub fn read(response: &Response) -> Self {
        serde_json::from_slice(&response.body).unwrap_or_default()
    }

    /// `AADSTS` and the number, else the OAuth error, else the status.
    pub fn code(&self, response: &Response) -> String {
        let number = self.error_codes.first();
        number.map_or_else(|| error_word(&self.error, response), |number| format!("AADSTS{number}"))
    }

    /// What helps, and what is wrong; `None` for a code that is not listed.
    pub fn class(&self) -> Option<(Class, &'static str)> {
        class(*self.error_codes.first()?)
    }
}

/// What helps against an AADSTS number, and what it means; `None` for one that is not listed.
pub fn class(number: u64) -> Option<(Class, &'static str)> {
    let row = CODES.iter().find(|(codes, _class, _meaning)| codes.contains(&number));
    row.map(|(_codes, class, meaning)| (*class, *meaning))
}

/// Passing faults come with status 400 too.
pub fn judge(response: &Response) -> Verdict {
    match by_form(response) {
        Verdict::Final if response.status.is_client_error() => match Failure::read(response).class() {
            Some((Class::Throttled, _meaning)) => Verdict::Throttled,
            Some((Class::Transient, meaning)) => Verdict::Transient(meaning.to_owned()),
            Some((Class::IssuerUnreachable, _meaning)) => Verdict::IssuerUnreachable,
            _ => Verdict::Final,
        },
        verdict => verdict,
    }
}

/// What helps against a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Permanent,
    Throttled,
    Transient,
    /// Entra could not fetch what the assertion's issuer publishes.
    IssuerUnreachable,
    FreshSubjectToken,
    Challenge,
    /// A person has to sign in anew.
    SignIn,
}

/// It becomes the correlation id of Entra's sign-in log.
pub const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("client-request-id");

/// `true` has the answer name it, too.
pub const RETURN_CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("return-client-request-id");

/// The same for Azure's other services.
pub const X_MS_CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");

/// Of a JWT as a client's authentication (RFC 7523 section 2.2).
pub const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The audience that Entra expects of assertions, by cloud (Microsoft: workload identity federation, national clouds).
pub fn assertion_audience(authority: &Endpoint) -> &'static str {
    match authority.host() {
        "login.microsoftonline.us" => "api://AzureADTokenExchangeUSGov",
        "login.partner.microsoftonline.cn" | "login.chinacloudapi.cn" => "api://AzureADTokenExchangeChina",
        _ => "api://AzureADTokenExchange",
    }
}

/// The assertion was too old or too young: a new one may do.
pub const OUTSIDE_VALIDITY: &str = "AADSTS700024";

/// AADSTS codes by what helps (Microsoft: reference-error-codes, and public threads). Codes that are not listed are
/// permanent.
const CODES: [(&[u64], Class, &str); 29] = [
    (
        &[70021],
        Class::Permanent,
        "no federated identity credential matches; a new one takes some minutes to be known everywhere",
    ),
    (
        &[700_211],
        Class::Permanent,
        "no federated identity credential has the assertion's issuer: compare to the letter, trailing slash included",
    ),
    (&[700_212], Class::Permanent, "no federated identity credential has the assertion's audience"),
    (
        &[700_213, 7_002_138],
        Class::Permanent,
        "no federated identity credential has the assertion's subject: it is compared with upper and lower case",
    ),
    (&[700_222], Class::Permanent, "an Entra token was presented as assertion, which Entra never accepts"),
    (&[70023], Class::Permanent, "the assertion lacks `iat` or lives too long"),
    (&[700_024], Class::Permanent, "the assertion is outside its validity: check this machine's clock"),
    (
        &[700_027, 7_000_272],
        Class::Permanent,
        "Entra does not know the key that signed the assertion: publish keys before they are used",
    ),
    (&[90061, 50166], Class::IssuerUnreachable, "Entra cannot fetch the issuer's discovery document or keys"),
    (&[700_016, 700_011], Class::Permanent, "the client id does not exist in the tenant"),
    (&[90002], Class::Permanent, "the tenant does not exist in this cloud"),
    (
        &[500_011, 50001, 650_057],
        Class::Permanent,
        "the scope's resource does not exist in the tenant, or may not be used",
    ),
    (&[70011, 1_002_012], Class::Permanent, "the scope is not valid: one resource, ending in /.default"),
    (&[7_000_113], Class::Permanent, "the on-behalf-of flow takes tokens of users only"),
    (&[50013, 500_133], Class::FreshSubjectToken, "the user's token is not valid any more"),
    (
        &[65001, 50076, 50079, 50105, 50158, 53000, 53001, 53002, 53003, 53004, 70043],
        Class::Challenge,
        "consent or Conditional Access",
    ),
    (&[7_000_218], Class::Permanent, "the registration is no public client: turn on `Allow public client flows`"),
    (&[7_000_215, 7_000_222], Class::Permanent, "the client secret is wrong or has ended"),
    (
        &[700_025],
        Class::Permanent,
        "the registration is a public client, which must present neither a secret nor an assertion",
    ),
    (&[70000, 700_003, 700_005], Class::SignIn, "the person's sign-in is not valid"),
    (&[70008, 700_081, 700_082, 700_084], Class::SignIn, "the person's sign-in has ended"),
    (&[50078], Class::SignIn, "the second factor of the person's sign-in is too old"),
    (&[50173], Class::SignIn, "the person or an administrator revoked the person's sign-ins"),
    (&[50132, 50133], Class::SignIn, "the person's password was changed or has ended"),
    (&[50057], Class::Permanent, "the person's account is disabled: an administrator can enable it"),
    (&[530_034], Class::Permanent, "the person's account is blocked as risky: an administrator can look into it"),
    (&[90055, 50196], Class::Throttled, "too many requests"),
    (&[90033, 90024, 90006], Class::Transient, "Entra says it is a passing fault"),
    (&[50000], Class::Transient, "Entra failed to issue the token"),
];

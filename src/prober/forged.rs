//! Tokens that nobody may take: each is a good one with one thing wrong.

use std::time::{Duration, SystemTime};

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::clock::unix_seconds;
use crate::issuer::SigningKey;
use crate::reason::Reason;
use crate::secret::Secret;
use crate::subject::Settings;

/// What is wrong with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    Expired,
    NotYetValid,
    ForeignTenant,
    ForeignIssuer,
    WrongAudience,
    /// For Microsoft Graph, as people present them by mistake.
    MicrosoftGraph,
    /// Its claims were changed after it was signed.
    Altered,
    /// `alg: none`.
    Unsigned,
    /// Signed as HS256 with what everybody knows.
    Symmetric,
}

impl Fault {
    pub const ALL: [Self; 9] = [
        Self::Expired,
        Self::NotYetValid,
        Self::ForeignTenant,
        Self::ForeignIssuer,
        Self::WrongAudience,
        Self::MicrosoftGraph,
        Self::Altered,
        Self::Unsigned,
        Self::Symmetric,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::ForeignTenant => "foreign_tenant",
            Self::ForeignIssuer => "foreign_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::MicrosoftGraph => "microsoft_graph",
            Self::Altered => "altered",
            Self::Unsigned => "unsigned",
            Self::Symmetric => "symmetric",
        }
    }

    /// Why a token with a good signature is refused for it.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Expired => Reason::SubjectTokenExpired,
            Self::NotYetValid => Reason::SubjectTokenNotYetValid,
            Self::ForeignTenant => Reason::SubjectTokenTenant,
            Self::ForeignIssuer => Reason::SubjectTokenIssuer,
            Self::WrongAudience => Reason::SubjectTokenAudience,
            Self::MicrosoftGraph => Reason::SubjectTokenNotForUs,
            Self::Altered | Self::Unsigned | Self::Symmetric => Reason::SubjectTokenSignature,
        }
    }
}

/// Makes them for one broker at one moment.
pub(super) struct Forger<'a> {
    pub key: SigningKey,
    pub settings: &'a Settings,
    pub now: SystemTime,
}

impl Forger<'_> {
    /// Nothing is wrong with it but that Entra did not sign it.
    pub fn good(&self) -> Result<Secret, Unspecified> {
        self.signed("RS256", self.key.kid(), &self.claims())
    }

    /// `kid`: of the key that it claims to be signed with.
    pub fn token(&self, fault: Fault, kid: &str) -> Result<Secret, Unspecified> {
        let mut claims = self.claims();
        let at = |time: SystemTime| json!(unix_seconds(time));
        let hour = Duration::from_secs(3600);
        let changed = match fault {
            Fault::Expired => {
                let (began, ended) = (at(self.now - 3 * hour), at(self.now - 2 * hour));
                vec![("iat", began.clone()), ("nbf", began), ("exp", ended)]
            }
            Fault::NotYetValid => {
                let (begins, ends) = (at(self.now + 2 * hour), at(self.now + 3 * hour));
                vec![("iat", begins.clone()), ("nbf", begins), ("exp", ends)]
            }
            Fault::ForeignTenant => {
                let foreign = Uuid::new_v4();
                vec![("tid", json!(foreign)), ("iss", json!(self.issuer(foreign)))]
            }
            Fault::ForeignIssuer => vec![("iss", json!(self.issuer(Uuid::new_v4())))],
            Fault::WrongAudience => vec![("aud", json!(Uuid::new_v4()))],
            Fault::MicrosoftGraph => vec![("aud", json!("00000003-0000-0000-c000-000000000000"))],
            Fault::Altered | Fault::Unsigned | Fault::Symmetric => Vec::new(),
        };
        changed.into_iter().for_each(|(name, value)| set(&mut claims, name, value));
        match fault {
            Fault::Altered => {
                let good = self.signed("RS256", kid, &claims)?;
                set(&mut claims, "oid", json!(Uuid::new_v4()));
                let altered = unsigned("RS256", kid, &claims);
                let signature = good.expose().rsplit('.').next().unwrap_or_default().to_owned();
                Ok(Secret::new(format!("{altered}.{signature}")))
            }
            Fault::Unsigned => Ok(Secret::new(format!("{}.AA", unsigned("none", kid, &claims)))),
            Fault::Symmetric => {
                let text = unsigned("HS256", kid, &claims);
                let key = hmac::Key::new(hmac::HMAC_SHA256, self.key.jwk().to_string().as_bytes());
                let signature = BASE64_URL_SAFE_NO_PAD.encode(hmac::sign(&key, text.as_bytes()));
                Ok(Secret::new(format!("{text}.{signature}")))
            }
            Fault::Expired
            | Fault::NotYetValid
            | Fault::ForeignTenant
            | Fault::ForeignIssuer
            | Fault::WrongAudience
            | Fault::MicrosoftGraph => self.signed("RS256", kid, &claims),
        }
    }

    /// Of an application's v2.0 token that the broker's rules may or may not know.
    fn claims(&self) -> Value {
        let tenant = self.settings.tenants.first().copied().unwrap_or_default();
        let object = Uuid::new_v4();
        json!({
            "aud": self.settings.audiences.first(),
            "iss": self.issuer(tenant),
            "tid": tenant,
            "oid": object,
            "sub": object,
            "azp": Uuid::new_v4(),
            "azpacr": "1",
            "idtyp": "app",
            "ver": "2.0",
            "uti": "carnet-prober",
            "iat": unix_seconds(self.now),
            "nbf": unix_seconds(self.now),
            "exp": unix_seconds(self.now) + 3600,
        })
    }

    fn issuer(&self, tenant: Uuid) -> String {
        self.settings.authority.join(&format!("{tenant}/v2.0"))
    }

    fn signed(&self, algorithm: &str, kid: &str, claims: &Value) -> Result<Secret, Unspecified> {
        let text = unsigned(algorithm, kid, claims);
        let signature = BASE64_URL_SAFE_NO_PAD.encode(self.key.sign(text.as_bytes())?);
        Ok(Secret::new(format!("{text}.{signature}")))
    }
}

fn set(claims: &mut Value, name: &str, value: Value) {
    if let Some(claim) = claims.get_mut(name) {
        *claim = value;
    }
}

fn unsigned(algorithm: &str, kid: &str, claims: &Value) -> String {
    let header = json!({"typ": "JWT", "alg": algorithm, "kid": kid});
    [header, claims.clone()].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string())).join(".")
}

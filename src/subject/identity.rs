//! Who a token's claims say it is: facts that rules match on, verified or not.

use std::collections::HashSet;
use std::fmt;
use std::time::SystemTime;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::SubjectError;
use super::jwks::Version;
use super::token::Claims;
use crate::clock::from_unix_seconds;
use crate::target;

/// What the token's owner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    User,
    ServicePrincipal,
    ManagedIdentity,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::User, Self::ServicePrincipal, Self::ManagedIdentity];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::ServicePrincipal => "service_principal",
            Self::ManagedIdentity => "managed_identity",
        }
    }
}

/// The groups of an identity, as far as its token tells them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Groups {
    /// Sorted.
    Known(Box<[Uuid]>),
    /// Entra left them out because there are too many (more than 200). Never "no groups".
    Overage,
}

/// The facts about somebody that rules match on. It proves nothing: anybody can make one from claims, to ask what the
/// rules would say to them. What was verified is a [`VerifiedIdentity`](super::VerifiedIdentity), which has one inside.
///
/// Identity is `tenant` and `object`; names and e-mail addresses among the claims decide nothing.
pub struct Identity {
    tenant: Uuid,
    object: Uuid,
    subject: Box<str>,
    kind: Kind,
    client: Uuid,
    groups: Groups,
    roles: Box<[String]>,
    scopes: Box<[String]>,
    auth_contexts: Box<[String]>,
    token_id: Option<String>,
    expires_at: SystemTime,
    claims: Map<String, Value>,
}

/// What claims lack, or say in a form that Entra's tokens do not have.
#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    #[error("the claims have no `{0}`: {1}")]
    Missing(&'static str, &'static str),
    #[error("the claims name `{0}` twice, in different case")]
    Twice(String),
    #[error("the claims are not those of an Entra access token: {0}")]
    Form(&'static str),
}

impl Identity {
    /// Somebody with these claims, whom nobody verified. They are read as a verified token's are: `tid`, `oid` and
    /// `azp` (in v1.0 tokens `appid`) must be there, and signs of whose token it is must agree.
    ///
    /// What "what if" does not need may be left out: `ver` is then told by `iss`, or by whether `appid` is there;
    /// `sub` is `oid`'s where there is no `scp`, as in applications' tokens; `exp` is `expires_at`.
    ///
    /// # Errors
    /// [`ClaimsError`] names the first claim that is missing or wrong.
    pub fn from_claims(claims: Map<String, Value>, expires_at: SystemTime) -> Result<Self, ClaimsError> {
        let mut seen = HashSet::new();
        if let Some(name) = claims.keys().find(|name| !seen.insert(name.to_lowercase())) {
            return Err(ClaimsError::Twice(name.clone()));
        }
        let mut claims = Claims(claims);
        for (name, what) in [("tid", "the tenant's GUID"), ("oid", "the object id of the user or service principal")] {
            if !claims.0.contains_key(name) {
                return Err(ClaimsError::Missing(name, what));
            }
        }
        let version = assumed_version(&claims)?;
        let client = match version {
            Version::V1 => "appid",
            Version::V2 => "azp",
        };
        if !claims.0.contains_key(client) {
            return Err(ClaimsError::Missing(client, "the id of the application that asked for the token"));
        }
        if !claims.0.contains_key("sub") {
            let subject = match (claims.0.contains_key("scp"), claims.0.get("oid")) {
                (false, Some(object)) => object.clone(),
                // A user's is another for each application, and decides nothing.
                (true, _) | (false, None) => Value::from("unknown"),
            };
            claims.0.insert("sub".to_owned(), subject);
        }
        let expires_at =
            match claims.0.contains_key("exp") {
                false => expires_at,
                true => claims.seconds("exp", "`exp` is not a whole number of seconds").map_err(form).and_then(
                    |seconds| from_unix_seconds(seconds).ok_or(ClaimsError::Form("`exp` is beyond all clocks")),
                )?,
            };
        let tenant = guid(&claims, "tid", "`tid` is not a GUID").map_err(form)?;
        Self::read(claims, tenant, version, expires_at).map_err(form)
    }

    /// Who the claims say it is. Whether they are verified is the caller's to know.
    pub(super) fn read(
        claims: Claims,
        tenant: Uuid,
        version: Version,
        expires_at: SystemTime,
    ) -> Result<Self, SubjectError> {
        let object = guid(&claims, "oid", "`oid` is not a GUID")?;
        let client = match version {
            Version::V1 => guid(&claims, "appid", "`appid` is not a GUID")?,
            Version::V2 => guid(&claims, "azp", "`azp` is not a GUID")?,
        };
        let kind = kind(&claims, version)?;
        let groups = groups(&claims)?;
        let roles = claims.texts("roles", "`roles` is not a list of texts")?;
        let auth_contexts = claims.texts("acrs", "`acrs` is not a list of texts")?;
        let scopes = claims.optional_text("scp", "`scp` is not one text")?.unwrap_or_default();
        let scopes = scopes.split_ascii_whitespace().map(str::to_owned).collect();
        let token_id = claims.optional_text("uti", "`uti` is not a text")?.map(str::to_owned);
        Ok(Self {
            tenant,
            object,
            subject: subject(tenant, object),
            kind,
            client,
            groups,
            roles,
            scopes,
            auth_contexts,
            token_id,
            expires_at,
            claims: claims.0,
        })
    }

    /// Entra's `tid`.
    pub fn tenant(&self) -> Uuid {
        self.tenant
    }

    /// Entra's `oid`.
    pub fn object(&self) -> Uuid {
        self.object
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The application that asked Entra for the token: `azp`, in v1.0 tokens `appid`.
    pub fn client(&self) -> Uuid {
        self.client
    }

    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    pub fn roles(&self) -> &[String] {
        &self.roles
    }

    /// Delegated permissions (`scp`).
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// Authentication contexts that the user satisfied (`acrs`).
    pub fn auth_contexts(&self) -> &[String] {
        &self.auth_contexts
    }

    /// Entra's `uti`: the unique token identifier of its sign-in logs.
    pub fn token_id(&self) -> Option<&str> {
        self.token_id.as_deref()
    }

    pub fn expires_at(&self) -> SystemTime {
        self.expires_at
    }

    /// Every claim of the token.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// `entra:{tenant}:{object}`, the name of this identity in logs, records and assertions: 79 bytes.
    pub fn subject(&self) -> &str {
        &self.subject
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, {})", self.subject(), self.kind.as_str())
    }
}

fn subject(tenant: Uuid, object: Uuid) -> Box<str> {
    format!("entra:{tenant}:{object}").into()
}

/// By `ver`; where that was left out, by `iss`; where that was too, by the claim that only v1.0 tokens have.
fn assumed_version(claims: &Claims) -> Result<Version, ClaimsError> {
    let complaint = "`ver` is neither \"1.0\" nor \"2.0\"";
    if let Some(ver) = claims.optional_text("ver", complaint).map_err(form)? {
        return Version::named(ver).ok_or(ClaimsError::Form(complaint));
    }
    Ok(match claims.optional_text("iss", "`iss` is not one text").map_err(form)? {
        Some(iss) => Version::of_issuer(iss),
        None if claims.0.contains_key("appid") => Version::V1,
        None => Version::V2,
    })
}

/// Reading claims complains of nothing but their form.
fn form(error: SubjectError) -> ClaimsError {
    match error {
        SubjectError::Malformed(complaint) | SubjectError::Signature(complaint) | SubjectError::NotForUs(complaint) => {
            ClaimsError::Form(complaint)
        }
        SubjectError::Tenant => ClaimsError::Form("`tid` is not a GUID"),
        SubjectError::Expired(_)
        | SubjectError::NotYetValid(_)
        | SubjectError::Issuer
        | SubjectError::Audience
        | SubjectError::KeysUnavailable { .. } => ClaimsError::Form("they cannot be read"),
    }
}

fn guid(claims: &Claims, name: &'static str, complaint: &'static str) -> Result<Uuid, SubjectError> {
    target::guid(claims.text(name, complaint)?).map_err(|_not_a_guid| SubjectError::Malformed(complaint))
}

/// Told apart by `idtyp`; where that optional claim is absent, by `scp` (which only users' tokens have) and `sub`
/// (which is `oid` only in applications' tokens). Signs that contradict each other are refused, never weighed.
fn kind(claims: &Claims, version: Version) -> Result<Kind, SubjectError> {
    const CONTRADICTION: SubjectError = SubjectError::Malformed(
        "`idtyp`, `scp`, `sub` and `oid` do not agree on whether it is a user's or an application's",
    );
    let subject = claims.text("sub", "`sub` is not one text")?;
    let subject_is_object = claims.0.get("oid").and_then(Value::as_str) == Some(subject);
    let delegated = claims.0.contains_key("scp");
    let declared = claims.optional_text("idtyp", "`idtyp` is not a text")?;
    let machine = claims.optional_text("xms_mirid", "`xms_mirid` is not a text")?;
    let authenticated = match version {
        Version::V1 => claims.optional_text("appidacr", "`appidacr` is not a text")?,
        Version::V2 => claims.optional_text("azpacr", "`azpacr` is not a text")?,
    };
    let application = match (declared, delegated, subject_is_object) {
        (Some("app") | None, false, true) => true,
        (Some("user") | None, true, false) => false,
        _ => return Err(CONTRADICTION),
    };
    match (application, machine) {
        // "0" is a public client: it has no secret, so it cannot have proved to be the application.
        (true, _) if authenticated == Some("0") => {
            Err(SubjectError::Malformed("an application's token from a public client"))
        }
        (true, Some(resource)) if is_resource_id(resource) => Ok(Kind::ManagedIdentity),
        (true, None) => Ok(Kind::ServicePrincipal),
        (false, None) => Ok(Kind::User),
        (_, Some(_)) => {
            Err(SubjectError::Malformed("`xms_mirid` does not name a managed identity of an application's token"))
        }
    }
}

/// An ARM resource id, as `xms_mirid` of managed identities carries it.
fn is_resource_id(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.starts_with("/subscriptions/") && text.contains("/providers/microsoft.")
}

/// `_claim_names` and `hasgroups` announce groups that did not fit (Microsoft: access-token-claims-reference, "Groups
/// overage"). The endpoint in `_claim_sources` is not even looked at.
fn groups(claims: &Claims) -> Result<Groups, SubjectError> {
    let elsewhere = match claims.0.get("_claim_names") {
        None => false,
        Some(Value::Object(names)) => names.contains_key("groups"),
        Some(_) => return Err(SubjectError::Malformed("`_claim_names` is not an object")),
    };
    let announced = match claims.0.get("hasgroups") {
        None => false,
        Some(Value::Bool(announced)) => *announced,
        Some(Value::String(text)) if text == "true" => true,
        Some(Value::String(text)) if text == "false" => false,
        Some(_) => return Err(SubjectError::Malformed("`hasgroups` is neither true nor false")),
    };
    let listed = claims.0.contains_key("groups");
    if elsewhere || (announced && !listed) {
        return Ok(Groups::Overage);
    }
    let names = claims.texts("groups", "`groups` is not a list of texts")?;
    // Groups synchronized by name are no GUIDs; no rule can name them.
    let mut groups: Vec<Uuid> = names.iter().filter_map(|name| target::guid(name).ok()).collect();
    groups.sort_unstable();
    Ok(Groups::Known(groups.into()))
}

#[cfg(test)]
impl Identity {
    /// A service principal of tenant 1 with object 2 and client 3.
    pub fn for_test(expires_at: SystemTime) -> Self {
        let claims = serde_json::json!({
            "ver": "2.0",
            "tid": Uuid::from_u128(1).to_string(),
            "oid": Uuid::from_u128(2).to_string(),
            "azp": Uuid::from_u128(3).to_string(),
        });
        let Value::Object(claims) = claims else { unreachable!("an object") };
        Self::from_claims(claims, expires_at).expect("an identity")
    }

    pub fn with_object(self, object: u128) -> Self {
        let object = Uuid::from_u128(object);
        let claimed = |identity: Self, name| identity.with_claim(name, object.to_string().into());
        let named = Self { object, subject: subject(self.tenant, object), ..self };
        ["oid", "sub"].into_iter().fold(named, claimed)
    }

    pub fn with_tenant(self, tenant: u128) -> Self {
        let tenant = Uuid::from_u128(tenant);
        Self { tenant, subject: subject(tenant, self.object), ..self }.with_claim("tid", tenant.to_string().into())
    }

    pub fn with_kind(self, kind: Kind) -> Self {
        Self { kind, ..self }
    }

    pub fn with_groups(self, groups: Groups) -> Self {
        Self { groups, ..self }
    }

    pub fn with_roles(self, roles: &[&str]) -> Self {
        Self { roles: roles.iter().map(ToString::to_string).collect(), ..self }
    }

    pub fn with_claim(mut self, name: &str, value: Value) -> Self {
        self.claims.insert(name.to_owned(), value);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    const TENANT: &str = "11111111-1111-1111-1111-111111111111";
    const OBJECT: &str = "66666666-6666-6666-6666-666666666666";
    const CLIENT: &str = "55555555-5555-5555-5555-555555555555";

    fn later() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn from(claims: Value) -> Result<Identity, String> {
        let claims = claims.as_object().expect("an object").clone();
        Identity::from_claims(claims, later()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_what_if_needs_no_more_than_who_it_is() {
        let app = from(json!({"tid": TENANT, "oid": OBJECT, "azp": CLIENT, "roles": ["Training.Submit"]}));
        let app = app.expect("an application");
        assert_eq!(
            (app.kind(), app.roles(), app.expires_at()),
            (Kind::ServicePrincipal, &["Training.Submit".to_owned()][..], later())
        );
        assert_eq!(app.subject(), format!("entra:{TENANT}:{OBJECT}"));
        let user = from(json!({"tid": TENANT, "oid": OBJECT, "azp": CLIENT, "scp": "jobs.submit"})).expect("a user");
        assert_eq!((user.kind(), user.scopes()), (Kind::User, &["jobs.submit".to_owned()][..]));
        let old =
            from(json!({"tid": TENANT, "oid": OBJECT, "appid": CLIENT, "exp": 1_767_000_000})).expect("a v1.0 token's");
        assert_eq!(old.client().to_string(), CLIENT);
        assert_eq!(Some(old.expires_at()), from_unix_seconds(1_767_000_000));
    }

    #[test]
    fn claims_are_read_as_strictly_as_a_tokens() {
        let good = json!({"tid": TENANT, "oid": OBJECT, "azp": CLIENT});
        for (name, value, complaint) in [
            ("tid", Value::Null, "the claims have no `tid`: the tenant's GUID"),
            ("oid", Value::Null, "the claims have no `oid`"),
            ("azp", Value::Null, "the claims have no `azp`"),
            ("iss", json!("https://sts.windows.net/x/"), "the claims have no `appid`"),
            ("ver", json!("3.0"), "`ver` is neither"),
            ("ver", json!("1.0"), "the claims have no `appid`"),
            ("oid", json!("me"), "`oid` is not a GUID"),
            ("exp", json!("soon"), "`exp` is not a whole number"),
            ("roles", json!("Training.Submit"), "`roles` is not a list"),
            ("idtyp", json!("user"), "do not agree"),
            ("azpacr", json!("0"), "from a public client"),
            ("OID", json!(OBJECT), "twice, in different case"),
        ] {
            let mut claims = good.clone();
            match value {
                Value::Null => claims.as_object_mut().expect("an object").remove(name),
                value => claims.as_object_mut().expect("an object").insert(name.to_owned(), value),
            };
            let error = from(claims).expect_err(name);
            assert!(error.contains(complaint), "{name}: {error}");
        }
    }

    #[test]
    fn c19_groups_that_did_not_fit_are_not_no_groups() {
        let who = |field: &str, value: Value| {
            let mut claims = json!({"tid": TENANT, "oid": OBJECT, "azp": CLIENT, "scp": "s"});
            claims[field] = value;
            from(claims).expect("a user").groups().clone()
        };
        assert_eq!(who("_claim_names", json!({"groups": "src1"})), Groups::Overage);
        assert_eq!(who("hasgroups", json!(true)), Groups::Overage);
        assert_eq!(who("groups", json!([CLIENT])), Groups::Known([CLIENT.parse().expect("a GUID")].into()));
    }
}

//! What a decision about somebody was made of, in a form that may be kept: enough to ask the rules again.

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::{ClaimsError, Identity, VerifiedIdentity};
use crate::secret::sha256;

/// The claims of an identity that decide, as JSON: no names, no addresses, nothing of the single token. Equal facts have
/// equal bytes, whatever the order in which Entra lists groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of `json`.
    pub digest: [u8; 32],
    /// `digest` as records name it: base64url.
    pub name: Box<str>,
    pub json: Box<str>,
}

impl Facts {
    fn new(json: String) -> Self {
        Self::stored(sha256(json.as_bytes()), json)
    }

    /// As a store has them.
    pub fn stored(digest: [u8; 32], json: String) -> Self {
        Self { digest, name: BASE64_URL_SAFE_NO_PAD.encode(digest).into(), json: json.into() }
    }
}

impl VerifiedIdentity {
    /// Made once, at the first decision.
    pub fn facts(&self) -> &Arc<Facts> {
        self.facts.get_or_init(|| Arc::new(self.identity.facts()))
    }
}

impl Identity {
    /// For records of decisions.
    pub fn facts(&self) -> Facts {
        let kept = KEPT.iter().filter_map(|name| Some(((*name).to_owned(), kept(self.claims().get(*name)?))));
        Facts::new(Value::Object(kept.collect()).to_string())
    }

    /// Somebody of whom `facts` were kept. It proves nothing. What rules ask of claims that are not kept is not answered
    /// as it was then: `name`, `upn`, `email` and whatever else a tenant puts into its tokens.
    ///
    /// # Errors
    /// What is missing, or in a form that tokens do not have.
    pub fn from_facts(facts: &str, expires_at: SystemTime) -> Result<Self, ClaimsError> {
        let claims = serde_json::from_str::<Map<String, Value>>(facts);
        Self::from_claims(claims.map_err(|_not_json| ClaimsError::Form("they are no JSON object"))?, expires_at)
    }
}

/// Names of claims that stand elsewhere, without where; lists in one order.
fn kept(claim: &Value) -> Value {
    match claim {
        Value::Object(names) => Value::Object(names.keys().map(|name| (name.clone(), "".into())).collect()),
        Value::Array(list) if list.iter().all(Value::is_string) => {
            let mut texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            texts.sort_unstable();
            texts.into()
        }
        Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => claim.clone(),
    }
}

/// Whether a condition on this claim of `subject.claims` is answered from kept facts as it was from the token.
pub fn is_kept(claim: &str) -> bool {
    KEPT.contains(&claim)
}

/// Besides who it is, what rules have names for; what says how and where from somebody signed in (`acr`, `amr`, `acct`,
/// `idp`, `xms_cc`); and which resource a managed identity is of.
const KEPT: [&str; 24] = [
    "_claim_names",
    "acct",
    "acr",
    "acrs",
    "amr",
    "appid",
    "appidacr",
    "aud",
    "azp",
    "azpacr",
    "groups",
    "hasgroups",
    "idp",
    "idtyp",
    "iss",
    "oid",
    "roles",
    "scp",
    "tid",
    "ver",
    "wids",
    "xms_az_rid",
    "xms_cc",
    "xms_mirid",
];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::subject::{Groups, Kind};

    const GROUPS: [&str; 2] = ["44444444-4444-4444-4444-444444444444", "33333333-3333-3333-3333-333333333333"];

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn user(groups: [&str; 2], more: Value) -> Identity {
        let mut claims = json!({
            "tid": "11111111-1111-1111-1111-111111111111",
            "oid": "66666666-6666-6666-6666-666666666666",
            "azp": "55555555-5555-5555-5555-555555555555",
            "sub": "pairwise", "ver": "2.0", "scp": "jobs.submit jobs.read", "roles": ["b", "a"], "groups": groups,
            "acrs": ["c1"], "acct": 0, "idp": "https://sts.windows.net/x/",
        });
        let claims = claims.as_object_mut().expect("an object");
        claims.extend(more.as_object().expect("an object").clone());
        Identity::from_claims(claims.clone(), at(1000)).expect("an identity")
    }

    #[test]
    fn what_rules_match_on_comes_back_and_nothing_of_the_person_or_the_token_is_kept() {
        let personal = json!({
            "name": "Ada Lovelace", "preferred_username": "ada@example.com", "email": "ada@example.com", "upn": "ada",
            "uti": "uti-1", "iat": 1, "nbf": 1, "exp": 2000, "rh": "r", "ipaddr": "203.0.113.1", "sid": "s",
        });
        let facts = user(GROUPS, personal).facts();
        for kept_out in ["Ada", "ada", "uti", "pairwise", "2000", "203.0", "sid"] {
            assert!(!facts.json.contains(kept_out), "{kept_out}: {}", facts.json);
        }
        let back = Identity::from_facts(&facts.json, at(5)).expect("an identity");
        assert_eq!((back.kind(), back.expires_at(), back.token_id()), (Kind::User, at(5), None));
        assert_eq!(back.subject(), "entra:11111111-1111-1111-1111-111111111111:66666666-6666-6666-6666-666666666666");
        let texts = |list: &[String]| list.join(" ");
        assert_eq!(
            [texts(back.roles()), texts(back.scopes()), texts(back.auth_contexts())],
            ["a b", "jobs.submit jobs.read", "c1"]
        );
        assert!(matches!(back.groups(), Groups::Known(groups) if groups.len() == 2));
        assert_eq!((&back.claims()["acct"], back.facts()), (&json!(0), facts));
    }

    #[test]
    fn equal_facts_are_equal_whatever_the_token_and_its_order_of_groups() {
        let facts = user(GROUPS, json!({"uti": "1"})).facts();
        assert_eq!(facts, user([GROUPS[1], GROUPS[0]], json!({"uti": "2", "exp": 7})).facts());
        assert_eq!(facts, Facts::stored(sha256(facts.json.as_bytes()), facts.json.clone().into()));
        assert_ne!(facts, user(GROUPS, json!({"roles": ["a"]})).facts());
    }

    #[test]
    fn overage_and_managed_identities_come_back_as_what_they_were() {
        let elsewhere =
            json!({"_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": "https://x"}}});
        let facts = user(GROUPS, elsewhere).facts();
        assert!(!facts.json.contains("src1"));
        let back = Identity::from_facts(&facts.json, at(5)).expect("an identity");
        assert_eq!(back.groups(), &Groups::Overage);

        let resource =
            "/subscriptions/s/resourcegroups/ml/providers/Microsoft.ManagedIdentity/userAssignedIdentities/t";
        let machine = json!({
            "tid": "11111111-1111-1111-1111-111111111111", "oid": "66666666-6666-6666-6666-666666666666",
            "appid": "55555555-5555-5555-5555-555555555555", "ver": "1.0", "xms_mirid": resource, "appidacr": "2",
        });
        let machine = Identity::from_claims(machine.as_object().expect("an object").clone(), at(5)).expect("one");
        let back = Identity::from_facts(&machine.facts().json, at(5)).expect("an identity");
        assert_eq!((back.kind(), back.client()), (Kind::ManagedIdentity, machine.client()));
        assert!(Identity::from_facts("[]", at(5)).is_err());
    }
}

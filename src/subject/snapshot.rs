//! An identity that outlives its token: what a lease keeps, so that the rules can be asked again.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::jwks::Version;
use super::token::Claims;
use super::{Identity, VerifiedIdentity};
use crate::clock::{from_unix_seconds, unix_seconds};
use crate::target;

/// The verified claims; everything else is read from them again, by the rules of the program that restores.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    claims: Map<String, Value>,
    expires_at: u64,
    token_sha256: [u8; 32],
}

impl VerifiedIdentity {
    /// For a place that keeps it secret and that nobody but the broker can write: it holds names and addresses, and
    /// whoever could change it would choose who they are.
    pub fn snapshot(&self) -> Zeroizing<Vec<u8>> {
        let (claims, expires_at) = (self.claims().clone(), unix_seconds(self.expires_at()));
        let snapshot = Snapshot { claims, expires_at, token_sha256: self.token_sha256 };
        Zeroizing::new(serde_json::to_vec(&snapshot).unwrap_or_default())
    }

    /// The identity that [`snapshot`](Self::snapshot) wrote; `None` for anything else.
    pub fn restore(snapshot: &[u8]) -> Option<Self> {
        let Snapshot { claims, expires_at, token_sha256 } = serde_json::from_slice(snapshot).ok()?;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let tenant = target::guid(text("tid")?).ok()?;
        let version = Version::named(text("ver")?)?;
        let identity = Identity::read(Claims(claims), tenant, version, from_unix_seconds(expires_at)?).ok()?;
        Some(Self::new(identity, token_sha256))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::subject::{Groups, Kind};

    #[test]
    fn an_identity_comes_back_as_it_was() {
        let expires_at = from_unix_seconds(1_767_225_600).expect("a time") + Duration::from_secs(3600);
        let before = VerifiedIdentity::for_test(expires_at)
            .with_claim("roles", json!(["Training.Submit"]))
            .with_claim("groups", json!(["44444444-4444-4444-4444-444444444444"]))
            .with_claim("uti", json!("uti-1"));
        let after = VerifiedIdentity::restore(&before.snapshot()).expect("an identity");
        assert_eq!(
            (after.tenant(), after.object(), after.client(), after.kind(), after.expires_at()),
            (before.tenant(), before.object(), before.client(), Kind::ServicePrincipal, expires_at)
        );
        assert_eq!((after.roles(), after.token_id()), (&["Training.Submit".to_owned()][..], Some("uti-1")));
        assert!(matches!(after.groups(), Groups::Known(groups) if groups.len() == 1));
        assert_eq!((after.claims(), after.token_sha256()), (before.claims(), before.token_sha256()));
    }

    #[test]
    fn what_is_no_snapshot_is_nobody() {
        for other in ["", "{}", r#"{"claims":{"tid":"x"},"expires_at":1,"token_sha256":[]}"#] {
            assert!(VerifiedIdentity::restore(other.as_bytes()).is_none(), "{other}");
        }
    }
}

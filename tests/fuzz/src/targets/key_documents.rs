//! What a tenant publishes: a discovery document and, after a line `---`, keys. `{n}` stands for the modulus of the key that
//! signed a good token.

use std::sync::Arc;

use carnet::issuer::StatementKeys;
use carnet::secret::Secret;
use carnet::subject::{EntraVerifier, SubjectToken, Trial, Verifier as _, published};
use http::HeaderMap;
use serde_json::Value;
use url::Url;

use crate::world::{AUTHORITY, CLIENT, KEY, TENANT, TOKEN, answer, block_on, clock, settings, show};

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let jwk = KEY.jwk();
    let modulus = jwk.get("n").and_then(Value::as_str).unwrap_or_default();
    let (discovery, keys) = text.split_once("\n---\n").unwrap_or((text, "{}"));
    let keys: Arc<str> = keys.replace("{n}", modulus).into();
    let (told, published_keys): (Arc<str>, _) = (discovery.into(), keys.clone());
    let http = CLIENT.answered_by(move |request| {
        // Whatever the document says.
        let [asked, ours] = [request.url(), AUTHORITY].map(|url| Url::parse(url).expect("a URL").origin());
        assert_eq!(asked, ours, "somebody else was asked");
        let discovery = request.url().ends_with("/.well-known/openid-configuration");
        let body = if discovery { &told } else { &published_keys };
        answer(200, HeaderMap::new(), body.as_bytes().to_vec())
    });
    let verifier = EntraVerifier::new(settings(), http.clone(), clock());
    let token = SubjectToken::new(Secret::new(TOKEN.as_str())).expect("a token");
    let verdict = block_on(verifier.verify(&token));
    show(|| format!("{verdict:?}"));
    if verdict.is_ok() {
        assert!(keys.contains(modulus), "a token was taken whose key is not published");
        let discovery: Value = serde_json::from_str(discovery).expect("a document");
        let issuer = discovery.get("issuer").and_then(Value::as_str).unwrap_or_default();
        assert!(issuer.contains(TENANT), "another tenant's document was taken");
    }
    let tenant = TENANT.parse().expect("a GUID");
    for found in block_on(published(&http, &settings().authority, tenant)) {
        if let Err(error) = found.found {
            let _ = format!("{error} {error:?}");
        }
    }
    let _ = StatementKeys::from_jwks(&keys);
    let document: Value = serde_json::from_str(&keys).unwrap_or_default();
    for jwk in document.get("keys").and_then(Value::as_array).into_iter().flatten().take(8) {
        let Some(trial) = Trial::new(settings(), jwk, clock()) else { continue };
        if trial.of(&token).is_ok() {
            assert_eq!(jwk.get("n").and_then(Value::as_str), Some(modulus), "another key verified the token");
        }
    }
}

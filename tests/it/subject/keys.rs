//! Keys come from the tenant's own documents on the configured host, in bounds, or there is no answer yet.

use ::http::StatusCode;
use carnet::reason::Reason::*;
use carnet::sandbox::TokenVersion::V2;
use carnet::sandbox::{Fault, SigningKey};
use serde_json::{Value, json};

use super::*;

/// What is wrong with Entra, at which document, and how.
type Outage = (&'static str, &'static str, fn(&Checkpoint) -> Fault);

#[tokio::test]
async fn i12_documents_that_are_foreign_broken_or_endless_give_no_keys_and_the_next_good_ones_do() {
    let outages: &[Outage] = &[
        ("keys on another host", DISCOVERY, |at| discovery(at, "jwks_uri", &url(&at.elsewhere))),
        ("keys on another port", DISCOVERY, |at| discovery(at, "jwks_uri", "http://127.0.0.1:1/keys")),
        ("keys behind a user name", DISCOVERY, |at| discovery(at, "jwks_uri", &with_user_name(at))),
        ("keys at the metadata address", DISCOVERY, |at| discovery(at, "jwks_uri", "http://169.254.169.254/keys")),
        ("keys in a file", DISCOVERY, |at| discovery(at, "jwks_uri", "file:///etc/passwd")),
        ("keys at a relative path", DISCOVERY, |at| discovery(at, "jwks_uri", "/discovery/v2.0/keys")),
        ("issuer of another tenant", DISCOVERY, |at| discovery(at, "issuer", &at.entra.issuer(SECOND_TENANT, V2))),
        ("issuer of common", DISCOVERY, |at| discovery(at, "issuer", &at.entra.issuer("{tenantid}", V2))),
        ("issuer of organizations", DISCOVERY, |at| discovery(at, "issuer", &at.entra.issuer("organizations", V2))),
        ("issuer that is no URL", DISCOVERY, |at| discovery(at, "issuer", TENANT)),
        ("issuer not a text", DISCOVERY, |_at| answer(&json!({"issuer": [], "jwks_uri": ""}).to_string())),
        ("no jwks_uri", DISCOVERY, |at| answer(&json!({"issuer": at.entra.issuer(TENANT, V2)}).to_string())),
        ("discovery redirected", DISCOVERY, |at| Fault::Redirect(at.elsewhere.authority().to_owned())),
        ("discovery redirected to itself", DISCOVERY, |at| Fault::Redirect(at.entra.authority().to_owned())),
        ("keys redirected", KEYS, |at| Fault::Redirect(url(&at.elsewhere))),
        ("discovery endless", DISCOVERY, |_at| Fault::EndlessBody),
        ("keys endless", KEYS, |_at| Fault::EndlessBody),
        ("discovery cut", DISCOVERY, |_at| Fault::Truncate),
        ("keys cut", KEYS, |_at| Fault::Truncate),
        ("no answer", DISCOVERY, |_at| Fault::Drop),
        ("no answer for keys", KEYS, |_at| Fault::Drop),
        ("busy", DISCOVERY, |_at| Fault::status(StatusCode::SERVICE_UNAVAILABLE)),
        ("throttled", KEYS, |_at| Fault::status(StatusCode::TOO_MANY_REQUESTS)),
        ("gone", DISCOVERY, |_at| Fault::status(StatusCode::NOT_FOUND)),
        ("empty", DISCOVERY, |_at| answer("")),
        ("a page", DISCOVERY, |_at| answer("<html>Sign in to the network</html>")),
        ("half a document", KEYS, |_at| answer("{\"keys\":[")),
        ("a page for keys", KEYS, |_at| answer("<html>Sign in to the network</html>")),
        ("keys not a list", KEYS, |_at| answer("{\"keys\":{}}")),
        ("no keys", KEYS, |_at| answer("{\"keys\":[]}")),
        ("no usable key", KEYS, |_at| answer(&json!({"keys": odd_keys()}).to_string())),
        ("300 KB of keys", KEYS, |_at| answer(&format!("{{\"keys\":[]{}}}", " ".repeat(300_000)))),
    ];
    let checkpoint = Checkpoint::open().await;
    let text = checkpoint.app().sign();
    for (name, document, fault) in outages {
        let verifier = checkpoint.fresh_verifier();
        checkpoint.entra.faults().always(document, fault(&checkpoint));
        let error = verify(&verifier, &text).await.expect_err(name);
        assert_eq!(error.reason(), KeysUnavailable, "{name}: {error}");
        let wait = error.retry_after().expect("a time to wait");
        assert!(SECOND <= wait && wait <= Duration::from_secs(10), "{name}: {wait:?}");
        checkpoint.entra.faults().clear(document);
        pass(wait).await;
        assert_eq!(refusal(&verifier, &text).await, None, "{name}, afterwards");
    }
    assert_no_stray_call(&checkpoint);
}

#[tokio::test]
async fn a_slow_body_ends_the_fetch_at_its_deadline() {
    for document in [DISCOVERY, KEYS] {
        let checkpoint = Checkpoint::open().await;
        checkpoint.entra.faults().always(document, Fault::SlowBody(SECOND));
        let text = checkpoint.app().sign();
        let began = tokio::time::Instant::now();
        let asked = async {
            while checkpoint.entra.calls().count(document) == 0 {
                tokio::task::yield_now().await;
            }
            // From here on, time passes whenever everybody waits.
            tokio::time::pause();
        };
        let (verdict, ()) = tokio::join!(checkpoint.verify(&text), asked);
        tokio::time::resume();
        assert_eq!(verdict.expect_err("too slow").reason(), KeysUnavailable);
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        checkpoint.entra.faults().clear(document);
        pass(Duration::from_secs(10)).await;
        assert_eq!(refusal(&checkpoint.verifier, &text).await, None);
    }
}

#[tokio::test]
async fn an_outage_after_the_keys_are_known_is_not_noticed() {
    let checkpoint = Checkpoint::open().await;
    checkpoint.accept(&checkpoint.app()).await;
    checkpoint.entra.faults().always("", Fault::Drop);
    for _hour in 0..3 {
        pass(Duration::from_secs(3600)).await;
        checkpoint.accept(&checkpoint.app()).await;
    }
}

#[tokio::test]
async fn one_tenants_outage_leaves_another_alone() {
    let checkpoint = Checkpoint::open().await;
    let document = format!("{SECOND_TENANT}/discovery/v2.0/keys");
    checkpoint.entra.faults().always(&document, Fault::Drop);
    let second = checkpoint.entra.app_token(SECOND_TENANT, OBJECT).sign();
    assert_eq!(refusal(&checkpoint.verifier, &second).await, Some(KeysUnavailable));
    checkpoint.accept(&checkpoint.app()).await;
}

#[tokio::test]
async fn c20_a_new_key_is_found_by_its_first_token_and_the_old_one_stays_good() {
    let checkpoint = Checkpoint::open().await;
    let before = checkpoint.app();
    checkpoint.accept(&before).await;
    let old = checkpoint.entra.signing_key(TENANT).kid().to_owned();
    checkpoint.entra.rotate(TENANT);
    pass(Duration::from_secs(60)).await;
    checkpoint.accept(&checkpoint.app()).await;
    checkpoint.accept(&checkpoint.app().signed_by(&old)).await;
}

#[tokio::test]
async fn c20_made_up_key_names_cost_one_fetch_a_minute() {
    let checkpoint = Checkpoint::open().await;
    checkpoint.accept(&checkpoint.app()).await;
    for minute in 1..=3 {
        for name in 0..20 {
            let text = checkpoint.app().header("kid", format!("made-up-{minute}-{name}")).sign();
            assert_eq!(refusal(&checkpoint.verifier, &text).await, Some(SubjectTokenSignature));
        }
        assert_eq!(checkpoint.entra.calls().count(KEYS), minute);
        pass(Duration::from_secs(60)).await;
    }
}

#[tokio::test]
async fn many_tokens_at_once_share_one_fetch() {
    let checkpoint = Checkpoint::open().await;
    let texts: Vec<String> = (0..50).map(|_| checkpoint.app().sign()).collect();
    let verdicts = futures_util::future::join_all(texts.iter().map(|text| checkpoint.verify(text))).await;
    assert!(verdicts.iter().all(Result::is_ok));
    assert_eq!(checkpoint.entra.calls().count(DISCOVERY), 1);
    assert_eq!(checkpoint.entra.calls().count(KEYS), 1);
}

#[tokio::test]
async fn odd_keys_beside_the_good_ones_do_no_harm() {
    let checkpoint = Checkpoint::open().await;
    for jwk in odd_keys() {
        checkpoint.entra.publish(TENANT, jwk);
    }
    checkpoint.accept(&checkpoint.app()).await;
    checkpoint.accept(&checkpoint.app().v1()).await;
}

#[tokio::test]
async fn a_keys_issuer_may_be_a_template_in_any_case_or_absent_but_not_another_tenants() {
    let checkpoint = Checkpoint::open().await;
    let issuer = |tenant: &str| Some(checkpoint.entra.issuer(tenant, V2));
    for (name, issuer, expected) in [
        ("template", issuer("{tenantid}"), None),
        ("template in another case", issuer("{TenantId}"), None),
        ("the tenant", issuer(TENANT), None),
        ("absent", None, None),
        ("another tenant", issuer(SECOND_TENANT), Some(SubjectTokenIssuer)),
        ("a foreign tenant", issuer(FOREIGN_TENANT), Some(SubjectTokenIssuer)),
        ("another template", issuer("{tenant}"), Some(SubjectTokenIssuer)),
        ("another host", Some(checkpoint.elsewhere.issuer("{tenantid}", V2)), Some(SubjectTokenIssuer)),
        ("empty", Some(String::new()), Some(SubjectTokenIssuer)),
    ] {
        let key = Arc::new(SigningKey::rsa());
        let mut jwk = key.jwk();
        if let Some(issuer) = issuer {
            jwk["issuer"] = json!(issuer);
        }
        checkpoint.entra.publish(TENANT, jwk);
        let text = checkpoint.app().signed_by_key(key).sign();
        assert_eq!(refusal(&checkpoint.fresh_verifier(), &text).await, expected, "{name}");
    }
    for kid in checkpoint.entra.kids(TENANT) {
        checkpoint.accept(&checkpoint.app().signed_by(&kid)).await;
    }
}

#[tokio::test]
async fn i02_a_withdrawn_key_signs_no_more_after_the_hourly_refresh() {
    let checkpoint = Checkpoint::open().await;
    let kid = checkpoint.entra.kids(TENANT)[0].clone();
    checkpoint.accept(&checkpoint.app().signed_by(&kid)).await;
    checkpoint.entra.withdraw(TENANT, &kid);
    pass(Duration::from_secs(3600)).await;
    checkpoint.accept(&checkpoint.app()).await;
    while checkpoint.entra.calls().count(KEYS) < 2 {
        tokio::task::yield_now().await;
    }
    let withdrawn = checkpoint.app().signed_by(&kid).sign();
    while refusal(&checkpoint.verifier, &withdrawn).await.is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(refusal(&checkpoint.verifier, &withdrawn).await, Some(SubjectTokenSignature));
}

/// Lets the time of `tokio::time` pass at once.
pub(super) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// A token with an unknown `kid`, after the cooldown, makes the verifier fetch the keys again.
pub(super) async fn learn_of_new_keys(checkpoint: &Checkpoint) {
    pass(Duration::from_secs(60)).await;
    let fetches = checkpoint.entra.calls().count(KEYS);
    let text = checkpoint.app().header("kid", "made-up").sign();
    assert_eq!(refusal(&checkpoint.verifier, &text).await, Some(SubjectTokenSignature));
    assert_eq!(checkpoint.entra.calls().count(KEYS), fetches + 1);
}

fn discovery(at: &Checkpoint, name: &str, value: &str) -> Fault {
    let mut document = json!({"issuer": at.entra.issuer(TENANT, V2), "jwks_uri": url(&at.entra)});
    document[name] = json!(value);
    answer(&document.to_string())
}

fn answer(body: &str) -> Fault {
    Fault::answer(StatusCode::OK, &[("content-type", "application/json")], body).expect("an answer")
}

fn url(entra: &Entra) -> String {
    format!("{}/{TENANT}{KEYS}", entra.authority())
}

fn with_user_name(at: &Checkpoint) -> String {
    url(&at.entra).replace("http://", "http://user@")
}

fn odd_keys() -> Vec<Value> {
    let modulus = "B".repeat(341) + "Q";
    vec![
        json!({"kty": "RSA", "kid": 7, "n": modulus, "e": "AQAB"}),
        json!({"kty": "RSA", "kid": null, "n": modulus, "e": "AQAB"}),
        json!({"kty": "RSA", "n": modulus, "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "encrypts", "use": "enc", "n": modulus, "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "short", "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "not base64", "n": "*".repeat(342), "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "no modulus"}),
        json!({"kty": "oct", "kid": "oct", "alg": "HS256", "k": "c2VjcmV0"}),
        json!({"kty": "EC", "kid": "ec", "crv": "P-256", "x": "AA", "y": "AA"}),
        json!({"kty": "OKP", "kid": "okp", "crv": "Ed25519", "x": "AA"}),
        json!({"kty": ["RSA"], "kid": "list"}),
        json!({}),
        json!([]),
        json!("key"),
        Value::Null,
    ]
}

/// Ends of the paths of the two documents.
const DISCOVERY: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/discovery/v2.0/keys";

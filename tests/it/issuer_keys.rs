//! The issuer's keys through their lives: rotations that no cloud notices, the commands, and keys from files.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use carnet::app::App;
use carnet::clock::{Clock as _, ManualClock};
use carnet::config::Config;
use carnet::grpc::{Address, connect};
use carnet::issuer::{Algorithm, SigningKey};
use carnet::proto::ExchangeRequest;
use carnet::proto::token_exchange_client::TokenExchangeClient;
use carnet::sandbox::Call;
use serde_json::{Value, json};

use crate::command_line::{carnet, run, text};
use crate::support::{Broker, Setup, TENANT, captured_logs, eventually, with_broker, with_setup};

const MINUTE: Duration = Duration::from_secs(60);

/// Another broker on the same store, with the same issuer and clouds.
async fn replica(broker: &Broker, clock: &ManualClock) -> App {
    let configuration = std::fs::read_to_string(broker.config_path()).expect("the file");
    let server = configuration.lines().find(|line| line.starts_with("server:")).expect("a line");
    let other = configuration.replace(server, "server: { grpc: '127.0.0.1:0', http: '127.0.0.1:0' }");
    let path = broker.folder.path().join("replica.yaml");
    std::fs::write(&path, other).expect("written");
    let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
    let app = App::start(config, None, Arc::new(clock.clone())).await.expect("a replica");
    app.until_ready().await;
    app
}

/// Of a runner whom nobody knew before, so that both clouds are asked.
fn fresh(broker: &Broker, number: u32) -> ExchangeRequest {
    let runner = format!("66666666-6666-6666-6666-{number:012}");
    let token = broker.entra.app_token(TENANT, &runner).roles(["Training.Submit"]);
    broker.request_with(&token, &["vertex", "azure-ml"])
}

async fn exchange(broker: &Broker, app: &App, number: u32) -> Result<(), tonic::Status> {
    let address: Address = format!("http://{}", app.grpc_address().expect("a port")).parse().expect("an address");
    let mut client = TokenExchangeClient::new(connect(&address, None).await.expect("a connection"));
    let answer = client.exchange(fresh(broker, number)).await?.into_inner();
    answer.credentials.iter().for_each(|credential| broker.is_secret(&credential.token));
    Ok(())
}

async fn published_by(http: &str) -> BTreeSet<String> {
    let jwks: Value = reqwest::get(format!("{http}/keys")).await.expect("an answer").json().await.expect("JSON");
    kids(&jwks)
}

fn kids(jwks: &Value) -> BTreeSet<String> {
    let keys = jwks["keys"].as_array().expect("keys").iter();
    keys.map(|key| key["kid"].as_str().expect("a kid").to_owned()).collect()
}

/// The key that signed what a cloud was shown last.
fn signer(calls: &[Call], field: &str) -> String {
    let shown = calls.iter().rev().find_map(|call| call.form(field)).expect("an assertion");
    jsonwebtoken::decode_header(shown).expect("a header").kid.expect("a kid")
}

fn google_signer(broker: &Broker) -> String {
    signer(&broker.google.calls().to("/v1/token"), "subject_token")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_exchange_is_refused_while_two_replicas_rotate_their_keys() {
    let clock = ManualClock::start();
    let issuer = ", rotate_every: 6h, publish_ahead: 2h".to_owned();
    with_setup(Setup { issuer, clock: Some(clock.clone()), ..Setup::default() }, async |broker| {
        let other = replica(broker, &clock).await;
        let other_http = format!("http://{}", other.http_address().expect("a port"));
        let first = published_by(&broker.http).await;
        let (mut for_google, mut for_entra) = (BTreeSet::new(), BTreeSet::new());
        for step in 0..80 {
            // Longer than a replica goes without a look at the store; the clouds keep keys for an hour.
            clock.advance(10 * MINUTE);
            let mut apps = [broker.app(), &other];
            if step % 2 == 1 {
                apps.reverse();
            }
            for (index, app) in apps.into_iter().enumerate() {
                let number = 2 * step + u32::try_from(index).expect("small");
                let refused = exchange(broker, app, number).await.err();
                assert!(refused.is_none(), "{:?} after the start: {refused:?}", clock.now());
                for_google.insert(google_signer(broker));
                for_entra.insert(signer(&broker.entra.calls().to("/oauth2/v2.0/token"), "client_assertion"));
                app.refresh_issuer_keys().await;
            }
            // The first of the two has seen what the second has made or removed.
            apps[0].refresh_issuer_keys().await;
            assert_eq!(published_by(&broker.http).await, published_by(&other_http).await);
        }
        assert_eq!((for_google.len(), for_entra.len()), (3, 3), "13 hours are two rotations");
        let published = published_by(&broker.http).await;
        assert!(published.is_disjoint(&first), "the first keys are gone");
        assert!(published.len() <= 6, "{published:?}");
        let age = "carnet_issuer_key_age_seconds{algorithm=\"ES256\"}";
        assert!(carnet::telemetry::metrics().render().contains(age));
        other.drain().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uploaded_key_set_is_asked_for_before_a_new_key_signs_and_then_nothing_is_refused() {
    let clock = ManualClock::start();
    let setup = Setup { clock: Some(clock.clone()), ..Setup::default() };
    with_setup(setup, async |broker| {
        let jwks = async || {
            let answer = reqwest::get(format!("{}/keys", broker.http)).await.expect("an answer");
            answer.text().await.expect("text")
        };
        let provider = |jwks: String| {
            carnet::sandbox::PoolProvider::new(crate::support::PROVIDER, broker.http.as_str())
                .map("google.subject", "assertion.sub")
                .map("attribute.tid", "assertion.tid")
                .keys(jwks)
        };
        broker.google.register_provider(provider(jwks().await)).expect("a provider");
        let days = |count: u32| count * 24 * 60 * MINUTE;
        clock.advance(days(29));
        broker.app().refresh_issuer_keys().await;
        let new: BTreeSet<_> = kids(&serde_json::from_str(&jwks().await).expect("JSON"));
        let asked = captured_logs().text();
        assert_eq!(
            new.iter().filter(|kid| asked.contains(&format!("key {kid} is published and signs from "))).count(),
            2,
            "{asked}"
        );
        broker.google.register_provider(provider(jwks().await)).expect("a provider");
        exchange(broker, broker.app(), 1).await.expect("the old key still signs");
        let old = google_signer(broker);
        clock.advance(days(1));
        exchange(broker, broker.app(), 2).await.expect("the new key was uploaded");
        assert_ne!(google_signer(broker), old);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_listed_rotated_and_replaced_while_the_broker_runs() {
    with_broker(async |broker| {
        let path = broker.config_path();
        let file = path.to_str().expect("a path");
        let issuer = async |arguments: &[&str]| {
            let output = run(carnet(&[&["issuer"], arguments, &["--config", file]].concat())).await;
            assert!(output.status.success(), "{}", text(&output.stderr));
            (text(&output.stdout), text(&output.stderr))
        };
        let listed = async || {
            let (json, _said) = issuer(&["keys", "--output", "json"]).await;
            serde_json::from_str::<Value>(&json).expect("JSON")["keys"].as_array().expect("keys").clone()
        };
        let states = |keys: &[Value]| {
            let state = |key: &Value| format!("{} {}", key["algorithm"], key["state"]).replace('"', "");
            keys.iter().map(state).collect::<Vec<_>>()
        };
        let first = listed().await;
        assert_eq!(states(&first), ["ES256 signing", "RS256 signing"]);
        let (table, _said) = issuer(&["keys"]).await;
        assert!(table.starts_with("KID") && table.lines().count() == 3, "{table}");
        assert!(first.iter().all(|key| table.contains(key["kid"].as_str().expect("a kid"))), "{table}");

        let (done, said) = issuer(&["rotate"]).await;
        assert_eq!(done.matches(": made, signs from 2").count(), 2, "{done}");
        assert!(said.contains("upload what `carnet issuer jwks` prints before 2"), "{said}");
        let (done, _said) = issuer(&["rotate", "--algorithm", "RS256"]).await;
        assert!(done.starts_with("RS256 ") && done.contains(": waiting already, signs from 2"), "{done}");
        let keys = listed().await;
        assert_eq!(states(&keys), ["ES256 signing", "ES256 next", "RS256 signing", "RS256 next"]);
        assert_eq!((&keys[0]["kid"], &keys[2]["kid"]), (&first[0]["kid"], &first[1]["kid"]));
        assert!(keys[0]["withdrawn_after"].is_string() && keys[1]["withdrawn_after"].is_null());

        broker.app().refresh_issuer_keys().await;
        let (jwks, _said) = issuer(&["jwks"]).await;
        assert_eq!(kids(&serde_json::from_str(&jwks).expect("JSON")), published_by(&broker.http).await);
        assert_eq!(published_by(&broker.http).await, kids(&json!({"keys": keys})));
        exchange(broker, broker.app(), 1).await.expect("Google knows the key that signs");

        let (done, said) = issuer(&["rotate", "--now", "--algorithm", "ES256"]).await;
        assert!(done.starts_with("ES256 ") && done.contains("signs at once"), "{done}");
        assert!(said.contains("are refused") && said.contains("at once: until then"), "{said}");
        let keys = listed().await;
        assert_eq!(states(&keys), ["ES256 signing", "RS256 signing", "RS256 next"]);
        broker.app().refresh_issuer_keys().await;
        assert_eq!(published_by(&broker.http).await, kids(&json!({"keys": keys})));
        assert!(exchange(broker, broker.app(), 2).await.is_err(), "Google has not fetched the keys anew");
        broker.google.forget_issuer_keys();
        exchange(broker, broker.app(), 3).await.expect("Google knows the new key");
        assert_eq!(json!(google_signer(broker)), keys[0]["kid"]);
        assert_ne!(keys[0]["kid"], first[0]["kid"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_keeps_the_old_keys_and_is_complained_of_once() {
    with_broker(async |broker| {
        let before = published_by(&broker.http).await;
        let store = rusqlite::Connection::open(broker.store_path()).expect("the store");
        store.execute_batch("ALTER TABLE issuer_key RENAME TO lost_keys").expect("renamed");
        let complaints = || captured_logs().text().matches("no such table: issuer_key").count();
        for _ in 0..3 {
            broker.app().refresh_issuer_keys().await;
        }
        assert_eq!(complaints(), 1);
        assert_eq!(published_by(&broker.http).await, before);
        exchange(broker, broker.app(), 1).await.expect("the old keys sign");
        store.execute_batch("ALTER TABLE lost_keys RENAME TO issuer_key").expect("renamed");
        broker.app().refresh_issuer_keys().await;
        assert!(captured_logs().text().contains("the issuer's keys can be read again"));
        assert_eq!(published_by(&broker.http).await, before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn relying_parties_keep_keys_for_less_than_a_key_is_published_ahead() {
    let lifetime = async |broker: &Broker| {
        let answer = reqwest::get(format!("{}/keys", broker.http)).await.expect("an answer");
        answer.headers()["cache-control"].to_str().expect("text").to_owned()
    };
    with_broker(async |broker| assert_eq!(lifetime(broker).await, "public, max-age=300")).await;
    let issuer = ", publish_ahead: 2m".to_owned();
    with_setup(Setup { issuer, ..Setup::default() }, async |broker| {
        assert_eq!(lifetime(broker).await, "public, max-age=30");
    })
    .await;
}

/// A key's name and its PEM.
fn key(algorithm: Algorithm) -> (String, String) {
    let key = SigningKey::generate(algorithm, ManualClock::start().now()).expect("a key");
    let body = BASE64_STANDARD.encode(key.pkcs8.as_slice());
    (key.kid, format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"))
}

fn write(path: &Path, keys: &[&(String, String)]) {
    let pem: String = keys.iter().map(|(_kid, pem)| pem.as_str()).collect();
    std::fs::write(path, pem).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_files_are_rotated_by_changing_the_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let [ec, rsa] = ["ec.pem", "rsa.pem"].map(|name| folder.path().join(name));
    let [old, next, other] = [Algorithm::Es256, Algorithm::Es256, Algorithm::Rs256].map(key);
    let published = |keys: &[&(String, String)]| keys.iter().map(|(kid, _pem)| kid.clone()).collect::<BTreeSet<_>>();
    write(&ec, &[&old]);
    write(&rsa, &[&other]);
    let issuer = format!(", key_files: ['{}', '{}']", ec.display(), rsa.display());
    with_setup(Setup { issuer, ..Setup::default() }, async |broker| {
        assert_eq!(published_by(&broker.http).await, published(&[&old, &other]));
        write(&ec, &[&old, &next]);
        eventually("the publication of the next key", async || {
            published_by(&broker.http).await == published(&[&old, &next, &other])
        })
        .await;
        exchange(broker, broker.app(), 1).await.expect("a credential");
        assert_eq!(google_signer(broker), old.0);

        write(&ec, &[&next, &old]);
        broker.app().refresh_issuer_keys().await;
        exchange(broker, broker.app(), 2).await.expect("Google has known the key before it signed");
        assert_eq!(google_signer(broker), next.0);

        std::fs::write(&ec, "no key").expect("written");
        broker.app().refresh_issuer_keys().await;
        assert!(captured_logs().text().contains("the issuer's keys cannot be read; the old ones stay"));
        exchange(broker, broker.app(), 3).await.expect("the old keys sign");

        write(&ec, &[&next]);
        broker.app().refresh_issuer_keys().await;
        assert_eq!(published_by(&broker.http).await, published(&[&next, &other]));
        let unknown = key(Algorithm::Es256);
        write(&ec, &[&unknown]);
        broker.app().refresh_issuer_keys().await;
        let logs = captured_logs().text();
        let surprises = [&old, &next, &other, &unknown]
            .map(|(kid, _pem)| logs.contains(&format!("key {kid} signs without having been published before")));
        assert_eq!(surprises, [false, false, false, true]);

        let path = broker.config_path();
        let file = ["--config", path.to_str().expect("a path")];
        let output = run(carnet(&[&["issuer", "rotate"], &file[..]].concat())).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("are those of issuer.key_files and are rotated there"));
        let output = run(carnet(&[&["issuer", "keys"], &file[..]].concat())).await;
        assert!(text(&output.stdout).contains("signing") && text(&output.stderr).contains("issuer.key_files"));
        let stored = rusqlite::Connection::open(broker.store_path()).expect("the store");
        let kept: i64 = stored.query_row("SELECT count(*) FROM issuer_key", [], |row| row.get(0)).expect("a count");
        assert_eq!(kept, 0, "keys of files stay in their files");
    })
    .await;
}

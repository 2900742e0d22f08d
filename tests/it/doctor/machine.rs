//! What can be wrong on the broker's own machine: certificate, store, network.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use carnet::clock::{Clock as _, SystemClock};

use super::world::World;
use super::{check, error, expect, warning};
use crate::command_line::{carnet, run, text};
use crate::postgres::with_database;
use crate::support::{STORE_KEY, Setup};

/// A certificate of its own, good from `from` to `until` days from now.
fn certificate(world: &mut World, from: i64, until: i64) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(["carnet.example.com".to_owned()]).expect("parameters");
    let at = |days: i64| {
        let day = Duration::from_secs(days.unsigned_abs() * 86_400);
        let time = if days < 0 { SystemClock.now() - day } else { SystemClock.now() + day };
        time.into()
    };
    (parameters.not_before, parameters.not_after) = (at(from), at(until));
    let folder = world.broker.folder.path();
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).expect("written");
    std::fs::write(folder.join("tls.crt"), parameters.self_signed(&key).expect("a certificate").pem())
        .expect("written");
    let tls = format!(", tls: {{ certificate: '{0}/tls.crt', private_key: '{0}/tls.key' }} }}", folder.display());
    let line = world.text.lines().find(|line| line.starts_with("server:")).expect("a line").to_owned();
    world.replace(&line, &format!("{}{tls}", line.trim_end_matches(" }")));
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_servers_certificate_are_named() {
    check(&[
        error("expired", |world| certificate(world, -90, -1), "certificate_expired", "renew it"),
        error("about to expire", |world| certificate(world, -87, 3), "certificate_expires", "renew it now"),
        warning("soon to expire", |world| certificate(world, -70, 20), "certificate_expires", "renew it"),
        error("not valid yet", |world| certificate(world, 1, 90), "certificate_early", ""),
        error(
            "another key",
            |world| {
                certificate(world, -1, 90);
                let other = rcgen::KeyPair::generate().expect("a key").serialize_pem();
                std::fs::write(world.broker.folder.path().join("tls.key"), other).expect("written");
            },
            "tls",
            "its own key",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_store_are_named() {
    check(&[
        error(
            "another store key",
            |world| world.replace(STORE_KEY, "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA="),
            "store_key",
            "store_key: [NEW, OLD]",
        ),
        warning(
            "a file that others can read",
            |world| {
                let mode = std::fs::Permissions::from_mode(0o644);
                std::fs::set_permissions(world.broker.store_path(), mode).expect("changed");
            },
            "store_mode",
            "chmod 600",
        ),
        error(
            "a store of a newer program",
            |world| {
                let newer = world.broker.folder.path().join("newer.db");
                let store = rusqlite::Connection::open(&newer).expect("a store");
                let tables = "CREATE TABLE issuer_key (kid, algorithm, created_ms, signs_from_ms, sealed); PRAGMA user_version = 999;";
                store.execute_batch(tables).expect("a version");
                world.replace("carnet.db", "newer.db");
            },
            "store_schema",
            "use a newer carnet",
        ),
        warning("no store yet", |world| world.replace("carnet.db", "none.db"), "store_missing", ""),
        error("a store that is none", |world| world.replace("carnet.db", "carnet.yaml"), "store_unreachable", "record"),
        error(
            "PostgreSQL that does not answer",
            |world| {
                let store = world.text.lines().find(|line| line.starts_with("store:")).expect("a line").to_owned();
                world.replace(&store, "store: postgres://carnet@127.0.0.1:9/carnet?sslmode=disable");
            },
            "store_unreachable",
            "database",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_no_records_is_an_error() {
    let row = error("a lock", |_world| {}, "store_write", "nothing is released without its record");
    let world = World::good().await;
    let lock = rusqlite::Connection::open(world.broker.store_path()).expect("the store");
    lock.execute_batch("BEGIN IMMEDIATE").expect("a lock");
    expect(&row, &world.examine().await);
    lock.execute_batch("ROLLBACK").expect("an end");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_is_an_error() {
    with_database(async |database| {
        let setup = Setup { store: Some(database.url()), ..Setup::default() };
        crate::support::with_setup(setup, async |broker| {
            let config = carnet::config::Config::load(&broker.config_path()).expect("a configuration");
            let look = async || {
                let options = carnet::doctor::Options { reach: carnet::doctor::Reach::ThisMachine, ..Default::default() };
                let clock = std::sync::Arc::new(carnet::clock::SystemClock);
                carnet::doctor::examine(&config, &options, clock).await.expect("a look")
            };
            let good = look().await;
            let bad: Vec<_> = good.iter().filter(|found| found.severity > carnet::doctor::Severity::Note).collect();
            assert!(bad.is_empty(), "{bad:?}");
            let read_only = |value: &str| format!("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {value}', current_database()); END $$");
            database.client().await.batch_execute(&read_only("on")).await.expect("read-only");
            // The driver itself looks for a server that takes writes.
            let row = error("read-only", |_world| {}, "store_unreachable", "no exchange is answered without its record");
            let found = look().await;
            expect(&row, &found);
            assert!(found.iter().any(|finding| finding.seen.contains("does not allow writes")), "{found:?}");
            let client = database.client().await;
            client.batch_execute("SET default_transaction_read_only = off").await.expect("writable");
            client.batch_execute(&read_only("off")).await.expect("writable");
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_not_there_is_named_by_the_command() {
    let world = World::good().await;
    let path = world.broker.folder.path().join("proxied.yaml");
    let authority = format!("authority: '{}', ", world.broker.entra.authority());
    std::fs::write(&path, world.text.replace(&authority, "")).expect("written");
    let mut command = carnet(&["doctor", "--output", "json", "--target", "machine", "--config"]);
    command
        .arg(&path)
        .env("HTTPS_PROXY", "http://user:secret@127.0.0.1:9")
        .env_remove("NO_PROXY")
        .env_remove("no_proxy");
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = findings["findings"].as_array().expect("a list");
    let found = findings.iter().find(|finding| finding["code"] == "proxy").expect("a finding");
    assert!(found["seen"].as_str().expect("a text").contains("127.0.0.1:9"), "{found}");
    assert!(found["advice"].as_str().expect("a text").contains("NO_PROXY"), "{found}");
    assert!(!text(&output.stdout).contains("secret"), "no password is shown");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_prints_a_table_and_what_repairs_it() {
    let world = World::good().await;
    let path = world.broker.folder.path().join("own.yaml");
    std::fs::write(&path, &world.text).expect("written");
    let doctor = async || {
        let mut command = carnet(&["doctor", "--config"]);
        command.arg(&path).args(["--as", crate::support::PERSON]).env_remove("HTTPS_PROXY").env_remove("https_proxy");
        run(command).await
    };
    let good = doctor().await;
    assert!(good.status.success(), "{}{}", text(&good.stdout), text(&good.stderr));
    assert!(text(&good.stdout).contains("target vertex"), "{}", text(&good.stdout));
    world
        .broker
        .google
        .unbind(crate::support::TRAINER, &format!("principalSet:{}/attribute.rule/training", super::world::POOL));
    let bad = doctor().await;
    assert_eq!(bad.status.code(), Some(1));
    let shown = text(&bad.stdout);
    assert!(
        shown.contains("google_impersonation") && shown.contains("gcloud iam service-accounts add-iam-policy-binding"),
        "{shown}"
    );
    world.end().await;
}

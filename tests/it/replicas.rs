//! Several brokers on one PostgreSQL: one issuer, one mint for all of them, and no end when the database restarts.

use std::error::Error as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use carnet::http;
use carnet::proto::LeaseState;
use carnet::secret::{SealingKeys, Secret};
use carnet::store::{PostgresSettings, StoreSettings, open as open_store};
use futures_util::future::join_all;
use tokio::time::timeout;

use crate::holder::{LEASING, beat, by_id, close, credentials, open, revoke, watch};
use crate::postgres::{Database, with_database, with_server_of_its_own};
use crate::support::{Broker, STORE_KEY, Setup, eventually, reason, records_of, with_setup};

/// Three brokers of one cluster, which must end cleanly and leave no secret behind.
async fn with_replicas(database: &Database, test: impl AsyncFnOnce(&[Broker; 3])) {
    let setup = || Setup { store: Some(database.url()), rules: Some(LEASING), ..Setup::default() };
    let first = Broker::start_for(setup()).await;
    let replica = || Setup { replica_of: Some(first.original()), ..setup() };
    let (second, third) = tokio::join!(Broker::start_for(replica()), Broker::start_for(replica()));
    let mut replicas = [first, second, third];
    test(&replicas).await;
    for replica in &mut replicas {
        replica.take_app().drain().await;
        replica.no_secret_was_left_behind();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_exchanges_at_three_replicas_of_the_same_credential_cause_one_call_of_the_cloud() {
    with_database(async |database| {
        with_replicas(database, async |replicas| {
            let google = &replicas[0].google;
            let mut clients = Vec::new();
            for replica in replicas {
                clients.push(replica.client().await);
            }
            let calls = (0..300).map(|caller| {
                let (mut client, request) = (clients[caller % 3].clone(), replicas[caller % 3].request(&["vertex"]));
                async move { client.exchange(request).await.expect("a credential").into_inner() }
            });
            let answers = join_all(calls).await;
            let tokens: Vec<&str> = answers.iter().map(|answer| answer.credentials[0].token.as_str()).collect();
            replicas.iter().for_each(|replica| replica.is_secret(tokens[0]));
            assert!(tokens.iter().all(|token| *token == tokens[0]));
            assert_eq!(google.calls().count("/v1/token"), 1);
            assert_eq!(google.calls().count(":generateAccessToken"), 1);

            let sql = "SELECT (SELECT count(*) FROM shared_credential WHERE position($1::bytea IN sealed) > 0),
                              (SELECT count(*) FROM audit WHERE position($1::bytea IN bytes) > 0),
                              (SELECT sum(records)::bigint FROM audit WHERE NOT own), (SELECT count(*) FROM issuer_key)";
            let row = database.client().await.query_one(sql, &[&tokens[0].as_bytes()]).await.expect("a row");
            let counts: [i64; 4] = [0, 1, 2, 3].map(|column| row.get(column));
            assert_eq!(counts, [0, 0, 300, 2], "tokens in entries and records, records, keys");
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_replica_handed_a_token_out_every_one_can_say_what_it_is() {
    with_database(async |database| {
        with_replicas(database, async |replicas| {
            let token = replicas[0].exchange(replicas[0].request(&["vertex"])).await.expect("a credential");
            let token = token.credentials[0].token.clone();
            let again = replicas[1].exchange(replicas[1].request(&["vertex"])).await.expect("a credential");
            assert_eq!(again.credentials[0].token, token);
            for replica in replicas {
                let url = format!("{}/v1/introspect", replica.http);
                let answer =
                    reqwest::Client::new().post(url).form(&[("token", &token)]).send().await.expect("an answer");
                let body: serde_json::Value = answer.json().await.expect("JSON");
                assert_eq!(body["active"], true, "{body}");
            }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exchanges_go_on_after_the_database_has_cut_every_connection() {
    with_database(async |database| {
        with_replicas(database, async |replicas| {
            for round in 0..3 {
                database.cut_connections().await;
                for replica in replicas {
                    eventually("an exchange", async || {
                        let target = ["vertex", "azure-ml", "vertex"][round];
                        let answer = replica.exchange(replica.request(&[target])).await;
                        answer.inspect_err(|status| assert_eq!(reason(status), "STORE_UNAVAILABLE")).is_ok()
                    })
                    .await;
                }
            }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exchanges_go_on_after_the_database_was_killed_and_started_again_and_all_are_on_record() {
    with_server_of_its_own(async |database| {
        let setup = Setup { store: Some(database.url()), ..Setup::default() };
        with_setup(setup, async |broker| {
            let mut answered = Vec::new();
            answered.push(broker.exchange(broker.request(&["vertex"])).await.expect("a credential").exchange_id);
            let mut killing = pin!(database.is_killed_and_started());
            let mut is_back = false;
            // Until the first call after the database is there again.
            for _call in 0..10_000 {
                match broker.exchange(broker.request(&["vertex"])).await {
                    Ok(answer) => {
                        answered.push(answer.exchange_id);
                        if is_back {
                            break;
                        }
                    }
                    Err(status) => assert_eq!(reason(&status), "STORE_UNAVAILABLE", "{status:?}"),
                }
                is_back = is_back || timeout(Duration::from_millis(10), killing.as_mut()).await.is_ok();
            }
            // What replicas share is in a table that such an end empties.
            answered.push(broker.exchange(broker.request(&["azure-ml"])).await.expect("a credential").exchange_id);
            let groups = database.client().await.query("SELECT bytes FROM audit", &[]).await.expect("rows");
            let records: Vec<_> = groups.iter().flat_map(|row| records_of(&row.get::<_, Vec<u8>>(0))).collect();
            for id in answered {
                assert_eq!(records.iter().filter(|record| record.exchange_id == id).count(), 1, "{id}");
            }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_one_replica_opened_is_served_watched_renewed_and_closed_by_the_others() {
    with_database(async |database| {
        with_replicas(database, async |[one, two, three]| {
            let opened = open(one, &["vertex", "azure-ml"]).await;
            let mut watch = watch(three, &opened.lease_token).await.expect("a watch");
            let first = watch.next().await.expect("no error").expect("a message");
            let served = credentials(two, &opened.lease_token, &[]).await.expect("credentials");
            for credentials in [&first.credentials, &served.credentials] {
                let tokens: Vec<&str> = credentials.iter().map(|credential| credential.token.as_str()).collect();
                assert!(tokens.iter().eq(opened.credentials.iter().map(|credential| &credential.token)));
            }
            assert_eq!(one.google.calls().count("/v1/token"), 1, "minted once for all of them");
            let beaten = beat(three, &opened.lease_token).await.expect("a beat");
            assert!(beaten.lease_id == opened.lease.expect("a lease").lease_id);
            assert!(close(two, &opened.lease_token).await.expect("closed").state() == LeaseState::Closed);
            let last = timeout(HEARD_WITHIN, watch.next()).await.expect("in time").expect("no error");
            assert!(last.and_then(|last| last.lease).is_some_and(|lease| lease.state() == LeaseState::Closed));
            for replica in [one, two, three] {
                assert_eq!(reason(&beat(replica, &opened.lease_token).await.err().expect("closed")), "LEASE_ENDED");
            }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_at_one_replica_is_heard_by_the_watches_of_the_others_and_nobody_knows_the_opener_any_more() {
    with_database(async |database| {
        with_replicas(database, async |[one, two, three]| {
            let (opened, kept) = (open(one, &["vertex"]).await, open(two, &["vertex"]).await);
            let mut watches = Vec::new();
            for replica in [one, two, three] {
                let mut watch = watch(replica, &opened.lease_token).await.expect("a watch");
                watch.next().await.expect("no error").expect("a message");
                watches.push(watch);
            }
            let client = database.client().await;
            let known = async || {
                let sql = "SELECT count(*) FROM lease_detail WHERE identity IS NOT NULL";
                client.query_one(sql, &[]).await.expect("a row").get::<_, i64>(0)
            };
            assert_eq!(known().await, 2);
            let id = opened.lease.expect("a lease").lease_id;
            assert_eq!(revoke(two, "Carnet.Operator", by_id(&id)).await.expect("revoked"), 1);
            let ends = watches.iter_mut().map(async |watch| {
                let last = watch.next().await.expect("no error").expect("a message").lease.expect("a lease");
                assert!(last.state() == LeaseState::Revoked);
                assert!(watch.next().await.expect("a good end").is_none());
            });
            timeout(HEARD_WITHIN, join_all(ends)).await.expect("in time");
            assert_eq!(known().await, 1);
            for replica in [one, two, three] {
                beat(replica, &kept.lease_token).await.expect("a beat");
            }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_spool_exchanges_go_on_while_the_database_is_away_and_no_record_is_lost() {
    with_database(async |database| {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = format!("audit: {{ spool: '{}' }}", folder.path().join("spool.db").display());
        let setup = Setup { store: Some(database.url()), more: spool, ..Setup::default() };
        with_setup(setup, async |broker| {
            let cached = broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
            database.is_away(true).await;
            for _ in 0..5 {
                let again = broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
                assert_eq!(again.credentials[0].token, cached.credentials[0].token);
            }
            broker.exchange(broker.request(&["azure-ml"])).await.expect("a new credential");
            database.is_away(false).await;
            let records = async || {
                let sql = "SELECT coalesce(sum(records), 0)::bigint FROM audit WHERE NOT own";
                database.client().await.query_one(sql, &[]).await.expect("a row").get::<_, i64>(0)
            };
            eventually("all records in the log", async || records().await == 7).await;
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_ends_leaves_its_spool_empty_and_while_it_lives_no_other_has_it() {
    with_database(async |database| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("spool.db");
        let more = format!("audit: {{ spool: '{}' }}", file.display());
        let setup = Setup { store: Some(database.url()), more, ..Setup::default() };
        let mut broker = Broker::start_for(setup).await;
        let settings = StoreSettings::Postgres {
            settings: Box::new(
                PostgresSettings::parse(&Secret::new(database.url()), &http::Settings::default()).expect("settings"),
            ),
            spool: Some(file),
        };
        let sealing = || Arc::new(SealingKeys::from_base64(&[Secret::new(STORE_KEY)]).expect("keys"));
        let second = open_store(&settings, sealing()).await.expect_err("it is taken");
        let why = second.source().expect("a cause").to_string();
        assert!(why.starts_with("another broker has it for its spool"), "{why}");
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        database.is_away(true).await;
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        database.is_away(false).await;
        broker.take_app().drain().await;
        let sql = "SELECT sum(records)::bigint FROM audit WHERE NOT own";
        assert_eq!(database.client().await.query_one(sql, &[]).await.expect("a row").get::<_, i64>(0), 2);
        let stores = open_store(&settings, sealing()).await.expect("it is free");
        assert!(stores.audit.find_issued(&[0; 32]).await.expect("the log").is_none());
        database.is_away(true).await;
        assert!(stores.audit.find_issued(&[0; 32]).await.is_err(), "what the log would say is not known");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_spool_nothing_is_released_while_the_database_is_away() {
    with_database(async |database| {
        let setup = Setup { store: Some(database.url()), ..Setup::default() };
        with_setup(setup, async |broker| {
            broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
            database.is_away(true).await;
            let refused = broker.exchange(broker.request(&["vertex"])).await.err().expect("no record, no credential");
            assert_eq!(reason(&refused), "STORE_UNAVAILABLE");
            database.is_away(false).await;
            eventually("the database's return", async || broker.exchange(broker.request(&["vertex"])).await.is_ok())
                .await;
        })
        .await;
    })
    .await;
}

/// What the product promises.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

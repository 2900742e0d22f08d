//! PostgreSQL is there and nothing passes between it and the broker, in either direction and for connections old and new.

use super::*;
use crate::postgres::with_database;
use crate::support::{Setup, with_setup};

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_partition_nothing_is_released_and_calls_succeed_again_after_it() {
    with_database(async |database| {
        let (url, proxy) = database.by_proxy().await;
        let setup = Setup { store: Some(url), ..Setup::default() };
        with_setup(setup, async |broker| {
            for target in ["vertex", "azure-ml"] {
                broker.exchange(broker.request(&[target])).await.expect("a credential");
            }
            proxy.is_cut(true);
            let both = [broker.request(&["vertex"]), broker.request(&["azure-ml"])];
            for refused in futures_util::future::join_all(both.map(|request| broker.exchange(request))).await {
                assert_eq!(Seen::of(&refused.err().expect("no record, no credential")), Seen::store_unavailable());
            }
            readiness_is(broker, 503).await;
            proxy.is_cut(false);
            readiness_is(broker, 200).await;
            for target in ["vertex", "azure-ml"] {
                let answer = broker.exchange(broker.request(&[target])).await.expect("a credential");
                assert!(answer.credentials[0].cached, "{target}");
            }
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_partition_a_broker_with_a_spool_serves_and_all_is_on_record_after_it() {
    with_database(async |database| {
        let folder = tempfile::tempdir().expect("a folder");
        let (url, proxy) = database.by_proxy().await;
        let more = format!("audit: {{ spool: '{}' }}", folder.path().join("spool.db").display());
        with_setup(Setup { store: Some(url), more, ..Setup::default() }, async |broker| {
            broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
            proxy.is_cut(true);
            for target in ["vertex", "azure-ml", "vertex"] {
                broker.exchange(broker.request(&[target])).await.expect("served");
            }
            proxy.is_cut(false);
            eventually("all records in the log", async || {
                let sql = "SELECT coalesce(sum(records), 0)::bigint FROM audit WHERE NOT own";
                database.client().await.query_one(sql, &[]).await.expect("a row").get::<_, i64>(0) == 4
            })
            .await;
        })
        .await;
    })
    .await;
}

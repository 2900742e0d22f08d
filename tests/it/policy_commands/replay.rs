//! `carnet policy replay`: what is on record, asked of changed rules, from the broker and from its store alone.

use carnet::proto::{Job, SearchAuditRequest};
use futures_util::TryStreamExt as _;

use super::*;
use crate::holder::{LEASING, OPERATOR, bearing, close, open, operator};
use crate::postgres::with_database;
use crate::support::{Broker, RUNNER, Setup, TENANT, with_setup};

/// With brokers on both stores.
async fn with_both(test: impl AsyncFn(&Broker)) {
    with_setup(Setup { rules: Some(LEASING), ..Setup::default() }, &test).await;
    with_database(async |database| {
        let setup = Setup { rules: Some(LEASING), store: Some(database.url()), ..Setup::default() };
        with_setup(setup, &test).await;
    })
    .await;
}

/// The broker's configuration with other rules, in a file of its own.
fn changed(broker: &Broker, change: impl Fn(&str) -> String) -> String {
    let config = std::fs::read_to_string(broker.config_path()).expect("the file");
    let path = broker.folder.path().join("next.yaml");
    std::fs::write(&path, change(&config)).expect("written");
    path.to_str().expect("a path").to_owned()
}

/// Where the records come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Broker,
    Store,
}

async fn replay(broker: &Broker, from: From, arguments: &[&str]) -> Output {
    let mut command = carnet(&["policy", "replay", "--since", "1h"]);
    command.args(arguments);
    match from {
        From::Broker => {
            let auditor = broker.entra.user_token(TENANT, OPERATOR).roles(["Carnet.Auditor"]);
            command.env("CARNET_ADDRESS", broker.grpc_address()).env("CARNET_SUBJECT_TOKEN", broker.signed(&auditor));
        }
        From::Store => {
            command.arg("--config").arg(broker.config_path());
        }
    }
    run(command).await
}

/// Two credentials at once, one of them again, a denial of rules, one of a token, and a lease.
async fn some_decisions(broker: &Broker) {
    broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
    broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
    broker.exchange(broker.request(&["grouped"])).await.err().expect("denied");
    let other = broker.runner().audience("api://other");
    broker.exchange(broker.request_with(&other, &["vertex"])).await.err().expect("refused");
    let opened = open(broker, &["vertex"]).await;
    close(broker, &opened.lease_token).await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rules_that_decided_decide_the_same_again() {
    with_both(async |broker| {
        some_decisions(broker).await;
        let same = changed(broker, str::to_owned);
        for from in [From::Broker, From::Store] {
            let output = replay(broker, from, &["--policy", &same]).await;
            let said = text(&output.stderr);
            assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "nothing changes\n"), "{said}");
            assert!(said.contains("decisions asked again: 5, as they were: 5, changed: 0"), "{from:?}: {said}");
            assert!(said.contains("not asked again: 1 on which not the rules decided"), "a refused token: {said}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_rules_show_who_loses_and_who_wins_what() {
    with_both(async |broker| {
        some_decisions(broker).await;
        let next = changed(broker, |config| {
            let other = "rules:\n  - { name: new, targets: [grouped], subject: { roles: [Training.Submit] } }";
            config.replace("rules:", other).replace("targets: [vertex, azure-ml, own]", "targets: [azure-ml, own]")
        });
        for from in [From::Broker, From::Store] {
            let output = replay(broker, from, &["--policy", &next, "--output", "json"]).await;
            assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
            let found = json(&output);
            let rows = found["changes"].as_array().expect("rows");
            let shown = |row: &Value| {
                let word = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
                assert_eq!(word("subject"), format!("entra:{TENANT}:{RUNNER}"));
                format!("{} {} {}: {}, {}", word("change"), word("target"), row["count"], word("then"), word("now"))
            };
            let mut rows_shown: Vec<String> = rows.iter().map(shown).collect();
            rows_shown.sort();
            let expected = [
                // Together with vertex.
                "would_allow grouped 1: no rule allows it, rule new",
                "would_deny azure-ml 1: rule training, no rule allows it",
                "would_deny vertex 3: rule training, no rule allows it",
            ];
            assert_eq!(rows_shown, expected, "{from:?}");
            assert_eq!((&found["asked_again"], &found["same"]), (&5.into(), &0.into()));
        }
        let table = text(&replay(broker, From::Store, &["--policy", &next]).await.stdout);
        assert!(table.lines().next().is_some_and(|head| head.starts_with("CHANGE")), "{table}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_alone_are_replayed_with_the_targets_of_the_configuration() {
    with_setup(Setup { rules: Some(LEASING), ..Setup::default() }, async |broker| {
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        let rules = broker.folder.path().join("rules.next.yaml");
        let write = |lifetime: &str| {
            let rule = format!(
                "name: training, targets: [vertex], subject: {{ roles: [Training.Submit] }}, max_lifetime: {lifetime}"
            );
            std::fs::write(&rules, format!("rules: [{{ {rule} }}]\n")).expect("written");
        };
        let path = rules.to_str().expect("a path");
        write("1h");
        assert_eq!(replay(broker, From::Store, &["--policy", path]).await.status.code(), Some(0));
        write("20m");
        let output = replay(broker, From::Store, &["--policy", path]).await;
        let shown = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(shown.contains("other_lifetime") && shown.contains("20m instead of 1h"), "{shown}");
        // The broker's own rules, where nothing else is given.
        assert_eq!(replay(broker, From::Store, &[]).await.status.code(), Some(0));
        assert_eq!(replay(broker, From::Broker, &[]).await.status.code(), Some(2));
        std::fs::write(&rules, "rules: [{}]\n").expect("written");
        assert_eq!(replay(broker, From::Store, &["--policy", path]).await.status.code(), Some(2));
    })
    .await;
}

/// Who may read the log may see by what was decided, and no more than is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_search_shows_facts_to_those_who_ask_for_them() {
    with_setup(Setup { rules: Some(LEASING), ..Setup::default() }, async |broker| {
        let person = broker.entra.user_token(TENANT, RUNNER).roles(["Training.Submit"]).claim("name", "Ada Lovelace");
        let job = Some(Job { id: "run-9".to_owned(), ..Job::default() });
        let request = carnet::proto::ExchangeRequest { job, ..broker.request_with(&person, &["vertex"]) };
        broker.exchange(request).await.expect("a credential");
        let facts = async |facts: bool| {
            let asked = SearchAuditRequest { job_id: "run-9".to_owned(), facts, ..SearchAuditRequest::default() };
            let found = operator(broker).await.search_audit(bearing(broker, "Carnet.Auditor", asked)).await;
            let records: Vec<_> = found.expect("a stream").into_inner().try_collect().await.expect("records");
            records[0].attributes.get("identity_facts").cloned()
        };
        assert_eq!(facts(false).await, None);
        let shown = facts(true).await.expect("facts");
        assert!(shown.contains("Training.Submit") && !shown.contains("Ada"), "{shown}");
    })
    .await;
}

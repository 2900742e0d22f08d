//! `carnet audit` and `carnet report`: what an auditor is shown, by the broker and by its store alone.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Output, Stdio};

use carnet::proto::{ExchangeRequest, Job};
use serde_json::{Value, json};

use crate::command_line::{carnet, run, text};
use crate::holder::{LEASING, OPERATOR, close, open};
use crate::postgres::with_database;
use crate::support::{Broker, RUNNER, Setup, TENANT, TRAINER, eventually, with_setup};

/// With brokers on both stores.
async fn with_both(test: impl AsyncFn(&Broker)) {
    with_setup(Setup { rules: Some(LEASING), ..Setup::default() }, &test).await;
    with_database(async |database| {
        let setup = Setup { rules: Some(LEASING), store: Some(database.url()), ..Setup::default() };
        with_setup(setup, &test).await;
    })
    .await;
}

/// Where the records come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Broker,
    Store,
}

const BOTH: [From; 2] = [From::Broker, From::Store];

fn command(broker: &Broker, from: From, arguments: &[&str]) -> std::process::Command {
    let mut command = carnet(arguments);
    match from {
        From::Broker => {
            let auditor = broker.entra.user_token(TENANT, OPERATOR).roles(["Carnet.Auditor"]);
            command.env("CARNET_ADDRESS", broker.grpc_address()).env("CARNET_SUBJECT_TOKEN", broker.signed(&auditor));
        }
        From::Store => {
            command.arg("--config").arg(broker.config_path());
        }
    }
    command
}

async fn printed(broker: &Broker, from: From, arguments: &[&str]) -> String {
    let output = run(command(broker, from, arguments)).await;
    assert!(output.status.success(), "{from:?} {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

async fn json(broker: &Broker, from: From, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--output", "json"]].concat();
    serde_json::from_str(&printed(broker, from, &arguments).await).expect("JSON")
}

fn fails(output: &Output, code: i32, said: &str) {
    let complaint = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{complaint}");
    assert!(complaint.contains(said), "{complaint}");
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Of what happened, but for what the log says of itself and of those who look at it.
fn steps<'a>(records: impl IntoIterator<Item = &'a Value>) -> Vec<String> {
    let own =
        |action: &str| action.starts_with("broker.") || action.starts_with("audit.") || action == "operator.audit";
    let word = |record: &Value, name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let records = records.into_iter().filter(|record| !own(&word(record, "action")));
    records
        .map(|record| format!("{} {} {}", word(record, "action"), word(record, "target"), word(record, "outcome")))
        .collect()
}

/// Two credentials at once, one of them again, a denial and a lease, and the id of the second exchange.
async fn some_records(broker: &Broker) -> String {
    broker.exchange(reading(broker, &["vertex", "azure-ml"], &["gs://cats", "gs://dogs"])).await.expect("credentials");
    let again = broker.exchange(reading(broker, &["vertex"], &["gs://cats"])).await.expect("a credential");
    broker.exchange(broker.request(&["no-such-target"])).await.err().expect("denied");
    let opened = open(broker, &["azure-ml"]).await;
    close(broker, &opened.lease_token).await.expect("closed");
    again.exchange_id
}

fn reading(broker: &Broker, targets: &[&str], datasets: &[&str]) -> ExchangeRequest {
    let datasets = datasets.iter().map(|dataset| (*dataset).to_owned()).collect();
    let job = Job { id: "run-1".to_owned(), name: "vision".to_owned(), datasets, ..Job::default() };
    ExchangeRequest { job: Some(job), ..broker.request(targets) }
}

const OLDEST_FIRST: [&str; 6] = [
    "exchange vertex issued",
    "exchange azure-ml issued",
    "exchange vertex issued",
    "exchange no-such-target denied",
    "lease.open azure-ml issued",
    "lease.close azure-ml done",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_search_shows_the_newest_first_and_takes_every_filter() {
    with_both(async |broker| {
        some_records(broker).await;
        let subject = format!("entra:{TENANT}:{RUNNER}");
        for from in BOTH {
            let all = json(broker, from, &["audit", "search", "--since", "1h"]).await;
            let newest_first: Vec<&str> = OLDEST_FIRST.into_iter().rev().collect();
            let shown = steps(all["records"].as_array().expect("records"));
            // Two records of one exchange have one time.
            assert_eq!(shown.len(), newest_first.len());
            assert_eq!(shown[..4], newest_first[..4]);
            for (filter, found) in [
                (&["--subject", &subject][..], 6),
                (&["--target", "azure-ml"], 3),
                (&["--job-id", "run-1", "--action", "exchange"], 4),
                (&["--outcome", "denied"], 1),
                (&["--reason", "DENIED"], 1),
                (&["--action", "lease.open"], 1),
                (&["--outcome", "issued", "--target", "vertex", "--limit", "1"], 1),
                (&["--subject", &subject, "--before", "2020-01-01T00:00:00Z"], 0),
                (&["--subject", &subject, "--after", "2020-01-01T00:00:00Z"], 6),
            ] {
                let records = json(broker, from, &[&["audit", "search"], filter].concat()).await;
                assert_eq!(steps(records["records"].as_array().expect("records")).len(), found, "{from:?} {filter:?}");
            }
            let table = printed(broker, from, &["audit", "search", "--outcome", "denied"]).await;
            assert!(
                table.starts_with("TIME ") && table.contains("no-such-target") && table.contains("DENIED"),
                "{table}"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_has_every_record_once_oldest_first_in_both_formats() {
    with_both(async |broker| {
        some_records(broker).await;
        for from in BOTH {
            let exported = lines(&printed(broker, from, &["audit", "export", "--since", "1h"]).await);
            let shown = steps(&exported);
            assert_eq!(shown[2..], OLDEST_FIRST[2..], "{from:?}");
            let times: Vec<&str> = exported.iter().filter_map(|record| record["time"].as_str()).collect();
            assert!(times.len() == exported.len() && times.is_sorted(), "{times:?}");
            let sequences: std::collections::BTreeSet<u64> =
                exported.iter().filter_map(|record| record["sequence"].as_u64()).collect();
            assert_eq!(sequences.len(), exported.len(), "each has its own place in the chain");
            let issued = exported.iter().find(|record| record["target"] == "vertex").expect("a record");
            assert!(issued["lifetime"].as_f64().is_some_and(|life| (3500.0..=3600.0).contains(&life)), "{issued}");
            assert_eq!(issued["job"]["datasets"], json!(["gs://cats", "gs://dogs"]));

            let events = lines(&printed(broker, from, &["audit", "export", "--format", "ocsf"]).await);
            let denied = events.iter().find(|event| event["service"]["name"] == "no-such-target").expect("an event");
            assert_eq!((&denied["class_uid"], &denied["type_uid"]), (&json!(3002), &json!(300_201)));
            assert_eq!((&denied["status"], &denied["status_code"]), (&json!("Failure"), &json!("DENIED")));
            assert!(denied["time"].as_u64().is_some_and(|time| time > 1_700_000_000_000));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_begins_with_the_newest_and_goes_on() {
    with_both(async |broker| {
        some_records(broker).await;
        let subject = format!("entra:{TENANT}:{RUNNER}");
        for from in BOTH {
            let arguments = ["audit", "tail", "--last", "2", "--output", "json", "--subject", &subject];
            let mut tail = command(broker, from, &arguments).stdout(Stdio::piped()).spawn().expect("a process");
            let mut printed = BufReader::new(tail.stdout.take().expect("a pipe")).lines();
            let mut next = || steps(lines(&printed.next().expect("a line").expect("text")).iter());
            tokio::task::block_in_place(|| {
                assert_eq!([next(), next()].concat(), OLDEST_FIRST[4..], "{from:?}");
            });
            broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
            broker.exchange(broker.request(&["elsewhere"])).await.err().expect("denied");
            tokio::task::block_in_place(|| {
                let followed = [next(), next(), next()].concat();
                assert_eq!(
                    followed,
                    ["exchange vertex issued", "exchange azure-ml issued", "exchange elsewhere denied"]
                );
            });
            tail.kill().expect("a process");
            tail.wait().expect("an end");
            // For the next one.
            let opened = open(broker, &["azure-ml"]).await;
            close(broker, &opened.lease_token).await.expect("closed");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_ends_an_export_in_peace() {
    with_setup(Setup { rules: Some(LEASING), ..Setup::default() }, async |broker| {
        // More than a pipe holds.
        for _ in 0..150 {
            broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        }
        let mut export = command(broker, From::Store, &["audit", "export"]);
        let mut export = export.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
        let mut first = [0; 10];
        let ended = tokio::task::block_in_place(|| {
            let mut pipe = export.stdout.take().expect("a pipe");
            pipe.read_exact(&mut first).expect("bytes");
            drop(pipe);
            export.wait_with_output().expect("an end")
        });
        assert!(ended.status.success(), "{}", text(&ended.stderr));
        assert_eq!((&first[..1], text(&ended.stderr).as_str()), (&b"{"[..], ""));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c25_a_trace_names_the_queries_that_find_an_exchange_in_the_clouds_logs() {
    with_both(async |broker| {
        let again = some_records(broker).await;
        let first = json(broker, From::Store, &["audit", "search", "--target", "vertex"]).await["records"][1].clone();
        let minted_by = first["exchange_id"].as_str().expect("an id");
        for from in BOTH {
            let traced = json(broker, from, &["audit", "trace", minted_by]).await;
            let records = traced["records"].as_array().expect("records");
            assert_eq!(records.len(), 2);
            let about =
                |target: &str| records.iter().find(|traced| traced["record"]["target"] == target).expect("a record");
            let (google, azure) = (about("vertex")["queries"].to_string(), about("azure-ml")["queries"].to_string());
            let sign_in =
                format!("UniqueTokenIdentifier == \\\"{}\\\"", first["entra_token_id"].as_str().expect("a uti"));
            assert!(google.contains(&sign_in) && azure.contains(&sign_in), "{google}");
            // The same words are in what Google's stand-in was sent.
            let call = broker.google.calls().to(":generateAccessToken").remove(0);
            assert!(call.header("user-agent").is_some_and(|agent| agent.contains(&format!("exchange={minted_by}"))));
            for part in [&format!("exchange={minted_by}"), TRAINER, "SecurityTokenService.ExchangeToken", "'123456789'"]
            {
                assert!(google.contains(part), "{part} is not in {google}");
            }
            for part in [&format!("CorrelationId == \\\"{minted_by}\\\""), "MicrosoftGraphActivityLogs"] {
                assert!(azure.contains(part), "{part} is not in {azure}");
            }
            let cached = printed(broker, from, &["audit", "trace", &again]).await;
            assert!(cached.contains("the clouds have no entry of this exchange"), "{cached}");
            assert!(
                cached.contains(&format!("exchange={minted_by}")) && !cached.contains(&format!("exchange={again}"))
            );
        }
        let none =
            run(command(broker, From::Broker, &["audit", "trace", "0199a1b2-0000-7000-8000-000000000001"])).await;
        fails(&none, 1, "there is no record of exchange 0199a1b2-0000-7000-8000-000000000001");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_of_access_says_who_used_what_as_whom() {
    with_both(async |broker| {
        some_records(broker).await;
        for from in BOTH {
            let report = json(broker, from, &["report", "access", "--since", "1h"]).await;
            let rows = report["access"].as_array().expect("rows");
            let of = |dataset: &str| {
                rows.iter().find(|row| row["target"] == "vertex" && row["dataset"] == dataset).expect("a row")
            };
            let (cats, dogs) = (of("gs://cats"), of("gs://dogs"));
            assert_eq!((&cats["hand_outs"], &cats["minted"], &dogs["hand_outs"]), (&json!(2), &json!(1), &json!(1)));
            assert_eq!((&cats["acts_as"], &cats["job_name"]), (&json!(TRAINER), &json!("vision")));
            assert_eq!(cats["subject"], format!("entra:{TENANT}:{RUNNER}"));
            assert!(cats["first_use"].as_str() < cats["last_use"].as_str());
            let csv = printed(broker, from, &["report", "access", "--output", "csv"]).await;
            assert!(csv.starts_with("SUBJECT,TARGET,ACTS AS,") && csv.contains("\r\n"), "{csv}");
            let table = printed(broker, from, &["report", "access"]).await;
            assert_eq!(table.lines().count(), rows.len() + 1, "{table}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_of_what_is_unused_names_it_and_says_how_far_the_log_goes_back() {
    with_both(async |broker| {
        let config = broker.config_path();
        let config = config.to_str().expect("a path");
        let unused = async |since: &str, from: &[&str]| {
            let auditor = broker.entra.user_token(TENANT, OPERATOR).roles(["Carnet.Auditor"]);
            let mut command = carnet(&["report", "unused", "--since", since, "--config", config, "--output", "json"]);
            command.args(from).env("CARNET_ADDRESS", broker.grpc_address());
            let output = run({
                command.env("CARNET_SUBJECT_TOKEN", broker.signed(&auditor));
                command
            })
            .await;
            assert!(output.status.success(), "{}", text(&output.stderr));
            let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            (report, text(&output.stderr))
        };
        some_records(broker).await;
        for from in [&["--records", "store"][..], &["--records", "broker"]] {
            let (report, said) = unused("90d", from).await;
            let expected = json!([
                {"kind": "rule", "name": "single", "of_rule": null},
                {"kind": "target", "name": "direct", "of_rule": null},
                {"kind": "target", "name": "own", "of_rule": null},
            ]);
            assert_eq!(report["unused"], expected);
            assert_eq!(report["log_goes_back_that_far"], false);
            assert!(said.contains("the log does not go back that far"), "{said}");
        }
        // Soon everything that was used was used longer ago than this.
        let mut report = Value::Null;
        eventually("a log that goes back further", async || {
            report = unused("1s", &[]).await.0;
            report["log_goes_back_that_far"] == true
                && report["unused"].as_array().is_some_and(|unused| unused.len() == 6)
        })
        .await;
        assert_eq!(report["unused"][0], json!({"kind": "rule", "name": "training", "of_rule": null}));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_read_the_log_is_told_so_and_mistakes_are_named() {
    with_setup(Setup { rules: Some(LEASING), ..Setup::default() }, async |broker| {
        let runner = broker.signed(&broker.runner());
        let mut search = carnet(&["audit", "search"]);
        search.env("CARNET_ADDRESS", broker.grpc_address()).env("CARNET_SUBJECT_TOKEN", runner);
        fails(&run(search).await, 3, "DENIED");
        let with = async |arguments: &[&str]| run(command(broker, From::Store, arguments)).await;
        fails(&with(&["audit", "search", "--exchange-id", "x"]).await, 2, "--exchange-id x");
        fails(&with(&["audit", "search", "--after", "yesterday"]).await, 2, "--after");
        fails(&with(&["audit", "search", "--since", "1h", "--after", "2026-01-01T00:00:00Z"]).await, 2, "--since");
        fails(&with(&["audit", "tail", "--before", "2026-01-01T00:00:00Z"]).await, 2, "has no end");
        fails(&with(&["audit", "export", "--format", "xml"]).await, 2, "jsonl or ocsf");
        fails(&run(carnet(&["audit", "search", "--config", "/nonexistent.yaml"])).await, 1, "/nonexistent.yaml");
    })
    .await;
}

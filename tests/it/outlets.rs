//! Ways out for audit records: a collector of OpenTelemetry logs and standard output, well and unwell.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Kind;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

use crate::command_line::{carnet, signal};
use crate::postgres::with_database;
use crate::process::make_place;
use crate::support::{Broker, Setup, captured_logs, eventually, with_setup};

/// Takes logs over OTLP, and can be told not to.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    records: Vec<LogRecord>,
    resources: BTreeSet<String>,
    authorization: Option<String>,
    /// What becomes of the next calls, the first one first.
    plan: VecDeque<Answer>,
    hanging: bool,
}

#[derive(Clone, Copy)]
enum Answer {
    Refuses(Code),
    Rejects(i64),
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        if self.state().hanging {
            std::future::pending::<()>().await;
        }
        let authorization = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        self.state().authorization = authorization.map(str::to_owned);
        let answer = self.state().plan.pop_front();
        if let Some(Answer::Refuses(code)) = answer {
            return Err(Status::new(code, "not now"));
        }
        for logs in request.into_inner().resource_logs {
            let attributes = logs.resource.map(|resource| resource.attributes).unwrap_or_default();
            self.state()
                .resources
                .extend(attributes.iter().map(|attribute| format!("{}={}", attribute.key, text(attribute))));
            self.state().records.extend(logs.scope_logs.into_iter().flat_map(|scope| scope.log_records));
        }
        let partial_success = match answer {
            Some(Answer::Rejects(rejected_log_records)) => {
                Some(ExportLogsPartialSuccess { rejected_log_records, error_message: "too old".to_owned() })
            }
            _ => None,
        };
        Ok(Response::new(ExportLogsServiceResponse { partial_success }))
    }
}

impl Collector {
    /// Its address.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let server = tonic::transport::Server::builder().add_service(LogsServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.0.lock().expect("no panic")
    }

    /// Sooner or later, these and maybe others.
    async fn gets(&self, everything: &BTreeSet<String>) {
        let has_all = async || everything.is_subset(&self.ids().into_keys().collect());
        eventually("all records at the collector", has_all).await;
    }

    /// How often each record came, by its chain and position.
    fn ids(&self) -> BTreeMap<String, usize> {
        let mut ids = BTreeMap::new();
        for record in &self.state().records {
            let id = record.attributes.iter().find(|attribute| attribute.key == "log.record.uid").expect("an id");
            *ids.entry(text(id)).or_default() += 1;
        }
        ids
    }
}

fn text(attribute: &KeyValue) -> String {
    match &attribute.value {
        Some(AnyValue { value: Some(Kind::StringValue(text)) }) => text.clone(),
        other => format!("{other:?}"),
    }
}

/// Of a body that is a map.
fn field<'a>(record: &'a LogRecord, name: &str) -> Option<&'a AnyValue> {
    let Some(Kind::KvlistValue(fields)) = &record.body.as_ref()?.value else { panic!("a map") };
    fields.values.iter().find(|field| field.key == name)?.value.as_ref()
}

fn sinks(sinks: &str) -> String {
    format!("audit: {{ sinks: [ {sinks} ] }}")
}

/// By chain and position, as the store has them.
fn ids_of<'a>(chains: impl IntoIterator<Item = (&'a [u8], i64, i64)>) -> BTreeSet<String> {
    let id = |chain: &[u8], position: i64| format!("{}:{position}", uuid::Uuid::from_slice(chain).expect("an id"));
    let rows = chains.into_iter();
    rows.flat_map(|(chain, first, count)| (first..first + count).map(move |position| id(chain, position))).collect()
}

fn in_file(store: &Path) -> BTreeSet<String> {
    let store = rusqlite::Connection::open(store).expect("the store");
    let mut select = store.prepare("SELECT chain, position, records FROM audit").expect("a table");
    let rows = select.query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, row.get(2)?))).expect("rows");
    let rows: Vec<(Vec<u8>, i64, i64)> = rows.collect::<Result<_, _>>().expect("rows");
    ids_of(rows.iter().map(|(chain, first, count)| (chain.as_slice(), *first, *count)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_every_record_once_with_who_sends_it_and_what_it_is() {
    let collector = Collector::default();
    let address = collector.start().await;
    let more = sinks(&format!("{{ otlp: {{ endpoint: '{address}', headers: {{ Authorization: Api-Token x }} }} }}"));
    with_setup(Setup { more, ..Setup::default() }, async |broker| {
        broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
        broker.exchange(broker.request(&["no-such-target"])).await.err().expect("denied");
        let everything = in_file(&broker.store_path());
        collector.gets(&everything).await;
        assert!(collector.ids().values().all(|times| *times == 1));
        let state = collector.state();
        assert!(state.resources.contains("service.name=carnet"), "{:?}", state.resources);
        assert_eq!(state.authorization.as_deref(), Some("Api-Token x"));
        let denied = state.records.iter().find(|record| record.severity_text == "WARN").expect("a record");
        assert_eq!(denied.event_name, "carnet.audit.exchange");
        assert_eq!(
            field(denied, "reason").and_then(|reason| reason.value.clone()),
            Some(Kind::StringValue("DENIED".to_owned()))
        );
        assert!(denied.time_unix_nano > 1_700_000_000_000_000_000);
    })
    .await;
    // The end of the broker was shipped, too, if it left a record.
    assert!(collector.ids().values().all(|times| *times == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_refuses_and_rejects_gets_what_it_takes_and_a_second_way_out_is_not_held_up() {
    let (unwell, well) = (Collector::default(), Collector::default());
    unwell.state().plan.extend([Answer::Refuses(Code::Unavailable), Answer::Rejects(1)]);
    let otlp =
        |name: &str, address: &str| format!("{{ name: {name}, otlp: {{ endpoint: '{address}', format: ocsf }} }}");
    let outlets = [otlp("unwell", &unwell.start().await), otlp("well", &well.start().await)];
    with_setup(Setup { more: sinks(&outlets.join(", ")), ..Setup::default() }, async |broker| {
        broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
        let everything = in_file(&broker.store_path());
        for collector in [&well, &unwell] {
            collector.gets(&everything).await;
        }
        let event = well.state().records.iter().find_map(|record| field(record, "class_uid").cloned());
        assert_eq!(event.and_then(|class| class.value), Some(Kind::IntValue(3002)));
        let metrics = carnet::telemetry::metrics().render();
        for line in [
            "carnet_audit_shipped_total{outlet=\"unwell\",outcome=\"rejected\"} 1",
            "carnet_audit_shipping_failures_total{outlet=\"unwell\"} 1",
        ] {
            assert!(metrics.contains(line), "{line} is not in\n{metrics}");
        }
        let logs = captured_logs().text();
        assert!(logs.contains("`unwell` will never take 1 audit records") && logs.contains("too old"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exchanges_go_on_while_a_collector_hangs_and_it_gets_all_of_them_when_it_wakes() {
    let collector = Collector::default();
    collector.state().hanging = true;
    let more = sinks(&format!("{{ name: hanging, otlp: {{ endpoint: '{}' }} }}", collector.start().await));
    let mut broker = Broker::start_for(Setup { more, ..Setup::default() }).await;
    for _ in 0..100 {
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
    }
    assert_eq!(collector.ids().len(), 0);
    // It ends in time, too, and begins where it stopped.
    broker.stop().await;
    collector.state().hanging = false;
    broker.start_again().await;
    let everything = in_file(&broker.store_path());
    collector.gets(&everything).await;
    broker.stop().await;
    broker.no_secret_was_left_behind();
}

/// A real `carnet serve` in the place of `broker`, with its standard output in a file.
struct Serving {
    child: Child,
}

impl Serving {
    async fn start(broker: &Broker, output: &Path) -> Self {
        let (output, log) =
            (File::create(output).expect("a file"), File::create(output.with_extension("log")).expect("a file"));
        let mut command = carnet(&["serve", "--config", broker.config_path().to_str().expect("a path")]);
        let serving = Self { child: command.stdout(output).stderr(log).spawn().expect("a process") };
        let ready = async || {
            reqwest::get(format!("{}/readyz", broker.http)).await.is_ok_and(|answer| answer.status().is_success())
        };
        eventually("readiness", ready).await;
        serving
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// By chain and position; a line that was cut off is none.
fn printed(output: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(output).expect("the output");
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .map(|line| format!("{}:{}", line["attributes"]["chain"].as_str().expect("a chain"), line["sequence"]))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_output_of_a_process_that_is_killed_and_started_again_misses_nothing() {
    let mut broker = Broker::start_for(Setup::default()).await;
    let grpc = make_place(&mut broker).await;
    let config = std::fs::read_to_string(broker.config_path()).expect("the file");
    std::fs::write(broker.config_path(), format!("{config}\n{}\n", sinks("{ stdout: {} }"))).expect("written");
    let outputs = [0, 1, 2].map(|life| broker.folder.path().join(format!("output-{life}")));
    let exchange = async |times: usize| {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{grpc}")).expect("a URI");
        let channel = endpoint.connect().await.expect("a connection");
        let mut client = carnet::proto::token_exchange_client::TokenExchangeClient::new(channel);
        for _ in 0..times {
            let answer = client.exchange(broker.request(&["vertex"])).await.expect("a credential").into_inner();
            broker.is_secret(&answer.credentials[0].token);
        }
    };
    for output in &outputs[..2] {
        let mut serving = Serving::start(&broker, output).await;
        exchange(40).await;
        eventually("some lines", async || printed(output).len() > 20).await;
        exchange(5).await;
        serving.child.kill().expect("a process");
        serving.child.wait().expect("an end");
    }
    let mut last = Serving::start(&broker, &outputs[2]).await;
    exchange(3).await;
    signal("TERM", last.child.id());
    let ended = tokio::task::block_in_place(|| last.child.wait().expect("an end"));
    assert!(ended.success());
    let everything = in_file(&broker.store_path());
    let printed: Vec<Vec<String>> = outputs.iter().map(|output| printed(output)).collect();
    let all: BTreeSet<String> = printed.iter().flatten().cloned().collect();
    assert_eq!(all, everything);
    // The last one was told to end: it left nothing for the next, and printed nothing twice by itself.
    let distinct: BTreeSet<&String> = printed[2].iter().collect();
    assert_eq!(distinct.len(), printed[2].len());
    assert!(everything.len() >= 3 * 40 - 40 + 3, "{}", everything.len());
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_one_ships_the_records_of_both_and_the_other_follows_when_it_ends() {
    with_database(async |database| {
        let collector = Collector::default();
        let more = sinks(&format!("{{ name: shared, otlp: {{ endpoint: '{}' }} }}", collector.start().await));
        let setup = || Setup { store: Some(database.url()), more: more.clone(), ..Setup::default() };
        let first = Broker::start_for(setup()).await;
        let second = Broker::start_for(Setup { replica_of: Some(first.original()), ..setup() }).await;
        let everything = async || {
            let rows =
                database.client().await.query("SELECT chain, position, records FROM audit", &[]).await.expect("rows");
            ids_of(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))))
        };
        let all_there = async || {
            collector.gets(&everything().await).await;
        };
        for _ in 0..10 {
            for broker in [&first, &second] {
                broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
            }
        }
        all_there().await;
        assert!(collector.ids().values().all(|times| *times == 1), "one replica ships at a time");
        // Its last records are shipped by whoever is left.
        let mut replicas = [first, second];
        replicas[0].exchange(replicas[0].request(&["azure-ml"])).await.expect("a credential");
        replicas[0].take_app().drain().await;
        replicas[1].exchange(replicas[1].request(&["azure-ml"])).await.expect("a credential");
        all_there().await;
        replicas[1].take_app().drain().await;
        replicas.iter().for_each(Broker::no_secret_was_left_behind);
    })
    .await;
}

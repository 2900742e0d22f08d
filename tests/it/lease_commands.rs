//! `carnet lease`: a runner's and an operator's commands against a real broker, what they print, and how they end.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use carnet::app::App;
use carnet::clock::{ManualClock, SystemClock};
use carnet::config::Config;
use carnet::grpc::connect;
use carnet::proto::leases_client::LeasesClient;
use carnet::proto::{ExchangeRequest, OpenLeaseRequest};
use serde_json::Value;

use crate::command_line::{carnet, run, signal, text};
use crate::support::{Broker, PERSON, RUNNER, Setup, TENANT, eventually, with_setup};

const RULES: &str = "
rules:
  - name: training
    targets: [vertex, azure-ml]
    subject: { roles: [Training.Submit] }
    lease: { max_duration: 1h, heartbeat: 5m }
  - name: no-leases
    targets: [direct]
    subject: { roles: [Training.Submit] }
";

const OPERATORS: &str = "
operators:
  - permissions: [leases.read, leases.revoke]
    subject: { roles: [Carnet.Operator] }
";

/// Against a broker that knows leases and operators.
async fn with_leases(test: impl AsyncFnOnce(&Broker)) {
    let setup = Setup { rules: Some(RULES), more: OPERATORS.to_owned(), ..Setup::default() };
    with_setup(setup, test).await;
}

/// `carnet lease`, with the broker's address and nothing else in its environment.
fn lease(broker: &Broker, arguments: &[&str]) -> Command {
    let mut command = carnet(&["lease"]);
    command.args(arguments).env("CARNET_ADDRESS", broker.grpc_address());
    command
}

fn printed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)))
}

/// Good, and what it said.
fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn fails(output: &Output, code: i32, said: &str) {
    let complaint = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{complaint}");
    assert!(complaint.contains(said), "{complaint}");
}

/// A lease of `targets` that the runner opened, and its token.
struct Opened<'a> {
    broker: &'a Broker,
    id: String,
    token: String,
}

impl<'a> Opened<'a> {
    async fn new(broker: &'a Broker, targets: &[&str], job: &str) -> Self {
        let mut command = lease(broker, &["open", "--job-name", job, "--job-id", "run-1", "--output", "json"]);
        targets.iter().for_each(|target| {
            command.args(["--target", target]);
        });
        let subject_token = broker.signed(&broker.runner());
        let json = printed(&run_as(command, "CARNET_SUBJECT_TOKEN", &subject_token).await);
        let token = json["lease_token"].as_str().expect("a lease token").to_owned();
        broker.is_secret(&token);
        secrets(broker, &json);
        Self { broker, id: json["lease"]["lease_id"].as_str().expect("an id").to_owned(), token }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        run_as(lease(self.broker, arguments), "CARNET_LEASE_TOKEN", &self.token).await
    }

    async fn state(&self) -> String {
        let listed = operate(self.broker, &["list", "--lease", &self.id, "--all", "--output", "json"]).await;
        printed(&listed)["leases"][0]["state"].as_str().expect("a state").to_owned()
    }
}

async fn run_as(mut command: Command, variable: &str, token: &str) -> Output {
    command.env(variable, token);
    run(command).await
}

/// As an operator.
async fn operate(broker: &Broker, arguments: &[&str]) -> Output {
    let operator = broker.signed(&broker.entra.user_token(TENANT, PERSON).roles(["Carnet.Operator"]));
    run_as(lease(broker, arguments), "CARNET_SUBJECT_TOKEN", &operator).await
}

/// What an answer handed out must show nowhere else.
fn secrets(broker: &Broker, json: &Value) {
    let credentials = json["credentials"].as_array().expect("credentials").iter();
    credentials.for_each(|credential| broker.is_secret(credential["token"].as_str().expect("a token")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_opens_beats_uses_extends_and_closes_a_lease() {
    with_leases(async |broker| {
        let file = broker.folder.path().join("job.lease");
        let path = file.to_str().expect("a path");
        let subject_token = broker.signed(&broker.runner());
        let with_file = async |arguments: &[&str]| {
            let mut command = lease(broker, arguments);
            command.env("CARNET_LEASE_TOKEN_FILE", path);
            run_as(command, "CARNET_SUBJECT_TOKEN", &subject_token).await
        };
        let opened =
            good(&with_file(&["open", "--target", "vertex", "--job-name", "vision", "--duration", "20m"]).await);
        for expected in ["state", "active", "job name", "vision", "heartbeat before", "TARGET", "vertex"] {
            assert!(opened.contains(expected), "{expected} is not in\n{opened}");
        }
        assert!(!opened.contains("ya29.") && !opened.contains("carnet_lease_"), "{opened}");
        assert_eq!(std::fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
        let lease_token = std::fs::read_to_string(&file).expect("the file");
        assert!(lease_token.starts_with("carnet_lease_"));
        // The one file in which it may stand.
        std::fs::remove_file(&file).expect("removed");
        broker.is_secret(&lease_token);
        let held = async |arguments: &[&str]| {
            let mut command = lease(broker, arguments);
            command.env("CARNET_SUBJECT_TOKEN", &subject_token);
            run_as(command, "CARNET_LEASE_TOKEN", &lease_token).await
        };

        let credentials = printed(&held(&["credentials"]).await);
        secrets(broker, &credentials);
        let token = credentials["credentials"][0]["token"].as_str().expect("a token");
        assert_eq!(credentials["lease"]["state"], "active");
        assert_eq!(credentials["credentials"][0]["cached"], true, "the opening's");
        assert_eq!(good(&held(&["credentials", "--output", "token"]).await).trim(), token);
        let env = good(&held(&["credentials", "--target", "vertex", "--output", "env"]).await);
        assert!(env.contains(&format!("export GOOGLE_OAUTH_ACCESS_TOKEN='{token}'")));

        let beaten = printed(&held(&["renew", "--output", "json"]).await);
        assert_eq!(beaten["lease"]["not_after"], credentials["lease"]["not_after"], "a beat moves no end");
        let extended = printed(&held(&["renew", "--extend", "--duration", "50m", "--output", "json"]).await);
        let end = |json: &Value| json["lease"]["not_after"].as_str().expect("a time").to_owned();
        assert!(end(&extended) > end(&beaten), "{} {}", end(&extended), end(&beaten));

        let closed = good(&held(&["close"]).await);
        assert!(closed.contains("closed") && closed.contains("ended at"), "{closed}");
        assert_eq!(printed(&held(&["close", "--output", "json"]).await)["lease"]["state"], "closed");
        for refused in [&["credentials"][..], &["renew"], &["renew", "--extend"], &["renew", "--keep"], &["watch"]] {
            fails(&held(refused).await, 1, "the lease has ended: it is closed (LEASE_ENDED");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_and_the_exit_code_tells_who_has_to_act() {
    with_leases(async |broker| {
        let opened = Opened::new(broker, &["vertex", "azure-ml"], "vision").await;
        let runner = broker.signed(&broker.runner());
        let stranger = broker.signed(&broker.entra.app_token(TENANT, RUNNER));
        let other = broker.signed(&broker.runner().audience("api://other"));
        let missing = broker.folder.path().join("no-such-folder/job.lease");
        let missing = missing.to_str().expect("a path");
        let open = ["open", "--output", "json", "--target"];
        for (arguments, subject_token, code, said) in [
            (&["open", "--target", "vertex"][..], &runner, 2, "where should the lease token go?"),
            (&["open", "--target", "vertex", "--lease-token-file", "-"], &runner, 2, "use --output json"),
            (&["open", "--target", "vertex", "--lease-token-file", missing], &runner, 1, "cannot be written"),
            (&[open[0], open[1], open[2], open[3], "no-such-target"], &runner, 3, "denied (DENIED"),
            (&[open[0], open[1], open[2], open[3], "direct"], &runner, 1, "no rule allows leases of target direct"),
            (&[open[0], open[1], open[2], open[3], "vertex"], &stranger, 3, "denied (DENIED"),
            (&[open[0], open[1], open[2], open[3], "vertex"], &other, 4, "SUBJECT_TOKEN_AUDIENCE"),
            (&["renew", "--extend"], &other, 4, "SUBJECT_TOKEN_AUDIENCE"),
            (&["renew", "--duration", "1h"], &runner, 2, "--extend"),
            (&["renew", "--keep", "--extend"], &runner, 2, "cannot be used with"),
            (&["credentials", "--target", "grouped"], &runner, 1, "targets: grouped is not one of the lease's"),
            (&["credentials", "--output", "token"], &runner, 2, "name one with --target"),
            (&["watch", "--output", "token"], &runner, 2, "name one with --target"),
            (&["watch", "--address", "http://127.0.0.1:1"], &runner, 5, "is it running"),
            (&["list"], &runner, 3, "denied (DENIED"),
            (&["list"], &other, 4, "SUBJECT_TOKEN_AUDIENCE"),
            (&["revoke", "--reason", "leaked"], &runner, 2, "which leases?"),
            (&["revoke", "--job-id", "run-1"], &runner, 2, "--reason"),
            (&["revoke", "--job-id", "run-1", "--reason", "leaked"], &runner, 3, "denied (DENIED"),
        ] {
            let mut command = lease(broker, arguments);
            command.env("CARNET_LEASE_TOKEN", &opened.token);
            let output = run_as(command, "CARNET_SUBJECT_TOKEN", subject_token).await;
            let complaint = text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {complaint}");
            assert!(complaint.contains(said), "{arguments:?}: {complaint}");
            assert!(!complaint.contains(&opened.token), "{arguments:?}");
        }
        for command in ["renew", "credentials", "watch", "close"] {
            fails(&run(lease(broker, &[command])).await, 2, "no lease token: give --lease-token-file");
            let unknown = run_as(lease(broker, &[command]), "CARNET_LEASE_TOKEN", "carnet_lease_none").await;
            fails(&unknown, 1, "there is no such lease (LEASE_NOT_FOUND");
        }
        assert_eq!(opened.state().await, "active");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_token_comes_from_standard_input_too() {
    with_leases(async |broker| {
        let opened = Opened::new(broker, &["vertex"], "vision").await;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), format!("{}\n", opened.token)).expect("written");
        let mut command = lease(broker, &["renew", "--lease-token-file", "-", "--output", "json"]);
        command.stdin(file.reopen().expect("a file"));
        assert_eq!(printed(&run(command).await)["lease"]["lease_id"], opened.id.as_str());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_list_leases_by_filter_and_state_and_end_those_that_match() {
    with_leases(async |broker| {
        let vision = Opened::new(broker, &["vertex"], "vision").await;
        let speech = Opened::new(broker, &["azure-ml"], "speech").await;
        let ids = async |arguments: &[&str]| -> Vec<String> {
            let output = operate(broker, &[&["list", "--output", "json"], arguments].concat()).await;
            let leases = printed(&output)["leases"].as_array().expect("leases").clone();
            leases.iter().map(|lease| lease["lease_id"].as_str().expect("an id").to_owned()).collect()
        };
        let subject = format!("entra:{TENANT}:{RUNNER}");
        let both = [speech.id.clone(), vision.id.clone()];
        assert_eq!(ids(&[]).await, both, "newest first");
        assert_eq!(ids(&["--subject", &subject]).await, both);
        assert_eq!(ids(&["--limit", "1"]).await, both[..1]);
        for filter in [["--job-name", "vision"], ["--target", "vertex"], ["--lease", &vision.id]] {
            assert_eq!(ids(&filter).await, both[1..], "{filter:?}");
        }
        assert_eq!(ids(&["--job-id", "run-2"]).await, [""; 0]);
        let table = good(&operate(broker, &["list"]).await);
        let row = table.lines().find(|line| line.starts_with(&vision.id)).expect("a row");
        assert!(table.starts_with("LEASE") && row.contains("active") && row.ends_with(&subject), "{table}");

        let revoked = operate(broker, &["revoke", "--job-name", "vision", "--reason", "leaked"]).await;
        assert_eq!(good(&revoked), "revoked 1 lease\n");
        let again =
            operate(broker, &["revoke", "--job-name", "vision", "--reason", "leaked", "--output", "json"]).await;
        assert_eq!(printed(&again)["revoked"], 0);
        fails(&vision.run(&["credentials"]).await, 1, "the lease has ended: it is revoked");
        assert_eq!(ids(&[]).await, both[..1]);
        assert_eq!(ids(&["--state", "revoked", "--state", "expired"]).await, both[1..]);
        assert_eq!(ids(&["--all"]).await, both);
        let reason =
            broker.audit_records().into_iter().find(|record| record.action == "lease.revoke").expect("a record");
        assert!(reason.attributes["end_reason"].ends_with("leaked"), "{:?}", reason.attributes);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_goes_on_from_page_to_page() {
    with_leases(async |broker| {
        let address = broker.grpc_address().parse().expect("an address");
        let mut client = LeasesClient::new(connect(&address, None).await.expect("a connection"));
        let ExchangeRequest { subject_token, targets, .. } = broker.request(&["vertex"]);
        for _ in 0..101 {
            let (subject_token, targets) = (subject_token.clone(), targets.clone());
            let request = OpenLeaseRequest { subject_token, targets, ..Default::default() };
            let opened = client.open_lease(request).await.expect("a lease").into_inner();
            broker.is_secret(&opened.credentials[0].token);
            broker.is_secret(&opened.lease_token);
        }
        let listed = printed(&operate(broker, &["list", "--output", "json"]).await);
        assert_eq!(listed["leases"].as_array().expect("leases").len(), 101);
    })
    .await;
}

/// A command that runs for as long as its lease does.
struct Running {
    child: Child,
    lines: Option<BufReader<ChildStdout>>,
}

impl Running {
    fn start(opened: &Opened<'_>, arguments: &[&str]) -> Self {
        let mut command = lease(opened.broker, arguments);
        command.env("CARNET_LEASE_TOKEN", &opened.token).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a process");
        let lines = child.stdout.take().map(BufReader::new);
        Self { child, lines }
    }

    async fn line(&mut self) -> String {
        let mut lines = self.lines.take().expect("one reader");
        let read = move || {
            let mut line = String::new();
            lines.read_line(&mut line).expect("a line");
            (line, lines)
        };
        let (line, lines) = tokio::task::spawn_blocking(read).await.expect("no panic");
        self.lines = Some(lines);
        line
    }

    async fn update(&mut self, broker: &Broker) -> Value {
        let update: Value = serde_json::from_str(&self.line().await).expect("one object a line");
        secrets(broker, &update);
        update
    }

    /// Its exit code, the rest of its output, and what it complained of.
    async fn end(mut self) -> (Option<i32>, String, String) {
        let wait = move || {
            let mut rest = String::new();
            self.lines.take().expect("one reader").read_to_string(&mut rest).expect("text");
            let output = self.child.wait_with_output().expect("an end");
            (output.status.code(), rest, text(&output.stderr))
        };
        tokio::task::spawn_blocking(wait).await.expect("no panic")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_prints_credentials_and_how_the_lease_ended() {
    with_leases(async |broker| {
        let opened = Opened::new(broker, &["vertex", "azure-ml"], "vision").await;
        let mut watch = Running::start(&opened, &["watch"]);
        let first = watch.update(broker).await;
        assert_eq!(first["credentials"].as_array().expect("credentials").len(), 2);
        assert_eq!(first["lease"]["state"], "active");
        let mut tokens = Running::start(&opened, &["watch", "--target", "azure-ml", "--output", "token"]);
        assert_eq!(tokens.line().await.trim(), first["credentials"][1]["token"]);
        let mut lines = Running::start(&opened, &["watch", "--target", "vertex", "--output", "env"]);
        assert!(lines.line().await.starts_with("export CLOUDSDK_AUTH_ACCESS_TOKEN='ya29."));
        assert!(lines.line().await.starts_with("export GOOGLE_OAUTH_ACCESS_TOKEN='ya29."));

        good(&opened.run(&["close"]).await);
        let last = watch.update(broker).await;
        assert_eq!(
            (&last["lease"]["state"], last["credentials"].as_array().map(Vec::len)),
            (&"closed".into(), Some(0))
        );
        for watch in [watch, tokens, lines] {
            assert_eq!(watch.end().await, (Some(0), String::new(), String::new()));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_nobody_reads_any_more_ends_and_so_beats_no_more() {
    with_leases(async |broker| {
        let opened = Opened::new(broker, &["vertex"], "vision").await;
        let mut watch = Running::start(&opened, &["watch"]);
        watch.update(broker).await;
        drop(watch.lines.take());
        let output = tokio::task::spawn_blocking(|| watch.child.wait_with_output()).await.expect("no panic");
        fails(&output.expect("an end"), 1, "nobody reads the standard output");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_a_lease_that_an_operator_ends_fails_and_says_so() {
    with_leases(async |broker| {
        let opened = Opened::new(broker, &["vertex"], "vision").await;
        let mut watch = Running::start(&opened, &["watch"]);
        watch.update(broker).await;
        good(&operate(broker, &["revoke", "--lease", &opened.id, "--reason", "leaked"]).await);
        assert_eq!(watch.update(broker).await["lease"]["state"], "revoked");
        let (code, _rest, complaint) = watch.end().await;
        assert_eq!((code, complaint.as_str()), (Some(1), "carnet: the lease has ended: it is revoked\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_of_a_lease_whose_time_is_over_fails_and_says_so() {
    let clock = ManualClock::start();
    let setup =
        Setup { rules: Some(RULES), more: OPERATORS.to_owned(), clock: Some(clock.clone()), ..Setup::default() };
    with_setup(setup, async |broker| {
        let opened = Opened::new(broker, &["vertex"], "vision").await;
        let mut watch = Running::start(&opened, &["watch"]);
        watch.update(broker).await;
        clock.advance(Duration::from_secs(3601));
        assert_eq!(watch.update(broker).await["lease"]["state"], "expired");
        let (code, _rest, complaint) = watch.end().await;
        assert_eq!((code, complaint.as_str()), (Some(1), "carnet: the lease has ended: it is expired\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_its_broker() {
    let setup = Setup { rules: Some(RULES), more: OPERATORS.to_owned(), ..Setup::default() };
    let mut broker = Broker::start_for(setup).await;
    let opened = Opened::new(&broker, &["vertex"], "vision").await;
    let mut watch = Running::start(&opened, &["watch"]);
    let before = watch.update(&broker).await;
    let token = opened.token;

    broker.take_app().drain().await;
    // At the same address as before.
    let path = broker.config_path();
    let address = broker.grpc_address().trim_start_matches("http://").to_owned();
    let file = std::fs::read_to_string(&path).expect("the file");
    std::fs::write(&path, file.replace("127.0.0.1:0", &address)).expect("written");
    let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
    let app = App::start(config, None, Arc::new(SystemClock)).await.unwrap_or_else(|error| panic!("{error:?}"));
    app.until_ready().await;

    let after = watch.update(&broker).await;
    assert_eq!(after["lease"]["lease_id"], before["lease"]["lease_id"]);
    assert_ne!(after["credentials"][0]["token"], before["credentials"][0]["token"], "a new process has a new one");
    good(&run_as(lease(&broker, &["close"]), "CARNET_LEASE_TOKEN", &token).await);
    assert_eq!(watch.update(&broker).await["lease"]["state"], "closed");
    assert_eq!(watch.end().await.0, Some(0));
    app.drain().await;
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_lease_is_beaten_for_until_it_ends_or_a_signal_comes() {
    const SHORT: &str = "
rules:
  - name: training
    targets: [vertex, azure-ml]
    subject: { roles: [Training.Submit] }
    lease: { max_duration: 1h, heartbeat: 15s }
";
    let setup = Setup { rules: Some(SHORT), more: OPERATORS.to_owned(), ..Setup::default() };
    with_setup(setup, async |broker| {
        let mut kept = Vec::new();
        for job in ["closed", "revoked", "signalled"] {
            let opened = Opened::new(broker, &["vertex"], job).await;
            let mut running = Running::start(&opened, &["renew", "--keep"]);
            assert!(running.line().await.starts_with("lease "));
            kept.push((opened, running));
        }
        let lapses = async || {
            let listed = printed(&operate(broker, &["list", "--output", "json"]).await);
            let leases = listed["leases"].as_array().expect("leases").iter();
            leases.map(|lease| lease["heartbeat_before"].as_str().expect("a time").to_owned()).collect::<Vec<_>>()
        };
        let first = lapses().await;
        assert_eq!(first.len(), 3);
        eventually("another beat of each", async || {
            let now = lapses().await;
            now.len() == 3 && first.iter().zip(&now).all(|(first, now)| first < now)
        })
        .await;
        good(&kept[0].0.run(&["close"]).await);
        good(&operate(broker, &["revoke", "--job-name", "revoked", "--reason", "leaked"]).await);
        signal("TERM", kept[2].1.child.id());
        let mut ends = Vec::new();
        for (_opened, running) in kept {
            ends.push(running.end().await);
        }
        let codes: Vec<Option<i32>> = ends.iter().map(|(code, ..)| *code).collect();
        assert_eq!(codes, [Some(0), Some(1), Some(0)]);
        assert!(ends[1].2.contains("the lease has ended: it is revoked (LEASE_ENDED"), "{}", ends[1].2);
    })
    .await;
}

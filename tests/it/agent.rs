//! `carnet agent`: ready when it is, through outages of the broker, on loopback and on a Unix socket.

use std::process::{Child, Command};

use crate::command_line::{carnet, run, signal, text};
use crate::exec::can_be_another_user;
use crate::process::{Process, make_place};
use crate::support::{Broker, Setup, eventually, free_port, with_broker};

/// A running agent; it ends with the test.
struct Agent {
    child: Child,
    address: String,
}

impl Agent {
    fn start(broker: &Broker, grpc: &str, more: &str) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        Self::at(broker, grpc, &address, more)
    }

    fn at(broker: &Broker, grpc: &str, address: &str, more: &str) -> Self {
        let (folder, token) = (broker.folder.path(), tempfile::NamedTempFile::new().expect("a file"));
        std::fs::write(token.path(), broker.signed(&broker.runner())).expect("written");
        let (_file, token) = token.keep().expect("kept");
        let config = folder.join("agent.yaml");
        let file = format!(
            "
listen: '{address}'
broker: {{ address: 'http://{grpc}' }}
subject: {{ token_file: '{}' }}
job: {{ name: vision }}
targets:
  - target: azure-ml
    azure: {{ object_id: 77777777-7777-7777-7777-777777777777 }}
  - target: vertex
    google: {{ project_id: another-project }}
azure: {{ identity_header: 0123456789abcdef }}
{more}
",
            token.display()
        );
        std::fs::write(&config, file).expect("written");
        let log = std::fs::File::options().create(true).append(true).open(folder.join("agent.log")).expect("a file");
        let mut command = carnet(&["agent", "--config", config.to_str().expect("a path")]);
        Self { child: command.stderr(log).spawn().expect("a process"), address: address.to_owned() }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Option<(u16, String)> {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let request = client.get(format!("http://{}{path}", self.address));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let answer = request.send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// The status of the default account's token.
    async fn token(&self, broker: &Broker) -> u16 {
        let path = "/computeMetadata/v1/instance/service-accounts/default/token";
        let (status, body) = self.get(path, &[("Metadata-Flavor", "Google")]).await.expect("an answer");
        let json: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        if let Some(token) = json["access_token"].as_str() {
            broker.is_secret(token);
        }
        status
    }

    async fn until_ready(&self) {
        let ready = async || self.get("/readyz", &[]).await.is_some_and(|(status, _body)| status == 200);
        eventually("readiness", ready).await;
    }

    async fn ends(mut self) -> Option<i32> {
        signal("TERM", self.child.id());
        let mut child = std::mem::replace(&mut self.child, Command::new("true").spawn().expect("a process"));
        let ended = tokio::task::spawn_blocking(move || child.wait().expect("an end")).await.expect("no panic");
        ended.code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c01_it_starts_without_its_broker_and_outlives_the_brokers_outages() {
    let mut broker = Broker::start_for(Setup::default()).await;
    let grpc = make_place(&mut broker).await;
    let broker = &broker;
    {
        let agent = Agent::start(broker, &grpc, "");
        let alive = async || agent.get("/healthz", &[]).await.is_some_and(|(status, _body)| status == 200);
        eventually("life", alive).await;
        let (status, missing) = agent.get("/readyz", &[]).await.expect("an answer");
        assert!(status == 503 && missing.contains("vertex: ") && missing.contains("azure-ml: "), "{missing}");
        assert_eq!(agent.token(broker).await, 503, "not yet");
        let mut process = Process::in_place_of(broker).await;
        agent.until_ready().await;
        assert_eq!(agent.token(broker).await, 200);
        process.kill();
        assert_eq!(agent.token(broker).await, 200);
        assert_eq!(agent.get("/readyz", &[]).await.expect("an answer").0, 200);
        let header = [("Metadata-Flavor", "Google")];
        let project = agent.get("/computeMetadata/v1/project/project-id", &header).await.expect("an answer");
        assert_eq!(project, (200, "another-project".to_owned()));
        let query =
            "api-version=2019-08-01&resource=https://ml.azure.com&principal_id=77777777-7777-7777-7777-777777777777";
        let header = [("X-IDENTITY-HEADER", "0123456789abcdef")];
        let (status, body) = agent.get(&format!("/msi/token?{query}"), &header).await.expect("an answer");
        assert_eq!(status, 200, "{body}");
        let json: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        broker.is_secret(json["access_token"].as_str().expect("a token"));
        let (_status, metrics) = agent.get("/metrics", &[]).await.expect("an answer");
        assert!(metrics.contains("carnet_agent_requests_total"), "{metrics}");
        let _again = Process::in_place_of(broker).await;
        let identity = "/computeMetadata/v1/instance/service-accounts/default/identity?audience=https://service";
        let anew = async || {
            let answer = agent.get(identity, &[("Metadata-Flavor", "Google")]).await;
            answer.is_some_and(|(status, token)| {
                broker.is_secret(&token);
                status == 200
            })
        };
        eventually("a token of the new broker", anew).await;
        assert_eq!(agent.ends().await, Some(0));
    }
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_unix_socket_it_serves_any_host_and_on_loopback_its_own_only() {
    with_broker(async |broker| {
        let grpc = broker.grpc_address().trim_start_matches("http://");
        let agent = Agent::start(broker, grpc, "");
        agent.until_ready().await;
        let (status, _body) = agent.get("/", &[("Host", "evil.example")]).await.expect("an answer");
        assert_eq!(status, 400);
        assert_eq!(agent.get("/", &[("Host", "metadata.google.internal")]).await.expect("an answer").0, 200);
        let socket = broker.folder.path().join("agent.sock");
        let unix = Agent::at(broker, grpc, &format!("unix:{}", socket.display()), "");
        eventually("the socket", async || socket.exists()).await;
        let mut command = Command::new("curl");
        command.args(["-s", "--retry", "5", "--unix-socket"]).arg(&socket).args(["-H", "Metadata-Flavor: Google"]);
        command.arg("http://any.example/computeMetadata/v1/project/project-id");
        assert_eq!(text(&run(command).await.stdout), "another-project");
        assert_eq!(unix.ends().await, Some(0));
        assert!(!socket.exists(), "its file goes with it");
        assert_eq!(agent.ends().await, Some(0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_mistakes_is_refused_with_all_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("agent.yaml");
    let wrong = "
listen: 0.0.0.0:7070
broker: { address: 'http://broker.example:7443' }
subject: { source: nowhere }
targets:
  - target: a
    google: { default: true }
    azure: { object_id: x }
  - target: a
  - target: b
    google: { default: true, project: x }
azure: { identity_header: short }
";
    std::fs::write(&config, wrong).expect("written");
    let path = config.to_str().expect("a path");
    for arguments in [["agent", "--config", path], ["config", "check", path]] {
        let output = run(carnet(&arguments)).await;
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for expected in [
            "line 2: listen: is not loopback",
            "line 3: broker.address: must start with https://",
            "line 4: subject.source: names no source",
            "line 8: targets[0].azure.object_id:",
            "line 9: targets[1].target: stands here a second time",
            "targets[2].google.project: unknown field",
            "azure.identity_header: has at least 16 characters",
        ] {
            assert!(said.contains(expected), "{expected} is not in\n{said}");
        }
    }
    let good = "{ broker: { address: 'http://127.0.0.1:7443' }, targets: [{ target: vertex }] }";
    std::fs::write(&config, good).expect("written");
    let output = run(carnet(&["config", "check", path])).await;
    assert!(text(&output.stdout).contains("good, for the agent (1 targets)"), "{}", text(&output.stderr));
    let schema = run(carnet(&["config", "schema", "--agent"])).await;
    assert!(text(&schema.stdout).contains("identity_header"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_runs_it_is_answered_and_others_where_the_configuration_says_so() {
    if !can_be_another_user() {
        return;
    }
    with_broker(async |broker| {
        let grpc = broker.grpc_address().trim_start_matches("http://");
        for (more, status) in
            [("", "403"), ("allow_uids: [1]", "403"), ("allow_uids: [65534]", "200"), ("allow_all_uids: true", "200")]
        {
            let agent = Agent::start(broker, grpc, more);
            agent.until_ready().await;
            let mut stranger = Command::new("setpriv");
            stranger.args(["--reuid", "65534", "--clear-groups", "curl", "-s", "--noproxy", "*", "-o", "/dev/null"]);
            stranger.args(["-w", "%{http_code}", &format!("http://{}/healthz", agent.address)]);
            assert_eq!(text(&run(stranger).await.stdout), status, "{more}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_allowed_by_name_or_all_of_them_and_not_both() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.yaml");
    let file = "broker: { address: 'http://127.0.0.1:1' }\ntargets: [{ target: vertex }]\nallow_uids: [1]\nallow_all_uids: true\n";
    std::fs::write(&path, file).expect("written");
    let output = run(carnet(&["config", "check", path.to_str().expect("a path")])).await;
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("allow_all_uids: leaves nothing to allow_uids"), "{}", text(&output.stderr));
}

//! `carnet exec`: what the command finds, how it ends, and what becomes of its lease.

mod strange_broker;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::command_line::{carnet, run, signal, text};
use crate::process::{Process, make_place};
use crate::support::{Broker, ML, PERSON, Setup, TENANT, TRAINER, eventually, with_setup};

const RULES: &str = "
rules:
  - name: training
    targets: [vertex, azure-ml]
    subject: { roles: [Training.Submit] }
    lease: { max_duration: 1h, heartbeat: 15s }
  - name: no-leases
    targets: [direct]
    subject: { roles: [Training.Submit] }
operators:
  - permissions: [leases.read, leases.revoke]
    subject: { roles: [Carnet.Operator] }
";

async fn with_leases(test: impl AsyncFnOnce(&Broker)) {
    with_setup(Setup { rules: Some(RULES), ..Setup::default() }, test).await;
}

/// `carnet exec` of this shell script, with the runner's token, against the broker at `address`.
fn exec(broker: &Broker, address: &str, arguments: &[&str], script: &str) -> Command {
    let mut command = carnet(&["exec"]);
    command.args(arguments).args(["--", "sh", "-c", script]);
    command.env("CARNET_ADDRESS", address).env("CARNET_SUBJECT_TOKEN", broker.signed(&broker.runner()));
    command.env("HOME", broker.folder.path()).env_remove("GOOGLE_CLOUD_PROJECT").env_remove("CLOUDSDK_CONFIG");
    // Signals of a test are none of the terminal's that the tests may run in.
    command.process_group(0);
    command
}

async fn done(broker: &Broker, arguments: &[&str], script: &str) -> Output {
    run(exec(broker, broker.grpc_address(), arguments, script)).await
}

/// What the command printed, one object a line.
fn objects(broker: &Broker, output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let objects: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for object in &objects {
        if let Some(token) = object["access_token"].as_str() {
            broker.is_secret(token);
        }
    }
    objects
}

async fn leases(broker: &Broker) -> Vec<Value> {
    let operator = broker.signed(&broker.entra.user_token(TENANT, PERSON).roles(["Carnet.Operator"]));
    let mut command = carnet(&["lease", "list", "--all", "--output", "json", "--address", broker.grpc_address()]);
    command.env("CARNET_SUBJECT_TOKEN", operator);
    let output = run(command).await;
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    listed["leases"].as_array().expect("leases").clone()
}

async fn states(broker: &Broker) -> Vec<String> {
    leases(broker).await.iter().map(|lease| lease["state"].as_str().expect("a state").to_owned()).collect()
}

const GOOGLE: &str = r#"curl -sS -H "Metadata-Flavor: Google" "http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default/token"; echo"#;
const AZURE: &str = r#"curl -sS -H "X-IDENTITY-HEADER: $IDENTITY_HEADER" "$IDENTITY_ENDPOINT?api-version=2019-08-01&resource=https://ml.azure.com"; echo"#;
const MACHINE: &str = r#"curl -sS -H "Metadata: true" "$AZURE_POD_IDENTITY_AUTHORITY_HOST/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://ml.azure.com/"; echo"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_command_finds_both_clouds_credentials_and_its_lease_ends_with_it() {
    with_leases(async |broker| {
        let arguments = ["--target", "vertex", "--target", "azure-ml", "--job-name", "vision", "--job-id", "run-1"];
        let recursive = GOOGLE.replace("/token", "/?recursive=true");
        let script = format!("{GOOGLE}; {AZURE}; {MACHINE}; {recursive}");
        let output = done(broker, &arguments, &script).await;
        let [google, azure, machine, account] = &objects(broker, &output)[..] else { panic!("{output:?}") };
        assert!(google["access_token"].as_str().expect("a token").starts_with("ya29."));
        assert!((360..=3600).contains(&google["expires_in"].as_u64().expect("seconds")), "{}", google["expires_in"]);
        assert_eq!(azure["access_token"], machine["access_token"]);
        assert_eq!(azure["client_id"], ML);
        assert_eq!(account["email"], TRAINER);
        assert_eq!(text(&output.stderr), "");
        let [lease] = &leases(broker).await[..] else { panic!("one lease") };
        assert_eq!((&lease["state"], &lease["job"]["name"]), (&"closed".into(), &"vision".into()), "{lease}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_and_for_id_tokens_the_broker_is_asked_by_exchange() {
    with_leases(async |broker| {
        let identity = GOOGLE.replace("/token", "/identity?audience=https://service");
        for lease in [&["--target", "vertex"][..], &["--target", "vertex", "--no-lease"]] {
            let output = done(broker, lease, &format!("{identity}; exit 3")).await;
            assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
            let token = text(&output.stdout);
            broker.is_secret(token.trim());
            assert_eq!(token.split('.').count(), 3, "{token}");
        }
        assert_eq!(objects(broker, &done(broker, &["--target", "direct", "--no-lease"], GOOGLE).await).len(), 1);
        assert_eq!(states(broker).await, ["closed"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_status_is_the_commands_or_says_who_has_to_act() {
    with_leases(async |broker| {
        let vertex = ["--target", "vertex"];
        for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
            assert_eq!(done(broker, &vertex, script).await.status.code(), Some(code), "{script}");
        }
        let unstartable = async |program: &str| {
            let mut command = carnet(&["exec", "--target", "vertex", "--", program]);
            command.env("CARNET_ADDRESS", broker.grpc_address());
            run({
                command.env("CARNET_SUBJECT_TOKEN", broker.signed(&broker.runner()));
                command
            })
            .await
        };
        let folder = broker.folder.path().to_str().expect("a path");
        for (program, code) in [("no-such-program", 127), (folder, 126)] {
            let output = unstartable(program).await;
            assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
            assert!(text(&output.stderr).contains(program));
        }
        let closed = states(broker).await;
        assert!(closed.len() == 6 && closed.iter().all(|state| state == "closed"), "{closed:?}");
        for (arguments, code, said) in [
            (&["--target", "no-such-target"][..], 3, "DENIED"),
            (&["--target", "direct"], 1, "no rule allows leases of target direct"),
            (&["--target", "vertex", "--address", "http://127.0.0.1:1"], 5, "is it running"),
            (&["--target", "vertex", "--subject-token-file", "-"], 2, "standard input is the command's"),
            (&["--target", "vertex", "--no-lease", "--lease-duration", "1h"], 2, "cannot be used with"),
        ] {
            let output = done(broker, arguments, "echo the command has run").await;
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
            assert!(text(&output.stderr).contains(said), "{arguments:?}: {}", text(&output.stderr));
            assert!(output.stdout.is_empty(), "{arguments:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_leads_to_the_agent_and_holds_nothing_that_outranks_it_or_is_secret() {
    with_leases(async |broker| {
        let outranking = [
            "GOOGLE_APPLICATION_CREDENTIALS",
            "CLOUDSDK_AUTH_ACCESS_TOKEN",
            "CLOUDSDK_CORE_ACCOUNT",
            "CLOUDSDK_CORE_CHECK_GCE_METADATA",
            "NO_GCE_CHECK",
            "AZURE_CLIENT_SECRET",
            "AZURE_FEDERATED_TOKEN_FILE",
            "MSI_ENDPOINT",
            "IDENTITY_SERVER_THUMBPRINT",
        ];
        let environment = async |targets: &[&str]| {
            let mut command = exec(broker, broker.grpc_address(), targets, "env");
            outranking.iter().for_each(|name| {
                command.env(name, "left over");
            });
            command.env("NO_PROXY", "internal.example").env("no_proxy", "*");
            let output = run(command).await;
            assert!(output.status.success(), "{}", text(&output.stderr));
            let lines = text(&output.stdout);
            let pairs = lines.lines().filter_map(|line| line.split_once('='));
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<std::collections::HashMap<_, _>>()
        };
        let both = environment(&["--target", "vertex", "--target", "azure-ml"]).await;
        assert!(outranking.iter().all(|name| !both.contains_key(*name)), "{both:?}");
        assert!(both.keys().all(|name| !name.contains("SUBJECT_TOKEN") && !name.contains("LEASE_TOKEN")), "{both:?}");
        let host = &both["GCE_METADATA_HOST"];
        assert!(
            host.starts_with("127.0.0.1:") && *host == both["GCE_METADATA_IP"] && *host == both["GCE_METADATA_ROOT"]
        );
        assert_eq!(both["IDENTITY_ENDPOINT"], format!("http://{host}/msi/token"));
        assert_eq!(both["IDENTITY_HEADER"].len(), 64);
        assert_eq!(both["GOOGLE_CLOUD_PROJECT"], "ml");
        assert_eq!(both["NO_PROXY"], "internal.example,127.0.0.1,localhost,169.254.169.254,metadata.google.internal");
        assert_eq!(both["no_proxy"], "*");
        let google = environment(&["--target", "vertex"]).await;
        assert!(google.contains_key("GCE_METADATA_HOST") && !google.contains_key("IDENTITY_ENDPOINT"));
        assert_eq!(google["AZURE_CLIENT_SECRET"], "left over", "another cloud's is not touched");
        let again = environment(&["--target", "azure-ml"]).await;
        assert!(!again.contains_key("GCE_METADATA_HOST") && again.contains_key("NO_GCE_CHECK"));
        assert_ne!(again["IDENTITY_HEADER"], both["IDENTITY_HEADER"], "of this run");
        let adc = broker.folder.path().join(".config/gcloud");
        std::fs::create_dir_all(&adc).expect("a folder");
        std::fs::write(adc.join("application_default_credentials.json"), "{}").expect("written");
        let warned = done(broker, &["--target", "vertex"], "true").await;
        assert!(text(&warned.stderr).contains("application_default_credentials.json outranks"), "{warned:?}");
    })
    .await;
}

/// A command under `carnet exec` that a test talks to line by line: each line in is evaluated.
struct Talking {
    child: Child,
}

impl Talking {
    fn start(mut command: Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Self { child: child.expect("a process") }
    }

    /// The line that `command` prints.
    async fn says(&mut self, command: &str) -> String {
        let mut input = self.child.stdin.take().expect("one writer");
        let mut output = BufReader::new(self.child.stdout.take().expect("one reader"));
        let command = format!("{command}\n");
        let talk = move || {
            input.write_all(command.as_bytes()).expect("written");
            let mut line = String::new();
            output.read_line(&mut line).expect("a line");
            (input, output.into_inner(), line)
        };
        let (input, output, line) = tokio::task::spawn_blocking(talk).await.expect("no panic");
        (self.child.stdin, self.child.stdout) = (Some(input), Some(output));
        line.trim().to_owned()
    }

    async fn end(mut self) -> Output {
        drop(self.child.stdin.take());
        tokio::task::spawn_blocking(move || self.child.wait_with_output().expect("an end")).await.expect("no panic")
    }
}

/// Evaluates what it reads; ends with its input.
const SHELL: &str = r#"while read -r line; do eval "$line"; done"#;

const STATUS: &str = r#"curl -s -o /dev/null -w '%{http_code}\n' -H 'Metadata-Flavor: Google' "http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default/token""#;

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_lease_takes_the_credentials_away_and_the_command_goes_on() {
    with_leases(async |broker| {
        let mut talking =
            Talking::start(exec(broker, broker.grpc_address(), &["--target", "vertex", "--job-name", "vision"], SHELL));
        assert_eq!(talking.says(STATUS).await, "200");
        let operator = broker.signed(&broker.entra.user_token(TENANT, PERSON).roles(["Carnet.Operator"]));
        let mut revoke = carnet(&["lease", "revoke", "--job-name", "vision", "--reason", "leaked"]);
        revoke.env("CARNET_ADDRESS", broker.grpc_address()).env("CARNET_SUBJECT_TOKEN", operator);
        assert!(run(revoke).await.status.success());
        // The next heartbeat hears of it.
        for attempt in 0.. {
            match talking.says(STATUS).await.as_str() {
                "403" => break,
                status => assert!(status == "200" && attempt < 100, "{status}"),
            }
            talking.says("sleep 0.1; echo").await;
        }
        assert_eq!(talking.says("echo still there").await, "still there");
        let output = talking.end().await;
        assert_eq!(output.status.code(), Some(0));
        let said = text(&output.stderr);
        assert_eq!(said.matches("the lease has ended: it is revoked").count(), 1, "{said}");
        assert_eq!(states(broker).await, ["revoked"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_restarts_is_found_again_and_credentials_are_there_meanwhile() {
    let mut broker = Broker::start_for(Setup { rules: Some(RULES), ..Setup::default() }).await;
    let address = format!("http://{}", make_place(&mut broker).await);
    let mut process = Process::in_place_of(&broker).await;
    let mut talking = Talking::start(exec(&broker, &address, &["--target", "vertex"], SHELL));
    assert_eq!(talking.says(STATUS).await, "200");
    process.kill();
    assert_eq!(talking.says(STATUS).await, "200", "what is held is good");
    let identity = STATUS.replace("/token", "/identity?audience=https://service");
    assert_eq!(talking.says(&identity).await, "503", "what is not held can be had later");
    let process = Process::in_place_of(&broker).await;
    assert_eq!(talking.says(&identity).await, "200");
    let output = talking.end().await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    drop(process);
    let store = rusqlite::Connection::open(broker.store_path()).expect("the store");
    let closed = "SELECT count(*) FROM lease WHERE end_kind = 'closed'";
    assert_eq!(store.query_row(closed, [], |row| row.get::<_, i64>(0)).expect("a count"), 1);
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_the_command_and_its_lease_is_closed() {
    with_leases(async |broker| {
        for (name, code) in [("TERM", 143), ("INT", 130), ("HUP", 129), ("USR1", 138)] {
            let mut talking = Talking::start(exec(broker, broker.grpc_address(), &["--target", "vertex"], SHELL));
            assert_eq!(talking.says("echo ready").await, "ready");
            signal(name, talking.child.id());
            let mut child = talking.child;
            // Waiting would close it, and the command end with it.
            let _input = child.stdin.take();
            let status = tokio::task::spawn_blocking(move || child.wait()).await.expect("no panic").expect("an end");
            assert_eq!(status.code(), Some(code), "{name}");
        }
        // One that the command handles does not end it.
        let mut talking = Talking::start(exec(broker, broker.grpc_address(), &["--target", "vertex"], SHELL));
        assert_eq!(talking.says("trap 'echo caught' USR2; echo ready").await, "ready");
        signal("USR2", talking.child.id());
        assert_eq!(talking.says("true").await, "caught");
        assert_eq!(talking.end().await.status.code(), Some(0));
        eventually("the end of every lease", async || states(broker).await == vec!["closed"; 5]).await;
    })
    .await;
}

/// Says so where it is not.
pub fn can_be_another_user() -> bool {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| text(&output.stdout).trim() == "0");
    let can = Command::new("setpriv").args(["--reuid", "65534", "--clear-groups", "true"]).output();
    let can = is_root && can.is_ok_and(|output| output.status.success());
    if !can {
        // Past the harness, which keeps what a test that succeeds prints to itself.
        std::io::stderr().write_all(b"LEFT OUT: only root can become another user\n").expect("said");
    }
    can
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_turned_away() {
    if !can_be_another_user() {
        return;
    }
    with_leases(async |broker| {
        let stranger = format!("setpriv --reuid 65534 --clear-groups {STATUS}; {STATUS}");
        let output = done(broker, &["--target", "vertex"], &stranger).await;
        assert_eq!(text(&output.stdout), "403\n200\n", "{}", text(&output.stderr));
    })
    .await;
}

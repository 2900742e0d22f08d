//! docker: the protocol of docker-credential-helpers, and a real docker against a stand-in of a registry.

use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use axum::Form;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::middleware::map_response;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::server::Server;
use super::{as_runner, credential, has, linked_as, path_with, run_with, token_of, with_tools};
use crate::command_line::{run, text};
use crate::support::{Broker, TENANT};

const NOT_FOUND: &str = "credentials not found in native keychain\n";
const REFRESH_TOKEN: &str = "a-refresh-token-of-the-registry-that-nobody-else-sees";

/// A form's fields.
type Sent = Vec<(String, String)>;

/// What the registry was sent: the forms of exchanges, and user names with passwords.
#[derive(Clone, Default)]
struct Seen {
    exchanges: Arc<Mutex<Vec<Sent>>>,
    logins: Arc<Mutex<Vec<String>>>,
    refuses: Arc<Mutex<Option<Response>>>,
}

/// Answers whoever shows a user name and a password, and trades Entra tokens as Azure's registries do.
async fn registry() -> (Server, Seen) {
    let exchange = async |State(seen): State<Seen>, Form(form): Form<Sent>| {
        seen.exchanges.lock().expect("no panic").push(form);
        let refusal = seen.refuses.lock().expect("no panic").take();
        refusal.unwrap_or_else(|| axum::Json(json!({"refresh_token": REFRESH_TOKEN})).into_response())
    };
    let images = async |State(seen): State<Seen>, headers: HeaderMap, uri: Uri| {
        let Some(shown) = headers.get("authorization").and_then(|value| value.to_str().ok()) else {
            return (StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic realm=\"images\"")]).into_response();
        };
        let login = BASE64_STANDARD.decode(shown.trim_start_matches("Basic ")).unwrap_or_default();
        seen.logins.lock().expect("no panic").push(text(&login));
        if !uri.path().contains("/manifests/") {
            return axum::Json(json!({})).into_response();
        }
        let manifest = "application/vnd.docker.distribution.manifest.v2+json";
        let digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        let config =
            json!({"mediaType": "application/vnd.docker.container.image.v1+json", "size": 2, "digest": digest});
        let body = json!({"schemaVersion": 2, "mediaType": manifest, "config": config, "layers": []});
        ([("content-type", manifest)], body.to_string()).into_response()
    };
    let seen = Seen::default();
    // docker 20 speaks to nobody who does not say so.
    let version = async |mut answer: Response| {
        answer.headers_mut().insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
        answer
    };
    let router = axum::Router::new().route("/oauth2/exchange", post(exchange)).fallback(images);
    let router = router.layer(map_response(version));
    (Server::start(router.with_state(seen.clone())).await, seen)
}

async fn get(broker: &Broker, hosts: &str, server: &str) -> Output {
    let mut command = credential(broker, &["docker", "get"]);
    command.env("CARNET_HOSTS", hosts);
    run_with(command, server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn artifact_registry_gets_an_access_token_and_azures_registries_one_of_their_own() {
    with_tools(async |broker| {
        broker.is_secret(REFRESH_TOKEN);
        let google = token_of(broker, "vertex").await;
        let output = get(broker, "*.pkg.dev=vertex,other.example=azure-ml", "https://us-docker.pkg.dev/v1/\n").await;
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let server = "https://us-docker.pkg.dev/v1/";
        assert_eq!(answer, json!({"ServerURL": server, "Username": "oauth2accesstoken", "Secret": google}));
        assert_eq!(text(&output.stderr), "");

        let (registry, seen) = registry().await;
        let host = registry.host();
        let output = get(broker, &format!("{host}=azure-ml"), &host).await;
        let answer: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stdout)));
        let user = "00000000-0000-0000-0000-000000000000";
        assert_eq!(answer, json!({"ServerURL": host, "Username": user, "Secret": REFRESH_TOKEN}));
        let azure = token_of(broker, "azure-ml").await;
        let sent = [("grant_type", "access_token"), ("service", &host), ("tenant", TENANT), ("access_token", &azure)];
        let sent = sent.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(*seen.exchanges.lock().expect("no panic"), [sent]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_stand_on_standard_output_with_exit_code_1() {
    with_tools(async |broker| {
        let (registry, seen) = registry().await;
        let host = registry.host();
        let azure = format!("{host}=azure-ml");
        let large = "x".repeat(70_000);
        for (hosts, server, said) in [
            ("", "us-docker.pkg.dev", NOT_FOUND),
            ("a.example=vertex", "us-docker.pkg.dev", NOT_FOUND),
            ("*.pkg.dev=vertex", "https://index.docker.io/v1/", NOT_FOUND),
            ("*.pkg.dev=vertex", "pkg.dev.example.com", NOT_FOUND),
            ("*.pkg.dev=vertex", "", "is no host"),
            ("*.pkg.dev=vertex", "https://me:word@us-docker.pkg.dev", "is no host"),
            ("*.pkg.dev=vertex", "http://us-docker.pkg.dev", "without TLS"),
            ("*.pkg.dev=vertex", &large, "has more than 65536 bytes"),
            ("*.pkg.dev=no-such-target", "us-docker.pkg.dev", "denied (DENIED, exchange "),
        ] {
            let output = get(broker, hosts, server).await;
            let shown = text(&output.stdout);
            assert!(shown.contains(said), "{server}: {shown}");
            assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), ""), "{server}");
        }
        for (answer, said) in [
            ((StatusCode::UNAUTHORIZED, "{}".to_owned()), "refuses the target's Entra token (HTTP 401)"),
            ((StatusCode::OK, "{}".to_owned()), "without a refresh token"),
            ((StatusCode::OK, large.clone()), "did not answer"),
            ((StatusCode::FOUND, String::new()), "(HTTP 302)"),
        ] {
            *seen.refuses.lock().expect("no panic") = Some(answer.into_response());
            let output = get(broker, &azure, &host).await;
            assert!(text(&output.stdout).contains(said), "{}", text(&output.stdout));
            assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(1), ""));
        }
        let mut away = credential(broker, &["docker", "get", "--host", "a.example=vertex"]);
        away.env("CARNET_ADDRESS", "http://127.0.0.1:1");
        let output = run_with(away, "a.example").await;
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stdout).contains("is it running"), "{}", text(&output.stdout));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stored_and_the_hosts_that_are_named_are_listed() {
    with_tools(async |broker| {
        for action in ["store", "erase"] {
            let output = run_with(credential(broker, &["docker", action]), "us-docker.pkg.dev").await;
            assert_eq!(output.status.code(), Some(1));
            assert!(text(&output.stdout).starts_with("carnet keeps no credentials"), "{}", text(&output.stdout));
        }
        let hosts =
            ["--host", "us-docker.pkg.dev=vertex", "--host", "*.gcr.io=vertex", "--host", "a.azurecr.io=azure-ml"];
        let mut command = credential(broker, &["docker"]);
        command.args(hosts).arg("list");
        let output = run_with(command, "").await;
        let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(listed, json!({"https://us-docker.pkg.dev": "vertex", "https://a.azurecr.io": "azure-ml"}));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_itself_gets_images_and_says_why_it_cannot_log_in() {
    if !has("docker") {
        return;
    }
    with_tools(async |broker| {
        broker.is_secret(REFRESH_TOKEN);
        let (registry, seen) = registry().await;
        let host = registry.host();
        let links = linked_as("docker-credential-carnet");
        let home = tempfile::tempdir().expect("a folder");
        std::fs::write(home.path().join("config.json"), json!({"credHelpers": {&host: "carnet"}}).to_string())
            .expect("written");
        let docker = |target: &str, arguments: &[&str]| {
            let mut command = Command::new("docker");
            command.args(arguments).env("DOCKER_CONFIG", home.path()).env("HOME", home.path());
            command.env("PATH", path_with(links.path())).env("CARNET_HOSTS", format!("{host}={target}"));
            // No engine: what is asked here needs none.
            command.env("DOCKER_HOST", "tcp://127.0.0.1:1").env_remove("HTTPS_PROXY").env_remove("https_proxy");
            as_runner(broker, &mut command);
            run(command)
        };
        let image = format!("{host}/models/vision:1");
        let inspect = ["manifest", "inspect", "--insecure", &image];
        for (target, user) in [("vertex", "oauth2accesstoken"), ("azure-ml", "00000000-0000-0000-0000-000000000000")] {
            let output = docker(target, &inspect).await;
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert!(text(&output.stdout).contains("schemaVersion"), "{}", text(&output.stdout));
            let password = match target {
                "vertex" => token_of(broker, target).await,
                _ => REFRESH_TOKEN.to_owned(),
            };
            let logins = std::mem::take(&mut *seen.logins.lock().expect("no panic"));
            assert!(!logins.is_empty() && logins.iter().all(|login| *login == format!("{user}:{password}")));
        }
        let output = docker("no-such-target", &inspect).await;
        assert!(!output.status.success());
        assert_eq!(*seen.logins.lock().expect("no panic"), Vec::<String>::new());
        let output = docker("vertex", &["login", "--username", "me", "--password", "word", &host]).await;
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains("carnet keeps no credentials"), "{}", text(&output.stderr));
    })
    .await;
}

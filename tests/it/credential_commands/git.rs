//! git: its credential protocol, and a real git against a stand-in of a host.

use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::server::Server;
use super::{as_runner, credential, has, linked_as, path_with, run_with, token_of, with_tools};
use crate::command_line::{run, text};
use crate::support::Broker;

async fn git(broker: &Broker, arguments: &[&str], input: &str) -> Output {
    let mut command = credential(broker, &["git"]);
    command
        .args(arguments)
        .env("CARNET_HOSTS", "dev.azure.com=azure-ml,127.0.0.1:8080=vertex,a.example=no-such-target");
    run_with(command, input).await
}

#[tokio::test(flavor = "multi_thread")]
async fn azures_token_is_a_bearer_token_where_git_takes_one_and_a_password_elsewhere() {
    with_tools(async |broker| {
        let (azure, google) = (token_of(broker, "azure-ml").await, token_of(broker, "vertex").await);
        let asked = "protocol=https\nhost=dev.azure.com\nwwwauth[]=Bearer\nwwwauth[]=Basic realm=\"x\"\n";
        for (input, expected) in [
            (
                format!("capability[]=authtype\ncapability[]=state\n{asked}\n"),
                format!(
                    "capability[]=authtype\nauthtype=Bearer\ncredential={azure}\nephemeral=1\npassword_expiry_utc="
                ),
            ),
            (format!("{asked}\n"), format!("username=carnet\npassword={azure}\npassword_expiry_utc=")),
            (
                "capability[]=authtype\nprotocol=http\nhost=127.0.0.1:8080\n".to_owned(),
                format!("username=oauth2accesstoken\npassword={google}\npassword_expiry_utc="),
            ),
        ] {
            let output = git(broker, &["get"], &input).await;
            let shown = text(&output.stdout);
            let expiry = shown.strip_prefix(&expected).unwrap_or_else(|| panic!("{}", text(&output.stderr)));
            assert!(expiry.trim().parse::<u64>().is_ok(), "{expiry}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_ours_to_answer_is_left_to_others_and_a_denial_ends_it() {
    with_tools(async |broker| {
        for (arguments, input, code, shown, said) in [
            (&["get"][..], "protocol=https\nhost=github.com\n\n", 0, "", ""),
            (&["get"], "protocol=https\n\n", 0, "", ""),
            (&["get"], "protocol=http\nhost=dev.azure.com\n\n", 0, "", "use https://"),
            (&["get"], "protocol=ssh\nhost=dev.azure.com\n\n", 0, "", "use https://"),
            (&["get"], "protocol=https\nhost=a.example\n\n", 3, "quit=1\n", "denied (DENIED, exchange "),
            (&["get", "--address", "http://127.0.0.1:1"], "protocol=https\nhost=a.example\n\n", 5, "", "is it running"),
            (&["get"], "protocol=https\nhost\n\n", 1, "", "not key=value"),
            (&["get"], "protocol=https\nhost=dev.azure.com\0\n\n", 1, "", "control character"),
            (&["store"], "protocol=https\nhost=dev.azure.com\nusername=a\npassword=b\n\n", 0, "", ""),
            (&["erase"], "protocol=https\nhost=dev.azure.com\n\n", 0, "", ""),
            (&["something-new"], "", 0, "", ""),
            (&["capability"], "", 0, "version 0\ncapability authtype\n", ""),
        ] {
            let output = git(broker, arguments, input).await;
            assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(code), shown), "{input:?}");
            assert!(text(&output.stderr).contains(said), "{input:?}: {}", text(&output.stderr));
            assert!(!said.is_empty() || output.stderr.is_empty(), "{input:?}: {}", text(&output.stderr));
        }
        let output = git(broker, &["get"], &"x=y\n".repeat(20_000)).await;
        assert_eq!(output.status.code(), Some(1));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn git_itself_lists_a_repository_with_the_targets_token_and_stops_at_a_denial() {
    if !has("git") {
        return;
    }
    with_tools(async |broker| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let keep = seen.clone();
        let commit = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        let repository = async move |headers: HeaderMap, uri: Uri| {
            let Some(shown) = headers.get("authorization").and_then(|value| value.to_str().ok()) else {
                return (StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic realm=\"code\"")]).into_response();
            };
            keep.lock().expect("no panic").push(shown.to_owned());
            match uri.path() {
                "/models.git/info/refs" => format!("{commit}\trefs/heads/main\n").into_response(),
                "/models.git/HEAD" => "ref: refs/heads/main\n".into_response(),
                _ => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let server = Server::start(axum::Router::new().fallback(repository)).await;
        let url = format!("http://{}/models.git", server.host());
        let links = linked_as("git-credential-carnet");
        let home = tempfile::tempdir().expect("a folder");
        let list = |target: &str| {
            let mut command = Command::new("git");
            command.args(["-c", "credential.helper=", "-c", "credential.helper=carnet", "ls-remote", &url]);
            command.env("PATH", path_with(links.path())).env("HOME", home.path()).env("GIT_CONFIG_NOSYSTEM", "1");
            command.env("CARNET_HOSTS", format!("{}={target}", server.host())).env("GIT_TERMINAL_PROMPT", "0");
            command.env_remove("http_proxy").env_remove("HTTP_PROXY").current_dir(home.path());
            as_runner(broker, &mut command);
            run(command)
        };
        for target in ["vertex", "azure-ml"] {
            let output = list(target).await;
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert!(text(&output.stdout).contains(&format!("{commit}\trefs/heads/main")), "{}", text(&output.stdout));
            let token = token_of(broker, target).await;
            let user = if target == "vertex" { "oauth2accesstoken" } else { "carnet" };
            let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{token}")));
            // What git 2.46 and later make of Azure's.
            let bearer = format!("Bearer {token}");
            let shown = std::mem::take(&mut *seen.lock().expect("no panic"));
            assert!(!shown.is_empty() && shown.iter().all(|shown| *shown == basic || *shown == bearer));
        }
        let output = list("no-such-target").await;
        assert!(!output.status.success());
        let said = text(&output.stderr);
        assert!(said.contains("git-credential-carnet: denied (DENIED") && said.contains("told us to quit"), "{said}");
        assert_eq!(*seen.lock().expect("no panic"), Vec::<String>::new());
    })
    .await;
}

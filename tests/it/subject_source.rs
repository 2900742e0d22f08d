//! Where the client's Entra token comes from, with the real program, the stand-ins and a real broker that judges it.

mod keyring;
mod login;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use carnet::sandbox::{AssignedIdentity, FederatedCredential, Identity, ManagedIdentity, OidcIssuer};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::command_line::{carnet, run, text};
use crate::support::{AUDIENCE, Broker, RUNNER, Setup, TENANT, with_broker, with_setup};
use crate::tls::Authority;

const APP: &str = "88888888-8888-8888-8888-888888888888";
const MACHINE: &str = "99999999-9999-9999-9999-999999999999";

/// Any service principal may, because managed identities have no roles here.
const RULES: &str = "
rules:
  - name: training
    targets: [vertex]
    subject: { kinds: [service_principal, managed_identity] }
    max_lifetime: 1h
";

fn open_to_machines() -> Setup {
    Setup { rules: Some(RULES), ..Setup::default() }
}

/// `carnet exchange` in an empty environment but for these variables.
fn exchange(broker: &Broker, variables: &[(&str, &str)]) -> Command {
    let mut command = carnet(&["exchange", "--target", "vertex", "--output", "token"]);
    command.env_clear().env("CARNET_ADDRESS", broker.grpc_address()).envs(variables.iter().copied());
    command
}

async fn succeeds(broker: &Broker, variables: &[(&str, &str)]) {
    let output = run(exchange(broker, variables)).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(broker.google.check(text(&output.stdout).trim()).is_some());
    broker.is_secret(text(&output.stdout).trim());
    assert_eq!(text(&output.stderr), "");
}

async fn fails(broker: &Broker, variables: &[(&str, &str)], code: i32, said: &str) {
    let output = run(exchange(broker, variables)).await;
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(said), "{said} is not in {}", text(&output.stderr));
}

fn executable(path: &Path, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, script).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).expect("changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clusters_projected_token_buys_one_that_the_broker_accepts() {
    with_setup(open_to_machines(), async |broker| {
        let cluster = OidcIssuer::start().await.expect("a cluster");
        broker.entra.register(Identity::app(TENANT, APP, RUNNER));
        let subject = "system:serviceaccount:ml:trainer";
        broker.entra.trust(APP, FederatedCredential::new(cluster.issuer(), subject)).expect("trusted");
        let now = carnet::clock::unix_seconds(carnet::clock::Clock::now(&carnet::clock::SystemClock));
        let assertion = |subject: &str| {
            cluster.sign(&json!({
                "iss": cluster.issuer(), "sub": subject, "aud": "api://AzureADTokenExchange",
                "iat": now, "nbf": now, "exp": now + 3600,
            }))
        };
        let file = broker.folder.path().join("azure-identity-token");
        std::fs::write(&file, format!("{}\n", assertion(subject))).expect("written");
        let path = file.to_str().expect("a path");
        let mut variables = vec![
            ("AZURE_FEDERATED_TOKEN_FILE", path),
            ("AZURE_CLIENT_ID", APP),
            ("AZURE_TENANT_ID", TENANT),
            ("AZURE_AUTHORITY_HOST", broker.entra.authority()),
            ("CARNET_AUDIENCE", AUDIENCE),
        ];
        succeeds(broker, &variables).await;
        // The kubelet replaces the file: it is read anew.
        let other = assertion("system:serviceaccount:ml:other");
        std::fs::write(&file, &other).expect("written");
        fails(broker, &variables, 4, "workload-identity: AADSTS700213: ").await;
        std::fs::remove_file(&file).expect("removed");
        fails(broker, &variables, 1, "azure-identity-token cannot be read").await;
        variables.retain(|(name, _value)| *name != "CARNET_AUDIENCE");
        fails(broker, &variables, 2, "set CARNET_AUDIENCE").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machines_managed_identity_is_asked_in_each_of_its_protocols() {
    with_setup(open_to_machines(), async |broker| {
        let host = ManagedIdentity::start(&broker.entra, TENANT).await.expect("a host");
        let identity = |client_id: &str| AssignedIdentity {
            client_id: client_id.to_owned(),
            object_id: RUNNER.to_owned(),
            resource_id: format!(
                "/subscriptions/{APP}/resourcegroups/ml/providers/Microsoft.ManagedIdentity/userAssignedIdentities/ml"
            ),
        };
        host.assign(identity(MACHINE));
        let (endpoint, msi) = (host.identity_endpoint(), host.msi_endpoint());
        let audience = ("CARNET_AUDIENCE", AUDIENCE);
        let app_service =
            [("IDENTITY_ENDPOINT", endpoint.as_str()), ("IDENTITY_HEADER", host.identity_header()), audience];
        let machine_learning = [("MSI_ENDPOINT", msi.as_str()), ("MSI_SECRET", host.identity_header()), audience];
        let imds = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", host.imds_endpoint()), audience];
        for variables in [app_service, machine_learning] {
            succeeds(broker, &variables).await;
        }
        succeeds(broker, &imds).await;
        host.update(1);
        succeeds(broker, &imds).await;
        fails(broker, &[app_service[0], ("IDENTITY_HEADER", "wrong"), audience], 4, "IDENTITY_HEADER").await;
        host.assign(identity(APP));
        fails(broker, &imds, 4, "set AZURE_CLIENT_ID to one").await;
        fails(broker, &[imds[0], ("AZURE_CLIENT_ID", "none"), audience], 4, "no identity with the client id none")
            .await;
        let named = [("DEFAULT_IDENTITY_CLIENT_ID", MACHINE), machine_learning[0], machine_learning[1], audience];
        succeeds(broker, &named).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn az_is_asked_for_the_brokers_audience_and_its_words_carry_no_token() {
    with_broker(async |broker| {
        let token = broker.signed(&broker.runner());
        let folder = broker.folder.path().join("bin");
        std::fs::create_dir(&folder).expect("a folder");
        let (az, path) = (folder.join("az"), format!("{}:/usr/bin:/bin", folder.display()));
        let arguments = folder.join("arguments");
        // As az answers; the token is in the environment only, so that no file holds it.
        let script = format!(
            "#!/bin/sh\nprintf '%s ' \"$@\" > '{}'\nprintf '{{\"accessToken\":\"%s\",\"expiresOn\":\"2026-01-01 00:00:00.0\",\
             \"tokenType\":\"Bearer\"}}' \"$TOKEN_OF_AZ\"\n",
            arguments.display()
        );
        executable(&az, &script);
        let variables = [("PATH", path.as_str()), ("TOKEN_OF_AZ", &token), ("CARNET_AUDIENCE", AUDIENCE)];
        // The machine may be one with a metadata service.
        let named = [("CARNET_SUBJECT_SOURCE", "azure-cli")];
        let with = |more: &[(&'static str, &'static str)]| [&variables[..], &named, more].concat();
        succeeds(broker, &with(&[])).await;
        assert_eq!(
            std::fs::read_to_string(&arguments).expect("arguments"),
            format!("account get-access-token --scope {AUDIENCE}/.default --output json ")
        );
        let refusing = "#!/bin/sh\necho \"ERROR: AADSTS700082: it ended. $TOKEN_OF_AZ To re-authenticate, run: az login\" >&2\nexit 1\n";
        executable(&az, refusing);
        let output = run(exchange(broker, &with(&[]))).await;
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(said.contains("AADSTS700082") && said.contains("az login"), "{said}");
        assert!(!said.contains(token.rsplit('.').next().expect("a signature")), "a token is in {said}");
        std::fs::remove_file(&az).expect("removed");
        fails(broker, &[("PATH", folder.to_str().expect("text")), named[0], variables[2]], 2, "no az on the PATH").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_source_each_is_listed() {
    with_broker(async |broker| {
        let output: Output = run(exchange(broker, &[])).await;
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        for name in ["file", "environment", "workload-identity", "login", "managed-identity", "azure-cli"] {
            assert!(said.contains(&format!("\n  {name} ")), "{name} is not in {said}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_is_read_once_and_a_changed_file_each_time() {
    with_broker(async |broker| {
        let token = broker.signed(&broker.runner());
        let source = carnet::subject_source::SubjectSource::new(carnet::subject_source::Settings {
            token_file: Some(broker.folder.path().join("token")),
            ..Default::default()
        });
        for text in ["first", "second"] {
            std::fs::write(broker.folder.path().join("token"), text).expect("written");
            assert_eq!(source.token().await.expect("a token").expose(), text);
        }
        // A socket, as Node.js has it, which no path opens.
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().expect("two ends");
        let mut command = exchange(broker, &[]);
        command.args(["--subject-token-file", "-"]).stdin(std::os::fd::OwnedFd::from(theirs));
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let child = command.spawn().expect("a process");
        drop(command);
        std::io::Write::write_all(&mut ours, token.as_bytes()).expect("written");
        drop(ours);
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.expect("no panic");
        let output = output.expect("an end");
        assert!(output.status.success(), "{}", text(&output.stderr));
        broker.is_secret(text(&output.stdout).trim());
    })
    .await;
}

/// `https://localhost:PORT` in front of a plain stand-in.
async fn behind_tls(authority: &Authority, plain: &str) -> String {
    let (certificate, key) = authority.issue("localhost");
    let chain =
        CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>().expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("a server");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://localhost:{}", listener.local_addr().expect("an address").port());
    let plain = plain.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _peer)) = listener.accept().await {
            let (acceptor, plain) = (acceptor.clone(), plain.clone());
            tokio::spawn(async move {
                let mut behind = TcpStream::connect(plain).await.expect("the stand-in");
                // A client that does not trust us hangs up.
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
                }
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn entra_is_trusted_by_the_same_authorities_as_the_broker() {
    with_setup(open_to_machines(), async |broker| {
        let cluster = OidcIssuer::start().await.expect("a cluster");
        broker.entra.register(Identity::app(TENANT, APP, RUNNER));
        broker.entra.trust(APP, FederatedCredential::new(cluster.issuer(), "sub")).expect("trusted");
        let now = carnet::clock::unix_seconds(carnet::clock::Clock::now(&carnet::clock::SystemClock));
        let claims = json!({
            "iss": cluster.issuer(), "sub": "sub", "aud": "api://AzureADTokenExchange",
            "iat": now, "nbf": now, "exp": now + 3600,
        });
        let file = |name: &str, text: &str| {
            let path = broker.folder.path().join(name);
            std::fs::write(&path, text).expect("written");
            path.to_str().expect("text").to_owned()
        };
        let authority = Authority::new();
        let (token, ca) = (file("projected", &cluster.sign(&claims)), file("extra-ca.pem", &authority.pem()));
        let entra = behind_tls(&authority, broker.entra.authority()).await;
        let variables = [
            ("AZURE_FEDERATED_TOKEN_FILE", token.as_str()),
            ("AZURE_CLIENT_ID", APP),
            ("AZURE_TENANT_ID", TENANT),
            ("AZURE_AUTHORITY_HOST", &entra),
            ("CARNET_AUDIENCE", AUDIENCE),
        ];
        succeeds(broker, &[&variables[..], &[("CARNET_CA_FILE", &ca)]].concat()).await;
        fails(broker, &variables, 5, "workload-identity: no answer that helps: could not connect").await;
    })
    .await;
}

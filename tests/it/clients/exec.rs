//! The libraries as the command of a real `carnet exec`, and beside a real `carnet agent`.

use std::process::{Command, Stdio};

use tokio::net::TcpStream;

use super::front::{HEADER, Way};
use super::program::{AZURE, GOOGLE};
use super::world::World;
use crate::command_line::signal;
use crate::support::{eventually, free_port};

#[tokio::test(flavor = "multi_thread")]
async fn every_library_finds_its_credentials_as_the_command_of_exec() {
    let world = World::start().await;
    let google = GOOGLE.iter().map(|program| (program, &[][..]));
    let azure = AZURE.iter().map(|program| (program, &["default"][..]));
    let mut clients = Vec::new();
    for (program, arguments) in google.chain(azure).filter(|(program, _)| program.is_installed()) {
        program.say_run("carnet exec");
        let mut command = Command::new(env!("CARGO_BIN_EXE_carnet"));
        command.args(["exec", "--target", "bucket", "--target", "blobs", "--"]);
        let mut environment = world.environment();
        environment.push(("CARNET_ADDRESS", world.broker.grpc_address().to_owned()));
        environment.push(("CARNET_SUBJECT_TOKEN_FILE", world.entra_token().display().to_string()));
        // For Google's library for Python, which wants to know of a project.
        environment.push(("GOOGLE_CLOUD_PROJECT", "ml-prod".to_owned()));
        clients.push(program.start_under(command, arguments, world.home(), &environment));
    }
    for mut client in clients {
        client.must_call();
        client.end();
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_library_waits_for_an_agent_that_has_just_been_started_and_gets_its_credentials_there() {
    let world = World::start().await;
    let (address, grpc) = (format!("127.0.0.1:{}", free_port()), world.broker.grpc_address());
    let config = world.home().join("agent.yaml");
    let token = world.entra_token();
    let file = format!(
        "\
listen: '{address}'
broker: {{ address: '{grpc}' }}
subject: {{ token_file: '{}' }}
targets: [{{ target: bucket }}, {{ target: blobs }}]
azure: {{ identity_header: {HEADER} }}
",
        token.display()
    );
    std::fs::write(&config, file).expect("written");
    let mut agent = Command::new(env!("CARGO_BIN_EXE_carnet"));
    let agent = agent.arg("agent").arg("--config").arg(&config).stderr(Stdio::null());
    let mut agent = agent.spawn().expect("a process");
    eventually("a listener", async || TcpStream::connect(&address).await.is_ok()).await;
    let google = GOOGLE.iter().map(|program| (program, Way::GoogleMetadata, &[][..]));
    let azure = AZURE.iter().map(|program| (program, Way::AppService, &["default"][..]));
    let mut clients = Vec::new();
    for (program, way, arguments) in google.chain(azure).filter(|(program, ..)| program.is_installed()) {
        program.say_run("carnet agent");
        let mut environment = world.environment();
        environment.extend(way.environment(&address));
        environment.push(("GOOGLE_CLOUD_PROJECT", "ml-prod".to_owned()));
        clients.push(program.start(arguments, world.home(), &environment));
    }
    for mut client in clients {
        client.must_call();
        client.end();
    }
    signal("TERM", agent.id());
    assert!(agent.wait().expect("an end").success());
    world.end().await;
}

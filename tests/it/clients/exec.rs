//! The libraries as the command of a real `carnet exec`.

use std::process::Command;

use super::program::{AZURE, GOOGLE};
use super::world::World;

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

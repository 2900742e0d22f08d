//! Google's libraries with the files that `carnet credential google-config` writes, whose command is `carnet` itself.

use std::process::Command;

use super::program::GOOGLE;
use super::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn googles_libraries_run_the_command_and_exchange_at_the_broker() {
    let world = World::start().await;
    let account = written(&world, &["--http-address", &world.broker_tls]);
    every_library_calls(&world, &account, "executable, by the broker");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn googles_libraries_run_the_command_and_redeem_the_assertion_at_google() {
    let world = World::start().await;
    let google =
        ["--via", "google", "--sts-endpoint", &world.google_tls, "--iam-credentials-endpoint", &world.google_tls];
    let account = written(&world, &google);
    every_library_calls(&world, &account, "executable, at Google");
    world.end().await;
}

fn written(world: &World, arguments: &[&str]) -> String {
    let path = world.home().join("google.json").display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_carnet"));
    command.args(["credential", "google-config", "--target", "bucket", "--output", &path]).args(arguments);
    let output = tokio::task::block_in_place(|| command.envs(carnet(world)).output()).expect("a run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

fn carnet(world: &World) -> [(&'static str, String); 2] {
    [
        ("CARNET_ADDRESS", world.broker.grpc_address().to_owned()),
        ("CARNET_SUBJECT_TOKEN_FILE", world.entra_token().display().to_string()),
    ]
}

fn every_library_calls(world: &World, account: &str, way: &str) {
    let mut environment = world.environment();
    environment.extend(carnet(world));
    environment.push(("GOOGLE_APPLICATION_CREDENTIALS", account.to_owned()));
    environment.push(("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES", "1".to_owned()));
    environment.push(("GOOGLE_CLOUD_PROJECT", "ml-prod".to_owned()));
    for program in GOOGLE.iter().filter(|program| program.is_installed()) {
        program.say_run(way);
        let mut client = program.start(&[], world.home(), &environment);
        client.must_call();
        let token = world.google_token();
        assert!(world.broker.google.check(&token).is_some_and(|info| info.service_account.is_some()), "{program}");
        client.end();
    }
}

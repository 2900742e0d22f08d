//! Google's libraries with an `external_account` file whose `token_url` is the broker's token endpoint.

use std::time::Duration;

use carnet::sandbox::Fault;
use serde_json::json;

use super::program::{Client, GOOGLE, Program};
use super::world::World;
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn googles_libraries_exchange_at_the_broker_and_survive_a_refresh_and_its_restart() {
    let mut world = World::start().await;
    let mut first = Vec::new();
    for client in &mut start(&world) {
        client.must_call();
        client.program.say_run("external_account");
        first.push(world.google_token());
    }
    let Some(token) = first.first() else { return };
    // Nothing better can be had, so the broker hands out what it holds; libraries call that stale and ask each time.
    world.broker.google.faults().always("/v1/token", Fault::Drop);
    world.leave_of_google(token, Duration::from_secs(200));
    let mut clients = start(&world);
    for (client, token) in clients.iter_mut().zip(&first) {
        client.must_call();
        assert_eq!(world.google_token(), *token, "{}", client.program);
    }
    world.broker.google.faults().clear("/v1/token");
    // A failure is remembered for some seconds.
    world.advance(Duration::from_secs(30));
    let mut renewed = Vec::new();
    for (client, token) in clients.iter_mut().zip(&first) {
        let what = format!("another token for {}", client.program);
        // This one asks again in the last ten seconds only, and the broker hands out nothing that is so old.
        let keeps = client.program.library == "golang.org/x/oauth2";
        eventually(&what, async || {
            client.must_call();
            (world.google_token() != *token) != keeps
        })
        .await;
        renewed.push(world.google_token());
    }
    // While their tokens are good they do not notice that the broker is away.
    world.broker.stop().await;
    for (client, token) in clients.iter_mut().zip(&renewed) {
        client.must_call();
        assert_eq!(world.google_token(), *token, "{}", client.program);
    }
    world.broker.start_again().await;
    for client in &mut start(&world) {
        client.must_call();
        assert!(!renewed.contains(&world.google_token()), "{}", client.program);
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn googles_library_for_java_wants_https() {
    let world = World::start().await;
    for program in installed().filter(|program| program.language == "java") {
        let error = start_with(&world, program, &world.broker.http).call().expect_err("refused");
        assert!(error.contains("The provided token URL is invalid"), "{error}");
    }
    world.end().await;
}

fn installed() -> impl Iterator<Item = &'static Program> {
    GOOGLE.iter().filter(|program| program.is_installed())
}

fn start(world: &World) -> Vec<Client> {
    let url = |program: &Program| if program.language == "java" { &world.broker_tls } else { &world.broker.http };
    installed().map(|program| start_with(world, program, url(program))).collect()
}

fn start_with(world: &World, program: &Program, broker: &str) -> Client {
    let account = json!({
        "type": "external_account",
        "audience": "bucket",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{broker}/v1/token"),
        "credential_source": {"file": world.entra_token()},
    });
    let path = world.home().join(format!("{}.json", program.language));
    std::fs::write(&path, account.to_string()).expect("written");
    let mut environment = world.environment();
    environment.push(("GOOGLE_APPLICATION_CREDENTIALS", path.display().to_string()));
    environment.push(("GOOGLE_CLOUD_PROJECT", "ml-prod".to_owned()));
    program.start(&[], world.home(), &environment)
}

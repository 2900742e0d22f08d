//! Google's and Azure's libraries at the agent, in the test's own process: tokens, a refresh, an outage of the broker, a
//! refusal, a late start.

use std::time::Duration;

use super::front::{Front, Way};
use super::program::{AZURE, Client, GOOGLE, Program};
use super::world::{DAY, World};
use crate::support::eventually;

/// What can be pointed at the agent, and how. Azure's library for Go has no setting for the address of the instance
/// metadata service.
fn ways() -> impl Iterator<Item = (&'static Program, Way, &'static [&'static str])> {
    let google = GOOGLE.iter().map(|program| (program, Way::GoogleMetadata, &[][..]));
    let azure = AZURE.iter().flat_map(|program| {
        let both: [(Way, &[&str]); 3] = [
            (Way::AppService, &["default"]),
            (Way::AppService, &["managed-identity"]),
            (Way::InstanceMetadata, &["managed-identity"]),
        ];
        let is_possible = |(way, _): &(Way, &[&str])| *way != Way::InstanceMetadata || program.language != "go";
        both.into_iter().filter(is_possible).map(move |(way, arguments)| (program, way, arguments))
    });
    google.chain(azure).filter(|(program, ..)| program.is_installed())
}

/// Those that do not ask at each call for a token that is nearly over.
const PATIENT: [&str; 3] =
    ["go golang.org/x/oauth2", "go github.com/Azure/azure-sdk-for-go/sdk/azidentity", "java azure-identity"];

struct Caller {
    client: Client,
    way: Way,
}

impl Caller {
    /// Calls the API and gives the token that was shown there.
    fn call(&mut self, world: &World) -> String {
        self.client.must_call();
        match self.way {
            Way::GoogleMetadata => world.google_token(),
            Way::AppService | Way::InstanceMetadata => world.azure_token(),
        }
    }
}

/// The clients' own clocks are the machine's: Google's protocol says how long a token lives, Azure's when it ends. So
/// Azure's token is fetched nearly a day early. Libraries call a token stale, and ask at each call, when five minutes are
/// left of it or less; @azure/storage-blob holds on to its own copy until two are left, Azure's for Go and Java ask every
/// thirty seconds only, golang.org/x/oauth2 in the last ten seconds, with which the agent hands out none.
#[tokio::test(flavor = "multi_thread")]
async fn every_library_works_through_an_outage_of_the_broker_and_then_takes_the_new_token() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (azure_left, google_left) = (Duration::from_secs(100), Duration::from_secs(12));
    let mut world = World::start_before(DAY - azure_left).await;
    let (google, azure) = (Front::of(&world, "bucket").await, Front::of(&world, "blobs").await);
    azure.agent.warm_up().await;
    world.advance(DAY - azure_left - HOUR + google_left);
    google.agent.warm_up().await;
    world.broker.stop().await;
    world.advance(HOUR - google_left);

    let front = |way| if way == Way::GoogleMetadata { &google } else { &azure };
    let start = |(program, way, arguments): (&Program, Way, &[&str])| {
        program.say_run(&format!("agent, {way:?} {}", arguments.join(" ")));
        Caller { client: front(way).start(&world, program, way, arguments), way }
    };
    let mut callers: Vec<Caller> = ways().map(start).collect();
    let mut held = Vec::new();
    for caller in &mut callers {
        let first = caller.call(&world);
        let before = front(caller.way).requests();
        assert_eq!(caller.call(&world), first, "{}", caller.client.program);
        if !PATIENT.contains(&caller.client.program.to_string().as_str()) {
            // Some ask in the background.
            let what = format!("a request of {} by {:?}", caller.client.program, caller.way);
            eventually(&what, async || front(caller.way).requests() > before).await;
        }
        held.push(first);
    }

    world.broker.start_again().await;
    for (caller, held) in callers.iter_mut().zip(&held) {
        let mut current = caller.call(&world);
        for _ in 0..300 {
            if current != *held {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            current = caller.call(&world);
        }
        assert_ne!(current, *held, "{} by {:?}: no other token in a minute", caller.client.program, caller.way);
        // That one is fresh: nobody is asked any more.
        let before = front(caller.way).requests();
        assert_eq!(caller.call(&world), current, "{}", caller.client.program);
        assert_eq!(front(caller.way).requests(), before, "{} by {:?}", caller.client.program, caller.way);
    }
    drop(callers);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_that_is_denied_says_so_and_does_not_go_on_asking() {
    let world = World::start().await;
    for (program, way, arguments) in ways() {
        let front = Front::of(&world, "grouped").await;
        let mut client = front.start(&world, program, way, arguments);
        let error = client.call().expect_err("denied");
        assert!(!error.contains("ya29."), "{program}");
        assert!(front.requests() <= 10, "{program} by {way:?}: {} requests", front.requests());
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_waits_for_an_agent_that_is_not_ready_yet() {
    let mut world = World::start().await;
    for (program, way, arguments) in ways() {
        let target = if way == Way::GoogleMetadata { "bucket" } else { "blobs" };
        let front = Front::of(&world, target).await;
        let mut client = front.start(&world, program, way, arguments);
        world.broker.stop().await;
        client.ask();
        // It may take its time to start.
        for _ in 0..3000 {
            if front.requests() > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        world.broker.start_again().await;
        if let Err(error) = client.answer() {
            // It asks once, and tells its caller that another try may help. The agent holds a request for a while only.
            assert!(program.language == "java" && way == Way::GoogleMetadata, "{program}: {error}");
            assert!(error.contains("503"), "{error}");
            client.must_call();
        }
        assert!(front.requests() <= 20, "{program} by {way:?}: {} requests", front.requests());
    }
    world.end().await;
}

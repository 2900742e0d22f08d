use tokio::task::JoinSet;

use super::*;
use crate::agent::source::FakeCredentials;
use crate::clock::ManualClock;
use crate::secret::Secret;

const HOLD: Duration = Duration::from_secs(10);

struct World {
    source: Arc<FakeCredentials>,
    clock: ManualClock,
    held: Arc<Held>,
}

impl World {
    fn new() -> Self {
        let (source, clock) = (Arc::new(FakeCredentials::default()), ManualClock::start());
        let held = Held::new(source.clone(), Arc::new(clock.clone()));
        Self { source, clock, held }
    }

    fn vertex(&self, token: &str) -> Credential {
        Credential::google_for_test(token, "trainer@ml.iam.gserviceaccount.com", self.clock.now())
    }

    fn gives(&self, token: &str) {
        self.source.set(vertex(), Ok(self.vertex(token)));
    }

    fn refuses(&self, refusal: Refusal) {
        self.source.set(vertex(), Err(refusal));
    }

    async fn token(&self) -> Result<String, Kind> {
        let got = self.held.get(&vertex(), HOLD).await;
        got.map(|credential| credential.token.expose().to_owned()).map_err(|refusal| refusal.kind)
    }

    /// Both clocks.
    async fn passes(&self, time: Duration) {
        self.clock.advance(time);
        tokio::time::sleep(time).await;
    }
}

fn vertex() -> Wanted {
    Wanted::access_token("vertex")
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn w09_all_who_wait_share_one_call_and_the_next_ones_need_none() {
    let world = World::new();
    world.gives("one");
    world.source.takes(Duration::from_secs(3));
    let mut waiting = JoinSet::new();
    for _ in 0..100 {
        let held = world.held.clone();
        waiting.spawn(async move { held.get(&vertex(), HOLD).await.map(|credential| credential.token.sha256()) });
    }
    // One of them leaves.
    let _ = timeout(Duration::from_secs(1), world.held.get(&vertex(), HOLD)).await;
    let got = waiting.join_all().await;
    assert!(got.iter().all(Result::is_ok) && got.len() == 100);
    assert_eq!(world.token().await, Ok("one".to_owned()));
    assert_eq!(world.source.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn c01_a_first_request_is_held_until_the_broker_is_there_and_no_longer_than_it_wants() {
    let world = World::new();
    let began = Instant::now();
    assert!(matches!(
        world.held.get(&vertex(), Duration::from_millis(2500)).await,
        Err(Refusal { kind: Kind::Away(_), .. })
    ));
    assert!(began.elapsed() <= Duration::from_millis(2500));
    let asked = tokio::spawn({
        let held = world.held.clone();
        async move { held.get(&vertex(), HOLD).await }
    });
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.gives("late");
    assert_eq!(asked.await.expect("no panic").expect("a credential").token.expose(), "late");
    assert!(world.source.calls() < 12, "{} calls", world.source.calls());
}

#[tokio::test(start_paused = true)]
async fn w04_an_outage_is_not_noticed_while_the_credential_lives() {
    let world = World::new();
    world.gives("good");
    assert_eq!(world.token().await, Ok("good".to_owned()));
    world.refuses(Refusal::away("the broker is away"));
    for _ in 0..59 {
        world.passes(MINUTE).await;
        assert_eq!(world.token().await, Ok("good".to_owned()));
    }
    world.passes(2 * MINUTE).await;
    assert!(matches!(world.token().await, Err(Kind::Away(_))));
    world.gives("new");
    world.passes(MINUTE).await;
    assert_eq!(world.token().await, Ok("new".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn w05_refreshing_goes_on_after_any_number_of_failures() {
    let world = World::new();
    world.gives("good");
    assert_eq!(world.token().await, Ok("good".to_owned()));
    world.clock.advance(46 * MINUTE);
    world.refuses(Refusal::away("the broker is away"));
    for _ in 0..110 {
        assert_eq!(world.token().await, Ok("good".to_owned()));
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    assert!(world.source.calls() > 100, "{} calls", world.source.calls());
    world.gives("new");
    assert_eq!(world.token().await, Ok("good".to_owned()), "nobody waits for a refresh");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.token().await, Ok("new".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_clients_find_too_short_is_replaced_before_the_answer_unless_that_takes_long() {
    let world = World::new();
    world.gives("old");
    assert_eq!(world.token().await, Ok("old".to_owned()));
    world.passes(56 * MINUTE).await;
    world.gives("new");
    world.source.takes(Duration::from_millis(300));
    assert_eq!(world.token().await, Ok("new".to_owned()));
    world.passes(56 * MINUTE).await;
    world.gives("newest");
    world.source.takes(Duration::from_secs(5));
    let began = Instant::now();
    assert_eq!(world.token().await, Ok("new".to_owned()), "better than nothing");
    assert!(began.elapsed() <= SHORT_WAIT);
}

#[tokio::test(start_paused = true)]
async fn i15_a_denial_at_the_refresh_ends_what_is_held_and_a_failure_does_not() {
    let world = World::new();
    world.gives("good");
    assert_eq!(world.token().await, Ok("good".to_owned()));
    world.passes(46 * MINUTE).await;
    world.refuses(Refusal::failed("the subject token has expired"));
    for _ in 0..3 {
        assert_eq!(world.token().await, Ok("good".to_owned()));
        world.passes(Duration::from_secs(6)).await;
    }
    world.refuses(Refusal::denied("denied"));
    assert_eq!(world.token().await, Ok("good".to_owned()), "the refresh is under way");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(world.token().await, Err(Kind::Denied));
    assert!(world.held.last(&vertex()).is_some(), "what the target is stays known");
    world.gives("again");
    assert_eq!(world.token().await, Err(Kind::Denied), "remembered for seconds");
    world.passes(REFUSAL_MEMORY).await;
    assert_eq!(world.token().await, Ok("again".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn when_the_lease_has_ended_nothing_is_given_any_more() {
    let world = World::new();
    world.gives("good");
    assert_eq!(world.token().await, Ok("good".to_owned()));
    world.held.end(Refusal::denied("revoked"));
    assert_eq!(world.token().await, Err(Kind::Denied));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_a_client_found_bad_is_asked_for_anew_but_not_more_often_than_makes_sense() {
    let world = World::new();
    world.gives("bad");
    assert_eq!(world.token().await, Ok("bad".to_owned()));
    world.gives("better");
    world.passes(REFRESH_PAUSE).await;
    world.held.renew(&vertex(), &Secret::new("another").sha256()).await;
    assert_eq!(world.token().await, Ok("bad".to_owned()), "the client's is older than what is held");
    for _ in 0..50 {
        world.held.renew(&vertex(), &Secret::new("bad").sha256()).await;
        world.held.renew(&vertex(), &Secret::new("better").sha256()).await;
    }
    assert_eq!(world.token().await, Ok("better".to_owned()));
    assert_eq!(world.source.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn w17_id_tokens_of_ever_new_audiences_take_no_more_room() {
    let world = World::new();
    world.gives("access");
    assert_eq!(world.token().await, Ok("access".to_owned()));
    for number in 0..10 * MAX_SLOTS {
        let wanted = Wanted { id_token_audience: Some(format!("https://{number}")), ..vertex() };
        world.source.set(wanted.clone(), Ok(world.vertex("id")));
        assert!(world.held.get(&wanted, HOLD).await.is_ok());
    }
    assert!(world.held.slots().len() <= MAX_SLOTS);
    let calls = world.source.calls();
    assert_eq!(world.token().await, Ok("access".to_owned()));
    assert_eq!(world.source.calls(), calls, "a target's own credential stays");
}

#[tokio::test(start_paused = true)]
async fn c18_an_audience_never_gets_another_ones_token() {
    let world = World::new();
    world.gives("access");
    for audience in ["https://a", "https://b"] {
        let wanted = Wanted { id_token_audience: Some(audience.to_owned()), ..vertex() };
        world.source.set(wanted.clone(), Ok(world.vertex(audience)));
        assert_eq!(world.held.get(&wanted, HOLD).await.expect("one").token.expose(), audience);
    }
    assert_eq!(world.token().await, Ok("access".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn w04_an_outage_is_not_noticed_by_those_who_ask_only_when_theirs_is_nearly_over() {
    let world = World::new();
    world.gives("one");
    assert_eq!(world.token().await, Ok("one".to_owned()));
    let held = world.held.clone();
    let keeping = tokio::spawn(async move { held.keep_fresh().await });
    world.passes(46 * MINUTE).await;
    world.gives("two");
    world.passes(MINUTE).await;
    world.refuses(Refusal::away("the broker is away"));
    world.passes(14 * MINUTE).await;
    assert_eq!(world.token().await, Ok("two".to_owned()));
    keeping.abort();
}

#[tokio::test(start_paused = true)]
async fn what_nobody_asks_for_any_more_is_refreshed_once_and_then_left_alone() {
    let world = World::new();
    world.gives("one");
    assert_eq!(world.token().await, Ok("one".to_owned()));
    let held = world.held.clone();
    let keeping = tokio::spawn(async move { held.keep_fresh().await });
    for _ in 0..600 {
        world.gives("next");
        world.passes(MINUTE).await;
    }
    assert_eq!(world.source.calls(), 2);
    assert_eq!(world.token().await, Ok("next".to_owned()));
    world.held.end(Refusal::denied("revoked"));
    world.passes(50 * MINUTE).await;
    assert_eq!(world.source.calls(), 3, "nothing is asked for when the lease has ended");
    keeping.abort();
}

#[tokio::test(start_paused = true)]
async fn what_is_over_on_arrival_is_no_credential_and_causes_no_storm() {
    let world = World::new();
    world.gives("dead");
    world.clock.advance(60 * MINUTE);
    for _ in 0..20 {
        let got = world.held.get(&vertex(), Duration::from_millis(100)).await;
        assert!(matches!(got, Err(Refusal { kind: Kind::Away(_), .. })), "{got:?}");
    }
    assert!(world.source.calls() <= 5, "{} calls", world.source.calls());
    assert!(world.held.last(&vertex()).is_some(), "what the target is is known");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_lengthens_no_credentials_life() {
    let world = World::new();
    world.gives("old");
    assert_eq!(world.token().await, Ok("old".to_owned()));
    world.clock.rewind(60 * MINUTE);
    tokio::time::sleep(60 * MINUTE).await;
    world.gives("new");
    assert_eq!(world.token().await, Ok("new".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn w17_nor_do_those_that_are_all_asked_for_at_once_and_each_is_answered_in_its_turn() {
    let world = World::new();
    world.source.takes(Duration::from_secs(1));
    let mut waiting = JoinSet::new();
    for number in 0..3 * MAX_SLOTS {
        let wanted = Wanted { id_token_audience: Some(format!("https://{number}")), ..vertex() };
        world.source.set(wanted.clone(), Ok(world.vertex("id")));
        let held = world.held.clone();
        waiting.spawn(async move { held.get(&wanted, HOLD).await.is_ok() });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.held.slots().len(), MAX_SLOTS);
    assert!(waiting.join_all().await.into_iter().all(|answered| answered));
    assert!(world.held.slots().len() <= MAX_SLOTS);
}

//! Services that are slow, broken, busy or hostile; many callers at once.

use carnet::target::ManagedIdentityEndpoint;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_passing_fault_is_retried_and_nobody_notices() {
    let world = World::new().await;
    let busy = Fault::answer(StatusCode::SERVICE_UNAVAILABLE, &[("retry-after", "2")], "").unwrap();
    for (fault, calls, at_least) in [
        (Fault::Delay(Duration::from_millis(300)), 1, Duration::from_millis(300)),
        (Fault::Delay(6 * SECOND), 2, 5 * SECOND),
        (Fault::status(StatusCode::INTERNAL_SERVER_ERROR), 2, Duration::ZERO),
        (Fault::status(StatusCode::REQUEST_TIMEOUT), 2, Duration::ZERO),
        (busy, 2, 2 * SECOND),
        (Fault::Drop, 2, Duration::ZERO),
        (Fault::Truncate, 2, Duration::ZERO),
        (Fault::ContentType("text/html".to_owned()), 1, Duration::ZERO),
    ] {
        world.google.calls().clear();
        let name = format!("{fault:?}");
        world.google.faults().once(STS, fault);
        let started = Instant::now();
        world.fresh_clouds().issue(&world.call(world.direct()).await).await.unwrap();
        assert_eq!(world.count(STS), calls, "{name}");
        assert!(started.elapsed() >= at_least, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn c04_retry_after_is_honoured_however_short_it_is() {
    let world = World::new().await;
    for (status, seconds) in
        [(StatusCode::TOO_MANY_REQUESTS, 1), (StatusCode::TOO_MANY_REQUESTS, 3), (StatusCode::SERVICE_UNAVAILABLE, 1)]
    {
        world.google.calls().clear();
        world.google.faults().once(STS, asks_to_wait(status, seconds));
        let started = Instant::now();
        world.fresh_clouds().issue(&world.call(world.direct()).await).await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(seconds), "{status} {seconds}");
        assert_eq!(world.count(STS), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_longer_than_any_caller_has_is_passed_on_instead() {
    let world = World::new().await;
    for (status, reason) in [
        (StatusCode::TOO_MANY_REQUESTS, Reason::RateLimited),
        (StatusCode::SERVICE_UNAVAILABLE, Reason::CloudUnavailable),
    ] {
        world.google.faults().always(STS, asks_to_wait(status, 60));
        let started = Instant::now();
        let failure = world.failure(&world.call(world.direct()).await, STS).await;
        assert_eq!(failure.summary(), (reason, None, 1));
        assert_eq!(failure.error.retry_after(), Some(Duration::from_secs(60)));
        assert!(failure.error.is_transient() && started.elapsed() < SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn what_never_ends_is_cut_off() {
    let world = World::new().await;
    for (fault, most) in [(Fault::EndlessBody, 3 * SECOND), (Fault::SlowBody(SECOND), 10 * SECOND)] {
        let name = format!("{fault:?}");
        world.google.faults().always(STS, fault);
        let call = world.call(world.direct()).await;
        let started = Instant::now();
        let failure = world.failure(&call, STS).await;
        assert_eq!((failure.reason, failure.code), (Reason::CloudUnavailable, None), "{name}");
        assert!(started.elapsed() <= most, "{name} took {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn i11_a_redirect_is_not_followed() {
    let world = World::new().await;
    let elsewhere = format!("{}/v1/token", world.machine.imds_endpoint());
    for (endpoint, target) in [(STS, world.direct()), (ACCESS, world.google()), (ENTRA, world.federated())] {
        let redirect = Fault::Redirect(elsewhere.clone());
        world.google.faults().always(endpoint, redirect.clone());
        world.entra.faults().always(endpoint, redirect);
        let failure = world.failure(&world.call(target).await, endpoint).await;
        assert_eq!(failure.summary(), (Reason::CloudRefused, Some("HTTP 307"), 1), "{endpoint}");
        assert!(world.machine.calls().all().is_empty());
        world.recover();
    }
}

#[tokio::test(start_paused = true)]
async fn expires_in_is_taken_as_a_number_and_as_a_text_and_must_say_a_life() {
    let world = World::new().await;
    for (endpoint, target) in [(STS, world.direct()), (ENTRA, world.federated())] {
        let call = world.call(target).await;
        for (expires_in, accepted) in [
            (json!(599), true),
            (json!("599"), true),
            (Value::Null, false),
            (json!(0), false),
            (json!("0"), false),
            (json!(-1), false),
            (json!("soon"), false),
            (json!(599.5), false),
        ] {
            let body = json!({"access_token": "opaque", "token_type": "Bearer", "expires_in": expires_in});
            answer_with(&world, endpoint, &body);
            match world.fresh_clouds().issue(&call).await {
                Ok(credential) => {
                    assert!(accepted, "{endpoint} {expires_in}");
                    assert_same_second(credential.expires_at, world.clock.now() + Duration::from_secs(599));
                }
                Err(error) => {
                    assert!(!accepted, "{endpoint} {expires_in}: {error}");
                    assert_eq!(error.code(), Some("malformed_answer"));
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn googles_own_forms_of_expires_in_are_both_taken_and_its_absence_is_not() {
    use carnet::sandbox::ExpiresIn;

    let world = World::new().await;
    for (form, accepted) in [(ExpiresIn::Number, true), (ExpiresIn::Text, true), (ExpiresIn::Absent, false)] {
        world.google.state_expires_in(form);
        let result = world.fresh_clouds().issue(&world.call(world.google()).await).await;
        assert_eq!(result.is_ok(), accepted, "{form:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn i11_an_answer_that_is_no_bearer_token_is_refused() {
    let world = World::new().await;
    let at = carnet::clock::unix_seconds(world.clock.now()) + 7200;
    for (endpoint, target) in [(STS, world.direct()), (ENTRA, world.federated()), (IMDS, managed(&world))] {
        let call = world.call(target).await;
        for token_type in [json!("mac"), json!("PoP"), json!(""), Value::Null] {
            let mut body = json!({"access_token": "opaque", "expires_in": 599, "expires_on": at});
            if !token_type.is_null() {
                body["token_type"] = token_type.clone();
            }
            answer_with(&world, endpoint, &body);
            let failure = world.failure(&call, endpoint).await;
            let expected = (Reason::CloudRefused, Some("malformed_answer"), 1);
            assert_eq!(failure.summary(), expected, "{endpoint} {token_type}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn i11_a_token_that_no_header_could_carry_is_refused() {
    let world = World::new().await;
    let now = world.clock.now();
    let at = carnet::clock::unix_seconds(now) + 3600;
    for token in ["", "a\r\nx-evil: 1", "a\nb", "a b", "a\u{0}b", "é", "\u{7f}"] {
        let body = json!({
            "access_token": token, "token_type": "Bearer", "expires_in": 599, "expires_on": at,
            "accessToken": token, "expireTime": "2026-01-01T01:00:00Z",
        });
        for (endpoint, target) in [
            (STS, world.direct()),
            (STS, world.google()),
            (ACCESS, world.google()),
            (ENTRA, world.federated()),
            (IMDS, managed(&world)),
        ] {
            answer_with(&world, endpoint, &body);
            let failure = world.failure(&world.call(target).await, endpoint).await;
            let expected = (Reason::CloudRefused, Some("malformed_answer"), 1);
            assert_eq!(failure.summary(), expected, "{endpoint} {token:?}");
            world.recover();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_has_expired_already_is_not_handed_out() {
    let world = World::new().await;
    let now = carnet::clock::unix_seconds(world.clock.now());
    let body = json!({
        "access_token": "opaque", "token_type": "Bearer", "expires_on": now,
        "accessToken": "opaque", "expireTime": "2025-12-31T23:59:59Z",
    });
    for (endpoint, target) in [(ACCESS, world.google()), (IMDS, managed(&world))] {
        answer_with(&world, endpoint, &body);
        let failure = world.failure(&world.call(target).await, endpoint).await;
        assert_eq!(failure.summary(), (Reason::CloudRefused, Some("expired"), 1), "{endpoint}");
    }
}

#[tokio::test(start_paused = true)]
async fn c24_a_service_that_repeats_what_it_was_sent_gets_none_of_it_into_our_texts() {
    let world = World::new().await;
    let target = world.google_with(|google| {
        google.subject_token = GoogleSubjectToken::Entra;
        google.service_account = None;
    });
    let google = world.call(target).await;
    let azure = world.call_with(world.on_behalf_of(), world.entra.user_token(TENANT, USER), |_ask| {}).await;
    for (endpoint, call) in [(STS, google), (ENTRA, azure)] {
        let token = call.subject_token.as_ref().expect("a token").secret().expose().to_owned();
        for body in [
            json!({"error": token, "error_description": token, "error_codes": [1], "correlation_id": token, "trace_id": token}),
            json!({"error": token, "error_description": token, "error_codes": [token], "claims": token}),
            json!({"error": {"status": token, "message": token}}),
            json!({"error": "interaction_required", "error_codes": [50076], "claims": token}),
            json!(token),
        ] {
            for status in [StatusCode::BAD_REQUEST, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::OK] {
                let fault = answer(status, &body);
                world.google.faults().always(endpoint, fault.clone());
                world.entra.faults().always(endpoint, fault);
                // Looks for the token in the error.
                world.failure(&call, endpoint).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_type_on_the_way_shows_a_token() {
    let world = World::new().await;
    let credentials = world.credentials();
    for target in [world.google(), world.direct(), world.federated(), managed(&world)] {
        let call = world.call(target).await;
        let hit = credentials.credential(call.clone()).await.unwrap();
        let text = format!("{call:?} {hit:?} {credentials:?} {:?} {:?}", world.clouds, world.issuer);
        world.assert_tells_no_secret(&text);
        let token = hit.credential.token.expose();
        assert!(!text.contains(token.rsplit('.').next().unwrap()), "{text}");
    }
    assert!(world.count(STS) > 0 && world.count(ACCESS) > 0 && world.count(ENTRA) > 0);
}

#[tokio::test(start_paused = true)]
async fn c06_many_throttled_calls_do_not_become_four_times_as_many() {
    let world = World::new().await;
    world.google.throttle_sts(10_000);
    let call = world.call(world.direct()).await;
    for _ in 0..100 {
        assert_eq!(world.issue(&call).await.unwrap_err().reason(), Reason::RateLimited);
    }
    // Ten retries in stock, and one more for every five calls.
    let calls = world.count(STS);
    assert!((100..=131).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn c06_a_service_that_keeps_failing_is_left_alone_and_then_tried_again() {
    let world = World::new().await;
    world.google.faults().always(STS, Fault::status(StatusCode::BAD_GATEWAY));
    let call = world.call(world.direct()).await;
    for _ in 0..50 {
        assert_eq!(world.issue(&call).await.unwrap_err().reason(), Reason::CloudUnavailable);
    }
    assert_eq!(world.count(STS), 20);
    let error = world.issue(&call).await.unwrap_err();
    assert!(error.retry_after().unwrap() <= 5 * SECOND && !error.retry_after().unwrap().is_zero());
    // It opens again at the first failure, and closes at the first success.
    tokio::time::sleep(5 * SECOND).await;
    for _ in 0..10 {
        world.issue(&call).await.unwrap_err();
    }
    assert_eq!(world.count(STS), 21);
    world.recover();
    tokio::time::sleep(5 * SECOND).await;
    for _ in 0..3 {
        world.issue(&call).await.unwrap();
    }
    assert_eq!(world.count(STS), 24);
}

#[tokio::test(start_paused = true)]
async fn one_services_outage_leaves_the_others_alone() {
    let world = World::new().await;
    world.google.faults().always(STS, Fault::Drop);
    let call = world.call(world.direct()).await;
    for _ in 0..30 {
        world.issue(&call).await.unwrap_err();
    }
    world.issue_for(world.federated()).await.unwrap();
    world.issue_for(managed(&world)).await.unwrap();
    world.recover();
    let project = provider().replace("123456789", "987654321");
    let other = PoolProvider::new(&project, world.published.issuer()).keys(world.issuer.jwks().to_string());
    world.google.register_provider(other).unwrap();
    let elsewhere = world.google_with(|google| {
        google.provider = project.parse().unwrap();
        google.service_account = None;
    });
    world.issue_for(elsewhere).await.unwrap();
    assert_eq!(world.issue(&call).await.unwrap_err().reason(), Reason::CloudUnavailable);
}

#[tokio::test(start_paused = true)]
async fn c05_w09_ten_thousand_callers_of_one_credential_make_one_call_of_each_kind() {
    let world = World::new().await;
    for endpoint in [STS, ACCESS] {
        world.google.faults().once(endpoint, Fault::Delay(2 * SECOND));
    }
    let credentials = world.credentials();
    let call = world.call(world.google()).await;
    let hits = join_all((0..10_000).map(|_| credentials.credential(call.clone()))).await;
    let hits: Vec<_> = hits.into_iter().map(Result::unwrap).collect();
    assert_eq!(hits.iter().filter(|hit| !hit.cached).count(), 1);
    assert!(hits.iter().all(|hit| Arc::ptr_eq(&hit.credential, &hits[0].credential)));
    assert_eq!((world.count(STS), world.count(ACCESS)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn w09_callers_of_many_credentials_of_one_principal_share_the_exchange() {
    let world = World::new().await;
    world.google.faults().once(STS, Fault::Delay(2 * SECOND));
    let credentials = world.credentials();
    let calls = join_all((6..56).map(|minutes| {
        world.call_with(world.google(), world.token(), move |ask| ask.lifetime = Some(minutes * 60 * SECOND))
    }))
    .await;
    let hits = join_all(calls.into_iter().map(|call| credentials.credential(call))).await;
    assert!(hits.iter().all(Result::is_ok));
    assert_eq!((world.count(STS), world.count(ACCESS)), (1, 50));
}

#[tokio::test(start_paused = true)]
async fn w09_a_caller_who_leaves_takes_nobody_along() {
    let world = World::new().await;
    world.google.faults().once(STS, Fault::Delay(SECOND));
    let credentials = world.credentials();
    let call = world.call(world.google()).await;
    let leaver = tokio::time::timeout(SECOND / 2, credentials.credential(call.clone())).await;
    assert!(leaver.is_err());
    assert!(credentials.credential(call).await.unwrap().cached);
    assert_eq!((world.count(STS), world.count(ACCESS)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn w04_an_outage_during_a_refresh_leaves_the_good_credential() {
    let world = World::new().await;
    let credentials = world.credentials();
    let call = world.call_with(world.google(), world.token(), |ask| ask.lifetime = Some(HOUR / 6)).await;
    let first = credentials.credential(call.clone()).await.unwrap();
    world.google.faults().always("", Fault::status(StatusCode::SERVICE_UNAVAILABLE));
    for _ in 0..9 {
        world.clock.advance(Duration::from_secs(60));
        let hit = credentials.credential(call.clone()).await.unwrap();
        assert!(Arc::ptr_eq(&hit.credential, &first.credential) && hit.cached);
    }
    world.clock.advance(Duration::from_secs(61));
    assert_eq!(credentials.credential(call.clone()).await.unwrap_err().reason(), Reason::CloudUnavailable);
    // W05: it comes back by itself.
    world.google.faults().clear("");
    world.clock.advance(Duration::from_secs(11));
    tokio::time::sleep(5 * SECOND).await;
    assert!(credentials.credential(call).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_remembered_for_seconds_and_a_callers_own_fault_is_not() {
    let world = World::new().await;
    let credentials = world.credentials();
    let member = format!("principalSet:{POOL}/*");
    world.google.unbind(ACCOUNT, &member);
    let call = world.call(world.google()).await;
    for _ in 0..5 {
        assert_eq!(credentials.credential(call.clone()).await.unwrap_err().reason(), Reason::CloudRefused);
    }
    assert_eq!(world.count(ACCESS), 1);
    world.google.bind(ACCOUNT, &member);
    world.clock.advance(Duration::from_secs(6));
    credentials.credential(call).await.unwrap();
    let user = world.call_with(world.on_behalf_of(), world.entra.user_token(TENANT, USER), |_ask| {}).await;
    world.entra.faults().times(ENTRA, 1, entra_error(StatusCode::BAD_REQUEST, 500_133));
    assert_eq!(credentials.credential(user.clone()).await.unwrap_err().reason(), Reason::SubjectTokenExpired);
    credentials.credential(user).await.unwrap();
}

fn managed(world: &World) -> Target {
    let endpoint = world.machine.imds_endpoint().parse().unwrap();
    world.azure(AzureSource::ManagedIdentity(ManagedIdentityEndpoint::Imds(endpoint)))
}

fn asks_to_wait(status: StatusCode, seconds: u64) -> Fault {
    Fault::answer(status, &[("retry-after", &seconds.to_string())], "").unwrap()
}

/// `endpoint` answers 200 with `body` from now on, wherever it is.
fn answer_with(world: &World, endpoint: &str, body: &Value) {
    for faults in [world.google.faults(), world.entra.faults(), world.machine.faults()] {
        faults.always(endpoint, answer(StatusCode::OK, body));
    }
}

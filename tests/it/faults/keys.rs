//! Entra's documents: late, broken, away for a day, and other ones every second.

use std::sync::Arc;

use carnet::clock::ManualClock;
use carnet::proto::ExchangeRequest;
use carnet::sandbox::{Fault, SigningKey};
use http::StatusCode;
use tokio::time::{advance, sleep};

use super::*;
use crate::hurry::Hurry;
use crate::support::Setup;

const DISCOVERY: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/discovery/v2.0/keys";
const HOUR: Duration = Duration::from_secs(3600);

/// What is wrong, and what the record says; nothing where nobody notices.
fn cases() -> Vec<(&'static str, Fault, &'static [&'static str])> {
    let status = |status, headers: &[(&str, &str)]| Fault::answer(status, headers, "").expect("an answer");
    let page = Fault::answer(StatusCode::OK, &[("content-type", "text/html")], "<html></html>").expect("an answer");
    // Two deadlines end at the same moment.
    let late: &[&str] = &["no whole answer within", "the fetch was cut off"];
    let (broken, no_document): (&[&str], &[&str]) = (&["the connection broke"], &["is not what it should be"]);
    vec![
        ("a delay", Fault::Delay(SECOND), &[]),
        ("jitter", Fault::Jitter(SECOND), &[]),
        ("another content type", Fault::ContentType("text/html".to_owned()), &[]),
        ("silence", Fault::Silence, late),
        ("a slow body", Fault::SlowBody(SECOND), late),
        ("an endless body", Fault::EndlessBody, &["the answer is larger than"]),
        ("429", status(StatusCode::TOO_MANY_REQUESTS, &[("retry-after", "60")]), &["HTTP 429"]),
        ("500", status(StatusCode::INTERNAL_SERVER_ERROR, &[]), &["HTTP 500"]),
        ("503", status(StatusCode::SERVICE_UNAVAILABLE, &[]), &["HTTP 503"]),
        ("a reset", Fault::Reset, broken),
        ("a cut body", Fault::Truncate, broken),
        ("half of the JSON", Fault::Halve, no_document),
        ("a page", page, no_document),
    ]
}

/// A broker that starts while `document` cannot be had: it refuses as long as that lasts, says so in its records, and
/// serves with the call after the wait that callers are told.
async fn is_survived_at_the_start(document: &str) {
    let (_hurry, clock) = (Hurry::start(), ManualClock::start());
    let setup = || Setup { clock: Some(clock.clone()), in_memory: true, ..Setup::default() };
    let first = Broker::start_for(setup()).await;
    let mut wrong = Vec::new();
    for (name, fault, says) in cases() {
        let original = Some(first.original());
        let broker = Broker::start_for(Setup { replica_of: original, entra_is_away: true, ..setup() }).await;
        broker.entra.faults().always(document, fault);
        broker.entra.faults().clear("");
        // The first attempt found nobody; the next one finds this.
        sleep(3 * SECOND).await;
        let refused = broker.exchange(broker.request(&["no-such-target"])).await;
        let status = refused.as_ref().err().expect("refused");
        let records = recorded(&broker, &refused);
        let [record] = records.as_slice() else { panic!("{name}: {} records", records.len()) };
        let (seen, wait) = (Seen::of(status), Seen::of(status).wait.unwrap_or_default());
        let held = if says.is_empty() {
            seen.reason == "DENIED"
        } else {
            seen.code == Code::Unavailable
                && seen.reason == "KEYS_UNAVAILABLE"
                && (SECOND..=10 * SECOND).contains(&wait)
                && (record.outcome.as_str(), record.reason.as_str()) == ("failed", "KEYS_UNAVAILABLE")
                && says.iter().any(|says| record.attributes["error"].contains(says))
        };
        if !held {
            wrong.push(format!("{name}: {seen:?}, recorded {:?}", record.attributes));
        }
        broker.entra.faults().clear(document);
        sleep(wait).await;
        let after = broker.exchange(broker.request(&["no-such-target"])).await.err().expect("denied");
        if reason(&after) != "DENIED" {
            wrong.push(format!("{name}: afterwards {after:?}"));
        }
    }
    assert!(wrong.is_empty(), "{document}: {wrong:#?}");
}

#[tokio::test(start_paused = true)]
async fn whatever_is_wrong_with_the_discovery_document_is_survived() {
    is_survived_at_the_start(DISCOVERY).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_is_wrong_with_the_key_document_is_survived() {
    is_survived_at_the_start(KEYS).await;
}

#[tokio::test(start_paused = true)]
async fn w04_entras_keys_may_be_away_for_a_day_before_anybody_notices() {
    let (_hurry, clock) = (Hurry::start(), ManualClock::start());
    let setup = Setup { clock: Some(clock.clone()), rules: Some(RULES), in_memory: true, ..Setup::default() };
    let broker = Broker::start_for(setup).await;
    let pass = async |time: Duration| {
        clock.advance(time);
        advance(time).await;
    };
    for document in [DISCOVERY, KEYS] {
        broker.entra.faults().always(document, Fault::Silence);
    }
    for hour in 0..23 {
        let minted = broker.exchange(broker.request(&["vertex"])).await;
        minted.unwrap_or_else(|status| panic!("after {hour} hours: {status:?}"));
        assert!(broker.exchange(broker.request(&["vertex"])).await.expect("served").credentials[0].cached);
        pass(HOUR).await;
    }
    pass(HOUR - 60 * SECOND).await;
    broker.exchange(broker.request(&["vertex"])).await.expect("a minute before the day is over");
    pass(60 * SECOND).await;
    let refused = broker.exchange(broker.request(&["vertex"])).await;
    let seen = Seen::of(refused.as_ref().err().expect("keys of a day ago"));
    assert_eq!((seen.code, seen.reason.as_str()), (Code::Unavailable, "KEYS_UNAVAILABLE"));
    let [record] = &recorded(&broker, &refused)[..] else { panic!("one record") };
    assert_eq!((record.outcome.as_str(), record.reason.as_str()), ("failed", "KEYS_UNAVAILABLE"));
    for document in [DISCOVERY, KEYS] {
        broker.entra.faults().clear(document);
    }
    // A fetch that waits for the silent document may be under way.
    sleep(11 * SECOND).await;
    broker.exchange(broker.request(&["vertex"])).await.expect("with the next call");
    broker.no_secret_was_left_behind();
}

#[tokio::test(start_paused = true)]
async fn c20_keys_that_change_every_second_cost_a_fetch_a_minute_and_what_is_known_stays_good_until_then() {
    let (_hurry, clock) = (Hurry::start(), ManualClock::start());
    let setup = Setup { clock: Some(clock.clone()), in_memory: true, ..Setup::default() };
    let broker = Broker::start_for(setup).await;
    let key = Arc::new(SigningKey::rsa());
    let fetched = broker.entra.calls().count(KEYS);
    let (mut accepted, mut refused, mut known) = (0, 0, None);
    for second in 0..130 {
        let kid = format!("of-second-{second}");
        let mut jwk = key.jwk();
        jwk["kid"] = serde_json::json!(kid);
        broker.entra.publish(TENANT, jwk);
        broker.entra.withdraw(TENANT, &format!("of-second-{}", second - 1));
        let text = broker.signed(&broker.runner().signed_by_key(key.clone()).header("kid", kid));
        let shown =
            |text: &str| ExchangeRequest { subject_token: text.to_owned(), ..broker.request(&["no-such-target"]) };
        match reason(&broker.exchange(shown(&text)).await.err().expect("denied")).as_str() {
            "DENIED" => {
                accepted += 1;
                known = Some(text);
            }
            "SUBJECT_TOKEN_SIGNATURE" => refused += 1,
            other => panic!("{other}"),
        }
        if let Some(known) = &known {
            let again = broker.exchange(shown(known)).await.err().expect("denied");
            assert_eq!(reason(&again), "DENIED", "{second}");
        }
        clock.advance(SECOND);
        advance(SECOND).await;
    }
    let fetches = broker.entra.calls().count(KEYS) - fetched;
    assert_eq!(accepted, fetches, "the first new key after each fetch");
    assert!((2..=4).contains(&fetches) && refused > 100, "{fetches} fetches, {refused} refused");
    // When the keys stand still, the wait is over within a minute.
    clock.advance(60 * SECOND);
    advance(60 * SECOND).await;
    let token = broker.runner().signed_by_key(key).header("kid", "of-second-129");
    let last = broker.exchange(broker.request_with(&token, &["no-such-target"])).await.err().expect("denied");
    assert_eq!(reason(&last), "DENIED");
    broker.no_secret_was_left_behind();
}

#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_looked_for_is_no_bad_signature_and_is_found_seconds_after_the_outage() {
    let (_hurry, clock) = (Hurry::start(), ManualClock::start());
    let setup = Setup { clock: Some(clock.clone()), in_memory: true, ..Setup::default() };
    let broker = Broker::start_for(setup).await;
    broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
    let old = broker.entra.signing_key(TENANT).kid().to_owned();
    advance(60 * SECOND).await;
    broker.entra.rotate(TENANT);
    broker.entra.faults().always(KEYS, Fault::Reset);
    let refused = broker.exchange(broker.request(&["vertex"])).await;
    let seen = Seen::of(refused.as_ref().err().expect("nobody knows the new key"));
    assert_eq!((seen.code, seen.reason.as_str()), (Code::Unavailable, "KEYS_UNAVAILABLE"));
    let wait = seen.wait.expect("a wait");
    assert!((SECOND..=10 * SECOND).contains(&wait), "{wait:?}");
    let [record] = &recorded(&broker, &refused)[..] else { panic!("one record") };
    assert_eq!((record.outcome.as_str(), record.reason.as_str()), ("failed", "KEYS_UNAVAILABLE"));
    let of_before = broker.request_with(&broker.runner().signed_by(&old), &["vertex"]);
    assert!(broker.exchange(of_before).await.expect("served").credentials[0].cached);
    broker.entra.faults().clear(KEYS);
    sleep(wait).await;
    broker.exchange(broker.request(&["vertex"])).await.expect("with the next call");
    broker.no_secret_was_left_behind();
}

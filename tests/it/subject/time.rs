//! I05: the three dates are whole numbers, agree, and are held against the clock to the second.

use carnet::clock::{Clock as _, unix_seconds};
use carnet::reason::Reason::*;
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn i05_a_date_of_any_other_form_is_refused_not_passed_over() {
    let checkpoint = Checkpoint::open().await;
    checkpoint.accept(&checkpoint.app()).await;
    for name in ["exp", "nbf", "iat"] {
        let good = checkpoint.app().claims()[name].clone();
        let seconds = good.as_u64().expect("seconds");
        let absent = checkpoint.app().without(name).sign();
        assert_eq!(refusal(&checkpoint.verifier, &absent).await, Some(SubjectTokenMalformed), "{name} absent");
        for value in [
            Value::Null,
            json!(true),
            json!(good.to_string()),
            json!(""),
            json!("NaN"),
            json!("Infinity"),
            json!("never"),
            json!("2026-01-01T00:00:00Z"),
            json!([good]),
            json!({"seconds": good}),
            json!(seconds as f64),
            json!(seconds as f64 + 0.5),
            json!(-1),
            json!(i64::MIN),
            json!(-(i64::try_from(seconds).expect("small"))),
            json!(253_402_300_800_u64),
            json!(i64::MAX),
            json!(u64::MAX),
            json!(1e300),
        ] {
            let text = checkpoint.app().claim(name, value.clone()).sign();
            let found = refusal(&checkpoint.verifier, &text).await;
            assert_eq!(found, Some(SubjectTokenMalformed), "{name} {value}");
        }
        for literal in [
            "NaN",
            "Infinity",
            "-Infinity",
            "1e400",
            "-1e400",
            "0x69558d00",
            "01767225600",
            "1767225600.0",
            "17672256e2",
            "18446744073709551616",
            "-0",
            "-0.0",
            "+1",
            "1_767_225_600",
            "99999999999999999999999999999999999999",
        ] {
            let payload = Value::Object(checkpoint.app().claim(name, "LITERAL").claims()).to_string();
            let text = checkpoint.app().raw_payload(payload.replace("\"LITERAL\"", literal)).sign();
            let found = refusal(&checkpoint.verifier, &text).await;
            assert_eq!(found, Some(SubjectTokenMalformed), "{name} {literal}");
        }
    }
}

#[tokio::test]
async fn i05_dates_at_the_ends_of_what_can_be_written_are_held_against_the_clock() {
    assert_refused(&[
        ("exp 1970", |at| at.app().claim("exp", 0).sign(), SubjectTokenMalformed),
        ("all 1970", |at| at.app().claim("iat", 0).claim("nbf", 0).claim("exp", 1).sign(), SubjectTokenExpired),
        (
            "exp before nbf",
            |at| at.app().claim("nbf", seconds(at, 30)).claim("exp", seconds(at, 29)).sign(),
            SubjectTokenMalformed,
        ),
        (
            "exp at nbf",
            |at| at.app().claim("nbf", seconds(at, 30)).claim("exp", seconds(at, 30)).sign(),
            SubjectTokenMalformed,
        ),
        (
            "exp at iat",
            |at| at.app().claim("iat", seconds(at, 30)).claim("exp", seconds(at, 30)).sign(),
            SubjectTokenMalformed,
        ),
        ("nbf in 9999", |at| at.app().claim("nbf", LAST - 1).claim("exp", LAST).sign(), SubjectTokenNotYetValid),
        ("iat in 9999", |at| at.app().claim("iat", LAST - 1).claim("exp", LAST).sign(), SubjectTokenNotYetValid),
    ])
    .await;
    let checkpoint = Checkpoint::open().await;
    let identity = checkpoint.accept(&checkpoint.app().claim("exp", LAST)).await;
    assert_eq!(unix_seconds(identity.expires_at()), LAST);
    checkpoint.accept(&checkpoint.app().claim("iat", 0).claim("nbf", 0)).await;
}

#[tokio::test]
async fn a_token_expires_exactly_when_the_skew_after_its_exp_is_over() {
    let checkpoint = Checkpoint::open().await;
    let life = Duration::from_secs(3600);
    let text = checkpoint.app().lifetime(life).sign();
    checkpoint.clock.advance(life - SECOND);
    for (when, step, expected) in [
        ("a second before exp", SECOND, None),
        ("at exp", SECOND, None),
        ("a second after exp", SKEW - 2 * SECOND, None),
        ("a second before the end of the skew", SECOND, None),
        ("at the end of the skew", SECOND, Some(SubjectTokenExpired)),
        ("a second after it", SECOND, Some(SubjectTokenExpired)),
    ] {
        assert_eq!(refusal(&checkpoint.fresh_verifier(), &text).await, expected, "{when}");
        assert_eq!(refusal(&checkpoint.verifier, &text).await, expected, "{when}, asked again and again");
        checkpoint.clock.advance(step);
    }
}

#[tokio::test]
async fn a_token_begins_exactly_the_skew_before_its_nbf_and_its_iat() {
    for name in ["nbf", "iat"] {
        let checkpoint = Checkpoint::open().await;
        let text = checkpoint.app().claim(name, seconds(&checkpoint, 600)).sign();
        checkpoint.clock.advance(Duration::from_secs(600) - SKEW - 2 * SECOND);
        for (when, expected) in [
            ("two seconds before the skew", Some(SubjectTokenNotYetValid)),
            ("a second before the skew", Some(SubjectTokenNotYetValid)),
            ("at the skew", None),
            ("a second within the skew", None),
        ] {
            assert_eq!(refusal(&checkpoint.fresh_verifier(), &text).await, expected, "{name}: {when}");
            checkpoint.clock.advance(SECOND);
        }
    }
}

#[tokio::test]
async fn without_skew_a_token_lives_from_its_nbf_until_its_exp() {
    let checkpoint = Checkpoint::open().await;
    let strict = || verifier_of(&checkpoint.entra, &checkpoint.clock, Duration::ZERO);
    let text = checkpoint.app().issued_at(checkpoint.clock.now() + SECOND).lifetime(2 * SECOND).sign();
    for expected in [Some(SubjectTokenNotYetValid), None, None, Some(SubjectTokenExpired)] {
        assert_eq!(refusal(&strict(), &text).await, expected);
        checkpoint.clock.advance(SECOND);
    }
}

#[tokio::test]
async fn the_refusal_of_a_date_says_by_how_much_it_is_off() {
    let checkpoint = Checkpoint::open().await;
    let early = checkpoint.app().claim("nbf", seconds(&checkpoint, 100)).sign();
    let error = checkpoint.verify(&early).await.expect_err("too early");
    assert!(error.to_string().contains("only in 100s"), "{error}");
    let text = checkpoint.app().lifetime(Duration::from_secs(600)).sign();
    checkpoint.clock.advance(Duration::from_secs(700));
    let error = checkpoint.verify(&text).await.expect_err("too late");
    assert!(error.to_string().contains("expired 100s ago"), "{error}");
    assert_eq!(error.retry_after(), None);
}

/// So many seconds from now.
fn seconds(at: &Checkpoint, from_now: u64) -> u64 {
    unix_seconds(at.clock.now()) + from_now
}

/// 9999-12-31T23:59:59Z.
const LAST: u64 = 253_402_300_799;

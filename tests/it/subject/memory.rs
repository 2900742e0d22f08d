//! Verified tokens are remembered: never past their `exp`, never past their key, never one for another.

use carnet::reason::Reason::*;
use carnet::sandbox::SigningKey;

use super::keys::{learn_of_new_keys, pass};
use super::*;

#[tokio::test]
async fn a_verified_token_is_answered_from_memory_without_a_call() {
    let checkpoint = Checkpoint::open().await;
    let text = checkpoint.app().sign();
    let first = checkpoint.verify(&text).await.expect("a good token");
    checkpoint.entra.calls().clear();
    for _again in 0..3 {
        let again = checkpoint.verify(&text).await.expect("a good token");
        assert!(Arc::ptr_eq(&first, &again), "verified anew");
    }
    assert!(checkpoint.entra.calls().all().is_empty());
}

#[tokio::test]
async fn i23_memory_ends_with_the_tokens_exp_also_within_the_skew() {
    for token in
        [|at: &Checkpoint| at.app(), |at: &Checkpoint| at.app().claim("iat", 0), |at: &Checkpoint| at.app().v1()]
    {
        let checkpoint = Checkpoint::open().await;
        let life = Duration::from_secs(600);
        let text = token(&checkpoint).lifetime(life).claim("exp", exp(&checkpoint, life)).sign();
        let first = checkpoint.verify(&text).await.expect("a good token");
        checkpoint.clock.advance(life - SECOND);
        let last_second = checkpoint.verify(&text).await.expect("a good token");
        assert!(Arc::ptr_eq(&first, &last_second), "forgotten a second before exp");
        checkpoint.clock.advance(SECOND);
        let within_skew = checkpoint.verify(&text).await.expect("within the skew");
        assert!(!Arc::ptr_eq(&first, &within_skew), "remembered at exp");
        let again = checkpoint.verify(&text).await.expect("within the skew");
        assert!(!Arc::ptr_eq(&within_skew, &again), "remembered within the skew");
        checkpoint.clock.advance(SKEW);
        assert_eq!(refusal(&checkpoint.verifier, &text).await, Some(SubjectTokenExpired));
    }
}

#[tokio::test]
async fn i02_a_remembered_token_falls_with_its_key() {
    let checkpoint = Checkpoint::open().await;
    let kids = checkpoint.entra.kids(TENANT);
    let by = |kid: &str| checkpoint.app().signed_by(kid).sign();
    let (withdrawn, kept) = (by(&kids[0]), by(&kids[1]));
    for text in [&withdrawn, &kept] {
        checkpoint.verify(text).await.expect("a good token");
    }
    checkpoint.entra.withdraw(TENANT, &kids[0]);
    learn_of_new_keys(&checkpoint).await;
    assert_eq!(refusal(&checkpoint.verifier, &withdrawn).await, Some(SubjectTokenSignature));
    assert_eq!(refusal(&checkpoint.verifier, &kept).await, None);
}

#[tokio::test]
async fn i02_a_remembered_token_falls_when_its_kid_comes_to_stand_for_another_key() {
    let checkpoint = Checkpoint::open().await;
    let kid = checkpoint.entra.signing_key(TENANT).kid().to_owned();
    let text = checkpoint.app().sign();
    checkpoint.verify(&text).await.expect("a good token");
    checkpoint.entra.withdraw(TENANT, &kid);
    checkpoint.entra.publish(TENANT, SigningKey::rsa().with_kid(kid).jwk());
    learn_of_new_keys(&checkpoint).await;
    assert_eq!(refusal(&checkpoint.verifier, &text).await, Some(SubjectTokenSignature));
}

#[tokio::test]
async fn a_remembered_token_falls_when_its_keys_are_a_day_old_and_entra_is_away() {
    let checkpoint = Checkpoint::open().await;
    let text = checkpoint.app().lifetime(Duration::from_secs(48 * 3600)).sign();
    checkpoint.verify(&text).await.expect("a good token");
    checkpoint.entra.faults().always("", carnet::sandbox::Fault::Drop);
    pass(Duration::from_secs(23 * 3600)).await;
    checkpoint.verify(&text).await.expect("keys of 23 hours");
    pass(Duration::from_secs(3600)).await;
    assert_eq!(refusal(&checkpoint.verifier, &text).await, Some(KeysUnavailable));
}

#[tokio::test]
async fn i21_memory_never_answers_one_token_with_another() {
    let checkpoint = Checkpoint::open().await;
    let objects: Vec<String> = (0..50).map(|at| Uuid::from_u128(at).to_string()).collect();
    let tokens: Vec<(String, String)> = objects
        .iter()
        .map(|object| (object.clone(), checkpoint.entra.app_token(TENANT, object).client(CLIENT).sign()))
        .collect();
    for _round in 0..2 {
        for (object, text) in &tokens {
            let identity = checkpoint.verify(text).await.expect("a good token");
            assert_eq!(&identity.object().to_string(), object);
            assert_eq!(identity.token_sha256(), Secret::new(text.as_str()).sha256());
        }
    }
}

#[tokio::test]
async fn a_remembered_token_in_another_spelling_is_another_token() {
    let checkpoint = Checkpoint::open().await;
    let text = checkpoint.app().sign();
    checkpoint.verify(&text).await.expect("a good token");
    for other in [format!("{text} "), format!("{text}="), format!("{text}A")] {
        assert_eq!(refusal(&checkpoint.verifier, &other).await, Some(SubjectTokenSignature));
    }
}

#[tokio::test]
async fn a_refused_token_is_judged_anew_when_it_comes_again() {
    let checkpoint = Checkpoint::open().await;
    let text = checkpoint.app().claim("nbf", exp(&checkpoint, Duration::from_secs(600))).sign();
    assert_eq!(refusal(&checkpoint.verifier, &text).await, Some(SubjectTokenNotYetValid));
    checkpoint.clock.advance(Duration::from_secs(600));
    assert_eq!(refusal(&checkpoint.verifier, &text).await, None);
}

fn exp(at: &Checkpoint, from_now: Duration) -> u64 {
    use carnet::clock::{Clock as _, unix_seconds};
    unix_seconds(at.clock.now() + from_now)
}

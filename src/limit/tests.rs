use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::{advance, sleep};

use super::*;
use crate::reason::Reason;

fn rate(per_second: u32, burst: u32) -> Rate {
    let number = |number| NonZeroU32::new(number).expect("not 0");
    Rate { per_second: number(per_second), burst: number(burst) }
}

fn limits() -> Limits {
    Limits::new(Settings { per_caller: rate(10, 30), per_peer: rate(20, 40) })
}

fn holder(number: u128) -> Holder {
    (Uuid::from_u128(1), Uuid::from_u128(number))
}

#[tokio::test(start_paused = true)]
async fn a_caller_has_its_burst_and_then_its_rate_and_is_told_how_long_to_wait() {
    let limits = limits();
    assert_eq!((0..100).filter(|_| limits.exchange(holder(1)).is_ok()).count(), 30);
    let wait = limits.exchange(holder(1)).expect_err("used up");
    assert!(wait <= Duration::from_millis(100) && !wait.is_zero(), "{wait:?}");
    advance(wait).await;
    assert!(limits.exchange(holder(1)).is_ok() && limits.exchange(holder(1)).is_err());
    assert!(limits.exchange(holder(2)).is_ok(), "another one has its own");
    advance(Duration::from_secs(3600)).await;
    assert_eq!(
        (0..100).filter(|_| limits.exchange(holder(1)).is_ok()).count(),
        30,
        "nothing is saved beyond the burst"
    );
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_at_their_limits_leave_nearly_all_others_alone() {
    let limits = limits();
    for number in 0..1000 {
        while limits.exchange(holder(number)).is_ok() {}
    }
    let limited = (10_000..11_000).filter(|number| limits.exchange(holder(*number)).is_err()).count();
    assert!(limited <= 30, "{limited} of 1000");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_shows_bad_tokens_is_not_heard_but_for_those_who_are_known() {
    let limits = limits();
    let (flood, other) = (Peer::from("192.0.2.1:1"), Peer::from("192.0.2.2:1"));
    for port in 0..40 {
        limits.refused(&format!("192.0.2.1:{port}").into(), || None);
    }
    let wait = limits.hear(&flood, || None).expect_err("too many");
    assert!(wait <= Duration::from_millis(50), "{wait:?}");
    assert_eq!(limits.hear(&other, || None), Ok(()));
    assert!(limits.hear(&flood, || Some(holder(1))).is_err(), "nobody knows them");
    limits.verified(holder(1));
    assert_eq!(limits.hear(&flood, || Some(holder(1))), Ok(()));
    // What pretends to be of a known caller has a bound of its own.
    (0..20).for_each(|_| limits.refused(&flood, || Some(holder(1))));
    assert!(limits.hear(&flood, || Some(holder(1))).is_err());
    advance(Duration::from_secs(60)).await;
    assert_eq!((limits.hear(&flood, || None), limits.hear(&flood, || Some(holder(1)))), (Ok(()), Ok(())));
}

#[tokio::test(start_paused = true)]
async fn questions_about_unknown_tokens_are_bounded_and_those_that_are_answered_cost_nothing() {
    let (limits, peer) = (limits(), Peer::from("192.0.2.1:1"));
    advance(Duration::from_secs(60)).await;
    for _ in 0..1000 {
        limits.question(&peer).await.expect("answered");
    }
    // All at once, and none is known to be in vain before it has waited for the store.
    let in_vain = (0..100).map(async |_| {
        let _turn = limits.question(&peer).await?;
        sleep(Duration::from_millis(1)).await;
        limits.asked_in_vain(&peer);
        Ok::<_, Duration>(())
    });
    let answered = join_all(in_vain).await.into_iter().filter(Result::is_ok).count();
    assert!((40..40 + QUESTIONS).contains(&answered), "{answered}");
}

#[tokio::test]
async fn lease_tokens_that_nobody_knows_wait_for_each_other_and_those_that_were_good_here_for_nobody() {
    let (limits, guesser, other) = (limits(), Peer::from("192.0.2.1:1"), Peer::from("192.0.2.2:1"));
    let (known, guessed) = ([1; 32], [2; 32]);
    limits.found_lease(&known);
    let mut turns: Vec<_> =
        (0..QUESTIONS).filter_map(|_| limits.lease_token(&guessed, &guesser).now_or_never()).collect();
    assert!(turns.len() == QUESTIONS && turns.iter().all(Option::is_some));
    let mut hundreds: Vec<_> = (0..300).map(|_| Box::pin(limits.lease_token(&guessed, &guesser))).collect();
    assert!(hundreds.iter_mut().all(|turn| turn.now_or_never().is_none()), "they wait");
    assert!(limits.lease_token(&known, &guesser).now_or_never().is_some_and(|turn| turn.is_none()), "none is needed");
    let mut behind = Box::pin(limits.lease_token(&guessed, &other));
    assert!((&mut behind).now_or_never().is_none());
    // One turn that is free goes to the first of those that wait, the next to the other address.
    turns.truncate(QUESTIONS - 2);
    assert!(behind.now_or_never().is_some(), "another address waits behind one, not behind hundreds");
    assert!(hundreds.iter_mut().filter_map(|turn| turn.now_or_never()).count() >= 1);
    assert!(limits.lease_token(&guessed, &Peer::inside("prober")).now_or_never().is_some_and(|turn| turn.is_none()));
}

#[test]
fn an_address_is_one_of_ipv4_or_64_bits_of_ipv6() {
    for (address, expected) in [
        ("192.0.2.1:443", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:443", "192.0.2.1"),
        ("[2001:db8:1:2:3:4:5:6]:443", "2001:db8:1:2::/64"),
        ("[2001:db8:1:2:ffff::1]:9", "2001:db8:1:2::/64"),
        ("unix", "unix"),
    ] {
        assert_eq!(Peer::from(address).network().as_deref(), Some(expected));
    }
    assert_eq!(Peer::inside("prober").network(), None);
}

#[test]
fn one_alone_gets_two_of_three_places_and_leaves_the_rest() {
    let shares = Shares::default();
    let fill = |key, mut free: usize| {
        let shares: Vec<Share> = std::iter::from_fn(|| {
            let share = shares.take(key, free);
            free -= usize::from(share.is_some());
            share
        })
        .collect();
        (shares, free)
    };
    let (first, free) = fill(1, 3000);
    let (second, free) = fill(2, free);
    assert_eq!((first.len(), second.len(), free), (2000, 667, 333));
    let few: Vec<_> = (0..16).map_while(|_| shares.take(3, 0)).collect();
    assert_eq!(few.len(), 16, "who has little gets a little more");
    drop((first, second, few));
    assert_eq!(fill(1, 3000).0.len(), 2000, "all were given back");
}

#[tokio::test]
async fn who_waits_with_one_call_waits_behind_no_more_than_one_of_each_other() {
    let queue = Arc::new(FairQueue::new(1));
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let first = queue.turn("first").await;
    let mut waiting = Vec::new();
    for name in ["hog"; 50].into_iter().chain(["a", "b", "hog"]) {
        let (queue, order) = (queue.clone(), order.clone());
        waiting.push(tokio::spawn(async move {
            let _turn = queue.turn(name).await;
            order.lock().expect("no panic").push(name);
        }));
        tokio::task::yield_now().await;
    }
    // One gives up.
    waiting.remove(0).abort();
    tokio::task::yield_now().await;
    drop(first);
    for task in waiting {
        task.await.expect("a turn");
    }
    let order = order.lock().expect("no panic").clone();
    assert_eq!((order[..4].to_vec(), order.len()), (vec!["hog", "a", "b", "hog"], 52));
    let _free_again = queue.turn("last").await;
}

#[tokio::test]
async fn turns_of_those_who_leave_at_any_moment_are_not_lost() {
    let queue = Arc::new(FairQueue::new(3));
    for round in 0..200_u32 {
        let tasks: Vec<_> = (0..10)
            .map(|number| {
                let queue = queue.clone();
                tokio::spawn(async move {
                    let _turn = queue.turn(number % 4).await;
                    tokio::task::yield_now().await;
                })
            })
            .collect();
        for _ in 0..round % 5 {
            tokio::task::yield_now().await;
        }
        tasks.iter().step_by(2).for_each(tokio::task::JoinHandle::abort);
        for task in tasks {
            let _ = task.await;
        }
    }
    let turns = [queue.turn(1).await, queue.turn(1).await, queue.turn(2).await];
    assert_eq!(turns.len(), 3);
}

#[test]
fn of_what_is_too_much_the_first_is_recorded_and_the_rest_counted_once() {
    let unrecorded = Unrecorded::default();
    let now = SystemTime::UNIX_EPOCH;
    let add = |subject, peer: &str, reason| unrecorded.add(subject, peer, reason, now);
    assert!(add(None, "192.0.2.1", Reason::RateLimited));
    assert!((0..9).all(|_| !add(None, "192.0.2.1", Reason::RateLimited)));
    assert!(!add(None, "192.0.2.1", Reason::SubjectTokenSignature));
    assert!(add(Some("entra:1:2"), "192.0.2.1", Reason::RateLimited), "a caller is not its address");
    let [omission] = unrecorded.take().try_into().expect("one: of the caller nothing was left out");
    assert_eq!((omission.peer.as_str(), omission.count(), omission.reasons.len()), ("192.0.2.1", 10, 2));
    assert!(unrecorded.take().is_empty() && add(None, "192.0.2.1", Reason::RateLimited), "a new time begins");
}

#[test]
fn however_many_there_are_what_is_counted_is_bounded() {
    let unrecorded = Unrecorded::default();
    let alone = (0..5000).filter(|number| {
        let peer = format!("2001:db8::{number:x}");
        unrecorded.add(None, &peer, Reason::RateLimited, SystemTime::UNIX_EPOCH)
    });
    assert_eq!(alone.count(), 1024);
    let [others] = unrecorded.take().try_into().expect("the others in one");
    assert_eq!((others.peer.as_str(), others.count()), ("others", 5000 - 1024));
}

#[test]
fn refusals_wait_longer_the_more_of_them_do_and_never_for_longer_than_callers_do() {
    let held_back = HeldBack::default();
    let waits = |count: usize| {
        let held: Vec<Held<'_>> = (0..count).map(|_| held_back.one_more()).collect();
        held.last().expect("one").wait
    };
    assert_eq!([1, 2001].map(waits), [Duration::from_secs(1); 2]);
    assert_eq!(waits(10_001), Duration::from_secs(5), "two thousand a second leave");
    assert_eq!(waits(1_000_000), Duration::from_secs(15));
    assert_eq!(waits(1), Duration::from_secs(1), "those that left are not counted");
}

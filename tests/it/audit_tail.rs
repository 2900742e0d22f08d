//! `carnet audit tail`, which outlives its token, its connection and the broker.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use carnet::clock::{Clock as _, ManualClock, SystemClock};
use carnet::proto::{ExchangeRequest, Job};
use serde_json::Value;

use crate::command_line::{carnet, signal};
use crate::holder::{LEASING, OPERATOR};
use crate::support::{Broker, RUNNER, Setup, TENANT, with_setup};

/// A tail under way, and the datasets of the jobs whose records it has shown.
struct Tail {
    child: Child,
    shown: Receiver<String>,
}

impl Tail {
    fn of(broker: &Broker, token_file: &Path) -> Self {
        let subject = format!("entra:{TENANT}:{RUNNER}");
        let arguments = ["audit", "tail", "--last", "1", "--output", "json", "--subject", &subject];
        let mut command = carnet(&arguments);
        command.env("CARNET_ADDRESS", broker.grpc_address()).arg("--subject-token-file").arg(token_file);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let (sender, shown) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let record: Value = serde_json::from_str(&line).expect("a line of JSON");
                let _ = sender.send(record["job"]["datasets"][0].as_str().unwrap_or_default().to_owned());
            }
        });
        Self { child, shown }
    }

    fn next(&self, records: usize) -> Vec<String> {
        let next = |_| self.shown.recv_timeout(Duration::from_secs(30)).expect("a record");
        tokio::task::block_in_place(|| (0..records).map(next).collect())
    }

    /// Its exit code, and what it complained of; nothing more was shown.
    fn end(&mut self) -> (Option<i32>, String) {
        let ended = tokio::task::block_in_place(|| self.child.wait()).expect("an end");
        let mut complaint = String::new();
        self.child.stderr.take().expect("a pipe").read_to_string(&mut complaint).expect("text");
        assert_eq!(self.shown.try_iter().collect::<Vec<_>>(), Vec::<String>::new());
        (ended.code(), complaint)
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn auditor(broker: &Broker, lifetime: Duration) -> String {
    broker.signed(&broker.entra.user_token(TENANT, OPERATOR).roles(["Carnet.Auditor"]).lifetime(lifetime))
}

async fn exchange(broker: &Broker, dataset: &str) {
    let job = Job { datasets: vec![dataset.to_owned()], ..Job::default() };
    broker.exchange(ExchangeRequest { job: Some(job), ..broker.request(&["vertex"]) }).await.expect("a credential");
}

const LIFE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_goes_on_with_a_fresh_token_and_ends_with_4_where_its_source_has_none() {
    let clock = ManualClock::at(SystemClock.now());
    let setup = Setup { rules: Some(LEASING), clock: Some(clock.clone()), ..Setup::default() };
    with_setup(setup, async |broker| {
        let file = broker.folder.path().join("token");
        std::fs::write(&file, auditor(broker, LIFE)).expect("written");
        exchange(broker, "before").await;
        exchange(broker, "first").await;
        let mut tail = Tail::of(broker, &file);
        assert_eq!(tail.next(1), ["first"]);
        exchange(broker, "second").await;
        assert_eq!(tail.next(1), ["second"]);

        // Whoever renews the token does so before it ends; the tail hears of it when the broker ends its stream.
        clock.advance(LIFE - Duration::from_secs(1));
        std::fs::write(&file, auditor(broker, LIFE)).expect("written");
        clock.advance(Duration::from_secs(1));
        for job in ["third", "fourth"] {
            exchange(broker, job).await;
        }
        assert_eq!(tail.next(2), ["third", "fourth"]);

        clock.advance(LIFE);
        let (code, complaint) = tail.end();
        assert_eq!(code, Some(4), "{complaint}");
        assert!(complaint.contains("the operator's token has expired, and its source has no newer one"), "{complaint}");
        assert!(complaint.contains("the newest record that was shown is of 20"), "{complaint}");
        std::fs::remove_file(&file).expect("removed");
    })
    .await;
}

/// More than a stream begins with at most.
const MISSED: usize = 1050;

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_misses_nothing_and_repeats_nothing_while_the_broker_restarts() {
    let mut broker = Broker::start_for(Setup { rules: Some(LEASING), ..Setup::default() }).await;
    let file = broker.folder.path().join("token");
    std::fs::write(&file, auditor(&broker, LIFE)).expect("written");
    for job in ["older", "first"] {
        exchange(&broker, job).await;
    }
    let tail = Tail::of(&broker, &file);
    assert_eq!(tail.next(1), ["first"]);
    exchange(&broker, "second").await;
    assert_eq!(tail.next(1), ["second"]);

    // It hears nothing of all that follows before everything is over.
    signal("STOP", tail.child.id());
    let mut client = broker.client().await;
    let request = broker.request(&["vertex"]);
    for dataset in 0..MISSED {
        let job = Some(Job { datasets: vec![dataset.to_string()], ..Job::default() });
        client.exchange(ExchangeRequest { job, ..request.clone() }).await.expect("the credential of before");
    }
    drop(client);
    broker.stop().await;
    broker.start_again().await;
    signal("CONT", tail.child.id());
    let mut shown = tail.next(MISSED);
    exchange(&broker, "last").await;
    assert_eq!(tail.next(1), ["last"]);
    shown.sort_by_key(|dataset| dataset.parse::<usize>().expect("a number"));
    assert_eq!(shown, (0..MISSED).map(|dataset| dataset.to_string()).collect::<Vec<_>>());
    drop(tail);
    std::fs::remove_file(&file).expect("removed");
    broker.stop().await;
    broker.no_secret_was_left_behind();
}

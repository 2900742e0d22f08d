//! A process that may open no more files: by callers who take them all, and by a limit that falls.

use std::path::PathBuf;

use carnet::sandbox::Fault;
use futures_util::future::join_all;
use tokio::net::TcpStream;

use super::*;
use crate::support::Setup;

fn open_files(process: &Process) -> usize {
    std::fs::read_dir(PathBuf::from(format!("/proc/{}/fd", process.child.id()))).expect("a process").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_connect_without_end_leave_files_for_the_clouds_and_for_whoever_is_connected() {
    let mut broker = Broker::start_for(Setup { rules: Some(RULES), ..Setup::default() }).await;
    let Replacement { process, grpc, mut client } = in_its_place(&mut broker, "ulimit -n 256").await;
    client.exchange(broker.request(&["vertex"])).await.expect("a credential");
    let mut flood = Vec::new();
    for _ in 0..400 {
        flood.push(TcpStream::connect(&grpc).await.expect("a connection"));
    }
    for number in 0..20 {
        let request = broker.request_with(&somebody(&broker, number), &["direct"]);
        client.exchange(request).await.expect("a new credential");
    }
    assert!(client.exchange(broker.request(&["vertex"])).await.expect("served").into_inner().credentials[0].cached);
    assert!(open_files(&process) < 256);
    drop(flood);
    eventually("a place for another caller", async || {
        let Some(mut client) = client_at(&grpc).await else { return false };
        client.exchange(broker.request(&["vertex"])).await.is_ok()
    })
    .await;
    let said = std::fs::read_to_string(&process.log).expect("the log");
    assert!(said.contains("each listener takes") && !said.contains("cannot accept"), "{said}");
    drop(process);
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_file_left_to_open_whoever_is_connected_is_served_others_wait_and_nothing_is_lost() {
    let mut broker = Broker::start_for(Setup { rules: Some(RULES), ..Setup::default() }).await;
    let Replacement { process, grpc, mut client } = in_its_place(&mut broker, "").await;
    client.exchange(broker.request(&["vertex"])).await.expect("a credential");
    let before = open_files(&process);
    limit(&process, "nofile", "3");

    assert!(client.exchange(broker.request(&["vertex"])).await.expect("served").into_inner().credentials[0].cached);
    // They overlap, so that connections of before are not enough for them.
    broker.google.faults().always("/v1/token", Fault::Delay(Duration::from_millis(300)));
    let cold = (0..4).map(|number| {
        let (mut client, request) = (client.clone(), broker.request_with(&somebody(&broker, number), &["direct"]));
        async move { client.exchange(request).await.map(tonic::Response::into_inner) }
    });
    let answers = join_all(cold).await;
    let mut refused = 0;
    for answer in &answers {
        let [record] = &recorded(&broker, answer)[..] else { panic!("one record") };
        match answer {
            Ok(answer) => broker.is_secret(&answer.credentials[0].token),
            Err(status) => {
                refused += 1;
                assert_eq!((status.code(), reason(status).as_str()), (Code::Unavailable, "CLOUD_UNAVAILABLE"));
                assert_eq!((record.outcome.as_str(), record.reason.as_str()), ("failed", "CLOUD_UNAVAILABLE"));
                let error = &record.attributes["error"];
                assert!(error.contains("this process has too many open files"), "{error}");
            }
        }
    }
    assert!(refused > 0, "every call had a connection");
    let late = tokio::spawn({
        let (address, request) = (grpc.clone(), broker.request(&["vertex"]));
        async move {
            let mut client = client_at(&address).await.expect("a connection");
            client.exchange(request).await.map(tonic::Response::into_inner)
        }
    });
    assert!(client.exchange(broker.request(&["vertex"])).await.expect("served").into_inner().credentials[0].cached);
    limit(&process, "nofile", "1024");
    let late = late.await.expect("no panic").expect("whoever waited is answered");
    assert!(late.credentials[0].cached);
    broker.google.faults().clear("/v1/token");
    eventually("new credentials", async || {
        let request = broker.request_with(&somebody(&broker, 100), &["direct"]);
        client
            .exchange(request)
            .await
            .inspect(|answer| broker.is_secret(&answer.get_ref().credentials[0].token))
            .is_ok()
    })
    .await;
    // Connections to the clouds are kept for a while; whatever else was opened is closed.
    eventually("no file is left open", async || open_files(&process) <= before + 25).await;
    drop(process);
    broker.no_secret_was_left_behind();
}

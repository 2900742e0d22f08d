use axum::body;
use axum::routing::{get, post};
use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::duplex;
use tokio::task::JoinHandle;

use super::*;
use crate::socket::Address;

/// A connection to a listener that answers with more than a window holds: its end, and a client on it.
async fn connect(window: u32) -> (JoinHandle<()>, SendRequest<Bytes>) {
    let loopback: Address = "127.0.0.1:0".parse().expect("an address");
    let listener = Listener {
        name: "http",
        socket: Socket::bind(&loopback).await.expect("a socket"),
        tls: None,
        serves: Serves::Http(
            Router::new()
                .route("/large", get(async || "x".repeat(100_000)))
                .route(HELD_STREAMS[1], get(async || "x".repeat(100_000)))
                .route("/count", post(async |body: body::Bytes| body.len().to_string())),
        ),
        most: 1,
        draining: CancellationToken::new(),
        aborting: CancellationToken::new(),
        connections: TaskTracker::new(),
    };
    let place = Places::new(1, 0, 8, 100_000).take(None).expect("a place");
    let (near, far) = duplex(1 << 20);
    let serving = tokio::spawn(async move { listener.connection(far, "192.0.2.1:1".to_owned(), place).await });
    let (client, connection) =
        h2::client::Builder::new().initial_window_size(window).handshake(near).await.expect("HTTP/2");
    tokio::spawn(connection);
    (serving, client)
}

fn request() -> http::Request<()> {
    http::Request::get("http://carnet/large").body(()).expect("a request")
}

#[tokio::test(start_paused = true)]
async fn who_asks_and_takes_no_answer_is_cut_off() {
    let (serving, mut client) = connect(0).await;
    let (answer, _body) = client.send_request(request(), true).expect("sent");
    let answer = answer.await.expect("a head");
    timeout(LOOK_FOR_UNREAD * 3, serving).await.expect("cut off").expect("a clean end");
    drop(answer);
}

#[tokio::test(start_paused = true)]
async fn a_search_of_the_audit_log_has_its_own_patience_and_costs_no_request_its_connection() {
    let (serving, mut client) = connect(0).await;
    let request = http::Request::get(format!("http://carnet{}", HELD_STREAMS[1])).body(()).expect("a request");
    let (answer, _body) = client.send_request(request, true).expect("sent");
    let _answer = answer.await.expect("a head");
    sleep(LOOK_FOR_UNREAD * 3).await;
    assert!(!serving.is_finished());
}

#[tokio::test(start_paused = true)]
async fn who_takes_every_answer_stays_for_as_long_as_it_likes() {
    let (serving, mut client) = connect(1 << 20).await;
    for _ in 0..20 {
        let (answer, _body) = client.send_request(request(), true).expect("sent");
        let mut body = answer.await.expect("a head").into_body();
        while let Some(part) = body.data().await {
            let part = part.expect("a part");
            body.flow_control().release_capacity(part.len()).expect("released");
        }
        sleep(LOOK_FOR_UNREAD).await;
    }
    assert!(!serving.is_finished());
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_beyond_the_places_is_refused_at_once() {
    let (_serving, mut client) = connect(0).await;
    let mut answers = Vec::new();
    for _ in 0..12 {
        answers.push(client.send_request(request(), true).expect("sent").0);
    }
    let mut statuses = Vec::new();
    for answer in answers {
        statuses.push(answer.await.expect("a head").status().as_u16());
    }
    assert_eq!(statuses, [[200; 8].as_slice(), &[429; 4]].concat());
}

/// `grpc` and `http` read a body whole; what they hold of all bodies is bounded before that.
#[tokio::test(start_paused = true)]
async fn large_bodies_are_held_up_to_a_bound_and_small_ones_go_on() {
    let (_serving, client) = connect(1 << 20).await;
    let send = async |size: usize, end| {
        let request = http::Request::post("http://carnet/count").body(()).expect("a request");
        let (answer, mut body) =
            client.clone().ready().await.expect("ready").send_request(request, false).expect("sent");
        body.send_data(vec![0; size].into(), end).expect("sent");
        (answer, body)
    };
    let unfinished = send(90_000, false).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(send(10_000, true).await.0.await.expect("a head").status().as_u16(), 200);
    assert_eq!(
        send(60_000, true).await.0.await.expect("a head").status().as_u16(),
        400,
        "what axum says of a body that breaks off"
    );
    drop(unfinished);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(send(60_000, true).await.0.await.expect("a head").status().as_u16(), 200, "there is room again");
}

//! Large bodies that never end: what is held of them has a bound, one address has a part of it, and small requests pass.

use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use tokio::net::TcpSocket;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::while_others_are_served;
use crate::support::{Broker, eventually, with_broker};

/// What a door calls a large body for which it has no room, and one that it has read and found to be nothing.
struct DoorOf {
    address: fn(&Broker) -> &str,
    path: &'static str,
    content_type: &'static str,
    crowded: &'static str,
    nothing: &'static str,
}

const DOORS: [DoorOf; 2] = [
    DoorOf {
        address: Broker::grpc_address,
        path: "/carnet.v1.TokenExchange/Exchange",
        content_type: "application/grpc",
        crowded: "8",
        nothing: "3",
    },
    DoorOf {
        address: |broker| &broker.http,
        path: "/v1/token",
        content_type: "application/x-www-form-urlencoded",
        crowded: "429",
        nothing: "400",
    },
];

/// Of gRPC, all but the last byte of a message of fields that nobody knows; of HTTP, the begin of such a form.
fn nearly_all() -> Bytes {
    let mut body = vec![b'x'; LARGE];
    let length = u32::try_from(LARGE - 5 + 1).expect("small").to_be_bytes();
    body.splice(..5, [&[0][..], &length].concat());
    body.into()
}

struct Hog {
    client: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

impl Hog {
    async fn connect(from: &str, to: &str) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(format!("{from}:0").parse().expect("an address")).expect("bound");
        let to = to.trim_start_matches("http://").parse().expect("an address");
        let stream = socket.connect(to).await.expect("a connection");
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        Self { client, connection: tokio::spawn(async { drop(connection.await) }) }
    }

    async fn post(&self, door: &DoorOf) -> (ResponseFuture, SendStream<Bytes>) {
        let uri = format!("http://carnet{}", door.path);
        let request = http::Request::post(uri).header("content-type", door.content_type).header("te", "trailers");
        let mut client = self.client.clone().ready().await.expect("a stream");
        let (answer, mut body) = client.send_request(request.body(()).expect("a request"), false).expect("sent");
        body.send_data(nearly_all(), false).expect("sent");
        (answer, body)
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// `grpc-status`, or the status of HTTP.
async fn status(answer: ResponseFuture) -> String {
    let answer = timeout(Duration::from_secs(60), answer).await.expect("in time").expect("an answer");
    let status = answer.headers().get("grpc-status").map(|status| status.to_str().expect("digits").to_owned());
    status.unwrap_or_else(|| answer.status().as_u16().to_string())
}

/// How such a body is answered once it does end.
async fn of_one(from: &str, broker: &Broker, door: &DoorOf) -> String {
    let hog = Hog::connect(from, (door.address)(broker)).await;
    let (answer, mut body) = hog.post(door).await;
    body.send_data(Bytes::from_static(b"x"), true).expect("sent");
    status(answer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_that_never_end_leave_room_for_small_ones_and_for_other_addresses() {
    for door in DOORS {
        with_broker(async |broker| {
            while_others_are_served(broker, crowd(broker, &door)).await;
            let is_free = async || of_one("127.0.0.1", broker, &door).await == door.nothing;
            eventually("room after the connections have ended", is_free).await;
        })
        .await;
    }
}

async fn crowd(broker: &Broker, door: &DoorOf) {
    let mut hogs = Vec::new();
    let (mut held, mut answers) = (Vec::new(), JoinSet::new());
    for _ in 0..CONNECTIONS {
        let hog = Hog::connect("127.0.0.1", (door.address)(broker)).await;
        for _ in 0..TOGETHER / CONNECTIONS {
            let (answer, body) = hog.post(door).await;
            held.push(body);
            answers.spawn(status(answer));
        }
        hogs.push(hog);
    }
    // Those that have come whole stay; the others are refused one after the other.
    let room = 128 * 1024 * 1024 / (LARGE - 16 * 1024);
    let mut before = 0;
    while before != answers.len() || before > room * 9 / 10 {
        before = answers.len();
        tokio::time::sleep(Duration::from_millis(500)).await;
        while let Some(refused) = answers.try_join_next() {
            assert_eq!(refused.expect("an answer"), door.crowded);
        }
    }
    assert!(before > room * 7 / 10, "{before} of {room}");
    assert_eq!(of_one("127.0.0.2", broker, door).await, door.nothing, "another address has room");
}

const LARGE: usize = 156 * 1024;
/// There would be room for all of them, if one address might have it.
const TOGETHER: usize = 900;
const CONNECTIONS: usize = 10;

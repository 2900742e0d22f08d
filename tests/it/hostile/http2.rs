//! HTTP/2 frames without end, in every order that brought servers down, on both listeners.

use std::time::Duration;

use super::{Ended, Raw, while_others_are_served};
use crate::support::{Broker, Setup, with_broker};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header by name and value, without Huffman coding or the dynamic table (RFC 7541 section 6.2.2).
fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0];
    for text in [name, value] {
        // Lengths from 127 on take more bytes.
        match text.len() {
            short @ 0..127 => field.push(u8::try_from(short).expect("short")),
            long => {
                let mut rest = long - 127;
                field.push(127);
                while rest >= 128 {
                    field.push(u8::try_from(rest % 128 + 128).expect("a byte"));
                    rest /= 128;
                }
                field.push(u8::try_from(rest).expect("a byte"));
            }
        }
        field.extend(text.as_bytes());
    }
    field
}

/// The head of an exchange.
fn head() -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/carnet.v1.TokenExchange/Exchange"),
        (":authority", "carnet"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    fields.iter().flat_map(|(name, value)| literal(name, value)).collect()
}

fn stream(number: u32) -> u32 {
    number * 2 + 1
}

/// What is said over and over, by its number.
type Said = fn(u32) -> Vec<u8>;

/// Each costs the broker more than its sender, so no connection may go on with it.
const FLOODS: [(&str, Said); 16] = [
    ("rapid reset", |number| {
        let head = frame(HEADERS, END_HEADERS, stream(number), &head());
        [head, frame(RST_STREAM, 0, stream(number), &8_u32.to_be_bytes())].concat()
    }),
    ("resets that the broker is made to send, by window updates of nothing", |number| {
        let head = frame(HEADERS, END_HEADERS, stream(number), &head());
        [head, frame(WINDOW_UPDATE, 0, stream(number), &[0; 4])].concat()
    }),
    ("resets that the broker is made to send, by data after the end", |number| {
        let head = frame(HEADERS, END_HEADERS | END_STREAM, stream(number), &head());
        [head, frame(DATA, 0, stream(number), &[0; 32])].concat()
    }),
    ("streams beyond the limit", |number| frame(HEADERS, END_HEADERS, stream(number), &head())),
    ("heads without anything in them", |number| frame(HEADERS, END_HEADERS | END_STREAM, stream(number), &[])),
    ("heads of 16 KB, continued", |number| match number {
        0 => frame(HEADERS, 0, 1, &[0; 16_384]),
        _ => frame(CONTINUATION, 0, 1, &literal("x", &"y".repeat(16_000))),
    }),
    ("continuations of nothing", |number| match number {
        0 => frame(HEADERS, 0, 1, &head()),
        _ => frame(CONTINUATION, 0, 1, &[]),
    }),
    ("a head that unpacks to sixty megabytes", |number| {
        // One entry of 4,000 bytes into the dynamic table, then named 15,000 times.
        let mut bomb = vec![0x40];
        bomb.extend(&literal("bomb", &"x".repeat(4000))[1..]);
        bomb.extend([0xbe; 12_000]);
        frame(HEADERS, END_HEADERS | END_STREAM, stream(number), &[head(), bomb].concat())
    }),
    ("settings", |_number| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
    ("pings", |number| frame(PING, 0, 0, &u64::from(number).to_be_bytes())),
    ("window updates", |_number| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
    ("priorities", |number| frame(PRIORITY, 0, stream(number % 200), &[0, 0, 0, 0, 7])),
    ("empty data", |number| match number {
        0 => frame(HEADERS, END_HEADERS, 1, &head()),
        _ => frame(DATA, 0, 1, &[]),
    }),
    ("a message byte by byte", |number| match number {
        0 => [frame(HEADERS, END_HEADERS, 1, &head()), frame(DATA, 0, 1, &[0, 0, 1, 0x86, 0xa0])].concat(),
        _ => frame(DATA, 0, 1, &[7]),
    }),
    ("frames of no known type", |_number| frame(0xfa, 0xff, 0, &[1, 2, 3])),
    ("what is no frame", |_number| vec![0xff; 64]),
];

async fn connect(address: &str) -> Raw {
    let mut raw = Raw::connect(address).await;
    assert_eq!(raw.say(PREFACE).await, Ended::No);
    assert_eq!(raw.say(&frame(SETTINGS, 0, 0, &[])).await, Ended::No);
    raw
}

/// Whether a GOAWAY is among the frames.
fn is_told_to_go(mut heard: &[u8]) -> bool {
    while let [a, b, c, kind, rest @ ..] = heard {
        if *kind == GOAWAY {
            return true;
        }
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize + 5;
        heard = rest.get(length..).unwrap_or_default();
    }
    false
}

async fn is_cut(address: &str, said: Said) -> bool {
    let mut raw = connect(address).await;
    for hundred in 0..1000 {
        let bytes: Vec<u8> = (0..100).flat_map(|number| said(hundred * 100 + number)).collect();
        if raw.say(&bytes).await == Ended::Yes || is_told_to_go(&raw.heard) {
            return true;
        }
        // The frames are looked at anew each time.
        if raw.heard.len() > 1 << 20 {
            return raw.listen(Duration::from_secs(5), is_told_to_go).await == Ended::Yes || is_told_to_go(&raw.heard);
        }
    }
    raw.listen(Duration::from_secs(5), is_told_to_go).await == Ended::Yes || is_told_to_go(&raw.heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_without_end_that_ask_for_nothing_end_their_connection_and_nobody_elses() {
    with_broker(async |broker| {
        let addresses = [broker.grpc_address().to_owned(), broker.http.clone()];
        let lives = while_others_are_served(broker, async {
            let mut lives = Vec::new();
            for (name, said) in FLOODS {
                for address in &addresses {
                    if !is_cut(address, said).await {
                        lives.push(format!("{name} at {address}"));
                    }
                }
            }
            lives
        });
        assert_eq!(lives.await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_and_does_not_listen_holds_up_nobody_and_is_cut_off_by_a_drain() {
    let mut broker = Broker::start_for(Setup::default()).await;
    let deaf = while_others_are_served(&broker, async {
        let mut deaf = Vec::new();
        for address in [broker.grpc_address(), &broker.http] {
            for connection in 0..8 {
                let mut raw = Raw::connect(address).await;
                raw.say_only(PREFACE).await;
                // No window for any answer, or one of a byte.
                raw.say_only(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, u8::from(connection % 2 == 0)])).await;
                let get = |path| [literal(":method", "GET"), literal(":scheme", "http"), literal(":path", path)];
                let asked = (0..200).flat_map(|number| {
                    let fields = get(["/metrics", "/keys", "/healthz"][number as usize % 3]).concat();
                    frame(HEADERS, END_HEADERS | END_STREAM, stream(number), &fields)
                });
                raw.say_only(&asked.collect::<Vec<u8>>()).await;
                deaf.push(raw);
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        deaf
    });
    let deaf = deaf.await;
    // They are still there, and take nothing.
    let drained = tokio::time::timeout(Duration::from_secs(30), broker.take_app().drain()).await;
    drained.expect("a drain that ends");
    drop(deaf);
    broker.no_secret_was_left_behind();
}

/// Name, message, headers, and the codes that may come of it.
type Wrong = (&'static str, &'static [u8], &'static [(&'static str, &'static str)], &'static [&'static str]);

/// gRPC's own: a message that says it is larger than it may be, one that is compressed, and one that never comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_or_compressed_or_late_is_refused_by_itself() {
    with_broker(async |broker| {
        let cases: [Wrong; 3] = [
            ("four gigabytes", &[0, 0xff, 0xff, 0xff, 0xff], &[], &["11", "8"]),
            ("gzip", &[1, 0, 0, 0, 3, 0x1f, 0x8b, 8], &[("grpc-encoding", "gzip")], &["12", "13"]),
            ("nothing in time", &[0, 0, 0, 1, 0], &[("grpc-timeout", "200m")], &["4"]),
        ];
        for (name, message, headers, expected) in cases {
            assert!(expected.contains(&status(broker, message, headers).await.as_str()), "{name}");
        }
    })
    .await;
}

/// `grpc-status` of a call that begins like this and goes no further.
async fn status(broker: &Broker, message: &[u8], headers: &[(&str, &str)]) -> String {
    let address = broker.grpc_address().trim_start_matches("http://");
    let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let (mut client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let path = format!("http://{address}/carnet.v1.TokenExchange/Exchange");
    let mut request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (answer, mut body) = client.send_request(request.body(()).expect("a request"), false).expect("sent");
    body.send_data(bytes::Bytes::copy_from_slice(message), false).expect("sent");
    let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.expect("in time").expect("an answer");
    connection.abort();
    let status = answer.headers().get("grpc-status").expect("a status");
    status.to_str().expect("digits").to_owned()
}

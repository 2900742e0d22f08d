//! HTTP/1.1 as it was never meant: heads that do not end, two lengths, requests in requests.

use std::time::Duration;

use super::{Ended, Raw, while_others_are_served};
use crate::support::with_broker;

fn answers(heard: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(heard);
    let codes = text.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)?.parse().ok());
    codes.collect()
}

/// The one case whose end is known: its connection may live.
const WHOLE: &str = "a body that is compressed";

/// What is said at once, and the answers that may come of it. Whatever is inside of a request is none.
fn cases() -> Vec<(&'static str, String, Vec<u16>)> {
    let post = |headers: &str, body: &str| {
        format!(
            "POST /v1/token HTTP/1.1\r\nHost: carnet\r\nContent-Type: application/x-www-form-urlencoded\r\n{headers}\r\n{body}"
        )
    };
    let inner = "GET /healthz HTTP/1.1\r\nHost: carnet\r\n\r\n";
    let chunked = |extra: &str| format!("Transfer-Encoding: chunked\r\n{extra}");
    vec![
        ("a head of 64 KB", format!("GET /healthz HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(65_536)), vec![431]),
        ("a path of 64 KB", format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(65_536)), vec![431, 414]),
        ("a thousand headers", format!("GET /healthz HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1000)), vec![431]),
        ("no HTTP", "\0\0\0\0 nothing at all\r\n\r\n".to_owned(), vec![400]),
        ("a length and chunks", post(&chunked("Content-Length: 6\r\n"), &format!("0\r\n\r\n{inner}")), vec![400]),
        (
            "chunks and a length",
            post("Content-Length: 40\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{inner}")),
            vec![400],
        ),
        ("two lengths", post("Content-Length: 0\r\nContent-Length: 41\r\n", inner), vec![400]),
        ("two lengths in one", post("Content-Length: 0, 41\r\n", inner), vec![400]),
        ("a length with a sign", post("Content-Length: +0\r\n", inner), vec![400]),
        ("a length with a blank before the colon", post("Content-Length : 41\r\n", inner), vec![400]),
        ("chunks that are not last", post("Transfer-Encoding: chunked, identity\r\n", inner), vec![400]),
        ("chunks by another name", post("Transfer-Encoding: xchunked\r\n", inner), vec![400]),
        ("a folded header", post("X: y\r\n Content-Length: 41\r\n", inner), vec![400]),
        ("a bare line feed", post("X: y\rContent-Length: 41\r\n", inner), vec![400]),
        ("a chunk of no size", post(&chunked(""), &format!("z\r\n{inner}")), vec![400]),
        ("a chunk of endless size", post(&chunked(""), &format!("fffffffffffffffff\r\n{inner}")), vec![400]),
        (
            "chunk extensions without end",
            post(&chunked(""), &format!("1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(100_000))),
            vec![400],
        ),
        ("a body beyond the limit, as it says", post("Content-Length: 99999999999\r\n", ""), vec![400, 413]),
        (WHOLE, post("Content-Encoding: gzip\r\nContent-Length: 3\r\n", "\x1f\u{8}\0"), vec![400]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_can_be_read_in_two_ways_or_never_end_get_one_refusal() {
    with_broker(async |broker| {
        let wrong = while_others_are_served(broker, async {
            let mut wrong = Vec::new();
            for (name, said, expected) in cases() {
                let mut raw = Raw::connect(&broker.http).await;
                raw.say(said.as_bytes()).await;
                let ended = raw.listen(Duration::from_secs(5), |_heard| false).await;
                let heard = answers(&raw.heard);
                // A broker that has heard enough may be gone before its answer is read; one that has heard all is not.
                let is_whole = name == WHOLE;
                let stays = ended == Ended::No && !is_whole;
                let refused = heard.iter().all(|code| expected.contains(code));
                if stays || !refused || heard.len() > 1 || (is_whole && heard.is_empty()) {
                    wrong.push(format!("{name}: {ended:?}, {heard:?}, {:?}", raw.text()));
                }
            }
            wrong
        });
        assert_eq!(wrong.await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_a_row_whose_answers_nobody_reads_are_not_taken_for_ever() {
    with_broker(async |broker| {
        let taken = while_others_are_served(broker, async {
            let mut raw = Raw::connect(&broker.http).await;
            let said = b"GET /metrics HTTP/1.1\r\nHost: carnet\r\n\r\n".repeat(1000);
            let mut taken = 0;
            for _ in 0..200 {
                raw.say_only(&said).await;
                if raw.written == taken {
                    break;
                }
                taken = raw.written;
            }
            taken
        });
        let taken = taken.await;
        assert!(taken < 200 * 1000 * 39, "{taken} bytes were taken");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_and_handshakes_that_come_byte_by_byte_are_cut_off() {
    let folder = tempfile::tempdir().expect("a folder");
    crate::tls::Authority::new().write(folder.path());
    let grpc = crate::support::free_port();
    let setup = crate::tls::setup(folder.path(), grpc, "");
    // The clear listeners of one broker, and those of another that wants TLS first.
    with_broker(async |broker| {
        crate::support::with_setup(setup, async |_tls| {
            let hello: &[u8] =
                &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8];
            let head: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: carnet\r\nX: y\r\nX: y\r\n";
            let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM";
            let tls = format!("127.0.0.1:{grpc}");
            let trickles = [(tls.as_str(), hello), (&broker.http, head), (broker.grpc_address(), preface)];
            let cut = trickles.map(async |(address, said)| {
                let mut raw = Raw::connect(address).await;
                for byte in said.iter().cycle().take(said.len().min(28)) {
                    if raw.say(&[*byte]).await == Ended::Yes {
                        return true;
                    }
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                raw.listen(Duration::from_secs(2), |_heard| false).await == Ended::Yes
            });
            let cut = while_others_are_served(broker, futures_util::future::join_all(cut)).await;
            assert_eq!(cut, [true; 3]);
        })
        .await;
    })
    .await;
}

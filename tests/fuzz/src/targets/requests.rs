//! A gRPC call: the first byte chooses the method, the rest is the message as it comes out of its frame. A first field
//! `{token}` stands for a good subject token, and `{lease}` for the token of a lease that was just opened.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::{BufMut as _, Bytes, BytesMut};
use carnet::audit::Records;
use carnet::grpc::{self, Doors, Routes};
use carnet::lease::{FakeLeaseStore, Leases};
use carnet::operator::{Operator, Searches};
use carnet::proto;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prost::Message as _;
use tower::Service as _;

use crate::broker::{exchange, names_issued};
use crate::store::Chest;
use crate::world::{CONFIGURED, ISSUER, TOKEN, block_on, clock, configured, settings, show, verifier};

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static CONNECTION: RefCell<Option<SendRequest<Full<Bytes>>>> = const { RefCell::new(None) };
}

pub fn run(data: &[u8]) {
    let Some((choice, message)) = data.split_first().filter(|_| !names_issued(data)) else { return };
    let method = METHODS[usize::from(*choice) % METHODS.len()];
    // Leases that were opened are kept: a new broker has none.
    let calls = CALLS.replace(CALLS.get().wrapping_add(1));
    let mut connection = match CONNECTION.with(RefCell::take) {
        Some(connection) if !calls.is_multiple_of(20_000) => connection,
        _ => connect(),
    };
    let message = with_field(message, b"{token}", || TOKEN.clone());
    let message = with_field(&message, b"{lease}", || opened(&mut connection));
    let (status, said, answer) = call(&mut connection, method, &message);
    CONNECTION.set(Some(connection));
    show(|| format!("{method}: {status:?} {said} {} bytes", answer.len()));
    // Unknown and internal are what nobody thought of, but for what is no message at all.
    let unthought = matches!(status, Some(2 | 13)) && !said.starts_with("failed to decode");
    assert!(!unthought, "{method}: {status:?} {said}");
    assert!(!String::from_utf8_lossy(&answer).contains(TOKEN.as_str()), "the subject token comes back");
}

/// The status with its words, and the answer without its frames' heads where there is one only.
fn call(connection: &mut SendRequest<Full<Bytes>>, method: &str, message: &[u8]) -> (Option<u8>, String, Vec<u8>) {
    let mut frame = BytesMut::with_capacity(message.len() + HEAD);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).expect("a short message"));
    frame.put_slice(message);
    let request = http::Request::post(format!("http://broker/carnet.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", TOKEN.as_str()))
        .body(Full::new(frame.freeze()))
        .expect("a request");
    block_on(async {
        // What was counted against the caller is forgotten.
        tokio::time::sleep(A_WHILE).await;
        connection.ready().await.expect("an open connection");
        let (head, mut body) = connection.send_request(request).await.expect("an answer").into_parts();
        let (mut bytes, mut trailers) = (Vec::new(), head.headers);
        // Streams go on for as long as somebody listens.
        while let Ok(Some(Ok(frame))) = tokio::time::timeout(LISTENS, body.frame()).await {
            match frame.into_data() {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => trailers.extend(frame.into_trailers().expect("trailers")),
            }
        }
        let text = |name: &str| trailers.get(name).and_then(|text| text.to_str().ok()).unwrap_or_default();
        (
            text("grpc-status").parse().ok(),
            text("grpc-message").replace("%20", " "),
            bytes.get(HEAD..).unwrap_or_default().to_vec(),
        )
    })
}

/// The token of a new lease.
fn opened(connection: &mut SendRequest<Full<Bytes>>) -> String {
    let target = |name: &str| proto::TargetRequest { target: name.to_owned(), ..Default::default() };
    let request = proto::OpenLeaseRequest {
        subject_token: TOKEN.clone(),
        targets: vec![target("google-account"), target("azure-issuer")],
        duration: Some(prost_types::Duration { seconds: 7200, nanos: 0 }),
        ..Default::default()
    };
    let (status, _said, answer) = call(connection, "Leases/OpenLease", &request.encode_to_vec());
    let opened = proto::OpenLeaseResponse::decode(answer.as_slice());
    opened.unwrap_or_else(|error| panic!("no lease: {error} {status:?}")).lease_token
}

/// Field 1 of the text `place`, with another in its place.
fn with_field(message: &[u8], place: &[u8; 7], text: impl FnOnce() -> String) -> Vec<u8> {
    let field = [&[0x0a, 7][..], &place[..]].concat();
    let Some(at) = message.windows(field.len()).position(|window| window == field) else { return message.to_vec() };
    let (text, mut put) = (text(), vec![0x0a]);
    prost::encoding::encode_varint(text.len().try_into().expect("a length"), &mut put);
    put.extend_from_slice(text.as_bytes());
    [&message[..at], &put, &message[at + field.len()..]].concat()
}

fn connect() -> SendRequest<Full<Bytes>> {
    let exchange = exchange();
    block_on(async {
        let leases = Leases::start(exchange.clone(), Arc::new(FakeLeaseStore::default()), NonZeroU32::MAX);
        let operator = Operator {
            verifier: Arc::new(verifier()),
            operators: Arc::new(ArcSwap::from_pointee(configured(CONFIGURED).operators)),
            leases: leases.clone(),
            exchange: exchange.clone(),
            entra: settings(),
            issuer: Some(ISSUER.clone()),
            audit: exchange.audit.clone(),
            records: Records::new(Arc::new(Chest::default())),
            searches: Arc::new(Searches::default()),
            clock: clock(),
        };
        let doors = Doors { exchange, leases, operator: Arc::new(operator), clock: clock() };
        let routes: Routes = grpc::services(doors).await.expect("good descriptors").routes;
        let (client, server) = tokio::io::duplex(1024 * 1024);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
                let mut routes = routes.clone();
                async move { Ok::<_, Infallible>(routes.call(request).await.expect("infallible")) }
            });
            let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
            let _ = builder.serve_connection(TokioIo::new(server), service).await;
        });
        let (connection, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.expect("HTTP/2");
        tokio::spawn(driver);
        connection
    })
}

const METHODS: [&str; 10] = [
    "TokenExchange/Exchange",
    "Leases/OpenLease",
    "Leases/RenewLease",
    "Leases/GetCredentials",
    "Leases/CloseLease",
    "Leases/WatchCredentials",
    "Operator/Explain",
    "Operator/SearchAudit",
    "Operator/ListLeases",
    "Operator/RevokeLeases",
];

/// A flag and a length.
const HEAD: usize = 5;

const LISTENS: Duration = Duration::from_secs(1);
const A_WHILE: Duration = Duration::from_secs(60);

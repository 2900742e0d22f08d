//! Which service answers a call, and by when it has to.

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::{BoxError, Router};
use bytes::Bytes;
use futures_util::future::{BoxFuture, Map};
use futures_util::{FutureExt as _, TryFutureExt as _};
use http::{HeaderMap, Request, Response};
use hyper::body;
use tokio::time::error::Elapsed;
use tokio::time::{Timeout, timeout};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::service::TokenExchangeService;
use crate::proto::token_exchange_server::TokenExchangeServer;

/// Everything that the gRPC listener serves.
#[derive(Debug, Clone)]
pub struct Routes {
    /// Found by its path at once, because nearly every call is for it.
    pub(super) exchange: TokenExchangeServer<TokenExchangeService>,
    pub(super) others: Router,
}

type Answer = Result<Response<Body>, Infallible>;

impl<B> Service<Request<B>> for Routes
where
    B: body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    /// Until the answer's head; a stream goes on after it.
    type Future = Map<Timeout<BoxFuture<'static, Answer>>, fn(Result<Answer, Elapsed>) -> Answer>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// The whole call has one deadline, its body included: tonic reads the message before a service sees it. An exchange
    /// goes on without its caller.
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let deadline = deadline(request.headers());
        let answer = if request.uri().path().starts_with(EXCHANGE) {
            self.exchange.call(request)
        } else {
            self.others.call(request).map_ok(|response| response.map(Body::new)).boxed()
        };
        timeout(deadline, answer).map(in_time)
    }
}

fn in_time(answered: Result<Answer, Elapsed>) -> Answer {
    answered.unwrap_or_else(|_elapsed| Ok(Status::deadline_exceeded("the call was not complete in time").into_http()))
}

/// `grpc-timeout` (gRPC over HTTP/2): at most eight digits and a unit.
fn deadline(headers: &HeaderMap) -> Duration {
    let parse = |text: &str| {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let number: u64 = number.parse().ok().filter(|_number| number.len() <= 8)?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    };
    let asked = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse);
    asked.unwrap_or(LONGEST_CALL).min(LONGEST_CALL)
}

const EXCHANGE: &str = "/carnet.v1.TokenExchange/";

/// No exchange takes longer: its upstream calls end before.
const LONGEST_CALL: Duration = Duration::from_secs(30);

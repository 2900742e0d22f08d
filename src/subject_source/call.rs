//! Calls of a source to whoever gives the token: retried where that helps, within a deadline.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use super::{SourceError, SourceName};
use crate::answer::{TokenAnswer, Verdict};
use crate::clock::Clock;
use crate::entra::{Class, Failure};
use crate::http::{Client, HttpError, Request, Response};

/// The way out.
#[async_trait]
pub(super) trait Web: Debug + Send + Sync + 'static {
    async fn send(&self, request: Request, deadline: Duration) -> Result<Response, HttpError>;
}

#[async_trait]
impl Web for Client {
    async fn send(&self, request: Request, deadline: Duration) -> Result<Response, HttpError> {
        Client::send(self, request, ANSWER_MAX_BYTES, deadline).await
    }
}

/// How patiently.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Before the second attempt, the third and so on; a longer `Retry-After` is kept.
    pub waits: &'static [Duration],
    /// All attempts together.
    pub deadline: Duration,
}

/// Entra's token endpoint.
pub(super) const TOKEN_ENDPOINT: Pace = Pace {
    waits: &[Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)],
    deadline: Duration::from_secs(20),
};

/// Sends what `request` makes until `judge` calls an answer final.
pub(super) async fn call(
    web: &dyn Web,
    clock: &dyn Clock,
    name: SourceName,
    pace: Pace,
    request: impl Fn() -> Result<Request, SourceError>,
    judge: impl Fn(&Response) -> Verdict,
) -> Result<Response, SourceError> {
    let end = Instant::now() + pace.deadline;
    let mut waits = pace.waits.iter();
    loop {
        let left = end.saturating_duration_since(Instant::now()).min(ATTEMPT_DEADLINE);
        let (cause, asked) = match web.send(request()?, left).await {
            Ok(response) => match judge(&response) {
                Verdict::Final => return Ok(response),
                Verdict::Transient(cause) => (cause, response.retry_after(clock.now())),
                Verdict::IssuerUnreachable => (ISSUER_UNREACHABLE.to_owned(), response.retry_after(clock.now())),
                Verdict::Throttled => ("too many requests".to_owned(), response.retry_after(clock.now())),
            },
            Err(error) => (error.to_string(), None),
        };
        let wait = waits.next().map(|wait| (*wait).max(asked.unwrap_or_default()));
        match wait.filter(|wait| Instant::now() + *wait < end) {
            Some(wait) => sleep(wait).await,
            None => return Err(SourceError::Unavailable { name, cause }),
        }
    }
}

/// What the token endpoint gave, or its refusal with what helps.
pub(super) fn token_answer(name: SourceName, response: &Response) -> Result<TokenAnswer, SourceError> {
    if !response.status.is_success() {
        return Err(refusal(name, response));
    }
    TokenAnswer::read(response).ok_or(SourceError::Malformed { name })
}

pub(super) fn refusal(name: SourceName, response: &Response) -> SourceError {
    let failure = Failure::read(response);
    let meaning = match failure.class() {
        Some((Class::SignIn, meaning)) => format!("{meaning}; run `carnet login`"),
        Some((Class::Challenge, _meaning)) => {
            "Entra wants a person's consent or a stronger sign-in; run `carnet login`, or ask the administrator of the \
             broker's registration"
                .to_owned()
        }
        Some((_class, meaning)) => meaning.to_owned(),
        None => "see Entra's documentation of the code".to_owned(),
    };
    SourceError::Refused { name, code: failure.code(response), meaning }
}

const ISSUER_UNREACHABLE: &str = "Entra cannot fetch the keys of the issuer of the federated token";

/// Above any token answer: Entra's tokens have at most 256,000 bytes by its own documentation.
const ANSWER_MAX_BYTES: usize = 1024 * 1024;

/// One attempt; Entra answers within a second or not at all, the metadata service may take longer.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(10);

#[cfg(test)]
pub(super) use self::fake::FakeWeb;

#[cfg(test)]
mod fake {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;

    /// Gives the answers in order, and keeps what it was asked as one text each.
    #[derive(Debug, Default)]
    pub(in crate::subject_source) struct FakeWeb {
        answers: Mutex<VecDeque<(u16, String)>>,
        pub asked: Mutex<Vec<String>>,
    }

    impl FakeWeb {
        pub fn answering<T: Into<String>>(answers: impl IntoIterator<Item = (u16, T)>) -> Self {
            let answers = answers.into_iter().map(|(status, body)| (status, body.into()));
            Self { answers: Mutex::new(answers.collect()), asked: Mutex::default() }
        }

        pub fn asked(&self) -> Vec<String> {
            self.asked.lock().expect("no panic").clone()
        }
    }

    #[async_trait]
    impl Web for FakeWeb {
        async fn send(&self, request: Request, deadline: Duration) -> Result<Response, HttpError> {
            self.asked.lock().expect("no panic").push(request.shown());
            let (status, body) =
                self.answers.lock().expect("no panic").pop_front().ok_or(HttpError::Deadline(deadline))?;
            Ok(Response {
                status: http::StatusCode::from_u16(status).expect("a status"),
                headers: http::HeaderMap::new(),
                body: body.into(),
                peer_certificate: None,
            })
        }
    }
}

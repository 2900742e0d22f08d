//! A client without a network: a function answers for all the world.

use std::fmt;
use std::sync::Arc;

use super::{Client, HttpError, Request, Response};

/// What answers.
pub(super) struct Fake(Box<dyn Fn(&Request) -> Response + Send + Sync>);

impl Fake {
    pub fn answer(&self, request: &Request, limit: usize) -> Result<Response, HttpError> {
        let answer = (self.0)(request);
        if answer.body.len() > limit { Err(HttpError::TooLarge(limit)) } else { Ok(answer) }
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

impl Client {
    /// The same client, its requests answered by `answer` in place of whom they are for.
    pub fn answered_by(&self, answer: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        Self { fake: Some(Arc::new(Fake(Box::new(answer)))), ..self.clone() }
    }
}

impl Request {
    /// Where it goes.
    pub fn url(&self) -> &str {
        &self.url
    }
}

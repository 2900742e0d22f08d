//! What a stand-in was asked, so that tests can say how often and with what.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method};

use crate::sandbox::locked::locked;

/// One request as it arrived. Holds tokens, so `Debug` shows the method and the path only.
#[derive(Clone)]
pub struct Call {
    pub method: Method,
    /// Without the query, not decoded.
    pub path: String,
    /// Decoded, in order, duplicates kept.
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    /// The fields of a form body, decoded, in order; empty for other bodies.
    pub form: Vec<(String, String)>,
    pub body: Bytes,
}

impl Call {
    pub(super) fn new(parts: &Parts, body: Bytes) -> Self {
        let is_form = has_content_type(&parts.headers, FORM);
        Self {
            method: parts.method.clone(),
            path: parts.uri.path().to_owned(),
            query: fields(parts.uri.query().unwrap_or_default().as_bytes()),
            headers: parts.headers.clone(),
            form: if is_form { fields(&body) } else { Vec::new() },
            body,
        }
    }

    /// The first form field of this name.
    pub fn form(&self, name: &str) -> Option<&str> {
        first(&self.form, name)
    }

    /// The first query parameter of this name.
    pub fn query(&self, name: &str) -> Option<&str> {
        first(&self.query, name)
    }

    /// The first header of this name, when it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("method", &self.method).field("path", &self.path).finish_non_exhaustive()
    }
}

/// The latest requests of one stand-in, oldest first. Clones share the record.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<Mutex<VecDeque<Call>>>);

impl Calls {
    /// A copy of the whole record.
    pub fn all(&self) -> Vec<Call> {
        locked(&self.0).iter().cloned().collect()
    }

    /// The calls whose path ends in `endpoint`, for example `/v1/token` or `:generateAccessToken`.
    pub fn to(&self, endpoint: &str) -> Vec<Call> {
        let is_asked = |call: &&Call| call.path.ends_with(endpoint);
        locked(&self.0).iter().filter(is_asked).cloned().collect()
    }

    /// How many calls had a path that ends in `endpoint`.
    pub fn count(&self, endpoint: &str) -> usize {
        self.to(endpoint).len()
    }

    /// Forgets what was recorded so far.
    pub fn clear(&self) {
        locked(&self.0).clear();
    }

    pub(super) fn record(&self, call: Call) {
        let mut calls = locked(&self.0);
        if calls.len() == MAX_CALLS {
            calls.pop_front();
        }
        calls.push_back(call);
    }
}

/// Decodes `application/x-www-form-urlencoded` text, keeping order and duplicates.
pub(super) fn fields(text: &[u8]) -> Vec<(String, String)> {
    url::form_urlencoded::parse(text).into_owned().collect()
}

/// Whether the `Content-Type` is `expected`, whatever its parameters.
pub(super) fn has_content_type(headers: &HeaderMap, expected: &str) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case(expected))
}

fn first<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = fields.iter().find(|(key, _)| key == name)?;
    Some(&found.1)
}

pub(super) const FORM: &str = "application/x-www-form-urlencoded";

/// A sandbox that runs for days must not fill the memory with old requests.
const MAX_CALLS: usize = 20_000;

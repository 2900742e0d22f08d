//! Misbehaviour on demand: what a stand-in does instead of answering properly.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Response, StatusCode};

use crate::sandbox::locked::locked;

/// One way to answer badly. `Answer`, `Redirect`, `Drop`, `Reset`, `Silence` and `EndlessBody` do not run the request; the
/// others spoil its real answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Waits (tokio time), then answers as usual.
    Delay(Duration),
    /// As `Delay`, for anything up to this, anew for each call.
    Jitter(Duration),
    /// Takes the request and says nothing, for as long as the client waits.
    Silence,
    /// Answers with this status, these headers (`Retry-After`, say) and this body.
    Answer(Box<Response<String>>),
    /// Sends the real body under another content type.
    ContentType(String),
    /// Announces the whole body, sends half of it and cuts the connection.
    Truncate,
    /// Sends half of the body as if it were the whole.
    Halve,
    /// Cuts the connection before the first byte of the answer.
    Drop,
    /// As `Drop`, with a reset in place of a proper end.
    Reset,
    /// Sends the real body byte by byte with this pause after each.
    SlowBody(Duration),
    /// Sends a body that never ends, as fast as the client reads.
    EndlessBody,
    /// Answers 307 with this `Location`.
    Redirect(String),
}

impl Fault {
    /// An answer with this status, the given headers and body.
    ///
    /// # Errors
    /// A header name or value that HTTP does not allow.
    pub fn answer(status: StatusCode, headers: &[(&str, &str)], body: impl Into<String>) -> Result<Self, http::Error> {
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        Ok(Self::Answer(Box::new(answer.body(body.into())?)))
    }

    /// An empty answer with this status.
    pub fn status(status: StatusCode) -> Self {
        let mut answer = Response::new(String::new());
        *answer.status_mut() = status;
        Self::Answer(Box::new(answer))
    }
}

/// The faults planned for one stand-in. An endpoint is named by the end of its path, for example
/// `/oauth2/v2.0/token` or `:generateAccessToken`; an empty name means every path. Clones share the plan.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<BTreeMap<String, Plan>>>);

#[derive(Debug, Default)]
struct Plan {
    queue: VecDeque<Fault>,
    always: Option<Fault>,
}

impl Faults {
    /// The next call to `endpoint` that has no earlier fault waiting gets this one.
    pub fn once(&self, endpoint: &str, fault: Fault) {
        self.times(endpoint, 1, fault);
    }

    /// As [`once`](Self::once) for the next `count` calls.
    pub fn times(&self, endpoint: &str, count: usize, fault: Fault) {
        let mut plans = locked(&self.0);
        let plan = plans.entry(endpoint.to_owned()).or_default();
        plan.queue.extend(std::iter::repeat_n(fault, count));
    }

    /// Every call to `endpoint` gets this fault, once the queue is empty, until [`clear`](Self::clear).
    pub fn always(&self, endpoint: &str, fault: Fault) {
        let mut plans = locked(&self.0);
        plans.entry(endpoint.to_owned()).or_default().always = Some(fault);
    }

    /// Forgets what was planned for `endpoint`.
    pub fn clear(&self, endpoint: &str) {
        locked(&self.0).remove(endpoint);
    }

    /// The fault for a call to `path`: the most precise plan (the longest name) that still has one.
    pub(super) fn take(&self, path: &str) -> Option<Fault> {
        let mut plans = locked(&self.0);
        let mut matching: Vec<(&String, &mut Plan)> =
            plans.iter_mut().filter(|(endpoint, _)| path.ends_with(endpoint.as_str())).collect();
        matching.sort_by_key(|(endpoint, _)| std::cmp::Reverse(endpoint.len()));
        matching.into_iter().find_map(|(_, plan)| plan.queue.pop_front().or_else(|| plan.always.clone()))
    }
}

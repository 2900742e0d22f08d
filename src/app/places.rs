//! Places for connections and for requests, shared out among the addresses that callers come from.

use std::collections::HashMap;
use std::error::Error;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::grpc;
use crate::limit::{Crowded, network};

/// How many may be connected, and a few more from the broker's own host: a broker that is full is well, and its probe
/// has to be able to see that. One address gets four times what is free at most, so that none takes all; a balancer in
/// front of all callers gets four of five.
pub(super) struct Places {
    all: Arc<Semaphore>,
    loopback: Arc<Semaphore>,
    neighbours: Arc<Neighbours>,
    requests: Arc<Requests>,
}

/// By [`network`]; those without a connection are not there.
type Neighbours = Mutex<HashMap<String, Arc<Neighbour>>>;

/// What one address has.
#[derive(Debug, Default)]
struct Neighbour {
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// As of [`Requests`].
    large: AtomicUsize,
}

/// Requests whose answer is not sent, of all connections: each costs some 8 KB (measured with 4,000 of them).
#[derive(Debug)]
struct Requests {
    most: usize,
    open: AtomicUsize,
    /// Bytes of bodies that are not small, and are being read.
    large: AtomicUsize,
    most_large: usize,
}

/// The body of a request: what is held of those that come slowly has a bound for all together.
pub(super) struct Measured {
    body: Incoming,
    heard: usize,
    large: usize,
    neighbour: Arc<Neighbour>,
    requests: Arc<Requests>,
}

/// A connection's place, until it is dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    name: String,
    neighbour: Arc<Neighbour>,
    neighbours: Arc<Neighbours>,
    requests: Arc<Requests>,
}

/// A request's place, until it is dropped.
pub(super) struct UnderWay {
    neighbour: Arc<Neighbour>,
    requests: Arc<Requests>,
}

impl Places {
    pub fn new(all: usize, loopback: usize, requests: usize, most_large: usize) -> Self {
        let requests = Requests { most: requests, open: AtomicUsize::new(0), large: AtomicUsize::new(0), most_large };
        Self {
            all: Arc::new(Semaphore::new(all)),
            loopback: Arc::new(Semaphore::new(loopback)),
            neighbours: Arc::default(),
            requests: Arc::new(requests),
        }
    }

    /// A place for this peer; None where all are taken, or those that one address may have. `ip`: none for a Unix socket.
    pub fn take(&self, ip: Option<IpAddr>) -> Option<Place> {
        let name = ip.map_or_else(|| "unix".to_owned(), network);
        let mut neighbours = self.neighbours.lock().unwrap_or_else(PoisonError::into_inner);
        let has = neighbours.get(&name).map_or(0, |neighbour| neighbour.connections.load(Ordering::Relaxed));
        let is_fair = has < ALWAYS.max(self.all.available_permits().saturating_mul(TIMES));
        let place = is_fair.then(|| self.all.clone().try_acquire_owned().ok()).flatten();
        let permit = match ip {
            // A socket of both families shows callers of IPv4 as addresses of IPv6.
            Some(ip) if place.is_none() && ip.to_canonical().is_loopback() => {
                self.loopback.clone().try_acquire_owned().ok()
            }
            _ => place,
        }?;
        let neighbour = neighbours.entry(name.clone()).or_default().clone();
        neighbour.connections.fetch_add(1, Ordering::Relaxed);
        drop(neighbours);
        let (neighbours, requests) = (self.neighbours.clone(), self.requests.clone());
        Some(Place { _permit: permit, name, neighbour, neighbours, requests })
    }
}

impl Place {
    /// A place for a request of this connection; none where too many are under way.
    pub fn request(&self) -> Option<UnderWay> {
        let open = self.requests.open.fetch_add(1, Ordering::Relaxed) + 1;
        let has = self.neighbour.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let taken = UnderWay { neighbour: self.neighbour.clone(), requests: self.requests.clone() };
        let free = self.requests.most.saturating_sub(open);
        (open <= self.requests.most && has <= ALWAYS.max(free.saturating_mul(TIMES))).then_some(taken)
    }
}

impl Place {
    pub fn measured(&self, body: Incoming) -> Measured {
        let (neighbour, requests) = (self.neighbour.clone(), self.requests.clone());
        Measured { body, heard: 0, large: 0, neighbour, requests }
    }
}

impl Measured {
    /// Counts so much more; whether there is room for it.
    fn hold(&mut self, length: usize) -> bool {
        self.large += length;
        let all = self.requests.large.fetch_add(length, Ordering::Relaxed) + length;
        let own = self.neighbour.large.fetch_add(length, Ordering::Relaxed) + length;
        let free = self.requests.most_large.saturating_sub(all);
        all <= self.requests.most_large && own <= ALWAYS_LARGE.max(free.saturating_mul(TIMES))
    }
}

impl Body for Measured {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else { return Poll::Ready(None) };
        let frame = frame?;
        let length = frame.data_ref().map_or(0, Bytes::len);
        self.heard += length;
        if self.heard > SMALL && length > 0 && !self.hold(length) {
            return Poll::Ready(Some(Err(Crowded(Box::new(grpc::crowded())).into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if self.large > 0 {
            self.requests.large.fetch_sub(self.large, Ordering::Relaxed);
            self.neighbour.large.fetch_sub(self.large, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut neighbours = self.neighbours.lock().unwrap_or_else(PoisonError::into_inner);
        if self.neighbour.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
            neighbours.remove(&self.name);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.neighbour.requests.fetch_sub(1, Ordering::Relaxed);
        self.requests.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The first part of a body: most tokens, with all that goes with them, are within it.
const SMALL: usize = 16 * 1024;

/// Of what is free, for one address.
const TIMES: usize = 4;

/// Who has no more than these is nobody's burden.
const ALWAYS: usize = 16;
const ALWAYS_LARGE: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn a_full_listener_has_places_left_for_its_own_host_and_not_without_end() {
        let places = Places::new(1, 2, 1, 0);
        let _caller = places.take(ip("192.0.2.1")).expect("the first");
        assert!(places.take(ip("192.0.2.1")).is_none());
        assert!(places.take(None).is_none(), "a Unix socket's callers are callers like others");
        let probe = places.take(ip("127.0.0.1"));
        let _mapped = places.take(ip("::ffff:127.0.0.1")).expect("the same host");
        assert!(places.take(ip("::1")).is_none());
        drop(probe);
        assert!(places.take(ip("192.0.2.1")).is_none(), "the reserve is nobody else's");
        assert!(places.take(ip("::1")).is_some());
    }

    #[test]
    fn one_address_gets_four_of_five_connections_and_requests_and_the_next_finds_some() {
        let places = Places::new(1000, 0, 1000, 0);
        let take = |address: &str| std::iter::from_fn(|| places.take(ip(address))).collect::<Vec<_>>();
        let flood = take("2001:db8::1");
        assert!(places.take(ip("2001:db8::ffff:1")).is_none(), "64 bits are one host's");
        let second = take("192.0.2.2");
        assert_eq!((flood.len(), second.len()), (800, 160));
        let ask = |place: &Place| std::iter::from_fn(|| place.request()).collect::<Vec<_>>();
        let requests: Vec<_> = flood.iter().flat_map(ask).collect();
        let others = ask(&second[0]);
        assert_eq!((requests.len(), others.len()), (800, 160));
        drop((requests, others));
        assert_eq!(ask(&second[0]).len(), 800, "all were given back");
        drop((flood, second));
        assert_eq!(take("192.0.2.3").len(), 800);
        assert!(places.neighbours.lock().expect("no panic").is_empty(), "nobody is remembered");
    }
}

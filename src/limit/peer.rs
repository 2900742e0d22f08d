//! The other end of a connection, and what of its address is held to account.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// As the listener saw it: an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: Arc<str>,
    of: Of,
    /// Somebody who was verified has called over this connection.
    trusted: Arc<AtomicBool>,
}

#[derive(Debug, Clone, Copy)]
enum Of {
    Others,
    /// The broker's own: it may show as many bad tokens as it likes.
    Ours,
}

impl Peer {
    /// Of a connection from within the process.
    pub fn inside(name: &str) -> Self {
        Self { address: name.into(), of: Of::Ours, trusted: Arc::default() }
    }

    /// What is held to account; nothing for the broker itself.
    pub(super) fn network(&self) -> Option<String> {
        match self.of {
            Of::Others => Some(self.shown()),
            Of::Ours => None,
        }
    }

    /// [`network`](network()) of its address, or what it has instead of one.
    pub fn shown(&self) -> String {
        let address = self.address.parse::<SocketAddr>();
        address.map_or_else(|_no_address| self.address.to_string(), |address| network(address.ip()))
    }

    pub fn trust(&self) {
        if !self.is_trusted() {
            self.trusted.store(true, Ordering::Relaxed);
        }
    }

    pub fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }
}

impl From<String> for Peer {
    fn from(address: String) -> Self {
        Self { address: address.into(), of: Of::Others, trusted: Arc::default() }
    }
}

impl From<&str> for Peer {
    fn from(address: &str) -> Self {
        address.to_owned().into()
    }
}

/// One address of IPv4, and 64 bits of IPv6, which is what one host has at least.
pub fn network(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

//! What the program tells whoever supervises it (sd_notify(3)): when it serves, and when it ends.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells systemd that what was asked for is served, or that it ends; without one it does nothing.
#[derive(Debug, Clone, Copy)]
pub(super) enum Notice {
    Serving,
    Ending,
}

impl Notice {
    pub fn tell(self) {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&path),
        };
        let state: &[u8] = match self {
            Self::Serving => b"READY=1",
            Self::Ending => b"STOPPING=1",
        };
        let told = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state, &address));
        if let Err(error) = told {
            tracing::warn!(%error, "the supervisor at NOTIFY_SOCKET was not told");
        }
    }
}

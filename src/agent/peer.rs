//! Which user is at the other end of a connection over loopback.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// Who may ask: root, and those named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Users {
    All,
    Only(Vec<u32>),
}

impl Users {
    /// Who runs this process.
    pub fn own() -> Self {
        Self::Only(vec![rustix::process::geteuid().as_raw()])
    }

    pub(super) fn may(&self, user: Option<u32>) -> bool {
        match self {
            Self::All => true,
            Self::Only(users) => user.is_some_and(|user| user == 0 || users.contains(&user)),
        }
    }
}

/// The user whose socket is at `peer`, connected to `own`: as the kernel lists it. `None` where it lists none, which is
/// always so on systems other than Linux.
pub(super) async fn user_of(peer: SocketAddr, own: SocketAddr) -> Option<u32> {
    let _turn = LOOKS.acquire().await;
    // The kernel passes over a line now and then while others come and go.
    spawn_blocking(move || listed(peer, own).or_else(|| listed(peer, own))).await.ok().flatten()
}

/// The tables are read line by line: on a busy machine they are megabytes.
fn listed(peer: SocketAddr, own: SocketAddr) -> Option<u32> {
    ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().find_map(|table| {
        let lines = BufReader::new(File::open(table).ok()?).lines().map_while(Result::ok);
        lines.into_iter().find_map(|line| user_in(&line, peer, own))
    })
}

/// At a time: whoever opens many connections occupies no more of the machine.
static LOOKS: Semaphore = Semaphore::const_new(2);

/// A line of the table (Linux: proc_net_tcp): `sl local remote state queues timer retransmits uid ...`
fn user_in(line: &str, peer: SocketAddr, own: SocketAddr) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (address(fields.next()?)?, address(fields.next()?)?, fields.next()?);
    // A socket that its owner has closed is listed as root's.
    let matches = same(local, peer) && same(remote, own) && state == ESTABLISHED;
    if matches { fields.nth(3)?.parse().ok() } else { None }
}

/// `0100007F:1F90`: words in the byte order of the machine, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// An IPv6 socket may talk over IPv4.
fn same(listed: SocketAddr, other: SocketAddr) -> bool {
    listed.port() == other.port() && listed.ip().to_canonical() == other.ip().to_canonical()
}

const ESTABLISHED: &str = "01";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_that_of_the_established_socket_at_the_other_end() {
        let (peer, own) = ("127.0.0.1:34567".parse().expect("one"), "127.0.0.1:8080".parse().expect("one"));
        let line = |local: &str, remote: &str, state: &str| {
            format!("   3: {local} {remote} {state} 00000000:00000000 00:00000000 00000000  1001        0 12345 1 0")
        };
        let word = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let (v4, port, ours) = (word([127, 0, 0, 1]), "8707", "1F90");
        let (local, remote) = (format!("{v4}:{port}"), format!("{v4}:{ours}"));
        assert_eq!(user_in(&line(&local, &remote, "01"), peer, own), Some(1001));
        let mapped = format!("{}{}{}{v4}", word([0; 4]), word([0; 4]), word([0, 0, 0xff, 0xff]));
        assert_eq!(
            user_in(&line(&format!("{mapped}:{port}"), &format!("{mapped}:{ours}"), "01"), peer, own),
            Some(1001)
        );
        for no in [
            line(&local, &remote, "06"),
            line(&remote, &local, "01"),
            line(&format!("{}:{port}", word([127, 0, 0, 2])), &remote, "01"),
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid".to_owned(),
            String::new(),
        ] {
            assert_eq!(user_in(&no, peer, own), None, "{no}");
        }
    }

    #[test]
    fn root_and_those_named_may_ask_and_a_stranger_or_nobody_known_may_not() {
        let users = Users::Only(vec![1001]);
        assert_eq!([Some(0), Some(1001), Some(1002), None].map(|user| users.may(user)), [true, true, false, false]);
        assert!(Users::All.may(None));
    }
}

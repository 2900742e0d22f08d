//! Addresses to listen at: TCP, or a Unix socket whose file goes when the listener goes.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::net::{TcpListener, UnixListener, UnixStream};

/// `ADDRESS:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A text is no [`Address`].
#[derive(Debug, thiserror::Error)]
#[error("expected ADDRESS:PORT such as 127.0.0.1:7443 or [::]:7443, or unix:PATH")]
pub struct InvalidAddress;

/// A bound address.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, OwnFile),
}

/// The file of a Unix socket: gone with the listener, unless another process has put its own there.
#[derive(Debug)]
pub struct OwnFile {
    path: PathBuf,
    inode: Option<u64>,
}

impl Socket {
    /// # Errors
    /// Where the system refuses the address.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        Ok(match address {
            Address::Tcp(address) => Self::Tcp(TcpListener::bind(address).await?),
            Address::Unix(path) => {
                // A socket that a killed process left behind refuses: one that is in use answers or is too busy to, and
                // other files stay.
                let is_socket = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
                let refuses = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
                if is_socket && UnixStream::connect(path).await.is_err_and(refuses) {
                    std::fs::remove_file(path)?;
                }
                let listener = UnixListener::bind(path)?;
                Self::Unix(listener, OwnFile { path: path.clone(), inode: inode(path) })
            }
        })
    }

    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(..) => None,
        }
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => text.parse().map(Self::Tcp).map_err(|_no_address| InvalidAddress),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if self.inode.is_some() && inode(&self.path) == self.inode {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_in_use_stays_even_when_it_is_too_busy_to_answer_and_one_that_was_left_behind_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let address = Address::Unix(path.clone());
        let busy = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let mut waiting = Vec::new();
        let full = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100_000, "its queue has an end");
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let taken = Socket::bind(&address).await.expect_err("in use");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        drop((busy, waiting));
        let bound = Socket::bind(&address).await.expect("nobody's any more");
        drop(bound);
        assert!(!path.exists());
    }
}

//! Hostile clients: what each of them meets, and that a good caller is served meanwhile.

mod bodies;
mod callers;
mod http1;
mod http2;
mod tokens;

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::Broker;

/// Runs `attack`; a good caller with a connection of its own calls all the while, and is answered each time.
pub async fn while_others_are_served<T>(broker: &Broker, attack: impl Future<Output = T>) -> T {
    let (mut client, request) = (broker.client().await, broker.request(&["vertex"]));
    let answer = client.exchange(request.clone()).await.expect("a credential").into_inner();
    broker.is_secret(&answer.credentials[0].token);
    let mut attack = std::pin::pin!(attack);
    loop {
        let call = async {
            let answered = timeout(Duration::from_secs(5), client.exchange(request.clone())).await;
            answered.expect("good callers do not wait").expect("good callers are served");
        };
        tokio::select! {
            done = attack.as_mut() => return done,
            () = call => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// A client that says what it likes.
pub struct Raw {
    stream: TcpStream,
    pub heard: Vec<u8>,
    /// How much anybody took.
    pub written: usize,
}

impl Raw {
    pub async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address.trim_start_matches("http://")).await.expect("a connection");
        stream.set_nodelay(true).expect("an option");
        Self { stream, heard: Vec::new(), written: 0 }
    }

    /// Says it all, and listens all the while. Whether the broker has ended the connection.
    pub async fn say(&mut self, bytes: &[u8]) -> Ended {
        let mut rest = bytes;
        let mut buffer = [0; 16 * 1024];
        while !rest.is_empty() {
            tokio::select! {
                written = self.stream.writable() => if written.is_err() { return Ended::Yes },
                read = self.stream.readable() => if read.is_err() { return Ended::Yes },
            }
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Ended::Yes,
                Ok(read) => self.heard.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_reset) => return Ended::Yes,
            }
            match self.stream.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_reset) => return Ended::Yes,
            }
        }
        Ended::No
    }

    /// Says without listening, for as long as anybody takes it.
    pub async fn say_only(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match timeout(Duration::from_millis(500), self.stream.write(bytes)).await {
                Ok(Ok(written)) => {
                    self.written += written;
                    bytes = &bytes[written..];
                }
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Listens until `enough` of what was heard, or the end, or the time is up.
    pub async fn listen(&mut self, time: Duration, enough: impl Fn(&[u8]) -> bool) -> Ended {
        let listening = async {
            while !enough(&self.heard) {
                match self.stream.read_buf(&mut self.heard).await {
                    Ok(0) | Err(_) => return Ended::Yes,
                    Ok(_) => {}
                }
            }
            Ended::No
        };
        timeout(time, listening).await.unwrap_or(Ended::No)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.heard).into_owned()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Yes,
    No,
}

//! A real `carnet serve` beside the clouds of a test.

use std::path::{Path, PathBuf};
use std::process::Child;

use crate::command_line::carnet;
use crate::support::{Broker, eventually, free_port};

/// A process that ends, however abruptly, with whoever holds it.
pub struct Process {
    pub child: Child,
    pub http: String,
    pub log: PathBuf,
}

/// With the clouds of `broker` and a store of its own.
pub async fn serve(broker: &Broker, more: &str, grpc: &str) -> Process {
    let port = free_port();
    let text = std::fs::read_to_string(broker.config_path()).expect("the file");
    let server = text.lines().find(|line| line.starts_with("server:")).expect("a line").to_owned();
    let changed = text.replace(&server, &format!("server: {{ grpc: '{grpc}', http: '127.0.0.1:{port}' }}"));
    let own = broker.folder.path().join("own.yaml");
    std::fs::write(&own, format!("{}\n{more}\n", changed.replace("carnet.db", "own.db"))).expect("written");
    let process = Process::start(&own, format!("http://127.0.0.1:{port}"));
    process.until_ready().await;
    process
}

/// Ends the application that `broker` began with: processes can take its place, its store and its issuer, at the address
/// of gRPC that is returned.
pub async fn make_place(broker: &mut Broker) -> String {
    broker.take_app().drain().await;
    let grpc = format!("127.0.0.1:{}", free_port());
    let text = std::fs::read_to_string(broker.config_path()).expect("the file");
    let placed = text.replace("grpc: '127.0.0.1:0'", &format!("grpc: '{grpc}'"));
    std::fs::write(broker.config_path(), placed).expect("kept");
    grpc
}

impl Process {
    /// In the place that was made, and ready.
    pub async fn in_place_of(broker: &Broker) -> Self {
        let process = Self::start(&broker.config_path(), broker.http.clone());
        process.until_ready().await;
        process
    }

    /// `http`: where `config` says that it serves. It logs beside its configuration.
    pub fn start(config: &Path, http: String) -> Self {
        let log = config.with_extension("log");
        let to = std::fs::File::options().create(true).append(true).open(&log).expect("a file");
        let mut command = carnet(&["serve", "--config", config.to_str().expect("a path")]);
        Self { child: command.stderr(to).spawn().expect("a process"), http, log }
    }

    pub async fn until_ready(&self) {
        let ready = async || {
            reqwest::get(format!("{}/readyz", self.http)).await.is_ok_and(|answer| answer.status().is_success())
        };
        eventually("readiness", ready).await;
    }

    /// SIGKILL, and its end.
    pub fn kill(&mut self) {
        self.child.kill().expect("a process");
        self.child.wait().expect("an end");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

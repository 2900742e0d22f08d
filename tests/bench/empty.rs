//! What the broker is compared with: the same method of the same service, which answers and does nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use carnet::proto;
use carnet::proto::token_exchange_server::{TokenExchange, TokenExchangeServer};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::machine::Running;

pub const ROLE: &str = "serve-empty-method";

/// Always the same answer: one that the broker gave.
struct Empty {
    answer: proto::ExchangeResponse,
}

#[tonic::async_trait]
impl TokenExchange for Empty {
    async fn exchange(
        &self,
        _request: Request<proto::ExchangeRequest>,
    ) -> Result<Response<proto::ExchangeResponse>, Status> {
        Ok(Response::new(self.answer.clone()))
    }
}

/// What the process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    pub address: SocketAddr,
    /// A file with the answer.
    pub answer: PathBuf,
    /// Files with certificate and key; absent: no TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
}

/// The process's own part: serves until it is killed.
pub fn serve(job: &str) -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Job { address, answer, tls } = serde_json::from_str(job)?;
    let answer = proto::ExchangeResponse::decode(std::fs::read(answer)?.as_slice())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listening = TcpIncoming::bind(address).map_err(|error| anyhow::anyhow!("{address}: {error}"))?;
        // As the broker's listener does; without it an answer waits 40 ms for the one before to be acknowledged.
        let incoming = listening.with_nodelay(Some(true));
        let mut server = tonic::transport::Server::builder().max_concurrent_streams(MAX_STREAMS);
        if let Some((certificate, key)) = tls {
            let identity = Identity::from_pem(std::fs::read(certificate)?, std::fs::read(key)?);
            server = server.tls_config(ServerTlsConfig::new().identity(identity))?;
        }
        server.add_service(TokenExchangeServer::new(Empty { answer })).serve_with_incoming(incoming).await?;
        Ok(())
    })
}

/// As many as the broker's listener allows.
const MAX_STREAMS: u32 = 256;

/// `program` runs this program.
pub fn start(mut program: Command, job: &Job) -> Result<Running> {
    Running::start(program.arg(ROLE).arg(serde_json::to_string(job)?))
}

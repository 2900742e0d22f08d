//! What the broker is compared with: the same method of the same service, which answers and does nothing else.

use std::path::Path;

use anyhow::{Context as _, Result};
use carnet::proto;
use carnet::proto::token_exchange_server::{TokenExchange, TokenExchangeServer};
use prost::Message as _;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::machine::{self, Core, Running};

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

/// The process's own part: serves on the address in `job`, until it is killed.
pub fn serve(job: &str) -> Result<()> {
    let (address, answer) = job.split_once(' ').context("an address and a path")?;
    let answer = proto::ExchangeResponse::decode(std::fs::read(answer)?.as_slice())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listening = TcpIncoming::bind(address.parse()?).map_err(|error| anyhow::anyhow!("{address}: {error}"))?;
        // As the broker's listener does; without it an answer waits 40 ms for the one before to be acknowledged.
        let incoming = listening.with_nodelay(Some(true));
        let mut server = tonic::transport::Server::builder().max_concurrent_streams(MAX_STREAMS);
        server.add_service(TokenExchangeServer::new(Empty { answer })).serve_with_incoming(incoming).await?;
        Ok(())
    })
}

/// As many as the broker's listener allows.
const MAX_STREAMS: u32 = 256;

/// Starts it on `address` with the answer that lies in a file.
pub fn start(address: &str, answer: &Path) -> Result<Running> {
    Running::start(machine::role(Core::Server, ROLE)?.arg(format!("{address} {}", answer.display())))
}

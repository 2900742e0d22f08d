//! The broker's `Operator` service as its commands reach it: with a token that shows who asks.

use clap::Args;
use tonic::transport::Channel;

use super::broker::{Bearer, Broker, SubjectToken};
use crate::proto::operator_client::OperatorClient;

#[derive(Debug, Args)]
pub(super) struct Operator {
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    token: SubjectToken,
}

impl Operator {
    pub async fn connect(&self) -> anyhow::Result<(OperatorClient<Channel>, Bearer)> {
        let bearer = Bearer::new(&self.token.token(&self.broker).await?)?;
        let client = OperatorClient::new(self.broker.connect().await?).max_decoding_message_size(PAGE_MAX_BYTES);
        Ok((client, bearer))
    }
}

/// A hundred leases with their jobs, with room to spare.
const PAGE_MAX_BYTES: usize = 32 * 1024 * 1024;

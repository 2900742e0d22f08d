//! The broker's `Operator` service as its commands reach it: with a token that shows who asks.

use clap::Args;
use tonic::transport::Channel;

use super::broker::{Bearer, Broker, SubjectToken, no_subject_token};
use crate::proto::operator_client::OperatorClient;
use crate::secret::Secret;
use crate::subject_source::{SourceError, SubjectSource};

#[derive(Debug, Args)]
pub(super) struct Operator {
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    token: SubjectToken,
}

impl Operator {
    pub async fn connect(&self) -> anyhow::Result<(OperatorClient<Channel>, Bearer)> {
        let Session { client, source } = self.session().await?;
        let token = source.token().await.map_err(no_subject_token)?;
        Ok((client, Bearer::new(token.expose())?))
    }

    /// # Errors
    /// There is no token, or no broker.
    pub async fn session(&self) -> anyhow::Result<Session> {
        let source = self.token.source(&self.broker);
        // Before the broker is called: what is missing here is said first.
        source.token().await.map_err(no_subject_token)?;
        let client = OperatorClient::new(self.broker.connect().await?).max_decoding_message_size(PAGE_MAX_BYTES);
        Ok(Session { client, source })
    }
}

/// For more than one call: each shows the token that the source gives by then.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub client: OperatorClient<Channel>,
    source: SubjectSource,
}

impl Session {
    pub async fn token(&self) -> Result<Secret, SourceError> {
        self.source.token().await
    }
}

/// A hundred leases with their jobs, with room to spare.
const PAGE_MAX_BYTES: usize = 32 * 1024 * 1024;

//! The broker's `Operator` service as its commands reach it: with a token that shows who asks.

use clap::Args;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use super::broker::{Broker, SubjectToken, call, usage};
use crate::proto::operator_client::OperatorClient;

#[derive(Debug, Args)]
pub(super) struct Operator {
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    token: SubjectToken,
}

impl Operator {
    pub async fn connect(&self) -> anyhow::Result<(OperatorClient<Channel>, Authorization)> {
        let mut value: MetadataValue<_> = match format!("Bearer {}", self.token.token(&self.broker).await?).parse() {
            Ok(value) => value,
            Err(_not_ascii) => return Err(usage("the subject token is no token: it has characters that none has")),
        };
        value.set_sensitive(true);
        let client = OperatorClient::new(self.broker.connect().await?).max_decoding_message_size(PAGE_MAX_BYTES);
        Ok((client, Authorization(value)))
    }
}

/// RFC 6750 section 2.1.
pub(super) struct Authorization(MetadataValue<Ascii>);

impl Authorization {
    /// With the deadline of a call that is answered at once.
    pub fn show<T>(&self, message: T) -> Request<T> {
        self.put(call(message))
    }

    /// Without a deadline: its answers come for as long as they are read.
    pub fn show_for_long<T>(&self, message: T) -> Request<T> {
        self.put(Request::new(message))
    }

    fn put<T>(&self, mut request: Request<T>) -> Request<T> {
        request.metadata_mut().insert("authorization", self.0.clone());
        request
    }
}

/// A hundred leases with their jobs, with room to spare.
const PAGE_MAX_BYTES: usize = 32 * 1024 * 1024;

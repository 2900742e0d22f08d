//! `carnet exchange`: one exchange over gRPC, its result for people, programs or a shell.

use clap::Args;
use serde_json::{Value, json};

use super::broker::{Broker, SubjectToken, answer, call, usage};
use super::credentials::{self, Output};
use super::request::Request;
use super::{print, print_json};
use crate::proto;
use crate::proto::token_exchange_client::TokenExchangeClient;

/// The subject token is taken from the first source that is configured: a file, CARNET_SUBJECT_TOKEN, workload identity,
/// `carnet login`, managed identity, az.
#[derive(Debug, Args)]
pub(super) struct Exchange {
    #[command(flatten)]
    request: Request,
    #[arg(long, value_enum, default_value_t = Output::Json)]
    output: Output,
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    subject_token: SubjectToken,
}

impl Exchange {
    pub async fn run(self) -> anyhow::Result<()> {
        if !self.request.has_one_target() && (self.output == Output::Token || self.request.has_scopes()) {
            return Err(usage("--output token and --scope go with one --target"));
        }
        let (targets, job) = (self.request.targets(), Some(self.request.job()));
        let request = proto::ExchangeRequest { targets, job, ..Default::default() };
        let answer = exchange(&self.broker, &self.subject_token, request).await?;
        match self.output {
            Output::Json => print_json(&json(&answer))?,
            Output::Token => answer.credentials.iter().for_each(|credential| print(&credential.token)),
            Output::Env => answer.credentials.iter().for_each(|credential| print(credentials::variables(credential))),
        }
        Ok(())
    }
}

/// `request` is sent with the subject token added.
pub(super) async fn exchange(
    broker: &Broker,
    subject_token: &SubjectToken,
    mut request: proto::ExchangeRequest,
) -> anyhow::Result<proto::ExchangeResponse> {
    request.subject_token = subject_token.token(broker).await?;
    let mut client = TokenExchangeClient::new(broker.connect().await?);
    answer(client.exchange(call(request)).await)
}

fn json(answer: &proto::ExchangeResponse) -> Value {
    let credentials: Vec<Value> = answer.credentials.iter().map(credentials::json).collect();
    json!({"exchange_id": answer.exchange_id, "credentials": credentials})
}

//! Everything that the broker needs misbehaves, one thing at a time: what its callers see, what is on record, and when it
//! is over. The README's table of faults is made of these tests.

mod clock;
mod descriptors;
mod disk;
mod keys;
mod network;
mod partition;
mod upstreams;

use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use carnet::grpc::{Address, connect};
use carnet::proto::token_exchange_client::TokenExchangeClient;
use carnet::proto::{AuditRecord, ExchangeResponse};
use carnet::sandbox::EntraToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::process::{Process, make_place};
use crate::support::{Broker, TENANT, eventually, reason};

const SECOND: Duration = Duration::from_secs(1);

/// Two targets of Google and one of Azure.
const RULES: &str = "
rules:
  - name: training
    targets: [vertex, direct, azure-ml]
    subject: { roles: [Training.Submit] }
    max_lifetime: 1h
";

/// A refusal as its caller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    code: Code,
    reason: String,
    wait: Option<Duration>,
}

impl Seen {
    fn new(code: Code, reason: &str, wait: impl Into<Option<Duration>>) -> Self {
        Self { code, reason: reason.to_owned(), wait: wait.into() }
    }

    fn of(status: &Status) -> Self {
        let wait = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
        Self { code: status.code(), reason: reason(status), wait }
    }

    fn store_unavailable() -> Self {
        Self::new(Code::Unavailable, "STORE_UNAVAILABLE", SECOND)
    }

    fn cloud_unavailable() -> Self {
        Self::new(Code::Unavailable, "CLOUD_UNAVAILABLE", SECOND)
    }
}

/// A caller like no other: nothing is cached for it.
fn somebody(broker: &Broker, number: u32) -> EntraToken {
    let object = Uuid::from_u128((0xfa17 << 100) | u128::from(number)).to_string();
    broker.entra.app_token(TENANT, &object).roles(["Training.Submit"])
}

/// What the log says of the call that was answered so.
fn recorded(broker: &Broker, answer: &Result<ExchangeResponse, Status>) -> Vec<AuditRecord> {
    let id = match answer {
        Ok(answer) => answer.exchange_id.clone(),
        Err(status) => status.get_error_details().error_info().expect("an ErrorInfo").metadata["exchange_id"].clone(),
    };
    broker.audit_records().into_iter().filter(|record| record.exchange_id == id).collect()
}

/// What was handed out, and must be on record.
#[derive(Default)]
struct HandedOut(Vec<String>);

impl HandedOut {
    fn add(&mut self, broker: &Broker, answer: &ExchangeResponse) {
        for credential in &answer.credentials {
            broker.is_secret(&credential.token);
            self.0.push(BASE64_URL_SAFE_NO_PAD.encode(carnet::secret::sha256(credential.token.as_bytes())));
        }
    }

    fn is_on_record(&self, records: &[AuditRecord]) {
        for digest in &self.0 {
            assert!(records.iter().any(|record| record.token_sha256 == *digest), "a token that no record tells of");
        }
    }
}

/// A real process in the place of a broker's application, and a caller that is connected to it.
struct Replacement {
    process: Process,
    grpc: String,
    client: TokenExchangeClient<Channel>,
}

/// From a shell that runs `first`.
async fn in_its_place(broker: &mut Broker, first: &str) -> Replacement {
    let grpc = make_place(broker).await;
    let log = broker.config_path().with_extension("log");
    let to = std::fs::File::options().create(true).append(true).open(&log).expect("a file");
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{first}\nexec \"$@\""), "sh", env!("CARGO_BIN_EXE_carnet"), "serve", "--config"]);
    let child = command.arg(broker.config_path()).stdin(Stdio::null()).stderr(to).spawn().expect("a shell");
    let process = Process { child, http: broker.http.clone(), log };
    process.until_ready().await;
    let client = client_at(&grpc).await.expect("a connection");
    Replacement { process, grpc, client }
}

async fn client_at(grpc: &str) -> Option<TokenExchangeClient<Channel>> {
    let address: Address = format!("http://{grpc}").parse().expect("an address");
    Some(TokenExchangeClient::new(connect(&address, None).await.ok()?))
}

/// Changes the soft limit of a running process, which its owner may do.
fn limit(process: &Process, what: &str, soft: &str) {
    let (pid, limit) = (process.child.id().to_string(), format!("--{what}={soft}:"));
    let changed = Command::new("prlimit").args(["--pid", &pid, &limit]).status().expect("prlimit of util-linux");
    assert!(changed.success());
}

/// `/readyz` answers so.
async fn readiness_is(broker: &Broker, status: u16) {
    eventually("readiness", async || {
        reqwest::get(format!("{}/readyz", broker.http)).await.is_ok_and(|answer| answer.status().as_u16() == status)
    })
    .await;
}

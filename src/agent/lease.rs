//! A lease as the agent's source: its heartbeats, its credentials, its end.

use std::fmt;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use super::source::{Credential, Credentials, Exchanges, Refusal, Wanted, one};
use crate::grpc::{Again, Patience, call};
use crate::proto;
use crate::proto::leases_client::LeasesClient;
use crate::secret::Secret;

/// An open lease.
pub struct Lease {
    client: LeasesClient<Channel>,
    token: Secret,
    /// A lease has access tokens only.
    id_tokens: Exchanges,
}

/// What whoever holds the lease may want to know.
#[derive(Debug, Clone)]
pub enum News {
    /// The broker does not answer, and is asked again until it does.
    Away(String),
    Back,
    /// The last news.
    Ended(Refusal),
}

impl Lease {
    /// `id_tokens`: the way to ID tokens, which leases do not have.
    pub fn new(client: LeasesClient<Channel>, token: Secret, id_tokens: Exchanges) -> Self {
        Self { client, token, id_tokens }
    }

    /// Beats until the lease has ended. `patience` has heard of its opening.
    pub async fn keep(&self, mut patience: Patience, tell: impl Fn(News)) {
        let mut wait = patience.next_beat();
        loop {
            sleep(wait).await;
            let request =
                proto::RenewLeaseRequest { lease_token: self.token.expose().to_owned(), ..Default::default() };
            wait = match self.client.clone().renew_lease(call(request)).await {
                Ok(renewed) => {
                    patience.answered(renewed.metadata());
                    if patience.heard(renewed.get_ref().lease.as_ref()) {
                        tell(News::Back);
                    }
                    patience.next_beat()
                }
                Err(status) => match patience.again(&status) {
                    Again::In(wait) => wait.min(patience.next_beat()),
                    Again::Away(wait) => {
                        tell(News::Away(status.message().to_owned()));
                        wait.min(patience.next_beat())
                    }
                    Again::Closed | Again::Refused => {
                        return tell(News::Ended(Refusal::denied(Refusal::from(status).message)));
                    }
                    Again::TooLate => return tell(News::Ended(Refusal::denied("the lease's end has come"))),
                },
            };
        }
    }

    /// Ends the lease. Whether the broker has heard of it: else it lapses for want of heartbeats.
    pub async fn close(&self) -> bool {
        let request = proto::CloseLeaseRequest { lease_token: self.token.expose().to_owned() };
        matches!(timeout(CLOSE_DEADLINE, self.client.clone().close_lease(call(request))).await, Ok(Ok(_closed)))
    }
}

#[async_trait::async_trait]
impl Credentials for Lease {
    async fn credential(&self, wanted: &Wanted) -> Result<Credential, Refusal> {
        if wanted.id_token_audience.is_some() {
            return self.id_tokens.credential(wanted).await;
        }
        let request = proto::GetCredentialsRequest {
            lease_token: self.token.expose().to_owned(),
            targets: vec![wanted.target.clone()],
        };
        let (head, answer, _extensions) = self.client.clone().get_credentials(call(request)).await?.into_parts();
        one(answer.credentials, &head)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease")
    }
}

/// The command has ended, and its user waits.
const CLOSE_DEADLINE: Duration = Duration::from_secs(3);

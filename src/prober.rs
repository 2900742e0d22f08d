//! Negative proof: at intervals the broker shows tokens that nobody may take to its own front doors and to its own checks,
//! and cries out the moment one is taken.

mod forged;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::error::Unspecified;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;
use tower::ServiceExt as _;

use self::forged::{Fault, Forger};
use crate::clock::Clock;
use crate::issuer::{Algorithm, KeyError, SigningKey};
use crate::limit::Peer;
use crate::proto;
use crate::proto::operator_client::OperatorClient;
use crate::proto::token_exchange_client::TokenExchangeClient;
use crate::reason::Reason;
use crate::secret::Secret;
use crate::subject::{KeyCache, Settings, SubjectToken, Trial};

/// The ways in, as the network's connections have them behind TLS; `None` where one is off.
#[derive(Debug, Clone)]
pub struct FrontDoors {
    pub grpc: Option<Channel>,
    pub http: Option<Router>,
}

/// What is proved, and to whom.
pub struct Prober {
    pub doors: FrontDoors,
    pub entra: Settings,
    /// Tokens for the doors name a key that Entra publishes: they are refused for what they are, and no key is fetched
    /// for them.
    pub keys: Arc<KeyCache>,
    /// What is asked for.
    pub target: String,
    pub clock: Arc<dyn Clock>,
}

/// What became of one token that had to be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    Refused,
    /// It was, for another reason than the one that it was made for: that check may not work.
    OtherReason,
    Taken,
    /// Nobody answered, or not about the token.
    Unproven,
}

impl Proof {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::OtherReason => "other_reason",
            Self::Taken => "taken",
            Self::Unproven => "unproven",
        }
    }
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Round {
    pub refused: usize,
    pub other_reason: usize,
    pub taken: usize,
    pub unproven: usize,
}

/// Why there is no round.
#[derive(Debug, thiserror::Error)]
pub enum ProberError {
    #[error("no key to forge tokens with")]
    Key(#[from] KeyError),
    #[error("the forged tokens cannot be signed")]
    Sign(#[source] Unspecified),
    #[error("the verifier does not take the key that it is tried on")]
    Trial,
    #[error("the task that makes the key was cut off")]
    CutOff,
}

impl Prober {
    /// A round at each interval, the first a minute from now.
    pub async fn keep_proving(&self, every: Duration) {
        sleep(FIRST_AFTER.min(every)).await;
        loop {
            if let Err(error) = self.round().await {
                tracing::error!(error = &error as &dyn std::error::Error, "the negative proof was not made");
                let mut nothing = Round::default();
                Fault::ALL.into_iter().for_each(|fault| nothing.note("checks", fault, Proof::Unproven));
            }
            sleep(every.mul_f64(rand::random_range(0.9..=1.1))).await;
        }
    }

    /// Shows every forged token to every door and to the checks behind them.
    ///
    /// # Errors
    /// [`ProberError`] where nothing could be shown.
    pub async fn round(&self) -> Result<Round, ProberError> {
        let forger = Forger { key: forging_key(self.clock.now()).await?, settings: &self.entra, now: self.clock.now() };
        let mut round = Round::default();
        self.try_checks(&forger, &mut round)?;
        self.try_doors(&forger, &mut round).await?;
        metrics::gauge!("carnet_negative_proof_failed").set(if round.taken == 0 { 0.0 } else { 1.0 });
        Ok(round)
    }

    /// The verifier's rules on a key of the prober's own. The good token shows that the others are refused for their
    /// fault alone.
    fn try_checks(&self, forger: &Forger<'_>, round: &mut Round) -> Result<(), ProberError> {
        let trial = Trial::new(self.entra.clone(), &forger.key.jwk(), self.clock.clone()).ok_or(ProberError::Trial)?;
        let judge = |token: Secret| SubjectToken::new(token).and_then(|token| trial.of(&token));
        if judge(forger.good().map_err(ProberError::Sign)?).is_err() {
            return Err(ProberError::Trial);
        }
        for fault in Fault::ALL {
            let proof = match judge(forger.token(fault, forger.key.kid()).map_err(ProberError::Sign)?) {
                Err(error) if error.reason() == fault.reason() => Proof::Refused,
                Err(_otherwise) => Proof::OtherReason,
                Ok(()) => Proof::Taken,
            };
            round.note("checks", fault, proof);
        }
        Ok(())
    }

    /// Whatever is wrong with them, none of these tokens is signed by Entra.
    async fn try_doors(&self, forger: &Forger<'_>, round: &mut Round) -> Result<(), ProberError> {
        let known = self.entra.tenants.first().and_then(|tenant| self.keys.a_kid(*tenant));
        for fault in Fault::ALL {
            let token = match &known {
                Some(kid) => Some(forger.token(fault, kid).map_err(ProberError::Sign)?),
                None => None,
            };
            if let Some(channel) = &self.doors.grpc {
                round.note("grpc", fault, prove(token.clone().map(|token| self.exchange(channel, token))).await);
                round.note("operator", fault, prove(token.clone().map(|token| leases(channel, token))).await);
            }
            if let Some(router) = &self.doors.http {
                round.note("http", fault, prove(token.map(|token| self.token_endpoint(router, token))).await);
            }
        }
        Ok(())
    }

    async fn exchange(&self, channel: &Channel, token: Secret) -> Proof {
        let request = proto::ExchangeRequest {
            subject_token: token.expose().to_owned(),
            targets: vec![proto::TargetRequest { target: self.target.clone(), ..Default::default() }],
            ..Default::default()
        };
        proof(TokenExchangeClient::new(channel.clone()).exchange(request).await)
    }

    async fn token_endpoint(&self, router: &Router, token: Secret) -> Proof {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
            .append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:access_token")
            .append_pair("subject_token", token.expose())
            .append_pair("audience", &self.target)
            .finish();
        let request = Request::post("/v1/token")
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(USER_AGENT, AGENT)
            .extension(Peer::inside(PEER))
            .body(Body::from(form));
        let Ok(request) = request else { return Proof::Unproven };
        let Ok(response) = router.clone().oneshot(request).await;
        let Ok(body) = axum::body::to_bytes(response.into_body(), ANSWER_MAX_BYTES).await else {
            return Proof::Unproven;
        };
        let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        match answer.get("reason").and_then(serde_json::Value::as_str) {
            Some(reason) => by_reason(reason),
            None if answer.get("access_token").is_some() => Proof::Taken,
            None => Proof::Unproven,
        }
    }
}

impl Round {
    fn note(&mut self, door: &'static str, fault: Fault, proof: Proof) {
        let labels = [("door", door), ("fault", fault.as_str()), ("outcome", proof.as_str())];
        metrics::counter!("carnet_negative_proofs_total", &labels).increment(1);
        match proof {
            Proof::Refused => self.refused += 1,
            Proof::OtherReason => {
                self.other_reason += 1;
                tracing::error!(
                    proof.door = door,
                    proof.fault = fault.as_str(),
                    "a token that is {} was refused for another reason: the check that it was made for may not work",
                    fault.as_str()
                );
            }
            Proof::Unproven => {
                self.unproven += 1;
                tracing::warn!(
                    proof.door = door,
                    proof.fault = fault.as_str(),
                    "whether {door} refuses a token that is {} could not be tried",
                    fault.as_str()
                );
            }
            Proof::Taken => {
                self.taken += 1;
                tracing::error!(
                    proof.door = door,
                    proof.fault = fault.as_str(),
                    "{door} did not refuse a token that is {}: take this broker out of service",
                    fault.as_str()
                );
            }
        }
    }
}

/// Within its deadline; without a token there is nothing to prove.
async fn prove(attempt: Option<impl Future<Output = Proof>>) -> Proof {
    match attempt {
        Some(attempt) => timeout(DEADLINE, attempt).await.unwrap_or(Proof::Unproven),
        None => Proof::Unproven,
    }
}

async fn leases(channel: &Channel, token: Secret) -> Proof {
    let mut request = tonic::Request::new(proto::ListLeasesRequest::default());
    let Ok(bearer) = format!("Bearer {}", token.expose()).parse() else { return Proof::Unproven };
    request.metadata_mut().insert(AUTHORIZATION.as_str(), bearer);
    proof(OperatorClient::new(channel.clone()).list_leases(request).await)
}

fn proof<T>(answer: Result<T, Status>) -> Proof {
    match answer {
        Ok(_) => Proof::Taken,
        Err(status) => {
            let details = status.get_error_details();
            details.error_info().map_or(Proof::Unproven, |info| by_reason(&info.reason))
        }
    }
}

/// A reason that is not about the token came after the token was taken, unless it is about the broker's own state.
fn by_reason(reason: &str) -> Proof {
    let is_one_of = |reasons: &[Reason]| reasons.iter().any(|one| one.as_str() == reason);
    if is_one_of(&OF_TOKENS) {
        Proof::Refused
    } else if is_one_of(&OF_THE_MOMENT) {
        Proof::Unproven
    } else {
        Proof::Taken
    }
}

const OF_TOKENS: [Reason; 8] = [
    Reason::SubjectTokenMalformed,
    Reason::SubjectTokenSignature,
    Reason::SubjectTokenExpired,
    Reason::SubjectTokenNotYetValid,
    Reason::SubjectTokenIssuer,
    Reason::SubjectTokenAudience,
    Reason::SubjectTokenTenant,
    Reason::SubjectTokenNotForUs,
];

const OF_THE_MOMENT: [Reason; 5] =
    [Reason::KeysUnavailable, Reason::StoreUnavailable, Reason::RateLimited, Reason::ShuttingDown, Reason::Internal];

/// New for each round: no forged token outlives it.
async fn forging_key(now: SystemTime) -> Result<SigningKey, ProberError> {
    let making = tokio::task::spawn_blocking(move || {
        let stored = SigningKey::generate(Algorithm::Rs256, now)?;
        SigningKey::from_pkcs8(&stored.pkcs8)
    });
    making.await.map_err(|_panicked| ProberError::CutOff)?.map_err(ProberError::Key)
}

impl fmt::Debug for Prober {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prober")
    }
}

/// How the prober's calls stand in the records.
pub const PEER: &str = "prober";
pub const AGENT: &str = concat!("carnet-prober/", env!("CARGO_PKG_VERSION"));

/// After start-up, when Entra's keys are there.
const FIRST_AFTER: Duration = Duration::from_secs(60);

const DEADLINE: Duration = Duration::from_secs(10);

const ANSWER_MAX_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests;

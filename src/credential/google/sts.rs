//! Google's Security Token Service: one subject token for one federated token (RFC 8693).

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::{API_IS_OFF, Status};
use crate::answer::{Verdict, by_form, error_word};
use crate::clock::Clock;
use crate::credential::correlation::{GOOGLE_PRINCIPAL, Mark, STS_EXCHANGE_ID, returned};
use crate::credential::upstream::Line;
use crate::credential::{CloudIdentity, Credential, Hop, IssueError, SetUpFault};
use crate::http::{Request, Response};
use crate::secret::Secret;
use crate::target::{GoogleSubjectToken, PoolProvider, TokenType};

/// One exchange, ready to be sent.
pub(super) struct Exchange {
    pub upstream: Line,
    pub clock: Arc<dyn Clock>,
    pub url: String,
    pub provider: PoolProvider,
    pub subject_token: Secret,
    pub presents: GoogleSubjectToken,
    pub scope: String,
    /// The life that is hoped for: Google decides.
    pub asked: Duration,
    pub principal: String,
    pub mark: Mark,
}

#[derive(Deserialize, Default)]
struct Failure {
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
}

impl Failure {
    /// In the service's own form, or in that of the front end before it.
    fn read(response: &Response) -> Self {
        let own: Option<Self> = serde_json::from_slice(&response.body).ok();
        own.unwrap_or_else(|| {
            let Status { status, message } = Status::read(response);
            Self { error: status, error_description: message }
        })
    }
}

impl Exchange {
    pub async fn run(self) -> Result<Credential, IssueError> {
        let (exchange_id, principal) = (self.mark.exchange_id, self.principal.clone());
        let exchanged = self.send().await.map(|credential| credential.minted_by(exchange_id));
        exchanged
            .map_err(|error| error.traced([(STS_EXCHANGE_ID, exchange_id.to_string()), (GOOGLE_PRINCIPAL, principal)]))
    }

    async fn send(self) -> Result<Credential, IssueError> {
        let request = || {
            let form = Request::post_form(
                &self.url,
                &[
                    ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                    ("audience", self.provider.as_str()),
                    ("scope", &self.scope),
                    ("requested_token_type", TokenType::AccessToken.urn()),
                    ("subject_token", self.subject_token.expose()),
                    ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
                ],
            );
            self.mark.on(form)
        };
        let sent_at = self.clock.now();
        let response = self.upstream.call(request, judge).await?;
        if !response.status.is_success() {
            return Err(self.refusal(&response));
        }
        let success = Hop::GoogleSts.token_answer(&response)?;
        // Counted from before the call: never later than Google's own idea of it.
        let expires_at = sent_at + success.life();
        let identity = CloudIdentity::Google { principal: self.principal, service_account: None };
        Ok(Credential::new(success.access_token, sent_at, expires_at, self.asked, identity))
    }

    fn refusal(&self, response: &Response) -> IssueError {
        let failure = Failure::read(response);
        let stale = failure.error_description.contains("stale to sign-in");
        if stale && self.presents == GoogleSubjectToken::Entra {
            let (code, upstream) = ("invalid_grant".to_owned(), returned(Hop::GoogleSts, response));
            return IssueError::SubjectToken { hop: Hop::GoogleSts, code, upstream };
        }
        let code = error_word(&failure.error, response);
        let known = FAULTS
            .iter()
            .find(|(error, text, _fault)| failure.error == *error && failure.error_description.contains(text));
        let refused = match known {
            Some((_error, _text, fault)) => IssueError::not_set_up(Hop::GoogleSts, code, *fault),
            None => IssueError::refused(Hop::GoogleSts, code, "see the provider's settings"),
        };
        refused.traced(returned(Hop::GoogleSts, response))
    }
}

fn judge(response: &Response) -> Verdict {
    match by_form(response) {
        Verdict::Final if response.status.is_client_error() => {
            let failure = Failure::read(response);
            if failure.error == "quota_exceeded" || failure.error_description.contains("throttled due to rate limit") {
                Verdict::Throttled
            } else if failure.error_description.contains("Error connecting to the given credential's issuer") {
                Verdict::IssuerUnreachable
            } else {
                Verdict::Final
            }
        }
        verdict => verdict,
    }
}

/// Google's refusals by error and a piece of their text (seen in public threads); the first row that fits counts.
const FAULTS: [(&str, &str, SetUpFault); 19] = [
    ("invalid_grant", "does not match the expected audience", SetUpFault::GoogleAudience),
    ("invalid_grant", "does not match the expected ones", SetUpFault::GoogleIssuer),
    ("invalid_grant", "stale to sign-in", SetUpFault::GoogleClock),
    ("invalid_grant", "not yet valid", SetUpFault::GoogleClock),
    ("invalid_grant", "exceeds the 127 bytes limit", SetUpFault::GoogleSubjectLength),
    ("invalid_grant", "size of", SetUpFault::GoogleMapping),
    ("invalid_grant", "Failed to map", SetUpFault::GoogleMapping),
    ("invalid_grant", "mapped attribute", SetUpFault::GoogleMapping),
    ("invalid_grant", "signature", SetUpFault::GoogleKey),
    ("invalid_grant", "signing key", SetUpFault::GoogleKey),
    ("invalid_grant", "", SetUpFault::GoogleToken),
    ("invalid_target", "", SetUpFault::GoogleProvider),
    ("invalid_request", "audience", SetUpFault::GoogleProviderName),
    ("invalid_request", "", SetUpFault::GoogleToken),
    ("access_denied", "", SetUpFault::GoogleSubject),
    ("unauthorized_client", "mapped attribute", SetUpFault::GoogleMapping),
    ("unauthorized_client", "", SetUpFault::GoogleCondition),
    ("invalid_scope", "", SetUpFault::GoogleScope),
    ("PERMISSION_DENIED", API_IS_OFF, SetUpFault::GoogleApi),
];

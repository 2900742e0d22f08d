//! Google's Security Token Service: one subject token for one federated token (RFC 8693).

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::answer::{Verdict, by_status, error_word};
use crate::clock::Clock;
use crate::credential::correlation::{GOOGLE_PRINCIPAL, Mark, STS_EXCHANGE_ID, returned};
use crate::credential::upstream::Upstream;
use crate::credential::{CloudIdentity, Credential, Hop, IssueError};
use crate::http::{Request, Response};
use crate::secret::Secret;
use crate::target::{GoogleSubjectToken, PoolProvider, TokenType};

/// One exchange, ready to be sent.
pub(super) struct Exchange {
    pub upstream: Arc<Upstream>,
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
        let failure: Failure = serde_json::from_slice(&response.body).unwrap_or_default();
        let stale = failure.error_description.contains("stale to sign-in");
        if stale && self.presents == GoogleSubjectToken::Entra {
            let (code, upstream) = ("invalid_grant".to_owned(), returned(Hop::GoogleSts, response));
            return IssueError::SubjectToken { hop: Hop::GoogleSts, code, upstream };
        }
        let known = MEANINGS
            .iter()
            .find(|(error, text, _meaning)| failure.error == *error && failure.error_description.contains(text));
        let meaning = known.map_or("see the provider's settings", |(_error, _text, meaning)| meaning);
        IssueError::refused(Hop::GoogleSts, error_word(&failure.error, response), meaning)
            .traced(returned(Hop::GoogleSts, response))
    }
}

fn judge(response: &Response) -> Verdict {
    let failure = || serde_json::from_slice::<Failure>(&response.body).unwrap_or_default();
    match by_status(response) {
        Verdict::Final if response.status.is_client_error() => {
            let failure = failure();
            if failure.error == "quota_exceeded" || failure.error_description.contains("throttled due to rate limit") {
                Verdict::Throttled
            } else if failure.error_description.contains("Error connecting to the given credential's issuer") {
                Verdict::Transient(
                    "it cannot reach the issuer's discovery or keys: upload the keys to the provider".to_owned(),
                )
            } else {
                Verdict::Final
            }
        }
        verdict => verdict,
    }
}

/// Google's refusals by error and a piece of their text (seen in public threads), and what to do about each.
const MEANINGS: [(&str, &str, &str); 12] = [
    (
        "invalid_grant",
        "does not match the expected audience",
        "the provider's allowed audiences do not hold what was presented: allow it, or leave the list empty",
    ),
    (
        "invalid_grant",
        "does not match the expected ones",
        "the provider's issuer is another text than the token's: they must be equal to the letter",
    ),
    ("invalid_grant", "stale to sign-in", "the assertion is too old for Google: check the broker's clock"),
    (
        "invalid_grant",
        "exceeds the 127 bytes limit",
        "the mapped google.subject is too long: change the attribute mapping",
    ),
    ("invalid_grant", "size of", "the mapped attributes are too large: change the attribute mapping"),
    ("invalid_grant", "signature", "the provider does not know the issuer's key: upload the issuer's current keys"),
    ("invalid_grant", "", "the provider does not accept the presented token: compare issuer, audience and keys"),
    ("invalid_target", "", "the pool or provider does not exist, or is disabled"),
    ("invalid_request", "", "the provider's name is wrong: it needs the project's number"),
    ("access_denied", "", "the provider refuses this subject"),
    ("unauthorized_client", "", "the provider's attribute condition refuses this subject"),
    ("invalid_scope", "", "Google does not know one of the target's scopes"),
];

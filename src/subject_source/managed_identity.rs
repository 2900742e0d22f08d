//! The managed identity of the machine: App Service's endpoint, Azure Machine Learning's, or the metadata service.

use std::time::Duration;

use http::StatusCode;

use super::call::{Pace, Web, call};
use super::held::Fetched;
use super::{Audience, Environment, SourceError, SourceName};
use crate::answer::{Verdict, by_status, error_word};
use crate::clock::Clock;
use crate::entra::{
    Failure, Identity, ManagedIdentityAnswer, ask_managed_identity, judge_managed_identity, probe_metadata_service,
};
use crate::http::{Endpoint, Response};
use crate::secret::Secret;

#[derive(Debug, Clone)]
pub(super) struct ManagedIdentity {
    place: Place,
    client_id: Option<String>,
    resource: String,
}

#[derive(Debug, Clone)]
enum Place {
    AppService { endpoint: Endpoint, header: Secret },
    MachineLearning { endpoint: Endpoint, secret: Secret },
    Imds(Endpoint),
}

impl ManagedIdentity {
    /// By the variables of the platform; `None` where there are none, so that only the metadata service is left.
    pub fn configured(environment: &Environment, audience: Option<&Audience>) -> Result<Option<Self>, SourceError> {
        let mut client_id = environment.text("AZURE_CLIENT_ID");
        let place = match (environment.text(IDENTITY_ENDPOINT), environment.text(MSI_ENDPOINT), environment.text(IMDS))
        {
            (Some(endpoint), _, _) => {
                // With these, the endpoint speaks Service Fabric's or Azure Arc's protocol.
                let other = ["IDENTITY_SERVER_THUMBPRINT", "IMDS_ENDPOINT"];
                if let Some(variable) = other.into_iter().find(|name| environment.text(name).is_some()) {
                    let problem = "is set: the managed identities of Service Fabric and Azure Arc are not supported; \
                                   choose another source with --subject-source"
                        .to_owned();
                    return Err(SourceError::Variable { variable, problem });
                }
                let header = secret(environment, "IDENTITY_HEADER")?;
                Place::AppService { endpoint: plain(IDENTITY_ENDPOINT, &endpoint)?, header }
            }
            // Alone it is Cloud Shell's, whose user az knows.
            (None, Some(endpoint), _) if environment.text("MSI_SECRET").is_some() => {
                client_id = environment.text("DEFAULT_IDENTITY_CLIENT_ID").or(client_id);
                let secret = secret(environment, "MSI_SECRET")?;
                Place::MachineLearning { endpoint: plain(MSI_ENDPOINT, &endpoint)?, secret }
            }
            (None, _, Some(authority)) => Place::Imds(plain(IMDS, &authority)?),
            (None, _, None) => return Ok(None),
        };
        Self::at(place, client_id, audience).map(Some)
    }

    /// The metadata service, asked or not whether it is there.
    pub fn of_the_machine(environment: &Environment, audience: Option<&Audience>) -> Result<Self, SourceError> {
        let endpoint = plain(IMDS, "http://169.254.169.254")?;
        Self::at(Place::Imds(endpoint), environment.text("AZURE_CLIENT_ID"), audience)
    }

    /// Whether the metadata service answers as Azure's does: other clouds have theirs at the same address. One that is
    /// busy or being updated is there, too: to go on without it would be to take another identity.
    pub async fn is_there(&self, web: &dyn Web) -> bool {
        let Place::Imds(endpoint) = &self.place else { return true };
        let answer = web.send(probe_metadata_service(endpoint), PROBE_DEADLINE).await;
        answer.is_ok_and(|answer| {
            matches!(answer.status, StatusCode::BAD_REQUEST | StatusCode::GONE)
                || !matches!(by_status(&answer), Verdict::Final)
        })
    }

    pub async fn fetch(&self, web: &dyn Web, clock: &dyn Clock) -> Result<Fetched, SourceError> {
        let (identity, header) = match &self.place {
            Place::AppService { endpoint, header } => (Identity::AppService { endpoint, header }, "IDENTITY_HEADER"),
            Place::MachineLearning { endpoint, secret } => {
                (Identity::MachineLearning { endpoint, secret }, "MSI_SECRET")
            }
            Place::Imds(endpoint) => (Identity::Imds(endpoint), IMDS),
        };
        let request = || {
            let unsendable =
                |_cause| SourceError::Variable { variable: header, problem: "is no legal header value".to_owned() };
            ask_managed_identity(identity, &self.resource, self.client_id.as_deref()).map_err(unsendable)
        };
        let response = call(web, clock, NAME, PACE, request, judge_managed_identity).await?;
        if !response.status.is_success() {
            return Err(self.refusal(&response));
        }
        let answer: Option<ManagedIdentityAnswer> = serde_json::from_slice(&response.body).ok();
        answer
            .and_then(|answer| Fetched::new(answer.access_token.clone(), answer.expires_at()))
            .filter(|fetched| clock.now() < fetched.expires_at)
            .ok_or(SourceError::Malformed { name: NAME })
    }

    fn at(place: Place, client_id: Option<String>, audience: Option<&Audience>) -> Result<Self, SourceError> {
        let resource = audience.ok_or(SourceError::NoAudience(NAME))?.resource();
        Ok(Self { place, client_id, resource })
    }

    fn refusal(&self, response: &Response) -> SourceError {
        let meaning = match (response.status, &self.client_id) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => {
                "the endpoint does not take this secret: IDENTITY_HEADER or MSI_SECRET is another's".to_owned()
            }
            (_, Some(client_id)) => format!(
                "the machine has no identity with the client id {client_id}, or the audience {} does not exist: check \
                 AZURE_CLIENT_ID and CARNET_AUDIENCE",
                self.resource
            ),
            (_, None) => format!(
                "the machine has several identities (set AZURE_CLIENT_ID to one) or none, or the audience {} does not \
                 exist",
                self.resource
            ),
        };
        let code = error_word(&Failure::read(response).error, response);
        SourceError::Refused { name: NAME, code, meaning }
    }
}

fn secret(environment: &Environment, name: &'static str) -> Result<Secret, SourceError> {
    let value = environment.text(name).map(Secret::new);
    value.ok_or_else(|| SourceError::Incomplete { name: NAME, missing: vec![name] })
}

fn plain(variable: &'static str, url: &str) -> Result<Endpoint, SourceError> {
    Endpoint::metadata(url).map_err(|error| SourceError::Variable { variable, problem: error.to_string() })
}

const NAME: SourceName = SourceName::ManagedIdentity;
const IDENTITY_ENDPOINT: &str = "IDENTITY_ENDPOINT";
const MSI_ENDPOINT: &str = "MSI_ENDPOINT";
const IMDS: &str = "AZURE_POD_IDENTITY_AUTHORITY_HOST";

/// On a machine without the service nothing answers at all.
const PROBE_DEADLINE: Duration = Duration::from_millis(500);

/// Microsoft (how-to-use-vm-token): five tries, at 0, 2, 6, 14 and 30 seconds.
const PACE: Pace = Pace {
    waits: &[Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8), Duration::from_secs(16)],
    deadline: Duration::from_secs(40),
};

//! Azure's managed identity endpoints: App Service (2019-08-01), its older form that Azure ML has (2017-09-01), and the
//! instance metadata service (2018-02-01 and later).

mod selector;

use std::time::{Duration, SystemTime};

use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::json;
use subtle::ConstantTimeEq as _;

use self::selector::{Choice, Selector};
use super::source::{Cloud, Kind, Refusal};
use super::{Agent, Answer, Known, expires_in, parameters, text};
use crate::clock::unix_seconds;

/// `/metadata/identity/oauth2/token`, as on a virtual machine.
pub(super) async fn instance_metadata(agent: &Agent, request: &Parts) -> Answer {
    let is_meant = matches!(one_header(request, "metadata"), Some(value) if value.eq_ignore_ascii_case("true"));
    if !is_meant || request.headers.contains_key("x-forwarded-for") {
        // What SDKs probe with: the status tells them that the service is here.
        return refuse(StatusCode::BAD_REQUEST, "bad_request_102", "Required metadata header not specified");
    }
    if parameters(request, "api-version").len() != 1 {
        return refuse(StatusCode::BAD_REQUEST, INVALID, "api-version is missing");
    }
    token(agent, request).await
}

/// `IDENTITY_ENDPOINT`, as in App Service and Azure ML.
pub(super) async fn app_service(agent: &Agent, request: &Parts) -> Answer {
    let Some(expected) = &agent.identity_header else {
        return text(StatusCode::NOT_FOUND, "there is nothing here");
    };
    if request.headers.contains_key("x-forwarded-for") {
        return refuse(StatusCode::BAD_REQUEST, INVALID, "requests through a proxy are not served");
    }
    let header = match parameters(request, "api-version").as_slice() {
        [version] if version == "2019-08-01" => "x-identity-header",
        [version] if version == "2017-09-01" => "secret",
        _ => return refuse(StatusCode::BAD_REQUEST, INVALID, "api-version is 2019-08-01 or 2017-09-01"),
    };
    let given = one_header(request, header).unwrap_or_default();
    if !bool::from(given.as_bytes().ct_eq(expected.expose().as_bytes())) {
        let message = format!("the header {header} does not hold the value of IDENTITY_HEADER");
        return refuse(StatusCode::UNAUTHORIZED, "unauthorized", &message);
    }
    token(agent, request).await
}

async fn token(agent: &Agent, request: &Parts) -> Answer {
    if request.method != Method::GET {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, INVALID, "GET is what is served");
    }
    let selector = match Selector::read(request) {
        Ok(selector) => selector,
        Err(complaint) => return refuse(StatusCode::BAD_REQUEST, INVALID, complaint),
    };
    let learned = agent.learn(matches!(selector.choose(identities(agent)), Choice::One(_)), HOLD).await;
    let known = match (selector.choose(identities(agent)), learned) {
        (Choice::One(known), _) => known,
        // The one that is asked for may be among those that are not known yet.
        (_, Err(refusal)) => return refused(&refusal),
        (Choice::NoIdentity, Ok(())) => return refuse(StatusCode::BAD_REQUEST, INVALID, "Identity not found"),
        (Choice::NoResource(message) | Choice::Several(message), Ok(())) => {
            return refuse(StatusCode::BAD_REQUEST, INVALID, &message);
        }
    };
    if let Some(bad) = bad_token(request) {
        agent.held.renew(&known.target.wanted, &bad).await;
    }
    match agent.held.get(&known.target.wanted, HOLD).await {
        Ok(credential) => {
            let expires_in = expires_in(&credential, agent.clock.as_ref());
            let body = json!({
                "access_token": credential.token.expose(),
                "refresh_token": "",
                "expires_in": expires_in.to_string(),
                "expires_on": seconds(agent.clock.now() + Duration::from_secs(expires_in)),
                "not_before": seconds(credential.obtained_at),
                "resource": selector.resource,
                "token_type": "Bearer",
                "client_id": known.client_id(),
            });
            json_answer(StatusCode::OK, body.to_string())
        }
        Err(refusal) => refused(&refusal),
    }
}

fn identities(agent: &Agent) -> Vec<Known<'_>> {
    agent.known().filter(|known| matches!(known.last.cloud, Cloud::Azure { .. })).collect()
}

impl Known<'_> {
    fn client_id(&self) -> &str {
        match &self.last.cloud {
            Cloud::Azure { client_id } => client_id,
            Cloud::Google { .. } => "",
        }
    }
}

/// SHA-256 of a token that the client has found to be no good.
fn bad_token(request: &Parts) -> Option<[u8; 32]> {
    let hashes = parameters(request, "token_sha256_to_refresh");
    let mut digest = [0; 32];
    hex::decode_to_slice(hashes.first()?, &mut digest).ok().map(|()| digest)
}

/// The header's value, where it is there once.
fn one_header<'a>(request: &'a Parts, name: &str) -> Option<&'a str> {
    let mut all = request.headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// In a form that SDKs do not retry, unless time may mend it.
fn refused(refusal: &Refusal) -> Answer {
    match refusal.kind {
        Kind::Denied => refuse(StatusCode::BAD_REQUEST, "access_denied", &refusal.message),
        Kind::Failed => refuse(StatusCode::BAD_REQUEST, INVALID, &refusal.message),
        Kind::Away(_) => {
            let mut answer = refuse(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", &refusal.message);
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(super::RETRY_AFTER));
            answer
        }
    }
}

/// `error` and `error_description` are read by clients of the instance metadata service, `statusCode` and `message` by
/// those of App Service.
fn refuse(status: StatusCode, error: &str, message: &str) -> Answer {
    let body = json!({
        "error": error,
        "error_description": message,
        "statusCode": status.as_u16(),
        "message": message,
    });
    json_answer(status, body.to_string())
}

fn json_answer(status: StatusCode, body: String) -> Answer {
    let mut answer = text(status, body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    answer
}

/// Numbers are texts in these protocols.
fn seconds(time: SystemTime) -> String {
    unix_seconds(time).to_string()
}

const INVALID: &str = "invalid_request";

/// Azure promises an answer within this time, and its SDKs wait for it.
const HOLD: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;

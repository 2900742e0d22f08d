//! The parameters of a request: a form, or JSON in snake_case or camelCase.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use serde_json::Value;

use crate::exchange::{Caller, ExchangeError, ExchangeRequest, Proof, TargetRequest};
use crate::json::UniqueMap;
use crate::policy::{ExcessScopes, Tenure};
use crate::secret::Secret;
use crate::target::{Job, Span, TokenType};

pub(super) const GRANT_TYPE: &str = "grant_type";

/// RFC 8693 section 2.1.
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// Each parameter once, by its name in snake_case.
#[derive(Default)]
pub(super) struct Fields(HashMap<String, Secret>);

impl Fields {
    /// # Errors
    /// A sentence for the caller; it repeats no value.
    pub fn parse(headers: &HeaderMap, body: &[u8]) -> Result<Self, String> {
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/x-www-form-urlencoded" => Self::from_form(body),
            "application/json" => Self::from_json(body),
            _ => Err("send application/x-www-form-urlencoded or application/json".to_owned()),
        }
    }

    /// A parameter, if it is there and not empty (RFC 6749 section 3.2: empty is as absent).
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Secret::expose).filter(|text| !text.is_empty())
    }

    /// The exchange that is asked for, and what is wrong with it.
    pub fn exchange_request(&self, caller: Caller) -> (ExchangeRequest, Option<ExchangeError>) {
        let (lifetime, bad_lifetime) = self.span("lifetime");
        let (expected_duration, bad_duration) = self.span("job_expected_duration");
        let text = |name: &str| self.text(name).unwrap_or_default().to_owned();
        let target = TargetRequest {
            target: text("audience"),
            scopes: text("scope").split_ascii_whitespace().map(str::to_owned).collect(),
            requested_token_type: text("requested_token_type"),
            audience: text("resource"),
            lifetime,
            beyond: None,
        };
        let job = Job {
            id: self.text("job_id").map(str::to_owned),
            name: self.text("job_name").map(str::to_owned),
            expected_duration,
            ..Job::default()
        };
        let request = ExchangeRequest {
            proof: Proof::SubjectToken {
                token: Secret::new(text("subject_token")),
                token_type: text("subject_token_type"),
            },
            tenure: Tenure::Once,
            lease_id: None,
            targets: vec![target],
            job: Arc::new(job),
            excess: ExcessScopes::Drop,
            caller,
        };
        (request, self.complaint().or(bad_lifetime).or(bad_duration))
    }

    fn complaint(&self) -> Option<ExchangeError> {
        let wrong = |field: &str, message: &str| {
            Some(ExchangeError::Request { field: field.to_owned(), message: message.to_owned() })
        };
        match self.text(GRANT_TYPE) {
            Some(TOKEN_EXCHANGE) => {}
            Some(_) => {
                return wrong(GRANT_TYPE, "the one grant type is urn:ietf:params:oauth:grant-type:token-exchange");
            }
            None => return wrong("body", "grant_type is missing"),
        }
        if self.text("audience").is_none() {
            return wrong("audience", "name the target");
        }
        if self.text("subject_token").is_none() {
            return wrong("subject_token", "is missing");
        }
        if self.text("subject_token_type").is_none() {
            return wrong("subject_token_type", "is missing (RFC 8693 section 2.1)");
        }
        if self.text("actor_token").is_some() || self.text("actor_token_type").is_some() {
            return wrong("actor_token", "delegation is not offered: leave it out");
        }
        if self.text("resource").is_some() && self.text("requested_token_type") != Some(TokenType::IdToken.urn()) {
            return wrong("resource", "is the audience of an ID token: leave it out for an access token");
        }
        None
    }

    fn span(&self, name: &'static str) -> (Option<std::time::Duration>, Option<ExchangeError>) {
        match self.text(name).map(str::parse::<Span>) {
            None => (None, None),
            Some(Ok(span)) => (Some(span.0), None),
            Some(Err(complaint)) => {
                (None, Some(ExchangeError::Request { field: name.to_owned(), message: complaint.0.to_owned() }))
            }
        }
    }

    fn from_form(body: &[u8]) -> Result<Self, String> {
        let mut fields = HashMap::new();
        for (name, value) in url::form_urlencoded::parse(body) {
            let known = snake_case(&name);
            if fields.insert(known, Secret::new(value)).is_some() {
                return Err("a parameter stands in the request twice (RFC 6749 section 3.2)".to_owned());
            }
        }
        Ok(Self(fields))
    }

    fn from_json(body: &[u8]) -> Result<Self, String> {
        let UniqueMap(object) = serde_json::from_slice(body)
            .map_err(|_not_an_object| "the body is not a JSON object with each name once".to_owned())?;
        let mut fields = HashMap::new();
        for (name, value) in object {
            let text = match value {
                Value::String(text) => text,
                Value::Null => continue,
                Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                    return Err("every member of the JSON object is a text".to_owned());
                }
            };
            if fields.insert(snake_case(&name), Secret::new(text)).is_some() {
                return Err("a parameter stands in the request twice, in snake_case and in camelCase".to_owned());
            }
        }
        Ok(Self(fields))
    }
}

/// `subjectToken` and `subject_token` are one parameter (Google writes the former, RFC 8693 the latter).
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for character in name.chars() {
        if character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake
}

//! An exchange as a front door received it, in the words of RFC 8693, and its form checked.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::ExchangeError;
use crate::limit::Peer;
use crate::line::one_line;
use crate::policy::{Ask, ExcessScopes, Tenure};
use crate::secret::Secret;
use crate::subject::VerifiedIdentity;
use crate::target::{Job, Scope, Scopes, TokenType};

/// What a caller wants, as it came in.
#[derive(Debug, Clone)]
pub struct ExchangeRequest {
    pub proof: Proof,
    pub tenure: Tenure,
    /// Of the lease that is opened or used.
    pub lease_id: Option<Uuid>,
    pub targets: Vec<TargetRequest>,
    pub job: Arc<Job>,
    pub excess: ExcessScopes,
    pub caller: Caller,
}

/// What shows who asks.
#[derive(Debug, Clone)]
pub enum Proof {
    /// `token_type`: RFC 8693 URN; empty means a JWT.
    SubjectToken { token: Secret, token_type: String },
    /// The identity that opened the lease whose token was shown.
    Lease(Arc<VerifiedIdentity>),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetRequest {
    pub target: String,
    pub scopes: Vec<String>,
    /// RFC 8693 URN; empty means an access token.
    pub requested_token_type: String,
    /// Of an ID token.
    pub audience: String,
    pub lifetime: Option<Duration>,
    /// The caller has a credential until then, and wants one that lasts longer.
    pub beyond: Option<SystemTime>,
}

/// Through which door, and from where.
#[derive(Debug, Clone)]
pub struct Caller {
    pub door: Door,
    pub peer: Peer,
    pub user_agent: Arc<str>,
}

impl Caller {
    /// Texts that the caller chose are cut to what a record can hold.
    pub fn new(door: Door, peer: Peer, user_agent: &str) -> Self {
        Self { door, peer, user_agent: one_line(user_agent, 200).into() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    Grpc,
    Http,
}

impl Door {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

/// A request of good form.
pub(super) struct Asks {
    pub asks: Vec<Ask>,
    pub job: Arc<Job>,
}

impl ExchangeRequest {
    pub(super) fn check(&self) -> Result<Asks, ExchangeError> {
        if let Proof::SubjectToken { token_type, .. } = &self.proof
            && !SUBJECT_TOKEN_TYPES.contains(&token_type.as_str())
        {
            return Err(invalid(
                "subject_token_type",
                "an Entra access token is presented as urn:ietf:params:oauth:token-type:jwt or ...:access_token",
            ));
        }
        let asks = asks(&self.targets, &self.job, self.excess)?;
        if matches!(self.tenure, Tenure::Opening(Some(duration)) if duration < SHORTEST_LEASE) {
            return Err(invalid("duration", "a lease lasts at least a second"));
        }
        Ok(Asks { asks, job: self.job.clone() })
    }
}

/// What is asked for, where its form is good.
///
/// # Errors
/// [`ExchangeError::Request`] names the field.
pub fn asks(targets: &[TargetRequest], job: &Job, excess: ExcessScopes) -> Result<Vec<Ask>, ExchangeError> {
    if targets.is_empty() || targets.len() > MAX_TARGETS {
        return Err(invalid("targets", "name at least one target and at most 16"));
    }
    let asks = targets.iter().enumerate();
    let asks: Vec<Ask> = asks.map(|(position, target)| ask(target, position, excess)).collect::<Result<_, _>>()?;
    for (position, ask) in asks.iter().enumerate() {
        let same = |other: &Ask| {
            (&other.target, other.token_type, &other.audience) == (&ask.target, ask.token_type, &ask.audience)
        };
        if asks.iter().take(position).any(same) {
            return Err(invalid(
                &format!("targets[{position}]"),
                "the same target, token type and audience stand in the request twice",
            ));
        }
    }
    job.check().map_err(|complaint| invalid("job", complaint.0))?;
    Ok(asks)
}

fn ask(request: &TargetRequest, position: usize, excess: ExcessScopes) -> Result<Ask, ExchangeError> {
    let at = |field: &str| format!("targets[{position}].{field}");
    let token_type = match request.requested_token_type.as_str() {
        "" => TokenType::AccessToken,
        urn => urn
            .parse()
            .map_err(|complaint: crate::target::Invalid| invalid(&at("requested_token_type"), complaint.0))?,
    };
    let audience = match (token_type, request.audience.as_str()) {
        (TokenType::AccessToken | TokenType::Jwt, "") => None,
        (TokenType::AccessToken | TokenType::Jwt, _) => {
            return Err(invalid(
                &at("audience"),
                "only an ID token has an audience of the caller's choice: ask for one, or leave it out",
            ));
        }
        (TokenType::IdToken, "") => return Err(invalid(&at("audience"), "an ID token needs an audience")),
        (TokenType::IdToken, text) => {
            Some(text.parse().map_err(|complaint: crate::target::Invalid| invalid(&at("audience"), complaint.0))?)
        }
    };
    if request.scopes.len() > MAX_SCOPES {
        return Err(invalid(&at("scopes"), "at most 64 scopes"));
    }
    let scopes = request.scopes.iter().map(|scope| scope.parse::<Scope>());
    let scopes: Scopes = scopes.collect::<Result<_, _>>().map_err(|complaint| invalid(&at("scopes"), complaint.0))?;
    if request.lifetime.is_some_and(|lifetime| lifetime.is_zero() || lifetime > LONGEST_LIFETIME) {
        return Err(invalid(&at("lifetime"), "a lifetime is longer than nothing and at most 30 days"));
    }
    Ok(Ask {
        target: request.target.clone(),
        scopes,
        excess,
        token_type,
        audience,
        lifetime: request.lifetime,
        beyond: request.beyond,
    })
}

fn invalid(field: &str, message: &str) -> ExchangeError {
    ExchangeError::Request { field: field.to_owned(), message: message.to_owned() }
}

/// An Entra access token is a JWT; both names are right (RFC 8693 section 3).
const SUBJECT_TOKEN_TYPES: [&str; 3] =
    ["", "urn:ietf:params:oauth:token-type:jwt", "urn:ietf:params:oauth:token-type:access_token"];

const SHORTEST_LEASE: Duration = Duration::from_secs(1);

const MAX_TARGETS: usize = 16;
const MAX_SCOPES: usize = 64;

/// Longer than any job that runs; what is really granted is bounded elsewhere.
const LONGEST_LIFETIME: Duration = Duration::from_secs(30 * 86_400);

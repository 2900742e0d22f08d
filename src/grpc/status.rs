//! The one place where an `ExchangeError` becomes a gRPC status.

use std::collections::HashMap;

use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

use crate::credential::IssueError;
use crate::exchange::ExchangeError;
use crate::reason::Reason;

/// The fixed reason and the exchange's id; where it helps, when to come back or which field is wrong.
pub(super) fn of(error: &ExchangeError, exchange_id: Uuid) -> Status {
    let mut details = ErrorDetails::new();
    let mut metadata = HashMap::from([("exchange_id".to_owned(), exchange_id.to_string())]);
    if let ExchangeError::Credential { error, .. } = error {
        metadata.extend(error.code().map(|code| ("cloud_error".to_owned(), code.to_owned())));
        if let IssueError::InsufficientClaims { claims: Some(claims), .. } = error {
            metadata.insert("claims".to_owned(), claims.clone());
        }
    }
    if let ExchangeError::LeaseEnded(state) = error {
        metadata.insert("lease_state".to_owned(), (*state).to_owned());
    }
    details.set_error_info(error.reason().as_str(), DOMAIN, metadata);
    if let Some(wait) = error.retry_after() {
        details.set_retry_info(Some(wait));
    }
    if let ExchangeError::Request { field, message } = error {
        details.add_bad_request_violation(field.clone(), message.clone());
    }
    Status::with_error_details(code(error.reason()), error.to_string(), details)
}

/// The answer to a call for which there is no place.
pub fn busy() -> http::Response<Body> {
    crowded().into_http()
}

/// The same for a request of which a part is there.
pub fn crowded() -> Status {
    of(&ExchangeError::Overloaded, Uuid::now_v7())
}

const DOMAIN: &str = "carnet";

fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidRequest => Code::InvalidArgument,
        Reason::SubjectTokenMalformed
        | Reason::SubjectTokenSignature
        | Reason::SubjectTokenExpired
        | Reason::SubjectTokenNotYetValid
        | Reason::SubjectTokenIssuer
        | Reason::SubjectTokenAudience
        | Reason::SubjectTokenTenant
        | Reason::SubjectTokenNotForUs
        | Reason::InsufficientClaims => Code::Unauthenticated,
        Reason::GroupsOverage | Reason::CloudRefused | Reason::LeaseEnded => Code::FailedPrecondition,
        Reason::LeaseNotFound => Code::NotFound,
        Reason::Denied => Code::PermissionDenied,
        Reason::RateLimited => Code::ResourceExhausted,
        Reason::Internal => Code::Internal,
        Reason::CloudUnavailable | Reason::KeysUnavailable | Reason::StoreUnavailable | Reason::ShuttingDown => {
            Code::Unavailable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::Hop;
    use crate::policy::{Denial, Refusal};

    #[test]
    fn i13_every_denial_has_the_same_bytes_but_for_the_id() {
        let id = Uuid::from_u128(1);
        let name = || "secret-rule".parse().expect("a name");
        let over = Denial::LeaseOver(name(), std::time::Duration::from_secs(60));
        let denials = [Denial::NoSuchTarget, Denial::NoRule, Denial::Rule(name()), over];
        let statuses = denials.map(|denial| of(&ExchangeError::Policy(Refusal::Denied(denial)), id));
        for status in &statuses {
            assert_eq!(
                (status.code(), status.message(), status.details()),
                (Code::PermissionDenied, "denied", statuses[0].details())
            );
        }
    }

    #[test]
    fn a_status_carries_reason_id_wait_and_field() {
        let id = Uuid::from_u128(1);
        let wait = std::time::Duration::from_secs(7);
        let error = IssueError::Throttled { hop: Hop::GoogleSts, retry_after: wait, upstream: Vec::new() };
        let status = of(&ExchangeError::Credential { target: "t".to_owned(), error }, id);
        let details = status.get_error_details();
        let info = details.error_info().expect("an ErrorInfo");
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str(), info.metadata["exchange_id"].as_str()),
            ("RATE_LIMITED", "carnet", id.to_string().as_str())
        );
        assert_eq!(details.retry_info().and_then(|info| info.retry_delay), Some(wait));
        let field = of(&ExchangeError::Request { field: "targets".to_owned(), message: "too many".to_owned() }, id);
        assert_eq!(field.get_error_details().bad_request().expect("a BadRequest").field_violations[0].field, "targets");
    }

    #[test]
    fn a_challenge_is_relayed() {
        let (code, claims) = ("AADSTS50076".to_owned(), Some("{}".to_owned()));
        let error = IssueError::InsufficientClaims { code, claims, upstream: Vec::new() };
        let status = of(&ExchangeError::Credential { target: "t".to_owned(), error }, Uuid::nil());
        let info = status.get_error_details().error_info().expect("an ErrorInfo").clone();
        assert_eq!((info.metadata["claims"].as_str(), info.metadata["cloud_error"].as_str()), ("{}", "AADSTS50076"));
    }

    #[test]
    fn how_a_lease_ended_is_there_for_programs_too() {
        let status = of(&ExchangeError::LeaseEnded("closed"), Uuid::nil());
        assert_eq!(status.get_error_details().error_info().expect("an ErrorInfo").metadata["lease_state"], "closed");
    }

    #[test]
    fn every_reason_has_a_code_that_is_no_success() {
        assert!(Reason::ALL.iter().all(|reason| code(*reason) != Code::Ok));
    }
}

//! What a recorded decision was about, so that rules can be asked the same question again.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::policy::{Ask, ExcessScopes};
use crate::proto;
use crate::target::{Job, TokenType};

/// What was asked for; `None` for records of anything but a decision about a target.
pub fn ask(record: &proto::AuditRecord) -> Option<Ask> {
    if !DECISIONS.contains(&record.action.as_str()) || record.target.is_empty() {
        return None;
    }
    let said = |name: &str| record.attributes.get(name).map(String::as_str);
    let scopes = said("requested_scopes").unwrap_or_default().split_ascii_whitespace();
    Some(Ask {
        target: record.target.clone(),
        scopes: scopes.filter_map(|scope| scope.parse().ok()).collect(),
        excess: if said("door") == Some("http") { ExcessScopes::Drop } else { ExcessScopes::Refuse },
        token_type: said("requested_token_type").and_then(|urn| urn.parse().ok()).unwrap_or(TokenType::AccessToken),
        audience: said("requested_audience").and_then(|audience| audience.parse().ok()),
        lifetime: seconds(record, "requested_lifetime"),
        beyond: None,
    })
}

/// Of the lease that was to be opened, where the request said how long.
pub fn asked_duration(record: &proto::AuditRecord) -> Option<Duration> {
    seconds(record, "requested_duration")
}

pub fn job(record: &proto::AuditRecord) -> Job {
    let job = record.job.clone().unwrap_or_default();
    let some = |text: String| (!text.is_empty()).then_some(text);
    Job {
        id: some(job.id),
        name: some(job.name),
        expected_duration: job.expected_duration.and_then(|duration| duration.try_into().ok()),
        labels: job.labels.into_iter().collect(),
        datasets: job.datasets,
    }
}

/// Under which digest the facts are kept that were decided about.
pub fn facts_digest(record: &proto::AuditRecord) -> Option<[u8; 32]> {
    BASE64_URL_SAFE_NO_PAD.decode(record.attributes.get("identity")?).ok()?.try_into().ok()
}

fn seconds(record: &proto::AuditRecord, name: &str) -> Option<Duration> {
    record.attributes.get(name)?.parse().ok().map(Duration::from_secs)
}

/// Actions that ask the rules for targets.
pub const DECISIONS: [&str; 3] = ["exchange", "lease.open", "lease.credentials"];

#[cfg(test)]
mod tests {
    use super::*;

    fn record(action: &str, attributes: &[(&str, &str)]) -> proto::AuditRecord {
        proto::AuditRecord {
            action: action.to_owned(),
            target: "vertex".to_owned(),
            attributes: attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            ..proto::AuditRecord::default()
        }
    }

    #[test]
    fn a_question_comes_back_as_it_was_asked() {
        let asked = record(
            "lease.open",
            &[
                ("door", "http"),
                ("requested_scopes", "b a"),
                ("requested_lifetime", "900"),
                ("requested_token_type", "urn:ietf:params:oauth:token-type:id_token"),
                ("requested_audience", "https://run.example.com"),
                ("requested_duration", "32400"),
            ],
        );
        let again = ask(&asked).expect("a question");
        assert_eq!((again.target.as_str(), again.scopes.joined().as_str()), ("vertex", "a b"));
        assert_eq!((again.excess, again.token_type), (ExcessScopes::Drop, TokenType::IdToken));
        assert_eq!(
            (again.lifetime, asked_duration(&asked)),
            (Some(Duration::from_secs(900)), Some(Duration::from_secs(32_400)))
        );
        assert!(again.audience.is_some());
        let plain = ask(&record("exchange", &[])).expect("a question");
        assert_eq!(
            (plain.excess, plain.token_type, plain.lifetime),
            (ExcessScopes::Refuse, TokenType::AccessToken, None)
        );
        assert!(ask(&record("lease.extend", &[])).is_none());
    }

    #[test]
    fn facts_are_found_by_the_digest_that_the_record_names() {
        let named = record("exchange", &[("identity", &BASE64_URL_SAFE_NO_PAD.encode([7; 32]))]);
        assert_eq!(facts_digest(&named), Some([7; 32]));
        assert_eq!(facts_digest(&record("exchange", &[("identity", "short")])), None);
        assert_eq!(facts_digest(&record("exchange", &[])), None);
    }
}

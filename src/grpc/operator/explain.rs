//! `Explain`: what is to be explained, read from the message, and the steps written to it.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use serde_json::{Map, Number, Value};

use crate::exchange::ExchangeError;
use crate::grpc::message::{self, Durations};
use crate::operator::{ExplainRequest, ExplainSubject, Explained};
use crate::proto;
use crate::proto::explain_request::Subject;
use crate::secret::Secret;
use crate::step::{Step, StepOutcome};

/// What the message asks; what it lacks is the request's complaint.
pub fn request(message: proto::ExplainRequest) -> ExplainRequest {
    let mut durations = Durations::default();
    let targets = message::targets(message.targets, &mut durations);
    let job = message::job(message.job, &mut durations);
    let invalid = |field: &str, message: &str| {
        let error = ExchangeError::Request { field: field.to_owned(), message: message.to_owned() };
        (ExplainSubject::Claims(Map::new()), Some(error))
    };
    let (subject, complaint) = match message.subject {
        _ if !message.exchange_id.is_empty() => match message.exchange_id.parse() {
            Ok(id) if message.subject.is_none() && targets.is_empty() => (ExplainSubject::Recorded(id), None),
            Ok(_) => invalid("exchange_id", "stands in place of a subject and of targets: give it alone"),
            Err(_not_a_uuid) => invalid("exchange_id", "is not the id of an exchange"),
        },
        Some(Subject::SubjectToken(token)) => (ExplainSubject::Token(Secret::new(token)), None),
        Some(Subject::Claims(claims)) => (ExplainSubject::Claims(object(claims.fields, 0)), None),
        None => invalid("subject", "say whom it is about: subject_token, claims or exchange_id"),
    };
    ExplainRequest { subject, targets, job, complaint: durations.complaint.or(complaint) }
}

pub(super) fn response(explained: Explained) -> proto::ExplainResponse {
    let steps = explained.steps.into_iter().map(step).collect();
    proto::ExplainResponse { allowed: explained.allowed, steps }
}

fn step(step: Step) -> proto::Step {
    let outcome = match step.outcome {
        StepOutcome::Passed => proto::StepOutcome::Passed,
        StepOutcome::Failed => proto::StepOutcome::Failed,
        StepOutcome::Skipped => proto::StepOutcome::Skipped,
    };
    proto::Step { name: step.name, outcome: outcome.into(), detail: step.detail, remedy: step.remedy }
}

/// A step as it was sent; an outcome that this version does not know counts as not reached.
pub fn step_of(message: proto::Step) -> Step {
    let outcome = match message.outcome() {
        proto::StepOutcome::Passed => StepOutcome::Passed,
        proto::StepOutcome::Failed => StepOutcome::Failed,
        proto::StepOutcome::Skipped | proto::StepOutcome::Unspecified => StepOutcome::Skipped,
    };
    Step::received(message.name, outcome, &message.detail, &message.remedy)
}

fn object(fields: BTreeMap<String, prost_types::Value>, depth: usize) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name, json(value, depth + 1))).collect()
}

/// A `Struct` has no integers, and the dates of claims are some: a whole number is one again.
fn json(value: prost_types::Value, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        return Value::Null;
    }
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(truth)) => truth.into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::NumberValue(number)) => whole(number).map_or_else(|| number.into(), Value::Number),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(|value| json(value, depth + 1)).collect(),
        Some(Kind::StructValue(object_value)) => Value::Object(object(object_value.fields, depth)),
    }
}

fn whole(number: f64) -> Option<Number> {
    (number.fract() == 0.0 && number.abs() < EXACT).then(|| format!("{number:.0}").parse().ok()).flatten()
}

/// 2^53: beyond it, a double is no longer sure which whole number it is.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The messages' own decoder goes to a hundred.
const MAX_DEPTH: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dates_of_claims_are_whole_numbers_again() {
        let number = |number| json(prost_types::Value { kind: Some(Kind::NumberValue(number)) }, 0);
        assert_eq!(number(1_767_225_600.0), serde_json::json!(1_767_225_600));
        assert_eq!(number(-1.0), serde_json::json!(-1));
        assert_eq!(number(0.5), serde_json::json!(0.5));
        assert!(number(f64::INFINITY).is_null());
    }
}

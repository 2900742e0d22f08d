//! CEL in attribute mappings and conditions: over the claims of the `assertion`.

use cel::{Context, Program, Value};
use serde_json::Map;

/// A compiled expression.
pub(super) struct Expression(Program);

impl Expression {
    /// `None` for what IAM does not take.
    pub(super) fn compile(source: &str) -> Option<Self> {
        Program::compile(source).ok().map(Self)
    }

    /// The text that a mapping makes; `None` where it fails, for want of a claim say, or makes something else.
    pub(super) fn text(&self, claims: &Map<String, serde_json::Value>) -> Option<String> {
        match self.value(claims)? {
            Value::String(text) => Some(text.to_string()),
            _ => None,
        }
    }

    /// The texts that a mapping of groups makes.
    pub(super) fn texts(&self, claims: &Map<String, serde_json::Value>) -> Option<Vec<String>> {
        let Value::List(list) = self.value(claims)? else { return None };
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.to_string()),
            _ => None,
        };
        list.iter().map(text).collect()
    }

    /// Whether a condition holds. One that fails does not.
    pub(super) fn holds(&self, claims: &Map<String, serde_json::Value>) -> bool {
        matches!(self.value(claims), Some(Value::Bool(true)))
    }

    fn value(&self, claims: &Map<String, serde_json::Value>) -> Option<Value> {
        let mut context = Context::default();
        context.add_variable("assertion", claims).ok()?;
        self.0.execute(&context).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_is_missing_fails_and_one_that_is_asked_for_first_does_not() {
        let claims = serde_json::json!({"tid": "t", "roles": ["a", "b"]});
        let claims = claims.as_object().expect("an object");
        let text = |source: &str| Expression::compile(source).expect("CEL").text(claims);
        assert_eq!(text("assertion.tid"), Some("t".to_owned()));
        assert_eq!(text("assertion.team"), None);
        assert_eq!(text("has(assertion.team) ? assertion.team : \"\""), Some(String::new()));
        assert_eq!(text("assertion.roles"), None);
        let holds = |source: &str| Expression::compile(source).expect("CEL").holds(claims);
        assert!(holds("assertion.tid == \"t\" && has(assertion.roles) && (\"b\" in assertion.roles)"));
        assert!(!holds("assertion.oid == \"t\""));
        assert!(holds("assertion.tid in [\"s\", \"t\"]") && !holds("assertion.tid in [\"s\"]"));
        assert!(Expression::compile("assertion.").is_none());
    }
}

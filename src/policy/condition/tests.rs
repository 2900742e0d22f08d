use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::clock::{Clock as _, ManualClock};
use crate::policy::ExcessScopes;
use crate::target::TokenType;

/// Expressions of any type: many fail, and each has to fail in both readings. None adds a map to a list, for that comes
/// out in any order.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "true",
        "false",
        "'vision'",
        "7",
        "job",
        "request",
        "job.id",
        "job.name",
        "job.expected_duration",
        "job.labels",
        "job.labels.team",
        "job.labels['team']",
        "job.labels['none']",
        "job.datasets",
        "request.lifetime",
        "request.scopes",
        "subject.kind",
        "subject.groups",
        "subject.claims",
        "subject.claims.none",
        "target",
        "now",
        "(now + duration('90s'))",
        "duration('72h')",
        "duration('90s')",
        "duration('-1h')",
        "has(job.id)",
        "has(job.name)",
        "has(job.expected_duration)",
        "has(job.labels)",
        "has(job.labels.team)",
        "has(job.labels.none)",
        "has(request.lifetime)",
        "has(request.scopes)",
        "has(subject.groups)",
    ]);
    leaf.prop_map(str::to_owned).prop_recursive(4, 24, 3, |inner| {
        let operator = prop::sample::select(vec!["&&", "||", "==", "!=", "<", "<=", ">", "-", "in"]);
        let (one, two) = (inner.clone(), (inner.clone(), inner.clone()));
        let three = (inner.clone(), inner.clone(), inner.clone());
        prop_oneof![
            4 => (inner.clone(), operator, inner).prop_map(|(a, operator, b)| format!("({a} {operator} {b})")),
            3 => one.clone().prop_map(|a| format!("!({a})")),
            1 => three.prop_map(|(a, b, c)| format!("({a} ? {b} : {c})")),
            1 => two.clone().prop_map(|(a, b)| format!("[{a}, {b}]")),
            1 => two.clone().prop_map(|(a, b)| format!("{{'a': {a}, 'b': {b}}}")),
            1 => two.clone().prop_map(|(a, b)| format!("{a}.startsWith({b})")),
            1 => one.clone().prop_map(|a| format!("size({a})")),
            1 => one.clone().prop_map(|a| format!("string({a})")),
            1 => two.clone().prop_map(|(a, b)| format!("({a}).exists(x, x == {b})")),
            1 => two.prop_map(|(a, b)| format!("({a}).all(job, has(job.name) || {b})")),
            1 => one.prop_map(|a| format!("[1].map(request, request.lifetime == {a})")),
        ]
    })
}

proptest! {
    #[test]
    fn an_expression_means_what_it_says_however_it_is_evaluated(source in expression(), known in any::<[bool; 4]>()) {
        // What the rules' authors cannot write means nothing.
        let Ok(condition) = Condition::compile(&source) else { return Ok(()) };
        let now = ManualClock::start().now();
        let subject = Identity::for_test(now + Duration::from_secs(3600));
        let [id, name, expected, lifetime] = known;
        let job = Job {
            id: id.then(|| "run-1".to_owned()),
            name: name.then(|| "vision".to_owned()),
            expected_duration: expected.then(|| Duration::from_secs(72 * 3600)),
            labels: [("team".to_owned(), "vision".to_owned())].into(),
            ..Job::default()
        };
        let ask = Ask {
            target: "t".to_owned(),
            scopes: Default::default(),
            excess: ExcessScopes::Refuse,
            token_type: TokenType::AccessToken,
            audience: None,
            lifetime: lifetime.then(|| Duration::from_secs(90)),
            beyond: None,
        };
        let facts = Facts { subject: &subject, job: &job, target: &Target::google_for_test("t"), ask: &ask, now };
        let program = parse(source.clone()).expect("it was compiled before");
        let variables = Variables { facts: &facts, reads: &condition.reads, prepared: &Prepared::default() };
        let mut context = Context::with_env(ENVIRONMENT.clone());
        context.set_variable_resolver(&variables);
        let plain = program.execute(&context).ok();
        prop_assert_eq!(&condition.evaluate(&facts), &plain, "{}", &source);
        let truth = plain.and_then(|value| match value { Value::Bool(truth) => Some(truth), _ => None });
        prop_assert_eq!(condition.holds(&facts), truth, "{}", &source);
    }
}

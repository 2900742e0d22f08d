//! A CEL condition: compiled and evaluated in an allow and in a deny rule, checked and explained.

use std::time::Duration;

use carnet::policy::{Ask, Draft, ExcessScopes, Policy, Question, RuleDocument, SubjectDocument};
use carnet::target::{Job, Name, Scopes, TokenType};

use crate::world::{CONFIG, IDENTITIES, now, show};

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let targets = || {
        let mut targets: Vec<_> = CONFIG.policy.targets().map(|target| (**target).clone()).collect();
        targets.sort_by(|one, other| one.name.cmp(&other.name));
        targets
    };
    let name = |text: &str| text.parse::<Name>().expect("a name");
    let rule = |named: &str, target: &str, when: Option<&str>, deny: bool| RuleDocument {
        name: name(named),
        targets: vec![name(target)],
        subject: SubjectDocument { roles: Some(vec!["Training.Submit".to_owned()]), ..SubjectDocument::default() },
        when: when.map(str::to_owned),
        max_lifetime: None,
        lease: None,
        attributes: when.filter(|_when| !deny).map(|when| ("team".to_owned(), when.to_owned())).into_iter().collect(),
        deny,
    };
    let rules = [
        rule("allowed", ALLOWING, Some(text), false),
        rule("all", DENYING, None, false),
        rule("denied", DENYING, Some(text), true),
    ];
    let policy = match Policy::compile(&rules, targets()) {
        Ok(policy) => policy,
        Err(mistakes) => {
            show(|| format!("{mistakes:?}"));
            assert!(!mistakes.is_empty() && mistakes.iter().all(|mistake| !mistake.message.is_empty()));
            return;
        }
    };
    let jobs = [
        Job::default(),
        Job {
            id: Some("run-1".to_owned()),
            name: Some("train".to_owned()),
            expected_duration: Some(Duration::from_secs(7200)),
            labels: [("team".to_owned(), "vision".to_owned()), ("a".to_owned(), String::new())].into(),
            datasets: vec!["gs://bucket/a".to_owned(), "gs://bucket/b".to_owned()],
        },
    ];
    for (identity, job) in IDENTITIES.iter().zip(&jobs) {
        let question = Question::once(identity, job, now());
        let (allowed, again) = (policy.judge(question, &ask(ALLOWING)), policy.judge(question, &ask(ALLOWING)));
        assert_eq!(allowed.is_ok(), again.is_ok(), "the same facts, another verdict");
        // Where it holds, the deny rule holds too; where it fails, it refuses both.
        show(|| format!("{allowed:?}"));
        let denied = policy.judge(question, &ask(DENYING));
        assert!(!(allowed.is_ok() && denied.is_ok()), "a condition both holds and does not");
        for target in [ALLOWING, DENYING] {
            let _ = policy.explain(question, &[ask(target)]);
        }
    }
    let targets = targets();
    let draft = Draft { rules: &rules, operators: &[], targets: &targets, tenants: &CONFIG.entra.tenants };
    for finding in draft.check() {
        let _ = format!("{finding:?}");
    }
}

fn ask(target: &str) -> Ask {
    Ask {
        target: target.to_owned(),
        scopes: Scopes::default(),
        excess: ExcessScopes::Refuse,
        token_type: TokenType::AccessToken,
        audience: None,
        lifetime: Some(Duration::from_secs(1800)),
        beyond: None,
    }
}

const ALLOWING: &str = "google-account";
const DENYING: &str = "azure-issuer";

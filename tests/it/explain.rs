//! Why: what an operator is told of a request, and what nobody else is.

use std::time::Duration;

use carnet::clock::{Clock as _, SystemClock};
use carnet::proto::explain_request::Subject;
use carnet::proto::operator_client::OperatorClient;
use carnet::proto::{ExplainRequest, Job, TargetRequest};
use carnet::sandbox::EntraToken;
use carnet::step::{Step, StepOutcome};
use prost_types::value::Kind;
use serde_json::{Value, json};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Broker, PERSON, PROVIDER, RUNNER, Setup, TENANT, TRAINER, eventually, reason, with_setup};

mod commands;
mod recorded;

const RULES: &str = "
rules:
  - name: training
    targets: [vertex, azure-ml]
    subject: { roles: [Training.Submit] }
    when: '!has(job.labels.team) || job.labels.team == \"vision\"'
    max_lifetime: 30m
    lease: { max_duration: 72h, heartbeat: 5m }
  - name: no-contractors
    targets: [vertex]
    subject: { roles: [Contractor] }
    deny: true
  - name: by-group
    targets: [grouped]
    subject: { groups: [44444444-4444-4444-4444-444444444444] }
operators:
  - permissions: [explain]
    subject: { roles: [Carnet.Operator] }
";

async fn with_operators(test: impl AsyncFnOnce(&Broker)) {
    with_setup(Setup { rules: Some(RULES), ..Setup::default() }, test).await;
}

fn operator(broker: &Broker) -> String {
    broker.signed(&broker.entra.user_token(TENANT, PERSON).roles(["Carnet.Operator"]))
}

/// The answer, as a client reads it.
#[derive(Debug)]
struct Told {
    allowed: bool,
    steps: Vec<Step>,
}

async fn ask(broker: &Broker, operator: &str, request: ExplainRequest) -> Result<Told, Status> {
    let address: carnet::grpc::Address = broker.grpc_address().parse().expect("an address");
    let channel = carnet::grpc::connect(&address, None).await.expect("a connection");
    let mut request = Request::new(request);
    request.metadata_mut().insert("authorization", format!("Bearer {operator}").parse().expect("a header"));
    let answer = OperatorClient::new(channel).explain(request).await?.into_inner();
    Ok(Told { allowed: answer.allowed, steps: answer.steps.into_iter().map(carnet::grpc::step).collect() })
}

fn about(subject: Subject, targets: &[&str]) -> ExplainRequest {
    let target = |target: &&str| TargetRequest { target: (*target).to_owned(), ..TargetRequest::default() };
    ExplainRequest {
        subject: Some(subject),
        targets: targets.iter().map(target).collect(),
        job: Some(Job { id: "run-1".to_owned(), name: "vision".to_owned(), ..Job::default() }),
        ..ExplainRequest::default()
    }
}

/// What the operator is told of this token, in which no token stands.
async fn explained(broker: &Broker, token: &EntraToken, targets: &[&str]) -> Told {
    let token = broker.signed(token);
    let answer = ask(broker, &operator(broker), about(Subject::SubjectToken(token.clone()), targets)).await;
    let answer = answer.expect("an explanation");
    let shown = format!("{answer:?}");
    let leaked = token.split('.').find(|part| part.len() > 16 && shown.contains(part));
    assert_eq!(leaked, None, "{shown}");
    for step in &answer.steps {
        assert_eq!(step.has_failed(), !step.remedy.is_empty(), "{step:?}");
    }
    answer
}

fn step<'a>(answer: &'a Told, name: &str) -> &'a Step {
    answer.steps.iter().find(|step| step.name == name).unwrap_or_else(|| panic!("{name}: {answer:#?}"))
}

fn failed(answer: &Told) -> Vec<&str> {
    let failed = answer.steps.iter().filter(|step| step.has_failed());
    failed.map(|step| step.name.as_str()).collect()
}

fn claims(claims: Value) -> Subject {
    fn message(value: Value) -> prost_types::Value {
        let kind = match value {
            Value::Null => Kind::NullValue(0),
            Value::Bool(truth) => Kind::BoolValue(truth),
            Value::Number(number) => Kind::NumberValue(number.as_f64().expect("a number")),
            Value::String(text) => Kind::StringValue(text),
            Value::Array(items) => {
                Kind::ListValue(prost_types::ListValue { values: items.into_iter().map(message).collect() })
            }
            Value::Object(fields) => Kind::StructValue(prost_types::Struct {
                fields: fields.into_iter().map(|(name, field)| (name, message(field))).collect(),
            }),
        };
        prost_types::Value { kind: Some(kind) }
    }
    match message(claims).kind {
        Some(Kind::StructValue(claims)) => Subject::Claims(claims),
        other => panic!("{other:?}"),
    }
}

fn runner_claims() -> Value {
    json!({"tid": TENANT, "oid": RUNNER, "azp": "55555555-5555-5555-5555-555555555555", "roles": ["Training.Submit"]})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_allowed_is_shown_from_the_token_to_the_bound_and_nothing_is_minted() {
    with_operators(async |broker| {
        let answer = explained(broker, &broker.runner(), &["vertex", "azure-ml"]).await;
        assert!(answer.allowed && failed(&answer).is_empty(), "{answer:#?}");
        let names: Vec<&str> = answer.steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(
            names[..14],
            [
                "subject_token",
                "tenant",
                "signature",
                "issuer",
                "time",
                "audience",
                "kind",
                "target:vertex",
                "groups",
                "rule:no-contractors",
                "rule:training",
                "scopes",
                "request",
                "lease",
            ]
        );
        let lifetime = &step(&answer, "lifetime").detail;
        assert!(lifetime.starts_with("30m, bound by rule training"), "{lifetime}");
        assert!(lifetime.contains("caps: rule training 30m, target 1h, cloud 12h"), "{lifetime}");
        assert!(step(&answer, "signature").detail.contains("fetched"), "{answer:#?}");
        assert!(step(&answer, "issuer_keys:azure-ml").detail.contains("signs RS256"), "{answer:#?}");
        assert_eq!(step(&answer, "credential:vertex").outcome, StepOutcome::Skipped);
        assert!(broker.google.calls().all().is_empty());

        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        let answer = explained(broker, &broker.runner(), &["vertex"]).await;
        let held = step(&answer, "credential:vertex");
        assert!(held.outcome == StepOutcome::Passed && held.detail.contains(TRAINER), "{held:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_is_told_rule_by_rule_with_the_value_that_was_seen() {
    with_operators(async |broker| {
        let reader = broker.entra.app_token(TENANT, RUNNER).roles(["Reader"]);
        let answer = explained(broker, &reader, &["vertex"]).await;
        assert!(!answer.allowed);
        assert_eq!(failed(&answer), ["rule:training"]);
        let rule = step(&answer, "rule:training");
        assert_eq!(
            rule.detail,
            "does not match: subject.roles: wants one of [Training.Submit]; the token has [Reader]"
        );
        assert!(rule.remedy.contains("subject: { roles: [Training.Submit, Reader] }"), "{}", rule.remedy);

        let contractor = broker.entra.app_token(TENANT, RUNNER).roles(["Training.Submit", "Contractor"]);
        assert_eq!(failed(&explained(broker, &contractor, &["vertex"]).await), ["rule:no-contractors"]);
        let overage = broker.entra.user_token(TENANT, PERSON).overage();
        assert_eq!(failed(&explained(broker, &overage, &["grouped"]).await), ["groups", "rule:by-group"]);
        assert_eq!(failed(&explained(broker, &broker.runner(), &["vertx"]).await), ["target:vertx"]);
        assert_eq!(failed(&explained(broker, &broker.runner(), &["direct"]).await), ["rules"]);

        let mut request = about(Subject::SubjectToken(broker.signed(&broker.runner())), &["vertex"]);
        let job = request.job.as_mut().expect("a job");
        job.labels.insert("team".to_owned(), "audio".to_owned());
        let answer = ask(broker, &operator(broker), request).await.expect("an explanation");
        let seen = &step(&answer, "rule:training").detail;
        assert!(seen.contains("job.labels.team = \"audio\""), "{seen}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_would_be_refused_is_told_check_by_check() {
    with_operators(async |broker| {
        let long_ago = SystemClock.now() - Duration::from_secs(10_000);
        let foreign = "99999999-9999-9999-9999-999999999999";
        for (token, failing, seen, remedy) in [
            (
                broker.runner().audience("api://other"),
                vec!["audience"],
                "aud \"api://other\"; accepted are [api://carnet]",
                "az account get-access-token --scope api://carnet/.default",
            ),
            (
                broker.runner().audience("https://graph.microsoft.com"),
                vec!["audience"],
                "Microsoft Graph",
                "--scope api://carnet/.default",
            ),
            (
                broker.runner().v1().audience("22222222-2222-2222-2222-222222222222"),
                vec!["audience"],
                "2222",
                "get-access-token",
            ),
            (
                broker.runner().audience("22222222-2222-2222-2222-222222222222"),
                vec!["audience"],
                "2222",
                "It is a v2.0 token, which names the broker's application by its client id",
            ),
            (broker.runner().issued_at(long_ago), vec!["time"], "exp", "Get a fresh token"),
            (broker.runner().issued_at(long_ago).audience("api://other"), vec!["time", "audience"], "ago", "fresh"),
            (broker.runner().issued_at(SystemClock.now() + Duration::from_secs(3600)), vec!["time"], "nbf in 5", "NTP"),
            (broker.entra.app_token(foreign, RUNNER), vec!["tenant"], foreign, "add it to entra.tenants"),
            (
                broker.runner().header("kid", "unknown"),
                vec!["signature"],
                "publishes no key unknown; v2.0 keys of the tenant: [",
                "fresh token",
            ),
            (
                broker.runner().header("nonce", "x"),
                vec!["subject_token"],
                "Microsoft Graph",
                "--scope api://carnet/.default",
            ),
            (broker.runner().claim("ver", "1.0"), vec!["issuer"], "ver \"1.0\"", "entra.authority"),
            (broker.runner().claim("idtyp", "user"), vec!["kind"], "idtyp \"user\"", "include_user_token"),
        ] {
            let answer = explained(broker, &token, &["vertex"]).await;
            assert!(!answer.allowed);
            assert_eq!(failed(&answer), failing, "{answer:#?}");
            let first = step(&answer, failing[0]);
            assert!(first.detail.contains(seen), "{seen} is not in {first:#?}");
            assert!(first.remedy.contains(remedy), "{remedy} is not in {first:#?}");
            assert_eq!(step(&answer, "target:vertex").outcome, StepOutcome::Skipped);
        }
        let calls = broker.entra.calls().all();
        assert!(calls.iter().all(|call| !call.path.contains(foreign)), "no call for a tenant that is not configured");
        let answer = ask(broker, &operator(broker), about(Subject::SubjectToken("no token".to_owned()), &[])).await;
        assert_eq!(failed(&answer.expect("an explanation")), ["subject_token"]);
        assert!(broker.google.calls().all().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_a_what_if_of_which_nothing_comes() {
    with_operators(async |broker| {
        let what_if = async |subject: Value, targets: &[&str]| {
            ask(broker, &operator(broker), about(claims(subject), targets)).await
        };
        let answer = what_if(runner_claims(), &["vertex", "azure-ml"]).await.expect("an explanation");
        assert!(answer.allowed && failed(&answer).is_empty(), "{answer:#?}");
        assert_eq!(step(&answer, "signature").detail, "the claims are taken as verified");
        assert!(answer.steps.iter().all(|step| !step.name.starts_with("credential:")), "{answer:#?}");
        let mut stranger = runner_claims();
        stranger["tid"] = "99999999-9999-9999-9999-999999999999".into();
        stranger["exp"] = 1_767_225_600.into();
        let answer = what_if(stranger, &["vertex"]).await.expect("an explanation");
        assert!(!answer.allowed);
        assert_eq!(failed(&answer), ["tenant"]);
        let mut wrong = runner_claims();
        wrong["oid"] = "somebody".into();
        let refused = what_if(wrong, &["vertex"]).await.expect_err("no identity");
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::InvalidArgument, "claims: the claims are not those of an Entra access token: `oid` is not a GUID")
        );
        let nobody = ask(broker, &operator(broker), ExplainRequest::default()).await.expect_err("about nobody");
        assert_eq!(nobody.code(), Code::InvalidArgument);
        // As though nobody had asked: the first exchange calls the cloud.
        assert!(broker.google.calls().all().is_empty());
        let first = broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        assert!(!first.credentials[0].cached);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_may_explain_is_told_and_the_record_says_whose_request_it_was() {
    with_operators(async |broker| {
        let request = || about(claims(runner_claims()), &["vertex"]);
        for (token, code) in [
            (broker.signed(&broker.runner()), Code::PermissionDenied),
            (String::new(), Code::Unauthenticated),
            (broker.signed(&broker.entra.user_token(TENANT, PERSON)), Code::PermissionDenied),
        ] {
            let refused = ask(broker, &token, request()).await.expect_err("not permitted");
            assert_eq!(refused.code(), code);
        }
        ask(broker, &operator(broker), request()).await.expect("an explanation");
        let records = broker.audit_records();
        assert!(records.iter().all(|record| record.action == "operator.explain"));
        let [runner, nobody, person, operator] = &records[..] else { panic!("{} records", records.len()) };
        assert_eq!((runner.reason.as_str(), person.reason.as_str()), ("DENIED", "DENIED"));
        assert!(!nobody.attributes.contains_key("explained_targets"), "what strangers want is not kept");
        let about = |name: &str| operator.attributes[name].clone();
        assert_eq!(operator.subject, format!("entra:{TENANT}:{PERSON}"));
        assert_eq!(about("explained_subject"), format!("entra:{TENANT}:{RUNNER}"));
        assert_eq!((about("explained_by"), about("explained_targets")), ("claims".to_owned(), "vertex".to_owned()));
        assert!(records[..3].iter().all(|record| !record.attributes.contains_key("explained_subject")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_cloud_that_is_remembered_is_shown_and_is_no_denial() {
    with_operators(async |broker| {
        let pool = PROVIDER.split("/providers/").next().expect("a pool");
        broker.google.unbind(TRAINER, &format!("principalSet:{pool}/attribute.tid/{TENANT}"));
        let refused = broker.exchange(broker.request(&["vertex"])).await.err().expect("no binding");
        assert_eq!(reason(&refused), "CLOUD_REFUSED");
        let answer = explained(broker, &broker.runner(), &["vertex"]).await;
        assert!(answer.allowed);
        assert_eq!(failed(&answer), ["credential:vertex"]);
        assert!(step(&answer, "credential:vertex").detail.contains("remembered for"), "{answer:#?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_asked_for_is_on_record_although_they_have_left() {
    crate::postgres::with_database(async |database| {
        let setup = Setup { rules: Some(RULES), store: Some(database.url()), ..Setup::default() };
        with_setup(setup, async |broker| {
            let (mut locking, watching) = (database.client().await, database.client().await);
            let lock = locking.transaction().await.expect("a transaction");
            lock.batch_execute("LOCK TABLE audit IN ACCESS EXCLUSIVE MODE").await.expect("locked");
            let address: carnet::grpc::Address = broker.grpc_address().parse().expect("an address");
            let channel = carnet::grpc::connect(&address, None).await.expect("a connection");
            let unknown = "0199a1b2-0000-7000-8000-000000000001".to_owned();
            let mut request = Request::new(ExplainRequest { exchange_id: unknown, ..ExplainRequest::default() });
            let bearer = format!("Bearer {}", operator(broker));
            request.metadata_mut().insert("authorization", bearer.parse().expect("a header"));
            let mut client = OperatorClient::new(channel.clone());
            let asking = tokio::spawn(async move { client.explain(request).await });
            eventually("the log is looked through", async || {
                let sql =
                    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%page.before%'";
                !watching.query(sql, &[]).await.expect("rows").is_empty()
            })
            .await;
            asking.abort();
            assert!(asking.await.is_err_and(|ended| ended.is_cancelled()));
            // On the same connection: when this is answered, the broker knows that the other call was left.
            HealthClient::new(channel).check(HealthCheckRequest::default()).await.expect("an answer");
            lock.rollback().await.expect("unlocked");
            eventually("a record", async || {
                let rows = watching.query("SELECT bytes FROM audit", &[]).await.expect("rows");
                rows.iter().any(|row| row.get::<_, Vec<u8>>(0).windows(16).any(|text| text == b"operator.explain"))
            })
            .await;
        })
        .await;
    })
    .await;
}

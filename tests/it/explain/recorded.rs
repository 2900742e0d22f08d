//! Decisions that are on record: why, and whether they would come out so again.

use carnet::proto::ExplainRequest;
use carnet::step::StepOutcome;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{RULES, Told, ask, explained, failed, operator, step, with_operators};
use crate::command_line::{carnet, run, text};
use crate::holder::{credentials, opening, try_open};
use crate::support::{Broker, PROVIDER, RUNNER, TENANT, TRAINER};

/// The id that a refusal tells its caller.
fn id_of(refused: &tonic::Status) -> String {
    refused.get_error_details().error_info().expect("an ErrorInfo").metadata["exchange_id"].clone()
}

async fn recorded(broker: &Broker, id: &str) -> Told {
    let request = ExplainRequest { exchange_id: id.to_owned(), ..ExplainRequest::default() };
    let told = ask(broker, &operator(broker), request).await.expect("an explanation");
    for step in &told.steps {
        assert_eq!(step.has_failed(), !step.remedy.is_empty(), "{step:?}");
    }
    told
}

/// New rules, in force.
fn change(broker: &Broker, from: &str, to: &str) {
    let path = broker.config_path();
    let text = std::fs::read_to_string(&path).expect("the file");
    assert!(text.contains(from));
    std::fs::write(&path, text.replace(from, to)).expect("written");
    broker.app().reload().expect("good rules");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denial_on_record_is_explained_and_asked_again_of_the_rules_that_hold_now() {
    with_operators(async |broker| {
        let reader = broker.entra.app_token(TENANT, RUNNER).roles(["Reader"]);
        let refused = broker.exchange(broker.request_with(&reader, &["vertex"])).await.err().expect("denied");
        let id = id_of(&refused);
        let told = recorded(broker, &id).await;
        assert!(!told.allowed);
        assert_eq!(failed(&told), ["rule:training"], "{told:#?}");
        assert!(step(&told, "record").detail.ends_with("denied DENIED, no rule allows it"), "{told:#?}");
        assert!(step(&told, "rule:training").detail.contains("the token has [Reader]"), "{told:#?}");
        assert_eq!(step(&told, "now").detail, "by the rules denied then and now");

        assert!(RULES.contains("roles: [Training.Submit]"));
        change(broker, "roles: [Training.Submit]", "roles: [Training.Submit, Reader]");
        let told = recorded(broker, &id).await;
        assert!(told.allowed && failed(&told).is_empty(), "{told:#?}");
        assert!(step(&told, "now").detail.starts_with("by the rules denied then and allowed now"), "{told:#?}");
        // Nothing came of it but the answer.
        assert!(broker.google.calls().all().is_empty());
        let explained = broker.audit_records();
        let record = explained.iter().rfind(|record| record.action == "operator.explain").expect("a record");
        assert_eq!(record.attributes["explained_exchange"], id);
        assert_eq!(record.attributes["explained_subject"], format!("entra:{TENANT}:{RUNNER}"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_issued_is_explained_too_and_so_is_its_end() {
    with_operators(async |broker| {
        let issued = broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
        let told = recorded(broker, &issued.exchange_id).await;
        assert!(told.allowed && failed(&told).is_empty(), "{told:#?}");
        let targets = told.steps.iter().filter(|step| step.name.starts_with("target:"));
        assert_eq!(targets.map(|step| step.name.as_str()).collect::<Vec<_>>(), ["target:vertex", "target:azure-ml"]);
        assert_eq!(step(&told, "now").detail, "by the rules allowed then and now");
        change(
            broker,
            "deny: true",
            "deny: true\n  - name: nobody\n    targets: [vertex]\n    when: 'true'\n    deny: true",
        );
        let told = recorded(broker, &issued.exchange_id).await;
        assert_eq!(failed(&told), ["rule:nobody"]);
        assert!(step(&told, "now").detail.starts_with("by the rules allowed then and denied now"), "{told:#?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_on_record_is_asked_about_as_a_lease() {
    with_operators(async |broker| {
        let opened = try_open(broker, opening(broker, &["vertex"])).await.expect("a lease");
        let told = recorded(broker, &opened.exchange_id).await;
        assert!(told.allowed, "{told:#?}");
        assert!(step(&told, "lease").detail.contains("rule training allows up to 3d"), "{told:#?}");
        let renewed = credentials(broker, &opened.lease_token, &[]).await.expect("credentials");
        let told = recorded(broker, &renewed.exchange_id).await;
        assert!(step(&told, "lease").detail.starts_with("ends in "), "{told:#?}");
        change(broker, "    lease: { max_duration: 72h, heartbeat: 5m }\n", "");
        let told = recorded(broker, &renewed.exchange_id).await;
        assert_eq!(failed(&told), ["lease"]);
        assert!(step(&told, "lease").remedy.contains("- name: training\n  lease: { max_duration"), "{told:#?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c23_a_clouds_refusal_names_who_was_shown_and_the_commands_that_mend_it() {
    with_operators(async |broker| {
        let pool = PROVIDER.split("/providers/").next().expect("a pool");
        broker.google.unbind(TRAINER, &format!("principalSet:{pool}/attribute.tid/{TENANT}"));
        let refused = broker.exchange(broker.request(&["vertex"])).await.err().expect("no binding");
        let told = recorded(broker, &id_of(&refused)).await;
        assert_eq!(failed(&told), ["refused:vertex"], "{told:#?}");
        assert!(told.allowed, "the rules allow it");
        let refusal = step(&told, "refused:vertex");
        let subject = format!("entra:{TENANT}:{RUNNER}");
        assert!(refusal.detail.contains(&format!("the cloud was shown {subject}")), "{refusal:#?}");
        for expected in
            [&format!("{pool}/subject/{subject}"), "gcloud iam service-accounts add-iam-policy-binding", TRAINER]
        {
            assert!(refusal.remedy.contains(expected), "{expected} is not in {}", refusal.remedy);
        }
        assert!(step(&told, "identity:vertex").detail.contains(&subject));

        // What is remembered of it is told in the same words.
        let remembered = explained(broker, &broker.runner(), &["vertex"]).await;
        assert!(step(&remembered, "credential:vertex").remedy.contains("add-iam-policy-binding"), "{remembered:#?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_token_is_explained_by_what_it_said_of_itself() {
    with_operators(async |broker| {
        let foreign = "99999999-9999-9999-9999-999999999999";
        for (token, failing, seen) in [
            (broker.runner().audience("api://other"), "audience", "aud api://other; accepted are [api://carnet]"),
            (broker.entra.app_token(foreign, RUNNER), "tenant", foreign),
            (broker.runner().header("kid", "unknown"), "signature", "kid unknown; v2.0 keys of the tenant: ["),
            (broker.runner().header("nonce", "x"), "audience", "aud api://carnet"),
            (broker.runner().claim("ver", "1.0"), "issuer", "ver 1.0"),
        ] {
            let refused = broker.exchange(broker.request_with(&token, &["vertex"])).await.err().expect("refused");
            let told = recorded(broker, &id_of(&refused)).await;
            assert!(!told.allowed);
            let step_of_it = step(&told, failing);
            assert!(step_of_it.detail.contains(seen), "{seen} is not in {step_of_it:?}");
            assert!(step(&told, "rules").detail.contains("tokens are not on record"), "{told:#?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_own_refusal_says_which_permission_is_missing_and_unknown_ids_say_so() {
    with_operators(async |broker| {
        let nobody = broker.signed(&broker.runner());
        let request = ExplainRequest {
            exchange_id: "0199d0f0-0000-7000-8000-000000000000".to_owned(),
            ..ExplainRequest::default()
        };
        let refused = ask(broker, &nobody, request.clone()).await.expect_err("not permitted");
        let told = recorded(broker, &id_of(&refused)).await;
        assert!(step(&told, "operator").remedy.contains("permissions: [explain]"), "{told:#?}");
        let unknown = ask(broker, &operator(broker), request).await.expect_err("no such exchange");
        assert_eq!(unknown.code(), Code::InvalidArgument);
        assert!(unknown.message().contains("no decision is on record under this id"), "{}", unknown.message());
        for wrong in ["", "it"] {
            let request = ExplainRequest { exchange_id: wrong.to_owned(), ..ExplainRequest::default() };
            assert_eq!(ask(broker, &operator(broker), request).await.expect_err("wrong").code(), Code::InvalidArgument);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_explains_a_record_of_a_broker_and_of_a_store() {
    with_operators(async |broker| {
        let reader = broker.entra.app_token(TENANT, RUNNER).roles(["Reader"]);
        let refused = broker.exchange(broker.request_with(&reader, &["vertex"])).await.err().expect("denied");
        let id = id_of(&refused);
        let mut online = carnet(&["explain", &id, "--address", broker.grpc_address()]);
        online.env("CARNET_OPERATOR_TOKEN", operator(broker));
        let config = broker.config_path();
        let offline = carnet(&["explain", &id, "--config", config.to_str().expect("a path")]);
        for command in [online, offline] {
            let output = run(command).await;
            let shown = text(&output.stdout);
            assert_eq!(output.status.code(), Some(3), "{shown}{}", text(&output.stderr));
            assert!(shown.lines().any(|line| line.starts_with("FAIL  rule:training")), "{shown}");
        }
        let issued = broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        let output = run(carnet(&["explain", &issued.exchange_id, "--config", config.to_str().expect("a path")])).await;
        assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
        assert!(text(&output.stderr).contains("allowed"));
        assert!(step(&recorded(broker, &issued.exchange_id).await, "record").outcome == StepOutcome::Passed);
    })
    .await;
}

//! The main job: one Entra token in, credentials of both clouds out, recorded.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use carnet::proto::Job;
use carnet::proto::credential::Identity;
use carnet::sandbox::Fault;
use tonic::Code;

use crate::support::{ML, RUNNER, TENANT, TRAINER, eventually, reason, with_broker};

#[tokio::test(flavor = "multi_thread")]
async fn one_entra_token_gets_the_credentials_of_both_clouds() {
    with_broker(async |broker| {
        let answer = broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
        let [google, azure] = answer.credentials.as_slice() else { panic!("two credentials") };
        let info = broker.google.check(&google.token).expect("Google knows its token");
        assert_eq!(info.service_account.as_deref(), Some(TRAINER));
        let Some(Identity::Google(identity)) = &google.identity else { panic!("a Google identity") };
        assert!(identity.principal.ends_with(&format!("/subject/entra:{TENANT}:{RUNNER}")));
        let Some(Identity::Azure(identity)) = &azure.identity else { panic!("an Azure identity") };
        assert_eq!((identity.tenant_id.as_str(), identity.client_id.as_str()), (TENANT, ML));
        assert_eq!(
            (azure.token_type.as_str(), azure.scopes.as_slice()),
            ("Bearer", ["https://ml.azure.com/.default".to_owned()].as_slice())
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c25_every_hand_out_is_recorded_with_its_subject_rule_job_and_token_digest() {
    with_broker(async |broker| {
        let answer = broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
        let records = broker.audit_records();
        assert_eq!(records.len(), 2);
        for (record, credential) in records.iter().zip(&answer.credentials) {
            assert_eq!((record.exchange_id.as_str(), record.outcome.as_str()), (answer.exchange_id.as_str(), "issued"));
            assert_eq!(record.subject, format!("entra:{TENANT}:{RUNNER}"));
            assert_eq!((record.target.as_str(), record.rule.as_str()), (credential.target.as_str(), "training"));
            assert_eq!(record.job.as_ref().map(|job| job.id.as_str()), Some("run-1"));
            let digest = carnet::secret::sha256(credential.token.as_bytes());
            assert_eq!(record.token_sha256, BASE64_URL_SAFE_NO_PAD.encode(digest));
            assert!(!record.entra_token_id.is_empty());
            assert_eq!(record.attributes["door"], "grpc");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c08_a_second_call_is_answered_from_the_cache_and_leaves_its_record_only() {
    with_broker(async |broker| {
        let first = broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        let second = broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        assert!(!first.credentials[0].cached && second.credentials[0].cached);
        assert_eq!(first.credentials[0].token, second.credentials[0].token);
        assert_eq!(broker.google.calls().count("/v1/token"), 1);
        let cached: Vec<bool> = broker.audit_records().iter().map(|record| record.cached).collect();
        assert_eq!(cached, [false, true]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c25_the_record_of_a_cached_hand_out_names_the_exchange_that_the_clouds_saw_and_their_ids() {
    with_broker(async |broker| {
        let first = broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
        broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
        let records = broker.audit_records();
        let [google, azure, google_again, azure_again] = records.as_slice() else {
            panic!("{} records", records.len())
        };
        for minted in [google, azure] {
            assert!(!minted.attributes.contains_key("upstream_exchange_id"));
        }
        for cached in [google_again, azure_again] {
            assert_eq!(cached.attributes["upstream_exchange_id"], first.exchange_id);
        }
        assert!(google.attributes["google_principal"].ends_with(&format!("/subject/entra:{TENANT}:{RUNNER}")));
        assert_eq!(azure.attributes["entra_correlation_id"], first.exchange_id);
        for id in ["entra_correlation_id", "entra_request_id", "azure_uti", "azure_oid"] {
            assert!(!azure.attributes[id].is_empty());
            assert_eq!(azure.attributes[id], azure_again.attributes[id]);
        }
        let user_agent = format!("carnet/{} (exchange={})", env!("CARGO_PKG_VERSION"), first.exchange_id);
        let reason = format!("carnet exchange={} job=run-1 rule=training", first.exchange_id);
        for endpoint in ["/v1/token", ":generateAccessToken"] {
            let [call] = &broker.google.calls().to(endpoint)[..] else { panic!("one call of {endpoint}") };
            assert_eq!(call.header("user-agent"), Some(user_agent.as_str()));
            assert_eq!(call.header("x-goog-request-reason"), Some(reason.as_str()));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c25_a_remembered_refusal_names_the_exchange_that_the_cloud_refused_and_its_ids() {
    with_broker(async |broker| {
        broker.entra.distrust(ML, &broker.http, "carnet:azure-ml");
        for _ in 0..2 {
            let refused = broker.exchange(broker.request(&["azure-ml"])).await;
            assert!(refused.is_err_and(|status| reason(&status) == "CLOUD_REFUSED"));
        }
        let records = broker.audit_records();
        let [refused, remembered] = records.as_slice() else { panic!("{} records", records.len()) };
        assert_eq!(broker.entra.calls().count("/oauth2/v2.0/token"), 1);
        assert_eq!(refused.attributes["entra_correlation_id"], refused.exchange_id);
        assert_eq!(refused.attributes["cloud_hop"], "entra_token");
        assert!(!refused.attributes.contains_key("upstream_exchange_id"));
        assert_eq!(remembered.attributes["upstream_exchange_id"], refused.exchange_id);
        for id in ["entra_correlation_id", "entra_trace_id", "entra_request_id"] {
            assert_eq!(refused.attributes[id], remembered.attributes[id]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c11_c12_the_answer_states_the_clouds_expiry_what_was_asked_and_what_bounded_it() {
    with_broker(async |broker| {
        let hours = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let mut request = broker.request(&["vertex"]);
        request.job = Some(Job { expected_duration: hours(9 * 3600), ..Default::default() });
        let answer = broker.exchange(request).await.expect("a credential");
        let credential = &answer.credentials[0];
        let lifetime = credential.lifetime.expect("a decision");
        assert_eq!(
            (lifetime.bound().as_str_name(), lifetime.requested.map(|asked| asked.seconds)),
            ("LIFETIME_BOUND_RULE", Some(9 * 3600))
        );
        let stated = SystemTime::try_from(credential.expires_at.expect("an expiry")).expect("a time");
        let known = broker.google.check(&credential.token).expect("a token").expires_at;
        assert_eq!(carnet::clock::unix_seconds(stated), carnet::clock::unix_seconds(known));
        let refresh = SystemTime::try_from(credential.refresh_after.expect("a time")).expect("a time");
        assert!(refresh < stated && refresh > SystemTime::UNIX_EPOCH + Duration::from_secs(1));

        let mut short = broker.request(&["vertex"]);
        short.targets[0].lifetime = hours(900);
        let answer = broker.exchange(short).await.expect("a credential");
        let lifetime = answer.credentials[0].lifetime.expect("a decision");
        assert_eq!(lifetime.bound().as_str_name(), "LIFETIME_BOUND_REQUESTED");
        assert!(lifetime.granted.is_some_and(|granted| (840..=900).contains(&granted.seconds)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn q09_a_life_that_nobody_can_shorten_is_stated_as_it_is() {
    with_broker(async |broker| {
        let answer = broker.exchange(broker.request(&["azure-ml"])).await.expect("a credential");
        let lifetime = answer.credentials[0].lifetime.expect("a decision");
        assert_eq!(lifetime.bound().as_str_name(), "LIFETIME_BOUND_CLOUD");
        assert!(lifetime.granted.is_some_and(|granted| granted.seconds > 23 * 3600));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i27_both_or_none_when_one_cloud_refuses_nothing_leaves() {
    with_broker(async |broker| {
        broker.entra.distrust(ML, &broker.http, "carnet:azure-ml");
        let refused = broker.exchange(broker.request(&["vertex", "azure-ml"])).await.err().expect("refused");
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "CLOUD_REFUSED"));
        let records = broker.audit_records();
        assert_eq!(records.len(), 2);
        assert!(records.iter().all(|record| record.outcome == "failed" && record.token_sha256.is_empty()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn w12_a_decision_is_recorded_although_its_caller_has_left() {
    with_broker(async |broker| {
        broker.google.faults().always("/v1/token", Fault::Delay(Duration::from_millis(300)));
        let (mut client, request) = (broker.client().await, broker.request(&["vertex"]));
        let leaving = tokio::spawn(async move { client.exchange(request).await });
        eventually("the call to Google", async || broker.google.calls().count("/v1/token") == 1).await;
        leaving.abort();
        eventually("the record", async || broker.audit_records().iter().any(|record| record.outcome == "issued")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_recorded_is_not_released() {
    with_broker(async |broker| {
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        let store = rusqlite::Connection::open(broker.store_path()).expect("the store");
        store.execute_batch("ALTER TABLE audit RENAME TO lost").expect("renamed");
        let refused = broker.exchange(broker.request(&["vertex"])).await.err().expect("nothing is released");
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"));
        store.execute_batch("ALTER TABLE lost RENAME TO audit").expect("renamed");
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential again");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn w04_an_outage_does_not_touch_what_is_cached() {
    with_broker(async |broker| {
        broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
        broker.google.faults().always("", Fault::Drop);
        broker.entra.faults().always("", Fault::Drop);
        let answer = broker.exchange(broker.request(&["vertex", "azure-ml"])).await.expect("credentials");
        assert!(answer.credentials.iter().all(|credential| credential.cached));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i15_w10_a_rule_that_went_away_is_gone_for_cached_credentials_too() {
    with_broker(async |broker| {
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        let path = broker.config_path();
        let text = std::fs::read_to_string(&path).expect("the file");
        std::fs::write(&path, text.replace("Training.Submit", "Training.Other")).expect("written");
        broker.app().reload().expect("loaded");
        let refused = broker.exchange(broker.request(&["vertex"])).await.err().expect("denied");
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "DENIED"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c05_ten_thousand_callers_of_one_credential_cause_one_call_to_each_service() {
    with_broker(async |broker| {
        broker.google.faults().always("", Fault::Delay(Duration::from_millis(200)));
        let request = broker.request(&["vertex"]);
        let mut clients = Vec::new();
        for _ in 0..20 {
            clients.push(broker.client().await);
        }
        let calls = (0..10_000).map(|number| {
            let (mut client, request) = (clients[number % clients.len()].clone(), request.clone());
            tokio::spawn(async move {
                client.exchange(request).await.map(|answer| answer.into_inner().credentials[0].token.clone())
            })
        });
        let answers = futures_util::future::join_all(calls).await;
        let mut tokens: Vec<String> =
            answers.into_iter().map(|answer| answer.expect("no panic").expect("a credential")).collect();
        tokens.dedup();
        assert_eq!(tokens.len(), 1);
        broker.is_secret(&tokens[0]);
        assert_eq!(broker.google.calls().count("/v1/token"), 1);
        assert_eq!(broker.google.calls().count(":generateAccessToken"), 1);
        assert_eq!(broker.audit_records().len(), 10_000);
    })
    .await;
}

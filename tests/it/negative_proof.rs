//! The broker's own proof that it refuses what it must.

use carnet::prober::Round;

use crate::support::with_broker;

#[tokio::test]
async fn every_front_door_refuses_every_forged_token_and_each_try_is_on_record() {
    with_broker(async |broker| {
        let round = broker.app().prove().await.expect("a round");
        // Nine faults, shown to the checks, to both services of the gRPC door and to the token endpoint.
        assert_eq!(round, Round { refused: 36, ..Round::default() });
        let records = broker.audit_records();
        let probes: Vec<_> = records.iter().filter(|record| record.attributes["peer"] == "prober").collect();
        assert_eq!(probes.len(), 27);
        assert!(probes.iter().all(|record| record.reason.starts_with("SUBJECT_TOKEN_") && record.subject.is_empty()));
        let metrics = reqwest::get(format!("{}/metrics", broker.http)).await.expect("an answer").text().await;
        assert!(metrics.expect("a text").contains("carnet_negative_proof_failed 0"));
        // Forged tokens name a key that Entra has, so they cost Entra no fetch.
        assert_eq!(broker.entra.calls().count("/discovery/v2.0/keys"), 1);
    })
    .await;
}

//! Shadow rules: asked beside those in force, recorded and counted, and never noticed by a caller.

use std::path::Path;

use crate::command_line::{carnet, run, text};
use crate::process::serve;
use crate::support::{Broker, Setup, captured_logs, eventually, reason, with_broker, with_setup};

const RULES: &str = "
rules:
  - name: training
    targets: [vertex, azure-ml]
    subject: { roles: [Training.Submit] }
    max_lifetime: 1h
    lease: { max_duration: 9h, heartbeat: 5m }
";

fn setup() -> Setup {
    Setup { rules: Some(RULES), more: "shadow: { file: rules.next.yaml }".to_owned(), ..Setup::default() }
}

/// Puts the rules that are to come beside those in force, and has them loaded.
fn next(broker: &Broker, rules: &str) {
    std::fs::write(broker.folder.path().join("rules.next.yaml"), rules).expect("written");
    broker.app().reload().expect("good rules");
}

/// What the newest record says of the shadow.
fn recorded(broker: &Broker) -> Option<String> {
    broker.audit_records().last().expect("a record").attributes.get("shadow").cloned()
}

/// Other tests of this process count, too.
fn counted(difference: &str) -> u64 {
    let metrics = carnet::telemetry::metrics().render();
    let name = format!("carnet_shadow_decisions_total{{difference=\"{difference}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_are_recorded_and_counted_and_no_caller_sees_them() {
    with_setup(setup(), async |broker| {
        for (rules, shadow) in [
            (RULES.to_owned(), None),
            ("rules: []".to_owned(), Some("would_deny: no rule allows it")),
            (RULES.replace("name: training", "name: other"), Some("other_rule: rule other")),
            (RULES.replace("1h", "30m"), Some("other_lifetime: 30m instead of 1h")),
        ] {
            next(broker, &rules);
            let kind = shadow.map_or("same", |shadow| shadow.split(':').next().unwrap_or_default());
            let before = counted(kind);
            let answer = broker.exchange(broker.request(&["vertex"])).await.expect("what the rules in force allow");
            let granted = answer.credentials[0].lifetime.and_then(|lifetime| lifetime.granted).expect("a lifetime");
            assert!(granted.seconds > 3000, "as long as the rule in force allows");
            assert_eq!(recorded(broker).as_deref(), shadow);
            assert!(counted(kind) > before, "{kind}");
        }
        next(broker, &RULES.replace("[vertex, azure-ml]", "[vertex, azure-ml, direct]"));
        let refused = broker.exchange(broker.request(&["direct"])).await.err().expect("no rule in force allows it");
        assert_eq!(reason(&refused), "DENIED");
        assert!(!format!("{refused:?}").contains("would_allow"));
        assert_eq!(recorded(broker).as_deref(), Some("would_allow: rule training"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_of_the_shadow_take_the_place_of_those_with_their_names() {
    with_setup(setup(), async |broker| {
        let target = "
targets:
  vertex:
    google:
      audience: //iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/ml-pool/providers/carnet
      service_account: other@ml.iam.gserviceaccount.com
      max_lifetime: 20m
";
        next(broker, &format!("{RULES}{target}"));
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        assert_eq!(recorded(broker).as_deref(), Some("other_lifetime: 20m instead of 1h"));
        broker.exchange(broker.request(&["azure-ml"])).await.expect("a credential of a target that stayed");
        assert_eq!(recorded(broker), None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_cannot_be_used_is_told_loudly_and_hurts_nothing() {
    with_setup(setup(), async |broker| {
        let told =
            |what: &str| captured_logs().text().lines().any(|line| line.contains("ERROR") && line.contains(what));
        let place = broker.folder.path().join("rules.next.yaml");
        assert!(told(&format!("{} cannot be used", place.display())), "the file is not there yet");
        broker.exchange(broker.request(&["vertex"])).await.expect("the rules in force are");
        next(broker, "rules: []");
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        assert_eq!(recorded(broker).as_deref(), Some("would_deny: no rule allows it"));
        next(broker, "rules: [{ name: bad, targets: [nothing-there], subject: { roles: [R] } }]");
        assert!(captured_logs().text().contains("rules[0].targets[0]: there is no target nothing-there"));
        broker.exchange(broker.request(&["vertex"])).await.expect("the rules in force are");
        assert_eq!(recorded(broker), None, "what was known of an older shadow is not said of a new one");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shadows_own_file_is_watched() {
    with_setup(setup(), async |broker| {
        let place = broker.folder.path().join("rules.next.yaml");
        std::fs::write(&place, "rules: []").expect("written");
        eventually("the shadow of a file that came", async || {
            broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
            recorded(broker).is_some()
        })
        .await;
        std::fs::write(&place, RULES).expect("written");
        eventually("the shadow of a file that changed", async || {
            broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
            recorded(broker).is_none()
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_of_a_configuration_is_one_of_its_shadow_too() {
    with_setup(setup(), async |broker| {
        let config = broker.config_path();
        let check = async |file: &Path| run(carnet(&["config", "check", file.to_str().expect("a path")])).await;
        let output = check(&config).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("rules.next.yaml cannot be used"), "{}", text(&output.stderr));
        next(broker, RULES);
        assert!(check(&config).await.status.success());
    })
    .await;
}

/// In a process of its own, for the metric is the process's.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_cannot_be_used_shows_in_a_metric_until_it_can() {
    with_broker(async |broker| {
        let process = serve(broker, "shadow: { file: coming.yaml }", "off").await;
        let stale = async |expected: &str| {
            let metrics = reqwest::get(format!("{}/metrics", process.http)).await.expect("an answer").text().await;
            metrics.expect("metrics").lines().any(|line| line == format!("carnet_shadow_stale {expected}"))
        };
        assert!(stale("1").await);
        std::fs::write(broker.folder.path().join("coming.yaml"), "rules: []").expect("written");
        eventually("a good shadow", async || stale("0").await).await;
    })
    .await;
}

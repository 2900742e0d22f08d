//! What can be wrong at Google.

use carnet::sandbox::{Fault, PoolProvider, SigningKey};
use http::StatusCode;
use serde_json::json;

use super::world::{POOL, World};
use super::{check, error, warning};
use crate::support::{PROVIDER, TRAINER};

const BINDING: &str = "gcloud iam service-accounts add-iam-policy-binding trainer@ml.iam.gserviceaccount.com --project=ml \
                       --role=roles/iam.workloadIdentityUser --member=principalSet://iam.googleapis.com/projects/123456789/\
                       locations/global/workloadIdentityPools/ml-pool/attribute.rule/training";
const CONDITION: &str = "--attribute-condition='assertion.tid == \"11111111-1111-1111-1111-111111111111\" && assertion.rule == \
                         \"training\"'";

fn rule_set(rule: &str) -> String {
    format!("principalSet:{POOL}/attribute.rule/{rule}")
}

/// As `--as OBJECT_ID`: what a condition or a binding says of nobody in particular decides nothing.
fn for_somebody(world: &mut World) {
    world.options.object = Some(crate::support::PERSON.parse().expect("an id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_nobody_real_decides_nothing_and_repairs_nothing() {
    let mut world = World::good().await;
    world.broker.google.unbind(TRAINER, &rule_set("training"));
    let subject = "    subject: { roles: [Training.Submit] }\n";
    world.replace(subject, &format!("{subject}    attributes: {{ team: job.name }}\n"));
    for (object, wanted) in [(None, "--as OBJECT_ID --attribute team=VALUE"), (Some(()), "--attribute team=VALUE")] {
        if object.is_some() {
            for_somebody(&mut world);
        }
        let findings = world.examine().await;
        let found = findings.iter().find(|finding| finding.code == "google_impersonation").expect("a finding");
        assert_eq!(found.severity, carnet::doctor::Severity::Warning, "{}", found.seen);
        assert!(found.commands.is_empty() && found.advice.contains(wanted), "{}", found.advice);
    }
    world.options.attributes = vec![("team".to_owned(), "x".to_owned())];
    super::expect(&error("bound to nobody", |_world| {}, "google_impersonation", BINDING), &world.examine().await);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn i19_a_condition_on_the_tenant_does_not_stand_for_one_on_the_rule() {
    for (condition, foreign) in [
        ("assertion.tid == \"11111111-1111-1111-1111-111111111111\"", "another rule"),
        ("assertion.rule == \"training\"", "another tenant"),
    ] {
        let world = World::good().await;
        world.register(world.provider().condition_in_cel(condition));
        let findings = world.examine().await;
        let open: Vec<_> = findings.iter().filter(|finding| finding.code == "pool_open").collect();
        assert!(open.len() == 1 && open[0].seen.contains(foreign), "{condition}");
        world.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_provider_are_named() {
    check(&[
        error(
            "the issuer with a slash",
            |world| {
                let issuer = format!("{}/", world.broker.http);
                world.register(PoolProvider::new(PROVIDER, issuer));
            },
            "google_issuer",
            "update-oidc projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/carnet --issuer-uri=http://127",
        ),
        error(
            "another audience",
            |world| world.register(world.provider().allowed_audience("//other")),
            "google_audience",
            "--allowed-audiences=//iam.googleapis.com/projects/123456789/locations/global/workloadIdentityPools/ml-pool/providers/carnet",
        ),
        error(
            "another pool",
            |world| world.replace("workloadIdentityPools/ml-pool/", "workloadIdentityPools/other/"),
            "google_provider",
            "gcloud iam workload-identity-pools providers describe projects/123456789/locations/global/workloadIdentityPools/other/providers/carnet",
        ),
        error(
            "another project",
            |world| world.replace("projects/123456789/locations/global/workloadIdentityPools/ml-pool/", "projects/5/locations/global/workloadIdentityPools/ml-pool/"),
            "google_provider",
            "gcloud iam workload-identity-pools describe projects/5/locations/global/workloadIdentityPools/ml-pool",
        ),
        error("a disabled provider", |world| world.register(world.provider().disabled()), "google_provider", "--no-disabled"),
        error(
            "i19: no condition",
            |world| {
                let provider = PoolProvider::new(PROVIDER, world.broker.http.clone());
                world.register(provider.map("attribute.rule", "assertion.rule"));
            },
            "pool_open",
            CONDITION,
        ),
        error(
            "a condition for another rule",
            |world| {
                for_somebody(world);
                world.register(world.provider().condition_in_cel("assertion.rule == \"old\""));
            },
            "google_condition",
            CONDITION,
        ),
        error(
            "a mapping of what is not there",
            |world| world.register(world.provider().map("attribute.team", "assertion.team")),
            "google_mapping",
            "--attribute-mapping=google.subject=assertion.sub,attribute.rule=assertion.rule,attribute.tid=assertion.tid",
        ),
        error(
            "a subject that is too long",
            |world| world.register(world.provider().map("google.subject", "assertion.sub + assertion.sub")),
            "google_subject_length",
            "--attribute-mapping=google.subject=assertion.sub",
        ),
        error(
            "keys that were uploaded once",
            |world| {
                let old = json!({"keys": [SigningKey::p256().jwk()]});
                world.register(world.provider().keys(old.to_string()));
            },
            "google_key",
            "--jwk-json-path=jwks.json",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_service_account_are_named() {
    check(&[
        error(
            "no binding",
            |world| {
                for_somebody(world);
                world.broker.google.unbind(TRAINER, &rule_set("training"));
            },
            "google_impersonation",
            BINDING,
        ),
        error(
            "a binding by the rule's old name",
            |world| {
                for_somebody(world);
                world.broker.google.unbind(TRAINER, &rule_set("training"));
                world.broker.google.bind(TRAINER, &rule_set("vision-training"));
            },
            "google_impersonation",
            BINDING,
        ),
        error(
            "an account that was deleted",
            |world| world.broker.google.delete_service_account(TRAINER),
            "google_service_account",
            "gcloud iam service-accounts create trainer --project=ml",
        ),
        error(
            "an account that never was",
            |world| {
                for_somebody(world);
                world.replace("trainer@ml.", "trainer@mll.");
            },
            "google_impersonation",
            "gcloud iam service-accounts describe trainer@mll.iam.gserviceaccount.com",
        ),
        warning(
            "a lifetime above the organization's policy",
            |world| world.replace("max_lifetime: 1h }", "max_lifetime: 12h }"),
            "google_lifetime",
            "org-policies allow constraints/iam.allowServiceAccountCredentialLifetimeExtension trainer@ml.iam.gserviceaccount.com",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_on_the_way_to_google_are_named() {
    fn off(world: &World, endpoint: &str) {
        let message = "Security Token Service API has not been used in project 123456789 before or it is disabled.";
        let body = json!({"error": {"code": 403, "message": message, "status": "PERMISSION_DENIED",
            "details": [{"reason": "SERVICE_DISABLED"}]}});
        let fault = Fault::answer(StatusCode::FORBIDDEN, &[], body.to_string()).expect("an answer");
        world.broker.google.faults().always(endpoint, fault);
    }
    check(&[
        error(
            "the token service does not answer",
            |world| world.broker.google.faults().always("/v1/token", Fault::Drop),
            "google_sts_unavailable",
            "HTTPS_PROXY",
        ),
        error(
            "the impersonation does not answer",
            |world| world.broker.google.faults().always(":generateAccessToken", Fault::status(StatusCode::BAD_GATEWAY)),
            "google_iam_credentials_unavailable",
            "curl -sS",
        ),
        error(
            "the token service is not enabled",
            |world| off(world, "/v1/token"),
            "google_api",
            "gcloud services enable iam.googleapis.com sts.googleapis.com iamcredentials.googleapis.com --project=\"$PROJECT\"",
        ),
        error(
            "the impersonation is not enabled",
            |world| off(world, ":generateAccessToken"),
            "google_api",
            "gcloud services enable iamcredentials.googleapis.com --project=ml",
        ),
        error(
            "entra's own provider is another",
            |world| world.replace("workloadIdentityPools/entra/", "workloadIdentityPools/none/"),
            "google_provider",
            "workloadIdentityPools/none/providers/entra",
        ),
    ])
    .await;
}

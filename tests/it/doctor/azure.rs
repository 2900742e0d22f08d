//! What can be wrong at Entra and on a machine of Azure's.

use carnet::clock::{Clock as _, SystemClock, unix_seconds};
use carnet::sandbox::{Fault, FederatedCredential, ManagedIdentity};
use serde_json::json;

use super::world::{APP, World};
use super::{check, error};
use crate::support::{ML, PERSON, TENANT};

/// Puts `other` in the place of the credential that azure-ml needs.
fn credential(world: &World, other: Option<FederatedCredential>) {
    world.broker.entra.distrust(ML, &world.broker.http, "carnet:azure-ml");
    if let Some(other) = other {
        world.broker.entra.trust(ML, other).expect("a credential");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_federated_credential_are_named() {
    let create = "az identity federated-credential create --name carnet-azure-ml --identity-name \"$IDENTITY\"";
    check(&[
        error("none", |world| credential(world, None), "AADSTS700211", create),
        error(
            "the subject in another case",
            |world| credential(world, Some(FederatedCredential::new(&world.broker.http, "carnet:Azure-ML"))),
            "AADSTS700213",
            "--subject carnet:azure-ml",
        ),
        error(
            "the issuer with a slash",
            |world| {
                let issuer = format!("{}/", world.broker.http);
                credential(world, Some(FederatedCredential::new(issuer, "carnet:azure-ml")));
            },
            "AADSTS700211",
            "to the letter",
        ),
        error(
            "another audience",
            |world| {
                let good = FederatedCredential::new(&world.broker.http, "carnet:azure-ml");
                credential(world, Some(FederatedCredential { audience: "api://other".to_owned(), ..good }));
            },
            "AADSTS700212",
            "--audiences api://AzureADTokenExchange",
        ),
        error(
            "none of the application that redeems people's tokens",
            |world| world.broker.entra.distrust(APP, &world.broker.http, "carnet:for-people"),
            "AADSTS700211",
            "az ad app federated-credential create --id 88888888-8888-8888-8888-888888888888",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_target_are_named() {
    check(&[
        error(
            "another client id",
            |world| world.replace("client_id: 33333333", "client_id: 33333334"),
            "AADSTS700016",
            "az identity list --query '[?clientId=='\\''33333334-3333-3333-3333-333333333333'\\'']'",
        ),
        error(
            "another tenant",
            |world| world.replace("azure: { tenant: 11111111", "azure: { tenant: 11111112"),
            "AADSTS90002",
            "targets.azure-ml.azure.tenant",
        ),
        error(
            "a resource that nobody has",
            |world| {
                world.replace(
                    "source: issuer, scopes: [https://ml.azure.com/",
                    "source: issuer, scopes: [https://ml.azure.example/",
                )
            },
            "AADSTS500011",
            "az ad sp list --filter 'servicePrincipalNames/any(name:name eq '\\''https://ml.azure.example'\\'')'",
        ),
        error(
            "a tenant that nobody has",
            |world| {
                world.replace(
                    &format!("tenants: [{TENANT}]"),
                    &format!("tenants: [{TENANT}, 19191919-1919-1919-1919-191919191919]"),
                )
            },
            "entra_tenant",
            "curl -sS http://127.0.0.1",
        ),
        error(
            "entra does not answer",
            |world| world.broker.entra.faults().always("", Fault::Drop),
            "unreachable",
            "outbound.ca_file",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_clusters_token_are_named() {
    check(&[
        error(
            "no file",
            |world| std::fs::remove_file(world.broker.folder.path().join("token")).expect("removed"),
            "token_file",
            "serviceAccountToken",
        ),
        error(
            "entra's own token",
            |world| {
                world.write_token(
                    &world.broker.entra.app_token(TENANT, PERSON).audience("api://AzureADTokenExchange").sign(),
                )
            },
            "AADSTS700222",
            "targets.in-file.azure.source",
        ),
        error(
            "a token of yesterday",
            |world| {
                let then = unix_seconds(SystemClock.now()) - 86_400;
                let mut claims = world.claims();
                for (claim, at) in [("iat", then), ("nbf", then), ("exp", then + 3600)] {
                    claims[claim] = json!(at);
                }
                world.write_token(&world.cluster.sign(&claims));
            },
            "AADSTS700024",
            "timedatectl",
        ),
        error(
            "a token of another service account",
            |world| {
                let mut claims = world.claims();
                claims["sub"] = json!("system:serviceaccount:ml:other");
                world.write_token(&world.cluster.sign(&claims));
            },
            "AADSTS700213",
            "SUBJECT=$(cut -d. -f2",
        ),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_machines_identity_are_named() {
    check(&[error(
        "nobody there",
        |world| world.replace(world.machine.imds_endpoint().to_owned().as_str(), "http://127.0.0.1:9"),
        "managed_identity_unavailable",
        "curl -sS --noproxy '*' -H Metadata:true",
    )])
    .await;
    let mut world = World::good().await;
    let bare = ManagedIdentity::start(&world.broker.entra, TENANT).await.expect("a machine");
    world.replace(world.machine.imds_endpoint().to_owned().as_str(), bare.imds_endpoint());
    let row = error(
        "an identity of another machine",
        |_world| {},
        "managed_identity",
        "az vm identity assign --name \"$NAME\"",
    );
    super::expect(&row, &world.examine().await);
    world.end().await;
}

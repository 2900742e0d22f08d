//! Whose token it is and for whom: `iss`, `tid`, `ver` and `aud` agree with each other, the key and the settings.

use carnet::reason::Reason::*;
use carnet::sandbox::TokenVersion::{V1, V2};
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn both_versions_of_entras_tokens_are_taken_with_their_own_metadata() {
    let checkpoint = Checkpoint::open().await;
    checkpoint.accept(&checkpoint.app()).await;
    let only_v2 = checkpoint.entra.calls().all();
    assert!(only_v2.iter().all(|call| call.path.contains("/v2.0/")), "{only_v2:?}");
    checkpoint.entra.calls().clear();
    checkpoint.accept(&checkpoint.app().v1()).await;
    let only_v1 = checkpoint.entra.calls().all();
    assert!(!only_v1.is_empty() && only_v1.iter().all(|call| !call.path.contains("v2.0")), "{only_v1:?}");
}

#[tokio::test]
async fn identity_is_the_tenant_and_the_object_of_the_token() {
    let checkpoint = Checkpoint::open().await;
    for token in [checkpoint.app(), checkpoint.app().v1()] {
        let identity = checkpoint.accept(&token).await;
        assert_eq!(identity.tenant().to_string(), TENANT);
        assert_eq!(identity.object().to_string(), OBJECT);
        assert_eq!(identity.client().to_string(), CLIENT);
        assert_eq!(identity.subject(), format!("entra:{TENANT}:{OBJECT}"));
    }
}

#[tokio::test]
async fn i08_names_and_addresses_among_the_claims_do_not_change_who_it_is() {
    let checkpoint = Checkpoint::open().await;
    let victim = "victim@example.com";
    let token = ["email", "upn", "preferred_username", "unique_name"]
        .into_iter()
        .fold(checkpoint.app(), |token, name| token.claim(name, victim));
    assert_eq!(checkpoint.accept(&token).await.subject(), format!("entra:{TENANT}:{OBJECT}"));
}

#[tokio::test]
async fn i09_the_tenant_is_one_of_the_settings_and_written_as_entra_writes_it() {
    assert_refused(&[
        ("absent", |at| at.app().without("tid").sign(), SubjectTokenMalformed),
        ("null", |at| at.app().claim("tid", Value::Null).sign(), SubjectTokenMalformed),
        ("a number", |at| at.app().claim("tid", 1).sign(), SubjectTokenMalformed),
        ("in a list", |at| at.app().claim("tid", json!([TENANT])).sign(), SubjectTokenMalformed),
        ("empty", |at| at.app().claim("tid", "").sign(), SubjectTokenTenant),
        ("not a GUID", |at| at.app().claim("tid", "contoso.onmicrosoft.com").sign(), SubjectTokenTenant),
        ("common", |at| at.app().claim("tid", "common").sign(), SubjectTokenTenant),
        ("organizations", |at| at.app().claim("tid", "organizations").sign(), SubjectTokenTenant),
        ("a template", |at| at.app().claim("tid", "{tenantid}").sign(), SubjectTokenTenant),
        ("a path", |at| at.app().claim("tid", format!("{TENANT}/../{FOREIGN_TENANT}")).sign(), SubjectTokenTenant),
        ("without hyphens", |at| at.app().claim("tid", TENANT.replace('-', "")).sign(), SubjectTokenTenant),
        ("in braces", |at| at.app().claim("tid", format!("{{{TENANT}}}")).sign(), SubjectTokenTenant),
        ("with a blank", |at| at.app().claim("tid", format!("{TENANT} ")).sign(), SubjectTokenTenant),
        ("in upper case", |at| at.app().claim("tid", TENANT.to_uppercase()).sign(), SubjectTokenIssuer),
        ("in upper case, also in iss", in_upper_case, SubjectTokenIssuer),
        ("foreign", |at| at.entra.app_token(FOREIGN_TENANT, OBJECT).sign(), SubjectTokenTenant),
        ("foreign in tid only", |at| at.app().claim("tid", FOREIGN_TENANT).sign(), SubjectTokenTenant),
        ("the other in tid only", |at| at.app().claim("tid", SECOND_TENANT).sign(), SubjectTokenSignature),
        ("the other in tid, by its key", other_tid_by_its_key, SubjectTokenIssuer),
    ])
    .await;
}

#[tokio::test]
async fn i09_the_issuer_is_the_one_of_tenant_key_and_version() {
    assert_refused(&[
        ("absent", |at| at.app().without("iss").sign(), SubjectTokenMalformed),
        ("null", |at| at.app().claim("iss", Value::Null).sign(), SubjectTokenMalformed),
        ("in a list", |at| at.app().claim("iss", json!([at.entra.issuer(TENANT, V2)])).sign(), SubjectTokenMalformed),
        ("empty", |at| at.app().claim("iss", "").sign(), SubjectTokenIssuer),
        ("another tenant's", |at| at.app().claim("iss", at.entra.issuer(SECOND_TENANT, V2)).sign(), SubjectTokenIssuer),
        (
            "a foreign tenant's",
            |at| at.app().claim("iss", at.entra.issuer(FOREIGN_TENANT, V2)).sign(),
            SubjectTokenIssuer,
        ),
        ("the template", |at| at.app().claim("iss", at.entra.issuer("{tenantid}", V2)).sign(), SubjectTokenIssuer),
        ("common", |at| at.app().claim("iss", at.entra.issuer("common", V2)).sign(), SubjectTokenIssuer),
        (
            "with a slash",
            |at| at.app().claim("iss", format!("{}/", at.entra.issuer(TENANT, V2))).sign(),
            SubjectTokenIssuer,
        ),
        ("v1 without its slash", v1_without_slash, SubjectTokenIssuer),
        (
            "in upper case",
            |at| at.app().claim("iss", at.entra.issuer(TENANT, V2).to_uppercase()).sign(),
            SubjectTokenIssuer,
        ),
        ("on another host", |at| at.app().claim("iss", elsewhere(at)).sign(), SubjectTokenIssuer),
        ("the tenant further back", tenant_further_back, SubjectTokenIssuer),
        (
            "with a query",
            |at| at.app().claim("iss", format!("{}?/v2.0", at.entra.issuer(TENANT, V2))).sign(),
            SubjectTokenIssuer,
        ),
        ("v1 with v2's claims", |at| at.app().claim("iss", at.entra.issuer(TENANT, V1)).sign(), SubjectTokenIssuer),
        (
            "v2 with v1's claims",
            |at| at.app().v1().claim("iss", at.entra.issuer(TENANT, V2)).sign(),
            SubjectTokenIssuer,
        ),
        (
            "v1 of another tenant",
            |at| at.app().v1().claim("iss", at.entra.issuer(SECOND_TENANT, V1)).sign(),
            SubjectTokenIssuer,
        ),
        ("ver absent", |at| at.app().without("ver").sign(), SubjectTokenIssuer),
        ("ver absent in v1", |at| at.app().v1().without("ver").sign(), SubjectTokenIssuer),
        ("ver 1.0 in v2", |at| at.app().claim("ver", "1.0").sign(), SubjectTokenIssuer),
        ("ver 2.0 in v1", |at| at.app().v1().claim("ver", "2.0").sign(), SubjectTokenIssuer),
        ("ver 2", |at| at.app().claim("ver", "2").sign(), SubjectTokenIssuer),
        ("ver 3.0", |at| at.app().claim("ver", "3.0").sign(), SubjectTokenIssuer),
        ("ver a number", |at| at.app().claim("ver", 2.0).sign(), SubjectTokenMalformed),
        ("ver null", |at| at.app().claim("ver", Value::Null).sign(), SubjectTokenMalformed),
    ])
    .await;
}

#[tokio::test]
async fn i03_the_audience_is_one_text_and_one_of_the_settings() {
    assert_refused(&[
        ("absent", |at| at.app().without("aud").sign(), SubjectTokenMalformed),
        ("null", |at| at.app().claim("aud", Value::Null).sign(), SubjectTokenMalformed),
        (
            "a list with ours",
            |at| at.app().claim("aud", json!([at.entra.default_audience()])).sign(),
            SubjectTokenMalformed,
        ),
        ("a list with ours and another", two_audiences, SubjectTokenMalformed),
        ("an empty list", |at| at.app().claim("aud", json!([])).sign(), SubjectTokenMalformed),
        ("an object", |at| at.app().claim("aud", json!({"aud": AUDIENCE_URI})).sign(), SubjectTokenMalformed),
        ("a number", |at| at.app().claim("aud", 22222222).sign(), SubjectTokenMalformed),
        ("true", |at| at.app().claim("aud", true).sign(), SubjectTokenMalformed),
        ("empty", |at| at.app().audience("").sign(), SubjectTokenAudience),
        ("a blank", |at| at.app().audience(" ").sign(), SubjectTokenAudience),
        ("a star", |at| at.app().audience("*").sign(), SubjectTokenAudience),
        ("foreign", |at| at.app().audience("api://another").sign(), SubjectTokenAudience),
        ("foreign GUID", |at| at.app().audience(OBJECT).sign(), SubjectTokenAudience),
        ("the client itself", |at| at.app().audience(CLIENT).sign(), SubjectTokenAudience),
        (
            "GUID with a slash",
            |at| at.app().audience(format!("{}/", at.entra.default_audience())).sign(),
            SubjectTokenAudience,
        ),
        (
            "GUID as a URI",
            |at| at.app().audience(format!("api://{}", at.entra.default_audience())).sign(),
            SubjectTokenAudience,
        ),
        ("two slashes", |at| at.app().audience("api://carnet//").sign(), SubjectTokenAudience),
        ("more behind", |at| at.app().audience("api://carnet.example").sign(), SubjectTokenAudience),
        ("a path behind", |at| at.app().audience("api://carnet/.default").sign(), SubjectTokenAudience),
        ("less", |at| at.app().audience("api://carne").sign(), SubjectTokenAudience),
        ("in upper case", |at| at.app().audience("API://CARNET").sign(), SubjectTokenAudience),
        ("with a blank", |at| at.app().audience("api://carnet ").sign(), SubjectTokenAudience),
        ("two in one text", |at| at.app().audience("api://carnet api://another").sign(), SubjectTokenAudience),
        ("of a FIC", |at| at.app().audience("api://AzureADTokenExchange").sign(), SubjectTokenAudience),
    ])
    .await;
}

#[tokio::test]
async fn i03_an_application_id_uri_is_taken_with_and_without_its_slash() {
    let checkpoint = Checkpoint::open().await;
    checkpoint.accept(&checkpoint.app().v1().audience(AUDIENCE_URI)).await;
    checkpoint.accept(&checkpoint.app().v1().audience(format!("{AUDIENCE_URI}/"))).await;
}

#[tokio::test]
async fn tokens_for_microsofts_own_services_are_told_so_by_name() {
    let checkpoint = Checkpoint::open().await;
    let (graph, arm) = ("Microsoft Graph", "Azure Resource Manager");
    for (name, token) in [
        (graph, checkpoint.app().header("nonce", "b64")),
        (graph, checkpoint.app().audience("00000003-0000-0000-c000-000000000000")),
        (graph, checkpoint.app().v1().audience("https://graph.microsoft.com")),
        (graph, checkpoint.app().v1().audience("https://graph.microsoft.com/")),
        ("Azure AD Graph", checkpoint.app().v1().audience("https://graph.windows.net/")),
        (arm, checkpoint.app().v1().audience("https://management.azure.com/")),
        (arm, checkpoint.app().v1().audience("https://management.core.windows.net/")),
        (arm, checkpoint.app().v1().audience("797f4846-ba00-4fd7-ba43-dac1f8f63013")),
    ] {
        let error = checkpoint.verify(&token.sign()).await.expect_err("refused");
        assert_eq!(error.reason(), SubjectTokenNotForUs, "{error}");
        assert!(error.to_string().contains(&format!("is for {name},")), "{error}");
    }
}

#[tokio::test]
async fn object_and_client_are_guids() {
    assert_refused(&[
        ("oid absent", |at| at.app().without("oid").sign(), SubjectTokenMalformed),
        ("oid null", |at| at.app().claim("oid", Value::Null).sign(), SubjectTokenMalformed),
        ("oid in a list", |at| at.app().claim("oid", json!([OBJECT])).sign(), SubjectTokenMalformed),
        (
            "oid a name",
            |at| at.app().claim("oid", "ada@example.com").claim("sub", "ada@example.com").sign(),
            SubjectTokenMalformed,
        ),
        ("oid without hyphens", |at| at.app().claim("oid", OBJECT.replace('-', "")).sign(), SubjectTokenMalformed),
        ("azp absent", |at| at.app().without("azp").sign(), SubjectTokenMalformed),
        ("azp empty", |at| at.app().claim("azp", "").sign(), SubjectTokenMalformed),
        ("appid in place of azp", |at| at.app().without("azp").claim("appid", CLIENT).sign(), SubjectTokenMalformed),
        (
            "azp in place of appid",
            |at| at.app().v1().without("appid").claim("azp", CLIENT).sign(),
            SubjectTokenMalformed,
        ),
        ("sub absent", |at| at.app().without("sub").sign(), SubjectTokenMalformed),
        ("sub in a list", |at| at.app().claim("sub", json!([OBJECT])).sign(), SubjectTokenMalformed),
        ("roles a text", |at| at.app().claim("roles", "admin").sign(), SubjectTokenMalformed),
        ("roles with a number", |at| at.app().claim("roles", json!(["a", 1])).sign(), SubjectTokenMalformed),
        ("acrs a text", |at| at.app().claim("acrs", "c1").sign(), SubjectTokenMalformed),
        ("uti a number", |at| at.app().claim("uti", 1).sign(), SubjectTokenMalformed),
    ])
    .await;
}

#[tokio::test]
async fn i12_tokens_of_unknown_tenants_cause_no_call_at_all() {
    let checkpoint = Checkpoint::open().await;
    let foreign = checkpoint.entra.app_token(FOREIGN_TENANT, OBJECT);
    for token in [foreign.clone(), foreign.clone().v1(), foreign.claim("iss", elsewhere(&checkpoint))] {
        assert_eq!(refusal(&checkpoint.verifier, &token.sign()).await, Some(SubjectTokenTenant));
    }
    for tenant in ["common", "organizations", "consumers", "..", "x@127.0.0.1", "9188040d-6c67-4c5b-b112-36a304b66dad"]
    {
        let token = checkpoint.app().claim("tid", tenant).claim("iss", checkpoint.entra.issuer(tenant, V2));
        assert_eq!(refusal(&checkpoint.verifier, &token.sign()).await, Some(SubjectTokenTenant), "{tenant}");
    }
    assert!(checkpoint.entra.calls().all().is_empty(), "{:?}", checkpoint.entra.calls());
    assert!(checkpoint.elsewhere.calls().all().is_empty());
}

fn elsewhere(at: &Checkpoint) -> String {
    at.elsewhere.issuer(TENANT, V2)
}

fn in_upper_case(at: &Checkpoint) -> String {
    let tenant = TENANT.to_uppercase();
    at.app().claim("iss", at.entra.issuer(&tenant, V2)).claim("tid", tenant).sign()
}

fn other_tid_by_its_key(at: &Checkpoint) -> String {
    at.app().claim("tid", SECOND_TENANT).signed_by_key(at.entra.signing_key(SECOND_TENANT)).sign()
}

fn v1_without_slash(at: &Checkpoint) -> String {
    at.app().v1().claim("iss", at.entra.issuer(TENANT, V1).trim_end_matches('/')).sign()
}

fn tenant_further_back(at: &Checkpoint) -> String {
    at.app().claim("iss", format!("{}/{FOREIGN_TENANT}/{TENANT}/v2.0", at.entra.authority())).sign()
}

fn two_audiences(at: &Checkpoint) -> String {
    at.app().claim("aud", json!([at.entra.default_audience(), "api://another"])).sign()
}

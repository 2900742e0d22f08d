use super::*;

const EXCHANGE: &str = "0199a1b2-0000-7000-8000-000000000001";
const MINTED_BY: &str = "0199a1b2-0000-7000-8000-000000000002";
const STS_BY: &str = "0199a1b2-0000-7000-8000-000000000003";
const PRINCIPAL: &str =
    "principal://iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/ml/subject/entra:t:o";

fn record(outcome: &str, attributes: &[(&str, &str)]) -> AuditRecord {
    AuditRecord {
        exchange_id: EXCHANGE.to_owned(),
        // 2026-11-21T16:20:01Z
        time: Some(prost_types::Timestamp { seconds: 1_795_278_001, nanos: 102_241_964 }),
        action: "exchange".to_owned(),
        outcome: outcome.to_owned(),
        subject: "entra:t:o".to_owned(),
        entra_token_id: "uti-of-caller".to_owned(),
        target: "vertex".to_owned(),
        attributes: attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..Default::default()
    }
}

fn impersonated() -> AuditRecord {
    let attributes = [
        ("acts_as", "trainer@ml-prod.iam.gserviceaccount.com"),
        ("google_principal", PRINCIPAL),
        ("issued_at", "1795276800"),
        ("expires_at", "1795280400"),
        ("upstream_exchange_id", MINTED_BY),
        ("sts_exchange_id", STS_BY),
    ];
    record("issued", &attributes)
}

fn texts(record: &AuditRecord) -> Vec<String> {
    Trace::of(record).queries.into_iter().map(|query| query.text).collect()
}

#[test]
fn a_cached_google_credential_is_found_by_the_exchanges_that_google_saw() {
    let record = impersonated();
    let [sign_in, exchange, impersonation, used] = &texts(&record)[..] else { panic!("four queries") };
    assert!(sign_in.contains("UniqueTokenIdentifier == \"uti-of-caller\""), "{sign_in}");
    assert!(sign_in.contains("datetime(2026-11-20T11:20:01Z) .. datetime(2026-11-21T16:30:01Z)"), "{sign_in}");
    let expected = format!(
        "gcloud logging read 'protoPayload.serviceName=\"sts.googleapis.com\" AND \
         protoPayload.methodName=\"google.identity.sts.v1.SecurityTokenService.ExchangeToken\" AND \
         (protoPayload.requestMetadata.callerSuppliedUserAgent:\"exchange={STS_BY}\" OR \
         protoPayload.requestMetadata.requestAttributes.reason:\"exchange={STS_BY}\") AND \
         timestamp>=\"2026-11-21T15:50:00Z\" AND timestamp<=\"2026-11-21T16:10:00Z\"' --project='123' --format=json"
    );
    assert_eq!(*exchange, expected);
    for part in [
        "protoPayload.methodName:\"GenerateAccessToken\"",
        &format!("\"exchange={MINTED_BY}\""),
        &format!("principalSubject=\"{PRINCIPAL}\""),
        "--project='ml-prod'",
    ] {
        assert!(impersonation.contains(part), "{impersonation}");
    }
    let delegation = "protoPayload.authenticationInfo.serviceAccountDelegationInfo";
    for part in [
        "principalEmail=\"trainer@ml-prod.iam.gserviceaccount.com\"",
        &format!("{delegation}.principalSubject=\"{PRINCIPAL}\""),
        &format!("{delegation}.firstPartyPrincipal.principalSubject=\"{PRINCIPAL}\""),
        &format!("(NOT {delegation}.principalSubject:* AND NOT {delegation}.firstPartyPrincipal:*)"),
        "timestamp>=\"2026-11-21T15:50:00Z\" AND timestamp<=\"2026-11-21T17:10:00Z\"",
    ] {
        assert!(used.contains(part), "{used}");
    }
    let notes = Trace::of(&record).notes;
    assert!(notes[0].contains("no entry of this exchange") && notes[0].contains(MINTED_BY), "{notes:?}");
}

#[test]
fn a_direct_google_credential_is_used_by_the_principal_itself() {
    let record = record("issued", &[("acts_as", PRINCIPAL), ("issued_at", "1795276800"), ("expires_at", "1795280400")]);
    let [_sign_in, exchange, used] = &texts(&record)[..] else { panic!("three queries") };
    assert!(exchange.contains(&format!("exchange={EXCHANGE}")) && exchange.contains("--project='123'"), "{exchange}");
    assert!(used.contains(&format!("authenticationInfo.principalSubject=\"{PRINCIPAL}\"")), "{used}");
    assert!(!used.contains("principalEmail"), "{used}");
}

#[test]
fn an_assertion_that_was_handed_out_is_found_by_its_subject() {
    let urn = "urn:ietf:params:oauth:token-type:jwt";
    let record = record("issued", &[("acts_as", PRINCIPAL), ("issued_token_type", urn), ("issued_at", "1795276800")]);
    let [_sign_in, redeemed, _used] = &texts(&record)[..] else { panic!("three queries") };
    assert!(redeemed.contains("authenticationInfo.principalSubject=\"entra:t:o\""), "{redeemed}");
    assert!(!redeemed.contains("callerSuppliedUserAgent"), "{redeemed}");
}

#[test]
fn an_id_token_is_generated_by_another_method_and_leaves_no_entry_where_it_is_used() {
    let urn = "urn:ietf:params:oauth:token-type:id_token";
    let record = record("issued", &[("acts_as", "a@p.iam.gserviceaccount.com"), ("issued_token_type", urn)]);
    let [_sign_in, _exchange, generated] = &texts(&record)[..] else { panic!("three queries") };
    assert!(generated.contains("methodName:\"GenerateIdToken\""), "{generated}");
}

#[test]
fn an_azure_credential_is_found_by_its_correlation_id_and_its_token_id() {
    let attributes = [
        ("acts_as", "33333333-3333-3333-3333-333333333333"),
        ("entra_correlation_id", EXCHANGE),
        ("azure_uti", "uti-of-new"),
        ("azure_oid", "oid-of-new"),
        ("issued_at", "1795276800"),
        ("expires_at", "1795280400"),
    ];
    let record = record("issued", &attributes);
    let [_sign_in, own, used] = &texts(&record)[..] else { panic!("three queries") };
    let condition = format!("| where CorrelationId == \"{EXCHANGE}\" or UniqueTokenIdentifier == \"uti-of-new\"");
    assert!(own.contains("AADManagedIdentitySignInLogs") && own.ends_with(&condition), "{own}");
    assert!(used.contains(".uti) == \"uti-of-new\"") && used.contains("== \"oid-of-new\""), "{used}");
    assert!(used.contains("datetime(2026-11-21T15:50:00Z) .. datetime(2026-11-21T17:10:00Z)"), "{used}");
}

#[test]
fn a_refusal_is_found_where_it_happened_and_nothing_was_used() {
    let refused = |hop: &str| texts(&record("failed", &[("cloud_hop", hop), ("google_principal", PRINCIPAL)]));
    assert_eq!([refused("google_sts").len(), refused("google_iam_credentials").len()], [2, 3]);
    assert!(refused("google_iam_credentials")[2].contains("GenerateAccessToken"));
    assert_eq!([refused("entra_token").len(), refused("broker").len()], [2, 1]);
    let denied = record("denied", &[]);
    assert_eq!(Trace::of(&denied).notes, ["no cloud was asked: the broker decided this by itself"]);
}

#[test]
fn hostile_values_end_no_literal_and_no_line() {
    let hostile = "x\" OR \"\" = \"'; rm -rf / #\n| take 1 \\";
    let mut record = impersonated();
    record.entra_token_id = hostile.to_owned();
    for (name, value) in &mut record.attributes {
        if !name.ends_with("_at") {
            *value = format!("{value}{hostile}");
        }
    }
    for query in Trace::of(&record).queries {
        let lines = if query.language == Language::Kql { 3 } else { 1 };
        assert_eq!(query.text.lines().count(), lines, "{}", query.text);
        assert!(!query.text.contains("x\" OR"), "{}", query.text);
        if query.language == Language::Gcloud {
            assert!(!query.text.replace(r"'\''", "").contains("'; rm"), "{}", query.text);
        }
    }
    assert_eq!(heading(&AuditRecord { target: hostile.to_owned(), ..record }).lines().count(), 1);
}

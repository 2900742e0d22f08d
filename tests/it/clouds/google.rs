//! Google: the exchange, the impersonation after it, and what its two services refuse.

mod refusals;

use carnet::credential::CloudIdentity;
use carnet::policy::Given;
use carnet::sandbox::{TokenKind, TokenVersion};

use super::*;

#[tokio::test(start_paused = true)]
async fn an_impersonated_token_is_what_the_credential_says_it_is() {
    let world = World::new().await;
    let call = world.call_with(world.google(), world.token(), |ask| ask.lifetime = Some(HOUR / 2)).await;
    let credential = world.issue(&call).await.unwrap();
    let seen = world.google.check(credential.token.expose()).unwrap();
    let expected = principal(&format!("entra:{TENANT}:{OBJECT}"));
    assert_eq!((seen.kind, seen.principal.as_str()), (TokenKind::ServiceAccount, expected.as_str()));
    assert_eq!((seen.service_account.as_deref(), seen.scopes), (Some(ACCOUNT), vec![CLOUD.to_owned()]));
    assert_same_second(seen.expires_at, credential.expires_at);
    assert_same_second(credential.expires_at, world.clock.now() + HOUR / 2);
    assert_eq!(credential.given, Given::AsAsked);
    let identity = CloudIdentity::Google { principal: expected, service_account: Some(ACCOUNT.to_owned()) };
    assert_eq!(credential.identity, identity);
    assert_eq!(credential.token_sha256, carnet::secret::sha256(credential.token.expose().as_bytes()));
}

#[tokio::test(start_paused = true)]
async fn a_direct_token_lives_as_long_as_the_assertion() {
    let world = World::new().await;
    let credential = world.issue_for(world.direct()).await.unwrap();
    let seen = world.google.check(credential.token.expose()).unwrap();
    assert_eq!((seen.kind, seen.service_account, seen.scopes), (TokenKind::Federated, None, vec![CLOUD.to_owned()]));
    assert_same_second(seen.expires_at, credential.expires_at);
    assert_same_second(credential.expires_at, world.clock.now() + Duration::from_secs(600));
    let identity = CloudIdentity::Google { principal: seen.principal, service_account: None };
    assert_eq!((credential.identity, credential.given), (identity, Given::AsAsked));
    assert_eq!((world.count(STS), world.count(ACCESS)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_trusts_entra_gets_the_callers_own_token() {
    let world = World::new().await;
    let entra = PoolProvider::new(provider(), world.entra.issuer(TENANT, TokenVersion::V2)).allowed_audience(BROKER);
    world.google.register_provider(entra).unwrap();
    let target = world.google_with(|google| {
        google.subject_token = GoogleSubjectToken::Entra;
        google.service_account = None;
    });
    let token = world.token().lifetime(Duration::from_secs(1800));
    let call = world.call_with(target, token, |_ask| {}).await;
    let credential = world.issue(&call).await.unwrap();
    let seen = world.google.check(credential.token.expose()).unwrap();
    assert_eq!(seen.principal, principal(OBJECT));
    assert_eq!(credential.identity, CloudIdentity::Google { principal: seen.principal, service_account: None });
    assert_same_second(seen.expires_at, credential.expires_at);
    assert_same_second(credential.expires_at, world.clock.now() + Duration::from_secs(1800));
    assert_eq!(
        world.google.calls().to(STS)[0].form("subject_token"),
        Some(call.subject_token.as_ref().expect("a token").secret().expose())
    );
}

#[tokio::test(start_paused = true)]
async fn an_id_token_is_for_the_audience_that_was_asked_for() {
    let world = World::new().await;
    let call = world
        .call_with(world.google(), world.token(), |ask| {
            ask.token_type = TokenType::IdToken;
            ask.audience = Some("https://model-abc.a.run.app".parse().unwrap());
        })
        .await;
    let credential = world.issue(&call).await.unwrap();
    let claims = claims(credential.token.expose());
    assert_eq!((&claims["aud"], &claims["email"]), (&json!("https://model-abc.a.run.app"), &json!(ACCOUNT)));
    assert_same_second(credential.expires_at, world.clock.now() + HOUR);
    assert_eq!((world.count(ID), world.count(ACCESS)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn c25_both_of_googles_logs_show_the_exchange() {
    let world = World::new().await;
    let call = world.call(world.google()).await;
    let credential = world.issue(&call).await.unwrap();
    let id = call.exchange_id.to_string();
    let seen = world.google.check(credential.token.expose()).unwrap();
    assert_eq!(seen.request_reason, Some(format!("carnet exchange={id} rule=all")));
    for endpoint in [STS, ACCESS] {
        let [request] = &world.google.calls().to(endpoint)[..] else { panic!("one call of {endpoint}") };
        assert!(request.header("x-goog-request-reason").unwrap().contains(&id), "{endpoint}");
        let user_agent = request.header("user-agent").unwrap();
        assert!(user_agent.starts_with("carnet/") && user_agent.contains(&id), "{user_agent}");
    }
}

#[tokio::test(start_paused = true)]
async fn c25_a_job_is_named_in_the_reason_by_plain_characters_only() {
    let world = World::new().await;
    let id = "run 7/8\"é someone@example.com\u{200b}".to_owned();
    let job = Job { id: Some(id), ..Job::default() };
    let call = world.call_for_job(world.google(), job).await;
    let credential = world.issue(&call).await.unwrap();
    let seen = world.google.check(credential.token.expose()).unwrap();
    let expected = format!("carnet exchange={} job=run_7/8___someone_example.com_ rule=all", call.exchange_id);
    assert_eq!(seen.request_reason, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn c25_a_cached_federated_token_names_the_exchange_that_google_saw_for_it() {
    let world = World::new().await;
    let first = world.call(world.google()).await;
    let second = world.call_with(world.google(), world.token(), |ask| ask.lifetime = Some(HOUR / 2)).await;
    let first_credential = world.issue(&first).await.unwrap();
    assert!(first_credential.upstream.is_empty());
    let credential = world.issue(&second).await.unwrap();
    assert_eq!(world.count(STS), 1);
    assert_eq!(credential.upstream, [("sts_exchange_id", first.exchange_id.to_string())]);
    world.google.unbind(ACCOUNT, &format!("principalSet:{POOL}/*"));
    let refused = world.issue(&second).await.unwrap_err();
    let ids = [
        ("google_error_reason", "IAM_PERMISSION_DENIED".to_owned()),
        ("sts_exchange_id", first.exchange_id.to_string()),
        ("google_principal", principal(&format!("entra:{TENANT}:{OBJECT}"))),
    ];
    assert_eq!(refused.upstream(), ids);
}

#[tokio::test(start_paused = true)]
async fn the_exchange_carries_no_authorization_and_the_impersonation_carries_the_federated_token() {
    let world = World::new().await;
    world.issue_for(world.google()).await.unwrap();
    let exchange = &world.google.calls().to(STS)[0];
    assert_eq!((exchange.header("authorization"), exchange.form("scope")), (None, Some(IAM)));
    let impersonation = &world.google.calls().to(ACCESS)[0];
    assert!(impersonation.header("authorization").unwrap().starts_with("Bearer ya29.d."));
    assert_eq!(impersonation.path, format!("/v1/projects/-/serviceAccounts/{ACCOUNT}{ACCESS}"));
}

#[tokio::test(start_paused = true)]
async fn the_assertion_is_for_this_provider_only_and_short() {
    let world = World::new().await;
    let call = world.call(world.google()).await;
    world.issue(&call).await.unwrap();
    let assertion = claims(world.google.calls().to(STS)[0].form("subject_token").unwrap());
    assert_eq!(assertion["aud"], json!(provider()));
    assert_eq!(assertion["iss"], json!(world.published.issuer()));
    assert_eq!(assertion["exp"].as_u64().unwrap() - assertion["iat"].as_u64().unwrap(), 600);
    assert!(assertion["jti"].as_str().unwrap().starts_with(&call.exchange_id.to_string()));
}

#[tokio::test(start_paused = true)]
async fn c17_a_shared_target_has_one_principal_and_any_other_one_for_each_subject() {
    let world = World::new().await;
    let credentials = world.credentials();
    for (sharing, expected) in [(Sharing::Target, 1), (Sharing::Subject, 2)] {
        let mut tokens = Vec::new();
        for object in [OBJECT, OTHER_OBJECT] {
            let target = Target { sharing, ..world.google() };
            let call = world.call_with(target, world.entra.app_token(TENANT, object), |_ask| {}).await;
            let subject = match sharing {
                Sharing::Target => "carnet:t".to_owned(),
                Sharing::Subject => format!("entra:{TENANT}:{object}"),
            };
            let token = credentials.credential(call).await.unwrap().credential.token.expose().to_owned();
            assert_eq!(world.google.check(&token).unwrap().principal, principal(&subject));
            tokens.push(token);
        }
        tokens.dedup();
        assert_eq!(tokens.len(), expected, "{sharing:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn uploaded_keys_are_used_without_asking_the_issuer() {
    let world = World::new().await;
    world.issue_for(world.google()).await.unwrap();
    assert_eq!(world.published.calls().count("/keys"), 0);
    world.google.register_provider(world.provider()).unwrap();
    world.fresh_clouds().issue(&world.call(world.google()).await).await.unwrap();
    assert_eq!(world.published.calls().count("/keys"), 1);
}

#[tokio::test(start_paused = true)]
async fn q02_one_federated_token_serves_many_impersonations() {
    let world = World::new().await;
    let other = world.google_with(|google| google.service_account = Some(OTHER_ACCOUNT.parse().unwrap()));
    let short = world.call_with(world.google(), world.token(), |ask| ask.lifetime = Some(HOUR / 2)).await;
    for call in [world.call(world.google()).await, world.call(other).await, short] {
        world.issue(&call).await.unwrap();
    }
    assert_eq!((world.count(STS), world.count(ACCESS)), (1, 3));
    // Less than a minute is left of it.
    world.clock.advance(Duration::from_secs(545));
    world.issue_for(world.google()).await.unwrap();
    assert_eq!((world.count(STS), world.count(ACCESS)), (2, 4));
}

#[tokio::test(start_paused = true)]
async fn a_federated_token_that_google_no_longer_knows_is_replaced_once() {
    let world = World::new().await;
    world.issue_for(world.google()).await.unwrap();
    let body = r#"{"error":{"code":401,"status":"UNAUTHENTICATED"}}"#;
    let unknown = || Fault::answer(StatusCode::UNAUTHORIZED, &[], body).unwrap();
    world.google.faults().once(ACCESS, unknown());
    world.issue_for(world.google()).await.unwrap();
    assert_eq!((world.count(STS), world.count(ACCESS)), (2, 3));
    world.google.faults().always(ACCESS, unknown());
    let error = world.issue_for(world.google()).await.unwrap_err();
    assert_eq!((error.reason(), error.code()), (Reason::CloudRefused, Some("UNAUTHENTICATED")));
    assert_eq!((world.count(STS), world.count(ACCESS)), (3, 5));
}

#[tokio::test(start_paused = true)]
async fn another_subjects_federated_token_is_never_used() {
    let world = World::new().await;
    for object in [OBJECT, OTHER_OBJECT] {
        let call = world.call_with(world.google(), world.entra.app_token(TENANT, object), |_ask| {}).await;
        let credential = world.issue(&call).await.unwrap();
        let seen = world.google.check(credential.token.expose()).unwrap();
        assert_eq!(seen.principal, principal(&format!("entra:{TENANT}:{object}")));
    }
    assert_eq!(world.count(STS), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_above_the_accounts_limit_is_asked_for_once() {
    let world = World::new().await;
    let ask = |target| world.call_with(target, world.token(), |ask| ask.lifetime = Some(2 * HOUR));
    let credential = world.issue(&ask(world.google()).await).await.unwrap();
    assert_eq!(credential.given, Given::Less);
    assert_same_second(credential.expires_at, world.clock.now() + HOUR);
    assert_eq!(lifetimes(&world), ["7200s", "3600s"]);
    // Known from now on, for this account only.
    let other = || world.google_with(|google| google.service_account = Some(OTHER_ACCOUNT.parse().unwrap()));
    assert_eq!(world.issue(&ask(world.google()).await).await.unwrap().given, Given::Less);
    world.google.extend_lifetime(OTHER_ACCOUNT);
    assert_eq!(world.issue(&ask(other()).await).await.unwrap().given, Given::AsAsked);
    assert_eq!(lifetimes(&world), ["7200s", "3600s", "3600s", "7200s"]);
    // Somebody may have listed the account since.
    world.google.extend_lifetime(ACCOUNT);
    world.clock.advance(HOUR);
    assert_eq!(world.issue(&ask(world.google()).await).await.unwrap().given, Given::AsAsked);
}

#[tokio::test(start_paused = true)]
async fn an_hour_sharp_is_refused_where_the_clocks_differ_and_a_little_less_is_taken() {
    let world = World::new().await;
    world.google.faults().once(ACCESS, too_long());
    let credential = world.issue_for(world.google()).await.unwrap();
    assert_same_second(credential.expires_at, world.clock.now() + Duration::from_secs(3300));
    assert_eq!(credential.given, Given::Less);
    assert_eq!(lifetimes(&world), ["3600s", "3300s"]);
}

#[tokio::test(start_paused = true)]
async fn a_cloud_that_refuses_every_lifetime_is_not_asked_forever() {
    let world = World::new().await;
    world.google.faults().always(ACCESS, too_long());
    let call = world.call_with(world.google(), world.token(), |ask| ask.lifetime = Some(12 * HOUR)).await;
    let failure = world.failure(&call, ACCESS).await;
    assert_eq!(failure.summary(), (Reason::CloudRefused, Some("INVALID_ARGUMENT"), 3));
    assert_eq!(lifetimes(&world), ["43200s", "3600s", "3300s"]);
}

#[tokio::test(start_paused = true)]
async fn an_account_with_the_organizations_extension_gets_twelve_hours() {
    let world = World::new().await;
    world.google.extend_lifetime(ACCOUNT);
    let call = world.call_with(world.google(), world.token(), |ask| ask.lifetime = Some(12 * HOUR)).await;
    let credential = world.issue(&call).await.unwrap();
    assert_same_second(credential.expires_at, world.clock.now() + 12 * HOUR);
    assert_eq!((credential.given, world.count(ACCESS)), (Given::AsAsked, 1));
}

#[tokio::test(start_paused = true)]
async fn a_broker_without_an_issuer_says_so_and_calls_nobody() {
    let world = World::new().await;
    let clouds = Clouds::new(world.http.clone(), None, Arc::new(world.clock.clone()));
    let error = clouds.issue(&world.call(world.google()).await).await.unwrap_err();
    assert_eq!((error.reason(), error.code()), (Reason::CloudRefused, Some("no_issuer")));
    assert_eq!(world.count(STS), 0);
}

fn too_long() -> Fault {
    let text = "The access token lifetime cannot exceed 3600 seconds.";
    iam_error(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", text)
}

/// What was asked for in each impersonation, in order.
fn lifetimes(world: &World) -> Vec<String> {
    let lifetime =
        |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap()["lifetime"].as_str().unwrap().to_owned();
    world.google.calls().to(ACCESS).iter().map(|call| lifetime(&call.body)).collect()
}

const IAM: &str = "https://www.googleapis.com/auth/iam";

#[tokio::test(start_paused = true)]
async fn q15_a_federated_token_of_the_largest_size_is_carried_whole() {
    let world = World::new().await;
    let direct = world.google_with(|google| google.service_account = None);
    let token = format!("ya29.d.{}", "x".repeat(12_288 - 7));
    let body = json!({"access_token": token, "token_type": "Bearer", "expires_in": 600}).to_string();
    world.google.faults().once(STS, Fault::answer(StatusCode::OK, &[], body).unwrap());
    assert_eq!(world.issue_for(direct).await.unwrap().token.expose(), token);
}

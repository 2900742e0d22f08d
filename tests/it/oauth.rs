//! The HTTP door's own behaviour: RFC 8693, RFC 7662, discovery, keys, health and metrics.

use carnet::proto::Job;
use carnet::proto::token_exchange_client::TokenExchangeClient;
use carnet::sandbox::Fault;
use serde_json::{Value, json};

use crate::process::{Process, make_place};
use crate::support::{Broker, Setup, TENANT, TRAINER, eventually, with_broker};

const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

#[tokio::test(flavor = "multi_thread")]
async fn the_token_endpoint_answers_what_googles_libraries_want() {
    with_broker(async |broker| {
        let token = broker.signed(&broker.runner());
        let (status, body) = broker.token(&[("audience", "vertex"), ("subject_token", &token)]).await;
        assert_eq!(
            (status, body["token_type"].as_str(), body["issued_token_type"].as_str()),
            (200, Some("Bearer"), Some("urn:ietf:params:oauth:token-type:access_token"))
        );
        assert!(body["expires_in"].as_u64().is_some_and(|seconds| (3500..=3600).contains(&seconds)));
        assert_eq!(body["scope"], "https://www.googleapis.com/auth/cloud-platform");
        assert!(broker.google.check(body["access_token"].as_str().expect("a token")).is_some());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_taken_in_both_spellings() {
    with_broker(async |broker| {
        let token = broker.signed(&broker.runner());
        for body in [
            json!({"grant_type": GRANT, "audience": "vertex", "subject_token": token, "subject_token_type": JWT, "scope": null}),
            json!({"grantType": GRANT, "audience": "vertex", "subjectToken": token, "subjectTokenType": JWT}),
        ] {
            let answer = reqwest::Client::new().post(format!("{}/v1/token", broker.http)).json(&body).send().await.expect("an answer");
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["cache-control"], "no-store");
            broker.is_secret(answer.json::<Value>().await.expect("JSON")["access_token"].as_str().expect("a token"));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_beyond_the_targets_are_dropped_and_said_and_none_left_is_an_error() {
    with_broker(async |broker| {
        let token = broker.signed(&broker.runner());
        let platform = "https://www.googleapis.com/auth/cloud-platform";
        let broad = format!(
            "https://www.googleapis.com/auth/iam {platform} https://www.googleapis.com/auth/devstorage.full_control"
        );
        let (status, body) =
            broker.token(&[("audience", "vertex"), ("subject_token", &token), ("scope", &broad)]).await;
        assert_eq!((status, body["scope"].as_str()), (200, Some(platform)));
        let (status, body) =
            broker.token(&[("audience", "vertex"), ("subject_token", &token), ("scope", "openid")]).await;
        assert_eq!(
            (status, body["error"].as_str(), body["reason"].as_str()),
            (400, Some("invalid_scope"), Some("INVALID_REQUEST"))
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_and_an_id_token_can_be_asked_for() {
    with_broker(async |broker| {
        let token = broker.signed(&broker.runner());
        let job = [
            ("audience", "vertex"),
            ("subject_token", token.as_str()),
            ("job_id", "run-9"),
            ("job_name", "vision"),
            ("job_expected_duration", "9h"),
        ];
        let (_status, body) = broker.token(&job).await;
        assert_eq!(body["lifetime_bound"], "rule");
        let records = broker.audit_records();
        let recorded = records[0].job.as_ref().expect("a job");
        assert_eq!((recorded.id.as_str(), recorded.name.as_str()), ("run-9", "vision"));
        let id_token = "urn:ietf:params:oauth:token-type:id_token";
        let asked = [
            ("audience", "vertex"),
            ("subject_token", token.as_str()),
            ("requested_token_type", id_token),
            ("resource", "https://run.example"),
        ];
        let (status, body) = broker.token(&asked).await;
        assert_eq!(
            (status, body["token_type"].as_str(), body["issued_token_type"].as_str()),
            (200, Some("N_A"), Some(id_token))
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_exchange_is_refused_in_the_words_of_the_standard() {
    with_broker(async |broker| {
        let token = broker.signed(&broker.runner());
        let good = [("audience", "vertex"), ("subject_token", token.as_str())];
        for (change, error) in [
            (("grant_type", "client_credentials"), "unsupported_grant_type"),
            (("audience", ""), "invalid_request"),
            (("subject_token", ""), "invalid_request"),
            (("subject_token_type", "urn:ietf:params:oauth:token-type:saml2"), "invalid_request"),
            (("actor_token", "x"), "invalid_request"),
            (("resource", "https://x"), "invalid_request"),
            (("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), "invalid_request"),
            (("lifetime", "soon"), "invalid_request"),
        ] {
            let mut fields: Vec<_> = good.iter().copied().filter(|(name, _value)| *name != change.0).collect();
            fields.push(change);
            let (status, body) = broker.token(&fields).await;
            assert_eq!((status, body["error"].as_str()), (400, Some(error)), "{change:?}: {body}");
        }
        let twice =
            format!("grant_type={GRANT}&audience=vertex&audience=direct&subject_token=x&subject_token_type={JWT}");
        for (content_type, body) in [
            ("application/x-www-form-urlencoded", twice.as_str()),
            ("text/plain", "x"),
            ("application/json", "[1]"),
            ("application/json", "{\"audience\": 1}"),
            ("application/json", "{\"audience\":\"a\",\"audience\":\"b\"}"),
        ] {
            let request =
                reqwest::Client::new().post(format!("{}/v1/token", broker.http)).header("content-type", content_type);
            let answer = request.body(body.to_owned()).send().await.expect("an answer");
            assert_eq!(answer.status(), 400);
            let body: Value = answer.json().await.expect("JSON");
            assert_eq!((&body["error"], &body["reason"]), (&json!("invalid_request"), &json!("INVALID_REQUEST")));
            assert_eq!(body["exchange_id"].as_str().map(str::len), Some(36));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_is_asked_for_where_it_helps() {
    with_broker(async |broker| {
        broker.google.faults().always(
            "/v1/token",
            Fault::answer(http::StatusCode::SERVICE_UNAVAILABLE, &[("retry-after", "7")], "").expect("an answer"),
        );
        let token = broker.signed(&broker.runner());
        let form =
            [("grant_type", GRANT), ("audience", "vertex"), ("subject_token", &token), ("subject_token_type", JWT)];
        let answer = reqwest::Client::new()
            .post(format!("{}/v1/token", broker.http))
            .form(&form)
            .send()
            .await
            .expect("an answer");
        assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].as_bytes()), (503, b"7".as_slice()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_handed_out_can_be_asked_about_and_no_other() {
    with_broker(async |broker| {
        let answer = broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        let introspect = async |token: &str| -> Value {
            let answer = reqwest::Client::new()
                .post(format!("{}/v1/introspect", broker.http))
                .form(&[("token", token)])
                .send()
                .await;
            answer.expect("an answer").json().await.expect("JSON")
        };
        let known = introspect(&answer.credentials[0].token).await;
        assert_eq!((known["active"].as_bool(), known["username"].as_str()), (Some(true), Some(TRAINER)));
        assert_eq!(known["sub"], Value::Null, "who holds a token need not learn whom it was made for");
        assert_eq!(known["exchange_id"], answer.exchange_id);
        assert_eq!(introspect("ya29.c.made-up").await, json!({"active": false}));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_and_keys_are_what_the_clouds_read() {
    with_broker(async |broker| {
        let document = async |path: &str| -> Value {
            reqwest::get(format!("{}{path}", broker.http)).await.expect("an answer").json().await.expect("JSON")
        };
        let discovery = document("/.well-known/openid-configuration").await;
        assert_eq!(
            (discovery["issuer"].as_str(), discovery["jwks_uri"].as_str()),
            (Some(broker.http.as_str()), Some(format!("{}/keys", broker.http).as_str()))
        );
        let server = document("/.well-known/oauth-authorization-server").await;
        assert_eq!(server["grant_types_supported"], json!([GRANT]));
        let keys = document("/keys").await;
        let algorithms: Vec<&str> =
            keys["keys"].as_array().expect("keys").iter().filter_map(|key| key["alg"].as_str()).collect();
        assert_eq!(algorithms, ["ES256", "RS256"]);
        assert!(keys["keys"].as_array().expect("keys").iter().all(|key| key.get("d").is_none()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_metrics_are_served() {
    with_broker(async |broker| {
        broker.exchange(broker.request(&["vertex"])).await.expect("a credential");
        let text = async |path: &str| {
            let answer = reqwest::get(format!("{}{path}", broker.http)).await.expect("an answer");
            (answer.status().as_u16(), answer.text().await.expect("a text"))
        };
        assert_eq!(text("/healthz").await, (200, "ok\n".to_owned()));
        assert_eq!(text("/readyz").await.0, 200);
        let (_status, metrics) = text("/metrics").await;
        for name in [
            "carnet_exchanges_total",
            "carnet_cache_lookups_total",
            "carnet_upstream_requests_total",
            "carnet_entra_key_fetches_total",
            "carnet_audit_records_total",
        ] {
            assert!(metrics.contains(name), "{name} is not in the metrics");
        }
        assert!(!metrics.contains(TENANT) && !metrics.contains("vertex"), "labels name no tenant and no target");
    })
    .await;
}

/// Metrics are the process's: here of one that nobody else uses.
#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_say_how_much_is_kept_of_credentials_and_of_verified_tokens() {
    let mut broker = Broker::start_for(Setup::default()).await;
    let grpc = make_place(&mut broker).await;
    let process = Process::in_place_of(&broker).await;
    let mut client = TokenExchangeClient::connect(format!("http://{grpc}")).await.expect("a connection");
    let mut number = 0;
    let grown = async || {
        number += 1;
        let mut request = broker.request(&["vertex"]);
        request.job = Some(Job { id: format!("run-{number}"), ..Job::default() });
        let answer = client.exchange(request).await.expect("a credential").into_inner();
        broker.is_secret(&answer.credentials[0].token);
        let metrics = reqwest::get(format!("{}/metrics", process.http)).await.expect("an answer");
        let metrics = metrics.text().await.expect("a text");
        ["credentials", "google_federated", "subject"].iter().all(|cache| {
            let name = format!("carnet_cache_bytes{{cache=\"{cache}\"}} ");
            let bytes = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok());
            bytes.is_some_and(|bytes| bytes > 1000.0)
        })
    };
    eventually("that all three hold something", grown).await;
    drop(process);
    broker.no_secret_was_left_behind();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_its_limit_is_refused() {
    with_broker(async |broker| {
        let request = reqwest::Client::new()
            .post(format!("{}/v1/token", broker.http))
            .header("content-type", "application/x-www-form-urlencoded");
        let answer = request.body("x".repeat(1024 * 1024)).send().await.expect("an answer");
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!((status, body["reason"].as_str()), (400, Some("INVALID_REQUEST")));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_beyond_their_limit_are_refused() {
    with_broker(async |broker| {
        let request =
            reqwest::Client::new().get(format!("{}/healthz", broker.http)).header("x-long", "x".repeat(20_000));
        assert_eq!(request.send().await.expect("an answer").status(), 431);
    })
    .await;
}

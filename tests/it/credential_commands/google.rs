//! Google's external_account file and the program that it names, by the letter of the protocol; the real libraries are
//! tried elsewhere.

use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{credential, run_with, with_tools};
use crate::command_line::text;
use crate::support::{Broker, PROVIDER, TRAINER};

const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// Exit code 0 and a silent standard error, whatever the answer says.
async fn executable(broker: &Broker, arguments: &[&str], environment: &[(&str, &str)]) -> Value {
    let mut command = credential(broker, &["google-executable"]);
    command.args(arguments).envs(environment.iter().copied());
    let output = run_with(command, "").await;
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{arguments:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stdout)))
}

fn claims(token: &str) -> Value {
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1).expect("a payload")).expect("base64url");
    serde_json::from_slice(&payload).expect("claims")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_entra_token_is_printed_and_kept_in_the_output_file() {
    with_tools(async |broker| {
        let token = broker.signed(&broker.runner());
        // Outside of the broker's folder, which no token may be in.
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("answer");
        let expected = json!({
            "version": 1,
            "success": true,
            "token_type": JWT,
            "id_token": token,
            "expiration_time": claims(&token)["exp"],
        });
        let environment = [
            ("CARNET_SUBJECT_TOKEN", token.as_str()),
            ("GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE", file.to_str().expect("a path")),
            ("GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE", "vertex"),
            ("GOOGLE_EXTERNAL_ACCOUNT_TOKEN_TYPE", JWT),
            ("GOOGLE_EXTERNAL_ACCOUNT_INTERACTIVE", "0"),
        ];
        assert_eq!(executable(broker, &[], &environment).await, expected);
        let kept: Value = serde_json::from_slice(&std::fs::read(&file).expect("the file")).expect("JSON");
        assert_eq!(kept, expected);
        assert_eq!(std::fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
        // Google's library for Rust sets no variables.
        let id_token = "urn:ietf:params:oauth:token-type:id_token";
        let answer = executable(broker, &["--token-type", id_token], &environment[..1]).await;
        assert_eq!((&answer["token_type"], &answer["id_token"]), (&json!(id_token), &json!(token)));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_brokers_assertion_is_printed_recorded_and_taken_by_google() {
    with_tools(async |broker| {
        let answer = executable(broker, &["--assertion-for", "handed-out", "--google-audience", PROVIDER], &[]).await;
        let assertion = answer["id_token"].as_str().expect("a token");
        broker.is_secret(assertion);
        let said = claims(assertion);
        assert_eq!((said["aud"].as_str(), said["iss"].as_str()), (Some(PROVIDER), Some(broker.http.as_str())));
        assert_eq!(answer["expiration_time"], said["exp"]);
        assert_eq!(said["exp"].as_u64().zip(said["iat"].as_u64()).map(|(exp, iat)| exp - iat), Some(600));
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("audience", PROVIDER),
            ("scope", "https://www.googleapis.com/auth/cloud-platform"),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("subject_token_type", JWT),
            ("subject_token", assertion),
        ];
        let sts = format!("{}/v1/token", broker.google.sts_endpoint());
        let redeemed = reqwest::Client::new().post(sts).form(&form).send().await.expect("an answer");
        assert_eq!(redeemed.status(), 200);
        let records = broker.audit_records();
        let record = records.last().expect("a record");
        assert_eq!(record.attributes.get("issued_token_type").map(String::as_str), Some(JWT));
        let acts_as = record.attributes.get("acts_as").map(String::as_str).unwrap_or_default();
        assert!(acts_as.starts_with("principal://") && record.target == "handed-out", "{acts_as}");
        let introspect = format!("{}/v1/introspect", broker.http);
        let about = reqwest::Client::new().post(introspect).form(&[("token", assertion)]).send().await;
        let about: Value = about.expect("an answer").json().await.expect("JSON");
        assert_eq!((&about["active"], &about["exp"]), (&json!(true), &said["exp"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_in_the_answer_alone_and_never_kept() {
    with_tools(async |broker| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("answer");
        let path = file.to_str().expect("a path");
        let old = broker.signed(&broker.runner().claim("exp", 1_000_000_000));
        let foreign = broker.signed(&broker.runner().audience("api://other"));
        let nowhere = folder.path().join("none").join("answer");
        for (arguments, token, code, said) in [
            (&["--assertion-for", "no-such-target"][..], None, "DENIED", "denied (DENIED, exchange "),
            (&["--assertion-for", "grouped"], None, "DENIED", "denied (DENIED, exchange "),
            (&["--assertion-for", "vertex"], None, "FAILED", "does not hand out its assertion"),
            (&["--assertion-for", "azure-ml"], None, "FAILED", "does not hand out its assertion"),
            (&["--assertion-for", "handed-out", "--google-audience", "//other"], None, "FAILED", "write the file anew"),
            (&["--assertion-for", "handed-out"], Some(&foreign), "SUBJECT_TOKEN_REFUSED", "SUBJECT_TOKEN_AUDIENCE"),
            (
                &["--assertion-for", "handed-out", "--address", "http://127.0.0.1:1"],
                None,
                "UNAVAILABLE",
                "is it running",
            ),
            (&["--token-type", "urn:ietf:params:oauth:token-type:saml2"], None, "FAILED", "subject_token_type"),
            (&[], Some(&old), "FAILED", "has expired"),
            (&[], Some(&"opaque".to_owned()), "FAILED", "does not say when it ends"),
            (&["--subject-token-file", "/nowhere"], None, "FAILED", "cannot be read"),
            (&["--output-file", nowhere.to_str().expect("a path")], None, "FAILED", "cannot be written"),
        ] {
            let mut environment = vec![("GOOGLE_EXTERNAL_ACCOUNT_OUTPUT_FILE", path)];
            environment.extend(token.map(|token: &String| ("CARNET_SUBJECT_TOKEN", token.as_str())));
            let answer = executable(broker, arguments, &environment).await;
            let message = answer["message"].as_str().unwrap_or_default();
            assert_eq!(
                (&answer["success"], &answer["code"]),
                (&json!(false), &json!(code)),
                "{arguments:?}: {message}"
            );
            assert!(message.contains(said), "{arguments:?}: {message}");
            assert!(answer["token_type"].is_string() && answer.get("id_token").is_none(), "{answer}");
            assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0, "{arguments:?}");
        }
    })
    .await;
}

/// An answer's time has fractions of a second, an assertion's `exp` has none.
#[tokio::test(flavor = "multi_thread")]
async fn i25_an_assertion_is_called_good_until_it_ends_and_no_longer() {
    with_tools(async |broker| {
        let mut request = broker.request(&["handed-out"]);
        request.targets[0].requested_token_type = JWT.to_owned();
        let answer = broker.exchange(request).await.expect("an answer");
        let [assertion] = answer.credentials.as_slice() else { panic!("one credential") };
        let ends = assertion.expires_at.expect("a time");
        let exp = claims(&assertion.token)["exp"].as_i64().expect("a time");
        assert!((ends.seconds, ends.nanos) <= (exp, 0), "{ends:?} is after {exp}");
    })
    .await;
}

/// The token endpoint offers the assertion too, and says of other targets what it says of every wrong type.
#[tokio::test(flavor = "multi_thread")]
async fn the_token_endpoint_hands_out_an_assertion_where_the_target_says_so() {
    with_tools(async |broker| {
        let token = broker.signed(&broker.runner());
        for (target, scope, status, error, reason) in [
            ("handed-out", "", 200, None, None),
            ("handed-out", "openid email", 200, None, None),
            ("vertex", "", 400, Some("invalid_request"), Some("INVALID_REQUEST")),
            ("azure-ml", "", 400, Some("invalid_request"), Some("INVALID_REQUEST")),
            ("grouped", "", 400, Some("invalid_target"), Some("DENIED")),
            ("no-such-target", "", 400, Some("invalid_target"), Some("DENIED")),
        ] {
            let fields =
                [("audience", target), ("scope", scope), ("subject_token", &token), ("requested_token_type", JWT)];
            let (answered, body) = broker.token(&fields).await;
            assert_eq!((answered, body["error"].as_str(), body["reason"].as_str()), (status, error, reason), "{body}");
            if status == 200 {
                assert_eq!((&body["token_type"], &body["issued_token_type"]), (&json!("N_A"), &json!(JWT)));
                assert!(body.get("scope").is_none());
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_leads_googles_libraries_to_the_broker_or_to_google() {
    with_tools(async |broker| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("google.json");
        let write = async |arguments: &[&str]| {
            let mut command = credential(broker, &["google-config", "--output", path.to_str().expect("a path")]);
            command.args(arguments);
            let output = run_with(command, "").await;
            let file = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
            (output.status.code(), text(&output.stderr), file.unwrap_or_default())
        };
        let (code, said, file) = write(&["--target", "vertex"]).await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES=1") && said.contains("GOOGLE_CLOUD_PROJECT="));
        let program = env!("CARGO_BIN_EXE_carnet");
        let command = format!("{program} credential google-executable --address {}", broker.grpc_address());
        assert_eq!(
            file,
            json!({
                "type": "external_account",
                "audience": "vertex",
                "subject_token_type": JWT,
                "token_url": format!("{}/v1/token", broker.http),
                "token_info_url": format!("{}/v1/introspect", broker.http),
                "credential_source": {"executable": {"command": command, "timeout_millis": 45_000}},
            })
        );

        let (code, said, file) = write(&["--target", "vertex", "--subject-token-file", "/var/run/entra token"]).await;
        assert_eq!((code, &file["credential_source"]), (Some(0), &json!({"file": "/var/run/entra token"})), "{said}");
        assert!(!said.contains("ALLOW_EXECUTABLES"), "{said}");

        let (code, said, file) =
            write(&["--target", "handed-out", "--via", "google", "--token-lifetime", "30m", "--program", "carnet"])
                .await;
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(
            file,
            json!({
                "type": "external_account",
                "audience": PROVIDER,
                "subject_token_type": JWT,
                "token_url": "https://sts.googleapis.com/v1/token",
                "token_info_url": "https://sts.googleapis.com/v1/introspect",
                "service_account_impersonation_url": format!(
                    "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{TRAINER}:generateAccessToken"
                ),
                "service_account_impersonation": {"token_lifetime_seconds": 1800},
                "credential_source": {"executable": {
                    "command": format!(
                        "carnet credential google-executable --assertion-for handed-out --address {}",
                        broker.grpc_address()
                    ),
                    "timeout_millis": 45_000,
                }},
            })
        );
        // With the facts given, nobody is asked.
        let (code, said, file) =
            write(&["--target", "any", "--via", "google", "--provider", PROVIDER, "--address", "http://127.0.0.1:1"])
                .await;
        assert_eq!((code, file["audience"].as_str()), (Some(0), Some(PROVIDER)), "{said}");
        assert!(file.get("service_account_impersonation_url").is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_could_not_work_is_not_written_and_another_is_not_overwritten() {
    with_tools(async |broker| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key.json");
        std::fs::write(&path, r#"{"type": "service_account"}"#).expect("written");
        let arguments = |more: &[&str]| {
            let mut command = credential(broker, &["google-config", "--output", path.to_str().expect("a path")]);
            command.args(more);
            command
        };
        for (more, code, said) in [
            (&["--target", "vertex"][..], 1, "is no `external_account` file"),
            (
                &["--force", "--target", "vertex", "--http-address", "http://broker.example"],
                2,
                "must start with https://",
            ),
            (&["--force", "--target", "vertex", "--program", "/opt/my tools/carnet"], 2, "split at blanks"),
            (&["--force", "--target", "vertex", "--program", "/opt/'x'/carnet"], 2, "split at blanks"),
            (&["--force", "--target", "vertex", "--token-lifetime", "1h"], 2, "go with --via google"),
            (&["--force", "--target", "vertex", "--subject-token-file", "-"], 2, "standard input"),
            (
                &["--force", "--via", "google", "--target", "handed-out", "--subject-token-file", "-"],
                2,
                "standard input",
            ),
            (
                &["--force", "--via", "google", "--target", "handed-out", "--token-lifetime", "1m"],
                2,
                "between 10m and 12h",
            ),
            (&["--force", "--via", "google", "--target", "vertex"], 1, "Give --provider"),
            (&["--force", "--via", "google", "--target", "no-such-target"], 3, "Give --provider"),
        ] {
            let output = run_with(arguments(more), "").await;
            assert_eq!(output.status.code(), Some(code), "{more:?}: {}", text(&output.stderr));
            assert!(text(&output.stderr).contains(said), "{more:?}: {}", text(&output.stderr));
            assert_eq!(std::fs::read_to_string(&path).expect("the file"), r#"{"type": "service_account"}"#);
        }
        assert!(run_with(arguments(&["--force", "--target", "vertex"]), "").await.status.success());
        // From now on it is such a file.
        assert!(run_with(arguments(&["--target", "direct"]), "").await.status.success());
    })
    .await;
}

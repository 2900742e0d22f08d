use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::ManualClock;
use crate::subject_source::call::FakeWeb;
use crate::subject_source::{Environment, Fault};

const TENANT: &str = "11111111-1111-1111-1111-111111111111";

fn store(home: &Path) -> LoginStore {
    LoginStore::of(&Environment::of([("HOME", home.to_str().expect("text"))])).expect("a place")
}

fn login(refresh_token: &str) -> Login {
    let account = Account {
        name: "ada@example.com".to_owned(),
        authority: "https://login.microsoftonline.com".to_owned(),
        tenant: TENANT.to_owned(),
        client_id: "12121212-1212-1212-1212-121212121212".to_owned(),
        audience: "api://carnet".to_owned(),
    };
    Login { account, refresh_token: Secret::new(refresh_token) }
}

async fn saved(home: &Path, refresh_token: &str) -> LoginStore {
    let store = store(home);
    store.lock().await.expect("free").save(&login(refresh_token), Keep::File).await.expect("saved");
    store
}

async fn stored(store: &LoginStore) -> Result<String, LoginError> {
    store.lock().await?.load().await.map(|login| login.refresh_token.expose().to_owned())
}

fn answer(access: &str, refresh: &str) -> (u16, String) {
    let body =
        format!(r#"{{"token_type":"Bearer","expires_in":3600,"access_token":"{access}","refresh_token":"{refresh}"}}"#);
    (200, body)
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_login_is_kept_encrypted_for_its_owner_alone_and_gone_after_logout() {
    let home = tempfile::tempdir().expect("a folder");
    let store = saved(home.path(), "1.secret-refresh-token").await;
    assert_eq!(stored(&store).await.expect("a login"), "1.secret-refresh-token");
    assert_eq!(store.account().expect("readable"), Some((login("").account, Keep::File)));
    let kept = files(home.path());
    assert_eq!(kept.len(), 4, "{kept:?}");
    for file in &kept {
        assert_eq!(std::fs::metadata(file).expect("a file").permissions().mode() & 0o077, 0, "{}", file.display());
        let text = std::fs::read_to_string(file).expect("text");
        assert!(!text.contains("secret-refresh-token"), "{}", file.display());
    }
    assert!(store.lock().await.expect("free").remove().await.expect("removed"));
    assert_eq!(store.account().expect("readable"), None);
    assert_eq!(files(home.path()), [home.path().join(".local/share/carnet/login.lock")]);
    assert!(!store.lock().await.expect("free").remove().await.expect("removed"));
}

#[tokio::test]
async fn what_others_could_read_is_refused() {
    let home = tempfile::tempdir().expect("a folder");
    let store = saved(home.path(), "1.x").await;
    for file in [".local/share/carnet/login.json", ".local/share/carnet/login.sealed", ".config/carnet/login.key"] {
        let path = home.path().join(file);
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("changed");
            let error = stored(&store).await.expect_err("refused");
            assert!(matches!(&error, LoginError::Exposed { path: named } if *named == path), "{error}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("changed");
    }
    stored(&store).await.expect("a login");
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "says what was left out")]
async fn what_belongs_to_somebody_else_is_refused() {
    let home = tempfile::tempdir().expect("a folder");
    let store = saved(home.path(), "1.x").await;
    let key = home.path().join(".config/carnet/login.key");
    match std::os::unix::fs::chown(&key, Some(65_534), None) {
        Ok(()) => assert!(matches!(stored(&store).await, Err(LoginError::Foreign { .. }))),
        // Only the superuser gives files away, so nobody else can make the case.
        Err(_not_root) => eprintln!("left out: this needs to be run by root"),
    }
}

#[tokio::test]
async fn another_key_or_another_text_opens_nothing() {
    let home = tempfile::tempdir().expect("a folder");
    let store = saved(home.path(), "1.x").await;
    let sealed = home.path().join(".local/share/carnet/login.sealed");
    let other = tempfile::tempdir().expect("a folder");
    saved(other.path(), "1.y").await;
    std::fs::copy(other.path().join(".local/share/carnet/login.sealed"), &sealed).expect("copied");
    assert!(matches!(stored(&store).await, Err(LoginError::Damaged)));
}

#[tokio::test]
async fn a_new_login_has_a_new_key() {
    let home = tempfile::tempdir().expect("a folder");
    let key = || std::fs::read(home.path().join(".config/carnet/login.key")).expect("a key");
    let store = saved(home.path(), "1.x").await;
    let known_to_others = key();
    store.lock().await.expect("free").renew(&login("1.y")).await.expect("stored");
    assert_eq!(key(), known_to_others);
    saved(home.path(), "1.z").await;
    assert_ne!(key(), known_to_others);
    assert_eq!(stored(&store).await.expect("a login"), "1.z");
}

#[tokio::test]
async fn the_refresh_token_that_entra_gives_replaces_the_one_it_took() {
    let home = tempfile::tempdir().expect("a folder");
    let store = saved(home.path(), "1.first").await;
    let web = FakeWeb::answering([answer("token", "1.second")]);
    let fetched = fetch(&store, None, &web, &ManualClock::start()).await.expect("a token");
    assert_eq!(fetched.token.expose(), "token");
    assert_eq!(stored(&store).await.expect("a login"), "1.second");
    let asked = web.asked();
    assert!(
        asked[0].contains("refresh_token=1.first")
            && asked[0].contains("scope=api%3A%2F%2Fcarnet%2F.default+offline_access")
    );
}

#[tokio::test]
async fn of_two_at_once_the_second_redeems_what_the_first_was_given() {
    let home = tempfile::tempdir().expect("a folder");
    let store = saved(home.path(), "1.first").await;
    let web = Arc::new(FakeWeb::answering([answer("a", "1.second"), answer("b", "1.third")]));
    let clock = ManualClock::start();
    let (one, two) = tokio::join!(fetch(&store, None, web.as_ref(), &clock), fetch(&store, None, web.as_ref(), &clock));
    assert!(one.is_ok() && two.is_ok());
    let asked = web.asked();
    assert!(asked[0].contains("refresh_token=1.first") && asked[1].contains("refresh_token=1.second"));
    assert_eq!(stored(&store).await.expect("a login"), "1.third");
}

#[tokio::test]
async fn a_login_that_entra_ended_says_to_sign_in_again() {
    let home = tempfile::tempdir().expect("a folder");
    let store = saved(home.path(), "1.first").await;
    for code in [700_082, 50173, 70000, 65001] {
        let web = FakeWeb::answering([(400, format!(r#"{{"error":"invalid_grant","error_codes":[{code}]}}"#))]);
        let error = fetch(&store, None, &web, &ManualClock::start()).await.expect_err("refused");
        assert_eq!(error.fault(), Fault::Refused);
        assert!(error.to_string().contains("run `carnet login`"), "{error}");
    }
    // Nothing that the person can do alone.
    let web = FakeWeb::answering([(400, r#"{"error":"invalid_grant","error_codes":[50057]}"#)]);
    let error = fetch(&store, None, &web, &ManualClock::start()).await.expect_err("refused").to_string();
    assert!(error.contains("an administrator") && !error.contains("carnet login"), "{error}");
    assert_eq!(stored(&store).await.expect("a login"), "1.first");
}

const DEVICE: &str = r#"{"device_code":"dev","user_code":"ABCD12345","verification_uri":"https://microsoft.com/devicelogin","expires_in":"900","interval":5}"#;

fn sign_in() -> SignIn {
    SignIn {
        authority: "https://login.microsoftonline.com".parse().expect("a URL"),
        tenant: TENANT.to_owned(),
        client_id: uuid::Uuid::from_u128(0x1212),
        audience: "api://carnet".to_owned(),
        ca_file: None,
    }
}

fn refused(error: &str) -> (u16, String) {
    (400, format!(r#"{{"error":"{error}","error_codes":[1]}}"#))
}

async fn signing_in(answers: Vec<(u16, String)>) -> (Result<Login, SourceError>, Duration, usize) {
    let web = FakeWeb::answering(std::iter::once((200, DEVICE.to_owned())).chain(answers));
    let started = tokio::time::Instant::now();
    let mut shown = String::new();
    let result = sign_in().sign_in(&web, |prompt| shown = format!("{prompt:?}")).await;
    assert!(shown.contains("ABCD12345") && shown.contains("https://microsoft.com/devicelogin"), "{shown}");
    (result, started.elapsed(), web.asked().len() - 1)
}

#[tokio::test(start_paused = true)]
async fn polls_keep_the_pace_that_entra_asks_for() {
    let answers = vec![refused("authorization_pending"), refused("slow_down"), answer("token", "1.first")];
    let (login, took, polls) = signing_in(answers).await;
    assert_eq!(login.expect("a login").refresh_token.expose(), "1.first");
    assert_eq!((took.as_secs(), polls), (5 + 5 + 10, 3));
}

#[tokio::test(start_paused = true)]
async fn a_sign_in_that_fails_says_how() {
    for (error, expected) in [
        ("authorization_declined", "was declined"),
        ("access_denied", "was declined"),
        ("expired_token", "before the code ended"),
        ("bad_verification_code", "does not know the code"),
        ("invalid_client", "AADSTS1"),
    ] {
        let (result, _took, polls) = signing_in(vec![refused(error)]).await;
        let text = result.expect_err("refused").to_string();
        assert!(text.contains(expected), "{error}: {text}");
        assert_eq!(polls, 1);
    }
    // Nobody answers any more: the end of the code ends it.
    let (result, took, _polls) = signing_in(vec![]).await;
    assert!(matches!(result, Err(SourceError::Login(LoginError::Expired))));
    assert!(took <= Duration::from_secs(900));
    let body = r#"{"token_type":"Bearer","expires_in":3600,"access_token":"token"}"#;
    let (result, _took, _polls) = signing_in(vec![(200, body.to_owned())]).await;
    assert!(matches!(result, Err(SourceError::Login(LoginError::NoRefreshToken))));
}

#[tokio::test]
async fn nothing_that_could_steer_a_terminal_or_lead_astray_is_shown() {
    let leading_to = |uri: &str| DEVICE.replace("https://microsoft.com/devicelogin", uri);
    for hostile in [
        DEVICE.replace("ABCD12345", "\\u001b[2J"),
        leading_to("no url"),
        leading_to("http://microsoft.com/devicelogin"),
        leading_to("javascript:alert(1)"),
    ] {
        let web = FakeWeb::answering([(200, hostile)]);
        let result = sign_in().sign_in(&web, |_prompt| panic!("shown")).await;
        assert!(matches!(result, Err(SourceError::Login(LoginError::NoCode))));
    }
}

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::call::FakeWeb;
use super::held::Fetched;
use super::*;
use crate::clock::ManualClock;

const TENANT: &str = "11111111-1111-1111-1111-111111111111";
const CLIENT: &str = "33333333-3333-3333-3333-333333333333";
const AUDIENCE: &str = "api://carnet";

struct World {
    source: SubjectSource,
    web: Arc<FakeWeb>,
    clock: ManualClock,
}

impl World {
    fn of(settings: Settings, answers: Vec<(u16, String)>) -> Self {
        let (web, clock) = (Arc::new(FakeWeb::answering(answers)), ManualClock::start());
        let given = OnceCell::new_with(Some(web.clone() as Arc<dyn Web>));
        let source = SubjectSource::with(settings, Arc::new(clock.clone()), given);
        Self { source, web, clock }
    }

    fn with(variables: &[(&str, &str)], answers: Vec<(u16, String)>) -> Self {
        let environment = Environment::of(variables.iter().copied());
        Self::of(Settings { environment, ..Settings::default() }, answers)
    }

    async fn token(&self) -> String {
        self.source.token().await.expect("a token").expose().to_owned()
    }

    async fn error(&self) -> SourceError {
        self.source.token().await.expect_err("no token")
    }
}

fn token_of(name: &str, seconds: u64) -> (u16, String) {
    (200, format!(r#"{{"token_type":"Bearer","expires_in":{seconds},"access_token":"{name}"}}"#))
}

fn managed(name: &str, expires_on: &str) -> (u16, String) {
    (200, format!(r#"{{"token_type":"Bearer","expires_on":{expires_on},"access_token":"{name}"}}"#))
}

fn refused(code: u32) -> (u16, String) {
    (400, format!(r#"{{"error":"invalid_client","error_codes":[{code}],"error_description":"secret words"}}"#))
}

fn file_with(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    file
}

fn workload(file: &tempfile::NamedTempFile) -> [(&'static str, String); 4] {
    [
        ("AZURE_FEDERATED_TOKEN_FILE", file.path().to_str().expect("a path").to_owned()),
        ("AZURE_CLIENT_ID", CLIENT.to_owned()),
        ("AZURE_TENANT_ID", TENANT.to_owned()),
        ("CARNET_AUDIENCE", AUDIENCE.to_owned()),
    ]
}

fn in_cluster(file: &tempfile::NamedTempFile, answers: Vec<(u16, String)>) -> World {
    World::of(Settings { environment: Environment::of(workload(file)), ..Settings::default() }, answers)
}

#[tokio::test]
async fn the_first_source_that_is_configured_is_used_and_its_failure_is_the_error() {
    let file = file_with(" of the file\n");
    let path = file.path().to_str().expect("a path");
    let both = [("CARNET_SUBJECT_TOKEN", "of the variable"), ("CARNET_SUBJECT_TOKEN_FILE", path)];
    assert_eq!(World::with(&both, vec![]).token().await, "of the file");
    let missing = [("CARNET_SUBJECT_TOKEN", "of the variable"), ("CARNET_SUBJECT_TOKEN_FILE", "/no/such/file")];
    assert!(matches!(World::with(&missing, vec![]).error().await, SourceError::File { .. }));
    let empty = [("CARNET_SUBJECT_TOKEN", " "), ("AZURE_FEDERATED_TOKEN_FILE", path)];
    assert!(matches!(World::with(&empty, vec![]).error().await, SourceError::Empty));
}

#[tokio::test]
async fn a_file_is_read_at_each_use_and_only_so_far() {
    let file = file_with("one");
    let world = World::with(&[("CARNET_SUBJECT_TOKEN_FILE", file.path().to_str().expect("a path"))], vec![]);
    assert_eq!(world.token().await, "one");
    std::fs::write(file.path(), "two\n").expect("written");
    assert_eq!(world.token().await, "two");
    std::fs::write(file.path(), "x".repeat(65 * 1024)).expect("written");
    assert!(format!("{:?}", world.error().await).contains("larger than"), "{:?}", world.error().await);
}

#[tokio::test]
async fn a_source_is_chosen_by_name_and_refused_by_name() {
    let file = file_with("of the file");
    let path = file.path().to_str().expect("a path");
    let named = |name| {
        World::with(
            &[
                ("CARNET_SUBJECT_TOKEN", "of the variable"),
                ("CARNET_SUBJECT_TOKEN_FILE", path),
                ("CARNET_SUBJECT_SOURCE", name),
            ],
            vec![],
        )
    };
    assert_eq!(named("environment").token().await, "of the variable");
    let absent = named("workload-identity").error().await;
    assert_eq!(absent.fault(), Fault::Usage);
    assert!(absent.to_string().contains("set AZURE_FEDERATED_TOKEN_FILE"), "{absent}");
    let unknown = named("kubernetes").error().await;
    assert!(unknown.to_string().contains("file, environment, workload-identity"), "{unknown}");
}

#[tokio::test]
async fn without_any_source_each_is_listed() {
    let error = World::with(&[], vec![]).error().await;
    assert_eq!(error.fault(), Fault::Usage);
    for name in CHAIN {
        assert!(error.to_string().contains(&name.to_string()), "{error}");
    }
}

#[tokio::test]
async fn workload_identity_redeems_the_projected_token() {
    let file = file_with("projected\n");
    let world = in_cluster(&file, vec![token_of("entra", 3600)]);
    assert_eq!(world.token().await, "entra");
    let asked = world.web.asked();
    let expected = format!("POST https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token");
    assert!(asked[0].starts_with(&expected), "{}", asked[0]);
    for field in [
        "grant_type=client_credentials",
        "client_assertion=projected",
        "scope=api%3A%2F%2Fcarnet%2F.default",
        &format!("client_id={CLIENT}"),
    ] {
        assert!(asked[0].contains(field), "{field} is not in {}", asked[0]);
    }
}

#[tokio::test]
async fn what_a_source_lacks_is_named() {
    let with = |variables: &[(&str, &str)]| World::with(variables, vec![]);
    for (variables, expected) in [
        (&[("AZURE_FEDERATED_TOKEN_FILE", "/x")][..], "AZURE_CLIENT_ID and AZURE_TENANT_ID"),
        (
            &[("AZURE_FEDERATED_TOKEN_FILE", "/x"), ("AZURE_CLIENT_ID", CLIENT), ("AZURE_TENANT_ID", TENANT)],
            "set CARNET_AUDIENCE",
        ),
        (
            &[("AZURE_FEDERATED_TOKEN_FILE", "/x"), ("AZURE_CLIENT_ID", CLIENT), ("AZURE_TENANT_ID", "a/../b")],
            "AZURE_TENANT_ID must be",
        ),
        (
            &[("AZURE_FEDERATED_TOKEN_FILE", "/x"), ("AZURE_CLIENT_ID", CLIENT), ("AZURE_TENANT_ID", ".")],
            "AZURE_TENANT_ID must be",
        ),
        (
            &[
                ("AZURE_FEDERATED_TOKEN_FILE", "/x"),
                ("AZURE_CLIENT_ID", CLIENT),
                ("AZURE_TENANT_ID", TENANT),
                ("AZURE_AUTHORITY_HOST", "http://login.example.com"),
            ],
            "AZURE_AUTHORITY_HOST must start with https://",
        ),
        (&[("IDENTITY_ENDPOINT", "http://127.0.0.1:1/msi"), ("CARNET_AUDIENCE", AUDIENCE)], "IDENTITY_HEADER"),
        (&[("IDENTITY_ENDPOINT", "http://127.0.0.1:1/msi"), ("IDENTITY_HEADER", "x")], "set CARNET_AUDIENCE"),
        (
            &[("IDENTITY_ENDPOINT", "http://10.0.0.1/msi"), ("IDENTITY_HEADER", "x"), ("CARNET_AUDIENCE", AUDIENCE)],
            "IDENTITY_ENDPOINT must start with https://",
        ),
        (
            &[("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://example.com"), ("CARNET_AUDIENCE", AUDIENCE)],
            "AZURE_POD_IDENTITY_AUTHORITY_HOST must",
        ),
    ] {
        let error = with(variables).error().await;
        assert!(error.to_string().contains(expected), "{variables:?}: {error}");
        assert_eq!(error.fault(), Fault::Usage, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_entra_refusal_says_what_to_change_and_nothing_of_its_own_words() {
    let file = file_with("projected");
    let world = in_cluster(&file, vec![refused(700_213)]);
    let error = world.error().await;
    assert_eq!(error.fault(), Fault::Refused);
    let text = error.to_string();
    assert!(text.contains("AADSTS700213") && text.contains("subject") && !text.contains("secret words"), "{text}");
    assert_eq!(world.web.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn passing_faults_are_tried_again_and_given_up_in_the_end() {
    let file = file_with("projected");
    let failing = (503, String::new());
    let world = in_cluster(&file, vec![failing.clone(), refused(90033), refused(50196), token_of("entra", 3600)]);
    assert_eq!(world.token().await, "entra");
    let world = in_cluster(&file, vec![failing; 9]);
    assert_eq!(world.error().await.fault(), Fault::Unavailable);
    assert_eq!(world.web.asked().len(), 5);
}

#[tokio::test]
async fn an_assertion_outside_its_validity_is_read_anew_once() {
    let file = file_with("projected");
    let world = in_cluster(&file, vec![refused(700_024), token_of("entra", 3600)]);
    assert_eq!(world.token().await, "entra");
    let world = in_cluster(&file, vec![refused(700_024), refused(700_024), token_of("entra", 3600)]);
    assert!(world.error().await.to_string().contains("clock"));
}

/// `expires_on` of the answers is relative to `ManualClock::start`.
const START: u64 = 1_767_225_600;

#[tokio::test]
async fn each_managed_identity_endpoint_is_asked_in_its_own_protocol() {
    let audience = ("CARNET_AUDIENCE", AUDIENCE);
    for (variables, expected) in [
        (
            &[
                ("IDENTITY_ENDPOINT", "http://127.0.0.1:1/msi/token"),
                ("IDENTITY_HEADER", "h"),
                ("AZURE_CLIENT_ID", CLIENT),
                audience,
            ][..],
            &["GET http://127.0.0.1:1/msi/token?api-version=2019-08-01&", "x-identity-header: h", "client_id=3333"][..],
        ),
        (
            &[
                ("MSI_ENDPOINT", "http://127.0.0.1:2/MSI/auth"),
                ("MSI_SECRET", "s"),
                ("DEFAULT_IDENTITY_CLIENT_ID", CLIENT),
                ("AZURE_CLIENT_ID", "other"),
                audience,
            ],
            &["GET http://127.0.0.1:2/MSI/auth?api-version=2017-09-01&", "secret: s", "clientid=3333"],
        ),
        (
            &[("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:3/"), audience],
            &["GET http://127.0.0.1:3/metadata/identity/oauth2/token?api-version=2018-02-01&", "metadata: true"],
        ),
    ] {
        let text = format!("\"{}\"", START + 3600);
        let world = World::with(variables, vec![managed("of-the-machine", &text)]);
        assert_eq!(world.token().await, "of-the-machine");
        let asked = world.web.asked();
        for part in expected.iter().chain(&["resource=api%3A%2F%2Fcarnet"]) {
            assert!(asked[0].contains(part), "{part} is not in {}", asked[0]);
        }
    }
}

#[tokio::test]
async fn only_azures_metadata_service_counts_as_one() {
    let variables = [("CARNET_AUDIENCE", AUDIENCE)];
    let world =
        World::with(&variables, vec![(400, String::new()), managed("of-the-machine", &format!("{}", START + 3600))]);
    assert_eq!(world.token().await, "of-the-machine");
    assert!(world.web.asked()[0].starts_with("GET http://169.254.169.254/metadata/identity/oauth2/token?"));
    assert!(!world.web.asked()[0].contains("metadata: true"));
    for elsewhere in [403, 404, 200] {
        let world = World::with(&variables, vec![(elsewhere, String::new())]);
        assert!(matches!(world.error().await, SourceError::Nowhere), "{elsewhere}");
    }
    for busy in [410, 429, 500, 503] {
        let later = managed("of-the-machine", &format!("{}", START + 3600));
        let world = World::with(&variables, vec![(busy, String::new()), later]);
        assert_eq!(world.token().await, "of-the-machine", "{busy}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_metadata_service_is_tried_five_times() {
    let variables = [("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:3"), ("CARNET_AUDIENCE", AUDIENCE)];
    let started = tokio::time::Instant::now();
    let last = managed("of-the-machine", &format!("{}", START + 86_400));
    let world = World::with(
        &variables,
        [404, 410, 429, 500].map(|status| (status, String::new())).into_iter().chain([last]).collect(),
    );
    assert_eq!(world.token().await, "of-the-machine");
    assert_eq!(started.elapsed(), Duration::from_secs(30));
    let world = World::with(&variables, vec![(400, r#"{"error":"invalid_request"}"#.to_owned())]);
    let error = world.error().await;
    assert!(error.to_string().contains("set AZURE_CLIENT_ID"), "{error}");
}

#[tokio::test]
async fn a_token_is_held_until_its_last_five_minutes_and_a_long_one_until_half_way() {
    let file = file_with("projected");
    for (life, kept_for) in [(3600, 3300), (86_400, 43_200)] {
        let world = in_cluster(&file, vec![token_of("one", life), token_of("two", life)]);
        assert_eq!(world.token().await, "one");
        world.clock.advance(Duration::from_secs(kept_for - 1));
        assert_eq!(world.token().await, "one");
        assert_eq!(world.web.asked().len(), 1);
        world.clock.advance(Duration::from_secs(1));
        // The good one is given while the next is on its way.
        assert_eq!(world.token().await, "one");
        while world.web.asked().len() < 2 {
            tokio::task::yield_now().await;
        }
        while world.token().await == "one" {
            tokio::task::yield_now().await;
        }
        assert_eq!((world.token().await.as_str(), world.web.asked().len()), ("two", 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_keeps_the_good_token_until_it_ends() {
    let file = file_with("projected");
    let world = in_cluster(&file, vec![token_of("one", 3600), refused(700_213), refused(700_213)]);
    assert_eq!(world.token().await, "one");
    world.clock.advance(Duration::from_secs(3400));
    while world.web.asked().len() < 2 {
        assert_eq!(world.token().await, "one");
        tokio::task::yield_now().await;
    }
    assert_eq!(world.token().await, "one");
    world.clock.advance(Duration::from_secs(200));
    assert_eq!(world.error().await.fault(), Fault::Refused);
}

#[tokio::test(start_paused = true)]
async fn callers_who_ask_at_once_share_one_fetch_even_when_the_first_goes_away() {
    let clock = Arc::new(ManualClock::start());
    let (held, fetches) = (Arc::new(Held::new(clock.clone())), Arc::new(AtomicUsize::new(0)));
    let ask = || {
        let (held, fetches, clock) = (held.clone(), fetches.clone(), clock.clone());
        async move {
            let fetch = || async move {
                fetches.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                let expires_at = clock.now() + Duration::from_secs(3600);
                Ok(Fetched { token: Secret::new("shared"), expires_at })
            };
            held.token(SourceName::AzureCli, fetch).await
        }
    };
    let first = tokio::time::timeout(Duration::from_millis(10), ask());
    assert!(first.await.is_err());
    let (one, two) = tokio::join!(ask(), ask());
    assert_eq!((one.expect("a token").expose(), two.expect("a token").expose()), ("shared", "shared"));
    assert_eq!(fetches.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_fetch_that_panics_is_not_waited_for_ever_after() {
    let clock = Arc::new(ManualClock::start());
    let held = Held::new(clock.clone());
    let broken = || async { panic!("a fault of the program") };
    assert!(matches!(held.token(SourceName::Login, broken).await, Err(SourceError::Unavailable { .. })));
    let expires_at = clock.now() + Duration::from_secs(3600);
    let good = || async move { Ok(Fetched { token: Secret::new("good"), expires_at }) };
    assert_eq!(held.token(SourceName::Login, good).await.expect("a token").expose(), "good");
}

#[test]
fn a_token_ends_when_it_says_itself_or_its_giver_says_whichever_is_sooner() {
    use base64::Engine as _;
    let payload = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(r#"{"exp":1767225700}"#);
    let token = || Secret::new(format!("e30.{payload}.sig"));
    let at = |seconds| crate::clock::from_unix_seconds(seconds);
    let expiry = |said| Fetched::new(token(), said).map(|fetched| fetched.expires_at);
    assert_eq!(expiry(None), at(1_767_225_700));
    assert_eq!(expiry(at(1_767_225_650)), at(1_767_225_650));
    assert_eq!(expiry(at(1_767_225_900)), at(1_767_225_700));
    assert!(Fetched::new(Secret::new("opaque"), None).is_none());
}

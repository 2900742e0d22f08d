use http::Request;

use super::*;

#[tokio::test(start_paused = true)]
async fn w19_ready_is_who_can_hand_out_every_credential_now() {
    let world = World::empty();
    let readiness = async || world.ask(Request::get("/readyz")).await;
    let (status, _headers, missing) = readiness().await;
    assert_eq!(status, 503);
    for target in ["azure-ml", "azure-storage", "vertex", "bigquery"] {
        assert!(missing.contains(target), "{missing}");
    }
    let good = World::new();
    assert_eq!(good.ask(Request::get("/readyz")).await.0, 200);
    good.refuses("vertex", Refusal::denied("denied (DENIED)"));
    assert_eq!(good.ask(Request::get("/readyz")).await.0, 200, "what is held is good");
    good.clock.advance(Duration::from_secs(2 * 3600));
    let (status, _headers, missing) = good.ask(Request::get("/readyz")).await;
    assert_eq!(status, 503);
    assert!(missing.contains("bigquery: the broker's credential is over already"), "{missing}");
    good.live_anew();
    good.refuses("vertex", Refusal::denied("denied (DENIED)"));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (status, _headers, missing) = good.ask(Request::get("/readyz")).await;
    assert_eq!((status, missing.as_str()), (503, "vertex: denied (DENIED)"));
}

#[tokio::test(start_paused = true)]
async fn paths_that_are_nobodys_are_404_at_once_before_anything_is_known() {
    let world = World::empty();
    let began = tokio::time::Instant::now();
    for path in [
        "/metadata/identity/getplatformmetadata?cred-api-version=2.0",
        "/metadata/identity/issuecredential?cred-api-version=2.0",
        "/metadata/instance?api-version=2021-02-01",
        "/latest/meta-data/",
        "/msi/token/more",
        "/computeMetadata/v2/",
        "/v1/token",
    ] {
        let asked = Request::get(path).header("Metadata", "true").header("Metadata-Flavor", "Google");
        assert_eq!(world.ask(asked).await.0, 404, "{path}");
    }
    assert_eq!(world.ask(Request::get("/healthz")).await.0, 200);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

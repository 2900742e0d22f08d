//! Cloud Storage: who may list a bucket, and how the others are refused.

use super::*;

const BUCKET: &str = "training-data";

async fn world_with_bucket() -> World {
    let world = world().await;
    world.google.bind(ACCOUNT, PRINCIPAL);
    world.google.add_object(BUCKET, "a.csv");
    world.google.add_object(BUCKET, "b.csv");
    world.google.let_read(BUCKET, &format!("serviceAccount:{ACCOUNT}"));
    world
}

impl World {
    async fn list(&self, bucket: &str, token: &str) -> (StatusCode, Value) {
        let url = format!("{}/storage/v1/b/{bucket}/o", self.google.storage_endpoint());
        send(self.http.get(url).bearer_auth(token)).await
    }

    async fn impersonated(&self) -> String {
        let (status, body) = self.access_token(&self.federated().await, "600s").await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body["accessToken"].as_str().unwrap().to_owned()
    }
}

#[track_caller]
fn assert_refused((status, body): &(StatusCode, Value), expected: StatusCode, reason: &str) {
    assert_eq!((*status, &body["error"]["errors"][0]["reason"]), (expected, &json!(reason)), "{body}");
    assert_eq!(body["error"]["code"], json!(expected.as_u16()));
}

#[tokio::test]
async fn an_account_and_a_principal_with_a_grant_see_the_objects() {
    let world = world_with_bucket().await;
    let (status, body) = world.list(BUCKET, &world.impersonated().await).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let names: Vec<&Value> = body["items"].as_array().unwrap().iter().map(|item| &item["name"]).collect();
    assert_eq!(names, ["a.csv", "b.csv"]);
    let federated = world.federated().await;
    let answer = world.list(BUCKET, &federated).await;
    assert_refused(&answer, StatusCode::FORBIDDEN, "forbidden");
    world.google.let_read(BUCKET, &format!("{POOL_SET}/*"));
    let (_, body) = world.list(BUCKET, &federated).await;
    assert_eq!(body["items"][0]["bucket"], json!(BUCKET));
}

#[tokio::test]
async fn only_live_tokens_of_this_google_count() {
    let world = world_with_bucket().await;
    let token = world.impersonated().await;
    let anonymous = world.http.get(format!("{}/storage/v1/b/{BUCKET}/o", world.google.storage_endpoint()));
    assert_refused(&send(anonymous).await, StatusCode::UNAUTHORIZED, "required");
    let answer = world.list(BUCKET, "ya29.c.made-up").await;
    assert_refused(&answer, StatusCode::UNAUTHORIZED, "authError");
    world.clock.advance(std::time::Duration::from_secs(599));
    assert_eq!(world.list(BUCKET, &token).await.0, StatusCode::OK);
    world.google.delete_service_account(ACCOUNT);
    assert_refused(&world.list(BUCKET, &token).await, StatusCode::UNAUTHORIZED, "authError");
    world.google.add_service_account(ACCOUNT);
    world.clock.advance(std::time::Duration::from_secs(1));
    assert_refused(&world.list(BUCKET, &token).await, StatusCode::UNAUTHORIZED, "authError");
}

#[tokio::test]
async fn a_token_without_a_scope_of_storage_or_for_another_bucket_is_refused() {
    let world = world_with_bucket().await;
    let body = json!({"scope": ["https://www.googleapis.com/auth/bigquery"], "lifetime": "600s"});
    let (_, answer) = world.generate("generateAccessToken", &world.federated().await, &body).await;
    let answer = world.list(BUCKET, answer["accessToken"].as_str().unwrap()).await;
    assert_refused(&answer, StatusCode::FORBIDDEN, "insufficientPermissions");
    let answer = world.list("absent", &world.impersonated().await).await;
    assert_refused(&answer, StatusCode::FORBIDDEN, "forbidden");
    assert!(answer.1["error"]["message"].as_str().unwrap().starts_with(ACCOUNT), "{}", answer.1);
}

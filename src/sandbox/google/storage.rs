//! Cloud Storage: `objects.list` of its JSON API, for whoever holds a live token of this Google and a grant on the bucket.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use serde::Deserialize;
use serde_json::{Value, json};

use super::project::Project;
use super::sts::bearer;

/// Without pages: all objects are on the first.
#[derive(Deserialize)]
pub(super) struct Listing {
    #[serde(default)]
    prefix: String,
}

pub(super) async fn list(
    State(project): State<Arc<Project>>,
    Path(bucket): Path<String>,
    Query(listing): Query<Listing>,
    headers: HeaderMap,
) -> Response {
    match objects(&project, &bucket, &listing, &headers) {
        Ok(body) => Json(body).into_response(),
        Err(error) => error.into_response(),
    }
}

fn objects(project: &Project, name: &str, listing: &Listing, headers: &HeaderMap) -> Result<Value, StorageError> {
    if !headers.contains_key(AUTHORIZATION) {
        return Err(StorageError::unauthorized("required", denied("Anonymous caller")));
    }
    let caller = bearer(project, headers);
    let caller = caller.ok_or_else(|| StorageError::unauthorized("authError", "Invalid Credentials".to_owned()))?;
    if !caller.scopes.iter().any(|scope| SCOPES.contains(&scope.as_str())) {
        let message = "Request had insufficient authentication scopes.".to_owned();
        return Err(StorageError::forbidden("insufficientPermissions", message));
    }
    let bucket = project.bucket(name);
    // Whoever may not read a bucket is not told that there is none.
    let is_granted = |reader: &String| caller.members().contains(reader);
    let Some(bucket) = bucket.filter(|bucket| bucket.readers.iter().any(is_granted)) else {
        let who = caller.service_account.as_ref().unwrap_or(&caller.principal);
        return Err(StorageError::forbidden("forbidden", denied(who)));
    };
    let found = bucket.objects.iter().filter(|object| object.starts_with(&listing.prefix));
    let items: Vec<Value> = found
        .map(|object| {
            json!({
                "kind": "storage#object", "id": format!("{name}/{object}/1"), "name": object, "bucket": name,
                "generation": "1", "metageneration": "1", "size": "0", "storageClass": "STANDARD",
            })
        })
        .collect();
    Ok(json!({"kind": "storage#objects", "items": items}))
}

fn denied(who: &str) -> String {
    format!(
        "{who} does not have storage.objects.list access to the Google Cloud Storage bucket. Permission \
         'storage.objects.list' denied on resource (or it may not exist)."
    )
}

/// A refusal in the form of the JSON API, which is older than `google.rpc.Status`.
struct StorageError {
    status: StatusCode,
    reason: &'static str,
    message: String,
}

impl StorageError {
    fn unauthorized(reason: &'static str, message: String) -> Self {
        Self { status: StatusCode::UNAUTHORIZED, reason, message }
    }

    fn forbidden(reason: &'static str, message: String) -> Self {
        Self { status: StatusCode::FORBIDDEN, reason, message }
    }
}

impl IntoResponse for StorageError {
    fn into_response(self) -> Response {
        let one = json!({"message": self.message, "domain": "global", "reason": self.reason});
        let error = json!({"code": self.status.as_u16(), "message": self.message, "errors": [one]});
        let mut answer = (self.status, Json(json!({"error": error}))).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(WWW_AUTHENTICATE, http::HeaderValue::from_static(CHALLENGE));
        }
        answer
    }
}

/// Those that reach `objects.list`.
const SCOPES: [&str; 5] = [
    "https://www.googleapis.com/auth/cloud-platform",
    "https://www.googleapis.com/auth/cloud-platform.read-only",
    "https://www.googleapis.com/auth/devstorage.full_control",
    "https://www.googleapis.com/auth/devstorage.read_only",
    "https://www.googleapis.com/auth/devstorage.read_write",
];
const CHALLENGE: &str = "Bearer realm=\"https://accounts.google.com/\", error=\"invalid_token\"";

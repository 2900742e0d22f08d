//! How people sign in: `POST /{tenant}/oauth2/v2.0/devicecode`, the page that takes the code, and the two grants after it.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use super::directory::Directory;
use super::people::{DEVICE_CODE_LIFE, NotYet, Person, REFRESH_TOKEN_LIFE, Session};
use super::refusal::{Correlation, Refusal, answer};
use super::registry::{Identity, IdentityKind};
use super::token::EntraToken;
use super::token_endpoint::{Form, GrantType, Requested, authenticate, identity, respond};
use crate::sandbox::calls::fields;

pub(super) async fn devicecode(
    State(directory): State<Arc<Directory>>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match begin(&directory, &tenant, &headers, &body) {
        Ok(body) => answer(StatusCode::OK, &body, Correlation::of(&headers)),
        Err(refusal) => refusal.into_response(&directory, &headers),
    }
}

fn begin(directory: &Directory, tenant: &str, headers: &HeaderMap, body: &Bytes) -> Result<Value, Refusal> {
    let form = Form::parse(headers, body)?;
    let identity = identity(directory, tenant, form.required("client_id")?)?;
    let scope = form.required("scope")?;
    Requested::parse(directory, tenant, GrantType::DeviceCode, scope)?;
    let people = directory.people();
    let (device_code, user_code) = people.begin(Session {
        tenant: identity.tenant,
        client_id: identity.client_id,
        scope: scope.to_owned(),
        object_id: String::new(),
        since: directory.now(),
        is_revoked: false,
    });
    let uri = format!("{}/devicelogin", directory.authority());
    Ok(json!({
        "user_code": user_code,
        "device_code": device_code,
        "verification_uri": uri,
        "expires_in": DEVICE_CODE_LIFE.as_secs(),
        "interval": people.interval().as_secs(),
        "message": format!(
            "To sign in, use a web browser to open the page {uri} and enter the code {user_code} to authenticate."
        ),
    }))
}

/// What stands for microsoft.com/devicelogin, for a browser.
pub(super) async fn page() -> Html<&'static str> {
    Html(
        "<!doctype html><title>Sign in (carnet sandbox)</title><form method=post>Code: <input name=user_code autofocus> \
         <button>Sign in</button> <button name=decline value=1>Decline</button></form>",
    )
}

/// `user_code`, and `user` (an object id) where the tenant has several people; `decline` declines.
pub(super) async fn decide(State(directory): State<Arc<Directory>>, body: Bytes) -> Response {
    let fields = fields(&body);
    let field = |name: &str| fields.iter().find(|(key, _value)| key == name).map(|(_key, value)| value.as_str());
    let code = field("user_code").unwrap_or_default();
    let approve = field("decline").is_none();
    match (directory.people().decide(code, field("user"), approve, directory.now()), approve) {
        (true, true) => "You have signed in. You may now close this window.\n".into_response(),
        (true, false) => "You have declined.\n".into_response(),
        (false, _) => {
            (StatusCode::BAD_REQUEST, "That code did not work, or there is no such person.\n").into_response()
        }
    }
}

/// The grants of a client that a person signed in to.
pub(super) async fn grant(
    directory: &Arc<Directory>,
    identity: &Identity,
    grant_type: GrantType,
    form: &Form,
) -> Result<Value, Refusal> {
    if !identity.is_public {
        authenticate(directory, identity, form).await?;
    } else if form.optional("client_secret").or(form.optional("client_assertion")).is_some() {
        return Err(Refusal::new(
            700_025,
            "Client is public so neither 'client_assertion' nor 'client_secret' should be presented.",
        ));
    }
    let session = match grant_type {
        GrantType::DeviceCode => by_device_code(directory, identity, form)?,
        _ => by_refresh_token(directory, identity, form)?,
    };
    let request = Requested::parse(directory, &identity.tenant, grant_type, &session.scope)?;
    if !identity.may_call.contains(&request.resource.client_id) {
        return Err(Refusal::new(
            65001,
            format!(
                "The user or administrator has not consented to use the application with ID '{}'. Send an interactive \
                 authorization request for this user and resource.",
                identity.client_id
            ),
        ));
    }
    if directory.requires_interaction(&session.object_id) {
        return Err(Refusal::interaction(&request.resource.client_id));
    }
    let person = directory.people().find(&session.tenant, &session.object_id);
    let person = person.ok_or_else(|| Refusal::new(50034, "The user account does not exist in the directory."))?;
    Ok(signed_in(directory, identity, &person, session, &request))
}

fn by_device_code(directory: &Directory, identity: &Identity, form: &Form) -> Result<Session, Refusal> {
    let (tenant, client_id) = (&identity.tenant, &identity.client_id);
    let redeemed = directory.people().redeem(form.required("device_code")?, tenant, client_id, directory.now());
    redeemed.map_err(|not_yet| match not_yet {
        NotYet::Pending => {
            Refusal::new(70016, "OAuth 2.0 device flow error. Authorization is pending. Continue polling.")
        }
        NotYet::TooSoon => Refusal::slow_down(),
        NotYet::Declined => Refusal::new(65004, "User declined to consent to access the app."),
        NotYet::Expired => Refusal::new(70020, "The provided value for the input parameter 'device_code' has expired."),
        NotYet::Unknown => {
            Refusal::new(70018, "The provided value for the input parameter 'device_code' is not valid.")
        }
    })
}

fn by_refresh_token(directory: &Directory, identity: &Identity, form: &Form) -> Result<Session, Refusal> {
    let token = form.required("refresh_token")?;
    let session = directory.people().session(token).filter(|session| {
        session.client_id == identity.client_id && session.tenant.eq_ignore_ascii_case(&identity.tenant)
    });
    let Some(session) = session else {
        return Err(Refusal::new(70000, "Provided grant is invalid or malformed."));
    };
    if session.is_revoked {
        return Err(Refusal::new(
            50173,
            "The provided grant has expired due to it being revoked, a fresh auth token is needed.",
        ));
    }
    if directory.now() >= session.since + REFRESH_TOKEN_LIFE {
        return Err(Refusal::new(700_082, "The refresh token has expired due to inactivity."));
    }
    directory.people().forget(token);
    let scope = form.optional("scope").map_or(session.scope, ToOwned::to_owned);
    Ok(Session { scope, since: directory.now(), ..session })
}

fn signed_in(
    directory: &Arc<Directory>,
    identity: &Identity,
    person: &Person,
    session: Session,
    request: &Requested,
) -> Value {
    let of_the_person = || {
        EntraToken::for_user(Arc::clone(directory), &session.tenant, &person.object_id)
            .client(&identity.client_id)
            .claim("preferred_username", person.name.clone())
    };
    let mut token = of_the_person();
    if request.resource.client_id == directory.default_audience() && !person.roles.is_empty() {
        token = token.roles(person.roles.clone());
    }
    let mut body = respond(token, IdentityKind::App, request);
    let wants = |scope: &str| session.scope.split_ascii_whitespace().any(|one| one == scope);
    if let Value::Object(members) = &mut body {
        members.insert("scope".to_owned(), json!(session.scope));
        if wants("openid") {
            let id_token = of_the_person().audience(identity.client_id.clone()).without("scp").sign();
            members.insert("id_token".to_owned(), json!(id_token));
        }
        if wants("offline_access") {
            let refresh_token = directory.people().remember(session);
            members.insert("refresh_token".to_owned(), json!(refresh_token));
        }
    }
    body
}

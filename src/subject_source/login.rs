//! The person who signed in with `carnet login`: a refresh token, kept on this machine and redeemed for tokens.

mod device;
mod error;
mod keyring;
mod private;
mod store;

use serde::{Deserialize, Serialize};

use super::call::{TOKEN_ENDPOINT, Web, call, token_answer};
use super::held::Fetched;
use super::{Audience, SourceError, SourceName};
use crate::clock::Clock;
use crate::entra;
use crate::http::{Endpoint, Request, Response};
use crate::secret::Secret;

pub use self::device::{DevicePrompt, SignIn};
pub use self::error::LoginError;
pub use self::store::{Keep, LoginStore};

/// Who is signed in, where and for what: nothing of it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// As Entra names the person; decides nothing.
    pub name: String,
    pub authority: String,
    pub tenant: String,
    pub client_id: String,
    pub audience: String,
}

/// An account and its refresh token.
#[derive(Debug, Clone)]
pub struct Login {
    pub account: Account,
    pub refresh_token: Secret,
}

/// Redeems the refresh token that is stored. Entra may answer with another one, which is stored in its place before the
/// lock on the store is given back, so that of two processes the second redeems what the first was given.
pub(super) async fn fetch(
    store: &LoginStore,
    audience: Option<&Audience>,
    web: &dyn Web,
    clock: &dyn Clock,
) -> Result<Fetched, SourceError> {
    let locked = store.lock().await?;
    let mut login = locked.load().await?;
    let stored = Audience::of(&login.account.audience);
    let audience = audience.or(stored.as_ref()).ok_or(SourceError::NoAudience(NAME))?;
    let scope = scope(audience);
    let form = [
        ("grant_type", "refresh_token"),
        ("client_id", login.account.client_id.as_str()),
        ("scope", &scope),
        ("refresh_token", login.refresh_token.expose()),
    ];
    let url = token_endpoint(&login.account)?;
    let asked_at = clock.now();
    let response = call(web, clock, NAME, TOKEN_ENDPOINT, || Ok(Request::post_form(&url, &form)), entra::judge).await?;
    let answer = token_answer(NAME, &response)?;
    if let Some(rotated) = SignedIn::read(&response).refresh_token {
        login.refresh_token = rotated;
        if let Err(error) = locked.renew(&login).await {
            // The older one may still do, and the token in hand does.
            tracing::error!(%error, "the new refresh token could not be stored");
        }
    }
    let expires_at = asked_at + answer.life();
    Fetched::new(answer.access_token, Some(expires_at)).ok_or(SourceError::Malformed { name: NAME })
}

/// What a sign-in brings besides the access token.
#[derive(Default, Deserialize)]
struct SignedIn {
    refresh_token: Option<Secret>,
    id_token: Option<Secret>,
}

impl SignedIn {
    fn read(response: &Response) -> Self {
        serde_json::from_slice(&response.body).unwrap_or_default()
    }
}

/// A token for the broker; `offline_access` for the refresh token, `openid` and `profile` for the person's name.
fn scope(audience: &Audience) -> String {
    format!("{} offline_access openid profile", audience.scope())
}

fn token_endpoint(account: &Account) -> Result<String, LoginError> {
    let authority: Endpoint = account.authority.parse().map_err(|_invalid| LoginError::Damaged)?;
    Ok(authority.join(&format!("{}/oauth2/v2.0/token", account.tenant)))
}

const NAME: SourceName = SourceName::Login;

#[cfg(test)]
mod tests;

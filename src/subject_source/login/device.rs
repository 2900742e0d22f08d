//! Signing in with a code that is typed into a browser anywhere (RFC 8628).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{Account, Keep, Login, LoginError, LoginStore, NAME, SignedIn, keyring, scope, token_endpoint};
use crate::answer::{self, Verdict};
use crate::clock::SystemClock;
use crate::entra::{self, Failure};
use crate::http::{self, Client, Endpoint, Request, Response};
use crate::line::one_line;
use crate::secret::Secret;
use crate::subject_source::call::{TOKEN_ENDPOINT, Web, call, refusal, token_answer};
use crate::subject_source::{Audience, SourceError, directory_name};

/// Who signs in, and for what.
#[derive(Debug, Clone)]
pub struct SignIn {
    pub authority: Endpoint,
    pub tenant: String,
    /// A public client's registration.
    pub client_id: uuid::Uuid,
    /// The broker's.
    pub audience: String,
    /// PEM file with authorities that are trusted besides the system's.
    pub ca_file: Option<std::path::PathBuf>,
}

/// What a person has to do.
#[derive(Debug)]
pub struct DevicePrompt<'a> {
    pub verification_uri: &'a str,
    pub user_code: &'a str,
    pub expires_in: Duration,
}

/// RFC 8628 section 3.2.
#[derive(Deserialize)]
struct Device {
    device_code: Secret,
    user_code: String,
    verification_uri: String,
    #[serde(deserialize_with = "answer::seconds")]
    expires_in: u64,
    #[serde(default = "default_interval", deserialize_with = "answer::seconds")]
    interval: u64,
}

impl SignIn {
    /// Signs in and stores the login; `keep`: in the keyring where one answers, unless said otherwise.
    ///
    /// # Errors
    /// Entra's refusals, and a place to keep the login that cannot be used.
    pub async fn run(
        &self,
        store: &LoginStore,
        keep: Option<Keep>,
        show: impl FnOnce(&DevicePrompt<'_>),
    ) -> Result<(Account, Keep), SourceError> {
        let web = Client::new(&http::Settings { ca_file: self.ca_file.clone() });
        let web = web.map_err(|error| SourceError::Authorities(Arc::new(error)))?;
        // Before the person is asked for anything.
        let keep = match keep {
            Some(Keep::Keyring) => keyring::unlock().await.map(|()| Keep::Keyring)?,
            Some(Keep::File) => Keep::File,
            None if keyring::answers().await => Keep::Keyring,
            None => Keep::File,
        };
        let login = self.sign_in(&web, show).await?;
        store.lock().await?.save(&login, keep).await?;
        Ok((login.account, keep))
    }

    pub(super) async fn sign_in(
        &self,
        web: &dyn Web,
        show: impl FnOnce(&DevicePrompt<'_>),
    ) -> Result<Login, SourceError> {
        let tenant = directory_name("--tenant", &self.tenant)?;
        let audience = Audience::of(&self.audience).ok_or(SourceError::NoAudience(NAME))?;
        let client_id = self.client_id.to_string();
        let mut account = Account {
            name: String::new(),
            authority: self.authority.to_string(),
            tenant: tenant.to_owned(),
            client_id: client_id.clone(),
            audience: self.audience.clone(),
        };
        let device = self.device(web, &client_id, &scope(&audience)).await?;
        let life = Duration::from_secs(device.expires_in.min(LONGEST_WAIT));
        show(&DevicePrompt {
            verification_uri: &device.verification_uri,
            user_code: &device.user_code,
            expires_in: life,
        });
        let response = poll(web, &token_endpoint(&account)?, &client_id, &device, Instant::now() + life).await?;
        token_answer(NAME, &response)?;
        let signed_in = SignedIn::read(&response);
        account.name = signed_in.id_token.as_ref().and_then(unverified_name).unwrap_or_else(|| "unknown".to_owned());
        let refresh_token = signed_in.refresh_token.ok_or(LoginError::NoRefreshToken)?;
        Ok(Login { account, refresh_token })
    }

    async fn device(&self, web: &dyn Web, client_id: &str, scope: &str) -> Result<Device, SourceError> {
        let url = self.authority.join(&format!("{}/oauth2/v2.0/devicecode", self.tenant));
        let form = [("client_id", client_id), ("scope", scope)];
        let request = || Ok(Request::post_form(&url, &form));
        let response = call(web, &SystemClock, NAME, TOKEN_ENDPOINT, request, entra::judge).await?;
        if !response.status.is_success() {
            return Err(refusal(NAME, &response));
        }
        let device: Option<Device> = serde_json::from_slice(&response.body).ok();
        // Both are shown in a terminal.
        let showable = |text: &str| text.len() <= 512 && text.bytes().all(|byte| byte.is_ascii_graphic());
        let device = device.filter(|device| showable(&device.user_code) && showable(&device.verification_uri));
        // Where a person types a code, nobody may listen or answer in Entra's place.
        let safe = |uri: &str| {
            url::Url::parse(uri).is_ok_and(|uri| uri.scheme() == "https") || self.authority.same_origin(uri)
        };
        let device = device.filter(|device| safe(&device.verification_uri));
        Ok(device.ok_or(LoginError::NoCode)?)
    }
}

/// Until the person has signed in, at the pace that Entra asks for (RFC 8628 section 3.5).
async fn poll(
    web: &dyn Web,
    url: &str,
    client_id: &str,
    device: &Device,
    end: Instant,
) -> Result<Response, SourceError> {
    let mut interval = Duration::from_secs(device.interval.clamp(1, LONGEST_INTERVAL));
    let form = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
        ("client_id", client_id),
        ("device_code", device.device_code.expose()),
    ];
    loop {
        if Instant::now() + interval >= end {
            return Err(LoginError::Expired.into());
        }
        sleep(interval).await;
        let Ok(response) = web.send(Request::post_form(url, &form), ATTEMPT_DEADLINE).await else {
            interval += SLOWER;
            continue;
        };
        if response.status.is_success() {
            return Ok(response);
        }
        match Failure::read(&response).error.as_str() {
            "authorization_pending" => {}
            "slow_down" => interval += SLOWER,
            "authorization_declined" | "access_denied" => return Err(LoginError::Declined.into()),
            "expired_token" => return Err(LoginError::Expired.into()),
            "bad_verification_code" => return Err(LoginError::UnknownCode.into()),
            _ => match entra::judge(&response) {
                Verdict::Final => return Err(refusal(NAME, &response)),
                Verdict::Transient(_) | Verdict::IssuerUnreachable | Verdict::Throttled => interval += SLOWER,
            },
        }
    }
}

/// To show to the person, for nothing else: of a token that came straight from the token endpoint, unchecked.
fn unverified_name(id_token: &Secret) -> Option<String> {
    #[derive(Deserialize)]
    struct Unverified {
        preferred_username: Option<String>,
        oid: Option<String>,
    }

    let payload = BASE64_URL_SAFE_NO_PAD.decode(id_token.expose().split('.').nth(1)?).ok()?;
    let unverified: Unverified = serde_json::from_slice(&payload).ok()?;
    let name = unverified.preferred_username.or(unverified.oid)?;
    Some(one_line(&name, 128))
}

const fn default_interval() -> u64 {
    5
}

/// RFC 8628 section 3.5: `slow_down`, and what no answer is treated as.
const SLOWER: Duration = Duration::from_secs(5);
const LONGEST_INTERVAL: u64 = 60;
const LONGEST_WAIT: u64 = 3600;
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(10);

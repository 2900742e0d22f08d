//! People of a tenant, the codes they sign in with and the refresh tokens that come of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use crate::sandbox::locked::locked;
use crate::sandbox::wire::random_text;

/// A person with an account in a tenant.
#[derive(Clone, Debug)]
pub struct Person {
    pub(super) tenant: String,
    pub(super) object_id: String,
    /// `preferred_username`.
    pub(super) name: String,
    pub(super) roles: Vec<String>,
}

impl Person {
    /// `tenant` and `object_id` are GUIDs, `name` is the name to sign in with.
    pub fn new(tenant: &str, object_id: &str, name: &str) -> Self {
        let tenant = tenant.to_ascii_lowercase();
        Self { tenant, object_id: object_id.to_owned(), name: name.to_owned(), roles: Vec::new() }
    }

    /// The app roles on the default audience.
    #[must_use]
    pub fn roles<R: Into<String>>(mut self, roles: impl IntoIterator<Item = R>) -> Self {
        self.roles = roles.into_iter().map(Into::into).collect();
        self
    }
}

pub(super) struct People {
    state: Mutex<State>,
}

struct State {
    people: Vec<Person>,
    /// By device code.
    devices: BTreeMap<String, Device>,
    refresh_tokens: BTreeMap<String, Session>,
    interval: Duration,
}

#[derive(Clone)]
pub(super) struct Device {
    pub(super) session: Session,
    user_code: String,
    expires_at: SystemTime,
    polled_at: Option<SystemTime>,
    decision: Decision,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Decision {
    Pending,
    Approved,
    Declined,
}

/// What a refresh token stands for.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) tenant: String,
    pub(super) client_id: String,
    pub(super) scope: String,
    /// Empty until somebody signed in.
    pub(super) object_id: String,
    pub(super) since: SystemTime,
    pub(super) is_revoked: bool,
}

/// Why a device code gives nothing.
pub(super) enum NotYet {
    Unknown,
    Pending,
    TooSoon,
    Declined,
    Expired,
}

impl People {
    pub(super) fn new() -> Self {
        let (devices, refresh_tokens) = (BTreeMap::new(), BTreeMap::new());
        let state = State { people: Vec::new(), devices, refresh_tokens, interval: DEFAULT_INTERVAL };
        Self { state: Mutex::new(state) }
    }

    pub(super) fn add(&self, person: Person) {
        self.state().people.push(person);
    }

    pub(super) fn find(&self, tenant: &str, object_id: &str) -> Option<Person> {
        let is_it = |person: &&Person| person.object_id == object_id && person.tenant.eq_ignore_ascii_case(tenant);
        self.state().people.iter().find(is_it).cloned()
    }

    pub(super) fn set_interval(&self, interval: Duration) {
        self.state().interval = interval;
    }

    pub(super) fn interval(&self) -> Duration {
        self.state().interval
    }

    /// A device code and the code that a person types.
    pub(super) fn begin(&self, session: Session) -> (String, String) {
        let letters = random_text(64).to_ascii_uppercase();
        let user_code: String = letters.chars().filter(char::is_ascii_alphanumeric).take(9).collect();
        let device_code = random_text(120);
        let mut state = self.state();
        state.devices.retain(|_code, device| session.since < device.expires_at + DEVICE_CODE_LIFE);
        let device = Device {
            expires_at: session.since + DEVICE_CODE_LIFE,
            session,
            user_code: user_code.clone(),
            polled_at: None,
            decision: Decision::Pending,
        };
        state.devices.insert(device_code.clone(), device);
        (device_code, user_code)
    }

    /// Signs `object_id` in, or declines without one. Without `object_id` in a tenant of one person: that one.
    pub(super) fn decide(&self, user_code: &str, object_id: Option<&str>, approve: bool, now: SystemTime) -> bool {
        let mut state = self.state();
        let State { people, devices, .. } = &mut *state;
        let is_it =
            |device: &&mut Device| device.user_code.eq_ignore_ascii_case(user_code.trim()) && now < device.expires_at;
        let Some(device) = devices.values_mut().find(is_it) else { return false };
        let mut known = people.iter().filter(|person| {
            person.tenant.eq_ignore_ascii_case(&device.session.tenant)
                && object_id.is_none_or(|object_id| person.object_id == object_id)
        });
        match (approve, known.next(), known.next()) {
            (true, Some(person), None) => {
                device.decision = Decision::Approved;
                device.session.object_id.clone_from(&person.object_id);
                true
            }
            (true, _, _) => false,
            (false, _, _) => {
                device.decision = Decision::Declined;
                true
            }
        }
    }

    /// A code is good once.
    pub(super) fn redeem(
        &self,
        device_code: &str,
        tenant: &str,
        client_id: &str,
        now: SystemTime,
    ) -> Result<Session, NotYet> {
        let mut state = self.state();
        let interval = state.interval;
        let device = state.devices.get_mut(device_code).ok_or(NotYet::Unknown)?;
        if !device.session.tenant.eq_ignore_ascii_case(tenant) || device.session.client_id != client_id {
            return Err(NotYet::Unknown);
        }
        if now >= device.expires_at {
            return Err(NotYet::Expired);
        }
        let before = device.polled_at.replace(now);
        match device.decision {
            Decision::Declined => Err(NotYet::Declined),
            Decision::Pending if before.is_some_and(|before| now < before + interval) => Err(NotYet::TooSoon),
            Decision::Pending => Err(NotYet::Pending),
            Decision::Approved => {
                let device = state.devices.remove(device_code).ok_or(NotYet::Unknown)?;
                Ok(Session { since: now, ..device.session })
            }
        }
    }

    pub(super) fn remember(&self, session: Session) -> String {
        let token = format!("1.{}", random_text(600));
        self.state().refresh_tokens.insert(token.clone(), session);
        token
    }

    pub(super) fn session(&self, refresh_token: &str) -> Option<Session> {
        self.state().refresh_tokens.get(refresh_token).cloned()
    }

    /// The real Entra lets an older refresh token live on; here it is good once, so that one that is lost shows.
    pub(super) fn forget(&self, refresh_token: &str) {
        self.state().refresh_tokens.remove(refresh_token);
    }

    pub(super) fn revoke(&self, object_id: &str) {
        let mut state = self.state();
        let sessions = state.refresh_tokens.values_mut().filter(|session| session.object_id == object_id);
        sessions.for_each(|session| session.is_revoked = true);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

/// Microsoft (v2-oauth2-device-code): 15 minutes, 5 seconds.
pub(super) const DEVICE_CODE_LIFE: Duration = Duration::from_secs(900);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
/// Microsoft (refresh-tokens): 90 days without use.
pub(super) const REFRESH_TOKEN_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

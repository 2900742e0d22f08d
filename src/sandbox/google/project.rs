//! Everything this Google knows: providers, service accounts and their bindings, the tokens it issued.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use serde_json::Value;

use super::provider::{PoolProvider, ProviderError};
use crate::clock::Clock;
use crate::sandbox::issuer_keys::IssuerKeys;
use crate::sandbox::keys::SigningKey;
use crate::sandbox::locked::locked;
use crate::sandbox::wire::random_text;

pub(super) struct Project {
    clock: Arc<dyn Clock>,
    issuer_keys: IssuerKeys,
    id_token_key: SigningKey,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    providers: BTreeMap<String, Registered>,
    accounts: BTreeMap<String, ServiceAccount>,
    deleted: BTreeSet<String>,
    buckets: BTreeMap<String, Bucket>,
    tokens: HashMap<String, TokenInfo>,
    issued: usize,
    expires_in: ExpiresIn,
}

#[derive(Clone)]
pub(super) struct Registered {
    pub(super) provider: PoolProvider,
    /// The uploaded keys; `None` when they are fetched.
    pub(super) keys: Option<Vec<Value>>,
}

#[derive(Clone, Default)]
pub(super) struct ServiceAccount {
    pub(super) email: String,
    pub(super) members: BTreeSet<String>,
    pub(super) has_long_lifetime: bool,
}

#[derive(Clone, Default)]
pub(super) struct Bucket {
    pub(super) objects: BTreeSet<String>,
    /// Who may list them, as IAM policies write it.
    pub(super) readers: BTreeSet<String>,
}

/// How STS writes `expires_in`: both other forms have been met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpiresIn {
    #[default]
    /// `3599`, as documented.
    Number,
    /// `"3599"`.
    Text,
    /// Not at all, as after downscoping.
    Absent,
}

/// What an issued access token is. Holds no token.
#[derive(Clone, Debug)]
pub struct TokenInfo {
    /// Which endpoint made it.
    pub kind: TokenKind,
    /// Who exchanged the token, `principal://…`; for impersonation the one at the start of the chain.
    pub principal: String,
    /// The sets the principal belongs to, `principalSet://…`.
    pub principal_sets: Vec<String>,
    /// The impersonated account.
    pub service_account: Option<String>,
    /// As requested.
    pub scopes: Vec<String>,
    /// By Google's clock.
    pub issued_at: SystemTime,
    /// From this moment on the token is refused.
    pub expires_at: SystemTime,
    /// `X-Goog-Request-Reason` of the request that made it.
    pub request_reason: Option<String>,
    /// `User-Agent` of the request that made it.
    pub user_agent: Option<String>,
}

/// The two kinds of access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// From STS, `ya29.d.…`.
    Federated,
    /// From `generateAccessToken`, `ya29.c.…`.
    ServiceAccount,
}

impl TokenInfo {
    /// The names under which IAM policies may mention the bearer.
    pub(super) fn members(&self) -> Vec<String> {
        match &self.service_account {
            Some(email) => vec![format!("serviceAccount:{email}")],
            None => {
                let sets = self.principal_sets.iter().cloned();
                sets.chain([self.principal.clone()]).collect()
            }
        }
    }
}

impl Project {
    pub(super) fn new(clock: Arc<dyn Clock>) -> io::Result<Self> {
        Ok(Self {
            issuer_keys: IssuerKeys::new(Arc::clone(&clock))?,
            clock,
            id_token_key: SigningKey::rsa(),
            state: Mutex::default(),
        })
    }

    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    pub(super) fn issuer_keys(&self) -> &IssuerKeys {
        &self.issuer_keys
    }

    pub(super) fn id_token_key(&self) -> &SigningKey {
        &self.id_token_key
    }

    pub(super) fn register_provider(&self, provider: PoolProvider) -> Result<(), ProviderError> {
        let keys = provider.check()?;
        let name = provider.name.clone();
        let registered = Registered { provider, keys };
        self.state().providers.insert(name, registered);
        Ok(())
    }

    pub(super) fn provider(&self, name: &str) -> Option<Registered> {
        self.state().providers.get(name).cloned()
    }

    pub(super) fn add_service_account(&self, email: &str) {
        self.change_account(email, |_| ());
    }

    pub(super) fn delete_service_account(&self, email: &str) {
        let mut state = self.state();
        state.accounts.remove(email);
        state.deleted.insert(email.to_owned());
    }

    pub(super) fn is_deleted(&self, email: &str) -> bool {
        self.state().deleted.contains(email)
    }

    pub(super) fn extend_lifetime(&self, email: &str) {
        self.change_account(email, |account| account.has_long_lifetime = true);
    }

    pub(super) fn bind(&self, email: &str, member: &str) {
        self.change_account(email, |account| {
            account.members.insert(member.to_owned());
        });
    }

    pub(super) fn unbind(&self, email: &str, member: &str) {
        if let Some(account) = self.state().accounts.get_mut(email) {
            account.members.remove(member);
        }
    }

    pub(super) fn account(&self, email: &str) -> Option<ServiceAccount> {
        self.state().accounts.get(email).cloned()
    }

    pub(super) fn add_object(&self, bucket: &str, object: &str) {
        self.state().buckets.entry(bucket.to_owned()).or_default().objects.insert(object.to_owned());
    }

    pub(super) fn let_read(&self, bucket: &str, member: &str) {
        self.state().buckets.entry(bucket.to_owned()).or_default().readers.insert(member.to_owned());
    }

    pub(super) fn bucket(&self, name: &str) -> Option<Bucket> {
        self.state().buckets.get(name).cloned()
    }

    fn change_account(&self, email: &str, how: impl FnOnce(&mut ServiceAccount)) {
        let mut state = self.state();
        state.deleted.remove(email);
        let new = || ServiceAccount { email: email.to_owned(), ..ServiceAccount::default() };
        how(state.accounts.entry(email.to_owned()).or_insert_with(new));
    }

    /// Makes an opaque token for `info`; `length` is that of its random part.
    pub(super) fn issue(&self, info: TokenInfo, length: usize) -> String {
        let kind = match info.kind {
            TokenKind::Federated => 'd',
            TokenKind::ServiceAccount => 'c',
        };
        let token = format!("ya29.{kind}.b0Aa{}", random_text(length.min(MAX_TOKEN)));
        let now = self.now();
        let mut state = self.state();
        state.issued += 1;
        if state.issued.is_multiple_of(PRUNE_EVERY) {
            state.tokens.retain(|_, info| now < info.expires_at);
        }
        state.tokens.insert(token.clone(), info);
        token
    }

    pub(super) fn check(&self, token: &str) -> Option<TokenInfo> {
        let now = self.now();
        let state = self.state();
        let info = state.tokens.get(token)?;
        let is_of_deleted = info.service_account.as_ref().is_some_and(|email| state.deleted.contains(email));
        (now < info.expires_at && !is_of_deleted).then(|| info.clone())
    }

    pub(super) fn issued_count(&self) -> usize {
        self.state().issued
    }

    pub(super) fn set_expires_in(&self, how: ExpiresIn) {
        self.state().expires_in = how;
    }

    pub(super) fn expires_in(&self) -> ExpiresIn {
        self.state().expires_in
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

/// With the prefix a token stays within the documented 12,288 bytes.
const MAX_TOKEN: usize = 12_288 - 16;
const PRUNE_EVERY: usize = 4096;

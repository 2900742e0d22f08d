//! Where a login is kept: what is not secret in a file, the refresh token in the keyring or in an encrypted file.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::{Account, Login, LoginError, keyring, private};
use crate::secret::{SealingKeys, Secret};
use crate::subject_source::Environment;

/// What keeps the refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The desktop's keyring (Secret Service)
    Keyring,
    /// A file, encrypted with a key in another file
    File,
}

/// One user's login on this machine.
#[derive(Debug, Clone)]
pub struct LoginStore {
    /// Who is signed in, and what keeps the secret.
    summary: PathBuf,
    sealed: PathBuf,
    lock: PathBuf,
    /// In another folder: a copy of the one is worth nothing without the other.
    key: PathBuf,
}

/// The store while no other process uses it.
#[derive(Debug)]
pub struct LockedStore<'a> {
    store: &'a LoginStore,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct Summary {
    keep: Keep,
    account: Account,
}

/// What the keyring or the encrypted file holds: all of it, so that nobody can send the token elsewhere by changing the
/// summary.
#[derive(Serialize)]
struct Whole<'a> {
    account: &'a Account,
    refresh_token: &'a str,
}

#[derive(Deserialize)]
struct WholeRead {
    account: Account,
    refresh_token: Secret,
}

impl LoginStore {
    /// By the XDG base directories.
    ///
    /// # Errors
    /// There is no home.
    pub fn of(environment: &Environment) -> Result<Self, LoginError> {
        let base = |variable, below_home: &str| {
            let absolute = |text: String| Some(PathBuf::from(text)).filter(|path| path.is_absolute());
            let home = || environment.text("HOME").and_then(absolute).map(|home| home.join(below_home));
            environment.text(variable).and_then(absolute).or_else(home).ok_or(LoginError::NoHome)
        };
        let data = base("XDG_DATA_HOME", ".local/share")?.join("carnet");
        let key = base("XDG_CONFIG_HOME", ".config")?.join("carnet").join("login.key");
        let at = |name: &str| data.join(name);
        Ok(Self { summary: at("login.json"), sealed: at("login.sealed"), lock: at("login.lock"), key })
    }

    /// Who is signed in, and what keeps the secret: one small file, nobody is asked.
    ///
    /// # Errors
    /// Others could have read or changed it.
    pub fn account(&self) -> Result<Option<(Account, Keep)>, LoginError> {
        let Some(text) = private::read(&self.summary)? else { return Ok(None) };
        let summary: Summary = serde_json::from_str(&text).map_err(|_form| LoginError::Damaged)?;
        Ok(Some((summary.account, summary.keep)))
    }

    /// # Errors
    /// Another process keeps it for long.
    pub async fn lock(&self) -> Result<LockedStore<'_>, LoginError> {
        let failed = |source| LoginError::File { path: self.lock.clone(), source: Arc::new(source) };
        private::folder(&self.lock).map_err(failed)?;
        let file = File::options().create(true).append(true).mode(0o600).open(&self.lock).map_err(failed)?;
        let deadline = Instant::now() + LOCK_DEADLINE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(LockedStore { store: self, _lock: file }),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(LoginError::Busy(LOCK_DEADLINE.as_secs()));
                }
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
            }
        }
    }
}

impl LockedStore<'_> {
    pub async fn load(&self) -> Result<Login, LoginError> {
        let (_account, keep) = self.store.account()?.ok_or(LoginError::NobodyIsLoggedIn)?;
        let whole = match keep {
            Keep::Keyring => keyring::get().await?.ok_or(LoginError::Damaged)?,
            Keep::File => self.store.unseal()?,
        };
        let whole: WholeRead = serde_json::from_slice(&whole).map_err(|_form| LoginError::Damaged)?;
        Ok(Login { account: whole.account, refresh_token: whole.refresh_token })
    }

    /// A new login, in place of any other.
    pub async fn save(&self, login: &Login, keep: Keep) -> Result<(), LoginError> {
        let other = self.store.account().ok().flatten().filter(|(_account, before)| *before != keep);
        if keep == Keep::File {
            // The key of an earlier login may be known to others.
            private::remove(&self.store.key)?;
        }
        self.put(login, keep).await?;
        let summary = Summary { keep, account: login.account.clone() };
        let text = serde_json::to_string(&summary).map_err(|_form| LoginError::Damaged)?;
        private::write(&self.store.summary, &text)?;
        match other {
            Some((_account, before)) => {
                self.forget(before).await.map_err(|error| LoginError::EarlierKept(error.to_string()))
            }
            None => Ok(()),
        }
    }

    /// The refresh token of the login that is stored already.
    pub async fn renew(&self, login: &Login) -> Result<(), LoginError> {
        let (_account, keep) = self.store.account()?.ok_or(LoginError::NobodyIsLoggedIn)?;
        self.put(login, keep).await
    }

    /// Whether there was one.
    pub async fn remove(&self) -> Result<bool, LoginError> {
        let before = match self.store.account() {
            Ok(before) => before.map(|(_account, keep)| keep).into_iter().collect(),
            // What cannot be believed is removed all the same, wherever it is.
            Err(_unbelievable) if keyring::answers().await => vec![Keep::File, Keep::Keyring],
            Err(_unbelievable) => vec![Keep::File],
        };
        for keep in &before {
            self.forget(*keep).await?;
        }
        private::remove(&self.store.summary)?;
        Ok(!before.is_empty())
    }

    async fn put(&self, login: &Login, keep: Keep) -> Result<(), LoginError> {
        let whole = Whole { account: &login.account, refresh_token: login.refresh_token.expose() };
        let whole = Zeroizing::new(serde_json::to_vec(&whole).map_err(|_form| LoginError::Damaged)?);
        match keep {
            Keep::Keyring => keyring::put(&whole).await,
            Keep::File => self.store.seal(&whole),
        }
    }

    async fn forget(&self, keep: Keep) -> Result<(), LoginError> {
        match keep {
            Keep::Keyring => keyring::delete().await,
            Keep::File => private::remove(&self.store.sealed).and_then(|()| private::remove(&self.store.key)),
        }
    }
}

impl LoginStore {
    fn seal(&self, whole: &[u8]) -> Result<(), LoginError> {
        let keys = match private::read(&self.key)? {
            Some(text) => sealing_keys(&text)?,
            None => {
                let mut bytes = Zeroizing::new([0; 32]);
                rand::fill(&mut bytes[..]).map_err(|_no_random| LoginError::Damaged)?;
                let text = Zeroizing::new(BASE64_STANDARD.encode(&bytes[..]));
                private::write(&self.key, &text)?;
                sealing_keys(&text)?
            }
        };
        let sealed = keys.seal(whole, ROW).map_err(|_cipher| LoginError::Damaged)?;
        private::write(&self.sealed, &BASE64_STANDARD.encode(sealed))
    }

    fn unseal(&self) -> Result<Zeroizing<Vec<u8>>, LoginError> {
        let read = |path: &Path| private::read(path)?.ok_or(LoginError::Damaged);
        let (key, sealed) = (read(&self.key)?, read(&self.sealed)?);
        let sealed = BASE64_STANDARD.decode(sealed.trim()).map_err(|_form| LoginError::Damaged)?;
        sealing_keys(&key)?.open(&sealed, ROW).map_err(|_forged| LoginError::Damaged)
    }
}

fn sealing_keys(text: &str) -> Result<SealingKeys, LoginError> {
    SealingKeys::from_base64(&[Secret::new(text)]).map_err(|_form| LoginError::Damaged)
}

/// What the ciphertext is bound to.
const ROW: &str = "carnet login 1";

/// Longer than a refresh with all its retries, and the keyring's two answers.
const LOCK_DEADLINE: Duration = Duration::from_secs(90);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

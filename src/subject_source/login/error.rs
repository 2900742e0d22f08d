//! What can be wrong with a stored login, or with signing in.

use std::path::PathBuf;
use std::sync::Arc;

use crate::subject_source::Fault;

#[derive(Debug, Clone, thiserror::Error)]
pub enum LoginError {
    #[error("there is no place to keep a login: set HOME, or XDG_DATA_HOME and XDG_CONFIG_HOME")]
    NoHome,
    #[error("nobody is logged in: run `carnet login`")]
    NobodyIsLoggedIn,
    #[error("{path} can be read or changed by others: chmod 600 it, and run `carnet login` again if they may have")]
    Exposed { path: PathBuf },
    #[error("{path} belongs to another user: remove it and run `carnet login`")]
    Foreign { path: PathBuf },
    #[error("{path} cannot be used: {source}")]
    File { path: PathBuf, source: Arc<std::io::Error> },
    #[error("the stored login is damaged, or not of this machine: run `carnet logout`, then `carnet login`")]
    Damaged,
    #[error("the keyring does not give the login: {0}; unlock it, or `carnet login --store file`")]
    Keyring(String),
    #[error(
        "the new login is stored and in use, but the keyring may still hold the earlier one: {0}. Unlock the keyring \
         and delete `carnet login` in it"
    )]
    EarlierKept(String),
    #[error("another process has been using the stored login for {0}s")]
    Busy(u64),
    #[error("the sign-in was declined")]
    Declined,
    #[error("nobody signed in before the code ended: run `carnet login` again")]
    Expired,
    #[error("Entra does not know the code any more: run `carnet login` again")]
    UnknownCode,
    #[error("Entra gave no refresh token: the registration must be allowed `offline_access`")]
    NoRefreshToken,
    #[error("Entra's answer holds no code to sign in with")]
    NoCode,
}

impl LoginError {
    pub fn fault(&self) -> Fault {
        match self {
            Self::NoHome | Self::NobodyIsLoggedIn => Fault::Usage,
            Self::Declined | Self::Expired | Self::UnknownCode | Self::NoRefreshToken | Self::NoCode => Fault::Refused,
            Self::Busy(_) => Fault::Unavailable,
            Self::Exposed { .. }
            | Self::Foreign { .. }
            | Self::File { .. }
            | Self::Damaged
            | Self::Keyring(_)
            | Self::EarlierKept(_) => Fault::Machine,
        }
    }
}

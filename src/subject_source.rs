//! Where a client's own Entra token comes from. It is looked for anew at each use, so that what the platform renews is used.

use std::path::PathBuf;

use crate::secret::Secret;

/// The places to look in.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `-` is standard input.
    pub token_file: Option<PathBuf>,
}

/// Gives the client's Entra token, as often as it is asked.
#[derive(Debug)]
pub struct SubjectSource {
    settings: Settings,
}

/// Why there is no subject token. The message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("no subject token: give --subject-token-file, or set CARNET_SUBJECT_TOKEN_FILE or CARNET_SUBJECT_TOKEN")]
    Nowhere,
    #[error("the subject token file {path} cannot be read")]
    File { path: PathBuf, source: std::io::Error },
    #[error("the subject token is empty")]
    Empty,
}

impl SubjectSource {
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// # Errors
    /// [`SourceError`] of the source that was to give it: no other one is asked in its place, for that would be another
    /// identity.
    pub async fn token(&self) -> Result<Secret, SourceError> {
        let text = match (&self.settings.token_file, std::env::var("CARNET_SUBJECT_TOKEN")) {
            (Some(path), _) => {
                let stdin = PathBuf::from("/dev/stdin");
                let from = if path.as_os_str() == "-" { &stdin } else { path };
                let read = tokio::fs::read_to_string(from).await;
                read.map_err(|source| SourceError::File { path: path.clone(), source })?
            }
            (None, Ok(token)) => token,
            (None, Err(_unset)) => return Err(SourceError::Nowhere),
        };
        match text.trim() {
            "" => Err(SourceError::Empty),
            token => Ok(Secret::new(token)),
        }
    }
}

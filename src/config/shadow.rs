//! The file of rules that are asked beside those in force.

use std::path::{Path, PathBuf};

use super::{ConfigError, PolicyFile};
use crate::policy::Policy;
use crate::secret::sha256;

/// Where the rules are that are tried on live traffic, and the configuration whose targets they share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShadowFile {
    path: PathBuf,
    config: PathBuf,
}

impl ShadowFile {
    /// `file`, as the configuration at `config` names it: relative to its own place.
    pub(super) fn named(file: &Path, config: &Path) -> Self {
        let folder = config.parent().unwrap_or(Path::new(""));
        Self { path: folder.join(file), config: config.to_owned() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// Every mistake of the file.
    pub fn load(&self) -> Result<Policy, ConfigError> {
        PolicyFile::load(&self.path, Some(&self.config))?.policy()
    }

    /// SHA-256 of the file; `None` while there is none.
    pub fn digest(&self) -> Option<[u8; 32]> {
        std::fs::read(&self.path).ok().map(|text| sha256(&text))
    }
}

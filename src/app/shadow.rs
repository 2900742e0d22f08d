//! The rules beside those in force: loaded with them and whenever their own file changes, and never in their way.

use std::sync::{Mutex, PoisonError};

use crate::config::ShadowFile;
use crate::policy::Policy;

/// The file of shadow rules as it was last loaded, or tried to.
#[derive(Debug, Default)]
pub(super) struct ShadowRules(Mutex<Option<(ShadowFile, Option<[u8; 32]>)>>);

impl ShadowRules {
    /// `policy`, with the shadow that is named, if it can be used: a bad one is told loudly and not asked.
    pub fn beside(&self, policy: Policy, file: Option<ShadowFile>) -> Policy {
        let digest = file.as_ref().and_then(ShadowFile::digest);
        let loaded = file.as_ref().map(ShadowFile::load);
        let path = file.as_ref().map(|file| file.path().display().to_string()).unwrap_or_default();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = file.map(|file| (file, digest));
        metrics::gauge!("carnet_shadow_stale").set(if matches!(loaded, Some(Err(_))) { 1.0 } else { 0.0 });
        match loaded {
            None => policy,
            Some(Ok(shadow)) => {
                tracing::info!(%path, "the shadow rules were loaded: they are compared, and decide nothing");
                policy.shadowed_by(shadow)
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the shadow rules cannot be used, and nothing is compared; the rules stay in force");
                policy
            }
        }
    }

    /// Whether the file is another than the one that was loaded. One that is away for a moment is being replaced.
    pub fn changed(&self) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.is_some_and(|(file, seen)| file.digest().is_some_and(|now| Some(now) != seen))
    }
}

//! The issuer's keys while the broker runs: from the store, which rotates them, or from files, which others rotate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fs, io};

use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::clock::{Clock, unix_seconds};
use crate::issuer::{
    Algorithm, Issuer, KeyError, KeyStatus, Keyring, KeyringError, Phase, Rotation, RotationError, SigningKey,
    StoredKey,
};
use crate::secret::FieldDigest;

/// Where the keys are.
#[derive(Debug)]
pub enum KeySource {
    Store(Rotation),
    /// The first key of each algorithm signs, all are published.
    Files(Vec<PathBuf>),
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    Rotation(#[from] RotationError),
    #[error("the store did not answer within {}s", STORE_DEADLINE.as_secs())]
    Slow,
    #[error("cannot read the key file {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("the key file {path} cannot be used")]
    Key { path: PathBuf, source: KeyError },
    #[error(transparent)]
    Ring(#[from] KeyringError),
}

impl KeySource {
    /// The keys as they are; in a store, the first ones are made where there are none.
    ///
    /// # Errors
    /// The store or file that cannot be read, or the algorithm without a key.
    pub async fn load(&self) -> Result<Keyring, KeysError> {
        Ok(match self {
            Self::Store(rotation) => Keyring::stored(&rotation.keys().await?, None)?,
            Self::Files(paths) => ring(read(paths))?,
        })
    }

    /// What every key is for now.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn status(&self, clock: &dyn Clock) -> Result<Vec<KeyStatus>, KeysError> {
        Ok(match self {
            Self::Store(rotation) => rotation.status().await?,
            Self::Files(_paths) => self.load().await?.status(clock.now()),
        })
    }
}

/// Keeps an issuer's keys as they are in their source. While the source is away, the old keys stay.
#[derive(Debug)]
pub(super) struct IssuerKeys {
    source: KeySource,
    issuer: Arc<Issuer>,
    clock: Arc<dyn Clock>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Digest of the files as they were last read.
    files: Option<[u8; 32]>,
    /// The source is away or holds no usable keys; said once an outage.
    failing: bool,
}

impl IssuerKeys {
    /// `issuer` has the keys that `source` had when it was loaded.
    pub fn new(source: KeySource, issuer: Arc<Issuer>, clock: Arc<dyn Clock>) -> Self {
        Self { source, issuer, clock, progress: Mutex::default() }
    }

    pub fn issuer(&self) -> &Arc<Issuer> {
        &self.issuer
    }

    pub async fn keep_current(&self) {
        let mut tick = tokio::time::interval(match self.source {
            KeySource::Store(_) => STORE_EVERY,
            KeySource::Files(_) => FILES_EVERY,
        });
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.refresh().await;
        }
    }

    /// Makes and removes keys that are due and takes those that are there now.
    pub async fn refresh(&self) {
        let mut progress = self.progress.lock().await;
        let current = match &self.source {
            KeySource::Store(rotation) => self.read_store(rotation).await.map(Some),
            KeySource::Files(paths) => changed(paths, &mut progress.files),
        };
        let outcome = match current {
            Ok(None) => return,
            Ok(Some(keys)) => {
                self.take(keys);
                if progress.failing {
                    tracing::info!("the issuer's keys can be read again");
                }
                progress.failing = false;
                "ok"
            }
            Err(error) => {
                // Every changed file is news; a store that stays away is not.
                if !progress.failing || matches!(self.source, KeySource::Files(_)) {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the issuer's keys cannot be read; the old ones stay"
                    );
                }
                progress.failing = true;
                "failed"
            }
        };
        metrics::counter!("carnet_issuer_key_reloads_total", "outcome" => outcome).increment(1);
        metrics::gauge!("carnet_issuer_keys_stale").set(if progress.failing { 1.0 } else { 0.0 });
    }

    async fn read_store(&self, rotation: &Rotation) -> Result<Keyring, KeysError> {
        let keys = timeout(STORE_DEADLINE, rotation.tend()).await.map_err(|_elapsed| KeysError::Slow)??;
        let known = self.issuer.keys();
        let ring = Keyring::stored(&keys, Some(&known))?;
        let now = self.clock.now();
        for StoredKey { kid, algorithm, signs_from, .. } in &keys {
            if *signs_from > now && known.published(now).all(|old| old.kid() != kid) {
                let (algorithm, signs_from) = (algorithm.as_str(), rfc3339(*signs_from));
                tracing::warn!(
                    issuer.kid = kid,
                    issuer.algorithm = algorithm,
                    issuer.signs_from = signs_from,
                    "a new {algorithm} key {kid} is published and signs from {signs_from}: where the keys are uploaded instead \
                     of fetched, upload what `carnet issuer jwks` prints before then"
                );
            }
        }
        for algorithm in Algorithm::ALL {
            let since = ring.signing_since(algorithm, now).and_then(|since| now.duration_since(since).ok());
            let age = since.unwrap_or_default().as_secs_f64();
            metrics::gauge!("carnet_issuer_key_age_seconds", "algorithm" => algorithm.as_str()).set(age);
        }
        Ok(ring)
    }

    fn take(&self, keys: Keyring) {
        let now = self.clock.now();
        let (old, new) = (self.issuer.keys().status(now), keys.status(now));
        let among = |all: &[KeyStatus], key: &KeyStatus| {
            all.iter().any(|other| other.kid == key.kid && other.phase != Phase::Withdrawn)
        };
        for KeyStatus { kid, .. } in old.iter().filter(|key| among(&old, key) && !among(&new, key)) {
            tracing::info!(issuer.kid = kid, "key {kid} is no longer published");
        }
        let surprising = |key: &&KeyStatus| key.phase == Phase::Signing && !among(&old, key);
        for KeyStatus { kid, .. } in new.iter().filter(surprising) {
            tracing::warn!(
                issuer.kid = kid,
                "key {kid} signs without having been published before: clouds refuse it until they know the keys anew"
            );
        }
        self.issuer.replace_keys(keys);
    }
}

/// In whole seconds, for people.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = i64::try_from(unix_seconds(time)).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// A file's contents, or why there are none.
type Contents<'a> = (&'a Path, Result<Zeroizing<Vec<u8>>, io::Error>);

fn read(paths: &[PathBuf]) -> Vec<Contents<'_>> {
    paths.iter().map(|path| (path.as_path(), fs::read(path).map(Zeroizing::new))).collect()
}

fn ring(files: Vec<Contents<'_>>) -> Result<Keyring, KeysError> {
    let mut keys = Vec::new();
    for (path, contents) in files {
        let pem = contents.map_err(|source| KeysError::File { path: path.to_owned(), source })?;
        let parsed = SigningKey::all_from_pem(&pem);
        keys.extend(parsed.map_err(|source| KeysError::Key { path: path.to_owned(), source })?);
    }
    Ok(Keyring::brought(keys)?)
}

/// `None` where the files are as they were. Contents, not times: a mounted secret is replaced by changing a symbolic
/// link.
fn changed(paths: &[PathBuf], seen: &mut Option<[u8; 32]>) -> Result<Option<Keyring>, KeysError> {
    let files = read(paths);
    let mut digest = FieldDigest::new("issuer.key_files");
    for (_path, contents) in &files {
        digest.list(contents.iter().map(|pem| pem.as_slice()));
    }
    let digest = digest.finish();
    if seen.replace(digest) == Some(digest) { Ok(None) } else { ring(files).map(Some) }
}

/// The longest that one replica does not know a key that another has made: far less than a key is published ahead.
const STORE_EVERY: Duration = Duration::from_secs(30);
/// An RSA key may be made in this time, too.
const STORE_DEADLINE: Duration = Duration::from_secs(15);
const FILES_EVERY: Duration = Duration::from_secs(2);

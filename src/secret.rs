//! Text that must not be seen: no `Display`, a redacted `Debug`, wiped from memory when dropped.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use zeroize::Zeroizing;

/// A token, key or assertion. Cloning shares the text; the last owner wipes it.
#[derive(Clone)]
pub struct Secret(Arc<Wiped>);

/// Wiped at its end. As `Zeroizing`, but in one stroke: that one writes byte by byte, which for the tokens of one exchange
/// costs as much as all that the rules do.
struct Wiped(String);

impl Drop for Wiped {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0).into_bytes();
        wipe(&mut bytes);
    }
}

/// Zeros over all that the buffer holds or has held.
fn wipe(bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.resize(bytes.capacity(), 0);
    // To the compiler, somebody reads the zeros.
    zeroize::optimization_barrier(bytes.as_slice());
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Arc::new(Wiped(text.into())))
    }

    /// Of a file that somebody else replaces, so it is read at each use; without the line end that editors and `echo` add.
    ///
    /// # Errors
    /// The file cannot be read, is larger than any token, or is no text.
    pub async fn in_file(path: &Path) -> io::Result<Self> {
        Self::from_reader(tokio::fs::File::open(path).await?).await
    }

    /// All that it gives, as [`in_file`](Self::in_file) reads a file.
    ///
    /// # Errors
    /// It fails, gives more than any token has, or no text.
    pub async fn from_reader(reader: impl AsyncRead + Unpin) -> io::Result<Self> {
        let mut text = Zeroizing::new(String::new());
        let read = reader.take(FILE_MAX_BYTES + 1).read_to_string(&mut text).await?;
        if u64::try_from(read).unwrap_or(u64::MAX) > FILE_MAX_BYTES {
            let cause = format!("it is larger than {FILE_MAX_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, cause));
        }
        Ok(Self::new(text.trim()))
    }

    /// The text itself: only for the wire, a signature check or a cipher.
    pub fn expose(&self) -> &str {
        &self.0.0
    }

    pub fn len(&self) -> usize {
        self.expose().len()
    }

    pub fn is_empty(&self) -> bool {
        self.expose().is_empty()
    }

    /// What may be kept and shown in place of the text: its SHA-256.
    pub fn sha256(&self) -> [u8; 32] {
        sha256(self.expose().as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// Far above any token.
const FILE_MAX_BYTES: u64 = 64 * 1024;

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// SHA-256 over framed fields: each field's length goes in before its bytes, so that
/// ("ab", "c") and ("a", "bc") are different inputs. Not for secrets: what goes in is not wiped.
pub struct FieldDigest(Vec<u8>);

impl FieldDigest {
    /// `domain` separates digests of different purposes.
    pub fn new(domain: &str) -> Self {
        // Hashed in one go at the end: a call of the hash for each field costs more than the hash.
        let mut digest = Self(Vec::with_capacity(1024));
        digest.field(domain.as_bytes());
        digest
    }

    pub fn field(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// A list is framed by its length too, so that neighbouring lists cannot trade elements.
    pub fn list<T: AsRef<[u8]>>(&mut self, items: impl ExactSizeIterator<Item = T>) -> &mut Self {
        self.0.extend_from_slice(&(items.len() as u64).to_le_bytes());
        for item in items {
            self.field(item.as_ref());
        }
        self
    }

    pub fn finish(self) -> [u8; 32] {
        sha256(&self.0)
    }
}

impl fmt::Debug for FieldDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FieldDigest")
    }
}

/// Encrypt what the store keeps secret: AES-256-GCM, with the row's identity as associated data, so that a sealed value
/// cannot be moved to another row. The first key seals, all of them open: a key is replaced by putting a new one in front.
pub struct SealingKeys {
    first: LessSafeKey,
    older: Vec<LessSafeKey>,
}

/// Why a sealed value cannot be made or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("a store key is 32 bytes in base64, as `openssl rand -base64 32` prints")]
    Key,
    #[error("the value was sealed with another key, for another row, or was changed")]
    Open,
    #[error("the system's random numbers are not available")]
    Random,
}

impl SealingKeys {
    /// Something may be sealed with another key than the first.
    pub fn is_rotating(&self) -> bool {
        !self.older.is_empty()
    }

    /// Each text: 32 bytes in base64; blanks around it are ignored.
    pub fn from_base64(texts: &[Secret]) -> Result<Self, SealError> {
        let mut keys = texts.iter().map(|text| {
            let bytes = BASE64_STANDARD.decode(text.expose().trim()).map_err(|_not_base64| SealError::Key)?;
            sealing_key(&Zeroizing::new(bytes))
        });
        let first = keys.next().ok_or(SealError::Key)??;
        Ok(Self { first, older: keys.collect::<Result<_, _>>()? })
    }

    /// A key of its own, for a store that ends with the process.
    pub fn random() -> Result<Self, SealError> {
        let mut bytes = Zeroizing::new([0; 32]);
        rand::fill(&mut bytes[..]).map_err(|_no_random| SealError::Random)?;
        Ok(Self { first: sealing_key(&bytes[..])?, older: Vec::new() })
    }

    /// The nonce, then the ciphertext with its tag.
    pub fn seal(&self, plain: &[u8], row: &str) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_no_random| SealError::Random)?;
        let mut sealed = plain.to_vec();
        self.first
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(row.as_bytes()), &mut sealed)
            .map_err(|_too_long| SealError::Open)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    pub fn open(&self, sealed: &[u8], row: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let mut keys = std::iter::once(&self.first).chain(&self.older);
        keys.find_map(|key| open_with(key, sealed, row).ok()).ok_or(SealError::Open)
    }

    /// The same value sealed with the first key, where an older one had sealed it.
    pub fn renewed(&self, sealed: &[u8], row: &str) -> Result<Option<Vec<u8>>, SealError> {
        match open_with(&self.first, sealed, row) {
            Ok(_current) => Ok(None),
            Err(_sealed_with_another) => self.seal(&self.open(sealed, row)?, row).map(Some),
        }
    }
}

fn sealing_key(bytes: &[u8]) -> Result<LessSafeKey, SealError> {
    UnboundKey::new(&AES_256_GCM, bytes).map(LessSafeKey::new).map_err(|_wrong_length| SealError::Key)
}

fn open_with(key: &LessSafeKey, sealed: &[u8], row: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (nonce, rest) = sealed.split_at_checked(NONCE_LEN).ok_or(SealError::Open)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_wrong_length| SealError::Open)?;
    let mut rest = Zeroizing::new(rest.to_vec());
    let opened = key.open_in_place(nonce, Aad::from(row.as_bytes()), &mut rest);
    let length = opened.map_err(|_forged| SealError::Open)?.len();
    rest.truncate(length);
    Ok(rest)
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_only_with_its_key_on_its_row() {
        let (key, other) = (SealingKeys::random().expect("a key"), SealingKeys::random().expect("a key"));
        let sealed = key.seal(b"private", "row-1").expect("sealed");
        assert_eq!(key.open(&sealed, "row-1").expect("opened").as_slice(), b"private");
        assert_eq!(key.open(&sealed, "row-2").unwrap_err(), SealError::Open);
        assert_eq!(other.open(&sealed, "row-1").unwrap_err(), SealError::Open);
        let mut changed = sealed.clone();
        changed[NONCE_LEN] ^= 1;
        assert_eq!(key.open(&changed, "row-1").unwrap_err(), SealError::Open);
        assert_eq!(key.open(&sealed[..5], "row-1").unwrap_err(), SealError::Open);
    }

    #[test]
    fn a_store_key_has_32_bytes() {
        const GOOD: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
        let keys = |texts: &[&str]| {
            SealingKeys::from_base64(&texts.iter().map(|text| Secret::new(*text)).collect::<Vec<_>>()).map(|_keys| ())
        };
        assert_eq!(keys(&[GOOD]), Ok(()));
        assert_eq!(keys(&[]), Err(SealError::Key));
        for broken in ["", "short", "AAAA", "not base64!"] {
            assert_eq!(keys(&[broken]), Err(SealError::Key), "{broken}");
            assert_eq!(keys(&[GOOD, broken]), Err(SealError::Key), "{broken}");
        }
    }

    #[test]
    fn a_new_key_in_front_seals_and_the_older_one_still_opens() {
        let texts = ["AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
            .map(Secret::new);
        let keys = |texts: &[Secret]| SealingKeys::from_base64(texts).expect("keys");
        let (new, old, both) = (keys(&texts[..1]), keys(&texts[1..]), keys(&texts));
        let sealed = old.seal(b"private", "row").expect("sealed");
        assert_eq!(both.open(&sealed, "row").expect("opened").as_slice(), b"private");
        assert_eq!(old.renewed(&sealed, "row"), Ok(None));
        let renewed = both.renewed(&sealed, "row").expect("opened").expect("sealed anew");
        assert_eq!(new.open(&renewed, "row").expect("opened").as_slice(), b"private");
        assert_eq!(both.renewed(&renewed, "row"), Ok(None));
        assert_eq!(new.renewed(&sealed, "row"), Err(SealError::Open));
    }

    #[test]
    fn what_is_wiped_is_zeros_to_the_end_of_its_buffer() {
        let mut bytes = b"eyJhbGciOi".to_vec();
        bytes.reserve_exact(100);
        bytes.truncate(3);
        let (address, capacity) = (bytes.as_ptr(), bytes.capacity());
        wipe(&mut bytes);
        assert_eq!((bytes.as_ptr(), bytes.len()), (address, capacity), "the buffer itself, all of it");
        assert!(bytes.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_secret_shows_nothing_of_itself() {
        let secret = Secret::new("eyJhbGciOi");
        assert_eq!(format!("{secret:?}"), "[redacted]");
        assert_eq!(format!("{:?}", Some(secret)), "Some([redacted])");
    }

    #[test]
    fn bytes_cannot_move_between_neighbouring_fields() {
        let digest = |fields: &[&str]| {
            let mut digest = FieldDigest::new("test");
            for field in fields {
                digest.field(field.as_bytes());
            }
            digest.finish()
        };
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_ne!(digest(&["abc"]), digest(&["abc", ""]));
    }

    #[test]
    fn elements_cannot_move_between_neighbouring_lists() {
        let digest = |first: &[&str], second: &[&str]| {
            let mut digest = FieldDigest::new("test");
            digest.list(first.iter()).list(second.iter());
            digest.finish()
        };
        assert_ne!(digest(&["a", "b"], &["c"]), digest(&["a"], &["b", "c"]));
    }
}

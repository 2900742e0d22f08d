//! Text that must not be seen: no `Display`, a redacted `Debug`, wiped from memory when dropped.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

/// A token, key or assertion. Cloning shares the text; the last owner wipes it.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(text.into())))
    }

    /// The text itself: only for the wire, a signature check or a cipher.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What may be kept and shown in place of the text: its SHA-256.
    pub fn sha256(&self) -> [u8; 32] {
        sha256(self.0.as_bytes())
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

/// SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// SHA-256 over framed fields: each field's length goes in before its bytes, so that
/// ("ab", "c") and ("a", "bc") are different inputs.
pub struct FieldDigest(digest::Context);

impl FieldDigest {
    /// `domain` separates digests of different purposes.
    pub fn new(domain: &str) -> Self {
        let mut digest = Self(digest::Context::new(&digest::SHA256));
        digest.field(domain.as_bytes());
        digest
    }

    pub fn field(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// A list is framed by its length too, so that neighbouring lists cannot trade elements.
    pub fn list<T: AsRef<[u8]>>(&mut self, items: impl ExactSizeIterator<Item = T>) -> &mut Self {
        self.0.update(&(items.len() as u64).to_le_bytes());
        for item in items {
            self.field(item.as_ref());
        }
        self
    }

    pub fn finish(self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(self.0.finish().as_ref());
        out
    }
}

impl fmt::Debug for FieldDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FieldDigest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

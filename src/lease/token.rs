//! The lease token: what proves the right to a lease, and the one thing of it that is secret.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::secret::Secret;

/// 256 random bits in base64url, behind a prefix by which scanners find a leaked one.
pub(super) fn generate() -> Secret {
    let mut bits = Zeroizing::new([0; 32]);
    rand::Rng::fill(&mut rand::rng(), &mut bits[..]);
    Secret::new(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(&bits[..])))
}

const PREFIX: &str = "carnet_lease_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_256_bits_and_no_other_has_the_same() {
        let (one, other) = (generate(), generate());
        assert_ne!(one.expose(), other.expose());
        let bits = BASE64_URL_SAFE_NO_PAD.decode(one.expose().strip_prefix(PREFIX).expect("a prefix"));
        assert_eq!(bits.expect("base64url").len(), 32);
    }
}

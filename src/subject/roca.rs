//! Moduli of a faulty key generator (CVE-2017-15361, "ROCA"): whoever has the public key can compute the private one.

/// Whether the modulus, big-endian, is such a one: by each of these primes its remainder is a power of 65537. Of other keys
/// that is so of one in 200 million.
pub(super) fn is_roca(modulus: &[u8]) -> bool {
    PRIMES.into_iter().all(|prime| {
        let remainder = modulus.iter().fold(0, |remainder, byte| (remainder * 256 + u32::from(*byte)) % prime);
        let mut power = 1;
        (0..prime).any(|_exponent| {
            power = power * 65_537 % prime;
            power == remainder
        })
    })
}

/// Those of the generator's moduli that a key of any size has in common; 2 tells nothing of an odd number.
const PRIMES: [u32; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109,
    113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];

#[cfg(test)]
mod tests {
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::KeyPair as _;

    use super::*;

    #[test]
    fn an_ordinary_key_is_none_and_a_product_of_powers_is_one() {
        let key = KeyPair::generate(KeySize::Rsa2048).expect("a key");
        assert!(!is_roca(key.public_key().modulus().big_endian_without_leading_zero()));
        assert!(is_roca(&65_537_u32.to_be_bytes()));
        assert!(!is_roca(&65_538_u32.to_be_bytes()));
    }
}

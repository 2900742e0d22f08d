//! A signing key: parsed once, named by its thumbprint.

use std::fmt;
use std::time::SystemTime;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use super::StoredKey;
use crate::secret::sha256;

/// Signature algorithms of the assertions (RFC 7518 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Es256,
    Rs256,
}

impl Algorithm {
    pub const ALL: [Self; 2] = [Self::Es256, Self::Rs256];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

/// Why a text or file is no signing key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("it holds no private key in PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    #[error("it is neither an RSA key of 2048 to 4096 bits nor an EC key on P-256")]
    Unsuitable,
    #[error("no key could be made")]
    Generate,
}

/// A private key that signs assertions.
pub struct SigningKey {
    kid: String,
    pair: Pair,
    /// The members that make the thumbprint, in its order.
    public: Value,
}

enum Pair {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl SigningKey {
    /// Every key of a PEM text, in its order: PKCS#8, PKCS#1 (`RSA PRIVATE KEY`) or SEC1 (`EC PRIVATE KEY`).
    ///
    /// # Errors
    /// One of them is unsuitable, or there is none.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let keys = PrivateKeyDer::pem_slice_iter(pem).map(|der| Self::from_der(&der.map_err(KeyError::Pem)?));
        let keys: Vec<Self> = keys.collect::<Result<_, _>>()?;
        if keys.is_empty() { Err(KeyError::Pem(rustls_pki_types::pem::Error::NoItemsFound)) } else { Ok(keys) }
    }

    fn from_der(der: &PrivateKeyDer<'_>) -> Result<Self, KeyError> {
        match der {
            PrivateKeyDer::Pkcs8(der) => Self::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => {
                let pair = RsaKeyPair::from_der(der.secret_pkcs1_der()).map_err(|_rejected| KeyError::Unsuitable)?;
                Self::rsa(pair)
            }
            PrivateKeyDer::Sec1(der) => {
                let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_sec1_der());
                Ok(Self::ec(pair.map_err(|_rejected| KeyError::Unsuitable)?))
            }
            _ => Err(KeyError::Unsuitable),
        }
    }

    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            return Ok(Self::ec(pair));
        }
        Self::rsa(RsaKeyPair::from_pkcs8(der).map_err(|_rejected| KeyError::Unsuitable)?)
    }

    /// A new key that signs from `now` on, in the form in which a store keeps it.
    pub fn generate(algorithm: Algorithm, now: SystemTime) -> Result<StoredKey, KeyError> {
        let unspecified = |_cause: Unspecified| KeyError::Generate;
        let (key, pkcs8) = match algorithm {
            Algorithm::Es256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(unspecified)?;
                let pkcs8 = pair.to_pkcs8v1().map_err(unspecified)?.as_ref().to_vec();
                (Self::ec(pair), pkcs8)
            }
            Algorithm::Rs256 => {
                let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(unspecified)?;
                let pkcs8: Pkcs8V1Der<'_> = pair.as_der().map_err(unspecified)?;
                let pkcs8 = pkcs8.as_ref().to_vec();
                (Self::rsa(pair)?, pkcs8)
            }
        };
        Ok(StoredKey { kid: key.kid, algorithm, pkcs8: pkcs8.into(), created_at: now, signs_from: now })
    }

    /// RFC 7638 thumbprint: the same key has the same name everywhere.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub fn algorithm(&self) -> Algorithm {
        match self.pair {
            Pair::Ec(_) => Algorithm::Es256,
            Pair::Rsa(_) => Algorithm::Rs256,
        }
    }

    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ec(pair) => Ok(pair.sign(&random, message)?.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                Ok(signature)
            }
        }
    }

    /// The public part with exactly the fields that Google accepts (Google: OIDC provider, `jwksJson`).
    pub fn jwk(&self) -> Value {
        let mut jwk = self.public.clone();
        if let Value::Object(fields) = &mut jwk {
            fields.insert("alg".to_owned(), json!(self.algorithm().as_str()));
            fields.insert("use".to_owned(), json!("sig"));
            fields.insert("kid".to_owned(), json!(self.kid));
        }
        jwk
    }

    fn ec(pair: EcdsaKeyPair) -> Self {
        // An uncompressed point (SEC1 section 2.3.3): 0x04, then x and y of 32 bytes each.
        let point = pair.public_key().as_ref();
        let coordinate = |range| encode(point.get(range).unwrap_or_default());
        let public = json!({"crv": "P-256", "kty": "EC", "x": coordinate(1..33), "y": coordinate(33..65)});
        Self { kid: thumbprint(&public), pair: Pair::Ec(pair), public }
    }

    fn rsa(pair: RsaKeyPair) -> Result<Self, KeyError> {
        if !(256..=512).contains(&pair.public_modulus_len()) {
            return Err(KeyError::Unsuitable);
        }
        let key = pair.public_key();
        let (n, e) =
            (key.modulus().big_endian_without_leading_zero(), key.exponent().big_endian_without_leading_zero());
        let public = json!({"e": encode(e), "kty": "RSA", "n": encode(n)});
        Ok(Self { kid: thumbprint(&public), pair: Pair::Rsa(pair), public })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, {})", self.kid, self.algorithm().as_str())
    }
}

/// Over the required members in the order of their names, which is the order of serde_json's map (RFC 7638 section 3).
pub(super) fn thumbprint(public: &Value) -> String {
    encode(&sha256(public.to_string().as_bytes()))
}

fn encode(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

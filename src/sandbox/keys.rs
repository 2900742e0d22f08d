//! Signing keys, JWKs and JWTs of the stand-ins, made with aws-lc-rs alone so that they do not share the broker's parser.

use std::fmt;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents, UnparsedPublicKey,
};
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};

/// A private key with its `kid`. `Debug` shows the `kid` only.
pub struct SigningKey {
    kid: String,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    P256(Box<EcdsaKeyPair>),
}

impl SigningKey {
    /// A new RSA key of 2048 bits for RS256; its `kid` is derived from the modulus, as Entra's are.
    #[expect(clippy::expect_used, reason = "aws-lc fails here only without system randomness")]
    pub fn rsa() -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("generate an RSA key");
        let modulus = pair.public_key().modulus();
        let kid = thumbprint(modulus.big_endian_without_leading_zero());
        Self { kid, pair: Pair::Rsa(Box::new(pair)) }
    }

    /// A new P-256 key for ES256.
    #[expect(clippy::expect_used, reason = "aws-lc fails here only without system randomness")]
    pub fn p256() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("generate a P-256 key");
        let kid = thumbprint(pair.public_key().as_ref());
        Self { kid, pair: Pair::P256(Box::new(pair)) }
    }

    /// The same key under another name.
    #[must_use]
    pub fn with_kid(mut self, kid: impl Into<String>) -> Self {
        self.kid = kid.into();
        self
    }

    /// The key's name in JWT headers and JWKs.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The signature algorithm's JWA name: `RS256` or `ES256`.
    pub fn alg(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
        }
    }

    /// The public key as a JWK with `kty`, `alg`, `use`, `kid` and the key's numbers: what Google takes as an upload.
    pub fn jwk(&self) -> Value {
        match &self.pair {
            Pair::Rsa(pair) => {
                let key = pair.public_key();
                let (n, e) = (key.modulus(), key.exponent());
                json!({
                    "kty": "RSA", "alg": "RS256", "use": "sig", "kid": self.kid,
                    "n": base64url(n.big_endian_without_leading_zero()),
                    "e": base64url(e.big_endian_without_leading_zero()),
                })
            }
            Pair::P256(pair) => {
                // Uncompressed point: 0x04, then x and y of 32 bytes each.
                let point = pair.public_key().as_ref();
                let (x, y) = point.get(1..).unwrap_or_default().split_at(32);
                json!({
                    "kty": "EC", "alg": "ES256", "use": "sig", "kid": self.kid, "crv": "P-256",
                    "x": base64url(x), "y": base64url(y),
                })
            }
        }
    }

    /// A JWT with these claims and the header `typ`, `alg`, `kid`.
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({"typ": "JWT", "alg": self.alg(), "kid": self.kid});
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    /// A JWT of exactly these two texts, which need not be JSON at all.
    #[expect(clippy::expect_used, reason = "signing with a key that aws-lc made itself")]
    pub fn sign_text(&self, header: &str, claims: &str) -> String {
        let signed = signing_input(header, claims);
        let random = SystemRandom::new();
        let signature = match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).expect("sign with RSA");
                signature
            }
            Pair::P256(pair) => {
                let signature = pair.sign(&random, signed.as_bytes());
                signature.expect("sign with P-256").as_ref().to_vec()
            }
        };
        format!("{signed}.{}", base64url(&signature))
    }

    /// The public key as SubjectPublicKeyInfo in PEM: the secret of the classic HS256 confusion attack.
    #[expect(clippy::expect_used, reason = "encoding a key that aws-lc made itself")]
    pub fn public_key_pem(&self) -> String {
        let der: PublicKeyX509Der<'_> = match &self.pair {
            Pair::Rsa(pair) => pair.public_key().as_der(),
            Pair::P256(pair) => pair.public_key().as_der(),
        }
        .expect("encode a public key");
        let text = STANDARD.encode(der.as_ref());
        let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        let body = lines.join("\n");
        format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
    }

    /// The RSA modulus, big-endian; empty for a P-256 key.
    pub fn modulus(&self) -> Vec<u8> {
        match &self.pair {
            Pair::Rsa(pair) => {
                let modulus = pair.public_key().modulus();
                modulus.big_endian_without_leading_zero().to_vec()
            }
            Pair::P256(_) => Vec::new(),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// A JWT's parts as JSON, read before anything about them was checked.
pub(super) struct UnverifiedJwt<'a> {
    pub(super) header: Map<String, Value>,
    pub(super) claims: Map<String, Value>,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> UnverifiedJwt<'a> {
    /// `None` unless there are three parts of unpadded base64url, the first two of them JSON objects.
    pub(super) fn parse(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let object = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        Some(Self {
            header: object(header)?,
            claims: object(claims)?,
            signed,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.header.get(name)?.as_str()
    }

    pub(super) fn claim(&self, name: &str) -> Option<&str> {
        self.claims.get(name)?.as_str()
    }

    /// A `NumericDate` claim in whole seconds.
    pub(super) fn seconds(&self, name: &str) -> Option<u64> {
        let value = self.claims.get(name)?;
        value.as_u64().or_else(|| {
            // RFC 7519 allows fractions; they are cut off.
            let seconds = std::time::Duration::try_from_secs_f64(value.as_f64()?).ok()?;
            Some(seconds.as_secs())
        })
    }

    /// `aud`, which RFC 7519 allows as one string or as a list.
    pub(super) fn audiences(&self) -> Vec<&str> {
        match self.claims.get("aud") {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(one)) => vec![one],
            _ => Vec::new(),
        }
    }

    /// The first of `jwks` that has this token's `kid`.
    pub(super) fn key_in<'k>(&self, jwks: &'k [Value]) -> Option<&'k Value> {
        let kid = self.header("kid")?;
        let has_kid = |jwk: &&Value| jwk.get("kid").and_then(Value::as_str) == Some(kid);
        jwks.iter().find(has_kid)
    }

    /// Whether `jwk` made the signature, by RS256 or ES256 as the key says, never as the token says.
    pub(super) fn is_signed_by(&self, jwk: &Value) -> bool {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let number = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let alg = match text("kty") {
            Some("RSA") => "RS256",
            Some("EC") => "ES256",
            _ => return false,
        };
        if self.header("alg") != Some(alg) || text("alg").is_some_and(|allowed| allowed != alg) {
            return false;
        }
        let signed = self.signed.as_bytes();
        if alg == "RS256" {
            let (Some(n), Some(e)) = (number("n"), number("e")) else {
                return false;
            };
            return RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA256, signed, &self.signature)
                .is_ok();
        }
        let (Some(x), Some(y)) = (number("x"), number("y")) else {
            return false;
        };
        let point = [&[4], x.as_slice(), y.as_slice()].concat();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, &self.signature).is_ok()
    }
}

/// A token that claims HS256 and is "signed" with `secret`.
pub(super) fn sign_hs256(header: &str, claims: &str, secret: &[u8]) -> String {
    let signed = signing_input(header, claims);
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", base64url(tag.as_ref()))
}

/// The two signed parts of a JWT.
pub(super) fn signing_input(header: &str, claims: &str) -> String {
    format!("{}.{}", base64url(header.as_bytes()), base64url(claims.as_bytes()))
}

pub(super) fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Twenty bytes, the length of the certificate thumbprints that Entra uses as `kid` and `x5t`.
fn thumbprint(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    base64url(digest.as_ref().get(..20).unwrap_or_default())
}

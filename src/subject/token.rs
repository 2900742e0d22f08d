//! The form of a JSON Web Token: what may be read before its signature is checked, and the strict reading after.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::SubjectError;
use crate::json::UniqueMap;

/// A compact JWS (RFC 7515 section 7.1) taken apart. Nothing in it is verified.
pub(super) struct UnverifiedToken<'a> {
    /// `header.payload`: the bytes that the signature covers.
    pub signed: &'a str,
    pub signature: &'a str,
    pub kid: String,
    payload: Vec<u8>,
}

/// Read before any signature check. Good for one thing: finding the key.
#[derive(serde::Deserialize)]
pub(super) struct UnverifiedClaims {
    pub iss: String,
    pub tid: String,
}

impl<'a> UnverifiedToken<'a> {
    pub fn parse(text: &'a str) -> Result<Self, SubjectError> {
        const FORM: SubjectError = SubjectError::Malformed("it is not three parts of base64url with dots between");
        let (signed, signature) = text.rsplit_once('.').ok_or(FORM)?;
        let (header, payload) = signed.split_once('.').ok_or(FORM)?;
        if payload.contains('.') || signature.is_empty() {
            return Err(FORM);
        }
        let decode = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_not_base64url| FORM);
        let kid = checked_kid(&decode(header)?)?;
        Ok(Self { signed, signature, kid, payload: decode(payload)? })
    }

    pub fn unverified_claims(&self) -> Result<UnverifiedClaims, SubjectError> {
        serde_json::from_slice(&self.payload).map_err(|_not_these_claims| {
            SubjectError::Malformed("its claims have no `iss` and `tid`, each once and a text")
        })
    }

    /// Call it after the signature was found good: the bytes that were signed are the bytes that are read.
    pub fn claims(&self) -> Result<Claims, SubjectError> {
        let UniqueMap(claims) = serde_json::from_slice(&self.payload)
            .map_err(|_not_unique| SubjectError::Malformed("its claims are not one JSON object with each name once"))?;
        Ok(Claims(claims))
    }
}

/// `tid` and `oid`, whatever else is wrong with the token.
pub(super) fn unverified_holder(text: &str) -> Option<(Uuid, Uuid)> {
    #[derive(serde::Deserialize)]
    struct Holder {
        tid: Uuid,
        oid: Uuid,
    }

    let payload = BASE64_URL_SAFE_NO_PAD.decode(text.split('.').nth(1)?).ok()?;
    let Holder { tid, oid } = serde_json::from_slice(&payload).ok()?;
    Some((tid, oid))
}

/// The header's rules. The algorithm is Entra's only one; the token has no say in it.
fn checked_kid(header: &[u8]) -> Result<String, SubjectError> {
    let UniqueMap(header) = serde_json::from_slice(header)
        .map_err(|_not_unique| SubjectError::Malformed("its header is not one JSON object with each name once"))?;
    if header.contains_key("nonce") {
        // Microsoft's own services get tokens that are hashed before they are signed; the header's nonce marks them.
        return Err(SubjectError::NotForUs("Microsoft Graph"));
    }
    if header.contains_key("crit") || header.contains_key("b64") {
        return Err(SubjectError::Malformed("its header demands an extension (RFC 7515 section 4.1.11)"));
    }
    match header.get("typ") {
        None => {}
        Some(Value::String(typ)) if typ.eq_ignore_ascii_case("JWT") => {}
        Some(_) => return Err(SubjectError::Malformed("its header's `typ` is not JWT")),
    }
    if header.get("alg").and_then(Value::as_str) != Some("RS256") {
        return Err(SubjectError::Signature("only RS256 is accepted"));
    }
    match header.get("kid") {
        Some(Value::String(kid)) if (1..=MAX_KID_BYTES).contains(&kid.len()) => Ok(kid.clone()),
        _ => Err(SubjectError::Signature("its header names no key (`kid`)")),
    }
}

/// Entra's have 27 characters.
const MAX_KID_BYTES: usize = 256;

/// The claims of a token whose signature is good: each name once, whatever its case.
pub(super) struct Claims(pub Map<String, Value>);

impl Claims {
    /// A claim that must be there and be a text.
    pub fn text(&self, name: &'static str, complaint: &'static str) -> Result<&str, SubjectError> {
        self.optional_text(name, complaint)?.ok_or(SubjectError::Malformed(complaint))
    }

    pub fn optional_text(&self, name: &str, complaint: &'static str) -> Result<Option<&str>, SubjectError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(SubjectError::Malformed(complaint)),
        }
    }

    /// A `NumericDate` that must be there: whole, not negative, and within what a clock can show. A claim of
    /// another type is refused, never passed over.
    pub fn seconds(&self, name: &str, complaint: &'static str) -> Result<u64, SubjectError> {
        self.0
            .get(name)
            .and_then(Value::as_u64)
            .filter(|seconds| *seconds <= LATEST)
            .ok_or(SubjectError::Malformed(complaint))
    }

    /// An optional list of texts.
    pub fn texts(&self, name: &str, complaint: &'static str) -> Result<Box<[String]>, SubjectError> {
        let list = match self.0.get(name) {
            None => return Ok([].into()),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(SubjectError::Malformed(complaint)),
        };
        list.iter().map(|item| item.as_str().map(str::to_owned).ok_or(SubjectError::Malformed(complaint))).collect()
    }
}

/// 9999-12-31: later is a mistake, and far from what overflows a clock.
const LATEST: u64 = 253_402_300_799;

/// What a refused token says of whose it is, for whom and how long, as far as they can be read and look like what they should be.
pub(super) fn unverified_trace(text: &str) -> Vec<(&'static str, String)> {
    let mut parts = text.splitn(3, '.').map(|part| {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
        serde_json::from_slice::<Map<String, Value>>(&bytes).unwrap_or_default()
    });
    let (header, claims) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let harmless = |value: &Value| match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
            (text.len() <= 128 && text.chars().all(plain)).then(|| text.clone())
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    [
        ("unverified_kid", &header, "kid"),
        ("unverified_iss", &claims, "iss"),
        ("unverified_tid", &claims, "tid"),
        ("unverified_aud", &claims, "aud"),
        ("unverified_ver", &claims, "ver"),
        ("unverified_iat", &claims, "iat"),
        ("unverified_exp", &claims, "exp"),
    ]
    .into_iter()
    .filter_map(|(field, object, name)| Some((field, object.get(name).and_then(harmless)?)))
    .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(header: &str, payload: &str) -> String {
        format!("{}.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(header), BASE64_URL_SAFE_NO_PAD.encode(payload))
    }

    const HEADER: &str = r#"{"typ":"JWT","alg":"RS256","kid":"k1"}"#;

    #[test]
    fn i06_names_that_differ_in_case_or_spelling_only_are_refused() {
        for payload in [
            r#"{"iss":"a","tid":"b","iss":"c"}"#,
            r#"{"iss":"a","tid":"b","ISS":"c"}"#,
            r#"{"iss":"a","tid":"b","\u0069ss":"c"}"#,
            r#"{"iss":"a","tid":"b","x":1,"X":2}"#,
        ] {
            let text = token(HEADER, payload);
            assert!(UnverifiedToken::parse(&text).expect("a token").claims().is_err(), "{payload}");
        }
    }

    #[test]
    fn i10_the_claims_are_read_from_the_bytes_that_the_signature_covers() {
        let text = token(HEADER, r#"{"iss":"a","tid":"b"}"#);
        let parsed = UnverifiedToken::parse(&text).expect("a token");
        let payload = parsed.signed.split('.').nth(1).expect("a payload");
        assert_eq!(parsed.payload, BASE64_URL_SAFE_NO_PAD.decode(payload).expect("base64url"));
        assert_eq!(format!("{}.{}", parsed.signed, parsed.signature), text);
    }

    #[test]
    fn i05_a_date_of_another_type_is_refused_not_passed_over() {
        for value in [
            "\"1767225600\"",
            "1767225600.5",
            "-1",
            "1e400",
            "18446744073709551616",
            "253402300800",
            "null",
            "[1]",
            "true",
            "1.0",
        ] {
            let text = token(HEADER, &format!(r#"{{"exp":{value}}}"#));
            let refused = match UnverifiedToken::parse(&text).expect("a token").claims() {
                Ok(claims) => claims.seconds("exp", "exp").is_err(),
                Err(_) => true,
            };
            assert!(refused, "{value}");
        }
        let text = token(HEADER, r#"{"exp":1767225600}"#);
        let claims = UnverifiedToken::parse(&text).expect("a token").claims().expect("claims");
        assert_eq!(claims.seconds("exp", "exp").expect("a date"), 1_767_225_600);
    }

    #[test]
    fn a_header_that_asks_for_anything_but_rs256_with_a_named_key_is_refused() {
        for header in [
            r#"{"typ":"JWT","alg":"none","kid":"k1"}"#,
            r#"{"typ":"JWT","alg":"HS256","kid":"k1"}"#,
            r#"{"typ":"JWT","alg":"rs256","kid":"k1"}"#,
            r#"{"typ":"JWT","alg":["RS256"],"kid":"k1"}"#,
            r#"{"typ":"JWT","alg":"RS256"}"#,
            r#"{"typ":"JWT","alg":"RS256","kid":""}"#,
            r#"{"typ":"JWT","alg":"RS256","kid":7}"#,
            r#"{"typ":"JWE","alg":"RS256","kid":"k1"}"#,
            r#"{"typ":"JWT","alg":"RS256","kid":"k1","crit":["exp"]}"#,
            r#"{"typ":"JWT","alg":"RS256","kid":"k1","alg":"none"}"#,
            "[]",
            "",
        ] {
            assert!(UnverifiedToken::parse(&token(header, "{}")).is_err(), "{header}");
        }
    }

    #[test]
    fn a_graph_token_is_told_by_the_nonce_in_its_header() {
        let text = token(r#"{"typ":"JWT","alg":"RS256","kid":"k1","nonce":"x"}"#, "{}");
        assert!(matches!(UnverifiedToken::parse(&text), Err(SubjectError::NotForUs("Microsoft Graph"))));
    }

    #[test]
    fn the_trace_of_a_refused_token_holds_nothing_that_could_be_a_secret() {
        let text = token(HEADER, r#"{"iss":"https://x/y","aud":"api://z","exp":5,"iat":{"a":1},"jti":"secret"}"#);
        assert_eq!(
            unverified_trace(&text),
            [
                ("unverified_kid", "k1".to_owned()),
                ("unverified_iss", "https://x/y".to_owned()),
                ("unverified_aud", "api://z".to_owned()),
                ("unverified_exp", "5".to_owned())
            ]
        );
        assert_eq!(unverified_trace("no token"), []);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*", header in "\\PC*", payload in "\\PC*") {
            for text in [text, token(&header, &payload), token(HEADER, &payload)] {
                if let Ok(parsed) = UnverifiedToken::parse(&text) {
                    let _ = (parsed.unverified_claims().is_ok(), parsed.claims().is_ok());
                }
                unverified_trace(&text);
            }
        }
    }
}

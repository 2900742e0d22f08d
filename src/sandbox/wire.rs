//! Small things that all the stand-ins put on the wire: identifiers, random text, timestamps.

use std::time::SystemTime;

use aws_lc_rs::digest;

use crate::clock::unix_seconds;
use crate::sandbox::keys::base64url;

/// A random version 4 GUID in lower case.
pub(super) fn random_guid() -> String {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string()
}

/// A GUID that depends on `seed` only, so that the same name has the same identifier in every token.
pub(super) fn guid_from(seed: &str) -> String {
    let digest = digest::digest(&digest::SHA256, seed.as_bytes());
    let bytes = digest.as_ref().first_chunk().copied().unwrap_or_default();
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

/// Random base64url text of `length` characters.
pub(super) fn random_text(length: usize) -> String {
    let mut text = String::with_capacity(length + RANDOM_STEP);
    while text.len() < length {
        text.push_str(&base64url(&rand::random::<[u8; 24]>()));
    }
    text.truncate(length);
    text
}

/// `time` in UTC by a strftime format, to the second; 1970 where the calendar ends.
pub(super) fn timestamp(time: SystemTime, format: &str) -> String {
    let seconds = i64::try_from(unix_seconds(time)).unwrap_or_default();
    let time = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    time.strftime(format).to_string()
}

const RANDOM_STEP: usize = 32;

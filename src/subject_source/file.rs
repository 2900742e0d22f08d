//! A token that somebody else keeps in a file, and replaces.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::AsyncReadExt as _;

use super::SourceError;
use crate::secret::Secret;

/// Of a file, without the line end that editors and `echo` add; `-` is standard input, which can be read once.
pub(super) async fn read(path: &Path) -> Result<Secret, SourceError> {
    let from = if path.as_os_str() == "-" { Path::new("/dev/stdin") } else { path };
    let text = bounded(from).await;
    let text = text.map_err(|source| SourceError::File { path: path.to_owned(), source: Arc::new(source) })?;
    trimmed(&text)
}

pub(super) fn trimmed(text: &str) -> Result<Secret, SourceError> {
    match text.trim() {
        "" => Err(SourceError::Empty),
        token => Ok(Secret::new(token)),
    }
}

async fn bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await?;
    let read = file.take(MAX_BYTES + 1).read_to_string(&mut text).await?;
    let too_large = || io::Error::new(io::ErrorKind::InvalidData, format!("it is larger than {MAX_BYTES} bytes"));
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_BYTES { Err(too_large()) } else { Ok(text) }
}

/// Far above any token.
const MAX_BYTES: u64 = 64 * 1024;

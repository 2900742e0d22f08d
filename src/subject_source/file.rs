//! A token that somebody else keeps in a file, and replaces.

use std::path::Path;
use std::sync::Arc;

use super::SourceError;
use crate::secret::Secret;

/// `-` is standard input, which can be read once.
pub(super) async fn read(path: &Path) -> Result<Secret, SourceError> {
    let from = if path.as_os_str() == "-" { Path::new("/dev/stdin") } else { path };
    let read = Secret::in_file(from).await;
    not_empty(read.map_err(|source| SourceError::File { path: path.to_owned(), source: Arc::new(source) })?)
}

pub(super) fn not_empty(token: Secret) -> Result<Secret, SourceError> {
    if token.is_empty() { Err(SourceError::Empty) } else { Ok(token) }
}

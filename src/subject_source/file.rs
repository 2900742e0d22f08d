//! A token that somebody else keeps in a file, and replaces.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use tokio::fs::File;

use super::SourceError;
use crate::secret::Secret;

/// `-` is standard input, which can be read once.
pub(super) async fn read(path: &Path) -> Result<Secret, SourceError> {
    let read = if path.as_os_str() == "-" { standard_input().await } else { Secret::in_file(path).await };
    not_empty(read.map_err(|source| SourceError::File { path: path.to_owned(), source: Arc::new(source) })?)
}

/// Not by a path: a socket, which some programs give to those they start, has none that opens.
async fn standard_input() -> io::Result<Secret> {
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    Secret::from_reader(File::from_std(input.into())).await
}

pub(super) fn not_empty(token: Secret) -> Result<Secret, SourceError> {
    if token.is_empty() { Err(SourceError::Empty) } else { Ok(token) }
}

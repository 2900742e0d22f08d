//! Files that are for one user alone: what others could have read or written is not believed.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::LoginError;
use crate::private_file::PrivateFile;

/// `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<String>>, LoginError> {
    let failed = |source| LoginError::File { path: path.to_owned(), source: Arc::new(source) };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // Of the open file, so that it is the one that is read.
    let metadata = file.metadata().map_err(failed)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(LoginError::Foreign { path: path.to_owned() });
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(LoginError::Exposed { path: path.to_owned() });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

/// As a whole, in a folder that is made for its user alone where it does not exist.
pub(super) fn write(path: &Path, text: &str) -> Result<(), LoginError> {
    let written = folder(path).and_then(|()| PrivateFile::prepare(path)).and_then(|file| file.write(text));
    written.map_err(|source| LoginError::File { path: path.to_owned(), source: Arc::new(source) })
}

/// The folder that `path` is in.
pub(super) fn folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

pub(super) fn remove(path: &Path) -> Result<(), LoginError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LoginError::File { path: path.to_owned(), source: Arc::new(error) })
        }
        _ => Ok(()),
    }
}

/// A refresh token has some thousand characters.
const MAX_BYTES: u64 = 256 * 1024;

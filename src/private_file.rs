//! Files that only their owner can read, replaced as a whole: a reader never sees half a token.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A file that stands ready to be written under its final name; one that is never written leaves nothing behind.
#[derive(Debug)]
pub struct PrivateFile {
    path: PathBuf,
    new: PathBuf,
    file: fs::File,
}

impl PrivateFile {
    /// # Errors
    /// The folder cannot be written to.
    pub fn prepare(path: &Path) -> io::Result<Self> {
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
        name.push(format!(".{}", uuid::Uuid::now_v7().simple()));
        let new = path.with_file_name(name);
        let file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&new)?;
        Ok(Self { path: path.to_owned(), new, file })
    }

    /// # Errors
    /// The disk is full or failing; the file is as it was.
    pub fn write(mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.file.sync_all()?;
        fs::rename(&self.new, &self.path)
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        // Where it was written, it has another name now.
        let _ = fs::remove_file(&self.new);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_its_owners_alone_and_replaced_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        fs::write(&path, "old").expect("written");
        drop(PrivateFile::prepare(&path).expect("ready"));
        assert_eq!(fs::read_to_string(&path).expect("the file"), "old");
        PrivateFile::prepare(&path).expect("ready").write("new").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("the file"), "new");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}

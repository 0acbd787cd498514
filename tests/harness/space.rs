//! A directory for one test, removed whatever the test left in it: mounts, read-only directories, immutable files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::leaks;

/// A directory for one test.
pub struct Space {
    dir: Option<TempDir>,
}

impl Space {
    /// An empty one that everybody may enter, so that tests may give parts of it to other users.
    ///
    /// # Panics
    /// When there is no place for temporary files.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("rbuild-test-").tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("our own directory");
        Self { dir: Some(dir) }
    }

    /// Its path.
    ///
    /// # Panics
    /// Never: the directory lives as long as the space.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.dir.as_ref().expect("lives as long as the space").path()
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Where the build context lies.
    #[must_use]
    pub fn context(&self) -> PathBuf {
        self.path("context")
    }

    /// Where the store lies.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Writes a file of the context, with its parents.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.context().join(name);
        fs::create_dir_all(path.parent().expect("it lies in the context"))
            .expect("a directory of the context");
        fs::write(&path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    /// Fails the test when something of a build is left: see [`leaks::find`]. Call it when no store is open.
    ///
    /// # Panics
    /// When there is a leak.
    pub fn assert_no_leaks(&self) {
        leaks::assert_none(self.root(), &self.store());
    }
}

impl Default for Space {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        let path = dir.path().to_owned();
        for mount in leaks::own_mounts(&path).into_iter().rev() {
            drop(Command::new("umount").arg("-l").arg(&mount).output());
        }
        if dir.close().is_err() {
            make_writable(&path);
            drop(fs::remove_dir_all(&path));
        }
    }
}

/// Makes all directories below `dir` writable; links are not followed.
fn make_writable(dir: &Path) {
    drop(fs::set_permissions(dir, fs::Permissions::from_mode(0o700)));
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}

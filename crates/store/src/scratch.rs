//! Directories for unfinished work: each belongs to a living process, which holds a lock on it. What a killed process
//! left is removed by whoever opens the store next.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rbuild_ports::{PortError, Result};
use rustix::fs::{FlockOperation, flock};

use crate::fs::{names, random_name, still_named};
use crate::gate::retry;

/// A directory `<pid>-<random>` of this process; removed with what is in it when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Makes one in `parent`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(parent: &Path) -> Result<Self> {
        loop {
            let path = parent.join(format!("{}-{}", std::process::id(), random_name()));
            let fail = |error: std::io::Error| PortError::io("create", &path, error);
            DirBuilder::new().mode(0o700).create(&path).map_err(fail)?;
            // Somebody may take it for a dead one and remove it until it is locked; then the next one is tried.
            let Ok(lock) = File::open(&path) else { continue };
            retry(|| flock(&lock, FlockOperation::LockExclusive)).map_err(|error| fail(error.into()))?;
            if still_named(&lock, &path).map_err(fail)? {
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it that nothing else uses.
    #[must_use]
    pub fn fresh(&self) -> PathBuf {
        self.path.join(random_name())
    }

    /// Removes with `remove` those in `parent` whose process is dead. What cannot be removed is left for later.
    ///
    /// # Errors
    /// If `parent` cannot be read.
    pub fn sweep(parent: &Path, remove: &dyn Fn(&Path) -> std::io::Result<()>) -> Result<()> {
        for name in names(parent)? {
            let path = parent.join(name);
            let Ok(lock) = File::open(&path) else { continue };
            if retry(|| flock(&lock, FlockOperation::NonBlockingLockExclusive)).is_ok() {
                let _ = remove(&path);
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_keep_theirs_and_the_dead_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let alive = Scratch::create(dir.path()).unwrap();
        std::fs::write(alive.fresh(), "x").unwrap();
        std::fs::create_dir_all(dir.path().join("1-dead/sub")).unwrap();
        Scratch::sweep(dir.path(), &|path| std::fs::remove_dir_all(path)).unwrap();
        assert!(alive.path().exists());
        assert_eq!(names(dir.path()).unwrap().len(), 1);
        drop(alive);
        assert_eq!(names(dir.path()).unwrap().len(), 0);
    }
}

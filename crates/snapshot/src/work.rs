//! Where layers grow before they are visible: one directory of this process below `work/`, locked while the process
//! lives, so that others can tell what a dead one left and remove it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_ports::{LayerId, PortError, Result};
use rustix::fs::{self, FlockOperation, Mode};
use rustix::io::Errno;

use crate::remove::remove_tree;
use crate::{site, sys};

/// This process's directory.
#[derive(Debug)]
pub(crate) struct Workspace {
    parent: OwnedFd,
    name: String,
    /// Open and locked.
    dir: OwnedFd,
    path: PathBuf,
    count: AtomicU64,
    /// Where layers grow, chosen when the first one does.
    home: Mutex<Option<Arc<Home>>>,
}

/// The directory of all layers of this process.
#[derive(Debug)]
struct Home {
    dir: OwnedFd,
    path: PathBuf,
}

impl Workspace {
    /// Makes one in `parent` and begins to remove those of dead processes.
    pub(crate) fn open(parent: &Path) -> Result<Arc<Self>> {
        let fail = |error: Errno| PortError::io("open", parent, error);
        let parent_fd =
            sys::open_at(fs::CWD, parent.as_os_str().as_encoded_bytes(), sys::DIR).map_err(fail)?;
        sweep(&parent_fd).map_err(fail)?;
        loop {
            let random = sys::random().map_err(|e| PortError::io("read", "/dev/urandom", e))?;
            let name = LayerId::named('w', &random).to_string();
            fs::mkdirat(&parent_fd, name.as_str(), Mode::RWXU).map_err(fail)?;
            // Until it is locked, another process may take it for a dead one's.
            let Ok(dir) = sys::open_at(&parent_fd, name.as_bytes(), sys::DIR) else { continue };
            let locked = fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok();
            if locked && same(&parent_fd, &name, &dir) {
                let path = parent.join(&name);
                let (count, home) = (AtomicU64::new(0), Mutex::default());
                return Ok(Arc::new(Self { parent: parent_fd, name, dir, path, count, home }));
            }
        }
    }

    /// A new empty directory in it.
    pub(crate) fn scratch(self: &Arc<Self>) -> Result<Scratch> {
        let home = self.home()?;
        let name = self.fresh_name();
        let path = home.path.join(&name);
        let fail = |error: Errno| PortError::io("create", &path, error);
        fs::mkdirat(&home.dir, name.as_str(), Mode::RWXU).map_err(fail)?;
        let dir = sys::open_at(&home.dir, name.as_bytes(), sys::DIR).map_err(fail)?;
        Ok(Scratch { _space: self.clone(), home, name, dir, path })
    }

    fn home(&self) -> Result<Arc<Home>> {
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(home) = &*home {
            return Ok(home.clone());
        }
        let (name, dir) =
            site::choose(&self.dir).map_err(|error| PortError::io("create", &self.path, error))?;
        let made = Arc::new(Home { dir, path: self.path.join(name) });
        *home = Some(made.clone());
        Ok(made)
    }

    /// Takes `name` out of `dir` in one step, then removes it. False if it was not there.
    pub(crate) fn discard(&self, dir: impl AsFd, name: &str) -> std::result::Result<bool, Errno> {
        let own = self.fresh_name();
        match fs::renameat(dir, name, &self.dir, own.as_str()) {
            Err(Errno::NOENT) => return Ok(false),
            other => other?,
        }
        remove_tree(&self.dir, own.as_bytes())?;
        Ok(true)
    }

    fn fresh_name(&self) -> String {
        format!("{}", self.count.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next process.
        let _ = remove_tree(&self.parent, self.name.as_bytes());
    }
}

fn same(parent: &OwnedFd, name: &str, dir: &OwnedFd) -> bool {
    let named = sys::stat_at(parent, name.as_bytes()).ok().flatten();
    let opened = fs::fstat(dir).ok();
    matches!((named, opened), (Some(a), Some(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

/// Removes what dead processes left, in the background: nobody waits for it, and what is not done when this process
/// ends is done by the next.
fn sweep(parent: &OwnedFd) -> std::result::Result<(), Errno> {
    let mut dead = Vec::new();
    for (name, _) in sys::list(parent)? {
        let Ok(dir) = sys::open_at(parent, &name, sys::DIR) else { continue };
        if fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            dead.push((dir, name));
        }
    }
    if dead.is_empty() {
        return Ok(());
    }
    let parent = sys::open_at(parent, b".", sys::DIR)?;
    let remove = move || {
        for (_locked, name) in &dead {
            // One that resists is left: it must not keep anybody from building.
            let _ = remove_tree(&parent, name);
        }
    };
    // Without a thread it is left for later too.
    let _ = std::thread::Builder::new().name("sweep".to_owned()).spawn(remove);
    Ok(())
}

/// A directory that goes away with all that is in it when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    _space: Arc<Workspace>,
    home: Arc<Home>,
    name: String,
    dir: OwnedFd,
    path: PathBuf,
}

impl Scratch {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory, open.
    pub(crate) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// A new directory in it, open.
    pub(crate) fn subdir(&self, name: &str) -> Result<OwnedFd> {
        let make = || {
            fs::mkdirat(&self.dir, name, Mode::RWXU)?;
            let dir = sys::open_at(&self.dir, name.as_bytes(), sys::DIR)?;
            // A group or setgid bit inherited from above would be inherited further.
            fs::fchmod(&dir, Mode::RWXU)?;
            Ok(dir)
        };
        make().map_err(|e: Errno| PortError::io("create", self.path.join(name), e))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now goes with the workspace.
        let _ = remove_tree(&self.home.dir, self.name.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_dead_left_is_removed_and_the_living_keep_theirs() {
        let root = tempfile::tempdir().unwrap();
        let living = Workspace::open(root.path()).unwrap();
        let scratch = living.scratch().unwrap();
        std::fs::write(scratch.path().join("x"), "x").unwrap();
        std::fs::create_dir_all(root.path().join("dead/a/b")).unwrap();
        let other = Workspace::open(root.path()).unwrap();
        while root.path().join("dead").exists() {
            std::thread::yield_now();
        }
        assert!(scratch.path().join("x").exists());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 2);
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists());
        drop((living, other));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }
}

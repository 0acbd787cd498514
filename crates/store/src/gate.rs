//! The gate between users and garbage collection: whoever looks something up and pins it holds the gate shared for
//! those microseconds; who deletes holds it alone while it reads the pins, deletes rows and renames data away.
//! It is an advisory lock of the kernel, so a killed process holds nothing.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rbuild_ports::{PortError, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Between two tries for the exclusive lock.
const PAUSE: Duration = Duration::from_millis(1);

/// The lock file of a store, with one descriptor that all threads of this process share.
pub(crate) struct Gate {
    path: PathBuf,
    shared: Mutex<Holders>,
}

struct Holders {
    file: File,
    count: usize,
}

/// While it lives, nothing is deleted by garbage collection. Hold it for a lookup, never over slow work, and
/// never while asking for [`Exclusive`].
#[must_use]
pub struct Shared<'a> {
    pub(crate) gate: &'a Gate,
}

/// While it lives, nobody looks anything up or makes a blob visible.
#[must_use]
pub struct Exclusive {
    _file: File,
}

impl Gate {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let file = open_lock(&path)?;
        Ok(Self { path, shared: Mutex::new(Holders { file, count: 0 }) })
    }

    pub(crate) fn shared(&self) -> Result<Shared<'_>> {
        let mut holders = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if holders.count == 0 {
            retry(|| flock(&holders.file, FlockOperation::LockShared))
                .map_err(|error| PortError::io("lock", &self.path, error))?;
        }
        holders.count += 1;
        Ok(Shared { gate: self })
    }

    /// Waits up to `patience`; `None` when it is still used then.
    pub(crate) fn exclusive(&self, patience: Duration) -> Result<Option<Exclusive>> {
        let file = open_lock(&self.path)?;
        let start = Instant::now();
        loop {
            match retry(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
                Ok(()) => return Ok(Some(Exclusive { _file: file })),
                Err(Errno::WOULDBLOCK) if start.elapsed() < patience => std::thread::sleep(PAUSE),
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(PortError::io("lock", &self.path, error)),
            }
        }
    }

    /// Holds the gate shared until it is released or this gate is dropped: for a process that cannot write down what
    /// it uses.
    pub(crate) fn hold(&self) -> Result<()> {
        std::mem::forget(self.shared()?);
        Ok(())
    }

    /// Ends one [`Gate::hold`].
    pub(crate) fn release(&self) {
        drop(Shared { gate: self });
    }
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        let mut holders = self.gate.shared.lock().unwrap_or_else(PoisonError::into_inner);
        holders.count -= 1;
        if holders.count == 0 {
            // Unlocking an open descriptor can only fail if the kernel forgot it; closing it later unlocks too.
            let _ = retry(|| flock(&holders.file, FlockOperation::Unlock));
        }
    }
}

fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| PortError::io("open", path, error))
}

/// Runs a call again that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_excludes_exclusive_and_counts_its_holders() {
        let dir = tempfile::tempdir().unwrap();
        let gate = Gate::open(dir.path().join("lock")).unwrap();
        let other = Gate::open(dir.path().join("lock")).unwrap();
        let (a, b) = (gate.shared().unwrap(), gate.shared().unwrap());
        let c = other.shared().unwrap();
        assert!(gate.exclusive(Duration::ZERO).unwrap().is_none());
        drop((a, c));
        assert!(other.exclusive(Duration::ZERO).unwrap().is_none());
        drop(b);
        let alone = other.exclusive(Duration::ZERO).unwrap();
        assert!(alone.is_some());
        assert!(gate.exclusive(Duration::ZERO).unwrap().is_none());
        drop(alone);
        gate.hold().unwrap();
        assert!(other.exclusive(Duration::ZERO).unwrap().is_none());
        gate.release();
        assert!(other.exclusive(Duration::ZERO).unwrap().is_some());
        gate.hold().unwrap();
        assert!(other.exclusive(Duration::ZERO).unwrap().is_none());
        drop(gate);
        assert!(other.exclusive(Duration::ZERO).unwrap().is_some());
    }
}

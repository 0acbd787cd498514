//! Single flight across processes: a lock file for each piece of work that is being done. Who has it removes it at the end;
//! a dead process's lock is gone with it, and its file with the next who wants it, or with the next opening.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rbuild_digest::Digest;
use rbuild_ports::{CancelToken, Flight, Flights, PortError, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::Root;
use crate::fs::{make_dir, remove_file, still_named};
use crate::gate::retry;

/// Between two tries, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The lock files of a store.
pub struct FileFlights {
    root: Arc<Root>,
}

impl FileFlights {
    /// Those of `root`.
    #[must_use]
    pub fn of(root: &Arc<Root>) -> Self {
        Self { root: root.clone() }
    }
}

impl Flights for FileFlights {
    fn enter(&self, work: &Digest, waiting: &dyn Fn(), cancel: &CancelToken) -> Result<Box<dyn Flight>> {
        let dir = self.root.path().join("flights");
        let path = dir.join(work.hex());
        let mut pause = FIRST_PAUSE;
        let mut waited = false;
        loop {
            cancel.check()?;
            if let Some(file) = take(&dir, &path)? {
                return Ok(Box::new(Held { path, file }));
            }
            if !std::mem::replace(&mut waited, true) {
                waiting();
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Tries to lock the file; `None` if somebody has it.
fn take(dir: &Path, path: &Path) -> Result<Option<File>> {
    let fail = |error: std::io::Error| PortError::io("lock", path, error);
    let open = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    loop {
        let file = match open() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                make_dir(dir)?;
                open().map_err(fail)?
            }
            other => other.map_err(fail)?,
        };
        match retry(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            other => other.map_err(|error| fail(error.into()))?,
        }
        // Whoever had it removed it.
        if still_named(&file, path).map_err(fail)? {
            return Ok(Some(file));
        }
    }
}

struct Held {
    path: PathBuf,
    file: File,
}

impl Flight for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        // Removed while it is held: who waits for it sees that, and makes a new one.
        drop(remove_file(&self.path));
        // A child that is just being started may still have a copy of the descriptor.
        let _ = retry(|| flock(&self.file, FlockOperation::Unlock));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::BootId;
    use crate::fs::names;

    fn flights(dir: &Path) -> FileFlights {
        FileFlights::of(&Root::open(dir, BootId::new("boot-1").unwrap()).unwrap())
    }

    #[test]
    fn one_at_a_time_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, most, waits) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let flights = flights(dir.path());
                    let waiting = || {
                        waits.fetch_add(1, Ordering::SeqCst);
                    };
                    let held = flights.enter(&Digest::of("x"), &waiting, &CancelToken::new()).unwrap();
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(held);
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 1);
        assert!(waits.load(Ordering::SeqCst) <= 7);
        assert_eq!(names(&dir.path().join("flights")).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn waiting_is_told_and_can_be_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let flights = flights(dir.path());
        let cancel = CancelToken::new();
        let _first = flights.enter(&Digest::of("x"), &|| {}, &cancel).unwrap();
        drop(flights.enter(&Digest::of("y"), &|| panic!("other work is not waited for"), &cancel).unwrap());
        let error = flights.enter(&Digest::of("x"), &|| cancel.cancel(), &cancel).err().unwrap();
        assert_eq!(error.kind, rbuild_ports::ErrorKind::Cancelled);
    }

    #[test]
    fn files_of_the_dead_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        drop(flights(dir.path()));
        std::fs::write(dir.path().join("flights").join(Digest::of("x").hex()), "").unwrap();
        drop(flights(dir.path()));
        assert_eq!(names(&dir.path().join("flights")).unwrap(), Vec::<String>::new());
    }
}

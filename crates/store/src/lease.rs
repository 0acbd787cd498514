//! Leases: a file for every process that has the store open, locked for as long as it lives, in which it writes what
//! it uses before it uses it. A dead process's lock is gone with it, and its file with the next opening.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbuild_digest::Digest;
use rbuild_ports::{LayerId, PortError, Result};
use rustix::fs::{FlockOperation, flock};

use crate::fs::{names, random_name, remove_file, still_named};
use crate::gate::retry;

/// Something that garbage collection must leave alone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Pin {
    /// A layer, its row and its directory.
    Layer(LayerId),
    /// A record of the index.
    Record(i64),
    /// A blob.
    Blob(Digest),
}

impl Pin {
    fn write(&self, out: &mut String) {
        match self {
            Self::Layer(layer) => out.push_str(&format!("l{layer}\n")),
            Self::Record(id) => out.push_str(&format!("r{id}\n")),
            Self::Blob(digest) => out.push_str(&format!("b{}\n", digest.hex())),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let rest = line.get(1..)?;
        match line.as_bytes().first()? {
            b'l' => rest.parse().ok().map(Self::Layer),
            b'r' => rest.parse().ok().map(Self::Record),
            b'b' => Digest::from_hex(rest).ok().map(Self::Blob),
            _ => None,
        }
    }
}

/// This process's lease.
pub(crate) struct Lease {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    pinned: HashSet<Pin>,
}

impl Lease {
    /// Makes and locks a new lease file in `dir`.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        loop {
            let path = dir.join(format!("{started}-{}-{}", std::process::id(), random_name()));
            let fail = |error: std::io::Error| PortError::io("create", &path, error);
            let file =
                OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path).map_err(fail)?;
            retry(|| flock(&file, FlockOperation::LockExclusive)).map_err(|error| fail(error.into()))?;
            // Somebody may have taken it for a dead one between creation and lock.
            if still_named(&file, &path).map_err(fail)? {
                let state = State { file, pinned: HashSet::new() };
                return Ok(Self { path, state: Mutex::new(state) });
            }
        }
    }

    /// Writes down what is not written yet. Must be called with the gate held shared.
    pub(crate) fn pin(&self, pins: impl IntoIterator<Item = Pin>) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh: Vec<Pin> = pins.into_iter().filter(|pin| !state.pinned.contains(pin)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        fresh.iter().for_each(|pin| pin.write(&mut text));
        state.file.write_all(text.as_bytes()).map_err(|error| PortError::io("write", &self.path, error))?;
        state.pinned.extend(fresh);
        Ok(())
    }

    /// Whether this process pinned it already.
    pub(crate) fn holds(&self, pin: &Pin) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).pinned.contains(pin)
    }

    /// Takes note of pins that could not be written, because the whole gate is held instead.
    pub(crate) fn remember(&self, pins: impl IntoIterator<Item = Pin>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).pinned.extend(pins);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = remove_file(&self.path);
    }
}

/// What all live processes have pinned. It can be brought up to date cheaply: only new lines are read.
pub struct Pins {
    dir: PathBuf,
    read: BTreeMap<String, u64>,
    all: HashSet<Pin>,
    oldest: Option<SystemTime>,
}

impl Pins {
    pub(crate) fn of(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), read: BTreeMap::new(), all: HashSet::new(), oldest: None }
    }

    /// Reads what was added since. It is the truth only while the gate is held exclusively.
    ///
    /// # Errors
    /// If the leases cannot be read.
    pub fn refresh(&mut self) -> Result<()> {
        self.oldest = None;
        for name in names(&self.dir)? {
            let path = self.dir.join(&name);
            let Some(mut file) = open_live(&path)? else { continue };
            self.oldest = self.oldest.into_iter().chain(started(&name)).min();
            let seen = self.read.entry(name).or_default();
            let mut text = String::new();
            file.seek(SeekFrom::Start(*seen))
                .and_then(|_| file.read_to_string(&mut text))
                .map_err(|error| PortError::io("read", &path, error))?;
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            *seen += whole as u64;
            self.all.extend(text.get(..whole).unwrap_or_default().lines().filter_map(Pin::parse));
        }
        Ok(())
    }

    /// Whether somebody uses it.
    #[must_use]
    pub fn contains(&self, pin: &Pin) -> bool {
        self.all.contains(pin)
    }

    /// When the oldest live process opened the store, less a second for the kernel's coarse clock.
    #[must_use]
    pub fn oldest(&self) -> Option<SystemTime> {
        self.oldest.and_then(|time| time.checked_sub(Duration::from_secs(1)))
    }
}

/// Removes the lease files of dead processes.
pub(crate) fn sweep(dir: &Path) -> Result<()> {
    for name in names(dir)? {
        let path = dir.join(&name);
        let Ok(file) = File::open(&path) else { continue };
        if retry(|| flock(&file, FlockOperation::NonBlockingLockExclusive)).is_ok() {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// The lease at `path`, unless its process is dead.
fn open_live(path: &Path) -> Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(PortError::io("open", path, error)),
    };
    let dead = retry(|| flock(&file, FlockOperation::NonBlockingLockShared)).is_ok();
    Ok(if dead { None } else { Some(file) })
}

fn started(name: &str) -> Option<SystemTime> {
    let nanos = name.split('-').next()?.parse().ok()?;
    UNIX_EPOCH.checked_add(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_seen_by_others_until_the_lease_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let lease = Lease::create(dir.path()).unwrap();
        let layer = Pin::Layer(LayerId::of_diff_id(&Digest::of("x")));
        lease.pin([layer.clone(), Pin::Record(7)]).unwrap();
        let mut pins = Pins::of(dir.path());
        pins.refresh().unwrap();
        assert!(pins.contains(&layer) && pins.contains(&Pin::Record(7)) && !pins.contains(&Pin::Record(8)));
        assert!(pins.oldest().is_some());
        lease.pin([Pin::Record(7), Pin::Blob(Digest::of("b"))]).unwrap();
        assert!(!pins.contains(&Pin::Blob(Digest::of("b"))));
        pins.refresh().unwrap();
        assert!(pins.contains(&Pin::Blob(Digest::of("b"))));
        sweep(dir.path()).unwrap();
        assert!(lease.path.exists(), "a live lease is not swept");
        drop(lease);
        let mut pins = Pins::of(dir.path());
        pins.refresh().unwrap();
        assert!(!pins.contains(&layer) && pins.oldest().is_none());
    }

    #[test]
    fn leases_of_the_dead_count_nothing_and_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("1-2-dead"), "r1\n").unwrap();
        let mut pins = Pins::of(dir.path());
        pins.refresh().unwrap();
        assert!(!pins.contains(&Pin::Record(1)));
        sweep(dir.path()).unwrap();
        assert_eq!(names(dir.path()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn malformed_lines_are_skipped() {
        for line in ["", "x", "l", "l../..", "rx", "b00", "\u{e9}"] {
            assert_eq!(Pin::parse(line), None, "{line}");
        }
    }
}

//! The store's directory: made, recognised, or refused; and what all who use it share: the gate, this process's
//! lease, its scratch directory and the boot it runs in.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rbuild_ports::{ErrorKind, LayerId, PortError, Result};

use crate::fs::{make_dir, names, random_name, remove_file};
use crate::gate::{Exclusive, Gate, Shared, retry};
use crate::lease::{self, Lease, Pin, Pins};
use crate::{BootId, Scratch};

/// The version of the layout that this library reads and writes.
pub const FORMAT: u32 = 1;

const DIRECTORIES: [&str; 9] =
    ["blobs", "blobs/sha256", "layers", "work", "cachemounts", "tmp", "leases", "unsynced", "flights"];

/// Bytes set aside so that a full disk can still be tidied.
const RESERVE: u64 = 4 << 20;

/// File systems on which several processes cannot share a database: NFS, SMB, CIFS, SMB2.
const REMOTE: [u32; 4] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42];

/// An open store directory. While it lives, what this process has pinned is safe from garbage collection; one that
/// lives long calls [`Root::release_pins`] between builds.
pub struct Root {
    path: PathBuf,
    boot: BootId,
    gate: Gate,
    lease: RwLock<Option<Lease>>,
    /// How often the whole gate was held because a pin could not be written.
    holds: Mutex<usize>,
    scratch: Mutex<Option<Arc<Scratch>>>,
}

impl Root {
    /// Opens the store at `path`; makes it when there is nothing. `boot` is [`BootId::current`] but in tests.
    ///
    /// # Errors
    /// `Unsupported` when another version made it or the file system cannot hold it, `Invalid` when something
    /// else is there; otherwise if it cannot be read or written.
    pub fn open(path: impl Into<PathBuf>, boot: BootId) -> Result<Arc<Self>> {
        let path = path.into();
        recognise(&path)?;
        for directory in DIRECTORIES {
            make_dir(&path.join(directory))?;
        }
        let leases = path.join("leases");
        lease::sweep(&leases)?;
        // Lock files, as leases are.
        lease::sweep(&path.join("flights"))?;
        Scratch::sweep(&path.join("tmp"), &|dead| std::fs::remove_dir_all(dead))?;
        reserve(&path.join("reserve"));
        let gate = Gate::open(path.join("gc.lock"))?;
        let (lease, holds) = match Lease::create(&leases) {
            Ok(lease) => (Some(lease), 0),
            Err(error) if error.kind == ErrorKind::NoSpace => {
                gate.hold()?;
                (None, 1)
            }
            Err(error) => return Err(error),
        };
        Ok(Arc::new(Self {
            path,
            boot,
            gate,
            lease: RwLock::new(lease),
            holds: Mutex::new(holds),
            scratch: Mutex::new(None),
        }))
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The boot it is used in.
    #[must_use]
    pub fn boot(&self) -> &BootId {
        &self.boot
    }

    /// Holds garbage collection off for a lookup.
    ///
    /// # Errors
    /// If the lock file cannot be locked.
    pub fn shared(&self) -> Result<Shared<'_>> {
        self.gate.shared()
    }

    /// Keeps everybody else from looking anything up; waits for it up to `patience`, and is `None` when the store
    /// was in use all that time.
    ///
    /// # Errors
    /// If the lock file cannot be locked.
    pub fn exclusive(&self, patience: Duration) -> Result<Option<Exclusive>> {
        self.gate.exclusive(patience)
    }

    /// Protects `pins` from garbage collection while this root is open. To be sure that something is still there,
    /// pin it and then look, with one `_shared` held over both. On a full disk the gate is held instead.
    ///
    /// # Errors
    /// If the lease cannot be written.
    pub fn pin(&self, _shared: &Shared<'_>, pins: impl IntoIterator<Item = Pin>) -> Result<()> {
        let lease = self.lease.read().unwrap_or_else(PoisonError::into_inner);
        let Some(lease) = &*lease else { return Ok(()) };
        let pins: Vec<Pin> = pins.into_iter().collect();
        match lease.pin(pins.iter().cloned()) {
            Err(error) if error.kind == ErrorKind::NoSpace => {
                self.gate.hold()?;
                *self.holds.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                lease.remember(pins);
                Ok(())
            }
            other => other,
        }
    }

    /// Protects a layer that is about to become visible, or to be looked for.
    ///
    /// # Errors
    /// If the lease cannot be written.
    pub fn pin_layer(&self, layer: &LayerId) -> Result<()> {
        let pin = Pin::Layer(layer.clone());
        if self.pinned(&pin) {
            return Ok(());
        }
        self.pin(&self.shared()?, [pin])
    }

    /// Whether this process has pinned it.
    #[must_use]
    pub fn pinned(&self, pin: &Pin) -> bool {
        let lease = self.lease.read().unwrap_or_else(PoisonError::into_inner);
        lease.as_ref().is_some_and(|lease| lease.holds(pin))
    }

    /// Gives back all that this process has pinned. Only right when nothing of it is in use any more: between the
    /// builds of a process that lives long.
    ///
    /// # Errors
    /// If a new lease cannot be made; then the old one stays.
    pub fn release_pins(&self) -> Result<()> {
        let mut lease = self.lease.write().unwrap_or_else(PoisonError::into_inner);
        // A new file: who reads leases bit by bit takes it for another process's.
        *lease = Some(Lease::create(&self.path.join("leases"))?);
        let holds = std::mem::take(&mut *self.holds.lock().unwrap_or_else(PoisonError::into_inner));
        (0..holds).for_each(|_| self.gate.release());
        Ok(())
    }

    /// What live processes have pinned; empty until refreshed.
    #[must_use]
    pub fn pins(&self) -> Pins {
        Pins::of(&self.path.join("leases"))
    }

    /// This process's directory for unfinished files, on the file system of the store.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self) -> Result<Arc<Scratch>> {
        let mut slot = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scratch) = &*slot {
            return Ok(scratch.clone());
        }
        let scratch = Arc::new(Scratch::create(&self.path.join("tmp"))?);
        Ok(slot.insert(scratch).clone())
    }

    /// The directory of a layer, there or not.
    #[must_use]
    pub fn layer_dir(&self, layer: &LayerId) -> PathBuf {
        self.path.join("layers").join(layer.as_str())
    }

    /// The names of all layer directories, sorted.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn layer_dirs(&self) -> Result<Vec<LayerId>> {
        let found = names(&self.path.join("layers"))?;
        Ok(found.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Takes a layer out of sight in one step, by a name under which it can be removed at leisure. `None` when it is
    /// not there.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn retire_layer(&self, _alone: &Exclusive, layer: &LayerId) -> Result<Option<LayerId>> {
        let retired: LayerId = format!("{RETIRED}{}", random_name())
            .parse()
            .map_err(|error| PortError::new(ErrorKind::Internal, format!("{error}")))?;
        let from = self.layer_dir(layer);
        match std::fs::rename(&from, self.layer_dir(&retired)) {
            Ok(()) => Ok(Some(retired)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PortError::io("rename", &from, error)),
        }
    }

    /// Whether a layer directory is one that was retired and not removed yet.
    #[must_use]
    pub fn is_retired(layer: &LayerId) -> bool {
        layer.as_str().strip_prefix(RETIRED).is_some_and(|rest| rest.len() == 13)
    }

    /// Makes everything that was written so far survive a power cut.
    ///
    /// # Errors
    /// If a write failed since: then what was not synced before is not to be trusted.
    pub fn sync(&self) -> Result<()> {
        let fail = |error: std::io::Error| PortError::io("sync", &self.path, error);
        let dir = File::open(&self.path).map_err(fail)?;
        retry(|| rustix::fs::syncfs(&dir)).map_err(|error| fail(error.into()))
    }

    /// Gives the space back that was set aside for tidying a full disk; the next opening sets it aside again.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn release_reserve(&self) -> Result<()> {
        remove_file(&self.path.join("reserve"))
    }
}

const RETIRED: &str = "retired";

/// Makes sure that `path` is a store of this version.
fn recognise(path: &Path) -> Result<()> {
    let file = path.join("FORMAT");
    let mut text = String::new();
    let read = File::open(&file).and_then(|file| file.take(64).read_to_string(&mut text));
    match read {
        Ok(_) => check_format(path, &text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => create(path, &file),
        Err(error) => Err(PortError::io("read", &file, error)),
    }
}

fn check_format(path: &Path, text: &str) -> Result<()> {
    let version = text.strip_prefix("rbuild store ").map(str::trim_end);
    match version.and_then(|version| version.parse::<u32>().ok()) {
        Some(FORMAT) => Ok(()),
        Some(other) => Err(PortError::new(
            ErrorKind::Unsupported,
            format!("the store {} has format {other}; this rbuild knows format {FORMAT}", path.display()),
        )
        .help("use the rbuild that made it, or another directory")),
        None => Err(foreign(path)),
    }
}

fn foreign(path: &Path) -> PortError {
    PortError::new(
        ErrorKind::Invalid,
        format!("{} is not empty and is not a store of rbuild", path.display()),
    )
    .help("choose a new or empty directory for the store")
}

/// The directory and its FORMAT, which is durable before anything else is put beside it.
fn create(path: &Path, file: &Path) -> Result<()> {
    let fail = |error: std::io::Error| PortError::io("create", path, error);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)?;
    let dir = File::open(path).map_err(fail)?;
    let kind = rustix::fs::fstatfs(&dir).map_err(|error| fail(error.into()))?.f_type;
    if REMOTE.iter().any(|remote| i128::from(*remote) == i128::from(kind) & 0xffff_ffff) {
        let message = format!("{} is on a network file system", path.display());
        return Err(PortError::new(ErrorKind::Unsupported, message).help("put the store on a local disk"));
    }
    // Two may create it at the same time: their half-made FORMAT files are no foreign matter.
    if names(path)?
        .iter()
        .any(|name| name != "FORMAT" && !name.starts_with(".FORMAT-") && name != "lost+found")
    {
        let mut text = String::new();
        let made = File::open(file).and_then(|mut file| file.read_to_string(&mut text));
        return if made.is_ok() { check_format(path, &text) } else { Err(foreign(path)) };
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(fail)?;
    let temporary = path.join(format!(".FORMAT-{}", random_name()));
    let written = write_format(&temporary).and_then(|()| std::fs::rename(&temporary, file));
    if let Err(error) = written {
        let _ = remove_file(&temporary);
        return Err(PortError::io("create", file, error));
    }
    dir.sync_all().map_err(fail)
}

fn write_format(path: &Path) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "rbuild store {FORMAT}")?;
    file.sync_all()
}

/// Sets space aside, if there is any and the file system can.
fn reserve(path: &Path) {
    let Ok(file) = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) else { return };
    if rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE).is_err() {
        let _ = remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbuild_digest::Digest;

    fn open(path: &Path) -> Result<Arc<Root>> {
        Root::open(path, BootId::new("boot-1").unwrap())
    }

    #[test]
    fn a_new_store_is_private_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/store");
        let first = open(&path).unwrap();
        let second = open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_to_string(path.join("FORMAT")).unwrap(), "rbuild store 1\n");
        drop(first);
        assert_eq!(names(&path.join("leases")).unwrap().len(), 1);
        drop(second);
        assert_eq!(names(&path.join("leases")).unwrap().len(), 0);
    }

    #[test]
    fn what_is_no_store_of_this_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("precious"), "x").unwrap();
        let error = open(&path).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert_eq!(names(&path).unwrap(), ["precious"]);
        for (text, kind) in [
            ("rbuild store 2\n", ErrorKind::Unsupported),
            ("", ErrorKind::Invalid),
            ("x", ErrorKind::Invalid),
        ] {
            std::fs::write(path.join("FORMAT"), text).unwrap();
            let error = open(&path).err().unwrap();
            assert_eq!(error.kind, kind, "{text:?}: {error}");
        }
    }

    #[test]
    fn many_may_create_it_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| open(&path).map(drop).unwrap());
            }
        });
        open(&path).unwrap();
    }

    #[test]
    fn a_retired_layer_is_out_of_sight() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(&dir.path().join("s")).unwrap();
        let layer = LayerId::of_diff_id(&Digest::of("x"));
        std::fs::create_dir(root.layer_dir(&layer)).unwrap();
        let alone = root.exclusive(Duration::ZERO).unwrap().unwrap();
        let retired = root.retire_layer(&alone, &layer).unwrap().unwrap();
        assert!(Root::is_retired(&retired) && !Root::is_retired(&layer));
        assert_eq!(root.layer_dirs().unwrap(), [retired]);
        assert_eq!(root.retire_layer(&alone, &layer).unwrap(), None);
    }
}

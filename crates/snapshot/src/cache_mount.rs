//! Cache mounts: directories that outlive builds, by an id. Each instance has a lock file beside it, which says who
//! uses it, and whose time says when it was used last.
//!
//! `cachemounts/<hash of the id>/` holds `id`, and for each instance `<n>` and `<n>.lock`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rbuild_digest::Digest;
use rbuild_graph::CacheSharing;
use rbuild_ports::{CacheMount, CacheMountInfo, CancelToken, LayerId, PortError, Result, Timestamp};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::seal::count;
use crate::sys;

/// How often a lock that somebody holds is tried.
const PATIENCE: Duration = Duration::from_millis(50);

/// A cache mount in use.
#[derive(Debug)]
pub(crate) struct HeldMount {
    path: PathBuf,
    _lock: File,
}

impl CacheMount for HeldMount {
    fn path(&self) -> &Path {
        &self.path
    }
}

/// All cache mounts of a store.
pub(crate) struct CacheMounts<'a> {
    /// `cachemounts`.
    pub(crate) dir: &'a Path,
}

/// Makes the first content of an instance at a path where nothing is yet.
pub(crate) type Fill<'a> = &'a dyn Fn(&Path) -> Result<()>;

impl CacheMounts<'_> {
    /// Opens `id` as `sharing` asks; `fill` makes it when it is new.
    pub(crate) fn open(
        &self,
        id: &str,
        sharing: CacheSharing,
        fill: Fill<'_>,
        cancel: &CancelToken,
    ) -> Result<HeldMount> {
        let home = self.home(id)?;
        match sharing {
            CacheSharing::Shared => self.shared(&home, fill, cancel),
            CacheSharing::Locked => {
                let lock = wait(cancel, || take(&home, 0, FlockOperation::NonBlockingLockExclusive))?;
                ready(&home, 0, lock, fill)
            }
            CacheSharing::Private => {
                let mut instance = 0;
                loop {
                    cancel.check()?;
                    if let Some(lock) = take(&home, instance, FlockOperation::NonBlockingLockExclusive)? {
                        return ready(&home, instance, lock, fill);
                    }
                    instance += 1;
                }
            }
        }
    }

    fn shared(&self, home: &Path, fill: Fill<'_>, cancel: &CancelToken) -> Result<HeldMount> {
        let path = instance_path(home, 0);
        loop {
            let lock = wait(cancel, || take(home, 0, FlockOperation::NonBlockingLockShared))?;
            if path.exists() {
                return ready(home, 0, lock, fill);
            }
            drop(lock);
            // It is filled alone, then shared.
            let lock = wait(cancel, || take(home, 0, FlockOperation::NonBlockingLockExclusive))?;
            drop(ready(home, 0, lock, fill)?);
        }
    }

    /// Whether there is an instance that others can see.
    pub(crate) fn has(&self, id: &str) -> bool {
        instance_path(&self.dir.join(home_name(id)), 0).exists()
    }

    /// The first instance for reading; `None` when there is none, or somebody has it alone.
    pub(crate) fn held(&self, id: &str) -> Result<Option<HeldMount>> {
        let path = instance_path(&self.dir.join(home_name(id)), 0);
        if !path.exists() {
            return Ok(None);
        }
        let home = self.dir.join(home_name(id));
        Ok(take(&home, 0, FlockOperation::NonBlockingLockShared)?.map(|lock| HeldMount { path, _lock: lock }))
    }

    /// All ids with what they take.
    pub(crate) fn list(&self) -> Result<Vec<CacheMountInfo>> {
        let mut out = Vec::new();
        for home in children(self.dir)? {
            let Ok(id) = fs::read_to_string(home.join("id")) else { continue };
            let mut info = CacheMountInfo { id, bytes: 0, last_used: Timestamp::default(), in_use: false };
            for instance in instances(&home)? {
                add(&mut info, &home, instance)?;
            }
            out.push(info);
        }
        out.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(out)
    }

    /// Removes what nobody uses of `id`; whether nothing is left.
    pub(crate) fn remove(&self, id: &str, discard: &dyn Fn(&Path, &str) -> Result<()>) -> Result<bool> {
        let home = self.dir.join(home_name(id));
        if !home.exists() {
            return Ok(true);
        }
        let mut gone = true;
        for instance in instances(&home)? {
            match take(&home, instance, FlockOperation::NonBlockingLockExclusive)? {
                None => gone = false,
                Some(_lock) => {
                    discard(&home, &instance.to_string())?;
                    let lock = lock_path(&home, instance);
                    fs::remove_file(&lock).map_err(|e| PortError::io("remove", &lock, e))?;
                }
            }
        }
        if gone {
            // Somebody may open it right now: then it is not empty, and stays.
            let _ = fs::remove_file(home.join("id"));
            if fs::remove_dir(&home).is_err() {
                let _ = fs::write(home.join("id"), id);
            }
        }
        Ok(gone)
    }

    fn home(&self, id: &str) -> Result<PathBuf> {
        let home = self.dir.join(home_name(id));
        match DirBuilder::new().mode(0o700).create(&home) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PortError::io("create", &home, error));
            }
            _ => {}
        }
        let name = home.join("id");
        if !name.exists() {
            fs::write(&name, id).map_err(|e| PortError::io("write", &name, e))?;
        }
        Ok(home)
    }
}

/// Ids hold anything; a digest is a safe name.
fn home_name(id: &str) -> String {
    LayerId::named('c', Digest::of(id).as_bytes()).to_string()
}

fn instance_path(home: &Path, instance: u32) -> PathBuf {
    home.join(instance.to_string())
}

fn lock_path(home: &Path, instance: u32) -> PathBuf {
    home.join(format!("{instance}.lock"))
}

/// Tries to lock an instance; `None` if somebody else has it.
fn take(home: &Path, instance: u32, operation: FlockOperation) -> Result<Option<File>> {
    let path = lock_path(home, instance);
    let fail = |error: io::Error| PortError::io("lock", &path, error);
    loop {
        let opened = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Its home was removed since.
                DirBuilder::new().recursive(true).mode(0o700).create(home).map_err(fail)?;
                continue;
            }
            other => other.map_err(fail)?,
        };
        match sys::retry(|| flock(&file, operation)) {
            Err(Errno::WOULDBLOCK) => return Ok(None),
            other => other.map_err(|e| fail(e.into()))?,
        }
        // Whoever removed the instance also removed the lock file that it held.
        let here = file.metadata().map_err(fail)?;
        if fs::metadata(&path).is_ok_and(|named| (named.dev(), named.ino()) == (here.dev(), here.ino())) {
            return Ok(Some(file));
        }
    }
}

fn wait<T>(cancel: &CancelToken, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    loop {
        cancel.check()?;
        if let Some(value) = attempt()? {
            return Ok(value);
        }
        std::thread::sleep(PATIENCE);
    }
}

fn ready(home: &Path, instance: u32, lock: File, fill: Fill<'_>) -> Result<HeldMount> {
    let path = instance_path(home, instance);
    if !path.exists() {
        fill(&path)?;
    }
    // Its time tells when it was used last; without it nothing is wrong but the order of pruning.
    let _ = lock.set_modified(std::time::SystemTime::now());
    Ok(HeldMount { path, _lock: lock })
}

fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    let fail = |error: io::Error| PortError::io("list", dir, error);
    fs::read_dir(dir).map_err(fail)?.map(|entry| entry.map(|entry| entry.path()).map_err(fail)).collect()
}

/// Numbers of the instances that exist or are locked.
fn instances(home: &Path) -> Result<Vec<u32>> {
    let mut out: Vec<u32> = children(home)?
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.strip_suffix(".lock")?.parse().ok())
        .collect();
    out.sort_unstable();
    Ok(out)
}

fn add(info: &mut CacheMountInfo, home: &Path, instance: u32) -> Result<()> {
    let lock = lock_path(home, instance);
    let Ok(file) = File::open(&lock) else { return Ok(()) };
    // Locked for a moment only: whoever waits for it tries again.
    info.in_use |= flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
    let time = file.metadata().map_err(|e| PortError::io("read", &lock, e))?;
    let nanos = time.mtime().saturating_mul(1_000_000_000).saturating_add(time.mtime_nsec());
    drop(file);
    info.last_used = info.last_used.max(Timestamp(nanos));
    let path = instance_path(home, instance);
    if let Ok(dir) = sys::open_at(rustix::fs::CWD, path.as_os_str().as_encoded_bytes(), sys::DIR) {
        // Steps may be changing it: what cannot be counted is left out.
        info.bytes += count(dir).map_or(0, |count| count.bytes);
    }
    Ok(())
}

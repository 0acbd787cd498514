//! Blobs by digest: `blobs/sha256/<first two hex>/<hex>`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbuild_digest::{Digest, Hasher};
use rbuild_ports::{BlobReader, BlobStore, BlobWriter, ErrorKind, PortError, Result, Timestamp};

use crate::Root;
use crate::fs::{make_dir, names, remove_file};
use crate::gate::Exclusive;
use crate::lease::Pin;
use crate::reader::Reader;
use crate::unsynced::{self, SyncMark};
use crate::writer::Writer;

/// How long the removal of a damaged blob waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// A blob used after this long counts as used now.
const FRESH: Duration = Duration::from_secs(3600);

/// The blobs of a store.
pub struct Store {
    shelf: Arc<Shelf>,
}

/// A blob on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlobInfo {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written or used, to the hour.
    pub used: Timestamp,
}

/// What readers and writers share with the store.
pub(crate) struct Shelf {
    pub(crate) root: Arc<Root>,
    /// Blobs of an earlier boot that were never synced: to be verified before use.
    doubtful: Mutex<HashSet<Digest>>,
    /// Blobs whose every byte this process has hashed.
    verified: Mutex<HashSet<Digest>>,
}

impl Store {
    /// The blobs of `root`.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn open(root: &Arc<Root>) -> Result<Self> {
        let doubtful = Mutex::new(unsynced::doubtful(root)?);
        let shelf = Shelf { root: root.clone(), doubtful, verified: Mutex::default() };
        Ok(Self { shelf: Arc::new(shelf) })
    }

    /// All blobs, sorted by digest. Files that are no blobs are left out.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn list(&self) -> Result<Vec<BlobInfo>> {
        let top = self.shelf.root.path().join("blobs/sha256");
        let mut out = vec![];
        for shard in names(&top)? {
            for name in names(&top.join(&shard))? {
                let Some(digest) = Digest::from_hex(&name).ok().filter(|_| name.starts_with(&shard)) else {
                    continue;
                };
                out.extend(self.info(&digest)?);
            }
        }
        Ok(out)
    }

    /// Size and age of a blob, without keeping it from garbage collection.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn info(&self, digest: &Digest) -> Result<Option<BlobInfo>> {
        let path = self.shelf.path(digest);
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => {
                let used =
                    Timestamp(meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()));
                Ok(Some(BlobInfo { digest: *digest, size: meta.len(), used }))
            }
            Ok(_) => Err(PortError::new(ErrorKind::Corrupt, format!("{} is not a file", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PortError::io("read", &path, error)),
        }
    }

    /// Hashes the blob as it is on the disk now. One that is damaged is removed; the answer is whether a sound blob
    /// is there.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn verify(&self, digest: &Digest) -> Result<bool> {
        self.shelf.verify(digest)
    }

    /// Takes the marks of unsynced blobs aside: to be called before [`Root::sync`], and [`SyncMark::synced`] after it.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn begin_sync(&self, alone: &Exclusive) -> Result<SyncMark> {
        unsynced::take(&self.shelf.root, alone)
    }

    /// Whether blobs were written in this boot that no sync has made durable.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn unsynced(&self) -> Result<bool> {
        let root = &self.shelf.root;
        Ok(!names(&root.path().join("unsynced").join(root.boot().as_str()))?.is_empty())
    }
}

impl BlobStore for Store {
    fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        self.shelf.settle(digest)?;
        let shared = self.shelf.root.shared()?;
        let Some(info) = self.info(digest)? else { return Ok(None) };
        self.shelf.pin(&shared, &info)?;
        Ok(Some(info.size))
    }

    fn open(&self, digest: &Digest) -> Result<Box<dyn BlobReader>> {
        self.shelf.settle(digest)?;
        let shared = self.shelf.root.shared()?;
        let missing = || PortError::new(ErrorKind::NotFound, format!("blob {digest} is not in the store"));
        let info = self.info(digest)?.ok_or_else(missing)?;
        self.shelf.pin(&shared, &info)?;
        let path = self.shelf.path(digest);
        let file = File::open(&path).map_err(|error| PortError::io("open", &path, error))?;
        Ok(Box::new(Reader::new(self.shelf.clone(), *digest, file, info.size)))
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter>> {
        Ok(Box::new(Writer::create(&self.shelf)?))
    }

    fn remove(&self, digest: &Digest) -> Result<()> {
        remove_file(&self.shelf.path(digest))?;
        self.shelf.forget(digest)
    }
}

impl Shelf {
    fn path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.path().join("blobs/sha256").join(hex.get(..2).unwrap_or_default()).join(hex)
    }

    /// Makes the file at `from` visible as `digest`. It takes the place of one that was there: their bytes are equal,
    /// or the old ones were damaged.
    pub(crate) fn put(&self, from: &Path, digest: &Digest) -> Result<()> {
        let to = self.path(digest);
        let shared = self.root.shared()?;
        self.root.pin(&shared, [Pin::Blob(*digest)])?;
        unsynced::mark(&self.root, &shared, digest)?;
        match std::fs::rename(from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                to.parent().map_or(Ok(()), make_dir)?;
                std::fs::rename(from, &to).map_err(|error| PortError::io("create", &to, error))?;
            }
            other => other.map_err(|error| PortError::io("create", &to, error))?,
        }
        self.set_verified(*digest);
        self.forget(digest)
    }

    /// Pins a blob that is there, and dates it.
    fn pin(&self, shared: &crate::Shared<'_>, info: &BlobInfo) -> Result<()> {
        let pin = Pin::Blob(info.digest);
        if self.root.pinned(&pin) {
            return Ok(());
        }
        self.root.pin(shared, [pin])?;
        let used = UNIX_EPOCH + Duration::from_nanos(u64::try_from(info.used.0).unwrap_or(0));
        if SystemTime::now().duration_since(used).is_ok_and(|age| age > FRESH) {
            // Only a hint for garbage collection: a store that cannot be written is read all the same.
            let _ = File::open(self.path(&info.digest)).and_then(|file| file.set_modified(SystemTime::now()));
        }
        Ok(())
    }

    /// Verifies a blob that a power cut may have damaged.
    fn settle(&self, digest: &Digest) -> Result<()> {
        if !lock(&self.doubtful).contains(digest) {
            return Ok(());
        }
        if unsynced::is_marked(&self.root, digest)? {
            self.verify(digest)?;
        }
        self.forget(digest)
    }

    fn verify(&self, digest: &Digest) -> Result<bool> {
        let path = self.path(digest);
        let fail = |error: io::Error| PortError::io("read", &path, error);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(fail(error)),
        };
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 128 << 10];
        loop {
            let n = file.read(&mut buffer).map_err(fail)?;
            if n == 0 {
                break;
            }
            hasher.update(buffer.get(..n).unwrap_or_default());
        }
        if hasher.finish() == *digest {
            self.set_verified(*digest);
            self.forget(digest)?;
            return Ok(true);
        }
        if !self.discard(digest, &file) {
            return Err(PortError::new(
                ErrorKind::Corrupt,
                format!("blob {digest} is damaged, and could not be removed because the store is in use"),
            ));
        }
        Ok(false)
    }

    /// Removes the blob that is open as `file`, but not one that took its place. Says whether the bad one is gone.
    pub(crate) fn discard(&self, digest: &Digest, file: &File) -> bool {
        lock(&self.verified).remove(digest);
        let Ok(Some(_alone)) = self.root.exclusive(PATIENCE) else { return false };
        let path = self.path(digest);
        match crate::fs::still_named(file, &path) {
            Ok(true) => remove_file(&path).and_then(|()| self.forget(digest)).is_ok(),
            Ok(false) => true,
            Err(_) => false,
        }
    }

    /// The marks of other boots no longer concern this blob.
    fn forget(&self, digest: &Digest) -> Result<()> {
        if !lock(&self.doubtful).contains(digest) {
            return Ok(());
        }
        unsynced::settle(&self.root, digest)?;
        lock(&self.doubtful).remove(digest);
        Ok(())
    }

    pub(crate) fn is_verified(&self, digest: &Digest) -> bool {
        lock(&self.verified).contains(digest)
    }

    pub(crate) fn set_verified(&self, digest: Digest) {
        lock(&self.verified).insert(digest);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The index as others see it: opening, the port's methods, and healing around each of them.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rbuild_ports::{
    CacheIndex, Clock, ErrorKind, ImageRecord, KeyId, KeyQuery, LayerId, LayerRow, NewRecord, PortError,
    Record, Result, Snapshots,
};
use rbuild_store::{Root, Store};

use crate::db::Db;
use crate::fault::{Fault, Outcome};

/// What the index works with.
pub struct Options {
    /// The layer directories of the same store.
    pub snapshots: Arc<dyn Snapshots>,
    /// The blobs of the same store.
    pub blobs: Arc<Store>,
    /// The time, for what was used when.
    pub clock: Arc<dyn Clock>,
}

/// What opening found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpenReport {
    /// A damaged database was moved here, and the cache begins anew.
    pub damaged: Option<PathBuf>,
}

/// The index of a store. It protects from garbage collection what it returned, until its [`Root`] is dropped or told
/// to release it.
pub struct Index {
    pub(crate) db: Db,
    pub(crate) root: Arc<Root>,
    pub(crate) snapshots: Arc<dyn Snapshots>,
    pub(crate) blobs: Arc<Store>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Layers that were looked at, and are pinned: they cannot change any more.
    sound: Mutex<HashSet<LayerId>>,
    /// Records that were the answer to a lookup and are not counted as used yet.
    used: Mutex<BTreeSet<i64>>,
}

impl Index {
    /// Opens the index of `root`. Takes under a millisecond when nothing is wrong; a damaged database is moved aside.
    ///
    /// # Errors
    /// `Unsupported` when a newer version made it; otherwise if it cannot be read or written.
    pub fn open(root: &Arc<Root>, options: Options) -> Result<(Self, OpenReport)> {
        let Options { snapshots, blobs, clock } = options;
        let db = Db::open(root.path().join("index.db"))?;
        let root = root.clone();
        let (sound, used) = (Mutex::default(), Mutex::default());
        let index = Self { db, root, snapshots, blobs, clock, sound, used };
        index.heal(|| index.enter_boot())?;
        let damaged = index.db.moved().into_iter().next();
        Ok((index, OpenReport { damaged }))
    }

    /// Where damaged databases were moved to since the index was opened, the opening included.
    #[must_use]
    pub fn damaged(&self) -> Vec<PathBuf> {
        self.db.moved()
    }

    /// Gives back what this process protects from garbage collection. For a process that lives long, at a moment when no
    /// build and no export is running in it.
    ///
    /// # Errors
    /// If the store cannot be written; then everything stays protected.
    pub fn release_pins(&self) -> Result<()> {
        self.sound().clear();
        self.root.release_pins()
    }

    /// Runs `op`; when it finds the database damaged, replaces that and runs it again: a miss, not an error.
    pub(crate) fn heal<T>(&self, op: impl Fn() -> Outcome<T>) -> Result<T> {
        let generation = self.db.generation();
        match op() {
            Err(Fault::Damaged(_) | Fault::Missing) => {
                self.db.replace(generation)?;
                self.sound().clear();
                self.enter_boot().and_then(|()| op()).map_err(|fault| fault.into_port(self.db.path()))
            }
            other => other.map_err(|fault| fault.into_port(self.db.path())),
        }
    }

    pub(crate) fn sound(&self) -> MutexGuard<'_, HashSet<LayerId>> {
        self.sound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn used(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error when the gate could not be had.
pub(crate) fn in_use() -> PortError {
    PortError::new(ErrorKind::Io, "the store is in use by another process that cannot be waited for")
        .help("a build on a full disk holds the whole store: let it end, or stop it, and try again")
}

impl CacheIndex for Index {
    fn probe(&self, query: &KeyQuery) -> Result<Vec<KeyId>> {
        self.heal(|| {
            self.db
                .read(|db| crate::keys::find(db, query))
                .map(|found| found.into_iter().map(|it| it.name).collect())
        })
    }

    fn records(&self, keys: &[KeyId]) -> Result<Vec<Record>> {
        self.heal(|| self.find_records(keys))
    }

    fn save(&self, query: &KeyQuery, record: Option<&NewRecord>) -> Result<KeyId> {
        self.heal(|| self.save_key(query, record))
    }

    fn forget(&self, record: i64) -> Result<()> {
        self.heal(|| self.forget_records(&[record]))
    }

    fn layer(&self, layer: &LayerId) -> Result<Option<LayerRow>> {
        self.heal(|| self.find_layer(layer))
    }

    fn put_layer(&self, row: &LayerRow) -> Result<()> {
        self.heal(|| self.join_layer(row))
    }

    fn image(&self, name: &str) -> Result<Option<ImageRecord>> {
        self.heal(|| self.find_image(name))
    }

    fn images(&self) -> Result<Vec<ImageRecord>> {
        self.heal(|| self.all_images())
    }

    fn put_image(&self, image: &ImageRecord) -> Result<()> {
        self.heal(|| self.save_image(image))
    }

    fn note(&self, name: &str) -> Result<Option<String>> {
        self.heal(|| self.find_note(name))
    }

    fn put_note(&self, name: &str, value: &str) -> Result<()> {
        self.heal(|| self.save_note(name, value))
    }
}

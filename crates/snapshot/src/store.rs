//! The port: layers on the disk, and what can be done with them.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rbuild_graph::{CacheSharing, FileOp};
use rbuild_ports::{
    ActiveLayer, CacheMount, CacheMountInfo, CancelToken, Clock, CommittedLayer, ErrorKind, FileInput,
    LayerId, OverlayDirs, PortError, Progress, Result, Snapshot, Snapshots, View,
};
use rbuild_tree::Time;
use rustix::fs::{self, FileType};

use crate::active::{OpenLayer, open_layer};
use crate::cache_mount::CacheMounts;
use crate::file_op;
use crate::meta::Maker;
use crate::pool::Pool;
use crate::seal::{committed, count, publish};
use crate::sys;
use crate::unpack::{Below, unpack};
use crate::view::LayerView;
use crate::work::Workspace;
use crate::write_tar::write_tar;

/// Called with a layer's name before the layer becomes visible or is looked for, so that it can be protected from
/// garbage collection.
pub type PinLayer = Arc<dyn Fn(&LayerId) -> Result<()> + Send + Sync>;

/// How layers are made and read.
pub struct LayerStoreOptions {
    /// This process is root of a user namespace, and overlays are mounted with `userxattr`.
    pub userns: bool,
    /// Owners that the user namespace does not have become the own one, instead of an error.
    pub squash_owners: bool,
    /// The time for directories and files that have no other.
    pub clock: Arc<dyn Clock>,
    /// Protects layers.
    pub pin: PinLayer,
}

/// Layers, merged views and cache mounts below a store's directory.
pub struct LayerStore {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) layers_path: PathBuf,
    pub(crate) layers: OwnedFd,
    pub(crate) space: Arc<Workspace>,
    pub(crate) maker: Maker,
    pub(crate) pool: Arc<Pool>,
    pub(crate) pin: PinLayer,
    /// What copies of local contexts remember of their last run.
    pub(crate) copies: PathBuf,
    caches: PathBuf,
    clock: Arc<dyn Clock>,
    unpacking: Mutex<HashSet<LayerId>>,
    unpacked: Condvar,
}

/// How long a layer waits for layers below it that nobody in this process is unpacking.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks whether another process made them, or somebody cancelled.
const GLANCE: Duration = Duration::from_millis(20);

impl LayerStore {
    /// Opens the directories `layers`, `work` and `cachemounts` below `root`, and makes them if they are missing.
    /// What dead processes left in `work` is removed.
    ///
    /// # Errors
    /// If they cannot be made or read.
    pub fn open(root: &Path, options: LayerStoreOptions) -> Result<Self> {
        let LayerStoreOptions { userns, squash_owners, clock, pin } = options;
        let layers_path = make_dir(root, "layers")?;
        let caches = make_dir(root, "cachemounts")?;
        let space = Workspace::open(&make_dir(root, "work")?)?;
        let layers = sys::open_at(fs::CWD, layers_path.as_os_str().as_encoded_bytes(), sys::DIR)
            .map_err(|e| PortError::io("open", &layers_path, e))?;
        let shared = Shared {
            layers_path,
            layers,
            space,
            maker: Maker::new(userns, squash_owners),
            pool: Arc::default(),
            pin,
            copies: root.join("copies"),
            caches,
            clock,
            unpacking: Mutex::default(),
            unpacked: Condvar::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The names of all layers on the disk, sorted.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn layers(&self) -> Result<Vec<LayerId>> {
        let shared = &self.shared;
        let list = || sys::list(sys::open_at(&shared.layers, b".", sys::DIR)?);
        let names = list().map_err(|e| PortError::io("list", &shared.layers_path, e))?;
        Ok(names.iter().filter_map(|(name, _)| std::str::from_utf8(name).ok()?.parse().ok()).collect())
    }

    /// A layer as it is on the disk now: entries and bytes are counted.
    ///
    /// # Errors
    /// `NotFound` when it is not there; otherwise if it cannot be read.
    pub fn measure(&self, layer: &LayerId) -> Result<CommittedLayer> {
        Ok(committed(layer.clone(), count(open_layer(&self.shared, layer.as_str())?)?))
    }

    fn caches(&self) -> CacheMounts<'_> {
        CacheMounts { dir: &self.shared.caches }
    }
}

fn make_dir(root: &Path, name: &str) -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let path = root.join(name);
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.map_err(|e| PortError::io("create", &path, e))?;
    Ok(path)
}

impl Shared {
    /// The merged view of layers, given from the bottom up.
    pub(crate) fn view(&self, layers: &[LayerId]) -> Result<Arc<LayerView>> {
        self.view_with(None, layers)
    }

    /// The same with one more directory on top.
    pub(crate) fn view_with(&self, top: Option<OwnedFd>, layers: &[LayerId]) -> Result<Arc<LayerView>> {
        let mut parts: Vec<OwnedFd> = top.into_iter().collect();
        for layer in layers.iter().rev() {
            parts.push(open_layer(self, layer.as_str())?);
        }
        Ok(Arc::new(LayerView::new(parts, self.maker.clone(), self.pool.clone())))
    }

    pub(crate) fn lower_dirs(&self, layers: &[LayerId]) -> OverlayDirs {
        OverlayDirs {
            base: self.layers_path.clone(),
            lower: layers.iter().map(ToString::to_string).collect(),
            upper: None,
            work: None,
        }
    }

    pub(crate) fn new_layer_id(&self) -> Result<LayerId> {
        let random = sys::random().map_err(|e| PortError::io("read", "/dev/urandom", e))?;
        Ok(LayerId::named('l', &random))
    }

    /// The time now.
    pub(crate) fn now(&self) -> Time {
        Time::from_nanos(self.clock.now().0)
    }

    fn present(&self, layer: &LayerId) -> bool {
        let stat = sys::stat_at(&self.layers, layer.as_str().as_bytes());
        matches!(stat, Ok(Some(stat)) if sys::file_type(&stat) == FileType::Directory)
    }

    /// Waits while somebody in this process unpacks `layer`; then it is this caller's to unpack.
    fn begin<'a>(&'a self, layer: &LayerId, cancel: &CancelToken) -> Result<Turn<'a>> {
        let mut unpacking = self.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        while unpacking.contains(layer) {
            cancel.check()?;
            unpacking =
                self.unpacked.wait_timeout(unpacking, GLANCE).unwrap_or_else(PoisonError::into_inner).0;
        }
        unpacking.insert(layer.clone());
        Ok(Turn { shared: self, layer: layer.clone() })
    }
}

/// While it lives, a layer is being unpacked.
struct Turn<'a> {
    shared: &'a Shared,
    layer: LayerId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.unpacking.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.layer);
        self.shared.unpacked.notify_all();
    }
}

/// The layers below one that is unpacked, which may still be on their way.
struct Parents<'a> {
    shared: &'a Shared,
    layers: &'a [LayerId],
    cancel: &'a CancelToken,
}

impl Below for Parents<'_> {
    fn view(&self) -> Result<Arc<LayerView>> {
        let mut since = Instant::now();
        let mut unpacking = self.shared.unpacking.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(missing) = self.layers.iter().find(|layer| !self.shared.present(layer)) {
            self.cancel.check()?;
            if unpacking.contains(missing) {
                since = Instant::now();
            } else if since.elapsed() > PATIENCE {
                let message = format!("layer {missing}, which another one needs, is not in the store");
                return Err(PortError::new(ErrorKind::NotFound, message));
            }
            let waited = self.shared.unpacked.wait_timeout(unpacking, GLANCE);
            unpacking = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(unpacking);
        self.shared.view(self.layers)
    }
}

impl Snapshots for LayerStore {
    fn present(&self, layer: &LayerId) -> bool {
        self.shared.present(layer)
    }

    fn view(&self, snapshot: &Snapshot) -> Result<Arc<dyn View>> {
        Ok(self.shared.view(&snapshot.layers)?)
    }

    fn prepare(&self, parent: &Snapshot) -> Result<Box<dyn ActiveLayer>> {
        Ok(Box::new(OpenLayer::new(self.shared.clone(), parent)?))
    }

    fn lower_dirs(&self, snapshot: &Snapshot) -> Result<OverlayDirs> {
        match snapshot.layers.iter().find(|layer| !self.present(layer)) {
            Some(missing) => {
                Err(PortError::new(ErrorKind::NotFound, format!("layer {missing} is not in the store")))
            }
            None => Ok(self.shared.lower_dirs(&snapshot.layers)),
        }
    }

    fn run_file_op(
        &self,
        op: &FileOp,
        inputs: &[FileInput],
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Vec<(Snapshot, CommittedLayer)>> {
        file_op::run(&self.shared, op, inputs, progress, cancel)
    }

    /// The layers below may be on their way while this runs, as long as layers are begun from the bottom up; they
    /// are waited for where they are needed. `tar` is read to its end before anything becomes visible: an error
    /// that it gives there (a wrong digest) keeps the layer from becoming visible.
    fn unpack(
        &self,
        id: &LayerId,
        parents: &[LayerId],
        tar: &mut dyn Read,
        cancel: &CancelToken,
    ) -> Result<CommittedLayer> {
        let shared = &*self.shared;
        (shared.pin)(id)?;
        let _turn = shared.begin(id, cancel)?;
        if shared.present(id) {
            return self.measure(id);
        }
        let scratch = shared.space.scratch()?;
        let root = scratch.subdir("fs")?;
        let below = Parents { shared, layers: parents, cancel };
        unpack(root, &shared.maker, tar, &below, cancel)?;
        let root = sys::open_at(scratch.dir(), b"fs", sys::DIR)
            .map_err(|e| PortError::io("open", scratch.path(), e))?;
        let count = count(root)?;
        // Another process may have been faster: its layer has the same content.
        publish(scratch.dir(), "fs", &shared.layers, id)?;
        Ok(committed(id.clone(), count))
    }

    fn write_tar(&self, layer: &LayerId, latest: Option<i64>, out: &mut dyn Write) -> Result<()> {
        write_tar(
            open_layer(&self.shared, layer.as_str())?,
            &self.shared.maker,
            latest.map(Time::from_secs),
            out,
        )
    }

    fn cache_mount(
        &self,
        id: &str,
        sharing: CacheSharing,
        init: Option<&Snapshot>,
        cancel: &CancelToken,
    ) -> Result<Box<dyn CacheMount>> {
        let fill = |path: &Path| file_op::fill_directory(&self.shared, init, path, cancel);
        Ok(Box::new(self.caches().open(id, sharing, &fill, cancel)?))
    }

    fn remove(&self, layer: &LayerId) -> Result<()> {
        let shared = &self.shared;
        let removed = shared.space.discard(&shared.layers, layer.as_str());
        removed.map(drop).map_err(|e| PortError::io("remove", shared.layers_path.join(layer.as_str()), e))
    }

    fn matches(&self, layer: &CommittedLayer) -> Result<bool> {
        match self.measure(&layer.layer) {
            Ok(found) => Ok(layer.is_still(&found)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn cache_mounts(&self) -> Result<Vec<CacheMountInfo>> {
        self.caches().list()
    }

    fn has_cache_mount(&self, id: &str) -> Result<bool> {
        Ok(self.caches().has(id))
    }

    fn write_cache_mount(&self, id: &str, out: &mut dyn Write) -> Result<bool> {
        let Some(held) = self.caches().held(id)? else { return Ok(false) };
        let path = held.path().as_os_str().as_encoded_bytes();
        let root =
            sys::open_at(fs::CWD, path, sys::DIR).map_err(|e| PortError::io("open", held.path(), e))?;
        write_tar(root, &self.shared.maker, None, out)?;
        Ok(true)
    }

    fn remove_cache_mount(&self, id: &str) -> Result<bool> {
        self.caches().remove(id, &|home, name| {
            let fail = |e: rustix::io::Errno| PortError::io("remove", home.join(name), e);
            let dir = sys::open_at(fs::CWD, home.as_os_str().as_encoded_bytes(), sys::DIR).map_err(fail)?;
            self.shared.space.discard(&dir, name).map(drop).map_err(fail)
        })
    }
}

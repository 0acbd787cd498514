//! What the index promises, tested on a real database in a temporary directory with plain directories for layers.

mod algebra;
mod boots;
mod damage;
mod lookups;
mod plans;
mod processes;
mod pruning;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rbuild_digest::Digest;
use rbuild_graph::{CacheSharing, FileOp};
use rbuild_oci::Descriptor;
use rbuild_ports::{
    ActiveLayer, Alternative, BlobStore, CacheIndex, CacheMount, CacheMountInfo, CancelToken, Clock,
    CommittedLayer, ErrorKind, FileInput, KeyId, KeyQuery, LayerBlob, LayerId, LayerRow, NewRecord,
    OverlayDirs, PortError, Progress, Record, RecordKind, RemoteBlob, Result, Snapshot, Snapshots, Timestamp,
    View,
};
use rbuild_store::{BootId, Root, Store};

use crate::{Index, OpenReport, Options, PruneOptions, PruneReport, UsageKind};

/// A clock that is moved by hand; in seconds.
#[derive(Default)]
pub(crate) struct HandClock(AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst) * 1_000_000_000)
    }
}

/// Layers as plain directories in the store.
pub(crate) struct Directories(Arc<Root>);

fn unsupported<T>() -> Result<T> {
    Err(PortError::new(ErrorKind::Unsupported, "not in these tests"))
}

impl Snapshots for Directories {
    fn present(&self, layer: &LayerId) -> bool {
        self.0.layer_dir(layer).exists()
    }

    fn view(&self, _: &Snapshot) -> Result<Arc<dyn View>> {
        unsupported()
    }

    fn prepare(&self, _: &Snapshot) -> Result<Box<dyn ActiveLayer>> {
        unsupported()
    }

    fn lower_dirs(&self, _: &Snapshot) -> Result<OverlayDirs> {
        unsupported()
    }

    fn run_file_op(
        &self,
        _: &FileOp,
        _: &[FileInput],
        _: &dyn Progress,
        _: &CancelToken,
    ) -> Result<Vec<(Snapshot, CommittedLayer)>> {
        unsupported()
    }

    fn unpack(
        &self,
        _: &LayerId,
        _: &[LayerId],
        _: &mut dyn std::io::Read,
        _: &CancelToken,
    ) -> Result<CommittedLayer> {
        unsupported()
    }

    fn write_tar(&self, _: &LayerId, _: Option<i64>, _: &mut dyn Write) -> Result<()> {
        unsupported()
    }

    fn cache_mount(
        &self,
        _: &str,
        _: CacheSharing,
        _: Option<&Snapshot>,
        _: &CancelToken,
    ) -> Result<Box<dyn CacheMount>> {
        unsupported()
    }

    fn remove(&self, layer: &LayerId) -> Result<()> {
        match std::fs::remove_dir_all(self.0.layer_dir(layer)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(PortError::io("remove", "layer", error))
            }
            _ => Ok(()),
        }
    }

    fn matches(&self, committed: &CommittedLayer) -> Result<bool> {
        let dir = self.0.layer_dir(&committed.layer);
        let files = std::fs::read_dir(&dir).map_err(|error| PortError::io("read", &dir, error))?;
        let sizes: Vec<u64> = files.map(|file| file.unwrap().metadata().unwrap().len()).collect();
        Ok((committed.entries, committed.bytes) == (sizes.len() as u64, sizes.iter().sum()))
    }

    fn cache_mounts(&self) -> Result<Vec<CacheMountInfo>> {
        let dir = self.0.path().join("cachemounts");
        let mut out: Vec<CacheMountInfo> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| {
                let id = entry.unwrap().file_name().into_string().unwrap();
                CacheMountInfo { in_use: id.starts_with("busy"), id, bytes: 1000, last_used: Timestamp(0) }
            })
            .collect();
        out.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(out)
    }

    fn remove_cache_mount(&self, id: &str) -> Result<bool> {
        std::fs::remove_file(self.0.path().join("cachemounts").join(id)).unwrap();
        Ok(true)
    }
}

/// A directory for stores, and the time in it.
pub(crate) struct Space {
    dir: tempfile::TempDir,
    clock: Arc<HandClock>,
}

/// One process's view of a store.
pub(crate) struct Open {
    pub(crate) root: Arc<Root>,
    pub(crate) blobs: Arc<Store>,
    pub(crate) index: Index,
    pub(crate) report: OpenReport,
}

impl Space {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(HandClock::default());
        clock.0.store(1_000_000, Ordering::SeqCst);
        Self { dir: tempfile::tempdir().unwrap(), clock }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path().join("index.db")
    }

    pub(crate) fn open(&self) -> Open {
        self.open_in("boot-1")
    }

    pub(crate) fn open_in(&self, boot: &str) -> Open {
        self.try_open(boot).unwrap()
    }

    pub(crate) fn try_open(&self, boot: &str) -> Result<Open> {
        open_at(self.path(), boot, self.clock.clone())
    }

    /// Lets time pass.
    pub(crate) fn wait(&self, seconds: i64) {
        self.clock.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

pub(crate) fn open_at(path: PathBuf, boot: &str, clock: Arc<HandClock>) -> Result<Open> {
    let root = Root::open(path, BootId::new(boot).unwrap())?;
    let blobs = Arc::new(Store::open(&root)?);
    let snapshots = Arc::new(Directories(root.clone()));
    let (index, report) = Index::open(&root, Options { snapshots, blobs: blobs.clone(), clock })?;
    Ok(Open { root, blobs, index, report })
}

impl Open {
    /// Makes a layer directory with one file of so many bytes, and its row.
    pub(crate) fn layer(&self, name: &str, bytes: usize) -> LayerId {
        let row = self.directory(name, bytes);
        self.index.put_layer(&row).unwrap();
        row.layer.layer
    }

    /// The directory alone.
    pub(crate) fn directory(&self, name: &str, bytes: usize) -> LayerRow {
        let layer: LayerId = name.parse().unwrap();
        let dir = self.root.layer_dir(&layer);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("file"), vec![1; bytes]).unwrap();
        row(name, 1, bytes as u64)
    }

    /// Saves a record of `op` with these layers.
    pub(crate) fn record(&self, op: &str, layers: &[&LayerId]) -> KeyId {
        self.index.save(&root_query(op), Some(&new_record(op, layers))).unwrap()
    }

    /// The descriptions of what is found for `op`.
    pub(crate) fn found(&self, op: &str) -> Vec<String> {
        let keys = self.index.probe(&root_query(op)).unwrap();
        descriptions(&self.index.records(&keys).unwrap())
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> Digest {
        let mut writer = self.blobs.writer().unwrap();
        writer.write_all(bytes).unwrap();
        writer.commit(None).unwrap().0
    }

    pub(crate) fn prune(&self, options: &PruneOptions) -> PruneReport {
        self.index.prune(options).unwrap()
    }

    /// What takes space, as `kind id size`.
    pub(crate) fn usage(&self) -> Vec<String> {
        let rows = self.index.usage().unwrap();
        rows.iter().map(|row| format!("{} {} {}", row.kind, short(row.kind, &row.id), row.size)).collect()
    }
}

pub(crate) fn short(kind: UsageKind, id: &str) -> &str {
    if kind == UsageKind::Blob { &id[..11] } else { id }
}

pub(crate) fn descriptions(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| record.description.clone()).collect()
}

pub(crate) fn row(name: &str, entries: u64, bytes: u64) -> LayerRow {
    LayerRow {
        layer: CommittedLayer { layer: name.parse().unwrap(), entries, bytes, stamp: 0 },
        diff_id: None,
        blobs: vec![],
        remotes: vec![],
        created: Timestamp(5),
    }
}

pub(crate) fn blob_of(digest: Digest, size: u64) -> LayerBlob {
    LayerBlob { descriptor: Descriptor::new("application/test", digest, size), maker: "pulled".to_owned() }
}

pub(crate) fn remote_of(bytes: &str) -> RemoteBlob {
    let descriptor = Descriptor::new("application/test", Digest::of(bytes), bytes.len() as u64);
    RemoteBlob { location: "registry.test/app".to_owned(), descriptor }
}

pub(crate) fn new_record(description: &str, layers: &[&LayerId]) -> NewRecord {
    NewRecord {
        snapshot: Snapshot { layers: layers.iter().map(|layer| (*layer).clone()).collect() },
        created: Timestamp(1),
        description: description.to_owned(),
        cost_ms: 1000,
        kind: RecordKind::Local,
        preimage: format!("op {description}"),
    }
}

pub(crate) fn root_query(op: &str) -> KeyQuery {
    KeyQuery { op: Digest::of(op), output: 0, inputs: vec![] }
}

/// A query of `op` over inputs; each alternative is a key, or `key/selector`.
pub(crate) fn query(op: &str, inputs: &[&[&str]]) -> KeyQuery {
    let alternative = |text: &&str| {
        let (key, selector) =
            text.split_once('/').map_or((*text, None), |(key, it)| (key, Some(Digest::of(it))));
        Alternative { key: KeyId(key.into()), selector }
    };
    let inputs = inputs.iter().map(|input| input.iter().map(alternative).collect()).collect();
    KeyQuery { op: Digest::of(op), output: 0, inputs }
}

pub(crate) fn everything() -> PruneOptions {
    PruneOptions { all: true, ..PruneOptions::default() }
}

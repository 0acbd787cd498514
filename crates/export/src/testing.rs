//! Small stand-ins for the ports, for this crate's tests.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rbuild_digest::Digest;
use rbuild_graph::{CacheSharing, FileOp, GitSource, HttpSource, LocalSource};
use rbuild_oci::Descriptor;
use rbuild_ports::fakes::MemoryIndex;
use rbuild_ports::*;
use rbuild_tree::{Entry, Kind, RelPath, Time};

use crate::{EngineAccess, ExportContext};

type Shared = Arc<Mutex<BTreeMap<Digest, Vec<u8>>>>;

/// Blobs in memory, with an optional limit a blob.
#[derive(Default)]
pub(crate) struct Blobs {
    all: Shared,
    limit: Option<usize>,
    reread: Arc<AtomicUsize>,
}

struct Writer {
    all: Shared,
    data: Arc<Written>,
    limit: Option<usize>,
}

/// What was written of a blob, and how often some of it was read again.
#[derive(Default)]
struct Written(Mutex<Vec<u8>>, Arc<AtomicUsize>);

impl Blobs {
    pub(crate) fn full_after(bytes: usize) -> Self {
        Self { limit: Some(bytes), ..Self::default() }
    }

    pub(crate) fn read(&self, digest: &Digest) -> Vec<u8> {
        self.all.lock().unwrap()[digest].clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.lock().unwrap().is_empty()
    }

    pub(crate) fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, Vec<u8>>> {
        self.all.lock().unwrap()
    }

    /// How often something of a blob was read again while or after it was written.
    pub(crate) fn reread(&self) -> usize {
        self.reread.load(Ordering::Relaxed)
    }

    /// Flips a bit of a blob.
    pub(crate) fn damage(&self, digest: &Digest) {
        self.all.lock().unwrap().get_mut(digest).unwrap()[0] ^= 1;
    }
}

impl BlobStore for Blobs {
    fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        Ok(self.all.lock().unwrap().get(digest).map(|bytes| bytes.len() as u64))
    }

    fn open(&self, digest: &Digest) -> Result<Box<dyn BlobReader>> {
        match self.all.lock().unwrap().get(digest) {
            Some(bytes) => Ok(Box::new(Cursor::new(bytes.clone()))),
            None => Err(PortError::new(ErrorKind::NotFound, format!("no blob {digest}"))),
        }
    }

    fn writer(&self) -> Result<Box<dyn BlobWriter>> {
        let data = Arc::new(Written(Mutex::default(), self.reread.clone()));
        Ok(Box::new(Writer { all: self.all.clone(), data, limit: self.limit }))
    }

    fn remove(&self, digest: &Digest) -> Result<()> {
        self.all.lock().unwrap().remove(digest);
        Ok(())
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.limit.is_some_and(|limit| self.data.0.lock().unwrap().len() + bytes.len() > limit) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.data.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ReadAt for Written {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let written = self.0.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        match written.get(at..at + buffer.len()) {
            Some(found) => buffer.copy_from_slice(found),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }
}

impl BlobWriter for Writer {
    fn written(&self) -> Option<Arc<dyn ReadAt>> {
        Some(self.data.clone())
    }

    fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let data = self.data.0.lock().unwrap().clone();
        let digest = Digest::of(&data);
        if expected.is_some_and(|expected| *expected != digest) {
            return Err(PortError::new(ErrorKind::Corrupt, format!("the blob is {digest}")));
        }
        let size = data.len() as u64;
        self.all.lock().unwrap().insert(digest, data);
        Ok((digest, size))
    }
}

/// Layers as tars, and directories that stand for whole snapshots.
#[derive(Default)]
pub(crate) struct Layers {
    pub(crate) tars: Mutex<BTreeMap<LayerId, Vec<u8>>>,
    pub(crate) dirs: Mutex<BTreeMap<LayerId, PathBuf>>,
    /// How often a tar was written.
    pub(crate) written: Mutex<usize>,
}

fn unused<T>() -> Result<T> {
    Err(PortError::new(ErrorKind::Internal, "exports do not use this"))
}

impl Snapshots for Layers {
    fn present(&self, layer: &LayerId) -> bool {
        self.tars.lock().unwrap().contains_key(layer) || self.dirs.lock().unwrap().contains_key(layer)
    }

    fn view(&self, snapshot: &Snapshot) -> Result<Arc<dyn View>> {
        let dirs = self.dirs.lock().unwrap();
        let dir = snapshot.layers.last().and_then(|top| dirs.get(top)).cloned();
        Ok(Arc::new(DirView(dir.ok_or_else(|| PortError::new(ErrorKind::NotFound, "no such layer"))?)))
    }

    fn prepare(&self, _: &Snapshot) -> Result<Box<dyn ActiveLayer>> {
        unused()
    }

    fn lower_dirs(&self, _: &Snapshot) -> Result<OverlayDirs> {
        unused()
    }

    fn run_file_op(
        &self,
        _: &FileOp,
        _: &[FileInput],
        _: &dyn Progress,
        _: &CancelToken,
    ) -> Result<Vec<(Snapshot, CommittedLayer)>> {
        unused()
    }

    fn unpack(
        &self,
        _: &LayerId,
        _: &[LayerId],
        _: &mut dyn Read,
        _: &CancelToken,
    ) -> Result<CommittedLayer> {
        unused()
    }

    fn write_tar(&self, layer: &LayerId, _: Option<i64>, out: &mut dyn Write) -> Result<()> {
        *self.written.lock().unwrap() += 1;
        let tar = self.tars.lock().unwrap().get(layer).cloned();
        let tar = tar.ok_or_else(|| PortError::new(ErrorKind::NotFound, format!("no layer {layer}")))?;
        tar.chunks(100_000)
            .try_for_each(|part| out.write_all(part))
            .map_err(|error| PortError::io("write", "tar", error))
    }

    fn cache_mount(
        &self,
        _: &str,
        _: CacheSharing,
        _: Option<&Snapshot>,
        _: &CancelToken,
    ) -> Result<Box<dyn CacheMount>> {
        unused()
    }

    fn remove(&self, _: &LayerId) -> Result<()> {
        unused()
    }

    fn matches(&self, _: &CommittedLayer) -> Result<bool> {
        unused()
    }
}

/// A directory of the disk as a tree.
struct DirView(PathBuf);

impl DirView {
    fn path(&self, path: &RelPath) -> PathBuf {
        self.0.join(std::ffi::OsStr::from_bytes(path.as_bytes()))
    }
}

impl View for DirView {
    fn lookup(&self, path: &RelPath) -> Result<Option<Entry>> {
        let at = self.path(path);
        let Ok(meta) = at.symlink_metadata() else { return Ok(None) };
        let kind = match meta.file_type() {
            t if t.is_dir() => Kind::Dir,
            t if t.is_symlink() => {
                Kind::Symlink { target: at.read_link().unwrap().into_os_string().into_vec() }
            }
            t if t.is_fifo() => Kind::Fifo,
            _ => Kind::File { size: meta.len() },
        };
        let mut entry = Entry::new(path.clone(), kind, meta.mode() & 0o7777);
        (entry.uid, entry.gid) = (meta.uid(), meta.gid());
        entry.mtime = Time { secs: meta.mtime(), nanos: meta.mtime_nsec() as u32 };
        Ok(Some(entry))
    }

    fn children(&self, path: &RelPath) -> Result<Vec<Vec<u8>>> {
        let names = self.path(path).read_dir().map_err(|e| PortError::io("read", self.path(path), e))?;
        let mut names: Vec<Vec<u8>> = names.map(|name| name.unwrap().file_name().into_vec()).collect();
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &RelPath) -> Result<File> {
        File::open(self.path(path)).map_err(|e| PortError::io("open", self.path(path), e))
    }

    fn entry_digest(&self, _: &RelPath) -> Result<Digest> {
        unused()
    }
}

/// Blobs that can be fetched, by digest.
#[derive(Default)]
pub(crate) struct Remote {
    pub(crate) blobs: Mutex<BTreeMap<Digest, Vec<u8>>>,
    pub(crate) fetched: Mutex<Vec<Digest>>,
}

impl Sources for Remote {
    fn resolve_image(&self, _: &ImageRequest, _: ResolveMode, _: &CancelToken) -> Result<ResolvedImage> {
        unused()
    }

    fn fetch_blob(&self, blob: &RemoteBlob, _: &CancelToken) -> Result<Box<dyn Read + Send>> {
        let digest = blob.descriptor.digest;
        match self.blobs.lock().unwrap().get(&digest) {
            Some(bytes) => {
                self.fetched.lock().unwrap().push(digest);
                Ok(Box::new(Cursor::new(bytes.clone())))
            }
            None => Err(PortError::new(ErrorKind::NotFound, format!("{} has no {digest}", blob.location))),
        }
    }

    fn local(&self, _: &LocalSource, _: &CancelToken) -> Result<Arc<dyn View>> {
        unused()
    }

    fn http(&self, _: &HttpSource, _: &dyn Progress, _: &CancelToken) -> Result<(Arc<dyn View>, Digest)> {
        unused()
    }

    fn resolve_git(&self, _: &str, _: &str, _: &CancelToken) -> Result<ResolvedGit> {
        unused()
    }

    fn git(&self, _: &GitSource, _: &dyn Progress, _: &CancelToken) -> Result<Arc<dyn View>> {
        unused()
    }

    fn git_commit_time(&self, _: &GitSource, _: &dyn Progress, _: &CancelToken) -> Result<i64> {
        unused()
    }
}

/// Ten seconds past 1970.
pub(crate) struct Ten;

impl Clock for Ten {
    fn now(&self) -> Timestamp {
        Timestamp(10_000_000_000)
    }
}

/// Keeps warnings.
#[derive(Default)]
pub(crate) struct Warnings(pub(crate) Mutex<Vec<String>>);

impl Progress for Warnings {
    fn log(&self, _: Stream, _: &[u8]) {}
    fn status(&self, _: &str, _: u64, _: Option<u64>, _: bool) {}
    fn warn(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
}

/// Everything an export needs.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) blobs: Blobs,
    pub(crate) layers: Layers,
    pub(crate) index: MemoryIndex,
    pub(crate) remote: Remote,
    pub(crate) warnings: Warnings,
    pub(crate) cancel: CancelToken,
    pub(crate) engine: EngineAccess,
}

impl World {
    pub(crate) fn cx(&self) -> ExportContext<'_> {
        ExportContext {
            blobs: &self.blobs,
            snapshots: &self.layers,
            index: &self.index,
            sources: &self.remote,
            materialise: &|_| Ok(()),
            registry: None,
            clock: &Ten,
            progress: &self.warnings,
            cancel: &self.cancel,
            threads: 2,
            stdout: None,
            engine: &self.engine,
        }
    }

    /// A layer that a step made, `created` seconds past 1970.
    pub(crate) fn layer(&self, name: &str, tar: &[u8], created: i64) -> LayerId {
        let id: LayerId = name.parse().unwrap();
        self.layers.tars.lock().unwrap().insert(id.clone(), tar.to_vec());
        self.row(&id, tar.len() as u64, None, vec![], vec![], created);
        id
    }

    /// A layer of a base image, which is only in a registry.
    pub(crate) fn remote_layer(&self, tar: &[u8], location: &str) -> (LayerId, Descriptor) {
        let blob = gzip(tar);
        let diff_id = Digest::of(tar);
        let descriptor =
            Descriptor::new(rbuild_oci::media_type::DOCKER_LAYER_GZIP, Digest::of(&blob), blob.len() as u64);
        self.remote.blobs.lock().unwrap().insert(descriptor.digest, blob);
        let id = LayerId::of_diff_id(&diff_id);
        let remote = RemoteBlob { location: location.to_owned(), descriptor: descriptor.clone() };
        self.row(&id, 0, Some(diff_id), vec![], vec![remote], 1);
        (id, descriptor)
    }

    fn row(
        &self,
        id: &LayerId,
        bytes: u64,
        diff_id: Option<Digest>,
        blobs: Vec<LayerBlob>,
        remotes: Vec<RemoteBlob>,
        created: i64,
    ) {
        let layer = CommittedLayer { layer: id.clone(), entries: 1, bytes, stamp: 0 };
        let created = Timestamp(created * 1_000_000_000);
        self.index.put_layer(&LayerRow { layer, diff_id, blobs, remotes, created }).unwrap();
    }

    /// A snapshot whose files are those of `dir`.
    pub(crate) fn tree(&self, name: &str, dir: &Path) -> Snapshot {
        let id: LayerId = name.parse().unwrap();
        self.layers.dirs.lock().unwrap().insert(id.clone(), dir.to_owned());
        Snapshot { layers: vec![id] }
    }
}

/// An ordinary gzip file.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::new(6));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap();
    out
}

/// A tar with these files.
pub(crate) fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut out = rbuild_tree::TarWriter::new(vec![]);
    for (name, text) in files {
        let entry = Entry::new(RelPath::parse(name).unwrap(), Kind::File { size: text.len() as u64 }, 0o644);
        out.entry(&entry, text.as_bytes()).unwrap();
    }
    out.finish().unwrap()
}

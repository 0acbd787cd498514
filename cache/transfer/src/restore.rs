//! Contents of cache mounts, in: a mount that is new here begins with what an imported cache has of it, fetched when the first
//! step that uses it runs. What cannot be had is an empty mount, as without an import.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_cache_remote::{Chunk, MountContent, MountIndex};
use rbuild_digest::Digest;
use rbuild_graph::{CacheSharing, FileOp};
use rbuild_oci::Descriptor;
use rbuild_ports::{
    ActiveLayer, CacheMount, CacheMountInfo, CancelToken, CommittedLayer, ErrorKind, FileInput, LayerId,
    OverlayDirs, PortError, Progress, RemoteBlob, Result, Snapshot, Snapshots, Sources, View,
};

use crate::{CombinedIndex, ImportedCache};

/// The largest list of mounts that is read.
const MAX_INDEX: u64 = 64 << 20;

/// Layer directories whose cache mounts begin with what imports have.
pub struct RestoringSnapshots {
    inner: Arc<dyn Snapshots>,
    sources: Arc<dyn Sources>,
    imports: Arc<CombinedIndex>,
    platforms: Vec<String>,
    warn: Arc<dyn Fn(String) + Send + Sync>,
    /// One lock a mount: whoever comes second finds it filled.
    busy: Mutex<HashMap<String, Arc<Mutex<bool>>>>,
    /// The lists that were read, by their digests.
    lists: Mutex<BTreeMap<Digest, Arc<MountIndex>>>,
}

impl RestoringSnapshots {
    /// `inner`, with the mounts of `imports` for these platforms.
    #[must_use]
    pub fn new(
        inner: Arc<dyn Snapshots>,
        sources: Arc<dyn Sources>,
        imports: Arc<CombinedIndex>,
        platforms: Vec<String>,
        warn: Arc<dyn Fn(String) + Send + Sync>,
    ) -> Self {
        Self { inner, sources, imports, platforms, warn, busy: Mutex::default(), lists: Mutex::default() }
    }

    /// The first content of a mount from an import, as a layer of its own; `None` when there is none.
    fn restored(&self, id: &str, cancel: &CancelToken) -> Result<Option<LayerId>> {
        if self.inner.has_cache_mount(id)? {
            return Ok(None);
        }
        for cache in self.imports.caches() {
            let Some(descriptor) = &cache.mounts else { continue };
            let found =
                self.list(&cache, descriptor, cancel).and_then(|list| match list.find(id, &self.platforms) {
                    Some(content) => self.unpack(&cache, content, cancel).map(Some),
                    None => Ok(None),
                });
            match found {
                Ok(Some(layer)) => return Ok(Some(layer)),
                Ok(None) => {}
                Err(error) if error.kind == ErrorKind::Cancelled => return Err(error),
                Err(error) => (self.warn)(format!("cache mount {id} begins empty: {error}")),
            }
        }
        Ok(None)
    }

    fn list(
        &self,
        cache: &ImportedCache,
        descriptor: &Descriptor,
        cancel: &CancelToken,
    ) -> Result<Arc<MountIndex>> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = lists.get(&descriptor.digest) {
            return Ok(list.clone());
        }
        let list =
            Arc::new(MountIndex::parse(&small_blob(&*self.sources, cache, descriptor, MAX_INDEX, cancel)?));
        lists.insert(descriptor.digest, list.clone());
        Ok(list)
    }

    fn unpack(&self, cache: &ImportedCache, content: &MountContent, cancel: &CancelToken) -> Result<LayerId> {
        let name = Digest::of(format!("{} {} {:?}", content.id, content.platform, content.chunks));
        let layer = LayerId::named('m', name.as_bytes());
        let mut tar = Pieces {
            of: self,
            cache,
            left: content.chunks.iter(),
            piece: vec![],
            at: 0,
            cancel,
            failure: None,
        };
        match self.inner.unpack(&layer, &[], &mut tar, cancel) {
            Ok(_) => Ok(layer),
            Err(error) => Err(tar.failure.unwrap_or(error)),
        }
    }
}

/// A verified blob of a cache.
pub(crate) fn small_blob(
    sources: &dyn Sources,
    cache: &ImportedCache,
    descriptor: &Descriptor,
    limit: u64,
    cancel: &CancelToken,
) -> Result<Vec<u8>> {
    if descriptor.size > limit {
        let message = format!("{} has {} bytes, more than {limit}", descriptor.digest, descriptor.size);
        return Err(PortError::new(ErrorKind::Invalid, message));
    }
    let remote = RemoteBlob { location: cache.location.clone(), descriptor: descriptor.clone() };
    let mut bytes = vec![];
    sources
        .fetch_blob(&remote, cancel)?
        .take(descriptor.size.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| PortError::io("read", descriptor.digest.to_string(), error))?;
    if Digest::of(&bytes) != descriptor.digest {
        let message = format!("{} from {} is damaged", descriptor.digest, cache.location);
        return Err(PortError::new(ErrorKind::Corrupt, message));
    }
    Ok(bytes)
}

/// Reads a mount's tar, one piece at a time.
struct Pieces<'a> {
    of: &'a RestoringSnapshots,
    cache: &'a ImportedCache,
    left: std::slice::Iter<'a, Chunk>,
    piece: Vec<u8>,
    at: usize,
    cancel: &'a CancelToken,
    failure: Option<PortError>,
}

impl Pieces<'_> {
    fn next(&self, chunk: &Chunk) -> Result<Vec<u8>> {
        let packed = small_blob(&*self.of.sources, self.cache, &chunk.blob, u64::MAX, self.cancel)?;
        // Both numbers were bounded when the list was read.
        let length = usize::try_from(chunk.length).unwrap_or(0);
        let plain = zstd::bulk::decompress(&packed, length).unwrap_or_default();
        if plain.len() != length || chunk.digest.parse() != Ok(Digest::of(&plain)) {
            let message = format!("{} from {} is damaged", chunk.digest, self.cache.location);
            return Err(PortError::new(ErrorKind::Corrupt, message));
        }
        Ok(plain)
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.piece.len() {
            let Some(chunk) = self.left.next() else { return Ok(0) };
            match self.next(chunk) {
                Ok(piece) => (self.piece, self.at) = (piece, 0),
                Err(error) => {
                    self.failure = Some(error);
                    return Err(io::Error::other("a piece of the cache mount cannot be had"));
                }
            }
        }
        let rest = self.piece.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        self.at += n;
        Ok(n)
    }
}

impl Snapshots for RestoringSnapshots {
    fn cache_mount(
        &self,
        id: &str,
        sharing: CacheSharing,
        init: Option<&Snapshot>,
        cancel: &CancelToken,
    ) -> Result<Box<dyn CacheMount>> {
        let busy = self
            .busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(id.to_owned())
            .or_default()
            .clone();
        let mut done = busy.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *done, true)
            && let Some(layer) = self.restored(id, cancel)?
        {
            let snapshot = Snapshot { layers: vec![layer.clone()] };
            let mount = self.inner.cache_mount(id, sharing, Some(&snapshot), cancel);
            self.inner.remove(&layer)?;
            return mount;
        }
        drop(done);
        self.inner.cache_mount(id, sharing, init, cancel)
    }

    fn present(&self, layer: &LayerId) -> bool {
        self.inner.present(layer)
    }

    fn view(&self, snapshot: &Snapshot) -> Result<Arc<dyn View>> {
        self.inner.view(snapshot)
    }

    fn prepare(&self, parent: &Snapshot) -> Result<Box<dyn ActiveLayer>> {
        self.inner.prepare(parent)
    }

    fn lower_dirs(&self, snapshot: &Snapshot) -> Result<OverlayDirs> {
        self.inner.lower_dirs(snapshot)
    }

    fn run_file_op(
        &self,
        op: &FileOp,
        inputs: &[FileInput],
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Vec<(Snapshot, CommittedLayer)>> {
        self.inner.run_file_op(op, inputs, progress, cancel)
    }

    fn unpack(
        &self,
        id: &LayerId,
        parents: &[LayerId],
        tar: &mut dyn Read,
        cancel: &CancelToken,
    ) -> Result<CommittedLayer> {
        self.inner.unpack(id, parents, tar, cancel)
    }

    fn write_tar(&self, layer: &LayerId, latest: Option<i64>, out: &mut dyn Write) -> Result<()> {
        self.inner.write_tar(layer, latest, out)
    }

    fn remove(&self, layer: &LayerId) -> Result<()> {
        self.inner.remove(layer)
    }

    fn matches(&self, committed: &CommittedLayer) -> Result<bool> {
        self.inner.matches(committed)
    }

    fn cache_mounts(&self) -> Result<Vec<CacheMountInfo>> {
        self.inner.cache_mounts()
    }

    fn has_cache_mount(&self, id: &str) -> Result<bool> {
        self.inner.has_cache_mount(id)
    }

    fn write_cache_mount(&self, id: &str, out: &mut dyn Write) -> Result<bool> {
        self.inner.write_cache_mount(id, out)
    }

    fn remove_cache_mount(&self, id: &str) -> Result<bool> {
        self.inner.remove_cache_mount(id)
    }
}

//! From a name to caches in memory: a cache's own documents, or the records inside the configs of an image's platforms.
//! Several imports are read at the same time, each on a thread of its own, beside the build.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rbuild_cache_remote::{
    CacheConfig, CacheManifest, Imported, ImportedLayer, MOUNTS_TYPE, MountIndex, RemoteDocument,
    inline_config, read_document,
};
use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, ImageConfig, Index, Manifest, media_type, rfc3339};
use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};
use serde_json::Value;

use crate::CacheSource;
use crate::notes::notes_of;

/// Platforms of an image whose inline caches are read.
const MAX_PLATFORMS: usize = 64;
/// On the entries of an index that are no images but say something about one.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// Where image configs have their cache.
const INLINE: &str = "moby.buildkit.cache.v0";

/// A cache in memory, and where its layers are.
#[derive(Debug)]
pub struct ImportedCache {
    /// Records and layers.
    pub imported: Imported,
    /// As `RemoteBlob::location` names it.
    pub location: String,
    /// As people know it.
    pub name: String,
    /// Where it lists contents of cache mounts.
    pub mounts: Option<Descriptor>,
    /// What it tells of the builds that exported it, the latest first.
    pub notes: Vec<Descriptor>,
}

/// Where OCI documents are.
pub(crate) trait Shelf: Sync {
    fn location(&self) -> String;
    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>>;
    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>>;
}

/// Reads the caches that the document `bytes` leads to.
pub(crate) fn read(
    shelf: &dyn Shelf,
    name: &str,
    bytes: &[u8],
    declared: &str,
) -> Result<Vec<ImportedCache>> {
    let found = |imported| ImportedCache {
        imported,
        location: shelf.location(),
        name: name.to_owned(),
        mounts: None,
        notes: vec![],
    };
    match read_document(bytes, declared).map_err(|error| invalid(name, &error))? {
        RemoteDocument::Cache(cache) => {
            let mounts = mounts_of(&cache.layers).cloned();
            let notes = notes_of(&cache.layers);
            Ok(vec![ImportedCache { mounts, notes, ..found(read_cache(shelf, name, &cache)?) }])
        }
        RemoteDocument::Image(manifest) => {
            let imported = read_inline(shelf, name, &manifest)?;
            Ok(vec![found(imported.ok_or_else(|| no_cache(name))?)])
        }
        RemoteDocument::Images(index) => {
            let all: Vec<ImportedCache> = read_images(shelf, name, &index)?.into_iter().map(found).collect();
            if all.is_empty() { Err(no_cache(name)) } else { Ok(all) }
        }
    }
}

/// The descriptor of the list of cache mounts.
fn mounts_of(layers: &[Descriptor]) -> Option<&Descriptor> {
    layers.iter().find(|layer| layer.media_type == MOUNTS_TYPE)
}

/// What a cache has of cache mounts; nothing when that cannot be read.
pub(crate) fn read_mounts(shelf: &dyn Shelf, layers: &[Descriptor]) -> MountIndex {
    let bytes = mounts_of(layers).map(|list| shelf.config(list));
    bytes.and_then(Result::ok).map_or_else(MountIndex::default, |bytes| MountIndex::parse(&bytes))
}

/// The config and its manifest as they are, for whoever goes on with them.
pub(crate) fn read_cache_config(shelf: &dyn Shelf, name: &str, cache: &CacheManifest) -> Result<CacheConfig> {
    let bytes = shelf.config(&cache.config)?;
    CacheConfig::parse(&bytes).map_err(|error| invalid(name, &error))
}

fn read_cache(shelf: &dyn Shelf, name: &str, cache: &CacheManifest) -> Result<Imported> {
    Ok(Imported::new(read_cache_config(shelf, name, cache)?, &cache.layers))
}

/// The inline caches of all platforms; platforms without one are left out.
fn read_images(shelf: &dyn Shelf, name: &str, index: &Index) -> Result<Vec<Imported>> {
    let images = index.manifests.iter().filter(|entry| {
        media_type::is_manifest(&entry.media_type) && !entry.annotations.contains_key(REFERENCE_TYPE)
    });
    let one = |entry: &Descriptor| -> Result<Option<Imported>> {
        match read_document(&shelf.manifest(entry)?, &entry.media_type) {
            Ok(RemoteDocument::Image(manifest)) => read_inline(shelf, name, &manifest),
            Ok(_) => Ok(None),
            Err(error) => Err(invalid(name, &error)),
        }
    };
    let found: Vec<Result<Option<Imported>>> = thread::scope(|scope| {
        let threads: Vec<_> =
            images.take(MAX_PLATFORMS).map(|entry| scope.spawn(move || one(entry))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(None))).collect()
    });
    found.into_iter().filter_map(Result::transpose).collect()
}

/// The inline cache of an image, if it has one.
fn read_inline(shelf: &dyn Shelf, name: &str, manifest: &Manifest) -> Result<Option<Imported>> {
    let bytes = shelf.config(&manifest.config)?;
    let config: Value = serde_json::from_slice(&bytes).map_err(|error| invalid(name, &error))?;
    let Some(field) = config.get(INLINE).and_then(Value::as_str) else { return Ok(None) };
    let blobs: Vec<Digest> = manifest.layers.iter().map(|layer| layer.digest).collect();
    let records = inline_config(field, &blobs).map_err(|error| invalid(name, &error))?;
    let image: ImageConfig = serde_json::from_slice(&bytes).map_err(|error| invalid(name, &error))?;
    if image.rootfs.diff_ids.len() != manifest.layers.len() {
        let (diff_ids, layers) = (image.rootfs.diff_ids.len(), manifest.layers.len());
        let message = format!("{name}: its config lists {diff_ids} layers and its manifest {layers}");
        return Err(PortError::new(ErrorKind::Corrupt, message));
    }
    let mut times = image.history.iter().filter(|entry| !entry.empty_layer).map(|entry| {
        let time = entry.created.as_deref().and_then(rfc3339::parse);
        time.and_then(|nanos| i64::try_from(nanos).ok()).unwrap_or(0)
    });
    let layers =
        manifest.layers.iter().zip(&image.rootfs.diff_ids).map(|(descriptor, diff_id)| ImportedLayer {
            descriptor: descriptor.clone(),
            diff_id: *diff_id,
            created: times.next().unwrap_or(0),
        });
    Ok(Some(Imported::of_image(records, layers.collect())))
}

fn invalid(name: &str, error: &dyn std::fmt::Display) -> PortError {
    PortError::new(ErrorKind::Invalid, format!("{name} is no cache that can be read: {error}"))
}

fn no_cache(name: &str) -> PortError {
    PortError::new(ErrorKind::Invalid, format!("{name} is an image without an inline cache"))
        .help("export it with --cache-to type=inline, or import the cache that was exported beside it")
}

/// Imports being read. Whoever drops them stops those that are still on their way.
pub struct Imports {
    slots: Vec<Arc<Slot>>,
    threads: Vec<JoinHandle<()>>,
    stop: CancelToken,
}

#[derive(Default)]
struct Slot {
    /// `None` while it is read; empty when it could not be.
    caches: Mutex<Option<Vec<Arc<ImportedCache>>>>,
    ready: Condvar,
}

impl Imports {
    /// Starts to read `sources`. What cannot be read counts as empty: a source says for
    /// itself why.
    #[must_use]
    pub fn start(sources: Vec<Arc<dyn CacheSource>>, cancel: &CancelToken) -> Self {
        let stop = CancelToken::new();
        let mut out = Self { slots: vec![], threads: vec![], stop };
        for source in sources {
            let slot = Arc::<Slot>::default();
            out.slots.push(slot.clone());
            let (cancel, stop) = (cancel.clone(), out.stop.clone());
            out.threads.push(thread::spawn(move || {
                // Answered even if it panics: nobody waits for ever.
                let mut answer = Answer { slot, caches: vec![] };
                let to_stop = stop.clone();
                let guard = cancel.on_cancel(move || to_stop.cancel());
                let found = source.read(&stop).unwrap_or_default();
                drop(guard);
                answer.caches = found.into_iter().map(Arc::new).collect();
            }));
        }
        out
    }

    /// Whether there is nothing to wait for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// All caches, in the order of the sources, once all are there.
    pub(crate) fn wait(&self) -> Vec<Arc<ImportedCache>> {
        let mut out = vec![];
        for slot in &self.slots {
            let mut caches = slot.caches.lock().unwrap_or_else(PoisonError::into_inner);
            while caches.is_none() {
                caches = slot.ready.wait(caches).unwrap_or_else(PoisonError::into_inner);
            }
            out.extend(caches.iter().flatten().cloned());
        }
        out
    }
}

impl Drop for Imports {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// Puts its caches into the slot when dropped.
struct Answer {
    slot: Arc<Slot>,
    caches: Vec<Arc<ImportedCache>>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let caches = std::mem::take(&mut self.caches);
        *self.slot.caches.lock().unwrap_or_else(PoisonError::into_inner) = Some(caches);
        self.slot.ready.notify_all();
    }
}

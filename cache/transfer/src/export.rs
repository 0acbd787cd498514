//! An export from steps to manifest: layers are made into blobs, sent where they are missing, and named by a config that
//! keeps what others exported. Nothing is visible before all of it is there. A layer that nobody has any more costs
//! the results that need it, not the export.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rbuild_cache_remote::{
    CREATED_AT, CacheConfig, CacheManifest, Chains, Form, MountIndex, UNCOMPRESSED, inline_records,
    write_manifest,
};
use rbuild_digest::{Digest, Hasher};
use rbuild_export::{ExportContext, LayerDescriptor, LayerMaker, Place, PreparedLayer};
use rbuild_oci::media_type::BUILDKIT_CACHE_CONFIG;
use rbuild_oci::{Descriptor, rfc3339};
use rbuild_ports::{ErrorKind, LayerId, PortError, Result, Snapshot};

use crate::merge::{EXPORTED_AT, Kept, today};
use crate::mounts::MountExport;
use crate::steps::{ExportGraph, layers, records};
use crate::target::CacheTarget;
use crate::{CacheNotes, CacheOptions, ExistingCache, notes};

/// Layers on their way at a time.
const PARALLEL: usize = 4;
/// What BuildKit reads of a config.
const BUILDKIT_LIMIT: usize = 1 << 20;
/// Bytes of a layer in a manifest.
const ENTRY: usize = 400;
/// How often somebody else may come first.
const ATTEMPTS: usize = 5;

/// What was exported.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CacheExported {
    /// The manifest; `None` when there was nothing to export.
    pub manifest: Option<Descriptor>,
    /// Layers of this build.
    pub layers: usize,
    /// Results of others that stay.
    pub kept: usize,
    /// Bytes that were written or sent.
    pub bytes: u64,
    /// Bytes that were there already.
    pub skipped: u64,
}

/// Exports the cache of `graphs`, the builds of one or several platforms, to `target`, with what `notes` tell of them.
///
/// # Errors
/// If the target cannot be written, the store not read, `Cancelled`.
pub fn export_cache(
    cx: &ExportContext<'_>,
    graphs: &[ExportGraph],
    target: &dyn CacheTarget,
    options: &CacheOptions,
    notes: Option<&CacheNotes>,
) -> Result<CacheExported> {
    let maker = LayerMaker::new(cx);
    let export =
        Export { cx, maker: &maker, target, options, sent: AtomicU64::new(0), skipped: AtomicU64::new(0) };
    let preparing = "preparing build cache for export";
    cx.progress.status(preparing, 0, None, false);
    let prepared =
        maker.available_blobs(&layers(graphs, options.mode), &options.compression, &|layer, error| {
            cx.progress.warn(&format!("layer {layer} is left out of the exported cache: {error}"));
        })?;
    let prepared = export.send(prepared)?;
    let blobs: HashMap<&LayerId, Digest> =
        prepared.iter().map(|layer| (&layer.descriptor.layer, layer.descriptor.descriptor.digest)).collect();
    let chains = records(graphs, &|snapshot: &Snapshot| {
        snapshot.layers.iter().map(|layer| blobs.get(layer).copied()).collect()
    });
    cx.progress.status(preparing, 0, None, true);
    if chains.results() == 0 {
        cx.progress.warn("skipping cache export for empty result");
        return Ok(CacheExported::default());
    }
    let mut sent = None;
    let own: Vec<Descriptor> = prepared.iter().map(|layer| export.entry(layer)).collect();
    for _ in 0..ATTEMPTS {
        let existing = if options.merge { target.existing(cx.cancel)? } else { None };
        let old = existing.as_ref().map(|existing| existing.mounts.clone()).unwrap_or_default();
        let mounts = MountExport { cx, target, budget: options.mounts_size };
        if sent.is_none() && options.mounts {
            sent = Some(mounts.send(graphs, &old)?);
        }
        let mounts = mounts.join(sent.clone().unwrap_or_default(), &old)?;
        let notes = notes::send(cx, target, notes, existing.as_ref())?;
        let (manifest, kept) = export.write(&chains, &own, existing.as_ref(), &mounts, notes)?;
        if let Some(manifest) = manifest {
            if options.merge && !target.holds(&manifest, cx.cancel)? {
                continue;
            }
            return Ok(CacheExported {
                manifest: Some(manifest),
                layers: own.len(),
                kept,
                bytes: export.sent.into_inner(),
                skipped: export.skipped.into_inner(),
            });
        }
    }
    let message = format!("{} was changed by others again and again while this was exported", target.name());
    Err(PortError::new(ErrorKind::Network, message).help("try again, or export to a name of its own"))
}

/// Compresses one layer for an export to come, and sends it if there is a target already.
///
/// # Errors
/// As `export_cache`.
pub fn send_ahead(
    cx: &ExportContext<'_>,
    maker: &LayerMaker<'_>,
    target: Option<&dyn CacheTarget>,
    options: &CacheOptions,
    layer: &LayerId,
) -> Result<()> {
    let prepared = maker.ensure_blob(layer, &options.compression)?;
    if let Some(target) = target
        && prepared.place == Place::Store
    {
        let (sent, skipped) = Default::default();
        Export { cx, maker, target, options, sent, skipped }.send_one(&prepared)?;
    }
    Ok(())
}

/// The inline cache (base64) of an image whose layers are `image`; `None` when nothing of it can be found again.
#[must_use]
pub fn inline_cache(graph: &ExportGraph, image: &[LayerDescriptor]) -> Option<String> {
    let known: HashMap<&LayerId, Digest> =
        image.iter().map(|layer| (&layer.layer, layer.descriptor.digest)).collect();
    let chains = records(std::slice::from_ref(graph), &|snapshot: &Snapshot| {
        snapshot.layers.iter().map(|layer| known.get(layer).copied()).collect()
    });
    let blobs: Vec<Digest> = image.iter().map(|layer| layer.descriptor.digest).collect();
    inline_records(&chains.config(), &blobs)
}

struct Export<'a> {
    cx: &'a ExportContext<'a>,
    maker: &'a LayerMaker<'a>,
    target: &'a dyn CacheTarget,
    options: &'a CacheOptions,
    sent: AtomicU64,
    skipped: AtomicU64,
}

impl Export<'_> {
    /// Brings all layers to the target; those that cannot be had are left out.
    fn send(&self, layers: Vec<PreparedLayer>) -> Result<Vec<PreparedLayer>> {
        // The largest first: they take longest.
        let mut order: Vec<&PreparedLayer> = layers.iter().collect();
        order.sort_by_key(|layer| std::cmp::Reverse(layer.descriptor.descriptor.size));
        let mut seen = BTreeSet::new();
        order.retain(|layer| seen.insert(layer.descriptor.descriptor.digest));
        let lost = Mutex::new(BTreeSet::new());
        in_parallel(&order, |layer| {
            self.cx.cancel.check()?;
            if !self.send_one(layer)? {
                let digest = layer.descriptor.descriptor.digest;
                lost.lock().unwrap_or_else(PoisonError::into_inner).insert(digest);
            }
            Ok(())
        })?;
        let lost = lost.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(layers.into_iter().filter(|layer| !lost.contains(&layer.descriptor.descriptor.digest)).collect())
    }

    /// Whether the target has the layer now.
    fn send_one(&self, layer: &PreparedLayer) -> Result<bool> {
        let descriptor = &layer.descriptor.descriptor;
        let label = format!("writing layer {}", descriptor.digest);
        if self.target.has_blob(descriptor, &layer.remotes, self.cx.cancel)? {
            self.skipped.fetch_add(descriptor.size, Ordering::Relaxed);
            self.cx.progress.status(&label, descriptor.size, Some(descriptor.size), true);
            return Ok(true);
        }
        if layer.place == Place::Remote
            && let Err(error) = self.maker.fetch(std::slice::from_ref(layer))
        {
            if matches!(error.kind, ErrorKind::Cancelled | ErrorKind::NoSpace | ErrorKind::Io) {
                return Err(error);
            }
            let name = &layer.descriptor.layer;
            self.cx.progress.warn(&format!("layer {name} is left out of the exported cache: {error}"));
            return Ok(false);
        }
        self.cx.progress.status(&label, 0, Some(descriptor.size), false);
        let open =
            || -> Result<Box<dyn Read + Send + '_>> { Ok(Box::new(self.cx.blobs.open(&descriptor.digest)?)) };
        if let Err(error) = self.target.put_blob(descriptor, &open, self.cx.cancel) {
            if !self.remade(layer, &error)? {
                return Err(error);
            }
            self.target.put_blob(descriptor, &open, self.cx.cancel)?;
        }
        self.sent.fetch_add(descriptor.size, Ordering::Relaxed);
        self.cx.progress.status(&label, descriptor.size, Some(descriptor.size), true);
        Ok(true)
    }

    /// After a failure: whether the stored blob was damaged, and is as it should be now.
    fn remade(&self, layer: &PreparedLayer, error: &PortError) -> Result<bool> {
        let digest = &layer.descriptor.descriptor.digest;
        if !matches!(error.kind, ErrorKind::Corrupt | ErrorKind::Invalid) || self.is_sound(digest)? {
            return Ok(false);
        }
        self.cx.progress.warn(&format!("the stored blob {digest} is damaged; it is made again"));
        self.cx.blobs.remove(digest)?;
        let again = self.maker.ensure_blob(&layer.descriptor.layer, &self.options.compression)?;
        if again.place == Place::Remote {
            self.maker.fetch(std::slice::from_ref(&again))?;
        }
        Ok(again.descriptor.descriptor.digest == *digest)
    }

    fn is_sound(&self, digest: &Digest) -> Result<bool> {
        let mut hasher = Hasher::new();
        let mut blob = self.cx.blobs.open(digest)?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            self.cx.cancel.check()?;
            match blob.read(&mut buffer) {
                Ok(0) => return Ok(hasher.finish() == *digest),
                Ok(n) => hasher.update(buffer.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(false),
            }
        }
    }

    /// What stands in the manifest for a layer.
    fn entry(&self, layer: &PreparedLayer) -> Descriptor {
        let mut out = layer.descriptor.descriptor.clone();
        let mut note = |key: &str, text: String| out.annotations.insert(key.to_owned(), text);
        note(UNCOMPRESSED, layer.descriptor.diff_id.to_string());
        note(CREATED_AT, rfc3339::format_nanos(layer.created.0));
        if self.options.merge {
            note(EXPORTED_AT, today(self.cx.clock.now()));
        }
        out
    }

    /// Writes config and manifest, merged with what is there. No manifest: somebody else was faster.
    fn write(
        &self,
        chains: &Chains,
        own: &[Descriptor],
        existing: Option<&ExistingCache>,
        mounts: &MountIndex,
        notes: Vec<Descriptor>,
    ) -> Result<(Option<Descriptor>, usize)> {
        let mut kept = match existing {
            Some(existing) => self.kept(existing, own)?,
            None => Kept::default(),
        };
        let (config, bytes, count) = loop {
            let mut merged = chains.clone();
            if let Some(existing) = existing.filter(|_| !kept.is_empty()) {
                merged.merge(&existing.config, &|blobs, _| kept.has(blobs));
            }
            let config = merged.config();
            let bytes = config.to_json();
            // Manifests have the same limit.
            let largest = bytes.len().max(config.layers.len() * ENTRY);
            if largest <= BUILDKIT_LIMIT || kept.is_empty() {
                break (config, bytes, merged.results() - chains.results());
            }
            kept.halve();
        };
        if bytes.len() > BUILDKIT_LIMIT {
            let size = bytes.len();
            let text =
                format!("the exported cache's config has {size} bytes; BuildKit reads no more than 1 MiB");
            self.cx.progress.warn(&text);
        }
        let mut manifest = CacheManifest {
            config: Descriptor::new(BUILDKIT_CACHE_CONFIG, Digest::of(&bytes), bytes.len() as u64),
            layers: used(&config, own.iter().cloned().chain(kept.layers())),
        };
        if !mounts.mounts.is_empty() {
            let (list, bytes) = mounts.document();
            self.document("writing cache mounts", &list, &bytes)?;
            manifest.layers.push(list);
            manifest.layers.extend(mounts.chunks().map(|chunk| chunk.blob.clone()));
        }
        manifest.layers.extend(notes);
        self.document("writing config", &manifest.config, &bytes)?;
        let form = Form { image_manifest: self.options.image_manifest, oci: self.options.oci_media_types };
        let (descriptor, bytes) = write_manifest(&manifest, form);
        let label = format!("writing cache manifest {}", descriptor.digest);
        self.cx.progress.status(&label, 0, Some(descriptor.size), false);
        let done = self.target.put_manifest(&descriptor, &bytes, existing, self.cx.cancel)?;
        self.cx.progress.status(&label, descriptor.size, Some(descriptor.size), true);
        Ok((done.then_some(descriptor), count))
    }

    /// What stays of an existing cache: chosen, and still there.
    fn kept(&self, existing: &ExistingCache, own: &[Descriptor]) -> Result<Kept> {
        let mut kept = Kept::choose(existing, own, self.cx.clock.now());
        let have: BTreeSet<Digest> = own.iter().map(|layer| layer.digest).collect();
        let unsure: Vec<Descriptor> =
            kept.layers().into_iter().filter(|layer| !have.contains(&layer.digest)).collect();
        let gone = Mutex::new(BTreeSet::new());
        in_parallel(&unsure, |layer| {
            if !self.target.has_blob(layer, &[], self.cx.cancel)? {
                gone.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.digest);
            }
            Ok(())
        })?;
        kept.without(&gone.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(kept)
    }

    fn document(&self, label: &str, descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
        let label = format!("{label} {}", descriptor.digest);
        self.cx.progress.status(&label, 0, Some(descriptor.size), false);
        if !self.target.has_blob(descriptor, &[], self.cx.cancel)? {
            self.target.put_blob(descriptor, &|| Ok(Box::new(bytes)), self.cx.cancel)?;
        }
        self.cx.progress.status(&label, descriptor.size, Some(descriptor.size), true);
        Ok(())
    }
}

/// The descriptors of the layers that a config names; this build's own come first.
fn used(config: &CacheConfig, all: impl Iterator<Item = Descriptor>) -> Vec<Descriptor> {
    let mut wanted: BTreeSet<Digest> = config.layers.iter().filter_map(|layer| layer.blob).collect();
    all.filter(|layer| wanted.remove(&layer.digest)).collect()
}

/// Does `work` for all `items`, some at a time; the first failure ends it.
pub(crate) fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let queue = Mutex::new(items.iter());
    let failure = Mutex::new(None);
    let worker = || {
        while failure.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = next else { return };
            if let Err(error) = work(item) {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..items.len().min(PARALLEL) {
            scope.spawn(worker);
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

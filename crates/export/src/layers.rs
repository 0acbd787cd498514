//! Layers as blobs: what the store or a registry has already is used, the rest is written as tar, hashed and compressed
//! in one pass, several layers at a time on one pool of threads. Layers that are only elsewhere stay there until
//! somebody needs their bytes.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use rbuild_digest::Digest;
use rbuild_oci::Descriptor;
use rbuild_oci::media_type::Compression;
use rbuild_ports::{
    ErrorKind, LayerBlob, LayerId, LayerRow, PortError, RemoteBlob, Result, Snapshot, Timestamp,
};

use crate::compress::{Pool, TarFacts, measure};
use crate::{CompressionSpec, ExportContext, LayerDescriptor};

/// BuildKit's annotation on layers whose times were clamped.
pub(crate) const REWRITTEN: &str = "buildkit/rewritten-timestamp";
/// The maker of blobs that came as they are.
const PULLED: &str = "pulled";
/// Layers fetched at a time.
const FETCHES: usize = 4;

/// Makes layers into blobs.
pub struct LayerMaker<'a> {
    cx: ExportContext<'a>,
    /// Made when something is to be compressed.
    pool: OnceLock<Pool>,
    /// Layers of images whose blob cannot be had any more; they are written anew from their directories.
    lost: Mutex<HashSet<LayerId>>,
}

/// A layer that is ready to be part of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PreparedLayer {
    /// What stands in the manifest and the config.
    pub descriptor: LayerDescriptor,
    /// When it was made.
    pub created: Timestamp,
    /// Where its bytes are.
    pub place: Place,
    /// Where registries have it.
    pub remotes: Vec<RemoteBlob>,
}

/// Where the bytes of a layer's blob are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the blob store.
    Store,
    /// Only where its remotes say.
    Remote,
    /// Nowhere yet: it is the layer's plain tar, written when it is needed.
    Tar,
}

/// Where the bytes of a layer's tar come from.
enum TarSource {
    /// Its directory.
    Directory,
    /// A blob of the store.
    Blob(Box<Descriptor>),
    /// Elsewhere.
    Remote,
}

impl<'a> LayerMaker<'a> {
    /// Makes layers with `cx.threads` threads. Nothing happens yet.
    #[must_use]
    pub fn new(cx: &ExportContext<'a>) -> Self {
        Self { cx: *cx, pool: OnceLock::new(), lost: Mutex::default() }
    }

    /// The layer as a blob of the store or of a registry, compressed now if need be.
    ///
    /// # Errors
    /// `NotFound` for a layer that nobody has, `Corrupt` for one that is damaged, `NoSpace`, `Cancelled`.
    pub fn ensure_blob(&self, layer: &LayerId, spec: &CompressionSpec) -> Result<PreparedLayer> {
        self.cx.cancel.check()?;
        let row = self.row(layer)?;
        let lost = self.is_lost(layer);
        if !lost && let Some(found) = self.existing(&row, spec)? {
            return Ok(found);
        }
        let source = self.source(&row, lost)?;
        let made = self.with_progress(&row, "exporting layer", |passed| {
            self.pool()?.store(spec, self.cx.blobs, self.cx.cancel, passed, &mut |out| {
                self.write_tar(&row, &source, out)
            })
        })?;
        let descriptor = Descriptor::new(spec.kind.oci_layer(), made.digest, made.size);
        self.remember(
            &row,
            made.tar,
            lost,
            Some(LayerBlob { descriptor: descriptor.clone(), maker: spec.maker() }),
        )?;
        Ok(prepared(&row, made.tar.diff_id, descriptor, Place::Store))
    }

    /// Digest of the layer's tar, without compressing anything.
    ///
    /// # Errors
    /// As `ensure_blob`.
    pub fn ensure_diff_id(&self, layer: &LayerId) -> Result<Digest> {
        let row = self.row(layer)?;
        match row.diff_id {
            Some(diff_id) if !self.is_lost(layer) => Ok(diff_id),
            _ => Ok(self.measure(&row)?.diff_id),
        }
    }

    /// Digest and size of the layer's tar, for those who write the tar itself.
    fn ensure_tar_facts(&self, layer: &LayerId) -> Result<TarFacts> {
        let row = self.row(layer)?;
        if let Some(diff_id) = row.diff_id.filter(|_| !self.is_lost(layer)) {
            let size = self.cx.index.note(&size_note(&diff_id))?.and_then(|size| size.parse().ok());
            if let Some(size) = size {
                return Ok(TarFacts { diff_id, size });
            }
        }
        self.measure(&row)
    }

    /// `ensure_blob` for many, in their order.
    ///
    /// # Errors
    /// The first that failed.
    pub fn ensure_blobs(&self, layers: &[LayerId], spec: &CompressionSpec) -> Result<Vec<PreparedLayer>> {
        self.in_parallel(layers, self.cx.threads.max(1), |layer| self.ensure_blob(layer, spec))
    }

    /// The same, where layers that nobody has any more are left out; `lost` is told of them.
    ///
    /// # Errors
    /// `NoSpace`, `Cancelled`, or if the store cannot be read or written.
    pub fn available_blobs(
        &self,
        layers: &[LayerId],
        spec: &CompressionSpec,
        lost: &(dyn Fn(&LayerId, &PortError) + Sync),
    ) -> Result<Vec<PreparedLayer>> {
        let made =
            self.in_parallel(layers, self.cx.threads.max(1), |layer| match self.ensure_blob(layer, spec) {
                Ok(made) => Ok(Some(made)),
                Err(error) if is_lost(&error) => {
                    lost(layer, &error);
                    Ok(None)
                }
                Err(error) => Err(error),
            })?;
        Ok(made.into_iter().flatten().collect())
    }

    /// `ensure_diff_id` for many, as parts of an image.
    pub(crate) fn ensure_diff_ids(&self, layers: &[LayerId]) -> Result<Vec<(Digest, Timestamp)>> {
        self.in_parallel(layers, self.cx.threads.max(1), |layer| {
            Ok((self.ensure_diff_id(layer)?, self.row(layer)?.created))
        })
    }

    /// Layers of images as they came; those made here as plain tars, which are stored nowhere.
    pub(crate) fn plain_tars(&self, layers: &[LayerId]) -> Result<Vec<PreparedLayer>> {
        self.in_parallel(layers, self.cx.threads.max(1), |layer| {
            let row = self.row(layer)?;
            if is_foreign(&row)
                && !self.is_lost(layer)
                && let Some(found) = self.existing(&row, &CompressionSpec::NONE)?
            {
                return Ok(found);
            }
            let facts = self.ensure_tar_facts(layer)?;
            let descriptor = Descriptor::new(Compression::None.oci_layer(), facts.diff_id, facts.size);
            Ok(prepared(&row, facts.diff_id, descriptor, Place::Tar))
        })
    }

    /// Brings all layers of a snapshot onto the disk.
    pub(crate) fn materialise(&self, snapshot: &Snapshot) -> Result<()> {
        (self.cx.materialise)(snapshot)
    }

    /// Blobs of the layers' directories, which are on the disk, with no time after `latest` (seconds since 1970). What
    /// comes out is another layer than the index knows: it is made anew by each export.
    pub(crate) fn rewritten(
        &self,
        layers: &[LayerId],
        latest: i64,
        spec: &CompressionSpec,
    ) -> Result<Vec<PreparedLayer>> {
        self.in_parallel(layers, self.cx.threads.max(1), |layer| {
            self.cx.cancel.check()?;
            let row = self.row(layer)?;
            let made = self.with_progress(&row, "rewriting layer", |passed| {
                self.pool()?.store(spec, self.cx.blobs, self.cx.cancel, passed, &mut |out| {
                    self.cx.snapshots.write_tar(layer, Some(latest), out)
                })
            })?;
            let mut descriptor = Descriptor::new(spec.kind.oci_layer(), made.digest, made.size);
            descriptor.annotations.insert(REWRITTEN.to_owned(), latest.to_string());
            let mut out = prepared(&row, made.tar.diff_id, descriptor, Place::Store);
            out.remotes.clear();
            Ok(out)
        })
    }

    /// Brings the blobs of `layers` into the store.
    ///
    /// # Errors
    /// What the last place that has one said.
    pub fn fetch(&self, layers: &[PreparedLayer]) -> Result<()> {
        self.fetch_all(layers, &|_, _| {})
    }

    /// The same; `failed` is told of every layer that could not be fetched.
    pub(crate) fn fetch_all(
        &self,
        layers: &[PreparedLayer],
        failed: &(dyn Fn(&LayerId, &PortError) + Sync),
    ) -> Result<()> {
        let digest = |layer: &PreparedLayer| layer.descriptor.descriptor.digest;
        let missing: Vec<Digest> =
            layers.iter().filter(|layer| layer.place == Place::Remote).map(digest).collect();
        self.in_parallel(&missing, FETCHES, |wanted| {
            let layer = layers.iter().find(|layer| digest(layer) == *wanted);
            let Some(layer) = layer else { return Ok(()) };
            self.fetch_blob(layer).inspect_err(|error| failed(&layer.descriptor.layer, error))
        })
        .map(drop)
    }

    /// Writes the layer's tar to `out`: the bytes that `ensure_tar_facts` speaks of.
    pub(crate) fn tar(&self, layer: &LayerId, out: &mut dyn Write) -> Result<()> {
        let row = self.row(layer)?;
        let source = self.source(&row, self.is_lost(layer))?;
        self.write_tar(&row, &source, out)
    }

    /// Forgets a blob that turned out to be damaged, so that it is made or fetched again.
    pub(crate) fn discard(&self, digest: &Digest) -> Result<()> {
        self.cx.progress.warn(&format!("the stored blob {digest} is damaged; it is made again"));
        self.cx.blobs.remove(digest)
    }

    /// The layer's blob cannot be fetched any more. Whether its directory can stand in.
    pub(crate) fn give_up_remote(&self, layer: &LayerId, why: &PortError) -> bool {
        let here = self.cx.snapshots.present(layer);
        if here && self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.clone()) {
            let text = format!(
                "a base image layer cannot be fetched ({}); it is written anew from its files",
                why.message
            );
            self.cx.progress.warn(&text);
            return true;
        }
        false
    }

    fn pool(&self) -> Result<&Pool> {
        if let Some(pool) = self.pool.get() {
            return Ok(pool);
        }
        let pool = Pool::new(self.cx.threads)?;
        Ok(self.pool.get_or_init(|| pool))
    }

    fn is_lost(&self, layer: &LayerId) -> bool {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).contains(layer)
    }

    fn row(&self, layer: &LayerId) -> Result<LayerRow> {
        self.cx.index.layer(layer)?.ok_or_else(|| {
            PortError::new(ErrorKind::NotFound, format!("layer {layer} is not in the store's index"))
        })
    }

    /// A blob that serves as it is. Blobs that came with an image go first: they are what the image's registry has.
    fn existing(&self, row: &LayerRow, spec: &CompressionSpec) -> Result<Option<PreparedLayer>> {
        let Some(diff_id) = row.diff_id else { return Ok(None) };
        let maker = spec.maker();
        let serves = |descriptor: &Descriptor| match Compression::of_layer(&descriptor.media_type) {
            Some(kind) => !spec.force || kind == spec.kind,
            None => false,
        };
        let pulled = row.blobs.iter().filter(|blob| blob.maker == PULLED && serves(&blob.descriptor));
        let made = row.blobs.iter().filter(|blob| blob.maker == maker);
        let foreign = row.remotes.iter().find(|remote| serves(&remote.descriptor));
        for blob in pulled {
            if self.is_stored(&blob.descriptor)? {
                return Ok(Some(prepared(row, diff_id, blob.descriptor.clone(), Place::Store)));
            }
        }
        if let Some(remote) = foreign {
            let place = if self.is_stored(&remote.descriptor)? { Place::Store } else { Place::Remote };
            return Ok(Some(prepared(row, diff_id, remote.descriptor.clone(), place)));
        }
        for blob in made {
            if self.is_stored(&blob.descriptor)? {
                return Ok(Some(prepared(row, diff_id, blob.descriptor.clone(), Place::Store)));
            }
        }
        Ok(None)
    }

    fn is_stored(&self, descriptor: &Descriptor) -> Result<bool> {
        Ok(self.cx.blobs.size(&descriptor.digest)? == Some(descriptor.size))
    }

    /// Layers of images keep their tar's exact bytes only in their blob; layers of steps are what their directory is.
    fn source(&self, row: &LayerRow, lost: bool) -> Result<TarSource> {
        let id = &row.layer.layer;
        let here = self.cx.snapshots.present(id);
        if lost || (here && !is_foreign(row)) {
            return Ok(TarSource::Directory);
        }
        for blob in &row.blobs {
            if self.is_stored(&blob.descriptor)? {
                return Ok(TarSource::Blob(Box::new(blob.descriptor.clone())));
            }
        }
        if !row.remotes.is_empty() {
            return Ok(TarSource::Remote);
        }
        if here {
            return Ok(TarSource::Directory);
        }
        let message = format!("layer {id} is neither on the disk nor in a registry");
        Err(PortError::new(ErrorKind::NotFound, message).help("build again with --no-cache"))
    }

    fn write_tar(&self, row: &LayerRow, source: &TarSource, out: &mut dyn Write) -> Result<()> {
        let id = &row.layer.layer;
        match source {
            TarSource::Directory => self.cx.snapshots.write_tar(id, None, out),
            TarSource::Blob(descriptor) => {
                let blob = self.cx.blobs.open(&descriptor.digest)?;
                decompress(descriptor, blob, out).inspect_err(|error| {
                    if error.kind == ErrorKind::Corrupt {
                        // It is gone next time: the same command, given again, heals it.
                        drop(self.cx.blobs.remove(&descriptor.digest));
                    }
                })
            }
            TarSource::Remote => {
                let descriptor = self.fetch_any(&row.remotes)?;
                let blob = self.cx.blobs.open(&descriptor.digest)?;
                decompress(&descriptor, blob, out)
            }
        }
    }

    fn measure(&self, row: &LayerRow) -> Result<TarFacts> {
        let lost = self.is_lost(&row.layer.layer);
        let source = self.source(row, lost)?;
        let facts = self.with_progress(row, "hashing layer", |passed| {
            measure(self.cx.cancel, passed, &mut |out| self.write_tar(row, &source, out))
        })?;
        self.remember(row, facts, lost, None)?;
        Ok(facts)
    }

    /// Checks a new tar against what was known, and stores what was learned.
    fn remember(&self, row: &LayerRow, tar: TarFacts, lost: bool, blob: Option<LayerBlob>) -> Result<()> {
        if lost {
            // Its diff id is not the image's: it is good for this export and not for the index.
            return Ok(());
        }
        if let Some(known) = row.diff_id.filter(|known| *known != tar.diff_id) {
            if let Some(blob) = blob {
                self.cx.blobs.remove(&blob.descriptor.digest)?;
            }
            let id = &row.layer.layer;
            let message =
                format!("layer {id} is damaged: its content has the diff id {}, not {known}", tar.diff_id);
            return Err(PortError::new(ErrorKind::Corrupt, message).help("build again with --no-cache"));
        }
        self.cx.index.put_note(&size_note(&tar.diff_id), &tar.size.to_string())?;
        self.cx.index.put_layer(&LayerRow {
            layer: row.layer.clone(),
            diff_id: Some(tar.diff_id),
            blobs: blob.into_iter().collect(),
            remotes: vec![],
            created: row.created,
        })
    }

    fn fetch_blob(&self, layer: &PreparedLayer) -> Result<()> {
        if self.is_stored(&layer.descriptor.descriptor)? {
            return Ok(());
        }
        let same: Vec<RemoteBlob> = layer
            .remotes
            .iter()
            .filter(|remote| remote.descriptor.digest == layer.descriptor.descriptor.digest)
            .cloned()
            .collect();
        let descriptor = self.fetch_any(&same)?;
        let row = self.row(&layer.descriptor.layer)?;
        self.cx.index.put_layer(&LayerRow {
            blobs: vec![LayerBlob { descriptor, maker: PULLED.to_owned() }],
            remotes: vec![],
            ..row
        })
    }

    /// Fetches from the first place that has it.
    fn fetch_any(&self, remotes: &[RemoteBlob]) -> Result<Descriptor> {
        let mut last = PortError::new(ErrorKind::NotFound, "nothing says where to fetch the layer");
        for remote in remotes {
            if self.is_stored(&remote.descriptor)? {
                return Ok(remote.descriptor.clone());
            }
            match self.fetch_one(remote) {
                Ok(()) => return Ok(remote.descriptor.clone()),
                Err(error) if matches!(error.kind, ErrorKind::Cancelled | ErrorKind::NoSpace) => {
                    return Err(error);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn fetch_one(&self, remote: &RemoteBlob) -> Result<()> {
        let Descriptor { digest, size, .. } = &remote.descriptor;
        let name = digest.to_string();
        let mut reader = self.cx.sources.fetch_blob(remote, self.cx.cancel)?.take(size.saturating_add(1));
        let mut blob = self.cx.blobs.writer()?;
        let mut buffer = vec![0; 256 * 1024];
        let mut count = 0u64;
        loop {
            self.cx.cancel.check()?;
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let message = format!("cannot read layer {name} from {}: {error}", remote.location);
                    return Err(PortError::new(ErrorKind::Network, message));
                }
            };
            blob.write_all(buffer.get(..n).unwrap_or_default())
                .map_err(|error| PortError::io("write", "the blob store", error))?;
            count += n as u64;
            self.cx.progress.status(&name, count, Some(*size), false);
        }
        if count != *size {
            let message = format!(
                "layer {name} from {} has not the {size} bytes that its manifest says",
                remote.location
            );
            return Err(PortError::new(ErrorKind::Corrupt, message));
        }
        blob.commit(Some(digest))?;
        self.cx.progress.status(&name, count, Some(*size), true);
        Ok(())
    }

    fn with_progress<T>(
        &self,
        row: &LayerRow,
        what: &str,
        work: impl FnOnce(&(dyn Fn(u64) + Sync)) -> Result<T>,
    ) -> Result<T> {
        let id = format!("{what} {}", row.layer.layer);
        let total = Some(row.layer.bytes).filter(|bytes| *bytes > 0);
        let result =
            work(&|passed| self.cx.progress.status(&id, passed, total.map(|t| t.max(passed)), false));
        if result.is_ok() {
            let all = row.layer.bytes;
            self.cx.progress.status(&id, all, total, true);
        }
        result
    }

    /// Works on each different item once, the answers in the order of the items.
    fn in_parallel<I, T>(
        &self,
        items: &[I],
        threads: usize,
        work: impl Fn(&I) -> Result<T> + Sync,
    ) -> Result<Vec<T>>
    where
        I: Eq + std::hash::Hash + Sync,
        T: Clone + Send,
    {
        let mut first = HashMap::new();
        let unique: Vec<&I> = items
            .iter()
            .filter(|item| {
                let next = first.len();
                *first.entry(*item).or_insert(next) == next
            })
            .collect();
        let queue = Mutex::new(unique.iter().enumerate());
        let done: Mutex<Vec<Option<T>>> = Mutex::new(vec![None; unique.len()]);
        let failure = Mutex::new(None);
        let worker = || {
            while failure.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((at, item)) = next else { return };
                match work(item) {
                    Ok(answer) => {
                        if let Some(slot) = done.lock().unwrap_or_else(PoisonError::into_inner).get_mut(at) {
                            *slot = Some(answer);
                        }
                    }
                    Err(error) => {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            }
        };
        match unique.len().min(threads) {
            0 | 1 => worker(),
            n => thread::scope(|scope| {
                for _ in 0..n {
                    scope.spawn(worker);
                }
            }),
        }
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let answers = items.iter().map(|item| done.get(*first.get(item)?).cloned().flatten());
        answers
            .collect::<Option<Vec<T>>>()
            .ok_or_else(|| PortError::new(ErrorKind::Internal, "a layer got lost"))
    }
}

/// Whether a layer cannot be had, as against something that is wrong with this machine.
fn is_lost(error: &PortError) -> bool {
    matches!(error.kind, ErrorKind::NotFound | ErrorKind::Corrupt | ErrorKind::Network | ErrorKind::Auth)
}

/// Whether it came with an image or a cache.
fn is_foreign(row: &LayerRow) -> bool {
    !row.remotes.is_empty() || row.blobs.iter().any(|blob| blob.maker == PULLED)
}

fn prepared(row: &LayerRow, diff_id: Digest, descriptor: Descriptor, place: Place) -> PreparedLayer {
    PreparedLayer {
        descriptor: LayerDescriptor { layer: row.layer.layer.clone(), diff_id, descriptor },
        created: row.created,
        place,
        remotes: row.remotes.clone(),
    }
}

fn size_note(diff_id: &Digest) -> String {
    format!("tar-size/{diff_id}")
}

/// Writes the tar that a blob holds.
fn decompress(descriptor: &Descriptor, blob: impl Read, out: &mut dyn Write) -> Result<()> {
    let digest = &descriptor.digest;
    let damaged = |error: io::Error| {
        PortError::new(ErrorKind::Corrupt, format!("layer {digest} cannot be decompressed: {error}"))
    };
    let blob = io::BufReader::with_capacity(256 * 1024, blob);
    let mut reader: Box<dyn Read + '_> = match Compression::of_layer(&descriptor.media_type) {
        Some(Compression::None) => Box::new(blob),
        Some(Compression::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        Some(Compression::Zstd) => Box::new(zstd::Decoder::with_buffer(blob).map_err(damaged)?),
        None => {
            let message =
                format!("layer {digest} has the media type {:?}, which is no layer", descriptor.media_type);
            return Err(PortError::new(ErrorKind::Unsupported, message));
        }
    };
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(damaged(error)),
        };
        out.write_all(buffer.get(..n).unwrap_or_default())
            .map_err(|error| PortError::io("write", "the layer's tar", error))?;
    }
}

#[cfg(test)]
mod tests;

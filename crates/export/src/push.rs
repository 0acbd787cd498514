//! Pushing: blobs in parallel, each only if the registry has it neither in the repository nor in one it can be taken over
//! from; then manifests, then the index, then the tags, so that nobody sees half an image.

use std::collections::HashMap;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, Reference};
use rbuild_ports::{ErrorKind, PortError, Result};

use crate::content::{Attempt, Meter};
use crate::image::PreparedImage;
use crate::layers::{Place, PreparedLayer};
use crate::registry::Registry;
use crate::{ImageOutput, OutputReport};

/// Blobs on their way to a registry at a time.
const PARALLEL: usize = 4;

/// A blob to be pushed.
enum Blob<'a> {
    Layer(&'a PreparedLayer),
    Config(&'a [u8]),
}

struct Push<'a> {
    attempt: &'a Attempt<'a>,
    registry: &'a dyn Registry,
    meter: Meter<'a>,
    sent: AtomicU64,
    skipped: AtomicU64,
}

/// Pushes the image under all its names.
pub(crate) fn export(
    attempt: &Attempt<'_>,
    image: &PreparedImage,
    output: &ImageOutput,
) -> Result<OutputReport> {
    let Some(registry) = attempt.cx.registry else {
        return Err(PortError::new(ErrorKind::Unsupported, "this build has no registry client to push with"));
    };
    if image.names.is_empty() {
        let message = "a push needs a name, and the image has none";
        return Err(
            PortError::new(ErrorKind::Invalid, message).help("give it one with -t REGISTRY/REPOSITORY:TAG")
        );
    }
    let blobs = blobs(image);
    let repositories = repositories(&image.names);
    let total: u64 =
        blobs.iter().map(|(descriptor, _)| descriptor.size).sum::<u64>() * repositories.len() as u64;
    let push = Push {
        attempt,
        registry,
        meter: Meter::new(attempt.cx.progress, "pushing layers", total),
        sent: AtomicU64::new(0),
        skipped: AtomicU64::new(0),
    };
    for (repository, names) in &repositories {
        push.blobs(repository, &blobs)?;
        push.documents(image, repository, names, output.push_by_digest)?;
    }
    push.meter.done();
    let targets: Vec<String> = image.names.iter().map(ToString::to_string).collect();
    Ok(OutputReport {
        kind: "registry",
        target: targets.join(", "),
        bytes: push.sent.into_inner(),
        skipped: push.skipped.into_inner(),
    })
}

impl Push<'_> {
    fn blobs(&self, target: &Reference, blobs: &[(Descriptor, Blob<'_>)]) -> Result<()> {
        let queue = Mutex::new(blobs.iter());
        let failure = Mutex::new(None);
        let worker = || {
            while failure.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((descriptor, blob)) = next else { return };
                if let Err(error) = self.blob(target, descriptor, blob) {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..blobs.len().min(PARALLEL) {
                scope.spawn(worker);
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn blob(&self, target: &Reference, descriptor: &Descriptor, blob: &Blob<'_>) -> Result<()> {
        let cancel = self.attempt.cx.cancel;
        cancel.check()?;
        let name = format!("pushing {}", descriptor.digest);
        if self.registry.blob_exists(target, descriptor, cancel)? || self.mounted(target, descriptor, blob)? {
            self.skipped.fetch_add(descriptor.size, Ordering::Relaxed);
            self.meter.add(descriptor.size);
            self.attempt.cx.progress.status(&name, descriptor.size, Some(descriptor.size), true);
            return Ok(());
        }
        if let Blob::Layer(layer) = blob
            && layer.place == Place::Remote
        {
            self.attempt.fetch(std::slice::from_ref(*layer))?;
        }
        // What a broken upload sent is sent again and must not count twice.
        let counted = AtomicU64::new(0);
        let open = || -> Result<Box<dyn Read + Send + '_>> {
            let reader: Box<dyn Read + Send + '_> = match blob {
                Blob::Config(bytes) => Box::new(*bytes),
                Blob::Layer(layer) => Box::new(self.attempt.open(&layer.descriptor.descriptor)?),
            };
            Ok(Box::new(Counted {
                reader,
                at: 0,
                counted: &counted,
                push: self,
                name: &name,
                total: descriptor.size,
            }))
        };
        self.registry.push_blob(target, descriptor, &open, cancel)?;
        self.sent.fetch_add(descriptor.size, Ordering::Relaxed);
        self.attempt.cx.progress.status(&name, descriptor.size, Some(descriptor.size), true);
        Ok(())
    }

    /// Takes a base image's layer over from the repository it came from, when that is on the same registry.
    fn mounted(&self, target: &Reference, descriptor: &Descriptor, blob: &Blob<'_>) -> Result<bool> {
        let Blob::Layer(layer) = blob else { return Ok(false) };
        for remote in layer.remotes.iter().filter(|remote| remote.descriptor.digest == descriptor.digest) {
            let Ok(from) = remote.location.parse::<Reference>() else { continue };
            if from.domain == target.domain
                && from.path != target.path
                && self.registry.mount_blob(target, descriptor, &from.path, self.attempt.cx.cancel)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn documents(
        &self,
        image: &PreparedImage,
        repository: &Reference,
        names: &[&Reference],
        by_digest: bool,
    ) -> Result<()> {
        let cx = self.attempt.cx;
        let put = |target: &Reference, descriptor: &Descriptor, bytes: &[u8]| {
            cx.cancel.check()?;
            let label = format!("pushing manifest for {target}");
            cx.progress.status(&label, 0, Some(1), false);
            self.registry.put_manifest(target, &descriptor.media_type, bytes, cx.cancel)?;
            cx.progress.status(&label, 1, Some(1), true);
            Ok::<_, PortError>(())
        };
        let (top, below): (_, &[_]) = match (&image.index, image.platforms.as_slice()) {
            (Some(index), platforms) => (index, platforms),
            (None, [one, ..]) => (&one.manifest, &[]),
            (None, []) => return Ok(()),
        };
        let untagged = |digest: Digest| Reference { tag: None, digest: Some(digest), ..repository.clone() };
        for platform in below {
            let manifest = &platform.manifest;
            put(&untagged(manifest.descriptor.digest), &manifest.descriptor, &manifest.bytes)?;
        }
        if by_digest {
            return put(&untagged(top.descriptor.digest), &top.descriptor, &top.bytes);
        }
        names.iter().try_for_each(|name| put(name, &top.descriptor, &top.bytes))
    }
}

/// Names by repository, in the order of the first.
fn repositories(names: &[Reference]) -> Vec<(Reference, Vec<&Reference>)> {
    let mut out: Vec<(Reference, Vec<&Reference>)> = vec![];
    let mut places: HashMap<String, usize> = HashMap::new();
    for name in names {
        let at = *places.entry(name.name()).or_insert(out.len());
        match out.get_mut(at) {
            Some((_, names)) => names.push(name),
            None => out.push((Reference { tag: None, digest: None, ..name.clone() }, vec![name])),
        }
    }
    out
}

/// The largest first: they take longest.
fn blobs(image: &PreparedImage) -> Vec<(Descriptor, Blob<'_>)> {
    let layers =
        image.layers().into_iter().map(|layer| (layer.descriptor.descriptor.clone(), Blob::Layer(layer)));
    let configs = image.platforms.iter().map(|platform| {
        let bytes = platform.config.bytes.as_slice();
        (Descriptor::new("", platform.config.digest, bytes.len() as u64), Blob::Config(bytes))
    });
    let mut out: Vec<(Descriptor, Blob<'_>)> = layers.chain(configs).collect();
    out.sort_by_key(|(descriptor, _)| std::cmp::Reverse(descriptor.size));
    let mut seen = std::collections::HashSet::new();
    out.retain(|(descriptor, _)| seen.insert(descriptor.digest));
    out
}

struct Counted<'a> {
    reader: Box<dyn Read + Send + 'a>,
    at: u64,
    counted: &'a AtomicU64,
    push: &'a Push<'a>,
    name: &'a str,
    total: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(buf)?;
        self.at += n as u64;
        let before = self.counted.fetch_max(self.at, Ordering::Relaxed);
        self.push.meter.add(self.at.saturating_sub(before));
        self.push.attempt.cx.progress.status(self.name, self.at, Some(self.total), false);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;

//! Where caches are read: registries and OCI layouts. Reads documents only, never a layer.

use std::path::PathBuf;

use rbuild_cache_remote::MAX_CONFIG;
use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, Reference};
use rbuild_ports::{CancelToken, PortError, Result};
use rbuild_source::{Layout, MAX_MANIFEST, Registry, Repository};

use crate::import::{ImportedCache, Shelf, read};

/// A place that a cache is imported from. A backend that keeps its cache otherwise than as OCI documents is one more
/// implementation.
pub trait CacheSource: Send + Sync {
    /// As people know it.
    fn name(&self) -> String;

    /// Reads what is known there: one cache, or one for each platform of an image.
    ///
    /// # Errors
    /// `NotFound`, `Network`, `Auth`, `Invalid` for what is no cache, `Corrupt`, `Cancelled`.
    fn read(&self, cancel: &CancelToken) -> Result<Vec<ImportedCache>>;
}

/// A cache or an image of a registry.
pub struct RegistrySource {
    /// The client.
    pub registry: Registry,
    /// Its name.
    pub reference: Reference,
}

/// A cache of an OCI layout.
pub struct LayoutSource {
    /// The directory.
    pub dir: PathBuf,
    /// Its name there.
    pub tag: Option<String>,
    /// Of its manifest.
    pub digest: Option<Digest>,
}

impl CacheSource for RegistrySource {
    fn name(&self) -> String {
        self.reference.to_string()
    }

    fn read(&self, cancel: &CancelToken) -> Result<Vec<ImportedCache>> {
        let shelf = RegistryShelf { registry: &self.registry, reference: &self.reference, cancel };
        let top = self.registry.fetch_manifest(&self.reference, cancel)?;
        read(&shelf, &self.name(), &top.bytes, &top.media_type)
    }
}

/// The documents of a repository.
pub(crate) struct RegistryShelf<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) reference: &'a Reference,
    pub(crate) cancel: &'a CancelToken,
}

impl Shelf for RegistryShelf<'_> {
    fn location(&self) -> String {
        self.reference.name()
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let reference = self.reference.clone().with_digest(descriptor.digest);
        Ok(self.registry.fetch_manifest(&reference, self.cancel)?.bytes)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let repository = Repository::of(self.reference);
        self.registry.fetch_small_blob(&repository, descriptor, MAX_CONFIG, self.cancel)
    }
}

impl CacheSource for LayoutSource {
    fn name(&self) -> String {
        let dir = self.dir.display();
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("local:{dir}@{digest}"),
            (None, Some(tag)) => format!("local:{dir}:{tag}"),
            (None, None) => format!("local:{dir}"),
        }
    }

    fn read(&self, cancel: &CancelToken) -> Result<Vec<ImportedCache>> {
        cancel.check()?;
        // Its layers may be read by later builds, from elsewhere.
        let dir =
            std::fs::canonicalize(&self.dir).map_err(|error| PortError::io("read", &self.dir, error))?;
        let layout = Layout::open(&dir)?;
        let top = layout.choose(self.tag.as_deref(), self.digest.as_ref())?;
        read(&layout, &self.name(), &top.bytes, &top.media_type)
    }
}

impl Shelf for Layout {
    fn location(&self) -> String {
        Layout::location(self)
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.document(&descriptor.digest, MAX_MANIFEST)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.document(&descriptor.digest, MAX_CONFIG)
    }
}

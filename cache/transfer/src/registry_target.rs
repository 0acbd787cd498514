//! `type=registry`: a cache under a tag. Blobs are sent only when the repository has them neither itself nor from another one
//! of the same registry.

use rbuild_cache_remote::{RemoteDocument, read_document};
use rbuild_oci::{Descriptor, Reference};
use rbuild_ports::{CancelToken, ErrorKind, RemoteBlob, Result};
use rbuild_source::{Registry, Repository};

use crate::import::{read_cache_config, read_mounts};
use crate::source::RegistryShelf;
use crate::target::{CacheTarget, ExistingCache, OpenBlob};

/// A tag in a registry.
pub struct RegistryTarget {
    /// The client.
    pub registry: Registry,
    /// The cache's name.
    pub reference: Reference,
}

impl RegistryTarget {
    fn repository(&self) -> Repository {
        Repository::of(&self.reference)
    }
}

impl CacheTarget for RegistryTarget {
    fn name(&self) -> String {
        self.reference.to_string()
    }

    fn existing(&self, cancel: &CancelToken) -> Result<Option<ExistingCache>> {
        let document = match self.registry.fetch_manifest(&self.reference, cancel) {
            Ok(document) => document,
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Ok(RemoteDocument::Cache(cache)) = read_document(&document.bytes, &document.media_type) else {
            return Ok(None);
        };
        let shelf = RegistryShelf { registry: &self.registry, reference: &self.reference, cancel };
        match read_cache_config(&shelf, &self.name(), &cache) {
            Ok(config) => {
                let mounts = read_mounts(&shelf, &cache.layers);
                Ok(Some(ExistingCache { digest: document.digest, config, layers: cache.layers, mounts }))
            }
            // What nobody can read is no loss.
            Err(error)
                if matches!(error.kind, ErrorKind::Invalid | ErrorKind::Corrupt | ErrorKind::NotFound) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn has_blob(&self, blob: &Descriptor, remotes: &[RemoteBlob], cancel: &CancelToken) -> Result<bool> {
        let repository = self.repository();
        if self.registry.blob_exists(&repository, &blob.digest, cancel)? == Some(blob.size) {
            return Ok(true);
        }
        for remote in remotes.iter().filter(|remote| remote.descriptor.digest == blob.digest) {
            let Ok(from) = Repository::parse(&remote.location) else { continue };
            if self.registry.mount_blob(&repository, &blob.digest, &from, cancel)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn put_blob(&self, blob: &Descriptor, open: &OpenBlob<'_>, cancel: &CancelToken) -> Result<()> {
        let mut open = || -> Result<Box<dyn std::io::Read + '_>> { Ok(open()?) };
        self.registry.push_blob(&self.repository(), &blob.digest, blob.size, &mut open, cancel)
    }

    fn put_manifest(
        &self,
        manifest: &Descriptor,
        bytes: &[u8],
        replaces: Option<&ExistingCache>,
        cancel: &CancelToken,
    ) -> Result<bool> {
        if let Some(replaces) = replaces {
            match self.registry.resolve(&self.reference, cancel) {
                Ok(now) if now.digest != replaces.digest => return Ok(false),
                Ok(_) if replaces.digest == manifest.digest => return Ok(true),
                Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        self.registry.put_manifest(&self.reference, &manifest.media_type, bytes, cancel)?;
        Ok(true)
    }

    /// Registries have no compare-and-swap: who wrote between our look and our write was overwritten, or overwrote us. The
    /// one that finds another's manifest afterwards joins both.
    fn holds(&self, manifest: &Descriptor, cancel: &CancelToken) -> Result<bool> {
        match self.registry.resolve(&self.reference, cancel) {
            Ok(now) => Ok(now.digest == manifest.digest),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

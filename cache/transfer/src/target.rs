//! Where caches are written.

use std::io::Read;

use rbuild_cache_remote::{CacheConfig, MountIndex};
use rbuild_digest::Digest;
use rbuild_oci::Descriptor;
use rbuild_ports::{CancelToken, RemoteBlob, Result};

/// Opens a blob's content from its start; called again when an upload is retried.
pub type OpenBlob<'a> = dyn Fn() -> Result<Box<dyn Read + Send + 'a>> + Sync + 'a;

/// A place that a cache is exported to. A backend that keeps its cache otherwise than as OCI documents is one more
/// implementation. Calls block and may be made from several threads at once.
pub trait CacheTarget: Send + Sync {
    /// As people know it.
    fn name(&self) -> String;

    /// The cache that is there.
    ///
    /// # Errors
    /// If that cannot be found out. What is there and no cache counts as nothing.
    fn existing(&self, cancel: &CancelToken) -> Result<Option<ExistingCache>>;

    /// Whether the blob is there, or can be had without sending it.
    ///
    /// # Errors
    /// `Auth`, `Network`, or if the disk cannot be read.
    fn has_blob(&self, blob: &Descriptor, remotes: &[RemoteBlob], cancel: &CancelToken) -> Result<bool>;

    /// Writes a blob.
    ///
    /// # Errors
    /// `Auth`, `Network`, if the disk cannot be written, or what `open` and its reader say.
    fn put_blob(&self, blob: &Descriptor, open: &OpenBlob<'_>, cancel: &CancelToken) -> Result<()>;

    /// Makes the manifest visible under the cache's name. False when somebody else has written since `replaces` was
    /// read: then nothing was done.
    ///
    /// # Errors
    /// As `put_blob`, and `Invalid` when it is refused.
    fn put_manifest(
        &self,
        manifest: &Descriptor,
        bytes: &[u8],
        replaces: Option<&ExistingCache>,
        cancel: &CancelToken,
    ) -> Result<bool>;

    /// Whether the manifest that was just written is still what the name means. Places where nobody can come between reading
    /// and writing need not look.
    ///
    /// # Errors
    /// `Auth`, `Network`.
    fn holds(&self, manifest: &Descriptor, cancel: &CancelToken) -> Result<bool> {
        let _ = (manifest, cancel);
        Ok(true)
    }
}

/// A cache that is there already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExistingCache {
    /// Of its manifest.
    pub digest: Digest,
    /// What it knows.
    pub config: CacheConfig,
    /// Its layers.
    pub layers: Vec<Descriptor>,
    /// What it has of cache mounts.
    pub mounts: MountIndex,
}

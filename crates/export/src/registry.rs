//! What a push needs of a registry; `rbuild_source::Registry` is one.

use std::io::Read;

use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, Reference};
use rbuild_ports::{CancelToken, Result};
use rbuild_source::Repository;

/// Opens a blob's content from its start; called again when an upload is retried.
pub type OpenBlob<'a> = dyn Fn() -> Result<Box<dyn Read + Send + 'a>> + Sync + 'a;

/// Registries to push to. Calls block and may be made from several threads at once.
pub trait Registry: Send + Sync {
    /// Whether the repository of `target` has the blob.
    ///
    /// # Errors
    /// `Auth`, `Network`.
    fn blob_exists(&self, target: &Reference, blob: &Descriptor, cancel: &CancelToken) -> Result<bool>;

    /// Asks the registry to take the blob over from its repository `from`; false when it would rather be sent it.
    ///
    /// # Errors
    /// `Auth`, `Network`.
    fn mount_blob(
        &self,
        target: &Reference,
        blob: &Descriptor,
        from: &str,
        cancel: &CancelToken,
    ) -> Result<bool>;

    /// Uploads a blob.
    ///
    /// # Errors
    /// `Auth`, `Network`, or what `open` and its reader say.
    fn push_blob(
        &self,
        target: &Reference,
        blob: &Descriptor,
        open: &OpenBlob<'_>,
        cancel: &CancelToken,
    ) -> Result<()>;

    /// Stores a manifest or index under the tag of `target`, or under its digest when it has none.
    ///
    /// # Errors
    /// `Auth`, `Network`, `Invalid` when the registry refuses it.
    fn put_manifest(
        &self,
        target: &Reference,
        media_type: &str,
        bytes: &[u8],
        cancel: &CancelToken,
    ) -> Result<Digest>;
}

impl Registry for rbuild_source::Registry {
    fn blob_exists(&self, target: &Reference, blob: &Descriptor, cancel: &CancelToken) -> Result<bool> {
        let size = Self::blob_exists(self, &Repository::of(target), &blob.digest, cancel)?;
        // Some registries do not say how large it is.
        Ok(size.is_some_and(|size| size == blob.size || size == 0))
    }

    fn mount_blob(
        &self,
        target: &Reference,
        blob: &Descriptor,
        from: &str,
        cancel: &CancelToken,
    ) -> Result<bool> {
        let from = Repository { domain: target.domain.clone(), path: from.to_owned() };
        Self::mount_blob(self, &Repository::of(target), &blob.digest, &from, cancel)
    }

    fn push_blob(
        &self,
        target: &Reference,
        blob: &Descriptor,
        open: &OpenBlob<'_>,
        cancel: &CancelToken,
    ) -> Result<()> {
        let mut open = || open().map(|reader| reader as Box<dyn Read + '_>);
        Self::push_blob(self, &Repository::of(target), &blob.digest, blob.size, &mut open, cancel)
    }

    fn put_manifest(
        &self,
        target: &Reference,
        media_type: &str,
        bytes: &[u8],
        cancel: &CancelToken,
    ) -> Result<Digest> {
        Self::put_manifest(self, target, media_type, bytes, cancel)
    }
}

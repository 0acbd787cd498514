//! What a push needs of a registry.

use std::io::Read;

use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, Reference};
use rbuild_ports::{CancelToken, Result};

/// Opens a blob's content from its start; called again when an upload is retried.
pub type OpenBlob<'a> = dyn Fn() -> Result<Box<dyn Read + Send>> + Sync + 'a;

/// A registry to push to. Calls block and may be made from several threads at once.
pub trait Registry: Send + Sync {
    /// Whether the repository of `target` has the blob.
    ///
    /// # Errors
    /// `Auth`, `Network`.
    fn blob_exists(&self, target: &Reference, blob: &Descriptor, cancel: &CancelToken) -> Result<bool>;

    /// Asks the registry to take the blob from its repository `from`; false when it would rather be sent it.
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
        digest: &Digest,
        bytes: &[u8],
        cancel: &CancelToken,
    ) -> Result<()>;
}

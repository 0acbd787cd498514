//! Blobs: immutable bytes named by their digest.

use std::io::{Read, Seek, Write};

use rbuild_digest::Digest;

use crate::Result;

/// An open blob.
pub trait BlobReader: Read + Seek + Send {}
impl<T: Read + Seek + Send> BlobReader for T {}

/// Immutable bytes by digest.
pub trait BlobStore: Send + Sync {
    /// The size, or `None` when it is not there.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn size(&self, digest: &Digest) -> Result<Option<u64>>;

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// `NotFound`, or if it cannot be read.
    fn open(&self, digest: &Digest) -> Result<Box<dyn BlobReader>>;

    /// Starts a new blob. It is invisible until committed; dropping the writer leaves nothing.
    ///
    /// # Errors
    /// If the store cannot be written.
    fn writer(&self) -> Result<Box<dyn BlobWriter>>;

    /// Removes a blob. One that is not there is no error.
    ///
    /// # Errors
    /// If it cannot be removed.
    fn remove(&self, digest: &Digest) -> Result<()>;
}

/// A blob being written; hashes what it is given.
pub trait BlobWriter: Write + Send {
    /// Makes the blob visible under its digest and returns digest and size. A blob that was there already is
    /// kept. When `expected` is given and differs, nothing becomes visible.
    ///
    /// # Errors
    /// `Corrupt` when the digest is not the expected one; otherwise if it cannot be written.
    fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<(Digest, u64)>;
}

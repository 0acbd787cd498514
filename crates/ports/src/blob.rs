//! Blobs: immutable bytes named by their digest.

use std::io::{self, Read, Seek, Write};
use std::sync::Arc;

use rbuild_digest::Digest;

use crate::Result;

/// An open blob.
pub trait BlobReader: Read + Seek + Send {}
impl<T: Read + Seek + Send> BlobReader for T {}

/// Bytes that are read at places, by several threads if need be.
pub trait ReadAt: Send + Sync {
    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// If they cannot be read, or there are fewer.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

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
    /// Reads what was written and flushed, also after the commit and when the writer was dropped. `None` where the
    /// store has no such thing.
    fn written(&self) -> Option<Arc<dyn ReadAt>>;

    /// Makes the blob visible under its digest and returns digest and size. A blob that was there already is
    /// kept. When `expected` is given and differs, nothing becomes visible.
    ///
    /// # Errors
    /// `Corrupt` when the digest is not the expected one; otherwise if it cannot be written.
    fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<(Digest, u64)>;
}

//! Reading a blob: who reads it from the first byte to the last is told when the bytes are not those of its name.
//! The last bytes of a damaged blob are never handed out, and the blob is removed, so that it is a miss from then on.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use rbuild_digest::{Digest, Hasher};
use rbuild_ports::{ErrorKind, PortError};

use crate::blobs::Shelf;

/// An open blob.
pub(crate) struct Reader {
    shelf: Arc<Shelf>,
    digest: Digest,
    file: File,
    size: u64,
    position: u64,
    /// The hash of all bytes before `position`; none when they were not read in order, or need no check.
    hasher: Option<Hasher>,
}

impl Reader {
    pub(crate) fn new(shelf: Arc<Shelf>, digest: Digest, file: File, size: u64) -> Self {
        let hasher = (!shelf.is_verified(&digest)).then(Hasher::new);
        Self { shelf, digest, file, size, position: 0, hasher }
    }

    fn check(&mut self) -> io::Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        if hasher.finish() == self.digest {
            self.shelf.set_verified(self.digest);
            return Ok(());
        }
        self.shelf.discard(&self.digest, &self.file);
        Err(damaged(&self.digest))
    }
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.position += n as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(buf.get(..n).unwrap_or_default());
        }
        if self.position >= self.size && !buf.is_empty() {
            self.check()?;
        }
        Ok(n)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let before = self.position;
        self.position = self.file.seek(to)?;
        if self.position != before {
            let again = self.position == 0 && !self.shelf.is_verified(&self.digest);
            self.hasher = again.then(Hasher::new);
        }
        Ok(self.position)
    }
}

/// The error for bytes that are not those of their name; it carries a port error of kind `Corrupt`.
fn damaged(digest: &Digest) -> io::Error {
    let error =
        PortError::new(ErrorKind::Corrupt, format!("blob {digest} was damaged on the disk and is dropped"))
            .help("build again: it is fetched or made anew");
    io::Error::new(io::ErrorKind::InvalidData, error)
}
